"""A collective as steps: who sends which words to whom, and what is added or copied then.

The one description of a collective.  Timing reads the messages and the cost of the jobs, programs
are lowered from the same table (``schedule``, ``blocks``).  Chips form nested groups of any depth:
the chips of a node, the nodes of a rack, the racks.  Algorithms:

- *hierarchical*: level by level.  Sums are scattered inside the node, then between nodes of a rack
  at the same place in their node, then between racks, and gathered back.  Least traffic.
- *one-shot*: whole tensors straight to every chip of the node; then over the cables themselves to
  the other groups, and again inside the node (``one_shot``).  1, 3 or 7 hops; least latency.
- *direct*: every message from its first to its last chip.

Words are the unit: 4 vectors (320 lanes of 4 bytes, byte plane by byte plane) that a chip can add.
Every sum has a defined order of terms, so that floating-point bits are reproducible.  Knows no
routes, cycles or instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from interconnect.wires import Ints
from interconnect.wiring import FabricError, Topology

OPERATIONS = (
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "broadcast",
    "all-to-all",
    "point-to-point",
)
ALGORITHMS = ("hierarchical", "one-shot", "direct")

#: Operations whose tensor is made of one part of whole words for every chip.
PARTED = ("reduce-scatter", "all-gather", "all-to-all")

#: Bytes and vectors of a word.
WORD_BYTES, WORD_VECTORS = 1280, 4

#: Most members of a group: each of them sends a message to each other.
MAX_GROUP = 2048

#: Buffers of a chip: the caller's words, the result, and two for what is in between.
SOURCE, RESULT, PARTIAL, SHARD = 0, 1, 2, 3

#: In a term's ``message`` column: the term lies in one of the chip's own buffers.
OWN = -1


@dataclass(frozen=True)
class Step:
    """Messages that go out together, and what is done when the last has arrived.

    messages: int64 [m, 8], in the order in which they get link slots: source chip, destination
    chip, buffer, first word, inner, outer, stride, via.  ``outer`` groups of ``inner`` consecutive
    words travel, one group every ``stride`` words; via: the directed link that is the whole route,
    or -1 for any minimal one.
    target: the buffer the jobs write.
    jobs: int64 [j, 6], ascending by chip: chip, first word, words, groups, stride, terms.
    ``groups`` groups of ``words`` words, one every ``stride`` words, each the sum of ``terms``
    terms; one term is a copy.
    """

    messages: Ints
    target: int
    jobs: Ints
    make_terms: Callable[[], Ints]

    @cached_property
    def terms(self) -> Ints:
        """int64 [t, 5], job after job in the order in which they are added; made when asked for.

        job, message or OWN, buffer (of OWN terms), first word (of the buffer or of the message's
        words), stride (words from group to group).
        """
        return self.make_terms()


def words_of(messages: Ints) -> Ints:
    """Words of each message, int64 [m]."""
    words: Ints = messages[:, 4] * messages[:, 5]
    return words


@dataclass(frozen=True)
class Groups:
    """Nested groups of chips; sizes innermost first, e.g. (8, 9, 145) for 10,440 chips."""

    sizes: tuple[int, ...]

    @property
    def depth(self) -> int:
        """Levels of groups."""
        return len(self.sizes)

    @property
    def chip(self) -> Ints:
        """int64 [chips]: all chip numbers."""
        return np.arange(prod(self.sizes), dtype=np.int64)

    def stride(self, level: int) -> int:
        """Chips of one part of a group of this level."""
        return prod(self.sizes[:level])

    def period(self, level: int) -> int:
        """Chips of a group of this level."""
        return prod(self.sizes[: level + 1])

    def rest(self, level: int) -> int:
        """Groups of this level."""
        return prod(self.sizes[level + 1 :])

    def place(self, level: int) -> Ints:
        """int64 [chips]: which part of its group of this level each chip is in."""
        return self.chip // self.stride(level) % self.sizes[level]

    def partners(self, level: int) -> tuple[Ints, Ints]:
        """For every other part in turn: (chip at the same place in it, part) [parts - 1, chips]."""
        parts, place = self.sizes[level], self.place(level)
        there = (place + np.arange(1, parts)[:, None]) % parts
        return self.chip + (there - place) * self.stride(level), there

    def members(self, level: int) -> Ints:
        """int64 [chips, parts]: who exchanges with each chip at this level, itself included."""
        away = np.arange(self.sizes[level]) - self.place(level)[:, None]
        members: Ints = self.chip[:, None] + away * self.stride(level)
        return members

    # -- shares of words that need not divide --------------------------------------------------

    def part(self, first: Ints, end: Ints, level: int, place: Ints) -> tuple[Ints, Ints]:
        """Words of part ``place`` of [first, end): as even as possible, in order of the parts.

        The parts that get a word more than others begin at ``first`` modulo the parts, so that
        over many ranges every part gets its share.
        """
        parts = self.sizes[level]
        base, extra = (end - first) // parts, (end - first) % parts
        begin = first % parts
        wrapped = np.clip(begin + extra - parts, 0, None)

        def more(p: Ints) -> Ints:
            """Parts before p with one word more."""
            ahead = np.clip(np.minimum(p, begin + extra) - begin, 0, None)
            result: Ints = ahead + np.minimum(p, wrapped)
            return result

        start = first + base * place + more(place)
        return start, first + base * (place + 1) + more(place + 1)

    def nested(self, words: int) -> list[tuple[Ints, Ints]]:
        """The range of every chip at every depth: all words, its share of the node's, ..."""
        ranges = [(np.zeros_like(self.chip), np.full_like(self.chip, words))]
        for level in range(self.depth):
            ranges.append(self.part(*ranges[-1], level, self.place(level)))
        return ranges


def group_sizes(topology: Topology) -> tuple[int, ...]:
    """Sizes of the nested groups, innermost first, e.g. (8, 9, 145); their product is ``chips``.

    The chips of a topology file are one group.  Raises FabricError for groups above ``MAX_GROUP``.
    """
    node, rack, chips = topology.chips_per_node, topology.nodes_per_rack, topology.chips
    sizes = tuple(size for size in (node, rack, chips // (node * rack)) if size > 1) or (1,)
    if max(sizes) > MAX_GROUP:
        raise FabricError(
            f"topology {topology.name}: a group of {max(sizes)} chips or nodes; collectives take "
            f"groups of {MAX_GROUP} at most"
        )
    return sizes


@dataclass(frozen=True)
class _Exchange:
    """Messages from every chip to its partners of a level, those of no words left out.

    number: int64 [parts - 1, chips], of the message to each partner in turn.
    """

    groups: Groups
    level: int
    messages: Ints
    number: Ints

    def incoming(self) -> Ints:
        """int64 [chips, parts]: number of the message from each part, OWN from the own one."""
        parts, place = self.groups.sizes[self.level], self.groups.place(self.level)[:, None]
        turn = (place - np.arange(parts)) % parts  # how far on the receiver is, 0: itself
        members = self.groups.members(self.level)
        padded = np.concatenate([np.full((1, len(place)), OWN), self.number])
        numbers: Ints = padded[turn, members]
        return numbers


def _exchange(
    groups: Groups,
    level: int,
    buffer: int,
    first: Ints | int,
    inner: Ints | int,
    outer: int = 1,
    stride: int = 0,
) -> _Exchange:
    """first, inner: of the message to each partner in turn, [parts - 1, chips] or broadcast."""
    to, _ = groups.partners(level)
    columns = [np.broadcast_to(c, to.shape) for c in (groups.chip, to, buffer, first, inner)]
    keep = columns[4].ravel() > 0
    messages = np.empty((int(keep.sum()), 8), np.int64)
    for i, column in enumerate(columns):
        messages[:, i] = column.ravel()[keep]
    messages[:, 5:] = outer, stride, -1
    number = np.where(keep, np.cumsum(keep) - 1, OWN).reshape(to.shape)
    return _Exchange(groups, level, messages, number)


@dataclass(frozen=True)
class _Words:
    """Words in a buffer: groups of ``words`` from ``first`` on, one every ``stride``."""

    buffer: int
    first: Ints
    words: Ints
    groups: int = 1
    stride: int = 0


def _sums(sent: _Exchange, own: _Words, into: _Words) -> Step:
    """Every chip adds what all parts sent and its own words, in ascending order of the parts.

    own, into: first and words int64 [chips].
    """
    parts = sent.groups.sizes[sent.level]
    keep = np.flatnonzero(into.words > 0)
    jobs = stacked(keep, into.first[keep], into.words[keep], into.groups, into.stride, parts)

    def terms() -> Ints:
        message = sent.incoming()[keep].ravel()
        mine = message == OWN
        job = np.repeat(np.arange(len(keep)), parts)
        first = np.where(mine, own.first[keep][job], 0)
        stride = np.where(mine, own.stride, into.words[keep][job])
        return stacked(job, message, own.buffer, first, stride)

    return Step(sent.messages, into.buffer, jobs, terms)


def _copies(sent: _Exchange, own: _Words, into: _Words) -> Step:
    """Every chip copies what each part sent, and its own words, to their places.

    own: first int64 [chips]; into: first and words int64 [chips, parts], no words: no copy.
    """
    parts = sent.groups.sizes[sent.level]
    words = into.words.ravel()
    keep = np.flatnonzero(words > 0)
    at = into.first.ravel()[keep]
    jobs = stacked(keep // parts, at, words[keep], into.groups, into.stride, 1)

    def terms() -> Ints:
        message = sent.incoming().ravel()[keep]
        mine = message == OWN
        first = np.where(mine, own.first[keep // parts], 0)
        stride = np.where(mine, own.stride, words[keep])
        return stacked(np.arange(len(keep)), message, own.buffer, first, stride)

    return Step(sent.messages, into.buffer, jobs, terms)


def stacked(*columns: Ints | int) -> Ints:
    """int64 [rows, columns]."""
    rows = len(np.atleast_1d(columns[0]))
    table = np.empty((rows, len(columns)), np.int64)
    for i, column in enumerate(columns):
        table[:, i] = column
    return table


# -- hierarchical --------------------------------------------------------------------------------


def _between(level: int, depth: int) -> tuple[int, int]:
    """Buffers a level of sums reads and writes: from SOURCE by turns to RESULT."""
    reads = SOURCE if level == 0 else (SHARD, PARTIAL)[level % 2]
    return reads, RESULT if level == depth - 1 else (PARTIAL, SHARD)[level % 2]


def all_reduce(groups: Groups, words: int) -> list[Step]:
    """Sums of ``words`` words on every chip: scattered level by level, gathered back."""
    steps, ranges = [], groups.nested(words)
    for level in range(groups.depth):
        reads, writes = _between(level, groups.depth)
        first, end = groups.part(*ranges[level], level, groups.partners(level)[1])
        sent = _exchange(groups, level, reads, first, end - first)
        first, end = ranges[level + 1]
        own = _Words(reads, first, end - first)
        steps.append(_sums(sent, own, _Words(writes, first, end - first)))
    return steps + _gathered(groups, ranges)


def _gathered(groups: Groups, ranges: list[tuple[Ints, Ints]]) -> list[Step]:
    """Every chip's share of RESULT, at its place in everybody's RESULT."""
    steps = []
    for level in reversed(range(groups.depth)):
        first, end = ranges[level + 1]
        sent = _exchange(groups, level, RESULT, first, end - first)
        member = groups.members(level)
        words = np.where(member == groups.chip[:, None], 0, (end - first)[member])
        own = _Words(RESULT, first, end - first)
        steps.append(_copies(sent, own, _Words(RESULT, first[member], words)))
    return steps


def broadcast(groups: Groups, words: int, root: int) -> list[Step]:
    """``words`` words of chip ``root`` on every chip: scattered level by level, gathered back."""
    steps, ranges = [], groups.nested(words)
    for level in range(groups.depth):
        holds = groups.chip // groups.stride(level) == root // groups.stride(level)
        first, end = groups.part(*ranges[level], level, groups.partners(level)[1])
        buffer = SOURCE if level == 0 else RESULT
        sent = _exchange(groups, level, buffer, first, np.where(holds, end - first, 0))
        first, end = ranges[level + 1]
        member = groups.members(level)
        # the root takes its own share into RESULT, from there all go on alike
        takes = holds[member] & ((member != groups.chip[:, None]) | (level == 0))
        takes_words = np.where(takes, (end - first)[:, None], 0)
        at = np.broadcast_to(first[:, None], member.shape)
        own = _Words(SOURCE, first, end - first)
        steps.append(_copies(sent, own, _Words(RESULT, at, takes_words)))
    return steps + _gathered(groups, ranges)


def reduce_scatter(groups: Groups, words: int) -> list[Step]:
    """Sums of the ``words`` words for chip j, from word j * words of every source, on chip j."""
    steps = []
    for level in range(groups.depth):
        parts, rest = groups.sizes[level], groups.rest(level)
        reads, writes = _between(level, groups.depth)
        there = groups.partners(level)[1] * words
        sent = _exchange(groups, level, reads, there, words, rest, parts * words)
        each = np.full_like(groups.chip, words)
        own = _Words(reads, groups.place(level) * words, each, rest, parts * words)
        steps.append(_sums(sent, own, _Words(writes, 0 * each, each, rest, words)))
    return steps


def all_gather(groups: Groups, words: int) -> list[Step]:
    """Every chip's ``words`` words on every chip, those of chip j from word j * words on."""
    steps = []
    for level in reversed(range(groups.depth)):
        top, period, rest = level == groups.depth - 1, groups.period(level), groups.rest(level)
        reads = SOURCE if top else RESULT
        first = 0 * groups.chip if top else groups.chip % period * words
        sent = _exchange(groups, level, reads, first, words, rest, period * words)
        member = groups.members(level)
        takes = (member != groups.chip[:, None]) | top
        own = _Words(SOURCE, first, first)
        into = _Words(
            RESULT, member % period * words, np.where(takes, words, 0), rest, period * words
        )
        steps.append(_copies(sent, own, into))
    return steps


def all_to_all(groups: Groups, words: int) -> list[Step]:
    """Words j * words on of chip i come to word i * words on of chip j.

    Level by level: what is for any chip of a part goes to the own partner there in one message.
    """
    steps = []
    for level in range(groups.depth):
        run, period, rest = groups.stride(level) * words, groups.period(level), groups.rest(level)
        there = groups.partners(level)[1] * run
        reads = SOURCE if level == 0 else RESULT
        sent = _exchange(groups, level, reads, there, run, rest, period * words)
        member = groups.members(level)
        takes = (member != groups.chip[:, None]) | (level == 0)
        at = np.broadcast_to(np.arange(groups.sizes[level]) * run, member.shape)
        own = _Words(SOURCE, groups.place(level) * run, groups.chip, rest, period * words)
        into = _Words(RESULT, at, np.where(takes, run, 0), rest, period * words)
        steps.append(_copies(sent, own, into))
    return steps


def words_needed(operation: str, chips: int, words: int) -> tuple[int, int]:
    """Words of (source, result) on every chip; broadcast reads the root's source only."""
    wide = chips * words
    return {
        "all-reduce": (words, words),
        "reduce-scatter": (wide, words),
        "all-gather": (words, wide),
        "broadcast": (words, words),
        "all-to-all": (wide, wide),
    }[operation]
