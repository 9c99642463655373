"""Faults on the board: those of the modelled machine, and processes that were really lost."""

from __future__ import annotations

import math
import os
import signal

import pytest

from cluster.listening import Listener
from cluster.metrics import Board, RunWatch
from cluster.processes import Placement, chip_actors
from cluster.runs import run_generation
from programs.artifact import Artifact
from programs.decoder import entry_at
from programs.faults import FaultPlan
from programs.faults.plan import CableFault, DeadNode, Upset
from programs.running import Generation
from tests.cluster.test_metrics import samples, total

SERVED = ("generate", "lpu")


def test_modelled_faults_on_the_board(artifact: Artifact) -> None:
    """Counted beside the run, against the run's own counts."""
    board = Board()
    plan = FaultPlan(
        seed=3,
        link_bit_error_rate=8e-6,
        upsets=(Upset(0, 1), Upset(5, 2, 2)),
        dead_nodes=(DeadNode(0, 3, 4000),),
    )
    placement = Placement(8, in_process=True, faults=plan)
    watch = RunWatch(board, "generate", SERVED)
    result = run_generation(
        artifact, Generation((70, 221, 304), 4), placement, Listener(), 0.0, watch=watch
    )
    found = result.faults
    assert found["fec_corrected"] > 0 and found["uncorrectable"] > 0 and found["spare_used"] == 1
    assert total(board, "lpu_fec_corrected_vectors_total") == found["fec_corrected"]
    assert total(board, "lpu_fec_uncorrectable_vectors_total") == found["uncorrectable"]
    assert total(board, "lpu_sram_upset_words_total", verdict="corrected") == 1
    assert total(board, "lpu_sram_upset_words_total", verdict="detected") == 1
    assert total(board, "lpu_replays_total") == found["replays"] > 1
    assert total(board, "lpu_recoveries_total", kind="spare_node") == 1
    assert total(board, "lpu_fault_cost_cycles_total") == found["cost_cycles"] > 0
    assert math.isclose(total(board, "lpu_virtual_seconds_total"), result.virtual_seconds)


def test_errors_are_those_of_the_bad_cable(artifact: Artifact) -> None:
    """One cable is worse than all others, so only its two ends' series rise."""
    board = Board()
    plan = FaultPlan(cables=(CableFault(9, 1e-6),))
    placement = Placement(8, in_process=True, faults=plan)
    run_generation(
        artifact,
        Generation((70,), 40),
        placement,
        Listener(),
        0.0,
        watch=RunWatch(board, "generate", SERVED),
    )
    a, link_a, b, link_b = artifact.cables[9]
    ends = {(str(a), str(link_a)), (str(b), str(link_b))}
    errors = {
        (dict(of)["chip"], dict(of)["link"]): value
        for (name, of), value in samples(board).items()
        if name == "lpu_fec_corrected_vectors_total"
    }
    assert len(errors) == 56 and {end for end, value in errors.items() if value} == ends


@pytest.mark.ray
@pytest.mark.long
def test_a_run_that_recovers_is_watched_to_its_end(artifact: Artifact, local_ray: None) -> None:
    """The watch follows the chips into the memory of the new epoch."""
    board = Board()
    job = Generation((70, 221, 304), 40)
    placement = Placement(4, snapshot_launches=8)
    struck: list[int] = []
    with chip_actors(artifact, placement, lambda _: None) as supervisor:

        def strike() -> None:
            mapping = supervisor.mapping
            if not struck and mapping is not None and mapping.progress()[1].min() > 2:
                struck.append(supervisor.processes[1])
                os.kill(struck[0], signal.SIGKILL)

        def entry_of(launch: int) -> str:
            return entry_at(artifact, launch, prefill=launch < 2)

        with RunWatch(board, "generate", SERVED).watching(artifact, supervisor, entry_of):
            (first, _) = supervisor.run("generate", job, poll=strike)
        assert struck and supervisor.processes[1] != struck[0]
    lengths = [max(cycles) for cycles in zip(*first.run.retired.values(), strict=True)]
    assert total(board, "lpu_recoveries_total", kind="chip_process") == 1
    assert total(board, "lpu_launches_total") == len(lengths) == 42
    assert total(board, "lpu_virtual_cycles_total") == sum(lengths)
    seconds = sum(lengths) / artifact.spec.clock_hz + first.run.io_seconds
    assert math.isclose(total(board, "lpu_virtual_seconds_total"), seconds)
    assert total(board, "lpu_refused_accesses_total") == 0
