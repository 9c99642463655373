"""Link slots: which vectors cross which directed link in which cycle.

Knows routes as lists of directed links (``chip * 16 + link`` of the sending end), the frames of
``docs/fabric.md`` and when each link is free; knows nothing of topologies, programs or what the
vectors mean.  Slots are given out once, in the order of the messages, and never taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.isa import LINKS
from chip.jit import jit
from chip.spec import ChipSpec
from interconnect.wires.frames import LINK_NUMBERS, LinkFramesError, forward_frames, phases

Ints = NDArray[np.int64]
Links = NDArray[np.int32]


def send_lead(spec: ChipSpec) -> int:
    """Least cycles from a word being readable in SRAM to the Send that samples it at the edge.

    The Read and the ten hops from MEM43 to the edge: the way ``hop_cycles`` ends, backwards.  Words
    in slices farther in take as many cycles more as they have hops more.
    """
    return spec.read_cycles + 10


@dataclass(frozen=True)
class WireSchedule:
    """Runs of vectors on directed links; one row per run and hop, all columns int64.

    Per row: ``chip``, ``link`` (the sending end), ``cycle`` (Send issue of the first vector),
    ``vectors``, ``message``, ``hop`` (from 0).  Vector i leaves at ``cycle + spacing * i`` and is
    received ``latency`` cycles later.  Per message: ``source``, ``destination``,
    ``message_vectors`` and ``ready``, the cycle from which its words are readable at the source.
    """

    chip: Ints
    link: Ints
    cycle: Ints
    vectors: Ints
    message: Ints
    hop: Ints
    source: Ints
    destination: Ints
    message_vectors: Ints
    ready: Ints
    latency: int
    spacing: int

    @property
    def directed_link(self) -> Ints:
        """int64 [rows]: ``chip * 16 + link``."""
        return self.chip * LINKS + self.link

    @property
    def vector_hops(self) -> int:
        """How often a vector crosses a link."""
        return int(self.vectors.sum())

    def last_send(self) -> Ints:
        """int64 [rows]: Send issue of the last vector of each row, in cycles."""
        return self.cycle + self.spacing * (self.vectors - 1)


def concatenate(schedules: Sequence[WireSchedule]) -> WireSchedule:
    """One schedule of several for the same machine; messages are numbered through."""
    if not schedules:
        raise ValueError("no schedules: at least one is needed to know latency and spacing")
    sizes = [len(s.source) for s in schedules]
    before = np.cumsum([0, *sizes[:-1]])
    columns = {
        f.name: np.concatenate([getattr(s, f.name) for s in schedules])
        for f in fields(WireSchedule)
        if f.name not in ("message", "latency", "spacing")
    }
    columns["message"] = np.concatenate(
        [s.message + shift for s, shift in zip(schedules, before, strict=True)]
    )
    return WireSchedule(**columns, latency=schedules[0].latency, spacing=schedules[0].spacing)


def first_frames(ready: Ints, first_links: Links | Ints, spec: ChipSpec) -> Ints:
    """int64 [n]: first frame whose Send on a directed link can carry a word readable at ``ready``.

    ready: cycles, int64 [n].  first_links: directed links, [n]; -1 (no route) gives frame 0.
    """
    directed: Ints = np.asarray(first_links, np.int64)
    phase = phases(spec)[directed % LINKS]
    frames = -(-(ready + send_lead(spec) - phase) // spec.send_spacing_cycles)
    return np.where(directed < 0, 0, np.maximum(frames, 0)).astype(np.int64)


@jit
def _next_free(begins: Ints, ends: Ints, low: int, high: int, frame: int, vectors: int) -> int:
    """First frame >= ``frame`` from which ``vectors`` frames lie in a gap of rows low..high-1.

    Intervals [begins, ends) are sorted and disjoint.
    """
    stop = high
    while low < stop:
        middle = (low + stop) // 2
        if ends[middle] <= frame:
            low = middle + 1
        else:
            stop = middle
    while low < high and begins[low] < frame + vectors:
        frame = ends[low]
        low += 1
    return frame


@jit
def _insert(begins: Ints, ends: Ints, low: int, high: int, frame: int, vectors: int) -> int:
    """Add [frame, frame + vectors) to the intervals in rows low..high-1; returns the new end."""
    at = high
    while at > low and begins[at - 1] > frame:
        at -= 1
    joins_left = at > low and ends[at - 1] == frame
    joins_right = at < high and begins[at] == frame + vectors
    if joins_left and joins_right:
        ends[at - 1] = ends[at]
        for k in range(at, high - 1):
            begins[k], ends[k] = begins[k + 1], ends[k + 1]
        return high - 1
    if joins_left:
        ends[at - 1] += vectors
        return high
    if joins_right:
        begins[at] = frame
        return high
    for k in range(high, at, -1):
        begins[k], ends[k] = begins[k - 1], ends[k - 1]
    begins[at], ends[at] = frame, frame + vectors
    return high + 1


class _Runs(NamedTuple):
    """Messages: directed links of their routes [n, h], hops, vectors, first frames, first rows."""

    links: Links
    hops: Ints
    vectors: Ints
    ready: Ints
    rows: Ints


class _Busy(NamedTuple):
    """Busy intervals of links, sorted: those of a link from row ``low`` [links] on."""

    low: Ints
    begins: Ints
    ends: Ints


@jit
def _assign(
    runs: _Runs, peer_link: NDArray[np.int8], forward: Ints, free: Ints, frames: Ints, busy: _Busy
) -> None:
    """Start frames [rows] of every hop, message after message; moves ``free`` on."""
    links, hops, vectors, ready, rows = runs
    low, begins, ends = busy
    high = low.copy()
    for m in range(len(hops)):
        if rows[m + 1] == rows[m]:
            continue
        offset = 0
        for h in range(1, hops[m]):
            before, here = links[m, h - 1], links[m, h]
            entry = peer_link[before // 16, before % 16]
            offset += forward[before % 16, entry, here % 16]
            frames[rows[m] + h] = offset
        start = ready[m]
        settled = 0  # hops in a row, around the route, that need no later start
        h = 0
        while settled < hops[m]:
            here = links[m, h]
            offset = frames[rows[m] + h]
            frame = max(start + offset, free[here])
            frame = _next_free(begins, ends, low[here], high[here], frame, vectors[m])
            settled = settled + 1 if frame == start + offset else 1
            start = frame - offset
            h = h + 1 if h + 1 < hops[m] else 0
        for h in range(hops[m]):
            here = links[m, h]
            frames[rows[m] + h] += start
            high[here] = _insert(
                begins, ends, low[here], high[here], frames[rows[m] + h], vectors[m]
            )
    for k in range(len(free)):
        if high[k] > low[k]:
            free[k] = ends[high[k] - 1]


def _require_slots(directed: Ints) -> None:
    """Refuse links that have no phase and no forward delays."""
    known = np.isin(np.arange(LINKS), LINK_NUMBERS)
    bad = np.flatnonzero(~known[directed % LINKS])
    if len(bad):
        chip, link = divmod(int(directed[bad[0]]), LINKS)
        raise LinkFramesError(
            f"chip {chip} link {link}: this link number has no place in the frames; use links "
            f"{', '.join(map(str, LINK_NUMBERS))} in the cable list"
        )


def schedule_messages(
    links: Links,
    hops: Ints,
    peer_link: NDArray[np.int8],
    vectors: Ints,
    ready_frames: Ints,
    spec: ChipSpec,
    free_frames: Ints,
    *,
    sources: Ints,
    destinations: Ints,
    ready: Ints | None = None,
) -> WireSchedule:
    """Slots for messages, greedily in their order (``docs/fabric.md``, "Link slots").

    links: int32 [n, h] directed links, -1 after the last; hops: int64 [n]; peer_link: int8
    [chips, 16], link number at the other end; vectors: int64 [n]; ready_frames: int64 [n], the
    earliest frame of the first Send; free_frames: int64 [chips * 16], the first frame from which
    each directed link is free, **moved on in place**; sources, destinations: int64 [n] chips;
    ready: int64 [n] cycles from which the words are readable (default: as ready_frames allows).

    A run starts at the earliest frame at which every link of its route is free, for all its
    vectors, when it reaches it; gaps between runs of the same call are used.  Messages without
    vectors or hops get no rows.  Time is linear in the hops but for a search among the gaps of a
    link; memory is linear.  Raises LinkFramesError for a link number that frames have no place for.
    """
    hops = np.asarray(hops, np.int64)
    count = np.where(np.asarray(vectors) > 0, hops, 0)
    rows = np.concatenate([np.zeros(1, np.int64), np.cumsum(count)])
    total = int(rows[-1])
    message = np.repeat(np.arange(len(hops), dtype=np.int64), count)
    hop = np.arange(total, dtype=np.int64) - rows[message]
    directed = links[message, hop].astype(np.int64) if total else np.zeros(0, np.int64)
    _require_slots(directed)
    frames, begins, ends = np.zeros((3, total + 1), np.int64)
    per_link = np.bincount(directed, minlength=len(free_frames))
    busy = _Busy(np.cumsum(per_link) - per_link, begins, ends)
    routes = np.ascontiguousarray(links, np.int32)
    runs = _Runs(
        routes,
        hops,
        np.ascontiguousarray(vectors, np.int64),
        np.ascontiguousarray(ready_frames, np.int64),
        rows,
    )
    _assign(runs, peer_link, forward_frames(spec), free_frames, frames, busy)
    frames = frames[:total]
    link = directed % LINKS
    if ready is None:
        first = links[:, 0] if links.shape[1] else np.zeros(len(links), np.int64)
        lead = send_lead(spec) - phases(spec)[first % LINKS]
        ready = np.asarray(ready_frames * spec.send_spacing_cycles - lead, np.int64)
    return WireSchedule(
        chip=directed // LINKS,
        link=link,
        cycle=frames * spec.send_spacing_cycles + phases(spec)[link],
        vectors=np.asarray(vectors, np.int64)[message],
        message=message,
        hop=hop,
        source=np.asarray(sources, np.int64),
        destination=np.asarray(destinations, np.int64),
        message_vectors=np.asarray(vectors, np.int64),
        ready=ready,
        latency=spec.send_to_receive_cycles,
        spacing=spec.send_spacing_cycles,
    )
