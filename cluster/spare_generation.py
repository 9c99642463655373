"""A generation on several nodes that loses one in the middle: linked onto a spare, run again.

The modelled rack has the nodes in use and spare ones behind them.  When a node dies, a spare takes
its place; the cables of the nodes now in use are others, so the model is compiled for them, and
every launch since the first runs again, since the dead node held its layers' caches.  What the
chips computed before is really computed, on the nodes of before, and compared.

Assumed, as for a single node: a dead node is noticed at its last cycle, a spare's memory image goes
over each chip's PCIe, and all begin with one synchronised start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

from chip.isa import LANES
from cluster.actor_session import Placement
from cluster.errors import RunError
from cluster.generation import GenerationResult, Listener, run_generation
from cluster.metrics.run_watch import RunWatch
from interconnect.clock_links import HAC_PERIOD_CYCLES
from interconnect.clock_tree import spanning_tree, start_cost_epochs
from interconnect.spares import active_nodes, part_of
from interconnect.topology import NODE, Topology, topology
from programs.artifact import Artifact
from programs.fault_plan import DeadNode, FaultPlan
from programs.host import entry_at
from programs.modelled_faults import without_dead_nodes
from programs.partition import PartitionedModel
from programs.runner import Generation


@dataclass(frozen=True)
class Survived:
    """artifact: the last one that ran; nodes: which of the rack's are in use as node 0, 1, ..."""

    artifact: Artifact
    nodes: list[int]
    result: GenerationResult


def needs_spares(plan: FaultPlan | None, chips: int) -> bool:
    """Whether nodes of a run of ``chips`` chips die that only a rack with spares survives."""
    return plan is not None and bool(plan.dead_nodes) and plan.spare_nodes > 0 and chips > NODE


def generate_on_spares(
    compile_on: Callable[[Topology], Artifact], chips: int, job: Generation, placement: Placement,
    listener: Listener, started: float, model: PartitionedModel | None = None,
    watch: RunWatch | None = None,
) -> Survived:  # fmt: skip
    """Generate on ``chips`` chips of a rack with spare nodes, whoever dies as the plan says.

    compile_on: the same model for a wiring.  The result's ``faults`` and ``virtual_seconds`` hold
    what the deaths cost.  Raises FabricError for a node that is not in use or when no spare is
    left, RunError when the spare computes other tokens.
    """
    plan = placement.faults
    if plan is None:
        raise ValueError("without a fault plan nobody dies")
    rack = topology(chips + NODE * plan.spare_nodes)
    placement = replace(placement, faults=without_dead_nodes(plan))
    gone: list[int] = []
    cost, seen = 0, []
    nodes = active_nodes(rack, plan.spare_nodes, gone)
    artifact = compile_on(part_of(rack, nodes))
    for dead in sorted(plan.dead_nodes, key=lambda dead: (dead.launch, dead.cycle)):
        listener.phase(f"running until node {dead.node} dies")
        before = _before(artifact, dead, job, placement, model)
        if before is None:
            continue
        seen = before
        gone.append(dead.node)
        nodes = active_nodes(rack, plan.spare_nodes, gone)
        cost += _lost_cycles(artifact, dead, job)
        listener.phase(f"compiling for nodes {', '.join(map(str, nodes))}")
        artifact = compile_on(part_of(rack, nodes))
        cost += _load_cycles(artifact)
    if watch is not None:
        watch.replaced_nodes(len(gone), cost)
    result = run_generation(artifact, job, placement, listener, started, model, watch)
    if result.tokens[: len(seen)] != seen:
        raise RunError("other tokens came on the spare node than before: not deterministic")
    counts = result.faults
    counts = counts | {
        "spare_used": counts["spare_used"] + len(gone),
        "replays": counts["replays"] + len(gone),
        "cost_cycles": counts["cost_cycles"] + cost,
    }
    seconds = result.virtual_seconds + cost / artifact.spec.clock_hz
    return Survived(artifact, nodes, replace(result, faults=counts, virtual_seconds=seconds))


def _before(
    artifact: Artifact, dead: DeadNode, job: Generation, placement: Placement,
    model: PartitionedModel | None,
) -> list[int] | None:  # fmt: skip
    """The tokens of the launches before the death; None when the text is over by then."""
    tokens = dead.launch - (len(job.prompt) - 1)
    if tokens >= job.max_new_tokens:
        return None
    if tokens <= 0:  # still in the prompt: nothing was said yet
        return []
    part = replace(job, max_new_tokens=tokens)
    said = run_generation(artifact, part, placement, Listener(), perf_counter(), model).tokens
    return None if said[-1] in job.stop else said


def _lost_cycles(artifact: Artifact, dead: DeadNode, job: Generation) -> int:
    """Cycles of all launches until the death; they run again."""
    last = len(job.prompt) - 1
    lengths = [
        artifact.predicted_cycles[entry_at(artifact, launch, prefill=launch < last)]
        for launch in range(dead.launch + 1)
    ]
    return sum(lengths[:-1]) + min(dead.cycle, lengths[-1])


def _load_cycles(artifact: Artifact) -> int:
    """A memory image over PCIe, all chips of the spare at once, and a synchronised start."""
    spec = artifact.spec
    words = max(sum(len(rows) for _, _, rows in image) for image in artifact.memory)
    load_s = spec.pcie_latency_s + LANES * words / spec.pcie_bytes_per_s
    height = spanning_tree(artifact.cables, artifact.chips).height
    epochs = start_cost_epochs(spec.link_wire_cycles, HAC_PERIOD_CYCLES, height)
    return math.ceil(load_s * spec.clock_hz) + epochs * HAC_PERIOD_CYCLES
