"""Prefill here, decode there: event by event against formulas worked out on the side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.cli import run
from cluster.experiments.arrivals import PS, Lengths, Trace, poisson
from cluster.experiments.belt import given_belt
from cluster.experiments.disaggregated import (
    PLATFORMS,
    Site,
    exposed_by_formula,
    hand_over,
    kv_bytes,
    one_by_one,
    run_disaggregated,
)
from cluster.experiments.serving import Slo
from cluster.experiments.split_layers import SplitCost
from cluster.gpu.link import PRESETS, LinkLedger, WorldLink
from cluster.gpu.roofline import GpuGroup
from cluster.gpu.spec import load_gpu_spec
from programs.architectures import architecture

LLAMA = architecture("llama-2-70b")
SITE = Site(
    LLAMA, GpuGroup(load_gpu_spec("h100"), 4), GpuGroup(load_gpu_spec("rubin-cpx"), 4),
    given_belt(900_000, 900_000_000, 1 << 16), PRESETS["pcie5-x16"], 9_000, "given",
)  # fmt: skip


def one(prompt: int, output: int) -> Trace:
    return Trace(*(np.array([value], np.int64) for value in (0, prompt, output)), source="one")


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 100_000),
    st.floats(1e-4, 10.0),
    st.integers(1, 100),
    st.floats(1e8, 1e12),
)
def test_a_handover_shows_what_the_formula_says(
    tokens: int, prefill_s: float, layers: int, rate: float
) -> None:
    """Exactly max(last layer, S/B - t (1 - 1/layers)) + latency; the formula counts one more."""
    link = WorldLink("test", 1e-5, rate, 1.0)
    nbytes = 1280 * layers * tokens
    end = round(prefill_s * PS)
    arrived = hand_over(
        np.array([0]), np.array([end]), [nbytes], layers, LinkLedger(link), "layers"
    )
    exposed = (int(arrived[0]) - end) / PS
    last, whole = nbytes / layers / rate, nbytes / rate
    exact = max(last, whole - prefill_s * (1 - 1 / layers)) + 1e-5
    slack = 1e-9 + 4 / rate * (layers + 1) + 1e-12 * whole
    assert exposed == pytest.approx(exact, rel=1e-9, abs=slack)
    formula = exposed_by_formula(nbytes, link, prefill_s, layers)
    assert exposed - slack <= formula <= exposed + last + slack


def test_serial_handover_waits_for_all_and_the_link_is_shared_in_order() -> None:
    link = WorldLink("test", 1.0, 100.0, 1.0)
    ends = np.array([10 * PS, 11 * PS])
    arrived = hand_over(ends - PS, ends, [996, 996], 4, LinkLedger(link), "serial")
    assert arrived.tolist() == [21 * PS, 31 * PS]


def test_every_byte_of_the_cache_crosses_once() -> None:
    for handover in ("serial", "layers"):
        ledger = LinkLedger(SITE.link)
        hand_over(np.array([0, 5]), np.array([7, 9]), [1001, 13], 80, ledger, handover)
        assert ledger.bytes_by_kind["kv"] == 1014 and ledger.bytes_by_kind["tokens"] == 8


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("llama-2-70b", 327_680), ("llama-3-70b", 327_680), ("opt-66b", 2_359_296),
        ("llama-3-405b", 516_096), ("deepseek-v3", 70_272), ("qwen3-8b", 147_456),
        ("qwen3-235b", 192_512),
    ],
)  # fmt: skip
def test_kv_bytes_per_token_are_the_published_ones(name: str, bytes_per_token: int) -> None:
    assert kv_bytes(architecture(name), 3) == 3 * bytes_per_token


def test_one_by_one_is_first_come_first_served() -> None:
    begin, end = one_by_one([0, 0, 1, 9], [5, 2, 4, 1], 2)
    assert (begin.tolist(), end.tolist()) == ([0, 0, 2, 9], [5, 2, 6, 10])


def test_one_request_on_every_platform_is_the_sum_of_its_parts() -> None:
    prompt, output = 1024, 5
    report = run_disaggregated(one(1, 1), (prompt, output), SITE, Slo(), list(PLATFORMS))
    ttft, second = report["ttft_s"], report["second_token_s"]
    prefill = SITE.gpu.prefill_seconds(LLAMA, prompt)
    on_cpx = SITE.cpx.prefill_seconds(LLAMA, prompt)
    assert ttft["gpu-only"] == ttft["gpu+lpu"] == ttft["gpu+lpu-ffn"] == pytest.approx(prefill)
    assert ttft["cpx+lpu"] == ttft["cpx+lpu+gpu"] == pytest.approx(on_cpx)
    assert ttft["lpu-only"] == pytest.approx(1e-3 * prompt)
    decode = SITE.gpu.decode_seconds(LLAMA, [prompt])
    assert second["gpu-only"] == pytest.approx(decode, abs=1e-12)
    assert second["lpu-only"] == pytest.approx(1e-3)
    for name, took in (("gpu+lpu", prefill), ("cpx+lpu", on_cpx)):
        alone = report["platforms"][name]["alone"]
        handed = exposed_by_formula(kv_bytes(LLAMA, prompt), SITE.link, took, LLAMA.layers)
        assert alone["kv_exposed_s"] == pytest.approx(handed, rel=1e-6)
        assert alone["kv_exposed_formula_s"] == pytest.approx(handed)
        assert second[name] == pytest.approx(1e-3 + handed, abs=2e-9)
        assert report["end_to_end_s"][name] == pytest.approx(took + handed + 4e-3, abs=2e-9)
        assert alone["bytes"] == {"kv": 327_680 * prompt, "tokens": 4}
    split = report["platforms"]["gpu+lpu-ffn"]["alone"]
    assert split["bytes"] == {"activations": 4 * 2 * 80 * 8192 * 2}
    both = report["platforms"]["cpx+lpu+gpu"]["alone"]
    assert set(both["bytes"]) == {"kv", "tokens", "activations"}
    assert both["tpot_s"] > split["tpot_s"]


def test_a_split_layer_is_what_events_say() -> None:
    """Layer by layer through two ledgers, one for each way."""
    cost = SplitCost(SITE.gpu, LLAMA, SITE.link, 9_000, 900_000_000, 3_000)
    batch, seen = 3, 3000
    there, back = LinkLedger(SITE.link), LinkLedger(SITE.link)
    attention = float(cost.attention_seconds(batch, np.array([seen]))[0])
    now = 0.0
    for _ in range(LLAMA.layers):
        now = there.send("activations", cost.crossing_bytes(batch), now + attention)
        now = back.send("activations", cost.crossing_bytes(batch), now + cost.ffn_seconds(batch))
    now += cost.outer_seconds(batch)
    assert int(cost.decode_ps(batch, seen, 1)[0]) / PS == pytest.approx(now, rel=1e-9)
    assert there.total_bytes + back.total_bytes == 2 * 80 * 3 * 8192 * 2
    assert cost.ffn_seconds(1) == pytest.approx(1e-5)
    assert cost.ffn_seconds(3) == pytest.approx(15_000 / 9e8)


def test_an_interval_of_the_pipeline_never_slows_one_layer() -> None:
    """A pipeline that takes a token every 150,000 cycles has layers that are quicker than that."""
    plain = SITE.split(False)
    belted = replace(SITE, belt=replace(SITE.belt, interval_cycles=150_000)).split(False)
    assert belted.ffn_seconds(8) == plain.ffn_seconds(8)
    quick = replace(SITE, belt=replace(SITE.belt, interval_cycles=3_000)).split(False)
    assert quick.ffn_seconds(8) == pytest.approx((9_000 + 7 * 3_000) / 9e8)


def test_attention_and_network_together_are_about_a_whole_layer() -> None:
    """A GPU's layer without its network is quicker than with it, and not by more than that."""
    cost = SplitCost(SITE.gpu, LLAMA, SITE.link, 1, 900_000_000, 1)
    stays = LLAMA.layers * float(cost.attention_seconds(1, np.array([1001]))[0])
    stays += cost.outer_seconds(1)
    whole = SITE.gpu.decode_seconds(LLAMA, [1000])
    spec = SITE.gpu.spec
    network = 80 * 3 * 8192 * 28672 * 2 / (4 * spec.hbm_bytes_per_s * spec.achieved_hbm_ratio)
    assert whole - 2 * network < stays < whole - 0.9 * network


def test_serial_is_slower_than_layer_by_layer_and_a_slow_link_shows() -> None:
    names = ["gpu+lpu"]
    slow = replace(SITE, link=PRESETS["100gbe"])
    found = {
        (name, handover): run_disaggregated(
            one(1, 1), (4096, 4), replace(site, handover=handover), Slo(), names
        )["second_token_s"]["gpu+lpu"]
        for name, site in (("fast", SITE), ("slow", slow))
        for handover in ("serial", "layers")
    }
    assert found["fast", "layers"] < found["fast", "serial"] < found["slow", "serial"]
    assert found["slow", "serial"] == pytest.approx(
        1e-3 + SITE.link.latency_s + 327_680 * 4096 / (12.5e9 * 0.9), rel=1e-3
    )


def test_under_load_a_seed_gives_one_report() -> None:
    def report(seed: int) -> dict[str, Any]:
        trace = poisson(4.0, 60, Lengths(1500, 30, 0.7), seed)
        return run_disaggregated(trace, (1024, 32), SITE, Slo(), list(PLATFORMS))

    assert json.dumps(report(1)) == json.dumps(report(1))
    assert report(1)["platforms"] != report(2)["platforms"]
    for platform in report(1)["platforms"].values():
        load = platform["load"]
        assert load["requests"] == 60 and load["refused"] == 0
        assert 0 < load["utilisation"] <= 1
        for share in ("prefill_utilisation", "link_utilisation"):
            assert load[share] is None or 0 < load[share] <= 1


def test_two_stages_under_load_are_what_a_plain_loop_says() -> None:
    """Two prefill groups, one link, three pipelines; one event after another."""
    site = replace(SITE, groups=2, pipelines=3, link=WorldLink("slow", 1e-3, 4e9, 1.0))
    trace = poisson(12.0, 50, Lengths(1500, 8, 0.9), 9)
    rows = list(
        zip(
            trace.arrival_ps.tolist(), trace.prompt_tokens.tolist(), trace.output_tokens.tolist(),
            strict=True,
        )
    )  # fmt: skip
    groups, pipelines, link_free = [0, 0], [0.0, 0.0, 0.0], 0.0
    first, sends = [], []
    for request, (arrival, prompt, output) in enumerate(rows):
        begin = max(arrival, min(groups))
        took = round(site.gpu.prefill_seconds(LLAMA, prompt) * PS)
        groups[groups.index(min(groups))] = begin + took
        first.append((begin + took) / PS)
        if output > 1:
            sends += [(begin + took * (n + 1) // 80, request, n, prompt * 4096) for n in range(80)]
    there: dict[int, float] = {}
    for at, request, layer, nbytes in sorted(sends):
        link_free = max(at / PS, link_free) + (nbytes + 4 * (layer == 79)) / 4e9
        there[request] = link_free + 1e-3
    done, second = list(first), {}
    for request, ready in sorted(there.items(), key=lambda item: item[1]):
        begins = max(ready, min(pipelines))
        second[request] = begins + 1e-3
        done[request] = begins + 1e-3 * (rows[request][2] - 1)
        pipelines[pipelines.index(min(pipelines))] = done[request]
    outcome = PLATFORMS["gpu+lpu"](trace, site)
    served = outcome.served
    assert served.first_ps / PS == pytest.approx(first, abs=1e-9)
    assert served.done_ps / PS == pytest.approx(done, abs=1e-6)
    for request, at in second.items():
        assert served.second_ps[request] / PS == pytest.approx(at, abs=1e-6)
    assert outcome.nbytes["kv"] == sum(327_680 * rows[request][1] for request in there)
    assert list(there.values()) != sorted(there.values())  # some overtake others


def test_requests_too_long_for_the_lpus_are_refused() -> None:
    short = replace(SITE, belt=given_belt(900_000, 900_000_000, 100))
    report = run_disaggregated(one(90, 20), (90, 20), short, Slo(), list(PLATFORMS))
    refused = {name: both["alone"]["refused"] for name, both in report["platforms"].items()}
    assert refused == {name: name in ("lpu-only", "gpu+lpu", "cpx+lpu") for name in PLATFORMS}
    assert report["second_token_s"]["gpu+lpu"] is None


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["experiment", "disaggregated", "--requests", "20"]
    assert run([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["lpu_cycles_exact"] and set(report["platforms"]) == set(PLATFORMS)
    assert report["kv_bytes_per_token"]["deepseek-v3"] == 70_272
    assert run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report
    assert run([*arguments, "--platform", "gpu+lpu", "--prompt-tokens", "600"]) == 0
    assert "gpu+lpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--platform", "tpu"),
        ("--handover", "never"),
        ("--link", "string"),
        ("--cpx", "abacus"),
        ("--gpu-groups", "0"),
        ("--gpu-groups", "100000"),
        ("--pipelines", "0"),
        ("--pipelines", "100000"),
        ("--lpu-ffn-cycles", "0"),
        ("--max-batch", "0"),
        ("--model", "llama-2-70b"),
        ("--output-tokens", "0"),
        ("--slo-tpot", "-1"),
    ],
)
def test_bad_settings_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert run(["experiment", "disaggregated", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1


@pytest.mark.parametrize("tokens", ["-5", "0", "99999999999999999999"])
def test_a_lone_requests_lengths_are_checked_beside_a_trace(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tokens: str
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,5\n")
    for option in ("--prompt-tokens", "--output-tokens"):
        arguments = ["--trace", str(trace), option, tokens]
        assert run(["experiment", "disaggregated", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and f"{tokens}: use 1 to" in captured.err


def test_a_link_without_end_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "slow.toml"
    path.write_text("[link]\nbytes_per_s = 1e-300\n")
    for verb in (["disaggregated"], ["speculative", "--alpha", "0.5"]):
        assert run(["experiment", *verb, "--link", str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and "virtual time" in captured.err
