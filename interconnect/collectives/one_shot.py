"""One-shot collectives as steps: whole tensors to every chip of a group, by the cables themselves.

Inside a node everybody sends to everybody.  Between groups of a level every cable carries words
from the chip at its one end to the chip at its other: of two groups with several cables each
carries a share.  What arrived over cables is spread inside the node then, and added to the node's
own sum.  Knows topologies and buffers; knows no cycles.

A chip may hold several ranges of a buffer, each of other terms: jobs are cut where any begins or
ends.  Terms are the sums made before, then those of the senders in ascending order of chips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from chip.isa import LINKS
from interconnect.collectives.steps import (
    OWN,
    PARTIAL,
    RESULT,
    SOURCE,
    Groups,
    Step,
    stacked,
)
from interconnect.wires import Ints
from interconnect.wiring import Topology


@dataclass(frozen=True)
class _Ranges:
    """Words [first, end) on chips, int64 [n] each; sorted by chip and word where they are held."""

    chip: Ints
    first: Ints
    end: Ints


def cables_between(topology: Topology, groups: Groups, level: int) -> tuple[Ints, ...]:
    """Cables between parts of groups of ``level``, both ways, sorted by the pair of parts.

    Returns (source, destination, directed link, rank in the pair, cables of the pair).
    """
    directed = np.flatnonzero(topology.peer.reshape(-1) >= 0)
    source = directed // LINKS
    far = topology.peer.reshape(-1)[directed].astype(np.int64)
    small, large = groups.stride(level), groups.period(level)
    keep = (source // small != far // small) & (source // large == far // large)
    source, far, directed = source[keep], far[keep], directed[keep]
    pair = (source // small) * (topology.chips // small) + far // small
    order = np.argsort(pair, kind="stable")
    source, far, directed, pair = source[order], far[order], directed[order], pair[order]
    begin = np.searchsorted(pair, pair)
    cables = np.searchsorted(pair, pair, side="right") - begin
    return source, far, directed, np.arange(len(pair)) - begin, cables


def connected(topology: Topology, groups: Groups) -> bool:
    """True if every two parts of every group share a cable, and every two chips of a node."""
    for level in range(groups.depth):
        parts = topology.chips // groups.stride(level)
        if int((cables_between(topology, groups, level)[3] == 0).sum()) != parts * (
            groups.sizes[level] - 1
        ):
            return False
    size = groups.sizes[0]
    return size == 1 or cables_between(topology, groups, 0)[0].size == topology.chips * (size - 1)


@dataclass
class _Shots:
    """Collects the steps of a one-shot collective on ``words`` words."""

    topology: Topology
    groups: Groups
    words: int
    steps: list[Step] = field(default_factory=list)

    def step(
        self,
        messages: Ints,
        own: list[tuple[int, _Ranges]],
        target: int,
        sums: Sequence[tuple[int, _Ranges]] = (),
    ) -> _Ranges:
        """One step; returns what every chip has in ``target`` then.

        messages: [m, 8] as of ``Step``.  own: (buffer, ranges) each chip adds of its own at its
        place among the senders; sums: those it adds before all others.
        """
        arrived = (messages[:, 1], messages[:, 3], messages[:, 3] + messages[:, 4])
        rows = [(*arrived, np.arange(len(messages)), 0 * messages[:, 0], messages[:, 0])]
        mine = [(buffer, ranges, ranges.chip) for buffer, ranges in own]
        for number, (buffer, ranges) in enumerate(sums):
            mine.append((buffer, ranges, np.full_like(ranges.chip, number - len(sums))))
        for buffer, ranges, order in mine:
            place = (np.full_like(ranges.chip, OWN), np.full_like(ranges.chip, buffer), order)
            rows.append((ranges.chip, ranges.first, ranges.end, *place))
        table = np.concatenate([stacked(*row) for row in rows])
        chip, first, end, message, source, _ = table[np.argsort(table[:, 5], kind="stable")].T
        jobs, job, of = self.cut(chip, first, end)

        def terms() -> Ints:
            at = jobs[job, 1] - np.where(message[of] == OWN, 0, first[of])
            return stacked(job, message[of], source[of], at, 0)

        self.steps.append(Step(messages, target, jobs, terms))
        return _joined(jobs)

    def cut(self, chip: Ints, first: Ints, end: Ints) -> tuple[Ints, Ints, Ints]:
        """Jobs of ranges that overlap, cut where any begins or ends: (jobs, job, range of terms).

        Terms are job after job, in the order of the ranges.
        """
        wide = self.words + 1
        points = np.unique(np.concatenate([chip * wide + first, chip * wide + end]))
        low = np.searchsorted(points, chip * wide + first)
        pieces = np.searchsorted(points, chip * wide + end) - low
        interval = np.repeat(np.arange(len(chip)), pieces)
        piece = np.arange(len(interval)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        piece += low[interval]
        order = np.argsort(piece, kind="stable")
        used, job, terms = np.unique(piece[order], return_inverse=True, return_counts=True)
        at, words = points[used], np.diff(points)[used]
        return stacked(at // wide, at % wide, words, 1, 0, terms), job, interval[order]

    def inside(self, buffer: int | Ints, held: _Ranges) -> Ints:
        """Messages of what chips hold to all others of their node."""
        size = self.groups.sizes[0]
        node = held.chip // size * size
        to = node + (held.chip - node + np.arange(1, size)[:, None]) % size
        first, words = held.first, held.end - held.first
        columns = (held.chip, to, buffer, first, words, 1, 0, -1)
        return stacked(*(np.broadcast_to(c, to.shape).ravel() for c in columns))

    def across(self, level: int, buffer: int, held: _Ranges) -> Ints:
        """Messages of what chips hold over the cables of a level, each a share of every range."""
        source, far, directed, rank, cables = cables_between(self.topology, self.groups, level)
        begin = np.searchsorted(held.chip, source)
        ranges = np.searchsorted(held.chip, source, side="right") - begin
        cable = np.repeat(np.arange(len(source)), ranges)
        at = np.arange(len(cable)) - np.repeat(np.cumsum(ranges) - ranges, ranges) + begin[cable]
        length = held.end[at] - held.first[at]
        first = held.first[at] + length * rank[cable] // cables[cable]
        end = held.first[at] + length * (rank[cable] + 1) // cables[cable]
        some = end > first
        cable, first, end = cable[some], first[some], end[some]
        words = end - first
        return stacked(source[cable], far[cable], buffer, first, words, 1, 0, directed[cable])

    def reduce(
        self,
        level: int,
        buffer: int,
        held: _Ranges,
        sums: list[tuple[int, _Ranges]],
        target: int,
        fresh: count[int],
    ) -> _Ranges:
        """All-reduce ``buffer``, of which chips hold ``held``, inside groups of ``level``.

        sums: of the groups so far, that are added to it.  Returns what ``target`` holds.
        """
        if level == 0:
            return self.step(self.inside(buffer, held), [(buffer, held)], target, sums)
        part = next(fresh)
        there = self.reduce(level - 1, buffer, held, [], part, fresh)
        landed = next(fresh)
        crossed = self.step(self.across(level, part, there), [], landed)
        return self.reduce(level - 1, landed, crossed, [*sums, (part, there)], target, fresh)

    def broadcast(self, level: int, roots: Ints) -> None:
        """From ``roots``, one chip or more of each group that takes part, to their groups."""
        if level == 0:
            begins = not self.steps
            held = self.whole(roots)
            own = [(SOURCE, held)] if begins else []
            self.step(self.inside(SOURCE if begins else RESULT, held), own, RESULT)
            return
        self.broadcast(level - 1, roots)
        source, far, directed, rank, _ = cables_between(self.topology, self.groups, level)
        small = self.groups.stride(level)
        use = (rank == 0) & np.isin(source // small, roots // small)
        source, far, directed = source[use], far[use], directed[use]
        self.step(stacked(source, far, RESULT, 0, self.words, 1, 0, directed), [], RESULT)
        self.broadcast(level - 1, np.sort(far))

    def whole(self, chips: Ints) -> _Ranges:
        """All words on chips."""
        return _Ranges(chips, np.zeros_like(chips), np.full_like(chips, self.words))


def _joined(jobs: Ints) -> _Ranges:
    """Ranges that the jobs write, neighbours as one."""
    chip, first, end = jobs[:, 0], jobs[:, 1], jobs[:, 1] + jobs[:, 2]
    new = np.ones(len(jobs), bool)
    new[1:] = (chip[1:] != chip[:-1]) | (first[1:] != end[:-1])
    return _Ranges(chip[new], first[new], end[np.append(np.flatnonzero(new)[1:], len(jobs)) - 1])


def one_shot_all_reduce(topology: Topology, groups: Groups, words: int) -> list[Step]:
    """Sums of ``words`` words on every chip.

    A chip adds the sum of its own node first, so floating-point sums of several nodes have other
    last bits on other nodes.
    """
    shots = _Shots(topology, groups, words)
    held = shots.whole(groups.chip)
    shots.reduce(groups.depth - 1, SOURCE, held, [], RESULT, count(PARTIAL))
    return shots.steps


def one_shot_broadcast(topology: Topology, groups: Groups, words: int, root: int) -> list[Step]:
    """``words`` words of chip ``root`` on every chip."""
    shots = _Shots(topology, groups, words)
    shots.broadcast(groups.depth - 1, np.array([root], np.int64))
    return shots.steps
