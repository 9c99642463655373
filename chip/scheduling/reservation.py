"""The reservation table: where a compiler puts instructions so that nothing collides.

A :class:`Group` is a rigid bundle of blocks with cycles relative to its start.  A
:class:`Schedule` places groups one after another, each at the earliest cycle, not before a given
one, at which none of its resources is taken: queue issue slots, SRAM slice ports, stream
diagonals (per hemisphere), plane buffers, installed planes, accumulators, held ALUs.

It is deliberately stricter than the machine: a slice never reads and writes in one cycle whatever
the banks, and a diagonal of a stream carries one value per hemisphere.  So a layer's schedule
stays legal when its addresses are relocated.  It knows nothing of models or kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chip import isa
from chip.isa import Op
from chip.program import BLOCK_DTYPE, BlockTable, gang_skew

_QUEUE = 0
_STORE = 144  # MEM queues issue one read-like and one write-like instruction per cycle
_ACC = _STORE + 88
_STREAM = _ACC + 4  # 64 streams x (west, east) segment
_PORT = _STREAM + 128
_BUFFER = _PORT + 88
_PLANE = _BUFFER + 4
_ROWS = _PLANE + 4
_MARGIN = 64  # diagonals of streams start before cycle 0

#: How many collisions of a start are looked at, and how far, to skip starts that collide as well.
_USES_TRIED, _SHIFT_TRIED = 64, 4096

_MIDDLE = 22  # VXM centre: the border between the hemispheres' stream segments


@dataclass(frozen=True)
class Symbol:
    """A base address that differs from layer to layer; blocks refer to symbol + offset."""

    name: str


@dataclass(frozen=True)
class Place:
    """Words on a tuple of MEM queues: byte plane i of word w is at (queues[i], address + w)."""

    queues: tuple[int, ...]
    address: int
    symbol: Symbol | None = None

    def at(self, offset: int) -> Place:
        """The same place ``offset`` words further."""
        return Place(self.queues, self.address + offset, self.symbol)

    @property
    def position(self) -> int:
        """Stream position of the first byte plane."""
        return isa.slice_position(self.queues[0])

    @property
    def inward(self) -> int:
        """First stream code of the direction towards the VXM: 0 (east) or 32 (west)."""
        return 0 if self.queues[0] < 44 else 32

    @property
    def outward(self) -> int:
        """First stream code of the direction away from the VXM."""
        return 32 - self.inward


@dataclass
class Group:
    """Blocks with cycles relative to the group's start, and the resources they take."""

    blocks: list[dict[str, int]] = field(default_factory=list)
    symbols: list[Symbol | None] = field(default_factory=list)
    gang_of: list[tuple[int, ...] | None] = field(default_factory=list)
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    cycles: list[NDArray[np.int64]] = field(default_factory=list)
    held: list[tuple[int, int, int]] = field(default_factory=list)

    def _use(self, row: int, cycles: NDArray[np.int64]) -> None:
        self.rows.append(np.full(cycles.shape, row, np.int64))
        self.cycles.append(cycles)

    def hold(self, row: int, first: int, last: int) -> None:
        """Keep resource ``row`` to this group for first..last; the group itself may use it."""
        if last >= first:
            self.held.append((row, first, last))

    def hold_alu(self, alu: int, first: int, last: int) -> None:
        """Keep an ALU's queue to this group (its ``self`` operand must survive)."""
        self.hold(isa.VXM_QUEUE + alu, first, last)

    def hold_buffer(self, plane: int, first: int, last: int) -> None:
        """Keep a plane's weight buffer."""
        self.hold(_BUFFER + plane, first, last)

    def hold_plane(self, plane: int, first: int, last: int) -> None:
        """Keep a plane's installed weights (and its accumulators) to this group."""
        self.hold(_PLANE + plane, first, last)

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
        row = {Op.WRITE: _STORE, Op.SCATTER: _STORE, Op.ACC: _ACC}.get(op, _QUEUE)
        if gang is not None:
            stream = block["s0"] if op in (Op.WRITE, Op.SCATTER) else block["out"]
            for g, (q, skew) in enumerate(zip(gang, gang_skew(gang, stream), strict=True)):
                times = at + g * dcg + int(skew)
                self._use(row + q, times)
                self._use(_PORT + q, times)
            return
        queue = block["queue"]
        self._use(_ACC + (queue - isa.MXM_QUEUE) // 2 if row == _ACC else row + queue, at)
        if queue < isa.VXM_QUEUE:
            self._use(_PORT + queue, at)

    def drive(
        self, stream: int, width: int, diagonals: NDArray[np.int64], start: int, end: int
    ) -> None:
        """Take ``width`` streams on these diagonals from position ``start`` to ``end``."""
        low, high = min(start, end), max(start, end)
        for s in range(stream, stream + width):
            if low < _MIDDLE:
                self._use(_STREAM + 2 * s, diagonals + _MARGIN)
            if high >= _MIDDLE:
                self._use(_STREAM + 2 * s + 1, diagonals + _MARGIN)

    def span(self) -> int:
        """Cycles from the group's start to its last dispatch."""
        return max(int(c.max()) for c in self.cycles) + 1


def _claimed(group: Group) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows, cycles) of everything a group takes or holds, int64 [n] each, each pair once.

    Raises ValueError for what it takes twice.
    """
    rows, cycles = np.concatenate(group.rows), np.concatenate(group.cycles)
    first = min([int(cycles.min()), *(a for _, a, _ in group.held)])
    width = max([int(cycles.max()), *(b for _, _, b in group.held)]) - first + 1
    taken = np.zeros(_ROWS * width, bool)
    used = rows * width + (cycles - first)
    taken[used] = True
    if np.count_nonzero(taken) != len(used):
        keys, counts = np.unique(used, return_counts=True)
        row, cycle = divmod(int(keys[counts > 1][0]), width)
        raise ValueError(f"a group takes one resource twice: row {row}, cycle {cycle + first}")
    if not group.held:
        return rows, cycles
    for row, a, b in group.held:
        taken[row * width + a - first : row * width + b - first + 1] = True
    used = np.flatnonzero(taken)
    return used // width, used % width + first


class Schedule:
    """Placed blocks and the occupancy they cause."""

    def __init__(self) -> None:
        self._occupied = np.zeros((_ROWS, 16384), bool)
        self._blocks: list[dict[str, int]] = []
        self._symbols: list[Symbol | None] = []
        self._gang_ids: dict[tuple[int, ...], int] = {}
        self._tags = 0

    def tag(self) -> int:
        """A new name for a produced value."""
        self._tags += 1
        return self._tags

    def place(self, group: Group, earliest: int) -> int:
        """Put ``group`` at the first free cycle >= earliest and return that cycle."""
        rows, cycles = _claimed(group)
        start = max(earliest, -int(cycles.min()))
        last = int(cycles.max())
        while True:
            while start + last + 1 > self._occupied.shape[1]:
                self._occupied = np.concatenate(
                    [self._occupied, np.zeros_like(self._occupied)], axis=1
                )
            taken = np.flatnonzero(self._occupied[rows, cycles + start])
            if not len(taken):
                break
            start += self._least_shift(rows, cycles + start, taken)
        self._occupied[rows, cycles + start] = True
        for block, symbol, gang in zip(group.blocks, group.symbols, group.gang_of, strict=True):
            placed = dict(block)
            placed["cycle"] += start
            if gang is not None:
                placed["gang"] = self._gang_ids.setdefault(gang, len(self._gang_ids))
            self._blocks.append(placed)
            self._symbols.append(symbol)
        return start

    def _least_shift(
        self, rows: NDArray[np.int64], at: NDArray[np.int64], taken: NDArray[np.int64]
    ) -> int:
        """Cycles by which every start in between would meet some of the ``taken`` uses again."""
        most = 1
        for use in taken[:: max(1, len(taken) // _USES_TRIED)]:
            busy = self._occupied[rows[use], at[use] : at[use] + _SHIFT_TRIED]
            most = max(most, len(busy) if busy.all() else int(busy.argmin()))
        return most

    def blocks(self) -> tuple[BlockTable, list[Symbol | None], list[tuple[int, ...]]]:
        """The placed blocks, the symbol of each block's address, and the gangs they name."""
        table = np.zeros(len(self._blocks), BLOCK_DTYPE)
        for i, block in enumerate(self._blocks):
            for name, value in block.items():
                table[i][name] = value
        return table, self._symbols, list(self._gang_ids)
