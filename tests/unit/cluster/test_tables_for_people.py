"""What runs and plans say to people, row by row: every number from its own fact, in its unit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.commands import output
from cluster.commands.plan import _show
from cluster.commands.sweep_tables import print_plans, print_sweep, size_text, time_text
from cluster.runs import BeltTexts, StoredRun, generation_facts, workload_rows
from cluster.runs.collectives import collective_rows
from programs.plans import BATCHES, FLOOR_TERMS, PHASES

FAULTS = {
    "fec_corrected": 1001,
    "uncorrectable": 2,
    "sram_corrected": 3003,
    "sram_detected": 4,
    "replays": 5,
    "spare_used": 6,
    "cost_cycles": 7007,
    "deskew_interval_cycles": 8,
}
BEFELL = (
    "1,001 packets corrected, 2 not; SRAM 3,003 corrected, 4 detected; 5 replays, 6 spares; "
    "cost 7,007 cycles"
)


def test_a_workload() -> None:
    result: dict[str, Any] = {
        "cycles": 12345,
        "microseconds": 1010.25,
        "multiply_accumulates": 6789012,
        "mxm_utilisation": 0.1234,
        "tera_operations_per_s": 65.43,
        "sram_used_bytes": 2048000,
    }
    plain = [
        ("cycles", "12,345"),
        ("time at the chip's clock", "1,010.2 us"),
        ("useful multiply-accumulates", "6,789,012"),
        ("MXM utilisation", "12.3% of its peak"),
        ("rate", "65.4 T op/s"),
        ("SRAM per chip", "2,048,000 bytes"),
        ("checked", "legal"),
    ]
    assert workload_rows(result) == plain
    more = {**result, "layer_cycles": 1500, "values": 4000, "artifact": "a.lpu"}
    assert workload_rows(more) == [
        plain[0],
        ("cycles of a layer", "1,500"),
        *plain[1:],
        ("run", "all 4,000 values equal the golden model's"),
        ("file", "a.lpu"),
    ]
    (cycles, product, *rest) = workload_rows({**result, "product_cycles": 12000})
    assert [cycles, *rest] == plain
    assert product == ("of which a chip's product", "12,000")


def test_a_launch_of_a_file() -> None:
    def described(values: int, *first: float) -> dict[str, Any]:
        return {"type": "int8", "values": values, "first": list(first)}

    outputs = [{"chip": n, "y": described(2, n, 0.25)} for n in range(9)]
    outputs[0]["z"] = described(3, 7, 8)
    facts = {
        "entry": "main",
        "cycles": 4000,
        "predicted_cycles": 4001,
        "digest": "ab",
        "outputs": outputs,
    }
    launched: Any = None
    head = [("entry point", "main"), ("cycles", "4,000 (predicted 4,001)"), ("digest", "ab")]
    shown = [("y of chip 0 (int8)", "0, 0.25"), ("z of chip 0 (int8)", "7, 8, ...")]
    shown += [(f"y of chip {n} (int8)", f"{n}, 0.25") for n in range(1, 9)]
    # eight outputs at most
    assert StoredRun(facts, launched).rows == [*head, *shown[:8]]
    facts["trace"] = {"events": 1234, "blocks": 5678}
    assert StoredRun(facts, launched).rows[-1] == ("trace", "1,234 events, 5,678 blocks")


def test_a_collective() -> None:
    bounds = {"bandwidth": SimpleNamespace(cycles=1100, formula="9 * 2")}
    plan: Any = SimpleNamespace(
        algorithm="hierarchical",
        launch_words=[1] * 3,
        latency_cycles=2200,
        latency_ns=1833.4,
        bandwidth_gb_s=12.3456,
        vectors=3300,
        vector_hops=4400,
        link_conflicts=0,
        chips=16,
        bounds=bounds,
    )
    planned = [
        ("algorithm", "hierarchical, 3 launches"),
        ("time", "2,200 cycles, 1,833 ns"),
        ("bandwidth", "12.35 GB/s of one chip's tensor"),
        ("vectors", "3,300 sent, 4,400 vector-hops"),
        ("link conflicts", "0"),
        ("bandwidth bound", "1,100 cycles (9 * 2)"),
    ]
    assert collective_rows({}, plan) == planned
    run = {
        "cycles": 2201,
        "predicted_cycles": 2202,
        "actors": 4,
        "equal": True,
        "digest": "ab",
        "recoveries": 0,
        "faults": None,
        "nodes": [0, 2],
    }
    gpu = {"name": "h100", "best_ns": 5500.2, "algorithm": "tree", "p50_ns": 6600, "p99_ns": 7700}
    facts: dict[str, Any] = {"gpu": gpu, "run": run, "trace": {"events": 1234, "blocks": 5678}}
    assert collective_rows(facts, plan)[6:] == [
        ("16 x h100 (estimate)", "5,500 ns by tree; with late kernels p50 6,600, p99 7,700 ns"),
        ("executed", "2,201 cycles, predicted 2,202, 4 actors"),
        ("equals NumPy", "bit for bit"),
        ("digest", "ab"),
        ("trace", "1,234 events, 5,678 blocks"),
    ]
    facts = {"run": {**run, "equal": False, "recoveries": 2, "faults": FAULTS}}
    assert collective_rows(facts, plan)[7:] == [
        ("equals NumPy", "NO"),
        ("digest", "ab"),
        ("lost processes", "2 times replaced"),
        ("faults", BEFELL),
        ("nodes in use", "0, 2"),
    ]


def generated(**changed: Any) -> Any:
    result: dict[str, Any] = {
        "tokens": [5, 6, 7],
        "cycles_per_token": [1100, 1300],
        "first_token_cycles": 4321,
        "decode": [3, 4],
        "chips": 8,
        "actors": 4,
        "predicted_cycles_per_token": [1100, 1300],
        "wall_seconds": 4.25,
        "digest": "ab",
        "first_token_seconds": 1.75,
        "recoveries": (),
        "faults": None,
        "saturations": {},
        "ended": "stop",
    }
    outer: dict[str, Any] = {
        "artifact": SimpleNamespace(spec=SimpleNamespace(clock_hz=1.2e9)),
        "prompt": (1, 2),
        "decode_tokens_per_second": 98765.4,
        "tokens_per_second": 45678.9,
        "wall_tokens_per_second": 1234.56,
        "settings": SimpleNamespace(sync="lookahead"),
        "nodes": None,
        "trace": None,
        "floor_cycles": 1000,
    }
    for name, value in changed.items():
        (result if name in result else outer)[name] = value
    whole = result["cycles_per_token"], result["predicted_cycles_per_token"]
    result.setdefault("whole_cycles", whole)
    return SimpleNamespace(result=SimpleNamespace(**result), **outer)


def test_a_text() -> None:
    rows = generation_facts(generated())
    assert [name for name, _ in rows] == [
        "tokens",
        "first token",
        "cycles per token",
        "floor of the machine",
        "virtual speed",
        "wall speed",
        "wall time",
        "machine",
        "digest",
    ]
    facts = dict(rows)
    assert facts["tokens"] == "3 after a prompt of 2"
    assert facts["first token"] == "after 4,321 cycles, 4 launches"
    assert facts["cycles per token"] == "1,100 to 1,300 (as predicted)"
    assert facts["floor of the machine"] == "1,000; the last token took 1.30 times as many"
    assert facts["virtual speed"] == (
        "98,765 tokens/s decoding, 45,679 with the prompt (1200 MHz, PCIe included)"
    )
    assert facts["wall speed"] == "1,234.6 tokens/s"
    assert facts["wall time"] == "4.2 s, first token at 1.8 s"
    assert facts["machine"] == "8 chips, 4 actors of 2 chips each, lookahead"
    assert facts["digest"] == "ab"


@pytest.mark.parametrize(
    ("actors", "said"),
    [
        (0, "in one process without Ray"),
        (1, "1 actor"),
        (2, "2 actors of 4 chips each"),
        (3, "3 actors of up to 3 chips each"),
        (8, "8 actors of 1 chip each"),
    ],
)
def test_where_a_text_was_made(actors: int, said: str) -> None:
    assert dict(generation_facts(generated(actors=actors)))["machine"] == (
        f"8 chips, {said}, lookahead"
    )


def test_a_text_of_the_token_that_its_prompt_gave() -> None:
    """The last stage alone made it: no token took its way through all stages by itself."""
    alone = generated(cycles_per_token=[400], predicted_cycles_per_token=[400])
    alone.result.whole_cycles = ([], [])
    facts = dict(generation_facts(alone))
    assert facts["cycles per token"] == "none but the first"
    assert facts["floor of the machine"] == "1,000"


def test_a_text_that_might_go_on() -> None:
    cut = dict(generation_facts(generated(ended="length")))
    assert cut["tokens"] == "3 after a prompt of 2, cut by --max-new-tokens"


def test_a_text_that_went_through_a_lot() -> None:
    faulty = generated(
        cycles_per_token=[1100, 1100],
        recoveries=(1, 2),
        faults=FAULTS,
        nodes=[0, 3],
        trace={"events": 1234, "blocks": 5678},
    )
    rows = generation_facts(faulty)
    assert dict(rows)["cycles per token"] == "1,100 (NOT as predicted)"
    assert rows[9:] == [
        ("lost processes", "2 times replaced"),
        ("faults", BEFELL),
        ("nodes in use", "0, 3"),
        ("trace", "1,234 events, 5,678 blocks"),
    ]


@pytest.mark.parametrize(("exact", "said"), [(True, "as"), (False, "NOT as")])
def test_texts_on_the_belt(exact: bool, said: str) -> None:
    facts = {
        "retired_as_predicted": exact,
        "tokens_per_second_per_user": 1234.5,
        "beats": 11,
        "tokens_per_second_total": 98765.4,
        "interval_cycles": 3456,
        "latency_cycles": 7890,
        "first_token_cycles": [10368, 13824],
        "chips": 8,
        "pp": 4,
        "tp": 2,
        "wall_seconds": 1.26,
        "batch": 1,
    }
    texts: Any = SimpleNamespace(facts=facts, prompts=["a", "b"], texts=["x\n", "y"], saturated="")
    rows = BeltTexts.rows.fget(texts)  # type: ignore[attr-defined]
    assert rows == [
        ("'a'", "'x\\n'"),
        ("'b'", "'y'"),
        ("a token leaves every", f"3,456 cycles ({said} predicted, 11 beats)"),
        ("a token takes", "7,890 cycles from first stage to last"),
        ("first tokens", "after 10,368, 13,824 cycles, prompt after prompt"),
        ("tokens per second", "1,234 per user, 98,765 in all, without the host"),
        ("machine", "8 chips, 4 stages of 2, in one process"),
        ("wall time", "1.3 s"),
    ]
    facts["batch"] = 3
    rows = BeltTexts.rows.fget(texts)  # type: ignore[attr-defined]
    assert rows[2][0] == "a token of each of 3 leaves every"
    assert rows[4] == ("first tokens", "after 10,368, 13,824 cycles, group after group")


def planned(**changed: Any) -> dict[str, Any]:
    row = {
        "model": "target",
        "chips": 16,
        "chip": "lp30",
        "changes": {},
        "machine": "dragonfly",
        "context": 4096,
        "batch": 2,
        "dtype": "int8",
        "cycles_per_token": 10000,
        "phases": {name: 1000 + 130 * n for n, name in enumerate(PHASES)},
        "sram_bytes": {"kv_cache": 5000, "free": 6000},
        "units": {"mxm_planes": 0.125},
        "initiation_interval_cycles": 2500,
        "tokens_per_second_per_user": 1234.56,
        "tokens_per_second_total": 9876.54,
        "mode": "pipelined",
        "sram_used_ratio": 0.4321,
        "instruction_bytes": 77000,
        "roofline_cycles": 4444,
        "floor_cycles": 2500,
        "floor": {"stream": 444, "weights": 1111, "exchange": 1389},
        "cycles_per_floor": 4.0,
        "operations_per_byte": 2.5,
        "bottleneck": "weights (44%)",
        "split_layers": 3,
        "checked_pieces": 21,
        "experts": 1,
        "experts_computed": 1,
        "experts_chosen": 1,
        "wall_seconds": 8.76,
        "energy": {
            "joules_per_token_of_one_user": 1.23456,
            "joules_per_token_in_all": 0.34567,
            "joules_per_token_of_a_full_belt": 0.0876,
            "machine_power_w": 9600.0,
        },
        "tp": 8,
        "pp": 2,
        "full_belt": {"sequences": 4, "that_fit": 3, "per_user": 250.04, "total": 1000.16},
    }
    return {**row, **changed}


def shown(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, str]]:
    found: list[tuple[str, list[tuple[str, str]]]] = []
    monkeypatch.setattr(output, "print_table", lambda title, rows: found.append((title, rows)))
    _show(row)
    ((title, rows),) = found
    return title, dict(rows)


def test_batches_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"sequences_per_stage": 4, "interval_cycles": 4000, "sram_used_ratio": 0.4567}
    _, rows = shown(planned(batches=found, batch_refused=None), monkeypatch)
    assert rows["batches"] == (
        "4 sequences a stage: a token of each every 4,000 cycles (40% of what one at a time "
        "takes); 45.7% of the fullest chip's SRAM"
    )
    _, rows = shown(planned(batches=found, batch_refused="--batch 9: full"), monkeypatch)
    assert rows["batches"].endswith(
        "the fullest chip's SRAM; more at a time: none, --batch 9: full"
    )
    full = planned(mode=BATCHES, batches=found, batch_refused=None)
    assert "take turns" not in shown(full, monkeypatch)[1]["full belt"]
    _, rows = shown(planned(batches=None, batch_refused="--batch 9: they would"), monkeypatch)
    assert rows["batches"] == "none: --batch 9: they would"


def test_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    title, rows = shown(planned(), monkeypatch)
    assert title == "target on 16 lp30"
    for number, (name, text) in enumerate(PHASES.items()):
        cycles = 1000 + 130 * number
        share = f"{cycles // 100}.{cycles % 100 // 10}%"
        assert rows.pop(f"  {name.replace('_', ' ')}") == f"{cycles:,} ({share}): {text}"
    assert rows == {
        "machine": "dragonfly",
        "context, batch, weights": "4,096, 2, int8",
        "cycles per token": "10,000",
        "interval of a full belt": "2,500 cycles",
        "tokens per second": "1,234.6 per user, 9,876.5 in all (pipelined)",
        "full belt": (
            "4 sequences: 250.0 tokens/s for each, 1,000.2 in all, 0.0876 J per token (estimate); "
            "these chips have caches for 3 at this context: --batch 4 without --chips plans a "
            "machine for all; one sequence at a stage, so more than 2 take turns"
        ),
        "SRAM of the fullest chip": "43.2% used",
        "  kv cache": "5,000 bytes",
        "  free": "6,000 bytes",
        "instruction words": "at most 77,000 bytes on a chip",
        "load of the slowest stage": "",
        "  mxm planes": "12.5%",
        "roofline": (
            "weights alone stream in 4,444 cycles (44.4% of a token's), 2.5 operations per byte"
        ),
        "floor of the machine": "2,500 cycles; this schedule takes 4.00 times as many",
        "  weights": f"1,111: {FLOOR_TERMS['weights']}",
        "  exchange": f"1,389: {FLOOR_TERMS['exchange']}",
        "bottleneck": "weights (44%)",
        "layers with a split FFN": "3",
        "checked": "21 distinct pieces and all links: legal",
        "timing-only run": "not run",
        "energy": (
            "about 1.23 J per token of one user, 0.346 J in all (estimate: 16 chips at their "
            "average power, 9.6 kW)"
        ),
        "wall time": "8.8 s",
    }


def test_a_plan_with_experts_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    row = planned(
        experts=8,
        experts_computed=2,
        experts_chosen=2,
        energy=None,
        run_seconds=1.0,
        run_chip_cycles_per_second=123456.0,
    )
    rows = shown(row, monkeypatch)[1]
    assert rows["experts of a layer"] == "2 of 8, those that the router chooses"
    row["experts_computed"] = 5
    assert shown(row, monkeypatch)[1]["experts of a layer"] == (
        "2 of 8, those that the router chooses, and 3 that every token takes"
    )
    assert rows["timing-only run"] == ("all chips retired at cycle 10,000 (1.2e+05 chip-cycles/s)")
    assert rows["energy"] == "no estimate: the chip spec gives no power (average_power_w)"


def test_a_plan_s_advice_and_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"chips": 16, "interval_cycles": 2500, "problem": ""}
    row = planned(
        tried=[
            {**one, "change": "--context 9", "cycles": 7500},
            {**one, "change": "--tp 4", "cycles": 10_500},
            {**one, "change": "--tp 2", "cycles": 10_001},
            {**one, "change": "--tp 1", "cycles": 0, "problem": "no room"},
        ],
        cost={
            "currency": "crowns",
            "per_million_tokens": 12.34567,
            "per_million_tokens_of_a_full_belt": 1234.5,
        },
        full_belt={"sequences": 4, "that_fit": 4, "per_user": 250.04, "total": 1000.16},
        energy=None,
    )
    found: list[tuple[str, list[tuple[str, str]]]] = []
    monkeypatch.setattr(output, "print_table", lambda title, rows: found.append((title, rows)))
    _show(row)
    ((_, rows),) = found
    belt = "2,500 cycles (no change) between tokens of a full belt"
    assert [text for name, text in rows if name == "  tried"] == [
        f"--context 9: 7,500 cycles (25.0% fewer) a token, {belt}",
        f"--tp 4: 10,500 cycles (5.0% more) a token, {belt}",
        f"--tp 2: 10,001 cycles (no change) a token, {belt}",
        "--tp 1: no plan, no room",
    ]
    assert dict(rows)["cost of a million tokens"] == (
        "12.35 crowns, with a full belt 1,234 crowns (by your prices)"
    )
    assert dict(rows)["full belt"] == (
        "4 sequences: 250.0 tokens/s for each, 1,000.2 in all; the chips have caches for all of "
        "them; one sequence at a stage, so more than 2 take turns"
    )


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_plans_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        planned(context=1024, bottleneck="weights 44% of 50%"),
        planned(context=2048, bottleneck="weights 40% of 50%", energy=None, chips=32),
        planned(context=4096, bottleneck="scores 9%"),
        {"context": 8192, "problem": "no room"},
    ]
    print_plans("target by context", ["context"], rows)
    said = cells(capsys.readouterr().out)
    row = ["8", "x", "2", "10,000", "2,500", "1,234.6", "9,876.5"]
    assert ["1,024", "16", *row, "0.346"] in said
    assert ["2,048", "32", *row, "-"] in said
    assert [" ".join(line) for line in said[-3:]] == [
        "bottleneck at context 1,024; 2,048: weights 40 to 44% of 50%",
        "bottleneck at context 4,096: scores 9%",
        "no plan for context 8,192: no room",
    ]
    priced = [{**row, "cost": {"per_million_tokens": 0.01234}} for row in rows[:1]]
    print_plans("target by context", ["context"], priced)  # in the place of the interval
    said = cells(capsys.readouterr().out)
    assert ["1,024", "16", "8", "x", "2", "10,000", *row[5:], "0.346", "0.0123"] in said
    many = [planned(context=1 << n) for n in range(5)]
    print_plans("target by context", ["context"], many)
    assert "bottleneck at context 1 to 16 (5 plans): weights (44%)" in capsys.readouterr().out
    print_plans("target by chips", ["chips"], rows[:1])
    # the number of chips once
    assert ["16", *row, "0.346"] in cells(capsys.readouterr().out)


@pytest.mark.parametrize("gpu", [None, "h100"])
def test_a_sweep(gpu: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "bytes": 3072,
        "algorithm": "ring",
        "latency_ns": 1234.5,
        "bandwidth_gb_s": 2.4882,
        "link_conflicts": 1,
        "gpu_best_ns": 5e6,
        "gpu_p50_ns": 1e7,
        "gpu_p99_ns": 2e7,
    }
    print_sweep("all-reduce", [row, {**row, "link_conflicts": 2}], gpu)
    text = capsys.readouterr().out
    line = ["3", "KiB", "ring", "1.23", "us", "2.49"]
    line += ["5,000.00", "us", "10.00", "ms", "20.00", "ms"] if gpu else []
    assert cells(text).count(line) == 2
    said = "time is exact, GB/s of one chip's tensor"
    assert (said + "; GPUs: as many h100, an estimate" if gpu else said) in text.splitlines()
    assert text.splitlines()[-1] == "link conflicts: 3"
    print_sweep("all-reduce", [{**row, "link_conflicts": 0}], gpu)
    assert "link conflicts" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1024 KiB"),
        (2**20, "1 MiB"),
        (2**30, "1 GiB"),
        (2**40, "1 TiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_sizes(count: int, said: str) -> None:
    assert size_text(count) == said


def test_times() -> None:
    assert time_text(9_999_990) == "9,999.99 us" and time_text(1e7) == "10.00 ms"
