"""The part of a wiring that works: nodes in use, the others being spare or dead.

A rack of nine nodes runs eight and keeps one to take over (published, ISCA'22: one of nine).  The
cables between the nodes in use are those of the rack as it is wired, so a program for another set
of nodes is another program: it is compiled, scheduled and checked again for these cables.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chip.isa import LINKS
from interconnect.wiring.topology import FabricError, Topology


def part_of(topology: Topology, nodes: Sequence[int]) -> Topology:
    """``nodes`` of a wiring as one of its own: node ``nodes[i]`` becomes node i.

    Cables to other nodes are left out.  Raises FabricError for nodes that are not there or twice.
    """
    if len(set(nodes)) != len(nodes) or not all(0 <= node < topology.nodes for node in nodes):
        raise FabricError(
            f"nodes {', '.join(map(str, nodes))}: use different ones of 0..{topology.nodes - 1}"
        )
    size = topology.chips_per_node
    old = (np.array(nodes)[:, None] * size + np.arange(size)).reshape(-1)
    new = np.full(topology.chips + 1, -1, np.int32)  # the last: no cable
    new[old] = np.arange(len(old))
    peer = new[topology.peer[old]]
    peer_link = np.where(peer >= 0, topology.peer_link[old], np.int8(-1))
    a, link_a = np.nonzero(peer > np.arange(len(old))[:, None])
    cables = np.stack((a, link_a, peer[a, link_a], peer_link[a, link_a]), axis=1)
    order = np.lexsort((link_a, peer[a, link_a], a))
    cables = cables[order].astype(np.int32)
    for array in (cables, peer, peer_link):
        array.flags.writeable = False
    assert peer.shape == (len(old), LINKS)
    return Topology(
        f"{topology.name}-part",
        len(old),
        size,
        len(nodes),
        cables,
        peer,
        peer_link,
        topology.chip_spec,
    )


def active_nodes(topology: Topology, spares: int, dead: Sequence[int]) -> list[int]:
    """The nodes that run when the last ``spares`` are spare and ``dead`` of the others died.

    A dead node's place is taken by the first spare that is left.  Raises FabricError when none is.
    """
    active = list(range(topology.nodes - spares))
    left = list(range(topology.nodes - spares, topology.nodes))
    for node in dead:
        if node not in active:
            raise FabricError(f"node {node} is not in use: {', '.join(map(str, active))} are")
        if not left:
            raise FabricError(
                f"node {node} is lost and no spare is left of {spares}; give more [spares] nodes"
            )
        active[active.index(node)] = left.pop(0)
    return active
