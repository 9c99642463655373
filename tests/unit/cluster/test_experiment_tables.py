"""The cells of the experiments' tables: every number from its own fact, in its unit."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.commands import experiment_agentic as agentic
from cluster.commands import experiment_load as load
from cluster.commands import experiment_speculative as speculative


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "-"),
        (123.4, "123 s"),
        (1.0, "1 s"),
        (0.9994, "999 ms"),
        (1e-3, "1 ms"),
        (9.876e-4, "988 us"),
        (1e-6, "1 us"),
        (9.99e-7, "999 ns"),
        (-2.0, "-2 s"),
        (0.0, "0 ns"),
    ],
)
def test_times(seconds: float | None, said: str) -> None:
    assert load.span(seconds) == said


def tail(first: float) -> dict[str, float]:
    return {"p50": first, "p90": first + 1, "p99": first + 2}


def stage(servers: int) -> dict[str, Any]:
    return {"servers": servers, "utilisation": 0.4567, "queue_mean": 1.26, "queue_peak": 1234}


def service(**changed: Any) -> dict[str, Any]:
    report = {
        "ttft_s": tail(1),
        "second_token_s": tail(2),
        "tpot_s": tail(3),
        "end_to_end_s": tail(4),
        "tokens_per_s": 12345.6,
        "requests_per_s": 1234.56,
        "goodput_per_s": 987.654,
        "good_ratio": 0.8765,
        "utilisation": 0.7654,
        "servers": 1024,
        "stages": {"decode": stage(3), "ffn": stage(0)},
        "refused": 1212,
        "host_bytes": {"to_host": 3434},
    }
    return {**report, **changed}


def test_a_platform_under_load() -> None:
    cells = load.service_cells(service())
    assert cells == {
        "first token p50/p90/p99": "1 s / 2 s / 3 s",
        "second token after first": "2 s / 3 s / 4 s",
        "per further token": "3 s / 4 s / 5 s",
        "end to end": "4 s / 5 s / 6 s",
        "throughput": "12,346 tokens/s, 1,235 requests/s",
        "goodput under the SLO": "987.7 requests/s (87.6%)",
        "utilisation": "76.5% of 1,024",
        # a stage without servers has no row
        "decode: busy, queue mean, peak": "45.7%, 1.3, 1,234",
        "refused": "1,212",
        "host traffic, bytes": "to host 3,434",
    }
    assert load.stage_cell(stage(0)) == "-"
    scaled = load.service_cells(service(scaling=True, nodes_peak=1111, node_seconds=2222.5))
    assert scaled["utilisation"] == "76.5% of the groups that were up"
    assert scaled["GPU groups up"] == "up to 1,111, 2,222 group-seconds"


def test_hosts() -> None:
    assert load.host_cell({"to_host": 12345, "from_host": 0, "both": 6}) == "to host 12,345, both 6"
    assert load.host_cell({"to_host": 1, "from_host": None}) == "in the given cycles"


def test_numbers_of_things() -> None:
    assert [load.counted(n, "chip") for n in (0, 1, 2, 1000)] == [
        "0 chips",
        "1 chip",
        "2 chips",
        "1,000 chips",
    ]


def test_machines_and_their_costs() -> None:
    gpu = {
        "kind": "gpu",
        "groups": 4,
        "tensor_parallel": 4,
        "gpu": "h100",
        "dtype": "fp8",
        "scaling": None,
        "max_batch": 64,
        "costs": "roofline",
        "initiation_interval": "given",
        "initiation_interval_cycles": 5,
    }
    assert load._machine(gpu) == "4 x 4 h100, fp8, batch up to 64"
    # the groups alone are replaced, not the like number of GPUs in each
    scaled = {**gpu, "scaling": {"least": 1, "most": 8}}
    assert load._machine(scaled) == "1 to 8 x 4 h100, fp8, batch up to 64"
    assert load._costs(gpu) == "roofline"
    lpu = {
        "kind": "lpu",
        "chips_per_pipeline": 8,
        "pipelines": 1,
        "dtype": "int8",
        "places_per_pipeline": 1,
        "costs": "compiled",
        "initiation_interval": "none",
        "initiation_interval_cycles": 4321,
    }
    assert load._machine(lpu) == "1 pipeline of 8 chips, int8"
    several = {**lpu, "chips_per_pipeline": 0, "pipelines": 2, "places_per_pipeline": 3}
    assert load._machine(several) == "2 pipelines, 3 requests in each"
    assert load._costs(lpu) == "compiled"
    assert load._costs({**lpu, "initiation_interval": "given"}) == (
        "compiled; interval of 4,321 cycles given"
    )


def test_a_run_of_agents() -> None:
    run: dict[str, Any] = {
        "end_to_end_s": tail(1),
        "ttft_s": tail(2),
        "tpot_s": tail(3),
        "goodput_per_s": 1234.56,
        "good_ratio": 0.876,
        "steps_of_models": {"large": 5, "small": 7},
        "steps": {"tool": {"search": 2, "run": 1}},
        "messages": {"accepted": 1001, "rejected": 2002},
        "failed": 3003,
        "utilisation": {"gpu": 0.256, "lpu": 0.0, "cpu": 1.0},
        "bytes": {"json_sent": 4004, "json_received": 0, "json_again": 1},
        "host_bytes": {"to_host": 5005},
        "first_answer": " a\n b  c ",
    }
    assert agentic._cells(run) == [
        "1 s\n2 s\n3 s",
        "2 s\n3 s\n4 s",
        "3 s\n4 s\n5 s",
        "1,235/s\n(88%)",
        "5 large\n7 small\n3 tool",
    ]
    assert agentic._traffic(run).splitlines() == [
        "busy: gpu 26%, cpu 100%",
        "JSON bytes: sent 4,004, again 1",
        "host bytes: to host 5,005",
        "messages: 1,001 accepted, 2,002 rejected; requests failed: 3,003",
        "first answer: a b c",
    ]
    assert [agentic._times(ratio) for ratio in (None, 1.256)] == ["-", "1.26 x"]


def drafted(**changed: Any) -> dict[str, Any]:
    row = {
        "variant": "tokens",
        "gamma": 4,
        "acceptance": 0.7654,
        "tokens_per_step": 3.256,
        "speedup": 1.876,
        "formula_tokens_per_step": 3.142,
        "tokens_per_second": 12345.6,
        "temperature": 0.5,
        "link": "pcie",
        "decode_seconds": 8.0,
        **{f"{name}_seconds": float(n) for n, name in enumerate(speculative.PARTS)},
    }
    return {**row, **changed}


def test_a_row_of_drafting() -> None:
    shares = "/".join(f"{100 * n / 8:.0f}" for n in range(len(speculative.PARTS)))
    assert speculative._cells(drafted(), False) == [
        "tokens",
        "4",
        "76.5%",
        "3.26",
        "1.88",
        "3.14",
        "12,346",
        shares,
    ]
    assert speculative._cells(drafted(), True) == [
        "tokens",
        "4",
        "76.5%",
        "3.26",
        "1.88",
        "0.5",
        "pcie",
    ]
    alone = drafted(
        gamma=0,
        acceptance=None,
        link="",
        temperature=None,
        **{f"{name}_seconds": 0.0 for name in speculative.PARTS},
    )
    assert speculative._cells(alone, False)[1:3] == ["-", "-"]
    assert speculative._cells(alone, False)[-1] == "-"
    assert speculative._cells(alone, True)[-2:] == ["-", "-"]


def speculated(**changed: Any) -> dict[str, Any]:
    result: dict[str, Any] = {
        "crossover": {"slower": [], "checked": 12},
        "lossless": True,
        "lossless_check": "why",
        "variant": "tokens",
        "speedup": 1.876,
        "end_to_end_speedup": 1.234,
        "compares": "a to b",
        "alpha": None,
        "concurrent": 1,
        "rows": [drafted()],
        "left_out": {},
        "nodes_lost": 0,
        "positions_replayed": 77,
        "wait_seconds": 1.0,
        "decode_seconds": 4.0,
        "lpu_cycles_per_token": None,
        "draft_model": "small",
        "gpu_model": "large",
    }
    return {**result, **changed}


def test_the_facts_of_drafting() -> None:
    plain = speculative._facts(speculated())
    assert plain == [
        ("lossless", f"{speculative.LOSSLESS[True]}: why"),
        ("headline", "tokens: decoding 1.88 x as fast, 1.23 x with the prompt"),
        ("it compares", "a to b"),
        ("shipping KV", "makes it slower than GPU-only in 0 of 12 cases"),
    ]
    assert speculative._facts(speculated(alpha=0.75))[0] == (
        "not measured",
        "--alpha 0.75 is given, no model ran; small drafts for large; LPU cycles per token: of "
        "the shipped draft",
    )
    given = speculative._facts(speculated(alpha=0.75, lpu_cycles_per_token=4321))
    assert given[0][1].endswith(": given with transfers, 4,321") and given[1:] == plain
    assert speculative._facts(speculated(concurrent=2, nodes_lost=3))[4:] == [
        ("waiting", "25% of the decoding time, for machines others use"),
        ("assumed", "the LPUs hold the draft's KV cache of every prompt under way"),
        ("GPU nodes lost", "3; 77 positions replayed"),
    ]
    more = speculated(rows=[drafted(variant="lpu-only", agreement=0.9876)], left_out={"x": "y"})
    assert speculative._facts(more)[4:] == [
        (
            "lpu-only",
            "the target in int8 on LPUs; it agrees with the GPUs' on 98.8% of the tokens; "
            "one prompt after another",
        ),
        ("no x", "y"),
    ]


def test_cases_in_which_shipping_kv_is_slower() -> None:
    decoding = {
        "link": "pcie",
        "gamma": 4,
        "cause": "kv",
        "speedup_kv": 0.876,
        "speedup_tokens": 1.254,
        "kv_bytes_per_step": 12345.6,
        "break_even_kv_bytes_per_step": 9876.5,
    }
    prompt = {
        "link": "eth",
        "gamma": 2,
        "cause": "prompt",
        "end_to_end_speedup_kv": 0.765,
        "end_to_end_speedup_tokens": 1.043,
        "prompt_kv_bytes": 65536,
    }
    rows = speculative._facts(
        speculated(crossover={"slower": [decoding, *[prompt] * 10], "checked": 12})
    )
    assert rows[3] == ("shipping KV", "makes it slower than GPU-only in 11 of 12 cases")
    assert rows[4] == (
        "  pcie, gamma 4",
        "0.88 x (1.25 without): 12,346 bytes per step, even at 9,876",
    )
    # ten cases at most
    assert rows[5:] == 9 * [
        ("  eth, gamma 2", "0.77 x with the prompt (1.04 without): its KV is 65,536 bytes")
    ]


@pytest.mark.parametrize(("rows", "swept"), [(3, False), (4, True)])
def test_more_than_three_settings_are_a_sweep(
    rows: int, swept: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [drafted(gamma=n + 1) for n in range(rows)] * 2
    speculative._show({**speculated(rows=found), "text": ["def"]}, ["abc"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "abcdef"
    assert any("pcie" in line for line in lines) == swept
    assert any("12,346" in line for line in lines) != swept


def test_a_long_sweep_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    most = speculative.MOST_ROWS
    for extra in (0, 2):
        rows = [drafted(variant="mine", gamma=n + 1) for n in range(most + extra)]
        speculative._show({**speculated(rows=rows), "text": []}, ["a", "b"])
        said = capsys.readouterr().out
        assert sum(line.split()[:1] == ["mine"] for line in said.splitlines()) == most
        assert ("2 more rows: see --json" in said) == (extra > 0)
