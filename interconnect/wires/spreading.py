"""A large tensor over several paths of a node at once: the cable, and detours by another chip.

Load is spread when the schedule is made (ISCA'22: minimal and non-minimal paths, the number of
paths from the volume of the tensor).  Knows predicted arrivals on idle links only.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from chip.isa import LINKS
from chip.spec import ChipSpec
from interconnect.wires.frames import forward_frames, phases
from interconnect.wires.slots import Ints, Links, first_frames
from interconnect.wiring import Topology, detours, minimal_routes


@dataclass(frozen=True)
class Spread:
    """Paths of one tensor, those without vectors left out.

    hops: int64 [p]; links: int32 [p, h] directed links, -1 after the last; vectors: int64 [p];
    arrival: int64 [p], cycle in which the last vector of each path is readable.
    """

    hops: Ints
    links: Links
    vectors: Ints
    arrival: Ints


def paths(topology: Topology, source: int, destination: int) -> tuple[Ints, Links]:
    """(hops int64 [p], links int32 [p, h]): a minimal route, then the detours of a node.

    Detours (two hops by one other chip of the node) exist between chips of a node that share a
    cable: six in a node of eight.
    """
    ends = (np.array([source]), np.array([destination]), np.zeros(1, np.int64))
    hops, links = minimal_routes(topology, *ends)
    hops = np.asarray(hops, np.int64)
    others = detours(topology, source, destination)
    if hops[0] != 1 or not len(others):
        return hops, links
    rows = np.concatenate([np.array([[links[0, 0], -1]], np.int32), others])
    return np.array([1] + [2] * len(others), np.int64), rows


def first_arrivals(topology: Topology, hops: Ints, links: Links, spec: ChipSpec) -> Ints:
    """int64 [p]: when a vector is readable that is at the source at cycle 0; links are idle."""
    frames = first_frames(np.zeros(len(hops), np.int64), links[:, 0], spec)
    forward, phase = forward_frames(spec), phases(spec)
    arrival = np.zeros(len(hops), np.int64)
    for p, route in enumerate(links.tolist()):
        frame = int(frames[p])
        route = route[: int(hops[p])]
        for before, here in pairwise(route):
            entry = topology.peer_link[before // LINKS, before % LINKS]
            frame += int(forward[before % LINKS, entry, here % LINKS])
        arrival[p] = spec.send_spacing_cycles * frame + phase[route[-1] % LINKS] + spec.hop_cycles
    return arrival


def spread(
    topology: Topology, source: int, destination: int, vectors: int, spec: ChipSpec
) -> Spread:
    """Share ``vectors`` among the paths so that the last one arrives as early as possible.

    Every path carries what arrives by the best common time, so all end within a frame of each
    other, and a path is used only if a vector on it arrives before that: below the size where a
    detour first pays there is none.  Raises ValueError for equal ends or no vectors.
    """
    if source == destination or vectors < 1:
        raise ValueError(f"{vectors} vectors from chip {source} to {destination}: nothing to send")
    hops, links = paths(topology, source, destination)
    first = first_arrivals(topology, hops, links, spec)
    spacing = spec.send_spacing_cycles

    def count(time: int) -> Ints:
        return np.maximum((time - first) // spacing + 1, 0)

    low, high = int(first.min()), int(first.min()) + spacing * (vectors - 1)
    while low < high:
        middle = (low + high) // 2
        if int(count(middle).sum()) >= vectors:
            high = middle
        else:
            low = middle + 1
    share = count(low)
    # Only paths whose last vector arrives in exactly the last cycle have one too many.
    last = np.flatnonzero((share > 0) & ((low - first) % spacing == 0))
    share[last[len(last) - (int(share.sum()) - vectors) :]] -= 1
    used = share > 0
    length = int(hops[used].max())
    arrival = first + spacing * (share - 1)
    return Spread(hops[used], links[used][:, :length], share[used], arrival[used])
