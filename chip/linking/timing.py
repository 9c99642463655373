"""Programs for chips without data: only what has an effect or meets another chip, in its cycle.

A chip made with ``data=False`` acts on Writes, Scatters, Sends and Receives alone.  ``timing_part``
makes an executable table of just these, without resolving where operands come from, and ``join``
puts such parts one after another in time.  Clock, vectors and digest are those of the program as
``chip.linking.linker.link`` makes it; whether the program is legal is the checker's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from chip.isa import LANES, Op
from chip.linking.arguments import (
    PIECE_BLOCK,
    PIECE_COLUMNS,
    PIECE_COUNTER,
    PIECE_ELEMENTS,
    PIECE_FIRST,
    PIECE_OP,
    PIECE_QUEUE,
    PIECE_STRIDE,
    RECEIVE_CYCLE,
    RECEIVE_ROW,
    RECEIVE_WRITE_CYCLE,
    SEND_CYCLE,
    WINDOW_BASE,
    WINDOW_COUNT,
    WINDOW_CYCLE,
    WINDOW_FIRST,
    WINDOW_LAST,
    WINDOW_SLICE,
    WRITE_CYCLE,
    WRITE_SLICE,
    WRITE_WORD,
)
from chip.linking.linker import LinkedProgram
from chip.program import Program, expand_columns
from chip.spec import ChipSpec

Ints = NDArray[np.int64]

#: Arguments of an element here, as many as the longest has; and which of them is its cycle.
_WIDTH = WINDOW_COUNT
_CYCLE = {
    Op.WRITE: WRITE_CYCLE,
    Op.SCATTER: WINDOW_CYCLE,
    Op.SEND: SEND_CYCLE,
    Op.RECEIVE: RECEIVE_CYCLE,
}


@dataclass(frozen=True)
class TimingPart:
    """A stretch of a program; ``cycle_at`` int64 [n]: the arguments that are cycles."""

    linked: LinkedProgram
    cycle_at: Ints


def timing_part(program: Program, spec: ChipSpec) -> TimingPart:
    """The effects of ``program``; cycles may be negative until it is joined to others."""
    blocks = program.blocks
    used = np.flatnonzero(np.isin(blocks["op"], list(_CYCLE)))
    c = expand_columns(replace(program, blocks=blocks[used]))
    # Vectors of one link in turn, in stretches short enough that chips never wait for each other.
    start = np.full(len(used), np.iinfo(np.int64).max)
    np.minimum.at(start, c.block, c.cycle)
    stretch = (c.cycle - start[c.block]) // max(1, spec.send_to_receive_cycles // 2 - 1)
    order = np.lexsort((c.queue, c.cycle, stretch, c.block))
    block, cycle, queue, op, a = (
        v[order].astype(np.int64) for v in (c.block, c.cycle, c.queue, c.op, c.a)
    )
    stretch = stretch[order]
    begins = np.ones(len(block), bool)
    begins[1:] = (block[1:] != block[:-1]) | (stretch[1:] != stretch[:-1])
    first = np.flatnonzero(begins)
    arguments = np.full((len(block), _WIDTH), -1, np.int64)
    write, scatter = op == Op.WRITE, op == Op.SCATTER
    arguments[write, WRITE_WORD] = queue[write] * spec.words_per_slice + a[write]
    arguments[write, WRITE_SLICE] = queue[write]
    arguments[scatter, WINDOW_SLICE], arguments[scatter, WINDOW_BASE] = queue[scatter], a[scatter]
    column = np.zeros(len(block), np.int64)
    for code, at in _CYCLE.items():
        column[op == code] = at
    arguments[np.arange(len(block)), column] = cycle
    table = np.zeros((len(first), PIECE_COLUMNS), np.int32)
    table[:, PIECE_OP], table[:, PIECE_QUEUE] = op[first], queue[first]
    table[:, PIECE_ELEMENTS] = np.diff(np.append(first, len(block)))
    table[:, PIECE_FIRST], table[:, PIECE_STRIDE] = _WIDTH * first, _WIDTH
    table[:, PIECE_BLOCK] = used[block[first]]
    table[:, PIECE_COUNTER] = -1
    after = np.where(write | scatter, spec.write_cycles, spec.receive_cycles)
    last = int((cycle + after).max()) if len(cycle) else 0
    sizes = np.array([len(g) for g in program.gangs] or [1])
    ganged = np.where(blocks["gang"] >= 0, sizes[blocks["gang"]], 1)
    instructions = int((blocks["n1"].astype(np.int64) * blocks["n2"] * ganged).sum())
    linked = LinkedProgram(
        table,
        cycle[first],
        arguments.reshape(-1).astype(np.int32),
        np.zeros(0, np.int32),
        np.zeros((0, LANES), np.int16),
        0,
        0,
        max(program.cycles, last),
        instructions,
        spec,
    )
    return TimingPart(linked, _WIDTH * np.arange(len(block)) + column)


def join(parts: Sequence[tuple[TimingPart, int]], cycles: int) -> LinkedProgram:
    """``parts``, each moved by a number of cycles, as one program of length ``cycles`` or more.

    Its length is at least the last effect of any part.
    """
    tables, starts, arguments, length, elements, at = [], [], [], cycles, 0, 0
    for part, shift in parts:
        table = part.linked.table.copy()
        table[:, PIECE_FIRST] += at
        own = part.linked.arguments.copy()
        own[part.cycle_at] += np.int32(shift)
        tables.append(table)
        starts.append(part.linked.starts + shift)
        arguments.append(own)
        at += len(own)
        length = max(length, part.linked.cycles + shift)
        elements += part.linked.elements
    table, begun = np.concatenate(tables), np.concatenate(starts)
    order = np.lexsort((table[:, PIECE_QUEUE], begun))
    return replace(
        parts[0][0].linked,
        table=table[order],
        starts=begun[order],
        arguments=np.concatenate(arguments),
        cycles=length,
        elements=elements,
    )


def touched_words(linked: LinkedProgram) -> NDArray[np.int64]:
    """Rows ``slice * words_per_slice + word`` that a launch may write, ascending, int64 [n].

    Every word of a WRITE, also of one that takes a received vector straight from its link, and
    the whole declared window of a SCATTER.  All other words are after a launch as before it.
    """
    parts = [np.zeros(0, np.int64)]
    arguments = linked.arguments.astype(np.int64)
    writing = np.isin(linked.table[:, PIECE_OP], (Op.WRITE, Op.RECEIVE, Op.SCATTER))
    for piece in linked.table[writing]:
        elements = np.arange(int(piece[PIECE_ELEMENTS]))
        at = int(piece[PIECE_FIRST]) + elements * int(piece[PIECE_STRIDE])
        if piece[PIECE_OP] == Op.WRITE:
            parts.append(arguments[at + WRITE_WORD])
        elif piece[PIECE_OP] == Op.RECEIVE:
            written = arguments[at + RECEIVE_WRITE_CYCLE] >= 0
            parts.append(arguments[at + RECEIVE_ROW][written])
        else:
            named = (WINDOW_SLICE, WINDOW_FIRST, WINDOW_LAST)
            windows = np.stack([arguments[at + k] for k in named], axis=1)
            for unit, low, high in np.unique(windows, axis=0).tolist():
                parts.append(unit * linked.spec.words_per_slice + np.arange(low, high + 1))
    return np.unique(np.concatenate(parts))
