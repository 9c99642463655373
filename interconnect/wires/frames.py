"""Where and when a chip's links touch its SRAM: phases, buffers, streams and forward delays.

Time on links is divided into frames of F = ``send_spacing_cycles`` (``docs/fabric.md``).  Link l
sends at cycle ``F * frame + phase(l)``; the Read of that vector and the Write of a received one
follow from it by the distance between slice and edge.  This module chooses the phases and the
buffers so that, in every slice, all those Reads and Writes are at different cycles modulo the
*turn*, whatever frames the runs start in:

- a west link reads position p at ``phase - p``, an east link at ``phase + p`` (and a constant), so
  even turn phases for west links and odd ones for east links never meet, at any position;
- every link has a quad of slices of its own for what it receives.  Its Writes differ from all
  Reads that forward from it to another link: for local cables (the same link number at both ends)
  at any position, for global links (3, 4, 12, 13, ends in any combination) at positions found here.

The turn is one frame where the frame is long enough.  A shorter frame (F = 6 of ``groq-3-lp30``)
has fewer cycles than links; then the turn is the four frames of a word and the byte plane a link
sends in frame f is ``(f + rotation) mod 4``, so each slice of a quad still has 4 F cycles to share.

Assumed: everything here is a choice; the latencies are the spec's.  Knows no topology or program.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import numpy as np
from numpy.typing import NDArray

from chip import isa
from chip.errors import LpuError
from chip.isa import LINKS, SLICES_PER_HEMISPHERE
from chip.spec import ChipSpec

Ints = NDArray[np.int64]
Quad = tuple[int, int, int, int]

#: The links a topology uses: local 0, 1, 2, 8..11, global 3, 4, 12, 13 (``docs/fabric.md``).
LOCAL_LINKS = (0, 1, 2, 8, 9, 10, 11)
GLOBAL_LINKS = (3, 4, 12, 13)
LINK_NUMBERS = tuple(sorted(LOCAL_LINKS + GLOBAL_LINKS))

#: Frames of a word: its four byte planes, one vector each.
PLANES_PER_WORD = 4

#: Quads that programs need beside those that receive.
WORKING_QUADS = 4

_CENTRE = 22  # position in the middle of the VXM


class LinkFramesError(LpuError, ValueError):
    """A spec whose frames are too short for the links, or a link without a place in the frames;
    the message says what would mend it.
    """


@dataclass(frozen=True)
class LinkFrames:
    """All choices for one spec.  Arrays are read-only and indexed by link number 0..15.

    phase: int64 [16], cycles after the start of a frame, 0 for unused links.
    turn_frames: 1, or 4 where byte planes rotate with the frame.
    rotation: int64 [16]; with 4 turn frames, a run on link l that starts in frame f begins with
    byte plane ``(f + rotation[l]) mod 4`` of its words, else with plane 0.
    received: link -> the quad that takes what arrives on it.
    working: quads that no link writes, nearest to the VXM first (at least four).
    """

    phase: Ints
    turn_frames: int
    rotation: Ints
    received: dict[int, Quad]
    working: tuple[Quad, ...]

    def first_plane(self, link: int, frame: int) -> int:
        """Byte plane (0..3) a run begins with that starts on ``link`` in ``frame``."""
        if self.turn_frames == 1:
            return 0
        return (frame + int(self.rotation[link])) % PLANES_PER_WORD


def is_west(link: int) -> bool:
    """True for the links of the west edge."""
    return link < LINKS // 2


def outward_stream(link: int) -> int:
    """Stream code (one per link) that carries vectors to ``link``, away from the other edge."""
    return link + (isa.EAST_STREAMS if is_west(link) else 0)


def inward_stream(link: int) -> int:
    """Stream code (one per link) that carries what ``link`` received."""
    return link + (0 if is_west(link) else isa.EAST_STREAMS)


def edge_hops(link: int, position: int) -> int:
    """Stream hops between the edge of ``link`` and a slice at ``position``."""
    return position - isa.WEST_EDGE if is_west(link) else isa.EAST_EDGE - position


def read_lead(spec: ChipSpec, link: int, position: int) -> int:
    """Cycles from the Read at a slice to the Send on ``link`` that samples its vector."""
    return spec.read_cycles + edge_hops(link, position)


def write_delay(spec: ChipSpec, link: int, position: int) -> int:
    """Cycles from the Send at the far end to the Write, at a slice, of what ``link`` receives."""
    return spec.send_to_receive_cycles + spec.receive_cycles + edge_hops(link, position)


def free_quads(spec: ChipSpec) -> list[Quad]:
    """Disjoint quads of slices of one hemisphere that are not reserved.

    First those whose four slices share a position (the byte planes of a word are then in step),
    then what is left over, in order; queue numbers 0..43 west, 44..87 east.
    """
    whole: list[Quad] = []
    mixed: list[Quad] = []
    for base, reserved in ((0, spec.reserved_slices_west), (44, spec.reserved_slices_east)):
        rest: list[int] = []
        for first in range(0, SLICES_PER_HEMISPHERE, 4):
            free = [base + s for s in range(first, first + 4) if s not in reserved]
            if len(free) == 4:
                whole.append((free[0], free[1], free[2], free[3]))
            else:
                rest += free
        for i in range(0, len(rest) - 3, 4):
            mixed.append((rest[i], rest[i + 1], rest[i + 2], rest[i + 3]))
    return whole + mixed


def senders(link: int) -> tuple[int, ...]:
    """Link numbers that may be at the other end of ``link``'s cable in the named topologies."""
    return GLOBAL_LINKS if link in GLOBAL_LINKS else (link,)


def positions(quad: Quad) -> list[int]:
    """Stream positions of the slices of a quad."""
    return [isa.slice_position(queue) for queue in quad]


def collisions(spec: ChipSpec, turn_phase: Ints, turn: int, link: int, quad: Quad) -> Ints:
    """Which forwards from a quad could meet a Write in a slice: int64 [n, 2] (sender, next link).

    turn_phase: int64 [16], phases modulo ``turn`` cycles; ``quad`` receives for ``link``.  All
    wired numbers are tried as senders; the next link is another one than ``link``.
    """
    found = []
    for sender in LINK_NUMBERS:
        for onward in LINK_NUMBERS:
            same = [
                (
                    turn_phase[sender]
                    + write_delay(spec, link, p)
                    - turn_phase[onward]
                    + read_lead(spec, onward, p)
                )
                % turn
                == 0
                for p in positions(quad)
            ]
            if onward != link and any(same):
                found.append((sender, onward))
    return np.array(found, np.int64).reshape(-1, 2)


def _fits(spec: ChipSpec, turn_phase: Ints, turn: int, link: int, quad: Quad) -> bool:
    met = collisions(spec, turn_phase, turn, link, quad)
    return not np.isin(met[:, 0], senders(link)).any()


def _place_buffers(spec: ChipSpec, turn_phase: Ints, turn: int) -> dict[int, Quad] | None:
    """A quad for every link, global links first, each as near to its edge as there is one."""
    quads = free_quads(spec)
    chosen: dict[int, Quad] = {}
    for link in GLOBAL_LINKS + LOCAL_LINKS:
        near = sorted(quads, key=lambda q: sum(edge_hops(link, p) for p in positions(q)))
        fitting = next((q for q in near if _fits(spec, turn_phase, turn, link, q)), None)
        if fitting is None:
            return None
        chosen[link] = fitting
        quads.remove(fitting)
    return chosen


def _forward_delays(
    spec: ChipSpec, phase: Ints, rotation: Ints, turn_frames: int, received: dict[int, Quad]
) -> Ints:
    frame = spec.send_spacing_cycles
    delays = np.zeros((LINKS, LINKS, LINKS), np.int64)
    for link in LINK_NUMBERS:
        for onward in LINK_NUMBERS:
            between = spec.write_cycles + max(
                write_delay(spec, link, p) + read_lead(spec, onward, p)
                for p in positions(received[link])
            )
            for sender in LINK_NUMBERS:
                frames = -(-(int(phase[sender]) + between - int(phase[onward])) // frame)
                turned = int(rotation[sender] - rotation[onward]) - frames
                delays[sender, link, onward] = frames + turned % turn_frames
    return delays


def _turn_phases(turn: int) -> Iterator[tuple[int, Ints]]:
    """Candidates (stride, phases int64 [16] modulo ``turn``): west links even, east links odd.

    The numbers of an edge are a walk with one stride, and so are the other edge's, from any start
    and in either direction.
    """
    half = turn // 2
    west = [link for link in LINK_NUMBERS if is_west(link)]
    east = [link for link in LINK_NUMBERS if not is_west(link)]
    for stride in range(1, half // 2 + 1):
        lap = half // gcd(half, stride)  # the walk goes on one further after each lap
        walk = (stride * np.arange(half) + np.arange(half) // lap) % half
        for start in range(half):
            for direction in (1, -1):
                found = np.zeros(LINKS, np.int64)
                found[west] = 2 * walk[: len(west)]
                found[east] = 2 * ((start + direction * walk[: len(east)]) % half) + 1
                yield stride, found


@lru_cache(maxsize=16)
def _choose(spec: ChipSpec) -> tuple[LinkFrames, Ints]:
    frame = spec.send_spacing_cycles
    best: tuple[int, LinkFrames, Ints] | None = None
    for turn_frames in (1, PLANES_PER_WORD):
        turn = frame * turn_frames
        if turn % 2 or turn // 2 < len(LINK_NUMBERS) or best is not None:
            continue
        found_at = 0
        for stride, turn_phase in _turn_phases(turn):
            if best is not None and stride > found_at:
                break
            received = _place_buffers(spec, turn_phase, turn)
            if received is None:
                continue
            found_at = stride
            phase, rotation = turn_phase % frame, -(turn_phase // frame) % turn_frames
            delays = _forward_delays(spec, phase, rotation, turn_frames, received)
            if best is None or delays.sum() < best[0]:
                working = [q for q in free_quads(spec) if q not in received.values()]
                working.sort(key=lambda q: max(abs(p - _CENTRE) for p in positions(q)))
                chosen = LinkFrames(phase, turn_frames, rotation, received, tuple(working))
                best = (int(delays.sum()), chosen, delays)
    if best is None or len(best[1].working) < WORKING_QUADS:
        raise LinkFramesError(
            f"frames of {frame} cycles ({spec.name}) are too short for {len(LINK_NUMBERS)} links, "
            "or too many slices are reserved: send_spacing_cycles of 6 or 24 and more suffice"
        )
    for array in (best[1].phase, best[1].rotation, best[2]):
        array.flags.writeable = False
    return best[1], best[2]


def link_frames(spec: ChipSpec) -> LinkFrames:
    """All choices for ``spec`` (cached; a small deterministic search)."""
    return _choose(spec)[0]


def phases(spec: ChipSpec) -> Ints:
    """int64 [16], read-only: cycle within a frame at which each link sends (0: unused link).

    Raises LinkFramesError for a spec whose frames are too short.
    """
    return _choose(spec)[0].phase


def forward_frames(spec: ChipSpec) -> Ints:
    """int64 [16, 16, 16], read-only: the forward delay in frames.

    Index: [link the run was sent on, link of the intermediate chip that receives it, link it is
    sent on next].  Each vector was received, written and is readable before its next Read; the
    delay is the least whole number of frames (where planes rotate, of those that keep the order of
    the byte planes).  Entries of unused links are 0.
    """
    return _choose(spec)[1]
