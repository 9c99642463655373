"""The load experiment on real costs: the roofline, compiled cycles, the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chip.scheduling import CompileError
from chip.spec import ChipSpec
from cluster.bench.experiments import load_10000_requests
from cluster.cli import run
from cluster.errors import InputError
from cluster.experiments.serving import (
    PS,
    DisaggregatedSettings,
    Lengths,
    LpuChoice,
    RooflineCost,
    Slo,
    belt_of,
    cycles_to_ps,
    lpu_belt,
    poisson,
    ps_to_cycles,
)
from cluster.experiments.serving.batching import serve_batched
from cluster.experiments.serving.belt import belt_of_plan
from cluster.experiments.serving.figures import service_report
from cluster.experiments.serving.slots import BeltPlaces, serve_on_belts
from cluster.gpu import GpuGroup, load_gpu_spec
from programs.artifact import Artifact
from programs.decoder import (
    belt_intervals,
    compile_belt,
    compile_decoder,
    compile_model,
    partition_model,
)
from programs.models import (
    ModelConfig,
    architecture,
    config_of,
    find_model,
    open_model,
    random_checkpoint,
)
from programs.plans import bucket_costs, chunk_costs, compile_plan
from programs.running import LpuSession
from tests.oracles.load_oracle import batched, belted


@pytest.fixture(scope="module")
def draft() -> Artifact:
    """The shipped draft on one chip, 128 positions."""
    return compile_model(open_model("draft"), tp=1, dtype="int8", context=128, chip="groq-lpu-1")


@pytest.mark.parametrize("name", ["target", "llama-2-70b", "mixtral-8x7b", "deepseek-v3"])
@pytest.mark.parametrize(("gpu", "gpus"), [("b200", 8), ("rubin-cpx", 16)])
def test_batched_steps_cost_what_the_roofline_says(name: str, gpu: str, gpus: int) -> None:
    arch = architecture(name)
    group = GpuGroup(load_gpu_spec(gpu), gpus, "fp8")
    cost = RooflineCost(group, arch)
    for contexts in ([0], [7, 300, 4000], [2047] * 64):
        several = cost.decode_ps(len(contexts), sum(contexts) + len(contexts), 5).tolist()
        for step in range(5):
            exact = group.decode_seconds(arch, [context + step for context in contexts])
            # and the batch's token ids from the host and back
            host = 2 * (1e-5 + 4 * len(contexts) / (0.8 * group.spec.pcie_bytes_per_s))
            assert several[step] == round((exact + host) * PS)


def test_a_gpu_pool_is_what_the_oracle_says() -> None:
    arch, group = architecture("llama-2-70b"), GpuGroup(load_gpu_spec("h100"), 2)
    cost = RooflineCost(group, arch, max_batch=5)
    host = group.host_seconds
    assert cost.kv_tokens < 70_000
    trace = poisson(3.0, 40, Lengths(9000, 40, 1.0), 1)
    expected = batched(
        trace.arrival_ps.tolist(),
        trace.prompt_tokens.tolist(),
        trace.output_tokens.tolist(),
        lambda tokens: round(
            (group.prefill_seconds(arch, tokens) + group.host_seconds(tokens) + host(1)) * PS
        ),
        lambda seen: round(
            (group.decode_seconds(arch, [s - 1 for s in seen]) + 2 * host(len(seen))) * PS
        ),
        5,
        group.max_sequences(arch, 1),
        2,
    )
    served = serve_batched(trace, cost, 2)
    found = (served.start_ps, served.first_ps, served.second_ps, served.done_ps)
    assert tuple(times.tolist() for times in found) == expected
    assert (served.start_ps > trace.arrival_ps).any()


def test_stages_of_one_machine_share_its_time() -> None:
    """Prefills and decode steps add up to what a group works; host traffic is of every token."""
    arch, group = architecture("llama-2-70b"), GpuGroup(load_gpu_spec("h100"), 4)
    trace = poisson(6.0, 60, Lengths(3000, 20, 0.7), 3)
    report = service_report(trace, serve_batched(trace, RooflineCost(group, arch), 1), Slo())
    stages, horizon = report["stages"], report["virtual_seconds"]
    host = group.host_seconds
    reading = sum(
        group.prefill_seconds(arch, n) + host(n) + host(1) for n in trace.prompt_tokens.tolist()
    )
    assert stages["prefill"]["utilisation"] == pytest.approx(reading / horizon)
    assert stages["prefill"]["utilisation"] + stages["decode"]["utilisation"] == pytest.approx(
        report["utilisation"]
    )
    assert stages["prefill"]["queue_mean"] == report["queue_mean"] > 0
    assert stages["decode"]["queue_peak"] == 0 and stages["handover"]["servers"] == 0
    total = int((trace.prompt_tokens + trace.output_tokens - 1).sum())
    assert report["host_bytes"]["gpu_tokens_in"] == 4 * total
    assert report["host_bytes"]["gpu_tokens_out"] == 4 * int(trace.output_tokens.sum())


@pytest.mark.long
def test_one_rule_finds_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that is called like a shape: its name is the shape, ./name the directory."""
    shipped = find_model("draft").checkpoint
    assert shipped is not None
    (tmp_path / "llama-2-70b").symlink_to(shipped)
    (tmp_path / "target").symlink_to(shipped)
    monkeypatch.chdir(tmp_path)
    known = find_model("llama-2-70b")
    assert known.checkpoint is None and known.architecture.layers == 80
    with pytest.raises(CompileError, match="does not fit 1 chips"):
        lpu_belt("llama-2-70b", LpuChoice(chips=1))
    here = find_model("./llama-2-70b")
    assert here.checkpoint == Path("./llama-2-70b")
    assert here.architecture.layers == architecture("draft").layers
    assert find_model("target").checkpoint != Path("target")
    for name in ("target", "./target", "llama-2-70b", "./llama-2-70b"):
        assert architecture(name) == find_model(name).architecture


def test_an_lpu_pool_is_what_the_oracle_says(draft: Artifact) -> None:
    belt = belt_of(draft)
    trace = poisson(2000.0, 40, Lengths(50, 20, 0.7), 2)
    clock, cycles = draft.spec.clock_hz, draft.predicted_cycles

    def token(position: int, logits: bool) -> int:
        bucket = next(b for b in draft.bindings["buckets"] if position < b)
        host = belt.host_cycles[1 if logits else 0]
        return cycles[f"{'decode' if logits else 'prefill'}-{bucket}"] + host

    ready = [ps_to_cycles(ps, clock) for ps in trace.arrival_ps.tolist()]
    _, first, second, done = belted(
        ready, trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), token, 128, 2, None, 1
    )
    served = serve_on_belts(trace, belt, 2)
    for times, expected in (
        (served.first_ps, first),
        (served.second_ps, second),
        (served.done_ps, done),
    ):
        assert times.tolist() == [-1 if c < 0 else cycles_to_ps(c, clock) for c in expected]
    assert (served.done_ps < 0).any() and (served.done_ps >= 0).any()


def test_a_request_has_no_more_positions_than_the_model_was_made_for() -> None:
    """Programs are for 64 here."""
    config = ModelConfig(64, 1, 2, 2, 32, 128, 320, max_position=50)
    model = partition_model(random_checkpoint(config, 0), 1)
    belt = belt_of(compile_decoder(model, ChipSpec(), 50, weights=False))
    assert (belt.buckets, belt.context, belt.up_to(9).context) == ((64,), 50, 50)
    assert belt.fits(np.array([40, 40]), np.array([11, 12])).tolist() == [True, False]


def test_a_request_takes_the_cycles_that_emulated_chips_take(draft: Artifact) -> None:
    belt, session = belt_of(draft), LpuSession(draft)
    for position in range(9):
        session.feed(5, position)
    for position in range(9, 12):
        session.logits(6, position)
    host = 9 * belt.host_cycles[0] + 3 * belt.host_cycles[1]
    assert BeltPlaces(belt, 1).enter(0, 10, 3).done == session.cycles + host
    assert host == pytest.approx(session.io_seconds * draft.spec.clock_hz, abs=12)
    # Twelve transfers in and three out; what is not latency is bytes.
    moving = session.io_seconds - 15 * draft.spec.pcie_latency_s
    crossed = belt.crossing(12, 3)
    assert set(crossed) == {"lpu_inputs_in", "lpu_logits_out"}
    total = sum(count or 0 for count in crossed.values())
    assert total == pytest.approx(moving * draft.spec.pcie_bytes_per_s, rel=1e-6)


@pytest.mark.long
def test_stages_overlap_by_default_and_prompts_follow_themselves() -> None:
    """Two nodes: the interval is that of a belt compiled for two requests, prompts as executed."""
    checkpoint = open_model("draft")
    belt = lpu_belt("draft", LpuChoice(16, longest=100))
    assert (belt.interval_source, belt.places, belt.exact) == ("compiled", 2, True)
    model = partition_model(checkpoint, 8)
    full = compile_belt(model, ChipSpec(), 128, 2, weights=False)
    assert belt.interval == full.predicted_cycles["belt-128-0"] and belt.context == 128
    assert belt.up_to(64).interval < belt.interval < belt.turn / 2
    alone = lpu_belt("draft", LpuChoice(16, context=100, overlap=False))
    assert (alone.interval_source, alone.places, alone.interval) == ("none", 1, None)
    assert alone.prompt_cycles == belt.prompt_cycles
    session = LpuSession(compile_decoder(model, ChipSpec(), 128, pp=2))
    for length in (1, 2, 3, 9, 70):
        launches, cycles = session.launches, session.cycles
        session.read([5] * length)
        done = (session.launches - launches, session.cycles - cycles)
        assert done == alone.prompt_work(length)[:2]
        before, after = alone.host_cycles
        assert alone.reading(length) == done[1] + (done[0] - 1) * before + after


@pytest.mark.long
@pytest.mark.parametrize(("chips", "chunk"), [(1, 4), (16, 3)])
def test_prompts_go_in_chunks_as_emulated_chips_read_them(chips: int, chunk: int) -> None:
    """Launches, cycles and the host's seconds of prompts shorter and longer than a chunk."""
    belt = lpu_belt("draft", LpuChoice(chips, context=100, overlap=False, chunk=chunk))
    assert (belt.chunk, belt.places) == (chunk, 1)
    checkpoint, stages = open_model("draft"), max(1, chips // 8)
    width = min(chips, 8)
    session = LpuSession(
        compile_decoder(partition_model(checkpoint, width), ChipSpec(), 100, pp=stages, chunk=chunk)
    )
    clock, fewer, spec = belt.clock_hz, 0, ChipSpec()
    for length in (1, chunk - 1, chunk, chunk + 1, 3 * chunk, 70):
        before = session.launches, session.cycles, session.io_seconds
        session.read([5] * length)
        work = belt.prompt_work(length)
        assert (session.launches - before[0], session.cycles - before[1]) == work[:2]
        fewer += work.launches < length
        host = work.host_cycles + belt.host_cycles[1] - belt.host_cycles[0]
        assert belt.reading(length) == work.cycles + host
        assert host == pytest.approx(
            (session.io_seconds - before[2]) * clock, abs=work.launches + 2
        )
        moving = session.io_seconds - before[2] - (work.launches + 1) * spec.pcie_latency_s
        crossed = belt.crossing(belt.fed(length, 1), 1)
        total = sum(count or 0 for count in crossed.values())
        assert total == pytest.approx(moving * spec.pcie_bytes_per_s, rel=1e-6)
        assert belt.fed(length, 5) == work.tokens + 4 and work.tokens >= length
    assert fewer >= 3


@pytest.mark.long
def test_chunks_of_a_plan_are_those_of_the_compiled_model() -> None:
    name, config = config_of("draft")
    plan = compile_plan(name, config, ChipSpec(), chips=1, context=64)
    compiled = belt_of(
        compile_decoder(partition_model(open_model("draft"), 1), ChipSpec(), 64, chunk=4)
    )
    planned = belt_of_plan(plan, bucket_costs(plan), None, 4, chunk_costs(plan, 4))
    for length in (3, 4, 9, 63):
        assert planned.prompt_work(length) == compiled.prompt_work(length)


def test_chunks_have_no_slots_among_others() -> None:
    with pytest.raises(InputError, match="tokens of several requests are in a pipeline"):
        lpu_belt("draft", LpuChoice(16, context=64, chunk=4))
    with pytest.raises(InputError, match="--chunk 4 with --lpu-interval-cycles: an interval is of"):
        LpuChoice(1, context=64, interval_cycles=2000, chunk=4)
    with pytest.raises(InputError, match=r"--chunk 4 with --platform gpu\+lpu and gpu-only: GPUs"):
        DisaggregatedSettings(chunk=4, platform=["gpu+lpu", "gpu-only"])
    with pytest.raises(InputError, match="what a chunk takes is compiled; leave one out"):
        LpuChoice(1, cycles_per_token=900, chunk=4)


@pytest.mark.long
def test_a_plan_has_as_many_places_as_its_chips_have_room_for() -> None:
    name, config = config_of("smollm2-135m")
    belt = lpu_belt(name, LpuChoice(32, longest=200))
    plan = compile_plan(name, config, ChipSpec(), chips=32, context=256, batch=4)
    assert (belt.context, belt.places, belt.intervals[-1]) == (256, 4, plan.interval_cycles)
    assert belt.prompt_cycles[-1] == plan.pipeline.prompt_cycles(256)
    assert belt.decode_cycles[-1] == plan.cycles


def test_a_given_interval_makes_no_room_for_caches() -> None:
    """As many requests as the chips hold, however many tokens enter in a turn."""
    belt = lpu_belt("draft", LpuChoice(1, interval_cycles=20))
    assert belt.slots > 1000 > belt.places > 1
    model = partition_model(open_model("draft"), 1)
    belt_intervals(model, ChipSpec(), belt.context, 1, belt.places)
    with pytest.raises(CompileError, match="does not fit"):
        belt_intervals(model, ChipSpec(), belt.context, 1, belt.places + 1)
    assert lpu_belt("draft", LpuChoice(1, interval_cycles=belt.turn // 3)).places == 3


@pytest.mark.long
def test_a_given_interval_makes_no_room_in_a_plan() -> None:
    name, config = config_of("smollm2-135m")
    belt = lpu_belt(name, LpuChoice(8, context=512, interval_cycles=500))
    assert belt.slots > 100 > belt.places > 1
    compile_plan(name, config, ChipSpec(), chips=8, context=512, batch=belt.places)
    with pytest.raises(CompileError):
        compile_plan(name, config, ChipSpec(), chips=8, context=512, batch=belt.places + 1)


def test_an_interval_of_what_does_not_overlap(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--no-overlap", "--lpu-interval-cycles", "90000", "--pool", "lpu")
    assert run(["experiment", "load", *arguments]) == 2
    assert "an interval is of tokens that overlap" in capsys.readouterr().err


@pytest.mark.long
def test_ten_thousand_requests_take_seconds() -> None:
    (row,) = load_10000_requests()
    assert row.value < 10


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["experiment", "load", "--json", *arguments]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_same_seed_same_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--model", "draft", "--requests", "60", "--arrivals", "bursts")
    one, same, other = (report(capsys, *arguments, "--seed", seed) for seed in "778")
    assert one == same and one["pools"] != other["pools"]
    assert one["pools"]["lpu"]["cycles_exact"] is True
    assert set(one["ttft_s"]) == {"gpu", "lpu"}


def test_what_was_given_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(
        capsys,
        "--model",
        "llama-3-405b",
        "--pool",
        "lpu",
        "--requests",
        "20",
        "--lpu-cycles-per-token",
        "900000",
        "--lpu-interval-cycles",
        "90000",
    )["pools"]["lpu"]
    assert found["costs"].startswith("given") and found["initiation_interval"] == "given"
    assert found["cycles_exact"] is False and found["places_per_pipeline"] == 10
    assert found["tpot_s"]["p50"] == pytest.approx(1e-3)


def test_a_trace_file_and_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,3\n0.1,20,4\n0.2,900,4\n")
    found = report(capsys, "--model", "draft", "--trace", str(path))
    assert found["requests"] == 3 and found["pools"]["lpu"]["refused"] == 1
    assert (
        run(["experiment", "load", "--model", "draft", "--trace", str(path), "--limit", "2"]) == 0
    )
    assert "goodput" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--pool", "tpu"),
        ("--rate", "0"),
        ("--rate", "nan"),
        ("--requests", "0"),
        ("--arrivals", "never"),
        ("--arrivals", "bursts", "--burst", "0"),
        ("--seed", "-1"),
        ("--spread", "9"),
        ("--prompt-tokens", "0"),
        ("--slo-ttft", "0"),
        ("--gpu", "abacus"),
        ("--gpu-tp", "0"),
        ("--gpu-tp", "1" + 400 * "0"),
        ("--gpu-groups", "0"),
        ("--gpu-dtype", "int3"),
        ("--max-batch", "0"),
        ("--chips", "3"),
        ("--pipelines", "0"),
        ("--dtype", "int4"),
        ("--context", "0"),
        ("--context", "100000"),
        ("--chip", "groq-lpu-9"),
        ("--model", "no-such-model"),
        ("--model", "llama-2-70b"),
        ("--model", "llama-2-70b", "--pool", "gpu"),
        ("--lpu-cycles-per-token", "0"),
        ("--lpu-cycles-per-token", "100", "--lpu-interval-cycles", "101"),
        ("--lpu-interval-cycles", "1"),
        ("--pool", "lpu", "--lpu-cycles-per-token", "1000000000", "--requests", "100000"),
        ("--trace", "/no/such/file.csv"),
        ("--limit", "5"),
        ("--trace", "/no/such/file.csv", "--limit", "0"),
    ],
)
def test_bad_settings_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert run(["experiment", "load", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("lpu: ")


@pytest.mark.parametrize("figure", ["hbm_bytes_per_s = 1e-300", "hbm_bytes_per_s = 2e3"])
def test_no_simulation_outgrows_its_integers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, figure: str
) -> None:
    """One pass without end, and passes of 2,000 s each that add up to half a year."""
    path = tmp_path / "slow.toml"
    path.write_text(f"[gpu]\n{figure}\n")
    arguments = ["--pool", "gpu", "--gpu", str(path), "--requests", "3000", "--max-batch", "1"]
    assert run(["experiment", "load", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1


@pytest.mark.long
def test_a_model_without_weights_costs_what_its_plan_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--lpu-model by name: the LPU side is charged the compiled cycles of the plan."""
    arguments = [
        "--model",
        "target",
        "--lpu-model",
        "smollm2-135m",
        "--chips",
        "8",
        "--context",
        "64",
        "--requests",
        "3",
        "--prompt-tokens",
        "8",
        "--output-tokens",
        "8",
        "--pool",
        "both",
        "--json",
    ]
    assert run(["experiment", "load", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    lpu = report["pools"]["lpu"]
    plan = ["plan", "--model", "smollm2-135m", "--chips", "8", "--context", "64", "--json"]
    assert run(plan) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["checked"] and planned["run_cycles"] == planned["cycles_per_token"]
    assert lpu["decode_cycles"] == [planned["cycles_per_token"]]
    assert lpu["model"] == "smollm2-135m" and lpu["cycles_exact"]
