"""The expansion of a program as columns.

Knows how blocks unfold (the same meaning as :func:`chip.program.expand`, without a loop per
block) and how to word a row; knows no rule of the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chip.isa import (
    NONE,
    QUEUES,
    SLICES,
    STREAMS,
    Op,
    drive_position,
    safe_queue_name,
    sample_position,
    slice_position,
    stream_name,
)
from chip.program.blocks import Program
from chip.program.limits import MAX_INSTRUCTIONS

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_OP_NAMES = {int(op): op.name for op in Op}


def _position_table(drive: bool) -> Ints:
    function = drive_position if drive else sample_position
    return np.array([[function(q, s) for s in (0, 32)] for q in range(QUEUES)], np.int64)


#: Positions by [queue, 0 for eastward or 1 for westward].
DRIVE_POSITION = _position_table(True)
SAMPLE_POSITION = _position_table(False)
_SLICE_POSITION = np.array([slice_position(q) for q in range(SLICES)], np.int64)


@dataclass
class Columns:
    """Single instructions of a program, unsorted; row i comes from block ``block[i]``.

    ``cycle, queue, op, a, s0, out`` are int64 [rows]; every other column is the block's
    (``of``).  Rows of malformed blocks (bad gang, no elements) are absent; ``bad`` lists those
    blocks with the reason.
    """

    program: Program
    block: Ints
    cycle: Ints
    queue: Ints
    op: Ints
    a: Ints
    s0: Ints
    out: Ints
    bad: list[tuple[int, str]] = field(default_factory=list)

    def of(self, name: str, rows: Ints | None = None) -> Ints:
        """A column inherited from the block, for ``rows`` (default all)."""
        source = self.program.blocks[name].astype(np.int64)
        picked: Ints = source[self.block if rows is None else self.block[rows]]
        return picked

    def text(self, row: int) -> str:
        """The instruction of a row in words, with its block."""
        index = int(self.block[row])
        block = self.program.blocks[index]
        parts = [_OP_NAMES.get(int(self.op[row]), f"op {int(self.op[row])}")]
        parts.append(f"a={int(self.a[row])}")
        for name, code in (("s0", int(self.s0[row])), ("s1", int(block["s1"]))):
            if code != NONE:
                parts.append(f"{name}={_operand_name(code)}")
        if int(self.out[row]) != NONE:
            parts.append(f"out={_operand_name(int(self.out[row]))}")
        return f"{' '.join(parts)} (block {index})"

    def place(self, row: int) -> str:
        """Instruction, queue and cycle of a row in words."""
        queue = safe_queue_name(int(self.queue[row]))
        return f"{self.text(row)} on {queue} at cycle {int(self.cycle[row])}"


def _operand_name(code: int) -> str:
    return stream_name(code) if 0 <= code <= STREAMS + 17 else f"operand {code}"


def expand_columns(program: Program) -> Columns:
    """Unfold every block of ``program`` with array arithmetic."""
    blocks = program.blocks
    bad: list[tuple[int, str]] = []
    n1 = blocks["n1"].astype(np.int64)
    n2 = blocks["n2"].astype(np.int64)
    gang = blocks["gang"].astype(np.int64)
    sizes = np.array([len(g) for g in program.gangs] or [0], np.int64)
    known = gang < len(program.gangs)
    members = np.where((gang >= 0) & known, sizes[np.clip(gang, 0, len(sizes) - 1)], 1)
    known &= gang >= -1
    sound = (n1 >= 1) & (n2 >= 1) & known & (members >= 1)
    size = np.where(sound, n1.astype(np.float64) * n2 * members, 0.0)
    over = size > MAX_INSTRUCTIONS
    over |= np.cumsum(np.where(over, 0, size)) > MAX_INSTRUCTIONS
    bad += [
        (int(i), f"the program has more than {MAX_INSTRUCTIONS} instructions with this block")
        for i in np.flatnonzero(over & sound)[:1]
    ]
    for index in np.flatnonzero(~sound):
        what = f"gang {gang[index]} does not exist or is empty"
        if n1[index] < 1 or n2[index] < 1:
            what = f"repeat counts {n1[index]} x {n2[index]} hold no element"
        bad.append((int(index), what))
    sound &= ~over
    first = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    flat_rows = [q for g in program.gangs for q in g]
    flat = np.array(flat_rows or [0], np.int64)
    odd_gangs = {i for i, g in enumerate(program.gangs) if any(not 0 <= q < SLICES for q in g)}
    for index in np.flatnonzero(sound & np.isin(gang, list(odd_gangs))):
        bad.append((int(index), f"gang {gang[index]} names a queue that is no MEM slice"))
        sound[index] = False

    counts = np.where(sound, n1 * n2 * members, 0)
    block = np.repeat(np.arange(len(blocks), dtype=np.int64), counts)
    element = np.arange(len(block), dtype=np.int64)
    element -= np.repeat(np.cumsum(counts) - counts, counts)

    def of(name: str) -> Ints:
        picked: Ints = blocks[name].astype(np.int64)[block]
        return picked

    in_gang = members[block]
    g = element % in_gang
    element //= in_gang
    width = n1[block]
    i1, i2 = element % width, element // width
    cycle = of("cycle") + i1 * of("dc1") + i2 * of("dc2")
    a = of("a") + i1 * of("da1") + i2 * of("da2")
    queue, op, s0, out = of("queue"), of("op"), of("s0"), of("out")
    rows = np.flatnonzero(gang[block] >= 0)
    if len(rows):
        base = first[gang[block[rows]]]
        member = g[rows]
        queue[rows] = flat[base + member]
        consumer = (op[rows] == Op.WRITE) | (op[rows] == Op.SCATTER)
        eastward = np.where(consumer, s0[rows], out[rows]) < 32
        hops = _SLICE_POSITION[queue[rows]] - _SLICE_POSITION[flat[base]]
        cycle[rows] += member * of("dcg")[rows] + np.where(eastward, hops, -hops)
        shift = member * of("dsg")[rows]
        s0[rows] += np.where(consumer, shift, 0)
        out[rows] += np.where(consumer, 0, shift)
    return Columns(program, block, cycle, queue, op, a, s0, out, bad)
