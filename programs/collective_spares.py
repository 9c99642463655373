"""A collective on a machine with spare nodes: run on some, linked again when one dies.

The nodes of a wiring are in use but for the last few, which are spare.  When a node dies in the
middle of a launch, that launch is lost; a spare takes the node's place, the programs are compiled
for the cables of the nodes now in use, and the launch begins again from the chips' data.  It knows
wirings, costs and plans; who compiles and who runs is handed to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from chip.isa import LANES
from chip.spec import ChipSpec
from interconnect.clock_links import HAC_PERIOD_CYCLES
from interconnect.clock_tree import spanning_tree, start_cost_epochs
from interconnect.fabric_programs import FabricCollective
from interconnect.spares import active_nodes, part_of
from interconnect.topology import Topology
from programs.fault_plan import FaultPlan


@dataclass(frozen=True)
class Linked:
    """Programs for the nodes in use, and what it cost to come there.

    nodes: which node of the wiring is in use as node 0, 1, ...; spare_used: how many died;
    cost_cycles: beside the cycles of the programs as they were first compiled.
    """

    compiled: FabricCollective
    nodes: list[int]
    spare_used: int = 0
    cost_cycles: int = 0

    def counted(self, counts: dict[str, int]) -> dict[str, int] | None:
        """``counts`` of the launch with the spares added; None without a fault plan."""
        if not counts:
            return None
        return counts | {
            "spare_used": counts["spare_used"] + self.spare_used,
            "replays": counts["replays"] + self.spare_used,
            "cost_cycles": counts["cost_cycles"] + self.cost_cycles,
        }


def linked_onto_spares(
    wiring: Topology, plan: FaultPlan | None, spec: ChipSpec,
    programs_on: Callable[[Topology], FabricCollective],
) -> Linked:  # fmt: skip
    """The programs that finish a collective's one launch, whoever dies before.

    programs_on: compiles and proves them for a wiring.  Deaths are those of launch 0, by cycle.
    Raises FabricError for a node that is not in use or when no spare is left.
    """
    if plan is None or wiring.nodes == 1 or not (plan.spare_nodes and plan.dead_nodes):
        nodes = list(range(wiring.nodes))
        if plan is not None and plan.dead_nodes:
            active_nodes(wiring, 0, [dead.node for dead in plan.dead_nodes])
        return Linked(programs_on(wiring), nodes)
    spares = min(plan.spare_nodes, wiring.nodes - 1)
    nodes = active_nodes(wiring, spares, [])
    compiled = programs_on(part_of(wiring, nodes))
    first_cycles, cost, gone = compiled.cycles, 0, []
    for dead in sorted((d for d in plan.dead_nodes if d.launch == 0), key=lambda d: d.cycle):
        gone.append(dead.node)
        nodes = active_nodes(wiring, spares, gone)
        lost = min(dead.cycle, compiled.cycles)
        compiled = programs_on(part_of(wiring, nodes))
        image_bytes = 4 * LANES * compiled.source_words
        load = spec.pcie_latency_s + image_bytes / spec.pcie_bytes_per_s
        height = spanning_tree(compiled.topology.cables, compiled.topology.chips).height
        epochs = start_cost_epochs(spec.link_wire_cycles, HAC_PERIOD_CYCLES, height)
        cost += lost + math.ceil(load * spec.clock_hz) + epochs * HAC_PERIOD_CYCLES
    return Linked(compiled, nodes, len(gone), cost + compiled.cycles - first_cycles)

