"""Rigid bundles of blocks, and what each takes of the machine, cycle by cycle.

A resource is a row of the reservation table: issue slots of queues, SRAM slice ports, streams,
plane buffers, installed planes, accumulators.  A row has up to eight parts, one bit each: a port
has its banks, the diagonal of a stream the segments of its way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chip import isa
from chip.isa import Op
from chip.program import gang_skew
from chip.scheduling.places import ALL_BANKS, Place, Symbol, banks_of

QUEUE = 0
STORE = 144  # MEM queues issue one read-like and one write-like instruction per cycle
ACC = STORE + 88
STREAM = ACC + 4
PORT = STREAM + isa.STREAMS
BUFFER = PORT + 88
PLANE = BUFFER + 4
LINK = PLANE + 4
ROWS = LINK + isa.LINKS
MARGIN = 64  # diagonals of streams start before cycle 0

#: The last positions of a stream's segments from west to east: edge and SXM, two of strips, near
#: slices; then the same from the VXM on.
_SEGMENT_ENDS = (9, 13, 18, 22, 26, 30, 35, 45)
_SEGMENT_NAMES = (
    *("west edge", "west strips", "west strips", "west near slices"),
    *("east near slices", "east strips", "east strips", "east edge"),
)
_EVERY_PART = 255

Ints = NDArray[np.int64]


def _segments(start: int, end: int) -> int:
    """The segments, one bit each, of a way between two positions."""
    low, high = min(start, end), max(start, end)
    bits, first = 0, isa.WEST_EDGE
    for number, last in enumerate(_SEGMENT_ENDS):
        if low < last and high > first:
            bits |= 1 << number
        first = last
    return bits


def resource_name(row: int, parts: int) -> str:
    """Readable name of a resource, or of parts of it."""
    if row < STORE:
        return f"issue of {isa.queue_name(row)}"
    if row < ACC:
        return f"issue of stores, {isa.queue_name(row - STORE)}"
    if row < STREAM:
        return f"accumulators of plane {row - ACC}"
    if row < PORT:
        own = [name for bit, name in enumerate(_SEGMENT_NAMES) if parts >> bit & 1]
        return f"stream {isa.stream_name(row - STREAM)}, {own[0]}"
    if row < BUFFER:
        banks = [str(bank) for bank in range(isa.BANKS) if parts >> bank & 1]
        return f"port of {isa.queue_name(row - PORT)}, bank {' or '.join(banks)}"
    if row < PLANE:
        return f"buffer of plane {row - BUFFER}"
    return f"plane {row - PLANE}" if row < LINK else f"link {row - LINK}"


@dataclass(frozen=True)
class Claim:
    """What a group takes or holds: int64 [n] rows and cycles, each pair once; uint8 [n] parts."""

    rows: Ints
    cycles: Ints
    parts: NDArray[np.uint8]


@dataclass(frozen=True)
class _Drive:
    """Streams driven from a position on, as far as ``end`` or the last consumer of ``tag``."""

    streams: range
    diagonals: Ints
    start: int
    end: int | None
    tag: int


@dataclass
class Group:
    """Blocks with cycles relative to the group's start, and the resources they take.

    words_per_bank: of the chip; 0: unknown, then every word may lie in every bank.
    """

    words_per_bank: int = 0
    blocks: list[dict[str, int]] = field(default_factory=list)
    symbols: list[Symbol | None] = field(default_factory=list)
    gang_of: list[tuple[int, ...] | None] = field(default_factory=list)
    held: list[tuple[int, int, int]] = field(default_factory=list)
    picked: set[int] = field(default_factory=set)  # ALUs for which others may stand in
    _uses: list[tuple[int, Ints, int | NDArray[np.uint8]]] = field(default_factory=list)
    _drives: list[_Drive] = field(default_factory=list)

    def hold(self, row: int, first: int, last: int) -> None:
        """Keep resource ``row`` to this group for first..last; the group itself may use it."""
        if last >= first:
            self.held.append((row, first, last))

    def hold_alu(self, alu: int, first: int, last: int) -> None:
        """Keep an ALU's queue to this group (its ``self`` operand must survive)."""
        self.hold(isa.VXM_QUEUE + alu, first, last)

    def hold_buffer(self, plane: int, first: int, last: int) -> None:
        """Keep a plane's weight buffer."""
        self.hold(BUFFER + plane, first, last)

    def hold_plane(self, plane: int, first: int, last: int) -> None:
        """Keep a plane's installed weights (and its accumulators) to this group."""
        self.hold(PLANE + plane, first, last)

    def hold_link(self, link: int, first: int, last: int) -> None:
        """Keep a link for sending, so that vectors of other groups stay a spacing away."""
        self.hold(LINK + link, first, last)

    def emit(
        self,
        op: Op,
        queue: int,
        cycle: int,
        *,
        n: tuple[int, int] | int = 1,
        dc: tuple[int, int] | int = 1,
        da: tuple[int, int] | int = 0,
        place: Place | None = None,
        dsg: int = 0,
        dcg: int = 0,
        **columns: int,
    ) -> None:
        """Append one block; ``n``, ``dc``, ``da`` are a number or an (inner, outer) pair."""
        n1, n2 = (n, 1) if isinstance(n, int) else n
        dc1, dc2 = (dc, 0) if isinstance(dc, int) else dc
        da1, da2 = (da, 0) if isinstance(da, int) else da
        if n1 <= 0 or n2 <= 0:
            return
        block = {
            "cycle": cycle,
            "queue": queue,
            "op": int(op),
            "n1": n1,
            "dc1": dc1,
            "da1": da1,
            "n2": n2,
            "dc2": dc2,
            "da2": da2,
            "gang": -1,
            "dcg": dcg,
            "dsg": dsg,
            "s0": -1,
            "s1": -1,
            "out": -1,
            **columns,
        }
        gang: tuple[int, ...] | None = None
        symbol: Symbol | None = None
        if place is not None:
            block["a"] = block.get("a", 0) + place.address
            block["queue"] = place.queues[0]
            symbol = place.symbol
            if len(place.queues) > 1:
                gang = place.queues
        self.blocks.append(block)
        self.symbols.append(symbol)
        self.gang_of.append(gang)
        i1 = np.tile(np.arange(n1), n2)
        i2 = np.repeat(np.arange(n2), n1)
        at = cycle + i1 * dc1 + i2 * dc2
        row = {Op.WRITE: STORE, Op.SCATTER: STORE, Op.ACC: ACC}.get(op, QUEUE)
        queue = block["queue"]
        if queue >= isa.VXM_QUEUE:
            self._use(ACC + (queue - isa.MXM_QUEUE) // 2 if row == ACC else row + queue, at)
            return
        banks = self._banks(block, symbol, i1 * da1 + i2 * da2)
        for q, delay in zip(gang or (queue,), self.member_delays(block, gang), strict=True):
            self._use(row + q, at + delay)
            self._use(PORT + q, at + delay, banks)

    def member_delays(self, block: dict[str, int], gang: tuple[int, ...] | None) -> list[int]:
        """Cycles from a MEM block's own to those at which each slice of its gang is accessed."""
        if gang is None:
            return [0]
        stream = block["s0"] if block["op"] in (Op.WRITE, Op.SCATTER) else block["out"]
        skews: Ints = gang_skew(gang, stream) + block["dcg"] * np.arange(len(gang))
        return skews.tolist()

    def _banks(
        self, block: dict[str, int], symbol: Symbol | None, steps: Ints
    ) -> int | NDArray[np.uint8]:
        """The banks, one bit each, that the elements of a MEM block may touch."""
        if symbol is not None:
            return symbol.banks
        if not self.words_per_bank:
            return ALL_BANKS
        if block["op"] in (Op.GATHER, Op.SCATTER):
            return banks_of(block["lo"], block["hi"], self.words_per_bank)
        banks = (block.get("a", 0) + steps) // self.words_per_bank
        return (1 << banks).astype(np.uint8)

    def _use(self, row: int, cycles: Ints, parts: int | NDArray[np.uint8] = 1) -> None:
        self._uses.append((row, cycles, parts))

    def drive(
        self,
        stream: int,
        width: int,
        diagonals: Ints,
        start: int,
        end: int | None = None,
        tag: int = 0,
    ) -> None:
        """Take ``width`` streams on these diagonals from position ``start`` to ``end``.

        end: None for the farthest of the group's consumers of ``tag``, or the edge.
        """
        streams = range(stream, stream + width)
        self._drives.append(_Drive(streams, diagonals, start, end, tag))

    def _farthest(self, drive: _Drive) -> int:
        """The last position at which a block of the group samples what is driven."""
        east = isa.is_east(drive.streams[0])
        found: list[int] = []
        for block, gang in zip(self.blocks, self.gang_of, strict=True):
            for operand in ("0", "1"):
                if block.get("want" + operand, 0) == drive.tag:
                    code = block["s" + operand]
                    queues: Iterable[int] = gang or (block["queue"],)
                    found += [isa.sample_position(queue, code) for queue in queues]
        if not found or not drive.tag:
            return isa.EAST_EDGE if east else isa.WEST_EDGE
        return max(found) if east else min(found)

    def claim(self) -> Claim:
        """Everything the group takes or holds; raises ValueError for what it takes twice."""
        uses = list(self._uses)
        for drive in self._drives:
            end = self._farthest(drive) if drive.end is None else drive.end
            parts = _segments(drive.start, end)
            for stream in drive.streams:
                uses.append((STREAM + stream, drive.diagonals + MARGIN, parts))
        lengths = [len(cycles) for _, cycles, _ in uses]
        rows = np.repeat(np.array([row for row, _, _ in uses]), lengths)
        cycles = np.concatenate([cycles for _, cycles, _ in uses])
        bits = np.concatenate(
            [
                np.full(length, part, np.uint8) if isinstance(part, int) else part
                for length, (_, _, part) in zip(lengths, uses, strict=True)
            ]
        )
        first = min([int(cycles.min()), *(a for _, a, _ in self.held)])
        width = max([int(cycles.max()), *(b for _, _, b in self.held)]) - first + 1
        taken = np.zeros(ROWS * width, np.uint8)
        cells = rows * width + (cycles - first)
        np.add.at(taken, cells, bits)  # a carry loses bits: whoever adds a part twice, see below
        if int(np.bitwise_count(taken).sum()) != int(np.bitwise_count(bits).sum()):
            raise ValueError(_taken_twice(cells, bits, width, first))
        for row, a, b in self.held:
            taken[row * width + a - first : row * width + b - first + 1] = _EVERY_PART
        cells = np.flatnonzero(taken)
        return Claim(cells // width, cells % width + first, taken[cells])

    def span(self) -> int:
        """Cycles from the group's start to its last dispatch."""
        return max(int(cycles.max()) for _, cycles, _ in self._uses) + 1


def _taken_twice(cells: Ints, bits: NDArray[np.uint8], width: int, first: int) -> str:
    """What is wrong with uses some of which share a part of a cell."""
    for part in range(8):
        own = cells[bits & (1 << part) > 0]
        keys, counts = np.unique(own, return_counts=True)
        if (counts > 1).any():
            row, cycle = divmod(int(keys[counts > 1][0]), width)
            break
    return f"a group takes one resource twice: row {row}, cycle {cycle + first}"
