"""The groups of a pipeline one after another, and how words get from one to the next."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from chip.scheduling import CompileError
from chip.spec import ChipSpec
from interconnect.collectives import handover
from interconnect.collectives.handover import group_path, plan_handover
from interconnect.wiring import Topology, topology_of

SPEC = ChipSpec()
Search = Callable[[Topology, int, int], list[int] | None]


def joined(topology: Topology, tp: int) -> set[tuple[int, int]]:
    """Pairs of groups with a cable between them, both ways, cable by cable."""
    pairs = {(a // tp, b // tp) for a, _, b, _ in topology.cables.tolist()}
    return pairs | {(b, a) for a, b in pairs}


@pytest.mark.parametrize("search", [group_path, handover._path_by_nodes])
@pytest.mark.parametrize(("chips", "tp"), [(16, 4), (24, 2), (72, 4), (72, 1), (144, 4)])
def test_groups_of_a_path_are_joined_one_by_one(chips: int, tp: int, search: Search) -> None:
    """By the search in order, and by the one that walks the nodes where that gives up."""
    topology = topology_of(chips)
    cables, total = joined(topology, tp), chips // tp
    for groups in {1, 2, total // 2 + 1, total}:
        path = search(topology, tp, groups)
        assert path is not None and len(path) == len(set(path)) == groups
        assert min(path) >= 0 and max(path) < total
        assert all(pair in cables for pair in itertools.pairwise(path))


def test_more_groups_than_there_are() -> None:
    with pytest.raises(CompileError, match="7 pipeline stages of 4 chips: 24 chips have 6 groups"):
        group_path(topology_of(24), 4, 7)


def test_a_path_in_order_passes_rack_after_rack() -> None:
    path = group_path(topology_of(144), 8, 18)
    assert path[0] == 0 and [group // 9 for group in path] == [0] * 9 + [1] * 9


def test_a_node_that_is_one_group_cannot_be_walked_through() -> None:
    assert handover._path_by_nodes(topology_of(24), 8, 3) is None


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, hop_cycles=2000)])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_words_go_the_way_that_takes_fewer_cycles(tp: int, spec: ChipSpec) -> None:
    """Inside a node every chip has a partner: each receives all words, or its share and spreads it.

    A word is four vectors.  All words take 4 w frames; a share takes 4 s frames, and as many and a
    hop more until the neighbours have it.
    """
    topology, frame = topology_of(8), spec.send_spacing_cycles
    seen = set()
    for words in (1, 2, 3, 5, 8, 9, 13, 16, 20, 21, 40, 100):
        plan = plan_handover(topology, tp, 0, 1, words, spec)
        share = -(-words // tp)
        alone = 4 * words * frame <= 2 * 4 * share * frame + spec.hop_cycles
        seen.add(alone)
        assert plan.words == words and plan.spread == (not alone)
        for chip, carrier in enumerate(plan.carriers):
            first = 0 if alone else chip * share
            last = words if alone else min(words, first + share)
            assert (carrier.sender, carrier.first) == (chip, first)
            assert carrier.words == last - first > 0
            here, there = carrier.sender, tp + carrier.receiver
            assert topology.peer[here, carrier.link] == there
            assert topology.peer_link[here, carrier.link] == carrier.entry
            assert plan.leaving(carrier.sender) == plan.arriving(carrier.receiver) == carrier
        carried = np.concatenate([c.first + np.arange(c.words) for c in plan.carriers])
        assert np.unique(carried).tolist() == list(range(words))
        if alone:
            assert len(plan.carriers) == tp and plan.pace == frame
    assert seen == ({True} if tp < 4 else {True, False})


def test_groups_that_no_cable_joins() -> None:
    topology = topology_of(264)
    apart = next(g for g in range(1, 264) if (0, g) not in joined(topology, 1))
    with pytest.raises(
        CompileError, match=f"no cable leads from group 0 of 1 chips to group {apart}"
    ):
        plan_handover(topology, 1, 0, apart, 3, SPEC)
