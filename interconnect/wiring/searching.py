"""The compiled searches behind ``routes``: in a file of their own, loaded when one is wanted.

Facts about a wiring need none of them, and loading the compiler takes longer
than telling the facts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip.isa import LINKS
from chip.jit import jit
from interconnect.wiring.topology import UNREACHABLE


@jit
def search(peer: NDArray[np.int32], goals: NDArray[np.int64], hops: NDArray[np.uint8]) -> bool:
    """Fill ``hops`` (255 before); False if some chips are more than 254 hops apart."""
    chips = peer.shape[0]
    seen = np.zeros(chips, np.uint64)
    border = np.zeros(chips, np.uint64)
    reached = np.zeros(chips, np.uint64)
    one, zero = np.uint64(1), np.uint64(0)
    for first in range(0, goals.size, 64):
        count = min(64, goals.size - first)
        seen[:] = zero
        border[:] = zero
        for i in range(count):
            seen[goals[first + i]] |= one << np.uint64(i)
            border[goals[first + i]] |= one << np.uint64(i)
            hops[first + i, goals[first + i]] = 0
        level, more = 0, True
        while more:
            level += 1
            more = False
            reached[:] = zero
            for chip in range(chips):
                if border[chip] != zero:
                    for link in range(peer.shape[1]):
                        if peer[chip, link] >= 0:
                            reached[peer[chip, link]] |= border[chip]
            for chip in range(chips):
                fresh = reached[chip] & ~seen[chip]
                border[chip] = fresh
                if fresh != zero:
                    if level >= UNREACHABLE:
                        return False
                    more = True
                    seen[chip] |= fresh
                    for i in range(count):
                        if (fresh >> np.uint64(i)) & one != zero:
                            hops[first + i, chip] = level
    return True


@jit
def _mix(x: np.uint64) -> np.uint64:
    """The finaliser of splitmix64: every bit of the result depends on every bit of ``x``."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@jit
def walk(
    peer: NDArray[np.int32],
    distances: NDArray[np.uint8],
    messages: NDArray[np.int64],
    rows: NDArray[np.int64],
    sources: NDArray[np.int64],
    goals: NDArray[np.int64],
    salts: NDArray[np.uint64],
    routes: NDArray[np.int32],
) -> None:
    """Write the links of ``messages`` into ``routes``; row i of ``rows`` has their distances."""
    for i in range(messages.size):
        message = messages[i]
        distance = distances[rows[i]]
        chip = sources[message]
        key = _mix(_mix(_mix(np.uint64(chip)) ^ np.uint64(goals[message])) ^ salts[message])
        hop = 0
        while distance[chip] > 0:
            nearer = np.int64(distance[chip]) - 1
            ways = 0
            for link in range(peer.shape[1]):
                if peer[chip, link] >= 0 and distance[peer[chip, link]] == nearer:
                    ways += 1
            pick = np.int64(_mix(key ^ np.uint64(hop)) % np.uint64(ways))
            taken = -1
            for link in range(peer.shape[1]):
                if peer[chip, link] >= 0 and distance[peer[chip, link]] == nearer:
                    if pick == 0:
                        taken = link
                    pick -= 1
            routes[message, hop] = chip * LINKS + taken
            chip = np.int64(peer[chip, taken])
            hop += 1
