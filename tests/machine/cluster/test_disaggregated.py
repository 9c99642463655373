"""Prefill here, decode there: event by event against formulas worked out on the side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.cli import run
from cluster.errors import InputError
from cluster.experiments.serving import (
    PLATFORM_NAMES,
    PLATFORMS,
    PS,
    STAGES,
    Lengths,
    Site,
    Slo,
    Trace,
    poisson,
    run_disaggregated,
)
from cluster.experiments.serving.belt import given_belt
from cluster.experiments.serving.figures import service_report
from cluster.experiments.serving.kv_handover import exposed_by_formula, kv_bytes
from cluster.experiments.serving.platforms import SPLIT, one_by_one
from cluster.experiments.serving.split_layers import SplitCost
from cluster.gpu import LINK_PRESETS, GpuGroup, LinkLedger, WorldLink, load_gpu_spec
from programs.models import architecture

LLAMA = architecture("llama-2-70b")
SITE = Site(
    LLAMA,
    GpuGroup(load_gpu_spec("h100"), 4),
    GpuGroup(load_gpu_spec("rubin-cpx"), 4),
    given_belt(900_000, 900_000_000, 1 << 16),
    LINK_PRESETS["pcie5-x16"],
    9_000,
    "given",
)


def one(prompt: int, output: int) -> Trace:
    return Trace(*(np.array([value], np.int64) for value in (0, prompt, output)), source="one")


def test_one_by_one_is_first_come_first_served() -> None:
    begin, end, busy = one_by_one([0, 0, 1, 9], [5, 2, 4, 1], 2)
    assert (begin.tolist(), end.tolist()) == ([0, 0, 2, 9], [5, 2, 6, 10])
    assert busy.tolist() == [6, 6]


def test_one_request_on_every_platform_is_the_sum_of_its_parts() -> None:
    prompt, output = 1024, 5
    report = run_disaggregated(one(1, 1), (prompt, output), SITE, Slo(), list(PLATFORMS))
    ttft, second = report["ttft_s"], report["second_token_s"]
    prefill = SITE.gpu.prefill_seconds(LLAMA, prompt)
    on_cpx = SITE.cpx.prefill_seconds(LLAMA, prompt)
    # Each pass takes its token ids in and gives one out: 10 us and 4 bytes each at 0.8 of PCIe.
    into, out = (1e-5 + 4 * n / (0.8 * 64e9) for n in (prompt, 1))
    into_cpx, out_cpx = (1e-5 + 4 * n / (0.8 * 128e9) for n in (prompt, 1))
    assert ttft["gpu-only"] == pytest.approx(into + prefill + out, abs=1e-12)
    assert ttft["gpu+lpu"] == ttft["gpu+lpu-ffn"] == pytest.approx(ttft["gpu-only"], abs=3e-12)
    assert ttft["cpx+lpu"] == ttft["cpx+lpu+gpu"]
    assert ttft["cpx+lpu"] == pytest.approx(into_cpx + on_cpx + out_cpx, abs=3e-12)
    assert ttft["lpu-only"] == pytest.approx(1e-3 * prompt)
    decode = SITE.gpu.decode_seconds(LLAMA, [prompt]) + 2 * out
    assert second["gpu-only"] == pytest.approx(decode, abs=1e-12)
    assert second["lpu-only"] == pytest.approx(1e-3)
    for name, took, back in (("gpu+lpu", prefill, out), ("cpx+lpu", on_cpx, out_cpx)):
        alone = report["platforms"][name]["alone"]
        handed = exposed_by_formula(kv_bytes(LLAMA, prompt), SITE.link, took, LLAMA.layers)
        assert alone["kv_exposed_s"] == pytest.approx(handed, rel=1e-6)
        assert alone["kv_exposed_formula_s"] == pytest.approx(handed)
        # The cache sets out while the first token goes to the host.
        assert second[name] == pytest.approx(1e-3 + handed - back, abs=2e-9)
        whole = report["ttft_s"][name] - back + handed + 4e-3
        assert report["end_to_end_s"][name] == pytest.approx(whole, abs=2e-9)
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
    now += cost.outer_seconds(batch) + 2 * SITE.gpu.host_seconds(batch)
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


def test_pipelines_share_the_networks_of_a_batch() -> None:
    """Three tokens on two pipelines: two on one, one on the other, at the same time."""
    cost = SplitCost(SITE.gpu, LLAMA, SITE.link, 9_000, 900_000_000, 3_000, pipelines=2)
    assert cost.ffn_seconds(3) == pytest.approx(12_000 / 9e8)
    assert cost.ffn_seconds(2) == cost.ffn_seconds(1) == pytest.approx(9_000 / 9e8)
    assert cost.ffn_busy_cycles(3) == 80 * (12_000 + 9_000)
    trace = poisson(50.0, 40, Lengths(500, 30, 0.3), 1)
    for name in SPLIT:
        ends = [
            PLATFORMS[name](trace, replace(SITE, pipelines=n)).served.done_ps for n in (1, 2, 8)
        ]
        assert (ends[0] >= ends[1]).all() and ends[1].max() > ends[2].max()


def test_pipelines_that_cannot_be_shared_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    uneven = replace(SITE, groups=2, pipelines=3)
    for name in SPLIT:
        with pytest.raises(InputError, match="3 LPU pipelines with 2 GPU groups"):
            run_disaggregated(one(1, 1), (9, 2), uneven, Slo(), [name])
    run_disaggregated(one(1, 1), (9, 2), uneven, Slo(), ["gpu+lpu"])
    arguments = ["experiment", "disaggregated", "--requests", "5", "--gpu-groups", "2"]
    assert run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pipelines"] == 2
    assert run([*arguments, "--pipelines", "3"]) == 2
    assert "use a multiple of 2" in capsys.readouterr().err


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
    slow = replace(SITE, link=LINK_PRESETS["100gbe"])
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
        assert list(load["stages"]) == list(STAGES)
        assert {tuple(stage) for stage in load["stages"].values()} == {
            ("machine", "servers", "utilisation", "queue_mean", "queue_peak")
        }
        for stage in load["stages"].values():
            if stage["servers"]:
                assert 0 < stage["utilisation"] <= 1 and stage["queue_mean"] >= 0
    has = {
        name: {stage for stage, use in both["load"]["stages"].items() if use["servers"]}
        for name, both in report(1)["platforms"].items()
    }
    assert has["gpu-only"] == has["lpu-only"] == {"prefill", "decode"}
    assert has["gpu+lpu"] == has["cpx+lpu"] == {"prefill", "handover", "decode"}
    assert has["gpu+lpu-ffn"] == {"prefill", "decode", "ffn"}
    assert has["cpx+lpu+gpu"] == set(STAGES)


def test_two_stages_under_load_are_what_a_plain_loop_says() -> None:
    """Two prefill groups, one link, three pipelines; one event after another."""
    site = replace(SITE, groups=2, pipelines=3, link=WorldLink("slow", 1e-3, 4e9, 1.0))
    trace = poisson(12.0, 50, Lengths(1500, 250, 0.9), 9)
    rows = list(
        zip(
            trace.arrival_ps.tolist(),
            trace.prompt_tokens.tolist(),
            trace.output_tokens.tolist(),
            strict=True,
        )
    )
    groups, pipelines, link_free = [0, 0], [0.0, 0.0, 0.0], 0.0
    first, sends, waits, busy = [], [], dict.fromkeys(STAGES, 0.0), dict.fromkeys(STAGES, 0.0)
    for request, (arrival, prompt, output) in enumerate(rows):
        begin = max(arrival, min(groups))
        waits["prefill"] += (begin - arrival) / PS
        took = round(site.gpu.prefill_seconds(LLAMA, prompt) * PS)
        into, out = (round(1e-5 * PS + 4 * n / (0.8 * 64e9) * PS) for n in (prompt, 1))
        groups[groups.index(min(groups))] = begin + into + took + out
        busy["prefill"] += (into + took + out) / PS / 2
        first.append((begin + into + took + out) / PS)
        if output > 1:
            begin += into
            sends += [(begin + took * (n + 1) // 80, request, n, prompt * 4096) for n in range(80)]
    there: dict[int, float] = {}
    for at, request, layer, nbytes in sorted(sends):
        begins = max(at / PS, link_free)
        link_free = begins + (nbytes + 4 * (layer == 79)) / 4e9
        busy["handover"] += link_free - begins
        if layer == 79:
            waits["handover"] += begins - at / PS
        there[request] = link_free + 1e-3
    done, second = list(first), {}
    for request, ready in sorted(there.items(), key=lambda item: item[1]):
        begins = max(ready, min(pipelines))
        waits["decode"] += begins - ready
        busy["decode"] += 1e-3 * (rows[request][2] - 1) / 3
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
    report = service_report(trace, served, Slo())
    for stage in ("prefill", "handover", "decode"):
        use = report["stages"][stage]
        assert use["utilisation"] == pytest.approx(busy[stage] / max(done), rel=1e-6)
        assert use["queue_mean"] == pytest.approx(waits[stage] / max(done), rel=1e-6, abs=1e-8)
        assert use["queue_mean"] > 0 < use["queue_peak"]
    assert report["queue_mean"] == pytest.approx(sum(waits.values()) / max(done), rel=1e-6)
    assert report["servers"] == 5
    host = report["host_bytes"]
    assert host["gpu_tokens_in"] == 4 * int(trace.prompt_tokens.sum())
    assert host["gpu_tokens_out"] == 4 * len(trace) and host["lpu_inputs_in"] is None
    assert list(there.values()) != sorted(there.values())  # some overtake others


def test_requests_too_long_for_the_lpus_are_refused() -> None:
    short = replace(SITE, belt=given_belt(900_000, 900_000_000, 100))
    report = run_disaggregated(one(90, 20), (90, 20), short, Slo(), list(PLATFORMS))
    refused = {name: both["alone"]["refused"] for name, both in report["platforms"].items()}
    assert refused == {name: name in ("lpu-only", "gpu+lpu", "cpx+lpu") for name in PLATFORMS}
    assert report["second_token_s"]["gpu+lpu"] is None


def test_help_names_every_platform() -> None:
    assert tuple(PLATFORMS) == PLATFORM_NAMES


@pytest.mark.long
def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["experiment", "disaggregated", "--requests", "20"]
    assert run([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["lpu_cycles_exact"] and set(report["platforms"]) == set(PLATFORMS)
    assert report["kv_bytes_per_token"]["deepseek-v3"] == 70_272
    assert run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report
    lone = ["--prompt-tokens", "600", "--output-tokens", "7", "--json"]
    assert run([*arguments, "--platform", "gpu+lpu", *lone]) == 0
    asked = json.loads(capsys.readouterr().out)
    assert (asked["prompt_tokens"], asked["output_tokens"]) == (600, 7)
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
