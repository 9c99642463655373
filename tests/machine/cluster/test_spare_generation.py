"""A model over eight nodes of a rack of nine: node 4 dies in the middle of the text."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import pytest

from chip.spec import ChipSpec
from cluster.errors import InputError
from cluster.listening import Listener
from cluster.metrics import Board, RunWatch
from cluster.processes import Placement
from cluster.runs import generate_on_spares, run_generation
from cluster.runs.spare_generation import Survived
from interconnect.wiring import FabricError, Topology, topology_of
from programs.artifact import Artifact
from programs.decoder import compile_decoder, partition_model
from programs.faults import FaultPlan, FaultPlanError, loses_nodes
from programs.faults.plan import CableFault, DeadNode
from programs.models import ModelConfig, random_checkpoint
from programs.running import Generation

CONFIG = ModelConfig(64, 8, 8, 8, 8, 96, 128, tied=True)
MODEL = partition_model(random_checkpoint(CONFIG, 5), 8)
JOB = Generation((3, 1, 4), 5)
CALM = FaultPlan(dead_nodes=(DeadNode(4, 99),))


def on(wiring: Topology) -> Artifact:
    return compile_decoder(MODEL, ChipSpec(), 64, pp=8, wiring=wiring)


def generate(plan: FaultPlan, watch: RunWatch | None = None) -> Survived:
    placement = Placement(64, in_process=True, faults=plan)
    return generate_on_spares(on, 64, JOB, placement, Listener(), perf_counter(), MODEL, watch)


@pytest.fixture(scope="module")
def calm() -> Survived:
    """Eight of the nine nodes, and nobody dies before the text is over."""
    return generate(CALM)


@pytest.mark.long
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


@pytest.mark.long
def test_a_cable_that_keeps_failing_costs_its_node(calm: Survived) -> None:
    """It fails from launch 3 on; another that corrects stays, under its number among the new."""
    cables = calm.artifact.cables
    broken = next(n for n, (a, _, b, _) in enumerate(cables) if a // 8 == 4 and b // 8 == 4)
    other = next(n for n, (a, _, b, _) in enumerate(cables) if a // 8 == 6 and b // 8 == 6)
    board = Board()
    plan = FaultPlan(cables=(CableFault(broken, 0.1, 3), CableFault(other, 3e-6, 1)), spare_after=2)
    lost = generate(plan, RunWatch(board, "generate"))
    assert lost.nodes == [0, 1, 2, 3, 8, 5, 6, 7]
    assert lost.result.tokens == calm.result.tokens
    assert lost.result.digest == generate(replace(CALM, dead_nodes=(DeadNode(4),))).result.digest
    found = lost.result.faults
    # Both attempts at launch 3, after three launches that have to run again.
    assert found["spare_used"] == 1 and found["replays"] >= 2
    assert found["cost_cycles"] > sum(calm.result.launch_cycles[:5])
    assert found["fec_corrected"] > 0  # the other one, before and after
    counted = {family.name: family for family in board.registry.collect()}
    assert (
        sum(s.value for s in counted["lpu_replays"].samples if s.name.endswith("_total"))
        == (found["replays"])
    )


@pytest.mark.long
def test_the_text_is_that_of_the_usual_machine(calm: Survived) -> None:
    usual = run_generation(
        on(topology_of(64)), JOB, Placement(64, in_process=True), Listener(), perf_counter(), MODEL
    )
    assert calm.result.tokens == usual.tokens
    assert calm.result.faults["cost_cycles"] == 0


def test_a_second_death_needs_a_second_spare() -> None:
    plan = FaultPlan(dead_nodes=(DeadNode(4), DeadNode(5, 1)))
    assert loses_nodes(plan, 64) and not loses_nodes(plan, 8) and not loses_nodes(None, 64)
    with pytest.raises(FabricError, match="no spare is left of 1"):
        generate(plan)


@pytest.mark.long
def test_a_node_that_is_gone_does_not_die_again(calm: Survived) -> None:
    cables = calm.artifact.cables
    broken = next(n for n, (a, _, b, _) in enumerate(cables) if a // 8 == 4 and b // 8 == 4)
    plan = FaultPlan(cables=(CableFault(broken, 0.1, 2),), dead_nodes=(DeadNode(4, 5),), ppm=50)
    lost = generate(plan)
    assert lost.nodes[4] == 8 and lost.result.faults["spare_used"] == 1
    assert lost.result.tokens == calm.result.tokens


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (FaultPlan(dead_nodes=(DeadNode(9, 99),)), "nodes 0..8, spares included"),
        (FaultPlan(dead_nodes=(DeadNode(0),), spare_nodes=26), "use 25 or fewer"),
        (FaultPlan(cables=(CableFault(9999, 0.1),)), "have cables 0.."),
    ],
)
def test_plans_of_other_machines_are_refused(plan: FaultPlan, reason: str) -> None:
    with pytest.raises((FaultPlanError, InputError), match=reason):
        generate(plan)
