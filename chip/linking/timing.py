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

from chip.isa import Op
from chip.linking.linker import BLOCK, ELEMENTS, FIRST, OP, QUEUE, STRIDE, LinkedProgram
from chip.program import Program, expand_columns
from chip.spec import ChipSpec

Ints = NDArray[np.int64]

#: Arguments of an element; of a Write, Scatter, Send and Receive those at ``_CYCLE`` are cycles.
_WIDTH = 8
_CYCLE = {Op.WRITE: 2, Op.SCATTER: 7, Op.SEND: 1, Op.RECEIVE: 1}


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
    arguments[write, 1] = queue[write] * spec.words_per_slice + a[write]
    arguments[write, 3] = queue[write]
    arguments[scatter, 3], arguments[scatter, 4] = queue[scatter], a[scatter]
    column = np.zeros(len(block), np.int64)
    for code, at in _CYCLE.items():
        column[op == code] = at
    arguments[np.arange(len(block)), column] = cycle
    table = np.zeros((len(first), 7), np.int32)
    table[:, OP], table[:, QUEUE] = op[first], queue[first]
    table[:, ELEMENTS] = np.diff(np.append(first, len(block)))
    table[:, FIRST], table[:, STRIDE] = _WIDTH * first, _WIDTH
    table[:, BLOCK] = used[block[first]]
    after = np.where(write | scatter, spec.write_cycles, spec.receive_cycles)
    last = int((cycle + after).max()) if len(cycle) else 0
    sizes = np.array([len(g) for g in program.gangs] or [1])
    ganged = np.where(blocks["gang"] >= 0, sizes[blocks["gang"]], 1)
    instructions = int((blocks["n1"].astype(np.int64) * blocks["n2"] * ganged).sum())
    linked = LinkedProgram(
        table, cycle[first], arguments.reshape(-1).astype(np.int32), np.zeros(0, np.int32),
        np.zeros((0, 320), np.int16), 0, 0, max(program.cycles, last), instructions, spec,
    )  # fmt: skip
    return TimingPart(linked, _WIDTH * np.arange(len(block)) + column)


def join(parts: Sequence[tuple[TimingPart, int]], cycles: int) -> LinkedProgram:
    """``parts``, each moved by a number of cycles, as one program of length ``cycles`` or more.

    Its length is at least the last effect of any part.
    """
    tables, starts, arguments, length, elements, at = [], [], [], cycles, 0, 0
    for part, shift in parts:
        table = part.linked.table.copy()
        table[:, FIRST] += at
        own = part.linked.arguments.copy()
        own[part.cycle_at] += np.int32(shift)
        tables.append(table)
        starts.append(part.linked.starts + shift)
        arguments.append(own)
        at += len(own)
        length = max(length, part.linked.cycles + shift)
        elements += part.linked.elements
    table, begun = np.concatenate(tables), np.concatenate(starts)
    order = np.lexsort((table[:, QUEUE], begun))
    return replace(
        parts[0][0].linked, table=table[order], starts=begun[order],
        arguments=np.concatenate(arguments), cycles=length, elements=elements,
    )  # fmt: skip


#: Arguments of an executed element that name words; see ``chip.linking.layout``.
_WRITTEN, _RECEIVED, _RECEIVED_BY_WRITE = 1, 0, 2
_UNIT, _LOW, _HIGH = 3, 5, 6


def touched_words(linked: LinkedProgram) -> NDArray[np.int64]:
    """Rows ``slice * words_per_slice + word`` that a launch may write, ascending, int64 [n].

    Every word of a WRITE, also of one that takes a received vector straight from its link, and
    the whole declared window of a SCATTER.  All other words are after a launch as before it.
    """
    parts = [np.zeros(0, np.int64)]
    arguments = linked.arguments.astype(np.int64)
    for piece in linked.table[np.isin(linked.table[:, OP], (Op.WRITE, Op.RECEIVE, Op.SCATTER))]:
        at = int(piece[FIRST]) + np.arange(int(piece[ELEMENTS])) * int(piece[STRIDE])
        if piece[OP] == Op.WRITE:
            parts.append(arguments[at + _WRITTEN])
        elif piece[OP] == Op.RECEIVE:
            written = arguments[at + _RECEIVED_BY_WRITE] >= 0
            parts.append(arguments[at + _RECEIVED][written])
        else:
            windows = np.stack([arguments[at + k] for k in (_UNIT, _LOW, _HIGH)], axis=1)
            for unit, low, high in np.unique(windows, axis=0).tolist():
                parts.append(unit * linked.spec.words_per_slice + np.arange(low, high + 1))
    return np.unique(np.concatenate(parts))
