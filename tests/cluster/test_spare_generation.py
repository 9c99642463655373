"""A model over eight nodes of a rack of nine: node 4 dies in the middle of the text."""

from __future__ import annotations

from time import perf_counter

import pytest

from chip.spec import ChipSpec
from cluster.actor_session import Placement
from cluster.generation import Listener, run_generation
from cluster.metrics.board import Board
from cluster.metrics.run_watch import RunWatch
from cluster.spare_generation import Survived, generate_on_spares, needs_spares
from interconnect.topology import FabricError, Topology, topology
from programs.artifact import Artifact
from programs.checkpoint import ModelConfig, random_checkpoint
from programs.compiler import compile_decoder
from programs.fault_plan import DeadNode, FaultPlan
from programs.partition import partition
from programs.runner import Generation

CONFIG = ModelConfig(64, 8, 8, 8, 8, 96, 128, tied=True)
MODEL = partition(random_checkpoint(CONFIG, 5), 8)
JOB = Generation((3, 1, 4), 5)
CALM = FaultPlan(dead_nodes=(DeadNode(4, 99),))


def on(wiring: Topology) -> Artifact:
    return compile_decoder(MODEL, ChipSpec(), 64, pp=8, wiring=wiring)


def generate(plan: FaultPlan, watch: RunWatch | None = None) -> Survived:
    placement = Placement(64, in_process=True, faults=plan)
    return generate_on_spares(
        on, 64, JOB, placement, Listener(), perf_counter(), MODEL, watch
    )  # fmt: skip


@pytest.fixture(scope="module")
def calm() -> Survived:
    """Eight of the nine nodes, and nobody dies before the text is over."""
    return generate(CALM)


def test_72_chips_lose_node_4_in_the_middle_of_a_text(calm: Survived) -> None:
    board = Board()
    lost = generate(FaultPlan(dead_nodes=(DeadNode(4, 4, 3000),)), RunWatch(board, "generate"))
    assert calm.nodes == list(range(8)) and lost.nodes == [0, 1, 2, 3, 8, 5, 6, 7]
    assert lost.result.tokens == calm.result.tokens and len(lost.result.tokens) == 5
    assert lost.result.cycles_per_token == lost.result.predicted_cycles_per_token
    found = lost.result.faults
    assert (found["spare_used"], found["replays"]) == (1, 1)
    # Four launches and 3,000 cycles of the fifth were lost; then memory is loaded, and a start.
    assert found["cost_cycles"] > sum(calm.result.launch_cycles[:4]) + 3000
    extra = found["cost_cycles"] / lost.artifact.spec.clock_hz
    both = sum(lost.result.launch_cycles) / lost.artifact.spec.clock_hz
    assert lost.result.virtual_seconds > both + extra
    counted = {family.name: family for family in board.registry.collect()}
    spare = [s.value for s in counted["lpu_recoveries"].samples if s.labels["kind"] == "spare_node"]
    assert spare == [1]
    cost = counted["lpu_fault_cost_cycles"].samples[0].value
    assert cost == found["cost_cycles"]


def test_the_text_is_that_of_the_usual_machine(calm: Survived) -> None:
    usual = run_generation(
        on(topology(64)), JOB, Placement(64, in_process=True), Listener(), perf_counter(), MODEL
    )
    assert calm.result.tokens == usual.tokens
    assert calm.result.faults["cost_cycles"] == 0


def test_a_second_death_needs_a_second_spare() -> None:
    plan = FaultPlan(dead_nodes=(DeadNode(4), DeadNode(5, 1)))
    assert needs_spares(plan, 64) and not needs_spares(plan, 8) and not needs_spares(None, 64)
    with pytest.raises(FabricError, match="no spare is left of 1"):
        generate(plan)
