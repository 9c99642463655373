"""Modelled faults: whatever befalls the machine, outputs and digest are those of a calm run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chip.isa import C2C_QUEUE, Op
from chip.spec import ChipSpec
from interconnect.fec import error_chances
from programs.artifact import Artifact
from programs.decoder import Host, compile_decoder, partition_model
from programs.faults import (
    FaultPlan,
    FaultPlanError,
    FaultSetting,
    UnrecoverableError,
    load_fault_plan,
)
from programs.faults.modelled import packets_by_ring
from programs.faults.plan import CableFault, DeadNode, Upset
from programs.models import load_checkpoint, shipped_model
from programs.running import BARRIER, LOOKAHEAD, Generation, Runner, RunResult

JOB = Generation((70, 221, 304), 10)
LAUNCHES = 12


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return compile_decoder(partition_model(load_checkpoint(shipped_model()), 8), ChipSpec(), 64)


def run(artifact: Artifact, plan: FaultPlan | None, job: Generation = JOB) -> RunResult:
    setting = None if plan is None else FaultSetting.of(plan, artifact)
    return Runner.alone(artifact, Host(artifact), faults=setting).generate(job)


@pytest.fixture(scope="module")
def calm(artifact: Artifact) -> RunResult:
    return run(artifact, None)


def same(result: RunResult, calm: RunResult) -> None:
    assert result.tokens == calm.tokens
    assert result.sums == calm.sums
    assert result.retired == calm.retired
    assert result.io_seconds == calm.io_seconds


def test_an_entry_point_for_each_chip_is_not_dropped_beside_faults(artifact: Artifact) -> None:
    setting = FaultSetting.of(FaultPlan(), artifact)
    runner = Runner.alone(artifact, faults=setting)
    with pytest.raises(ValueError, match="with an entry point each are launched without faults"):
        runner.launch("decode-64", 0, LOOKAHEAD, entry_of=lambda chip: "prefill-64")


def test_a_plan_of_nothing_costs_nothing(artifact: Artifact, calm: RunResult) -> None:
    result = run(artifact, FaultPlan())
    same(result, calm)
    assert {name: n for name, n in result.faults.items() if n} == {
        "packets": sum(int(packets_by_ring(artifact, entry).sum()) for entry in calm.entries)
    }


def test_packets_are_those_that_the_rings_carry(artifact: Artifact) -> None:
    runner = Runner.alone(artifact, Host(artifact))
    entry = runner.host.entry(0, False)
    for chip in runner.chips:
        runner.host.prepare(chip, 70, 0)
    runner.launch(entry, 0, LOOKAHEAD)
    assert np.array_equal(runner.rings.counts[:, 0], packets_by_ring(artifact, entry))
    sends = sum(
        int((program.blocks["op"] == Op.SEND).sum()) for program in artifact.programs[entry]
    )
    assert sends and C2C_QUEUE == 128


@pytest.mark.parametrize("exponent", range(-15, -5))
@pytest.mark.cases(4)
def test_bit_errors_at_any_rate(artifact: Artifact, calm: RunResult, exponent: int) -> None:
    plan = FaultPlan(seed=5, link_bit_error_rate=10.0**exponent)
    result = run(artifact, plan, replace(JOB, max_new_tokens=10))
    same(result, calm)
    counts = result.faults
    one, more = error_chances(plan.link_bit_error_rate, 328 * 8)
    for seen, chance in ((counts["fec_corrected"], one), (counts["uncorrectable"], more)):
        expected = counts["packets"] * chance
        assert abs(seen - expected) <= 6 * math.sqrt(expected) + (3 if expected < 10 else 0)
    assert counts["replays"] <= counts["uncorrectable"]
    assert (counts["cost_cycles"] > 0) == (counts["replays"] > 0)


@pytest.mark.parametrize("sync", [LOOKAHEAD, BARRIER])
def test_uncorrectable_packets_replay_their_launch(
    artifact: Artifact, calm: RunResult, sync: str
) -> None:
    result = run(artifact, FaultPlan(seed=1, link_bit_error_rate=5e-6), replace(JOB, sync=sync))
    same(result, calm)
    counts = result.faults
    assert counts["replays"] >= 2 and counts["spare_used"] == 0
    spec = artifact.spec
    inputs = artifact.bindings["inputs"].values()
    words = sum(n for places in inputs for _, _, n in places)
    transfer = math.ceil(
        (spec.pcie_latency_s + 320 * words / spec.pcie_bytes_per_s) * spec.clock_hz
    )
    # A failed launch costs itself, one transfer of its inputs and one start of one epoch.
    lengths = set(artifact.predicted_cycles.values())
    rest = counts["cost_cycles"] - counts["replays"] * (transfer + 252)
    assert min(lengths) * counts["replays"] <= rest <= max(lengths) * counts["replays"]


def test_a_cable_that_keeps_failing_brings_the_spare(artifact: Artifact, calm: RunResult) -> None:
    plan = FaultPlan(cables=(CableFault(3, 1e-2, from_launch=4),), spare_after=2)
    result = run(artifact, plan)
    same(result, calm)
    assert result.faults["spare_used"] == 1
    assert result.faults["replays"] == 2
    with pytest.raises(UnrecoverableError, match="no spare is left of 0"):
        run(artifact, replace(plan, spare_nodes=0))


def test_a_dead_node_costs_every_launch_since_the_first(
    artifact: Artifact, calm: RunResult
) -> None:
    costs = []
    for launch in (0, 5, 9):
        result = run(artifact, FaultPlan(dead_nodes=(DeadNode(0, launch, 1000),)))
        same(result, calm)
        assert (result.faults["spare_used"], result.faults["replays"]) == (1, 1)
        costs.append(result.faults["cost_cycles"])
    per_launch = [artifact.predicted_cycles[entry] for entry in calm.entries]
    assert costs[1] - costs[0] > sum(per_launch[:5])
    assert costs[2] - costs[1] > sum(per_launch[5:9])


def test_upsets_are_corrected_or_loaded_again(artifact: Artifact, calm: RunResult) -> None:
    plan = FaultPlan(upsets=(Upset(1, 2, 1), Upset(2, 2, 1), Upset(7, 6, 2)))
    result = run(artifact, plan)
    same(result, calm)
    counts = result.faults
    assert (counts["sram_corrected"], counts["sram_detected"], counts["replays"]) == (2, 1, 1)
    many = run(artifact, FaultPlan(sram_bit_error_rate=1e-6))
    same(many, calm)
    words = FaultSetting.of(FaultPlan(), artifact).image_words
    codewords = 20 * sum(words) * (LAUNCHES + many.faults["replays"])
    one, more = error_chances(1e-6, 137)
    for name, chance in (("sram_corrected", one), ("sram_detected", more)):
        expected = codewords * chance
        assert abs(many.faults[name] - expected) <= 6 * math.sqrt(expected) + 3


def test_drift_is_caught_and_deskewed_more_often(artifact: Artifact, calm: RunResult) -> None:
    result = run(artifact, FaultPlan(ppm=200.0, budget_cycles=2))
    same(result, calm)
    counts = result.faults
    assert counts["drift_caught"] >= 1
    assert 252 <= counts["deskew_interval_cycles"] < max(artifact.predicted_cycles.values())
    with pytest.raises(UnrecoverableError, match="the budget is 0"):
        run(artifact, FaultPlan(ppm=200.0, budget_cycles=0))


def test_faults_that_never_end_are_one_error(artifact: Artifact) -> None:
    with pytest.raises(UnrecoverableError, match=r"100 times in a row|no spare"):
        run(artifact, FaultPlan(link_bit_error_rate=1e-3))


@pytest.mark.long
def test_everything_at_once_and_again(artifact: Artifact, calm: RunResult) -> None:
    plan = FaultPlan(
        seed=3,
        link_bit_error_rate=3e-6,
        sram_bit_error_rate=1e-7,
        ppm=100.0,
        budget_cycles=2,
        dead_nodes=(DeadNode(0, 5, 4000),),
        upsets=(Upset(2, 3, 2),),
    )
    first, second = run(artifact, plan), run(artifact, plan)
    same(first, calm)
    assert first.faults == second.faults
    assert run(artifact, replace(plan, seed=4)).faults != first.faults


FULL = """
seed = 7
[links]
bit_error_rate = 1e-9
spare_after = 4
[[links.cable]]
cable = 3
bit_error_rate = 1e-3
from_launch = 2
[sram]
bit_error_rate = 1e-12
[[sram.upset]]
chip = 0
launch = 4
bits = 2
[clocks]
ppm = 50
deskew_interval_cycles = 1000
budget_cycles = 3
[spares]
nodes = 2
[[dead_node]]
node = 0
launch = 5
cycle = 4000
"""


def test_a_file_says_everything(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(FULL)
    assert load_fault_plan(path) == FaultPlan(
        7,
        1e-9,
        4,
        (CableFault(3, 1e-3, 2),),
        1e-12,
        (Upset(0, 4, 2),),
        50.0,
        1000,
        3,
        2,
        (DeadNode(0, 5, 4000),),
    )
    path.write_text("")
    assert load_fault_plan(path) == FaultPlan()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x", "not valid TOML"),
        ("sed = 1", "use seed"),
        ("seed = -1", "seed is -1"),
        ("links = 3", r"write \[links\]"),
        ("[links]\nbit_error_rate = nan", "bit_error_rate is nan"),
        ("[links]\nbit_error_rate = 1.5", "bit_error_rate is 1.5"),
        ("[links]\nbit_error_rate = true", "bit_error_rate is True"),
        ("[links]\ncable = 4", r"write \[\[cable\]\]"),
        ("[[links.cable]]\ncable = 1", "bit_error_rate is missing"),
        ("[[sram.upset]]\nchip = 1\nlaunch = 1\nbits = 3", "bits is 3"),
        ("[[dead_node]]\nlaunch = 1", "node is missing"),
        ("seed = " + "9" * 400, "beyond 64 bits|readable"),
        ("a = " + "[" * 3000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_plan_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(text)
    with pytest.raises(FaultPlanError, match=says) as caught:
        load_fault_plan(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_plan_must_fit_its_artifact(artifact: Artifact, tmp_path: Path) -> None:
    for plan, says in (
        (FaultPlan(dead_nodes=(DeadNode(1),)), "the run has nodes 0..0"),
        (FaultPlan(upsets=(Upset(8, 0),)), "upset of chip 8"),
        (FaultPlan(cables=(CableFault(28, 0.1),)), "have cables 0..27"),
    ):
        with pytest.raises(FaultPlanError, match=says):
            FaultSetting.of(plan, artifact)
    with pytest.raises(FaultPlanError, match="not readable"):
        load_fault_plan(tmp_path / "none.toml")
