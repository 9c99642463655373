"""Shortest ways over the cables as they are: distances, minimal routes, detours of a node.

A route is a list of directed links, ``chip * 16 + link`` of the sending end.  Everything is exact
and depends on nothing but the cables and the arguments; knows no time (``interconnect.wires``).
Cables carry vectors both ways, so a distance is the same in both directions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chip.isa import LINKS
from interconnect.wiring.topology import UNREACHABLE, FabricError, Topology

#: Destinations whose distances are in memory at once: 10.7 MB for 10,440 chips.
_BATCH = 1024


def hop_distances(topology: Topology, destinations: ArrayLike) -> NDArray[np.uint8]:
    """Hops from every chip to each destination: [m] chip numbers to uint8 [m, chips].

    255 where no cables lead.  A breadth-first search from 64 destinations at a time, one bit of a
    word each.  Raises FabricError for a chip that does not exist or a distance above 254.
    """
    goals = _chips(topology, destinations, "destination")
    from interconnect.wiring.searching import search

    hops = np.full((goals.size, topology.chips), UNREACHABLE, np.uint8)
    if not search(topology.peer, goals, hops):
        raise FabricError(_too_far(topology))
    return hops


def diameter(topology: Topology) -> int:
    """Hops between the two chips farthest apart, exact over all pairs.

    The built-in wirings look the same after a turn by one node or one rack, so distances to the
    chips of one are enough; the turn is checked on the cables, and without one every chip is a
    destination.  Raises FabricError if some chips are not joined at all.

    Exact: 1 (node of 8), 3 (72 and 264 chips; published 3, ISCA'22), 6 (10,440 chips).  Published
    for 10,440 is 5 (2 + 1 + 2), which counts two hops between a chip and the chip that holds the
    cable out of its rack.  With two links a chip inside the rack at most 40 of its 72 chips are
    within two hops, the rest are three away (node, cable, node), so a direct way between racks
    has up to 3 + 1 + 3 hops; ways over a third rack are shorter and leave 6.
    """
    farthest = 0
    count = _period(topology)
    for first in range(0, count, _BATCH):
        goals = np.arange(first, min(first + _BATCH, count))
        farthest = max(farthest, _farthest(topology, goals))
    return farthest


def _farthest(topology: Topology, goals: NDArray[np.int64]) -> int:
    """Most hops from any chip to one of ``goals``, int64 [m]; FabricError as ``diameter``.

    A breadth-first search from all goals at once, one bit each, with NumPy alone: this is all that
    facts about a wiring ask for, and to load compiled code for it would take longer.
    """
    chips, none = topology.chips, topology.chips  # the row of no chip, where no goal ever is
    there = np.where(topology.peer < 0, none, topology.peer)
    seen = np.zeros((chips + 1, -(-goals.size // 64)), np.uint64)
    bits = np.uint64(1) << (np.arange(goals.size, dtype=np.uint64) % np.uint64(64))
    np.bitwise_or.at(seen, (goals, np.arange(goals.size) // 64), bits)
    border, level = seen.copy(), 0
    while True:
        reached = np.zeros_like(seen)
        for link in range(there.shape[1]):
            reached[:chips] |= border[there[:, link]]
        border = reached & ~seen
        if not border.any():
            break
        level += 1
        if level >= UNREACHABLE:
            raise FabricError(_too_far(topology))
        seen |= border
    for number, goal in enumerate(goals):
        missed = np.flatnonzero(seen[:chips, number // 64] & bits[number] == 0)
        if missed.size:
            raise FabricError(_apart(topology, int(missed[0]), int(goal)))
    return level


def minimal_routes(
    topology: Topology, sources: ArrayLike, destinations: ArrayLike, salts: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """A shortest route for every message: hops int64 [n], directed links int32 [n, max hops].

    ``sources``, ``destinations`` and ``salts`` are integers [n] (or one for all messages).  Rows
    are padded with -1; a message of a chip to itself has no hops.  At every chip the next link is
    one of those that come nearer, by a fixed hash of (source, destination, salt, hop).  Raises
    FabricError for chips that do not exist or are not joined.
    """
    from interconnect.wiring.searching import walk

    salt = np.asarray(salts)
    if salt.size and salt.dtype.kind not in "iu":
        raise FabricError(f"salts are {salt.dtype}; use integers")
    source, goal, key = np.broadcast_arrays(
        _chips(topology, sources, "source", flat=False),
        _chips(topology, destinations, "destination", flat=False),
        np.atleast_1d(salt).astype(np.int64).view(np.uint64),
    )
    if source.ndim != 1:
        raise FabricError(f"messages of shape {source.shape}; use one-dimensional arrays")
    hops = np.zeros(source.size, np.int64)
    links = np.full((source.size, 0), -1, np.int32)
    order = np.argsort(goal, kind="stable")
    distinct, starts = np.unique(goal[order], return_index=True)
    bounds = np.append(starts, order.size)
    for first in range(0, distinct.size, _BATCH):
        goals = distinct[first : first + _BATCH]
        distances = hop_distances(topology, goals)
        messages = order[bounds[first] : bounds[first + goals.size]]
        rows = np.searchsorted(goals, goal[messages])
        hops[messages] = distances[rows, source[messages]]
        longest = int(hops[messages].max())
        if longest == UNREACHABLE:
            worst = int(messages[np.argmax(hops[messages])])
            raise FabricError(_apart(topology, int(source[worst]), int(goal[worst])))
        if longest > links.shape[1]:
            wider = ((0, 0), (0, longest - links.shape[1]))
            links = np.pad(links, wider, constant_values=-1)
        walk(
            topology.peer,
            distances,
            messages,
            rows,
            np.ascontiguousarray(source),
            np.ascontiguousarray(goal),
            np.ascontiguousarray(key),
            links,
        )
    return hops, links


def detours(topology: Topology, source: int, destination: int) -> NDArray[np.int32]:
    """Two-hop routes through one other chip of the node: directed links int32 [k, 2].

    In the order of the chip between; k is six in a node of eight (published as "7", ISCA'22, which
    counts neighbours and so the direct route), none for chips of different nodes or for one chip.
    """
    _chips(topology, [source], "source")
    _chips(topology, [destination], "destination")
    node, peer = source // topology.chips_per_node, topology.peer
    routes: list[tuple[int, int]] = []
    if source != destination and node == destination // topology.chips_per_node:
        first = node * topology.chips_per_node
        for between in range(first, first + topology.chips_per_node):
            out = np.flatnonzero(peer[source] == between)
            on = np.flatnonzero(peer[between] == destination)
            if out.size and on.size:
                routes.append((source * LINKS + int(out[0]), between * LINKS + int(on[0])))
    return np.array(routes, np.int32).reshape(-1, 2)


def check_routes(
    topology: Topology,
    links: ArrayLike,
    sources: ArrayLike | None = None,
    destinations: ArrayLike | None = None,
) -> list[str]:
    """What is wrong with routes: directed links [n, hops], padded with -1; empty if nothing is.

    Every link has a cable, every hop starts where the one before ended, padding is at the end;
    with ``sources`` and ``destinations`` [n] the ends are compared too.  One fault a route.
    """
    table = np.asarray(links, np.int64)
    if table.ndim != 2:
        raise FabricError(f"routes of shape {table.shape}; use [routes, hops]")
    table = np.pad(table, ((0, 0), (0, 1)), constant_values=-1)
    used = table != -1
    known = (table >= 0) & (table < topology.chips * LINKS)
    far = np.where(known, topology.peer.reshape(-1)[np.where(known, table, 0)], -1)
    no_cable = used & (far < 0)
    gap = used[:, 1:] & ~used[:, :-1]
    torn = used[:, 1:] & used[:, :-1] & (table[:, 1:] // LINKS != far[:, :-1])
    faults: dict[int, str] = {}
    for route, hop in np.argwhere(no_cable):
        chip, link = divmod(int(table[route, hop]), LINKS)
        faults.setdefault(int(route), f"hop {hop}: chip {chip} link {link} has no cable")
    for route, hop in np.argwhere(gap):
        faults.setdefault(int(route), f"hop {hop + 1} follows padding; pad at the end")
    for route, hop in np.argwhere(torn):
        there = f"hop {hop} ends at chip {far[route, hop]}"
        chip = int(table[route, hop + 1]) // LINKS
        faults.setdefault(int(route), f"{there} but hop {hop + 1} starts at chip {chip}")
    if sources is not None and destinations is not None:
        start, end = _chips(topology, sources, "source"), _chips(topology, destinations, "end")
        count = used.sum(1)
        first = np.where(count > 0, table[:, 0] // LINKS, start)
        last = np.where(count > 0, far[np.arange(count.size), count - 1], start)
        for route in np.flatnonzero((first != start) | (last != end)):
            faults.setdefault(
                int(route),
                f"leads from chip {first[route]} to chip {last[route]}, "
                f"not from chip {start[route]} to chip {end[route]}",
            )
    return [f"route {route}: {faults[route]}" for route in sorted(faults)]


def _chips(
    topology: Topology, chips: ArrayLike, what: str, *, flat: bool = True
) -> NDArray[np.int64]:
    """Chip numbers as int64, checked against the topology."""
    numbers = np.atleast_1d(np.asarray(chips))
    if numbers.size and numbers.dtype.kind not in "iu":
        raise FabricError(f"{what} numbers are {numbers.dtype}; use integers")
    wrong = (numbers < 0) | (numbers >= topology.chips)
    if wrong.any():
        raise FabricError(
            f"{what} {numbers[wrong][0]} does not exist; use chips 0..{topology.chips - 1}"
        )
    numbers = numbers.astype(np.int64)
    return numbers.reshape(-1) if flat else numbers


def _too_far(topology: Topology) -> str:
    return f"topology {topology.name}: chips more than 254 hops apart; add cables across"


def _apart(topology: Topology, source: int, destination: int) -> str:
    return (
        f"topology {topology.name}: no cables lead from chip {source} to chip {destination}; "
        "add some"
    )


def _period(topology: Topology) -> int:
    """Chips of one node or rack if the cables are the same after a turn by it, otherwise all."""
    chips, peer = topology.chips, topology.peer
    rack = topology.chips_per_node * topology.nodes_per_rack
    for period in (topology.chips_per_node, rack):
        turned = np.where(peer >= 0, (peer + period) % chips, -1)
        if chips % period == 0 and np.array_equal(np.roll(peer, -period, axis=0), turned):
            return period
    return chips
