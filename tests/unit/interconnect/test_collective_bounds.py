"""Cycles that no collective can beat, for a chip's own latencies."""

from __future__ import annotations

from dataclasses import replace

from chip.spec import PRESETS, ChipSpec
from interconnect.collectives.bounds import collective_bounds, least_vxm_cycles
from interconnect.wiring import topology_of

SPEC = ChipSpec()


def test_the_least_way_through_an_alu() -> None:
    """Published: 12 + 2*floor(s/4) cycles, s = 0 beside the VXM; it follows a chip's own fields."""
    assert [least_vxm_cycles(spec) for spec in PRESETS.values()] == [12, 12]
    slow = replace(SPEC, read_cycles=4, write_cycles=7, alu_cycles=5)
    assert least_vxm_cycles(slow) == 12 + 3 + 5 + 2
    node = topology_of(8)
    bounds = [collective_bounds(node, "all-reduce", 1, spec)["latency"] for spec in (SPEC, slow)]
    # a hop, three more vectors, and a tree of three sums: two more ALUs
    assert bounds[0].cycles == 650 + 3 * 24 + 12 + 2 * 3
    assert bounds[1].cycles == 650 + 3 * 24 + 22 + 2 * 5
