"""A generation on several nodes that loses one in the middle: linked onto a spare, run again.

The modelled rack has the nodes in use and spare ones behind them.  When a node is lost, a spare
takes its place; the cables of the nodes now in use are others, so the model is compiled for them,
and every launch since the first runs again, since the lost node held its layers' caches.  What the
chips computed before is really computed, on the nodes of before, and compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

from cluster.errors import InputError, RunError
from cluster.listening import Listener
from cluster.metrics import RunWatch
from cluster.processes import Placement
from cluster.runs.generation import GenerationResult, planned_launches, run_generation
from interconnect.wiring import MAX_NODES, NODE, Topology, topology_of
from programs.artifact import Artifact
from programs.decoder import PartitionedModel
from programs.faults import FaultPlan, LostNode, linked_onto_spares
from programs.running import Generation


@dataclass(frozen=True)
class Survived:
    """artifact: the last one that ran; nodes: which of the rack's are in use as node 0, 1, ..."""

    artifact: Artifact
    nodes: list[int]
    result: GenerationResult


def generate_on_spares(
    compile_on: Callable[[Topology], Artifact],
    chips: int,
    job: Generation,
    placement: Placement,
    listener: Listener,
    started: float,
    model: PartitionedModel | None = None,
    watch: RunWatch | None = None,
) -> Survived:
    """Generate on ``chips`` chips of a rack with spare nodes, whoever is lost as the plan says.

    compile_on: the same model for a wiring.  The result's ``faults`` and ``virtual_seconds`` hold
    what the losses cost.  Raises FabricError for a node that is not in use or when no spare is
    left, InputError for more spares than a machine has room for, RunError when the spare computes
    other tokens.
    """
    plan = placement.faults
    if plan is None:
        raise ValueError("without a fault plan nobody dies")
    seen: list[int] = []

    def compiled_on(wiring: Topology) -> Artifact:
        listener.phase(f"compiling for {wiring.nodes} nodes")
        return compile_on(wiring)

    def goes_on(artifact: Artifact, plan: FaultPlan, lost: LostNode) -> bool:
        nonlocal seen
        listener.phase(f"running until node {lost.node} is lost")
        there = replace(placement, faults=plan)
        before = _before(artifact, lost.launch, job, there, model)
        seen = seen if before is None else before
        return before is not None

    most = MAX_NODES - chips // NODE
    if plan.spare_nodes > most:
        raise InputError(
            f"[spares] nodes = {plan.spare_nodes}: a machine has at most {MAX_NODES} nodes, of "
            f"which {chips // NODE} are in use; use {most} or fewer"
        )
    linked = linked_onto_spares(
        topology_of(chips + NODE * plan.spare_nodes),
        plan,
        compiled_on,
        lambda artifact: artifact,
        lambda artifact: [launch.entry for launch in planned_launches(artifact, job)],
        goes_on,
    )
    artifact = linked.programs
    cost = sum(lost.counts["cost_cycles"] for lost in linked.lost)
    if watch is not None:
        watch.replaced_nodes(linked.lost)
    placement = replace(placement, faults=linked.plan)
    result = run_generation(artifact, job, placement, listener, started, model, watch)
    if result.tokens[: len(seen)] != seen:
        raise RunError("other tokens came on the spare node than before: not deterministic")
    seconds = result.virtual_seconds + cost / artifact.spec.clock_hz
    counts = linked.counted(result.faults)
    return Survived(artifact, linked.nodes, replace(result, faults=counts, virtual_seconds=seconds))


def _before(
    artifact: Artifact,
    launch: int,
    job: Generation,
    placement: Placement,
    model: PartitionedModel | None,
) -> list[int] | None:
    """The tokens of the launches before ``launch``; None when the text is over by then."""
    planned = planned_launches(artifact, job)
    tokens = sum(launched.token is not None for launched in planned[:launch])
    if tokens >= job.max_new_tokens:
        return None
    if tokens == 0:  # still in the prompt: nothing was said yet
        return []
    part = replace(job, max_new_tokens=tokens)
    said = run_generation(artifact, part, placement, Listener(), perf_counter(), model).tokens
    return None if said[-1] in job.stop else said
