"""Modelled faults through the drivers: over processes, with kills, and onto a spare node."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from typer.testing import CliRunner

from chip.spec import ChipSpec
from cluster import cli
from cluster.listening import Listener
from cluster.processes import Placement, chip_actors, snapshot_directory
from cluster.processes.snapshots import SnapshotError, forget_before, launches, restore, take
from cluster.runs import (
    CollectiveSettings,
    GenerationResult,
    run_functional,
    run_generation,
)
from interconnect.wiring import FabricError, part_of, topology_of
from programs.artifact import Artifact
from programs.decoder import Host, compile_decoder, partition_model
from programs.faults import FaultPlan, load_fault_plan
from programs.faults.plan import CableFault, DeadNode, Upset
from programs.models import ModelConfig, random_checkpoint
from programs.running import BARRIER, Alone, Generation, Runner, RunResult
from tests import ROOT

JOB = Generation((70, 221, 304), 24)
PLAN = FaultPlan(
    seed=2,
    link_bit_error_rate=4e-6,
    sram_bit_error_rate=1e-8,
    ppm=100.0,
    budget_cycles=2,
    upsets=(Upset(5, 3, 2),),
    dead_nodes=(DeadNode(0, 6, 3000),),
)


def run(artifact: Artifact, placement: Placement, job: Generation = JOB) -> GenerationResult:
    return run_generation(artifact, job, placement, Listener(), perf_counter())


@pytest.mark.ray
@pytest.mark.long
def test_processes_meet_the_same_faults(artifact: Artifact, local_ray: None) -> None:
    calm = run(artifact, Placement(8, in_process=True))
    alone = run(artifact, Placement(8, in_process=True, faults=PLAN))
    assert alone.digest == calm.digest and alone.tokens == calm.tokens
    assert alone.faults["replays"] > 2 and alone.faults["spare_used"] == 1
    extra = alone.faults["cost_cycles"] / artifact.spec.clock_hz
    assert alone.virtual_seconds == pytest.approx(calm.virtual_seconds + extra)
    barrier = Generation(JOB.prompt, JOB.max_new_tokens, sync=BARRIER)
    for job in (JOB, barrier):
        spread = run(artifact, Placement(4, faults=PLAN), job)
        assert (spread.digest, spread.faults) == (calm.digest, alone.faults)
        assert spread.virtual_seconds == alone.virtual_seconds


@pytest.mark.ray
@pytest.mark.long
def test_a_kill_in_a_faulty_run_counts_nothing_twice(
    artifact: Artifact, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(JOB, max_new_tokens=60)  # long enough to be seen on a busy host
    alone = run(artifact, Placement(8, in_process=True, faults=PLAN), job)
    struck: list[int] = []
    with chip_actors(artifact, Placement(4, faults=PLAN, snapshot_launches=4), print) as crew:

        def poll() -> None:
            import ray

            if not struck and len(ray.get(crew.progress()).tokens) > 8:
                struck.append(crew.processes[1])
                os.kill(struck[0], signal.SIGKILL)

        crew.run("generate", Generation(JOB.prompt, 2))  # links
        results = crew.run("generate", job, poll=poll)
    assert struck and len(crew.recoveries) == 1 and crew.recoveries[0].launch >= 4
    assert all(result.run.faults == alone.faults for result in results)
    assert results[0].run.tokens == alone.tokens


def collective(plan: FaultPlan | None, operation: str = "all-reduce") -> dict[str, Any]:
    return run_functional(
        topology_of(72),
        ChipSpec(),
        CollectiveSettings(operation, nbytes=1280 * 8, run=True, in_process=True),
        seed=1,
        faults=plan,
    )


@pytest.mark.long
def test_72_chips_lose_node_4_and_end_with_the_same_outputs() -> None:
    calm = collective(FaultPlan(dead_nodes=(DeadNode(4, 1, 0),)))  # after the only launch
    lost = collective(FaultPlan(dead_nodes=(DeadNode(4, 0, 3000),)))
    for found in (calm, lost):
        assert found["equal"] and found["chips"] == 64
    assert calm["nodes"] == list(range(8))
    assert calm["faults"]["cost_cycles"] == calm["faults"]["spare_used"] == 0
    assert lost["nodes"] == [0, 1, 2, 3, 8, 5, 6, 7]
    assert (lost["faults"]["spare_used"], lost["faults"]["replays"]) == (1, 1)
    # The lost cycles, the chips' data over PCIe, a start.
    assert lost["faults"]["cost_cycles"] > 3000
    assert lost["digest"] != calm["digest"]  # other cables, other cycles


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.long
def test_a_cable_of_72_chips_that_keeps_failing_costs_a_node(between: bool) -> None:
    cables = part_of(topology_of(72), list(range(8))).cables.tolist()
    ends = (2, 7) if between else (2, 2)
    broken = [n for n, (a, _, b, _) in enumerate(cables) if (a // 8, b // 8) == ends]
    found = collective(FaultPlan(cables=tuple(CableFault(n, 0.1) for n in broken)))
    assert found["equal"] and found["nodes"] == [0, 1, 8, 3, 4, 5, 6, 7]
    assert found["faults"]["spare_used"] == 1 and found["faults"]["replays"] == 3
    assert found["faults"]["uncorrectable"] >= 3


@pytest.mark.long
def test_a_node_alone_is_replaced_in_a_collective() -> None:
    found = run_functional(
        topology_of(8),
        ChipSpec(),
        CollectiveSettings(nbytes=1280 * 8, run=True, in_process=True),
        seed=1,
        faults=FaultPlan(dead_nodes=(DeadNode(0, 0, 300),)),
    )
    assert found["equal"] and found["nodes"] == [0] and found["faults"]["spare_used"] == 1


def test_a_second_death_needs_a_second_spare() -> None:
    with pytest.raises(FabricError, match="no spare is left of 1"):
        collective(FaultPlan(dead_nodes=(DeadNode(4), DeadNode(5))))


def test_a_recovery_is_charged_alike_whoever_died() -> None:
    """A process that lived on and a new one go on from a snapshot in the middle of a group of
    values that are kept apart: both charge what a run without a fault does.
    """
    config = ModelConfig(64, 1, 4, 2, 16, 96, 100, max_position=4096)
    model = partition_model(random_checkpoint(config, 0), 1)
    planes = compile_decoder(model, ChipSpec(), 64)
    job = Generation((3, 41), 35)
    with snapshot_directory() as directory:

        def keep(result: RunResult) -> None:
            if len(result.entries) == 21:
                take(directory, 0, lived, result)

        lived = Runner.alone(planes, Host(planes, model))
        whole = lived.generate(job, between=keep)
        lived.reload(lived.rings, Alone())
        new = Runner.alone(planes, Host(planes, model))
        for runner in (lived, new):
            again = runner.generate(job, restore(directory, 0, 21, runner))
            assert again.tokens == whole.tokens
            assert again.io_seconds == whole.io_seconds
            assert again.decode_io_seconds == whole.decode_io_seconds


@pytest.mark.long
def test_a_snapshot_is_whole_or_refused(artifact: Artifact) -> None:
    runner = Runner.alone(artifact, Host(artifact))
    result = runner.generate(Generation(JOB.prompt, 3))
    memory = [chip.sram.copy() for chip in runner.chips]
    with snapshot_directory() as directory:
        take(directory, 0, runner, result)
        number = len(result.entries)
        assert launches(directory, 0) == {number} and launches(directory, 1) == set()
        runner.reload(runner.rings, Alone())
        again = restore(directory, 0, number, runner)
        assert again.entries == result.entries and again.tokens == result.tokens
        for chip, words in zip(runner.chips, memory, strict=True):
            assert (chip.sram == words).all()
            assert tuple(int(s) for s in chip.digest_sums) == result.sums[chip.chip_id]
        # A forgotten snapshot's file is written over, by one that is shorter as well.
        longer = replace(result, entries=[*result.entries, "x" * 100_000])
        take(directory, 0, runner, longer)
        forget_before(directory, 0, number + 2)
        assert launches(directory, 0) == set()
        (spare,) = directory.iterdir()
        before = spare.stat()
        take(directory, 0, runner, result)
        assert restore(directory, 0, number, runner) == again
        (path,) = directory.iterdir()
        assert path.stat().st_ino == before.st_ino and path.stat().st_size < before.st_size
        whole = path.read_bytes()
        for bad in (whole[:-1], whole[:200], b"", whole[:5000] + b"x" + whole[5001:]):
            path.write_bytes(bad)
            with pytest.raises(SnapshotError, match="not a whole snapshot"):
                restore(directory, 0, number, runner)
        with pytest.raises(SnapshotError, match="cannot be read"):
            restore(directory, 1, number, runner)


def test_the_command_counts_and_refuses(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text("[links]\nbit_error_rate = 1e-6\n[[dead_node]]\nnode = 0\nlaunch = 2\n")
    line = ["generate", "--in-process", "--max-new-tokens", "3", "--json", "--faults", str(path)]
    done = CliRunner().invoke(cli.app, line)
    found = json.loads(done.stdout)
    assert found["faults"]["spare_used"] == 1 and found["faults"]["cost_cycles"] > 0
    assert found["recoveries"] == 0 and found["refused"] == {"attachments": 0, "vectors": 0}
    path.write_text("[links]\nbit_error_rate = 2\n")
    assert cli.run(line) == 2
    assert cli.run(["fabric", "collective", "--faults", str(path)]) == 2


def test_the_plan_of_the_documentation_is_survived(artifact: Artifact, tmp_path: Path) -> None:
    text = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
    path = tmp_path / "faults.toml"
    path.write_text(text.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    faulty = run(artifact, Placement(8, in_process=True, faults=load_fault_plan(path)))
    calm = run(artifact, Placement(8, in_process=True))
    assert (faulty.digest, faulty.tokens) == (calm.digest, calm.tokens)
    # The cable that keeps failing and the node that dies; the upset of two bits; the drift.
    found = faulty.faults
    assert (found["spare_used"], found["sram_detected"]) == (2, 1) and found["uncorrectable"] > 3
