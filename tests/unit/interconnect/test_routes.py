"""Distances and routes against a plain breadth-first search over the cables."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interconnect.wiring import (
    FabricError,
    Topology,
    detours,
    diameter,
    hop_distances,
    minimal_routes,
    named_topology,
    topology_of,
)
from interconnect.wiring.routes import check_routes
from interconnect.wiring.topology import lpx_rack
from tests import examples

#: Exact, over all pairs of chips.
DIAMETERS = {1: 0, 2: 1, 8: 1, 16: 2, 64: 3, 72: 3, 144: 3, 264: 3, 288: 5, 10_440: 6}


def neighbours(t: Topology) -> list[list[int]]:
    joined: list[list[int]] = [[] for _ in range(t.chips)]
    for a, _, b, _ in t.cables.tolist():
        joined[a].append(b)
        joined[b].append(a)
    return joined


def searched(joined: list[list[int]], start: int) -> list[int]:
    """Hops from one chip to all, the oracle; 255 where none lead."""
    hops = [255] * len(joined)
    hops[start] = 0
    queue = deque([start])
    while queue:
        chip = queue.popleft()
        for other in joined[chip]:
            if hops[other] == 255:
                hops[other] = hops[chip] + 1
                queue.append(other)
    return hops


def custom(tmp_path: Path, chips: int, cables: list[list[int]]) -> Topology:
    path = tmp_path / "custom.json"
    path.write_text(json.dumps({"chips": chips, "cables": cables}))
    return named_topology(path)


@pytest.mark.parametrize("chips", [1, 2, 8, 16, 72, 144, 264, 288])
def test_distances_of_all_pairs_are_the_oracles(chips: int) -> None:
    t = topology_of(chips)
    joined = neighbours(t)
    oracle = np.array([searched(joined, chip) for chip in range(chips)])
    hops = hop_distances(t, np.arange(chips))
    assert hops.dtype == np.uint8 and np.array_equal(hops, oracle)
    assert diameter(t) == oracle.max() == DIAMETERS[chips]


def test_distances_of_10440_chips_are_the_oracles() -> None:
    t = topology_of(10_440)
    joined = neighbours(t)
    chips = np.random.default_rng(3).integers(0, t.chips, 12)
    assert np.array_equal(hop_distances(t, chips), [searched(joined, chip) for chip in chips])


def test_diameters_published_and_exact() -> None:
    """Published (ISCA'22): 3 hops for 264 chips.

    Published for 10,440 chips: at most 5 hops (2 + 1 + 2); taken: 6, the exact figure over the
    cables, all pairs counted.  2 + 1 + 2 counts two hops between a chip and the chip of its rack
    that holds the cable to the other rack.  With the published counts (seven local links, two links
    inside the rack) a chip reaches at most 1 + 9 + 30 = 40 of the 72 chips of its rack in two hops:
    the third, across the node at the other end, is left out, once in each rack.
    """
    assert diameter(topology_of(72)) == diameter(topology_of(264)) == diameter(lpx_rack()) == 3
    t = topology_of(10_440)
    published, exact = 5, DIAMETERS[t.chips]
    assert diameter(t) == exact == published + 1
    farthest = 0
    for first in range(0, t.chips, 1024):
        chips = np.arange(first, min(first + 1024, t.chips))
        farthest = max(farthest, int(hop_distances(t, chips).max()))
    assert farthest == exact
    rack = t.cables[(t.cables[:, 0] < 72) & (t.cables[:, 2] < 72)]
    alone = neighbours(dataclasses.replace(t, chips=72, cables=rack))
    for chip in range(72):
        hops = searched(alone, chip)
        assert sum(h <= 2 for h in hops) <= 40 and max(hops) == 3


@pytest.mark.parametrize("racks", [4, 11, 60, 74, 144, 145])
def test_no_dragonfly_is_wider_than_7(racks: int) -> None:
    assert diameter(topology_of(72 * racks)) <= 7


@pytest.mark.parametrize("chips", [8, 64, 72, 264, 10_440])
def test_random_pairs_are_routed_minimally(chips: int) -> None:
    t = topology_of(chips)
    random = np.random.default_rng(chips)
    source, goal = random.integers(0, chips, (2, 2000))
    salt = np.arange(2000)
    hops, links = minimal_routes(t, source, goal, salt)
    assert hops.dtype == np.int64 and links.dtype == np.int32
    assert check_routes(t, links, source, goal) == []
    assert hops.max() <= DIAMETERS[chips] and links.shape == (2000, hops.max())
    assert np.array_equal((links >= 0).sum(1), hops)
    assert np.array_equal(hops, hop_distances(t, goal)[np.arange(2000), source])
    mixed = random.permutation(2000)
    again = minimal_routes(t, source[mixed], goal[mixed], salt[mixed])
    assert np.array_equal(again[0], hops[mixed]) and np.array_equal(again[1], links[mixed])
    one = minimal_routes(t, source[:1], goal[:1], salt[:1])
    assert np.array_equal(one[1][0], links[0, : hops[0]])


def test_salts_spread_over_all_equal_ways() -> None:
    """Two nodes are joined by a cable at each of their 32 ports, four for a pair of chips."""
    t = topology_of(16)
    hops, links = minimal_routes(t, 0, 8, np.arange(4000))
    assert (hops == 1).all()
    taken, times = np.unique(links, return_counts=True)
    assert taken.tolist() == [3, 4, 12, 13]
    assert times.min() > 900
    far = topology_of(264)
    hops, links = minimal_routes(far, np.arange(264).repeat(264), np.tile(np.arange(264), 264), 7)
    load = np.bincount(links[links >= 0], minlength=264 * 16)[(far.peer >= 0).reshape(-1)]
    assert load.max() < 3 * load.mean()


def test_routes_do_not_change_between_versions() -> None:
    """Every machine computes the same routes; a schedule on file depends on them."""
    hops, links = minimal_routes(topology_of(10_440), [0, 5000, 77], [10_439, 3, 77], [0, 1, 2])
    assert hops.tolist() == [4, 5, 0]
    assert links.tolist() == [
        [10, 108, 54632, 54572, -1],
        [80003, 80235, 80156, 105468, 105],
        [-1, -1, -1, -1, -1],
    ]


def test_messages_of_nobody_and_of_a_chip_to_itself() -> None:
    t = topology_of(72)
    hops, links = minimal_routes(t, [], [], [])
    assert hops.shape == (0,) and links.shape == (0, 0)
    hops, links = minimal_routes(t, [5, 6], [5, 6], 0)
    assert hops.tolist() == [0, 0] and links.shape == (2, 0)
    assert check_routes(t, links, [5, 6], [5, 6]) == []
    assert check_routes(t, links, [5, 6], [5, 7]) == [
        "route 1: leads from chip 6 to chip 6, not from chip 6 to chip 7"
    ]


@pytest.mark.parametrize("t", [topology_of(8), topology_of(264), lpx_rack()], ids=lambda t: t.name)
def test_detours_go_through_the_six_others_of_a_node(t: Topology) -> None:
    for source, goal in [(0, 1), (7, 2), (3, 4)]:
        source, goal = source + t.chips - 8, goal + t.chips - 8
        routes = detours(t, source, goal)
        assert routes.shape == (6, 2) and routes.dtype == np.int32
        assert check_routes(t, routes, np.full(6, source), np.full(6, goal)) == []
        assert len(np.unique(routes)) == 12
        between = t.peer.reshape(-1)[routes[:, 0]]
        assert (between // 8 == source // 8).all()


def test_there_are_no_detours_elsewhere() -> None:
    assert detours(topology_of(2), 0, 1).shape == (0, 2)
    assert detours(topology_of(72), 0, 8).shape == (0, 2)
    assert detours(topology_of(72), 3, 3).shape == (0, 2)
    assert len(detours(topology_of(4), 0, 3)) == 2


def test_faults_of_routes() -> None:
    t = topology_of(8)
    k1, k2 = 0, 1  # links of chip 0 to chips 1 and 2
    assert check_routes(t, [[k1, 16 + 1], [k2, -1], [-1, -1]]) == []
    faults = check_routes(t, [[k1, 32], [k1, 3], [-1, k1], [999, -1], [-2, -1]])
    assert [fault.split(":")[0] for fault in faults] == [f"route {i}" for i in range(5)]
    assert "hop 0 ends at chip 1 but hop 1 starts at chip 2" in faults[0]
    assert "hop 1: chip 0 link 3 has no cable" in faults[1]
    assert "padding" in faults[2] and "no cable" in faults[3] and "no cable" in faults[4]
    with pytest.raises(FabricError, match="shape"):
        check_routes(t, [0, 1])


def test_chips_that_do_not_exist_or_are_not_joined(tmp_path: Path) -> None:
    t = topology_of(8)
    for wrong in (8, -1):
        with pytest.raises(FabricError, match="does not exist"):
            hop_distances(t, [0, wrong])
        with pytest.raises(FabricError, match=f"source {wrong}"):
            minimal_routes(t, [wrong], [0], [0])
        with pytest.raises(FabricError, match=f"destination {wrong}"):
            detours(t, 0, wrong)
    with pytest.raises(FabricError, match="integers"):
        minimal_routes(t, [0.5], [0], [0])
    apart = custom(tmp_path, 4, [[0, 0, 1, 0], [2, 0, 3, 0]])
    assert hop_distances(apart, [0]).tolist() == [[0, 1, 255, 255]]
    with pytest.raises(FabricError, match="no cables lead"):
        diameter(apart)
    with pytest.raises(FabricError, match="from chip 0 to chip 2"):
        minimal_routes(apart, [0], [2], [0])


def test_a_long_line(tmp_path: Path) -> None:
    line = custom(tmp_path, 255, [[i, 0, i + 1, 1] for i in range(254)])
    assert diameter(line) == 254
    hops, links = minimal_routes(line, 0, 254, 9)
    assert hops.tolist() == [254] and check_routes(line, links, [0], [254]) == []
    with pytest.raises(FabricError, match="254 hops"):
        diameter(custom(tmp_path, 256, [[i, 0, i + 1, 1] for i in range(255)]))


def test_a_removed_cable_is_not_hidden_by_the_symmetry(tmp_path: Path) -> None:
    """Distances are over the cables as they are, also where one of a built-in wiring is missing."""
    t = topology_of(264)
    gone = 500
    peer = t.peer.copy()
    a, link_a, b, link_b = t.cables[gone]
    peer[a, link_a] = peer[b, link_b] = -1
    broken = dataclasses.replace(t, peer=peer, cables=np.delete(t.cables, gone, 0))
    joined = neighbours(broken)
    assert diameter(broken) == max(max(searched(joined, chip)) for chip in range(t.chips))
    assert diameter(broken) > diameter(t) or a // 8 == b // 8


@settings(max_examples=examples(60), deadline=None)
@given(data=st.data())
def test_any_graph_is_routed_as_the_oracle_says(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    chips = data.draw(st.integers(2, 12))
    pairs = data.draw(
        st.lists(st.tuples(st.integers(0, chips - 1), st.integers(0, chips - 1)), max_size=30)
    )
    free = [list(range(11)) for _ in range(chips)]
    cables = [
        [a, free[a].pop(), b, free[b].pop()] for a, b in pairs if a != b and free[a] and free[b]
    ]
    t = custom(tmp_path_factory.getbasetemp(), chips, cables)
    joined = neighbours(t)
    oracle = np.array([searched(joined, chip) for chip in range(chips)])
    assert np.array_equal(hop_distances(t, np.arange(chips)), oracle)
    goal, source = np.nonzero(oracle < 255)
    hops, links = minimal_routes(t, source, goal, np.arange(goal.size))
    assert np.array_equal(hops, oracle[goal, source])
    assert check_routes(t, links, source, goal) == []


def _mixed(x: int) -> int:
    """splitmix64 as published (Steele, Lea and Flood 2014): a step of the golden ratio, mixed."""
    word = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & word
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & word
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & word
    return x ^ (x >> 31)


def test_the_hash_is_the_published_one() -> None:
    """The first numbers of the generator with seed 0, from its reference implementation."""
    step = 0x9E3779B97F4A7C15
    found = [_mixed(n * step & ((1 << 64) - 1)) for n in range(3)]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def _hashed_route(t: Topology, source: int, goal: int, salt: int) -> list[int]:
    """docs: at every chip the hash of (source, destination, salt, hop) picks among nearer links."""
    distance = searched(neighbours(t), goal)
    key = _mixed(_mixed(_mixed(source) ^ goal) ^ salt & ((1 << 64) - 1))
    chip, route = source, []
    while chip != goal:
        ways = [
            link
            for link in range(16)
            if t.peer[chip, link] >= 0 and distance[t.peer[chip, link]] == distance[chip] - 1
        ]
        link = ways[_mixed(key ^ len(route)) % len(ways)]
        route.append(16 * chip + link)
        chip = int(t.peer[chip, link])
    return route


@pytest.mark.parametrize("chips", [16, 72, 264])
def test_routes_are_pinned_by_the_hash(chips: int) -> None:
    """Another hash would change routes, and with them cycles and digests of collectives."""
    t = topology_of(chips)
    rng = np.random.default_rng(chips)
    source, goal = rng.integers(0, chips, (2, 40))
    salts = np.concatenate([rng.integers(0, 1 << 40, 38), [-1, 0]])
    hops, links = minimal_routes(t, source, goal, salts)
    for message in range(40):
        expected = _hashed_route(t, int(source[message]), int(goal[message]), int(salts[message]))
        assert links[message, : hops[message]].tolist() == expected
    assert len({tuple(row) for row in links.tolist()}) > 20


def test_wrong_shapes_and_types_of_messages_and_routes_are_refused() -> None:
    t = topology_of(8)
    square = np.zeros((2, 2), np.int64)
    with pytest.raises(FabricError, match=r"messages of shape \(2, 2\); use one-dimensional"):
        minimal_routes(t, square, [1], [0])
    with pytest.raises(FabricError, match="salts are float64; use integers"):
        minimal_routes(t, [0], [1], [0.5])
    with pytest.raises(FabricError, match="source numbers are float64; use integers"):
        minimal_routes(t, [0.5], [1], [0])
    with pytest.raises(FabricError, match="destination numbers are bool; use integers"):
        minimal_routes(t, [0], [True], [0])
    with pytest.raises(FabricError, match=r"routes of shape \(3,\); use \[routes, hops\]"):
        check_routes(t, [1, 2, 3])
