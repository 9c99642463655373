"""Who sends which words to whom in a collective, step by step, on any topology.

Chips form nested groups: the chips of a node, the nodes of a rack, the racks.  Algorithms:

- *hierarchical*: reduce-scatter inside the node, then between nodes of a rack at the same place in
  their node, then between racks; all-gathers back the same way.  Least traffic.
- *one-shot*: whole tensors straight to every chip of the node; then over the cables themselves to
  the other groups, and again inside the node.  1, 3 or 7 hops; least latency.
- *direct*: every message from its first to its last chip.

Words are the unit: 4 vectors (320 lanes of 4 bytes, byte plane by byte plane) that a chip can add.
Shards are whole words, as even as possible.  Knows no cycles and no routes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from chip.isa import LINKS
from interconnect.wires import Ints
from interconnect.wiring import FabricError, Topology

OPERATIONS = (
    "all-reduce", "reduce-scatter", "all-gather", "broadcast", "all-to-all", "point-to-point"
)  # fmt: skip
ALGORITHMS = ("hierarchical", "one-shot", "direct")

#: Bytes and vectors of a word.
WORD_BYTES, WORD_VECTORS = 1280, 4

#: Most members of a group: each of them sends a message to each other.
MAX_GROUP = 2048

#: Above every word number: first word of an empty range, whose end is -1.
_NO_WORD = 1 << 40


@dataclass(frozen=True)
class Step:
    """What happens at the end of a step.

    send, into: buffer numbers; what is sent is the content of ``send`` before the step.
    add: the receiver adds to ``into`` (else it replaces).  words, terms: int64 [chips], how many
    words a chip adds and how many terms each sum has.  merge: (a, b): then buffer a += buffer b.
    """

    send: int
    into: int
    add: bool
    words: Ints
    terms: Ints
    merge: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Traffic:
    """Messages of a collective as columns, int64 [messages], in the order slots are given out.

    ``step``; ``source``, ``destination`` (chips); ``first``, ``words`` (the range of words of the
    sender's buffer; 4 vectors each); ``via``: the directed link to take, -1: any minimal route.
    """

    operation: str
    algorithm: str
    step: Ints
    source: Ints
    destination: Ints
    first: Ints
    words: Ints
    via: Ints
    steps: list[Step]

    @property
    def vectors(self) -> Ints:
        """int64 [messages]: vectors of each message."""
        return self.words * WORD_VECTORS


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


@dataclass
class _Builder:
    """Collects messages step by step."""

    topology: Topology
    sizes: tuple[int, ...]
    rows: list[tuple[Ints, ...]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @property
    def chips(self) -> Ints:
        return np.arange(self.topology.chips, dtype=np.int64)

    def stride(self, level: int) -> int:
        """Chips of one part of a group of this level."""
        return int(np.prod(self.sizes[:level], dtype=np.int64))

    def place(self, level: int) -> Ints:
        """Which part of its group of this level each chip is in."""
        return self.chips // self.stride(level) % self.sizes[level]

    def step(
        self, source: Ints, destination: Ints, first: Ints, end: Ints, *, add: bool,
        via: Ints | None = None, send: int = 0, into: int = 0,
    ) -> None:  # fmt: skip
        """One step; messages of no words are dropped.

        A sum has a term for each message that arrives, and the chip's own unless ``into`` is new.
        """
        route = np.array(-1) if via is None else via
        columns = np.broadcast_arrays(source, destination, first, end - first, route)
        keep = columns[3].ravel() > 0
        flat = [c.ravel()[keep].astype(np.int64) for c in columns]
        self.rows.append((np.full(len(flat[0]), len(self.steps), np.int64), *flat))
        chips = self.topology.chips
        words, terms = np.zeros(chips, np.int64), np.zeros(chips, np.int64)
        if add:
            np.maximum.at(words, flat[1], flat[3])
            terms += np.bincount(flat[1], minlength=chips)
            terms += (terms > 0) & (send == into)
        self.steps.append(Step(send, into, add, words, terms))

    def merge_last(self, into: int, buffer: int) -> None:
        """After the last step every chip adds one buffer to another."""
        s = self.steps[-1]
        self.steps[-1] = Step(
            s.send, s.into, s.add, s.words, s.terms + (s.terms > 0), (*s.merge, (into, buffer))
        )

    def done(self, operation: str, algorithm: str) -> Traffic:
        empty = tuple(np.zeros(0, np.int64) for _ in range(6))
        columns = [np.concatenate(c) for c in zip(*(self.rows or [empty]), strict=True)]
        step, source, destination, first, words, via = columns
        return Traffic(
            operation, algorithm, step, source, destination, first, words, via, self.steps
        )

    # -- hierarchical ----------------------------------------------------------------------------

    def part_range(self, first: Ints, end: Ints, level: int, place: Ints) -> tuple[Ints, Ints]:
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
            result: Ints = np.clip(np.minimum(p, begin + extra) - begin, 0, None) + np.minimum(
                p, wrapped
            )
            return result

        start = first + base * place + more(place)
        return start, first + base * (place + 1) + more(place + 1)

    def nested(self, words: int) -> list[tuple[Ints, Ints]]:
        """The range of every chip at every depth: all words, its share of the node's, ..."""
        ranges = [(np.zeros_like(self.chips), np.full_like(self.chips, words))]
        for level in range(len(self.sizes)):
            ranges.append(self.part_range(*ranges[-1], level, self.place(level)))
        return ranges

    def partners(self, level: int) -> tuple[Ints, Ints]:
        """For every other part in turn: (chip at the same place there, its part) [parts-1, chips].
        """
        parts, place = self.sizes[level], self.place(level)
        there = (place + np.arange(1, parts)[:, None]) % parts
        return self.chips + (there - place) * self.stride(level), there

    def reduce_scatter(self, ranges: list[tuple[Ints, Ints]]) -> None:
        for level in range(len(self.sizes)):
            other, there = self.partners(level)
            first, end = self.part_range(*ranges[level], level, there)
            self.step(self.chips, other, first, end, add=True)

    def all_gather(self, ranges: list[tuple[Ints, Ints]]) -> None:
        for level in reversed(range(len(self.sizes))):
            other, _ = self.partners(level)
            self.step(self.chips, other, *ranges[level + 1], add=False)

    def scatter(self, ranges: list[tuple[Ints, Ints]], root: int) -> None:
        for level in range(len(self.sizes)):
            stride = self.stride(level)
            holds = self.chips // stride == root // stride
            other, there = self.partners(level)
            first, end = self.part_range(*ranges[level], level, there)
            self.step(self.chips, other, first, np.where(holds, end, first), add=False)

    def exchange(self, words: int) -> None:
        """All-to-all through one chip per level: what is for a place goes there in one message."""
        share = self.nested(words)[-1]
        own = (share[1] - share[0]).reshape(self.sizes[::-1])
        depth = len(self.sizes)
        for level in range(depth):
            # To a part goes what any of its chips, or those the later steps reach from it, want,
            # from all chips whose words the earlier steps have brought here.
            later = tuple(range(depth - 1 - level))
            total = np.broadcast_to(own.sum(axis=later, keepdims=True), own.shape)
            total = total.reshape(-1) * self.stride(level)
            other, _ = self.partners(level)
            zero = np.zeros_like(other)
            self.step(self.chips, other, zero, total[other], add=False)

    def all_pairs(self, words: int) -> None:
        """Every chip to every other, at growing distance of their numbers."""
        first, end = self.nested(words)[-1]
        other = (self.chips + np.arange(1, len(self.chips))[:, None]) % len(self.chips)
        self.step(self.chips, other, first[other], end[other], add=False)

    # -- one-shot --------------------------------------------------------------------------------

    def cables(self, level: int) -> tuple[Ints, Ints, Ints, Ints, Ints]:
        """Cables between parts of groups of ``level``, both ways, sorted by the pair of parts.

        Returns (source, destination, directed link, rank in the pair, cables of the pair).
        """
        directed = np.flatnonzero(self.topology.peer.reshape(-1) >= 0)
        source = directed // LINKS
        far = self.topology.peer.reshape(-1)[directed].astype(np.int64)
        small, large = self.stride(level), self.stride(level) * self.sizes[level]
        keep = (source // small != far // small) & (source // large == far // large)
        source, far, directed = source[keep], far[keep], directed[keep]
        pair = (source // small) * (self.topology.chips // small) + far // small
        order = np.argsort(pair, kind="stable")
        source, far, directed, pair = source[order], far[order], directed[order], pair[order]
        begin = np.searchsorted(pair, pair)
        count = np.searchsorted(pair, pair, side="right") - begin
        return source, far, directed, np.arange(len(pair)) - begin, count

    def connected(self, level: int) -> bool:
        """True if every two parts of every group of ``level`` and below share a cable."""
        for k in range(level + 1):
            parts = self.topology.chips // self.stride(k)
            if int((self.cables(k)[3] == 0).sum()) != parts * (self.sizes[k] - 1):
                return False
        return self.sizes[0] == 1 or self.cables(0)[0].size == self.topology.chips * (
            self.sizes[0] - 1
        )

    def one_shot(self, level: int, buffer: int, first: Ints, end: Ints) -> tuple[Ints, Ints]:
        """All-reduce ``buffer`` inside groups of ``level``; first, end: words each chip has.

        Returns the words each chip has afterwards.
        """
        if level == 0:
            other, _ = self.partners(0)
            self.step(self.chips, other, first, end, add=True, send=buffer, into=buffer)
            size = self.sizes[0]
            low = np.where(end > first, first, _NO_WORD).reshape(-1, size).min(1)
            high = np.where(end > first, end, -1).reshape(-1, size).max(1)
            return np.repeat(low, size), np.repeat(high, size)
        first, end = self.one_shot(level - 1, buffer, first, end)
        fresh = 1 + max(s.into for s in self.steps)
        source, far, directed, rank, count = self.cables(level)
        length = np.maximum(end[source] - first[source], 0)
        begin = first[source] + length * rank // count
        stop = first[source] + length * (rank + 1) // count
        self.step(source, far, begin, stop, add=True, via=directed, send=buffer, into=fresh)
        low, high = np.full_like(first, _NO_WORD), np.full_like(first, -1)
        some = stop > begin
        np.minimum.at(low, far[some], begin[some])
        np.maximum.at(high, far[some], stop[some])
        low, high = self.one_shot(level - 1, fresh, low, high)
        self.merge_last(buffer, fresh)
        return np.minimum(first, low), np.maximum(end, high)

    def one_shot_broadcast(self, level: int, roots: Ints, words: int) -> None:
        """From ``roots``, one chip of each group of ``level`` that takes part, to its group."""
        if level == 0:
            size = self.sizes[0]
            other = roots // size * size + (roots + np.arange(1, size)[:, None]) % size
            zero = np.zeros_like(other)
            self.step(roots, other, zero, zero + words, add=False)
            return
        self.one_shot_broadcast(level - 1, roots, words)
        source, far, directed, rank, _ = self.cables(level)
        small = self.stride(level)
        use = (rank == 0) & np.isin(source // small, roots // small)
        source, far, directed = source[use], far[use], directed[use]
        zero = np.zeros_like(far)
        self.step(source, far, zero, zero + words, add=False, via=directed)
        self.one_shot_broadcast(level - 1, far, words)


def algorithms_for(operation: str, topology: Topology) -> tuple[str, ...]:
    """Algorithms that exist for an operation on a topology."""
    sizes = group_sizes(topology)
    if operation in ("all-reduce", "broadcast"):
        shot = _Builder(topology, sizes).connected(len(sizes) - 1)
        return ("hierarchical", "one-shot") if shot else ("hierarchical",)
    if operation == "point-to-point":
        return ("direct",)
    if operation == "all-to-all" and len(sizes) > 1 and topology.chips <= 1056:
        return ("hierarchical", "direct")
    return ("hierarchical",)


def collective_traffic(
    topology: Topology, operation: str, algorithm: str, words: int, *, root: int = 0,
    destination: int | None = None,
) -> Traffic:  # fmt: skip
    """Messages of ``operation`` on ``words`` words.

    words: all-reduce, reduce-scatter, all-to-all: on every chip before; all-gather: on every chip
    after; broadcast, point-to-point: at chip ``root``.  destination: of point-to-point (default:
    the last chip).  Raises FabricError with one line for what does not exist.
    """
    if operation not in OPERATIONS:
        raise FabricError(f"collective {operation!r}: known are {', '.join(OPERATIONS)}")
    known = algorithms_for(operation, topology)
    if algorithm not in known:
        raise FabricError(f"{operation} by {algorithm!r} on {topology.chips} chips: {known}")
    if words < 1 or not 0 <= root < topology.chips:
        raise FabricError(f"{words} words from chip {root}: at least 1, of {topology.chips} chips")
    sizes = group_sizes(topology)
    b = _Builder(topology, sizes)
    top = len(sizes) - 1
    ranges = b.nested(words)
    if algorithm == "one-shot":
        if operation == "all-reduce":
            b.one_shot(top, 0, *ranges[0])
        else:
            b.one_shot_broadcast(top, np.array([root], np.int64), words)
    elif operation == "point-to-point":
        end = np.array([topology.chips - 1 if destination is None else destination])
        b.step(np.array([root]), end, np.zeros(1, np.int64), np.array([words]), add=False)
    elif operation == "all-to-all":
        if algorithm == "direct":
            b.all_pairs(words)
        else:
            b.exchange(words)
    else:
        if operation in ("all-reduce", "reduce-scatter"):
            b.reduce_scatter(ranges)
        if operation == "broadcast":
            b.scatter(ranges, root)
        if operation != "reduce-scatter":
            b.all_gather(ranges)
    return b.done(operation, algorithm)
