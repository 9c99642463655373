"""Parts of a wiring: the same cables between the nodes in use, no others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chip.spec import ChipSpec
from interconnect.wiring import FabricError, active_nodes, cable_faults, part_of, topology_of

RACK = topology_of(72)


@given(st.permutations(range(9)), st.integers(1, 9))
def test_cables_between_nodes_in_use_are_kept(order: list[int], count: int) -> None:
    nodes = order[:count]
    part = part_of(RACK, nodes)
    assert (part.chips, part.nodes, part.chips_per_node) == (8 * count, count, 8)

    def physical(chip: int) -> int:
        return nodes[chip // 8] * 8 + chip % 8

    def ends(a: int, link_a: int, b: int, link_b: int) -> frozenset[tuple[int, int]]:
        return frozenset({(a, link_a), (b, link_b)})

    kept = {ends(*row) for row in RACK.cables.tolist() if {row[0] // 8, row[2] // 8} <= set(nodes)}
    found = {ends(physical(a), la, physical(b), lb) for a, la, b, lb in part.cables.tolist()}
    assert found == kept and len(part.cables) == len(kept)
    assert not cable_faults(part, ChipSpec())
    for a, link_a, b, link_b in part.cables.tolist():
        assert a < b and part.peer[a, link_a] == b and part.peer_link[b, link_b] == link_a
    assert (part.peer >= 0).sum() == 2 * len(part.cables)


def test_a_part_that_is_all_is_the_wiring() -> None:
    assert np.array_equal(part_of(RACK, range(9)).cables, RACK.cables)


def test_nodes_that_are_not_there_are_refused() -> None:
    for nodes in ([0, 0], [9], [-1]):
        with pytest.raises(FabricError, match="use different ones"):
            part_of(RACK, nodes)


def test_the_spare_takes_the_dead_nodes_place() -> None:
    assert active_nodes(RACK, 1, []) == list(range(8))
    assert active_nodes(RACK, 1, [4]) == [0, 1, 2, 3, 8, 5, 6, 7]
    assert active_nodes(RACK, 2, [4, 0]) == [8, 1, 2, 3, 7, 5, 6]
    assert active_nodes(RACK, 2, [4, 7]) == [0, 1, 2, 3, 8, 5, 6]  # a spare may die as well
    with pytest.raises(FabricError, match="no spare is left"):
        active_nodes(RACK, 1, [4, 5])
    with pytest.raises(FabricError, match="not in use"):
        active_nodes(RACK, 1, [8])
