"""Sums of words over groups of chips that a compiler chose, for a program it has begun.

A reduce-scatter inside every group: each member keeps a share of every range of words, receives
that share of all others, and adds it up in the order of the members: ((p0 + p1) + p2) + ...  The
groups need not be nodes: messages take minimal routes, the least loaded of a few, and all groups
share the cables.  Ranges are cut into as many pieces as give the fewest cycles.  Where a link's
buffer cannot hold what comes at once, the shares go in rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from chip.isa import LINKS, Op
from chip.program import Program
from chip.scheduling import CompileError
from chip.spec import ChipSpec
from interconnect.collectives.blocks import FabricBlocks
from interconnect.collectives.quads import quads_of
from interconnect.collectives.schedule import TimedSteps, schedule_steps
from interconnect.collectives.steps import OWN, WORD_VECTORS, Step
from interconnect.wires import Ints, Quad, WireSchedule, link_frames
from interconnect.wiring import Topology

#: Into how many pieces ranges are cut for a trial: a message waits for all links of its route at
#: once, so shorter ones leave fewer gaps, and each costs a few cycles of its own.
_PIECES = (1, 4, 8)
_MOST_ROUNDS = 64


@dataclass(frozen=True)
class WordRange:
    """``words`` 4-byte words of working quad ``quad``, from word ``first`` on."""

    quad: int
    first: int
    words: int

    def share(self, member: int, members: int) -> tuple[int, int]:
        """First word, and the one behind the last, whose sums ``member`` of ``members`` keeps."""
        begin, end = (self.words * i // members for i in (member, member + 1))
        return self.first + begin, self.first + end

    def cut(self, pieces: int) -> list[WordRange]:
        """The same words in at most ``pieces`` ranges."""
        borders = [self.words * i // pieces for i in range(pieces + 1)]
        return [WordRange(self.quad, self.first + a, b - a) for a, b in pairwise(borders) if b > a]


@dataclass(frozen=True)
class GroupSums:
    """Programs that add ranges up inside groups, all chips from one cycle on.

    programs[program_of_chip[c]]: of chip c, to be put beside what runs before.  cycles: until the
    last sum is readable.  ranges: as they were shared, in pieces.  rounds: of messages, one after
    another.
    """

    programs: list[Program]
    program_of_chip: list[int]
    cycles: int
    ranges: tuple[WordRange, ...]
    rounds: int


def working_quads(spec: ChipSpec) -> tuple[Quad, ...]:
    """The four quads whose words ``sum_over_groups`` takes and leaves, nearest to the VXM first."""
    return tuple(quads_of(spec).working)


def receiving_slices(spec: ChipSpec) -> frozenset[int]:
    """MEM queues whose words from ``link_first`` on take what links receive."""
    return frozenset(q for quad in link_frames(spec).received.values() for q in quad)


def sum_over_groups(
    topology: Topology,
    spec: ChipSpec,
    groups: Ints,
    ranges: Sequence[WordRange],
    target: tuple[int, int],
    link_first: int,
    ready: int,
    add: Op,
) -> GroupSums:
    """Add ``ranges`` up over each group of ``groups``, int64 [groups, members].

    ranges: the same on every chip, readable from cycle ``ready`` on.  target: working quad and
    first word of a member's sums: its shares of the ranges, one after another.  link_first: the
    first word of what links receive.  add: ADD_I32 or ADD_F32.  Raises CompileError when not even
    many rounds of messages fit the links' buffers.
    """
    best: tuple[list[WordRange], list[Step], TimedSteps] | None = None
    for pieces in _PIECES:
        cut = [piece for words in ranges for piece in words.cut(pieces)]
        steps, launch = _in_rounds(topology, spec, groups, cut, target, link_first, ready)
        if best is None or launch.cycles < best[2].cycles:
            best = cut, steps, launch
    assert best is not None
    cut, steps, launch = best
    fabric = FabricBlocks(topology, spec, link_first)
    for step, wires, arrived in zip(steps, launch.wires, launch.arrived, strict=True):
        fabric.move(step, wires)
        fabric.compute(step, arrived, add)
    programs, program_of_chip = fabric.programs(launch.cycles)
    return GroupSums(programs, program_of_chip, launch.cycles, tuple(cut), len(steps))


def _in_rounds(
    topology: Topology,
    spec: ChipSpec,
    groups: Ints,
    ranges: Sequence[WordRange],
    target: tuple[int, int],
    link_first: int,
    ready: int,
) -> tuple[list[Step], TimedSteps]:
    """Steps and slots with the fewest rounds found that the links' buffers hold."""
    most, rounds = spec.words_per_slice - link_first, 1
    while True:
        steps = [_step(groups, ranges, target, turn, rounds) for turn in range(rounds)]
        launch = schedule_steps(topology, steps, spec, ready=ready)
        needed = max(_received(topology, wires) for wires in launch.wires)
        if needed <= most:
            return steps, launch
        rounds = max(rounds + 1, rounds * -(-needed // max(1, most)))
        if rounds > _MOST_ROUNDS:
            raise CompileError(
                f"sums over {groups.shape[1]} chips: links receive {needed} words in one of "
                f"{_MOST_ROUNDS} rounds, their buffers hold {most}; use fewer rows of chips or "
                "smaller matrices"
            )


def _step(
    groups: Ints, ranges: Sequence[WordRange], target: tuple[int, int], turn: int, rounds: int
) -> Step:
    """Round ``turn`` of ``rounds``: the messages of all groups, and the sums of each member."""
    members = groups.shape[1]
    kept: list[list[tuple[WordRange, int, int, int]]] = []  # range, first, words, first of the sums
    for member in range(members):
        at, parts = target[1], []
        for words in ranges:
            low, high = words.share(member, members)
            begin, end = ((high - low) * i // rounds for i in (turn, turn + 1))
            if end > begin:
                parts.append((words, low + begin, end - begin, at + begin))
            at += high - low
        kept.append(parts)
    messages: list[tuple[int, ...]] = []
    number: dict[tuple[int, int, int], int] = {}  # by (sender, owner, part)
    for away in range(1, members):
        for group in groups.tolist():
            for place, sender in enumerate(group):
                owner = (place + away) % members
                for part, (words, first, count, _) in enumerate(kept[owner]):
                    number[sender, group[owner], part] = len(messages)
                    messages.append((sender, group[owner], words.quad, first, count, 1, 0, -1))
    jobs: list[tuple[int, ...]] = []
    terms: list[tuple[int, ...]] = []
    order = sorted(
        (chip, g, i) for g, row in enumerate(groups.tolist()) for i, chip in enumerate(row)
    )
    for chip, group_number, place in order:
        for part, (words, first, count, sums) in enumerate(kept[place]):
            for sender in groups[group_number].tolist():
                own = sender == chip
                message = OWN if own else number[sender, chip, part]
                terms.append((len(jobs), message, words.quad, first if own else 0, 0))
            jobs.append((chip, sums, count, 1, 0, members))
    table = np.array(terms, np.int64).reshape(-1, 5)
    return Step(
        np.array(messages, np.int64).reshape(-1, 8),
        target[0],
        np.array(jobs, np.int64).reshape(-1, 6),
        lambda: table,
    )


def _received(topology: Topology, wires: WireSchedule) -> int:
    """The most words that any link of any chip receives."""
    peer = topology.peer[wires.chip, wires.link].astype(np.int64)
    entry = topology.peer_link[wires.chip, wires.link].astype(np.int64)
    words = np.bincount(peer * LINKS + entry, wires.vectors // WORD_VECTORS, 1)
    return int(words.max())
