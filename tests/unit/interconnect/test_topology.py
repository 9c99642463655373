"""The wirings against their rules, told again chip by chip, and against the published figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip.spec import PRESETS, ChipSpec
from interconnect.wiring import (
    FabricError,
    Topology,
    cable_faults,
    chain_of,
    chain_sizes,
    named_topology,
    node_cables,
    topology_of,
    wired_topology,
)
from interconnect.wiring.topology import lpx_rack, rack_ports
from tests import examples

SPEC = ChipSpec()
SIZES = [1, 2, 4, 8, 16, 24, 64, 72, 144, 216, 256, 264, 288, 360, 1440, 5256, 10_440]
GLOBAL = (3, 4, 12, 13)
Port = tuple[int, int]


def wires(t: Topology) -> dict[Port, Port]:
    """Port to port, from the cables alone."""
    ends: dict[Port, Port] = {}
    for a, link_a, b, link_b in t.cables.tolist():
        ends[a, link_a], ends[b, link_b] = (b, link_b), (a, link_a)
    return ends


@pytest.mark.parametrize("nodes", [2, 3, 72, 1305])
def test_a_chain_joins_every_chip_to_its_like_in_the_next_node(nodes: int) -> None:
    """8 of the 32 global ports of a node for the next one, and no other cable between nodes."""
    t = chain_of(8 * nodes)
    assert (t.name, t.chips, t.nodes, t.racks) == ("chain", 8 * nodes, nodes, 1)
    assert cable_faults(t, SPEC) == []
    local = {tuple(cable) for cable in node_cables(8)}
    between = set()
    for a, link_a, b, link_b in t.cables.tolist():
        if a // 8 == b // 8:
            assert (a % 8, link_a, b % 8, link_b) in local
        else:
            between.add((a, link_a, b, link_b))
    assert len(t.cables) - len(between) == 28 * nodes
    assert between == {(c, 12, c + 8, 3) for c in range(8 * (nodes - 1))}
    assert wires(t)[0, 12] == (8, 3)


def test_chains_by_name_and_size() -> None:
    assert named_topology("chain-64").cables.tolist() == chain_of(64).cables.tolist()
    for chips in (1, 2, 4, 8):
        assert named_topology(f"chain-{chips}").name == "node"
    for chips, near in ((12, "8 or 16"), (20, "16 or 24"), (0, "1"), (10_448, "10440")):
        with pytest.raises(
            FabricError, match=f"^{chips} chips: no chain has this size; use {near}$"
        ):
            chain_of(chips)
    with pytest.raises(FabricError, match="belongs to a built-in wiring"):
        wired_topology(2, [[0, 0, 1, 0]], "chain")
    for size in chain_sizes()[:40]:
        assert chain_of(size).chips == size


@pytest.mark.parametrize("chips", SIZES)
def test_cables_are_sorted_legal_and_the_same_as_the_peer_arrays(chips: int) -> None:
    t = topology_of(chips)
    assert cable_faults(t, PRESETS[t.chip_spec]) == []
    a, link_a, b, _ = t.cables.T
    assert (a < b).all()
    assert np.array_equal(np.lexsort((link_a, b, a)), np.arange(a.size))
    peer, peer_link = np.full((chips, 16), -1), np.full((chips, 16), -1)
    for (chip, link), (far, far_link) in wires(t).items():
        peer[chip, link], peer_link[chip, link] = far, far_link
    assert np.array_equal(peer, t.peer) and np.array_equal(peer_link, t.peer_link)
    assert (t.cables.dtype, t.peer.dtype, t.peer_link.dtype) == (np.int32, np.int32, np.int8)
    assert t.racks * t.nodes_per_rack == t.nodes and t.nodes * t.chips_per_node == chips
    with pytest.raises(ValueError, match="read-only"):
        t.peer[0, 0] = 0


@pytest.mark.parametrize("chips", [1, 2, 4, 8])
def test_a_node_has_the_cables_of_a_node(chips: int) -> None:
    t = topology_of(chips)
    assert [tuple(cable) for cable in t.cables.tolist()] == node_cables(chips)
    assert t.name == "node" and t.nodes == t.racks == 1


def test_local_cables_of_every_node_are_those_of_a_node() -> None:
    for t in (topology_of(72), topology_of(288), lpx_rack()):
        local = t.cables[t.cables[:, 0] // 8 == t.cables[:, 2] // 8]
        for node in range(t.nodes):
            own = local[local[:, 0] // 8 == node] - [node * 8, 0, node * 8, 0]
            assert [tuple(cable) for cable in own.tolist()] == node_cables(8)


@pytest.mark.parametrize("nodes", [2, 3, 9, 18, 32, 33])
def test_nodes_all_to_all_follow_the_rule_port_by_port(nodes: int) -> None:
    t = topology_of(8 * nodes)
    ends = wires(t)
    m = 32 // (nodes - 1)
    expected: dict[Port, Port] = {}
    for node in range(nodes):
        for d in range(1, nodes):
            far = (node + d) % nodes
            for j in range(m):
                p, q = (d - 1) * m + j, (nodes - d - 1) * m + j
                port = (8 * node + p // 4, GLOBAL[p % 4])
                expected[port] = (8 * far + q // 4, GLOBAL[q % 4])
    assert {port: end for port, end in ends.items() if port[1] in GLOBAL} == expected
    assert all(expected[end] == port for port, end in expected.items())


@pytest.mark.parametrize("racks", [4, 5, 73, 145])
def test_racks_follow_the_rule_port_by_port(racks: int) -> None:
    t = topology_of(72 * racks)
    ranked = sorted(range(144), key=lambda q: 5**q % 193)
    m = 144 // (racks - 1)
    expected: dict[Port, Port] = {}
    for rack in range(racks):
        for node in range(9):
            for d in range(1, 9):
                for j in range(2):
                    p, q = 2 * (d - 1) + j, 2 * (8 - d) + j
                    near, far = 9 * rack + node, 9 * rack + (node + d) % 9
                    expected[8 * near + p % 8, 3 + p // 8] = (8 * far + q % 8, 3 + q // 8)
        for d in range(1, racks):
            for j in range(m):
                p, q = ranked[(d - 1) * m + j], ranked[(racks - d - 1) * m + j]
                out = (72 * rack + p // 2, 12 + p % 2)
                expected[out] = (72 * ((rack + d) % racks) + q // 2, 12 + q % 2)
    assert {port: end for port, end in wires(t).items() if port[1] in GLOBAL} == expected


def test_the_order_of_rack_ports_is_a_permutation() -> None:
    assert sorted(rack_ports().tolist()) == list(range(144))


def test_8_chips_have_the_28_cables_published() -> None:
    """Published (ISCA'22): 28 internal cables, 7 local links a chip."""
    t = topology_of(8)
    assert len(t.cables) == 28
    assert ((t.peer >= 0).sum(1) == 7).all()


def test_72_chips_use_every_global_port() -> None:
    """Published (ISCA'22): a node is a router of 32 ports; a rack has 288 of them."""
    t = topology_of(72)
    assert (t.nodes, t.racks, t.name) == (9, 1, "nodes")
    ports = (t.peer[:, GLOBAL] >= 0).reshape(9, 32).sum(1)
    assert (ports == 32).all() and ports.sum() == 288


def test_a_dragonfly_rack_has_the_ports_published() -> None:
    """Published (ISCA'22): 144 of 288 ports connect the nine nodes doubly, 144 leave the rack.

    44 of 60 cables of a node are short: 28 inside it and 16 inside its rack, by these counts.
    """
    t = topology_of(10_440)
    a, b = t.cables[:, 0] // 72, t.cables[:, 2] // 72
    first = t.cables[(a == 0) | (b == 0)]
    inside = first[(first[:, 0] // 72 == first[:, 2] // 72)]
    between = inside[inside[:, 0] // 8 != inside[:, 2] // 8]
    pairs, times = np.unique(between[:, [0, 2]] // 8, axis=0, return_counts=True)
    assert len(pairs) == 9 * 8 // 2 and (times == 2).all()
    assert 2 * len(between) == 144 and len(first) - len(inside) == 144
    assert len(np.unique(between[:, [0, 2]], axis=0)) == len(between)
    assert len(node_cables(8)) + 2 * len(between) // 9 == 44


def test_264_chips_have_one_cable_for_every_two_nodes() -> None:
    """Published (ISCA'22): 33 nodes all to all, 264 chips, 56 GiB of SRAM."""
    t = topology_of(264)
    pairs = t.cables[:, [0, 2]] // 8
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    assert len(pairs) == len(np.unique(pairs, axis=0)) == 33 * 32 // 2
    assert int(264 * SPEC.sram_bytes / 2**30) == 56
    assert SPEC.sram_bytes == 230_686_720


def test_10440_chips_have_one_cable_for_every_two_racks() -> None:
    """Published (ISCA'22): 145 racks, 10,440 chips, more than 2 TB of SRAM."""
    t = topology_of(10_440)
    assert (t.racks, t.nodes, t.name) == (145, 1305, "dragonfly")
    pairs = t.cables[:, [0, 2]] // 72
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    assert len(pairs) == len(np.unique(pairs, axis=0)) == 145 * 144 // 2
    assert ((t.peer >= 0).sum(1) == 11).all()
    assert t.chips * SPEC.sram_bytes > 2e12


def test_global_bandwidth_of_a_chip_falls_from_50_to_14_gb_per_s() -> None:
    """Published (survey of ISCA'22): about 50 GB/s a chip up to 264 chips, about 14 beyond.

    50: four global links of 12.5 GB/s.  14: two links a chip join the nodes of a rack, and a
    vector to another rack crosses from node to node in both racks unless it starts or ends at the
    node that holds the cable, one in nine.
    """
    small, large = topology_of(264), topology_of(10_440)
    node = np.arange(small.chips)[:, None] // 8
    assert (((small.peer >= 0) & (small.peer // 8 != node)).sum(1) * 12.5 <= 50).all()
    assert (((small.peer >= 0) & (small.peer // 8 != node)).sum(1) == 4).all()
    chip = np.arange(large.chips)[:, None]
    rack_link = (
        (large.peer >= 0) & (large.peer // 72 == chip // 72) & (large.peer // 8 != chip // 8)
    )
    assert (rack_link.sum(1) == 2).all()
    exits = ((large.peer >= 0) & (large.peer // 72 != chip // 72)).sum(1).reshape(-1, 8).sum(1)
    assert (exits == 16).all()  # the same for each of nine nodes
    crossings = 2 * (1 - 1 / large.nodes_per_rack)
    assert 2 * 12.5 / crossings == pytest.approx(14, abs=0.1)


def test_the_lpx_rack_has_32_trays_of_lp30() -> None:
    """Published (NVIDIA): 256 chips, 32 trays of eight, 128 GB of SRAM."""
    t = lpx_rack()
    assert (t.chips, t.nodes, t.name, t.chip_spec) == (256, 32, "lpx", "groq-3-lp30")
    assert cable_faults(t, PRESETS[t.chip_spec]) == []
    assert t.chips * PRESETS[t.chip_spec].sram_bytes == pytest.approx(128e9, rel=0.01)
    assert np.array_equal(t.peer, topology_of(256).peer)


@pytest.mark.parametrize(
    ("chips", "near"),
    [
        (0, "use 1"),
        (-3, "use 1"),
        (3, "2 or 4"),
        (9, "8 or 16"),
        (71, "64 or 72"),
        (265, "264 or 288"),
        (336, "288 or 360"),
        (10_441, "use 10440"),
        (10**30, "use 10440"),
    ],
)
def test_other_sizes_name_the_nearest(chips: int, near: str) -> None:
    with pytest.raises(FabricError, match=near) as caught:
        topology_of(chips)
    assert "\n" not in str(caught.value)


@pytest.mark.long
def test_every_size_promised_exists() -> None:
    sizes = [1, 2, 4, 8, *range(16, 265, 8), *range(288, 10_441, 72)]
    exist = []
    for chips in [*range(1, 300), *range(288, 10_441, 36)]:
        try:
            exist.append(topology_of(chips).chips)
        except FabricError:
            continue
    assert sorted(set(exist)) == sizes


def test_cable_faults_tell_every_kind() -> None:
    t = topology_of(8)
    broken = np.array(
        [[0, 0, 1, 0], [0, 0, 2, 1], [3, 16, 4, 2], [5, 1, 5, 2], [6, 1, 8, 1]], np.int32
    )
    faults = "\n".join(cable_faults(dataclasses.replace(t, cables=broken), SPEC))
    for part in (
        "chip 0 link 0: 2 cable ends",
        "cable 2: link 16 does not exist",
        "cable 3: chip 5 is at both ends",
        "cable 4: chip 8 does not exist",
    ):
        assert part in faults
    # a cable that leads nowhere is that fault alone: it takes no link of a chip that is there
    for end in ([-1, 0], [8, 0], [2, -1], [2, 16]):
        lost = np.array([[0, 0, 1, 0], [0, 0, *end]], np.int32)
        assert len(cable_faults(dataclasses.replace(t, cables=lost), SPEC)) == 1
    three = dataclasses.replace(SPEC, wired_links=3)
    assert len(cable_faults(t, three)) == 8
    assert "7 cables" in cable_faults(t, three)[0]


def test_names_and_files(tmp_path: Path) -> None:
    assert np.array_equal(named_topology("264").peer, topology_of(264).peer)
    assert named_topology("lpx").name == "lpx"
    toml = tmp_path / "ring.toml"
    toml.write_text("chips = 3\ncables = [[1, 0, 0, 5], [1, 3, 2, 0], [2, 1, 0, 0]]\n")
    ring = named_topology(toml)
    assert ring.cables.tolist() == [[0, 5, 1, 0], [0, 0, 2, 1], [1, 3, 2, 0]]
    assert (ring.name, ring.chips_per_node, ring.nodes, ring.racks) == ("custom", 1, 3, 1)
    assert ring.chip_spec == "groq-lpu-1"
    whole = tmp_path / "whole.json"
    t = topology_of(10_440)
    whole.write_text(json.dumps({"name": "w", "chips": t.chips, "cables": t.cables.tolist()}))
    copy = named_topology(str(whole))
    assert copy.name == "w"
    assert np.array_equal(copy.peer, t.peer) and np.array_equal(copy.cables, t.cables)
    lone = tmp_path / "lone.json"
    lone.write_text('{"chips": 2, "cables": []}')
    assert named_topology(lone).cables.shape == (0, 4)


CABLE = '"cables": [[0, 0, 1, 0]]'


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[]", "not a table"),
        ("{", "not a readable JSON"),
        ('{"chips": 2}', "cables is None"),
        (f"{{{CABLE}}}", "chips is None"),
        (f'{{"chips": 2.0, {CABLE}}}', "chips is 2.0"),
        (f'{{"chips": true, {CABLE}}}', "chips is True"),
        (f'{{"chips": 16385, {CABLE}}}', "1 to 16384"),
        (f'{{"chips": 1{"0" * 5000}, {CABLE}}}', "JSON"),
        (f'{{"chips": 1{"0" * 4000}, {CABLE}}}', "beyond 64 bits"),
        (f'{{"chips": 2, "chips": 3, {CABLE}}}', "given twice"),
        (f'{{"chips": 2, "link": 3, {CABLE}}}', "'link' is no field"),
        (f'{{"chips": 2, "name": "dragonfly", {CABLE}}}', "built-in"),
        (f'{{"chips": 2, "name": "a\\nb", {CABLE}}}', "name is"),
        (f'{{"chips": 2, "name": "\\ud800", {CABLE}}}', "name is"),
        ('{"chips": 2, "cables": [[0, 0, 1]]}', "cable 0 is [0, 0, 1]"),
        ('{"chips": 2, "cables": [[0, 0, 1, NaN]]}', "cable 0 is [0, 0, 1, nan]"),
        (f'{{"chips": 2, "cables": [[0, 0, 1, 1{"0" * 30}]]}}', "64 bits"),
        ('{"chips": 2, "cables": [[0, 0, 2, 0]]}', "chip 2 does not exist"),
        ('{"chips": 2, "cables": [[0, 0, 1, 16]]}', "link 16 does not exist"),
        ('{"chips": 2, "cables": [[1, 0, 1, 1]]}', "both ends"),
        ('{"chips": 3, "cables": [[0, 0, 1, 0], [0, 0, 2, 0]]}', "2 cable ends"),
        (json.dumps({"chips": 2, "cables": [[0, i, 1, i] for i in range(12)]}), "12 cables"),
        ("[" * 100_000, "nested too deeply"),
        (" " * (4 << 20) + "{}", "more than"),
    ],
)
def test_malformed_files_say_what_and_where_in_one_line(
    text: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # messages cut long paths
    path = Path("t.json")
    path.write_text(text)
    with pytest.raises(FabricError) as caught:
        named_topology(path)
    message = str(caught.value)
    assert part in message and "t.json" in message
    assert "\n" not in message and message.isascii() and len(message) < 400


@pytest.mark.parametrize(
    "name", ["", "eight", "a\0b", "x" * 5000, "no\nsuch.toml", "/", "99999999999999999999", "٣"]
)
def test_names_that_are_nothing(name: str) -> None:
    with pytest.raises(FabricError) as caught:
        named_topology(name)
    assert "\n" not in str(caught.value)


def test_other_endings_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("chips: 2")
    with pytest.raises(FabricError, match=r"\.toml or \.json"):
        named_topology(tmp_path / "t.yaml")
    (tmp_path / "t.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(FabricError, match="TOML"):
        named_topology(tmp_path / "t.toml")


def refused_or_legal(path: Path) -> None:
    """Whatever a file holds: a legal topology or one line."""
    try:
        t = named_topology(path)
    except FabricError as error:
        assert "\n" not in str(error)
    else:
        assert cable_faults(t, SPEC) == []


small = st.integers(-1, 17)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | small,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "chips": st.integers(1, 5) | junk,
        "cables": st.lists(st.lists(small, min_size=4, max_size=4) | junk, max_size=8) | junk,
        "name": st.text(max_size=4) | junk,
        "other": junk,
    },
)


@settings(max_examples=examples(300), deadline=None)
@given(value=fields | junk)
def test_any_json_value_is_refused_or_legal(
    value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    path.write_text(json.dumps(value))
    refused_or_legal(path)


@settings(max_examples=examples(300), deadline=None)
@given(data=st.binary(max_size=60), at=st.integers(0, 60), ending=st.sampled_from(["json", "toml"]))
def test_any_bytes_are_refused_or_legal(
    data: bytes, at: int, ending: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A good file with bytes put over it."""
    good = b'{"chips": 3, "cables": [[0, 0, 1, 0], [1, 1, 2, 0]]}'
    if ending == "toml":
        good = b"chips = 3\ncables = [[0, 0, 1, 0], [1, 1, 2, 0]]\n"
    path = tmp_path_factory.getbasetemp() / f"bytes.{ending}"
    path.write_bytes(good[:at] + data + good[at + len(data) // 2 :])
    refused_or_legal(path)
