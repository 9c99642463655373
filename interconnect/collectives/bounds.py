"""Cycles that no schedule of a collective can beat, from its cuts and its distances."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from chip.isa import LINKS
from chip.spec import ChipSpec
from interconnect.collectives.steps import WORD_VECTORS, group_sizes
from interconnect.wiring import Topology, hop_distances


def least_vxm_cycles(spec: ChipSpec) -> int:
    """SRAM to SRAM through one ALU, from the slice nearest to the VXM, a hop there and a hop back.

    12 for the default chip (published: 12 + 2*floor(s/4) for slice s).
    """
    through = spec.alu_entry_cycles + spec.alu_cycles
    return spec.read_cycles + 1 + through + 1 + spec.write_cycles


@dataclass(frozen=True)
class Bound:
    """A number of cycles nothing of this kind can beat, and how it is computed."""

    cycles: int
    formula: str


def collective_bounds(
    topology: Topology,
    operation: str,
    words: int,
    spec: ChipSpec,
    root: int = 0,
    destination: int | None = None,
) -> dict[str, Bound]:
    """``bandwidth`` and ``latency``: cycles no schedule of the operation can beat."""
    return {
        "bandwidth": _bandwidth_bound(topology, operation, words, spec),
        "latency": _latency_bound(topology, operation, spec, root, destination),
    }


def _bandwidth_bound(topology: Topology, operation: str, words: int, spec: ChipSpec) -> Bound:
    """The tightest cut: vectors that must leave a chip, node or rack over the links it has."""
    vectors, chips = words * WORD_VECTORS, topology.chips
    directed = np.flatnonzero(topology.peer.reshape(-1) >= 0)
    far = topology.peer.reshape(-1)[directed]
    best = Bound(0, "one chip sends nothing")
    unit = 1
    for size, name in zip(group_sizes(topology), ("chip", "node", "rack"), strict=False):
        parts = chips // unit
        leaving = directed[directed // LINKS // unit != far // unit] // LINKS // unit
        links = int(np.bincount(leaving, minlength=1).max()) if len(leaving) else 0
        share = Fraction(parts - 1, parts)
        amount, text = {
            "all-reduce": (2 * vectors * share, f"2 * {vectors} vectors * {share}"),
            "all-to-all": (unit * vectors * share, f"{unit} * {vectors} vectors * {share}"),
            "broadcast": (Fraction(vectors), f"{vectors} vectors"),
            "point-to-point": (Fraction(vectors), f"{vectors} vectors"),
        }.get(operation, (vectors * share, f"{vectors} vectors * {share}"))
        if links and parts > 1:
            cycles = -(-amount * spec.cycles_per_vector // links)
            formula = f"{text} * {spec.cycles_per_vector} cycles / {links} links of a {name}"
            best = max(best, Bound(int(cycles), formula), key=lambda b: b.cycles)
        unit *= size
    return best


def _latency_bound(
    topology: Topology, operation: str, spec: ChipSpec, root: int, destination: int | None
) -> Bound:
    """Hops to the farthest chip, the vectors of one word, the tree of the chips of a node."""
    distance = hop_distances(topology, [root])[0]
    hops = int(distance.max())
    if operation == "point-to-point":
        hops = int(distance[topology.chips - 1 if destination is None else destination])
    if hops == 0:
        return Bound(0, "nothing crosses a cable")
    rest = spec.send_spacing_cycles * (WORD_VECTORS - 1)
    text = f"{hops} hops * {spec.hop_cycles} + {WORD_VECTORS - 1} vectors * "
    text += f"{spec.send_spacing_cycles}"
    if operation in ("all-reduce", "reduce-scatter"):
        terms = group_sizes(topology)[0]
        levels = max(terms - 1, 0).bit_length()
        if levels:
            tree = least_vxm_cycles(spec) + spec.alu_cycles * (levels - 1)
            rest += tree
            text += f" + {tree} for a tree of {levels} sums from SRAM to SRAM"
    return Bound(hops * spec.hop_cycles + rest, text)
