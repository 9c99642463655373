"""A machine with spare nodes: programs for some, linked again when one of those is lost.

The nodes of a wiring are in use but for the last few, which are spare.  When a node dies or one of
its cables keeps failing, what ran until then is lost; a spare takes the node's place, the programs
are compiled for the cables of the nodes now in use, and everything begins again.  Who compiles, and
who runs what a lost machine had run, is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from interconnect.wiring import NODE_SIZES, Topology, active_nodes, part_of
from programs.artifact import Artifact
from programs.faults.modelled import Counts, FaultSetting, LostNode, ModelledFaults
from programs.faults.plan import CableFault, FaultPlan, FaultPlanError

T = TypeVar("T")
Cables = Sequence[tuple[int, int, int, int]]


@dataclass(frozen=True)
class Linked(Generic[T]):
    """Programs for the nodes in use, and what it took to come there.

    nodes: which node of the machine is in use as node 0, 1, ...; plan: what befalls these programs
    yet; lost: a node each.
    """

    programs: T
    nodes: list[int]
    plan: FaultPlan
    lost: list[LostNode]

    def counted(self, counts: Counts) -> Counts:
        """``counts`` of the run that succeeded, with those of the ones that were lost."""
        total = dict(counts)
        for lost in self.lost:
            for name, count in lost.counts.items():
                if name == "deskew_interval_cycles":  # no count: what the clocks have come to
                    total[name] = total[name] or count
                else:
                    total[name] += count
        return total


def loses_nodes(plan: FaultPlan | None, chips: int) -> bool:
    """Whether a run of ``chips`` chips keeps spare nodes, for nodes and cables the plan names."""
    named = plan is not None and plan.spare_nodes > 0 and (plan.dead_nodes or plan.cables)
    return bool(named) and chips > max(NODE_SIZES)


def linked_onto_spares(
    wiring: Topology,
    plan: FaultPlan,
    programs_on: Callable[[Topology], T],
    artifact_of: Callable[[T], Artifact],
    entries_of: Callable[[Artifact], Sequence[str]],
    goes_on: Callable[[T, FaultPlan, LostNode], bool] = lambda *_: True,
) -> Linked[T]:
    """The programs with which a run on ``wiring`` ends, whoever is lost before.

    programs_on: compiles and proves them for a wiring.  entries_of: the launches of the run.
    goes_on: runs the launches before the loss under the plan; False when the run was over by then.
    Raises FabricError for a node that is not in use or when no spare is left, FaultPlanError for a
    plan that does not fit.
    """
    _require_sensible(plan, wiring)
    spares = plan.spare_nodes
    gone: list[int] = []
    lost_nodes: list[LostNode] = []
    nodes = active_nodes(wiring, spares, gone)
    programs = programs_on(part_of(wiring, nodes))
    while True:
        artifact = artifact_of(programs)
        setting = FaultSetting.of(plan, artifact, relinks=True)
        lost = ModelledFaults(setting, artifact).lost_node(entries_of(artifact), nodes)
        if lost is None or not goes_on(programs, replace(plan, dead_nodes=()), lost):
            return Linked(programs, nodes, replace(plan, dead_nodes=()), lost_nodes)
        lost_nodes.append(lost)
        gone.append(lost.node)
        place = nodes.index(lost.node) if lost.node in nodes else -1
        nodes = active_nodes(wiring, spares, gone)
        programs = programs_on(part_of(wiring, nodes))
        plan = _what_is_left(plan, lost, place, artifact.cables, artifact_of(programs).cables)


def _require_sensible(plan: FaultPlan, wiring: Topology) -> None:
    """Raise FaultPlanError for more spare nodes, or other dead ones, than the machine has."""
    if plan.spare_nodes >= wiring.nodes:
        raise FaultPlanError(
            f"[spares] nodes = {plan.spare_nodes}: the machine has {wiring.nodes} nodes; use "
            f"{wiring.nodes - 1} or fewer"
        )
    for dead in plan.dead_nodes:
        if dead.node >= wiring.nodes:
            raise FaultPlanError(
                f"dead_node {dead.node}: the machine has nodes 0..{wiring.nodes - 1}, spares "
                "included"
            )


def _what_is_left(
    plan: FaultPlan, lost: LostNode, place: int, before: Cables, after: Cables
) -> FaultPlan:
    """The plan for the programs on a spare: what was drawn or done is not drawn or done again.

    place: of the lost node, whose cables are gone; other bad cables stay bad, from the first launch
    if they were by then, under their new numbers.  A node that is gone does not die again, and
    clocks stay as they were and deskew as often as it took.
    """
    numbers = {tuple(cable): number for number, cable in enumerate(after)}
    size = max(NODE_SIZES)

    def stays(fault: CableFault) -> bool:
        cable = tuple(before[fault.cable])
        return cable in numbers and place not in (cable[0] // size, cable[2] // size)

    return replace(
        plan,
        redraws=plan.redraws + 1,
        deskew_interval_cycles=(
            lost.counts["deskew_interval_cycles"] or plan.deskew_interval_cycles
        ),
        dead_nodes=tuple(
            dead for dead in plan.dead_nodes if dead is not lost.death and dead.node != lost.node
        ),
        upsets=tuple(upset for upset in plan.upsets if upset.launch > lost.launch),
        cables=tuple(
            replace(
                fault,
                cable=numbers[tuple(before[fault.cable])],
                from_launch=0 if fault.from_launch <= lost.launch else fault.from_launch,
            )
            for fault in plan.cables
            if stays(fault)
        ),
    )
