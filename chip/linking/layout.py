"""From ordered pieces to an execution table: rows of scratch, and arguments of every element.

Values that are SRAM words stay references; the others get rows of scratch, reused as soon as
their last use has run.  What the arguments mean is in ``chip.linking.arguments``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.isa import ALU0, IMM, SLICES, STREAMS
from chip.jit import jit, jit_inline
from chip.linking.arguments import OPERAND_BYTES, argument_count, is_vxm
from chip.linking.elements import (
    GROUP_COLUMNS,
    GROUPS,
    N_OUT,
    OP,
    S0,
    S1,
    W0,
    W1,
    Elements,
    Resolved,
    piece_elements,
)
from chip.linking.fill import RowNumbers, fill, is_word
from chip.opcodes import ACC, READ

Array = NDArray[Any]
WORD = 1 << 16  # bit of ``need``: the 32-bit result row itself is used
WORD_ROWS = 4  # rows of 32-bit scratch that belong to the compiled loop


class _Lives(NamedTuple):
    """What of each element's result is used, and until when.

    need int64 [elements]: bit j: byte row j, and WORD; last int64 [elements]: the piece that uses
    it last; installs int64 [installs]: the piece that uses an install last; -1: none.
    """

    need: Array
    last: Array
    installs: Array


@jit_inline
def _live(lives: _Lives, source: int, piece: int) -> None:
    """Note that ``piece`` uses the byte ``source``."""
    p = source // 16
    lives.need[p] |= 1 << (source & 15)
    lives.last[p] = piece


@jit_inline
def _live_operands(c: Elements, sources: Array, lives: _Lives, e: int, piece: int) -> None:
    """Note what a VXM element uses: whole results of units where it can, else bytes."""
    b = c.block[e]
    for operand in range(2):
        s = c.blocks[b, S0] if operand == 0 else c.blocks[b, S1]
        width = c.blocks[b, W0] if operand == 0 else c.blocks[b, W1]
        slot = c.slot[e] + OPERAND_BYTES * operand
        result = s >= ALU0 and s < IMM
        stream = s >= 0 and s < STREAMS
        if result or (stream and is_word(c, sources, slot, width)):
            p = sources[slot] // 16
            lives.need[p] |= WORD
            lives.last[p] = piece
        elif stream:
            for j in range(width):
                _live(lives, sources[slot + j], piece)


@jit
def _find_lives(c: Elements, r: Resolved, executed: Array, pieces: Array) -> Any:
    """The first step: what is used until when, and how many arguments that makes.

    Returns the lives and table int64 [pieces, 3], as of ``lay_out``.
    """
    total = c.block.shape[0]
    lives = _Lives(
        np.zeros(total, np.int64),
        np.full(total, -1, np.int64),
        np.full(r.loads.shape[0], -1, np.int64),
    )
    table = np.zeros((pieces.shape[0], 3), np.int64)
    arguments = 0
    for n in range(pieces.shape[0]):
        op = c.blocks[c.units[pieces[n, 1], 3], OP]
        table[n, 0] = arguments
        table[n, 2] = argument_count(op)
        first, end = piece_elements(c.units, pieces, n)
        for e in range(first, end):
            if not executed[e]:
                continue
            table[n, 1] += 1
            if is_vxm(op):
                _live_operands(c, r.sources, lives, e, n)
                continue
            user = r.abc_of[e] if op == ACC else e
            if op == ACC:
                for half in range(2):
                    if r.install_of[user, half] >= 0:
                        lives.installs[r.install_of[user, half]] = n
            for j in range(c.slot[user], c.slot[user + 1]):
                if r.sources[j] >= 0:
                    _live(lives, r.sources[j], n)
        arguments += table[n, 1] * table[n, 2]
    return lives, table


@jit
def _start_weights(c: Elements, r: Resolved, lives: _Lives) -> Any:
    """The second: where the weight rows of each used install begin; its loads live as long.

    Returns int64 [installs] (-1: unused) and how many rows there are.
    """
    rows = 0
    start = np.full(r.loads.shape[0], -1, np.int64)
    for i in range(r.loads.shape[0]):
        if lives.installs[i] < 0:
            continue
        start[i] = rows
        for j in range(GROUPS):
            load = r.loads[i, j]
            if load >= 0:
                rows += GROUP_COLUMNS
                for k in range(c.slot[load], c.slot[load + 1]):
                    p = r.sources[k] // 16
                    _live(lives, r.sources[k], max(lives.last[p], lives.installs[i]))
    return start, rows


@jit
def _assign_rows(c: Elements, executed: Array, lives: _Lives, pieces: Array) -> Any:
    """The third: rows of scratch, in execution order.

    Freed rows are reused first, so they stay in the cache.  Returns byte_row int32 [driven bytes],
    word_row int32 [elements] (-1: none), and how many rows of each there are.
    """
    total = c.block.shape[0]
    blocks, block_of, out_of = c.blocks, c.block, c.out
    need, last = lives.need, lives.last
    byte_row = np.full(out_of[total] + 1, -1, np.int32)
    word_row = np.full(total, -1, np.int32)
    free_bytes = np.empty(out_of[total] + 1, np.int32)
    free_words = np.empty(total + 1, np.int32)
    free_byte_count = 0
    free_word_count = 0
    byte_rows = 0
    word_rows = WORD_ROWS
    ending = np.full(pieces.shape[0] + 1, -1, np.int64)
    ending_next = np.full(total, -1, np.int64)
    for n in range(pieces.shape[0]):
        first, end = piece_elements(c.units, pieces, n)
        for e in range(first, end):
            if not executed[e] or need[e] == 0:
                continue
            for j in range(blocks[block_of[e], N_OUT]):
                if need[e] >> j & 1:
                    if free_byte_count > 0:
                        free_byte_count -= 1
                        byte_row[out_of[e] + j] = free_bytes[free_byte_count]
                    else:
                        byte_row[out_of[e] + j] = byte_rows
                        byte_rows += 1
            if need[e] & WORD:
                if free_word_count > 0:
                    free_word_count -= 1
                    word_row[e] = free_words[free_word_count]
                else:
                    word_row[e] = word_rows
                    word_rows += 1
            ending_next[e] = ending[last[e]]
            ending[last[e]] = e
        e = ending[n]
        while e >= 0:
            for j in range(blocks[block_of[e], N_OUT]):
                if need[e] >> j & 1:
                    free_bytes[free_byte_count] = byte_row[out_of[e] + j]
                    free_byte_count += 1
            if need[e] & WORD:
                free_words[free_word_count] = word_row[e]
                free_word_count += 1
            e = ending_next[e]
    return byte_row, word_row, byte_rows, word_rows


@jit
def _find_source_rows(
    c: Elements, r: Resolved, executed: Array, byte_row: Array, slice_words: int
) -> Any:
    """The fourth: the row of each source, int32 [slots]; those without a row never run."""
    sram_rows = SLICES * slice_words
    sources = r.sources
    row_of = np.full(sources.shape[0], -1, np.int32)
    for i in range(sources.shape[0]):
        if sources[i] >= 0:
            p = sources[i] // 16
            driven = byte_row[c.out[p] + (sources[i] & 15)]
            if c.blocks[c.block[p], OP] == READ and not executed[p]:
                row_of[i] = c.queue[p] * slice_words + c.a[p]
            elif driven >= 0:
                row_of[i] = sram_rows + driven
    return row_of


@jit
def _gather_weights(c: Elements, r: Resolved, row_of: Array, start: Array, count: int) -> Any:
    """The fifth: the rows of all used installs' columns, int32 [count]."""
    weights = np.empty(count, np.int32)
    for i in range(r.loads.shape[0]):
        at = start[i]
        if at >= 0:
            for j in range(GROUPS):
                load = r.loads[i, j]
                if load >= 0:
                    slot = c.slot[load]
                    weights[at : at + GROUP_COLUMNS] = row_of[slot : slot + GROUP_COLUMNS]
                    at += GROUP_COLUMNS
    return weights


@jit
def lay_out(
    c: Elements, r: Resolved, executed: Array, pieces: Array, write_of: Array, slice_words: int
) -> Any:
    """Scratch rows and arguments of every piece, ``pieces`` being in execution order.

    Row ``slice * slice_words + word`` is an SRAM word; scratch comes after the last slice.
    write_of: of a RECEIVE, the WRITE (not in ``executed``) that it does as well, or -1.

    Returns table int64 [pieces, 3] (first argument, executed elements, argument count each),
    arguments int32, weight rows int32, and the numbers of byte rows and 32-bit rows needed.
    """
    lives, table = _find_lives(c, r, executed, pieces)
    weight_start, weight_count = _start_weights(c, r, lives)
    byte_row, word_row, byte_rows, word_rows = _assign_rows(c, executed, lives, pieces)
    row_of = _find_source_rows(c, r, executed, byte_row, slice_words)
    weights = _gather_weights(c, r, row_of, weight_start, weight_count)
    rows = RowNumbers(row_of, byte_row, word_row, weight_start, slice_words)
    last = table.shape[0] - 1
    size = table[last, 0] + table[last, 1] * table[last, 2] if last >= 0 else 0
    arguments = np.full(size, -1, np.int32)
    for n in range(pieces.shape[0]):
        at = table[n, 0]
        first, end = piece_elements(c.units, pieces, n)
        for e in range(first, end):
            if executed[e]:
                fill(arguments, at, c, r, rows, write_of, e)
                at += table[n, 2]
    return table, arguments, weights, byte_rows, word_rows
