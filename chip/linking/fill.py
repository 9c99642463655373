"""The arguments of one executed element, written where ``chip.linking.arguments`` says."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from chip.isa import ALU0, IMM, SLICES, STREAMS
from chip.jit import jit_inline
from chip.linking.arguments import (
    ACC_ACTIVATION,
    ACC_ACTIVATION_HIGH,
    ACC_BYTES,
    ACC_GROUPS,
    ACC_MODE,
    ACC_PLANE,
    ACC_ROW,
    ACC_TYPE,
    ACC_WEIGHTS,
    ACC_WEIGHTS_HIGH,
    ACC_WORD,
    DISTRIBUTE_LANES,
    DISTRIBUTE_OUTS,
    DISTRIBUTE_SOURCES,
    DISTRIBUTE_WIDTH,
    FP16,
    GATHER_HIGH,
    GATHER_LOW,
    GATHER_OUT,
    INT8,
    IS_WORD,
    MARK,
    MOVE_OUTS,
    MOVE_SOURCE,
    OPERAND_BYTES,
    READ_COPY,
    READ_WORD,
    RECEIVE_CYCLE,
    RECEIVE_ROW,
    RECEIVE_WRITE_CYCLE,
    RECEIVE_WRITE_SLICE,
    SCATTER_HIGH,
    SCATTER_LOW,
    SCATTER_SOURCE,
    SEND_CYCLE,
    SEND_ROW,
    TRANSPOSE_OUTS,
    TRANSPOSE_SOURCES,
    VXM_BYTES,
    VXM_WORD,
    VXM_X,
    WINDOW_BASE,
    WINDOW_CYCLE,
    WINDOW_FIRST,
    WINDOW_LAST,
    WINDOW_SLICE,
    WRITE_CYCLE,
    WRITE_SLICE,
    WRITE_SOURCE,
    WRITE_WORD,
    is_vxm,
)
from chip.linking.elements import (
    GROUPS,
    HI,
    LO,
    MODE,
    N_OUT,
    OP,
    S0,
    S1,
    W0,
    W1,
    Elements,
    Resolved,
)
from chip.linking.planes import plane_of
from chip.opcodes import (
    ACC,
    DISTRIBUTE,
    GATHER,
    READ,
    RECEIVE,
    SCATTER,
    SEND,
    TRANSPOSE,
    WRITE,
)

Array = NDArray[Any]


class RowNumbers(NamedTuple):
    """Where everything lies: rows of sources int32 [slots], of driven bytes int32, of 32-bit
    results int32 [elements], of each install's weights int64 [installs]; -1: nowhere.
    """

    sources: Array
    bytes: Array
    words: Array
    weights: Array
    slice_words: int


@jit_inline
def is_word(c: Elements, sources: Array, slot: int, width: int) -> bool:
    """Four source bytes that are exactly the 32-bit result of one ALU or plane."""
    if width != OPERAND_BYTES:
        return False
    p = sources[slot] // 16
    op = c.blocks[c.block[p], OP]
    if op != ACC and not is_vxm(op):
        return False
    same = True
    for j in range(OPERAND_BYTES):
        same = same and sources[slot + j] == p * 16 + j
    return same


@jit_inline
def _fill_outs(arguments: Array, at: int, c: Elements, rows: RowNumbers, e: int) -> None:
    """The byte rows an element drives, from ``at`` on."""
    scratch = SLICES * rows.slice_words
    for j in range(c.blocks[c.block[e], N_OUT]):
        row = rows.bytes[c.out[e] + j]
        if row >= 0:
            arguments[at + j] = scratch + row


@jit_inline
def _fill_vxm(
    arguments: Array, at: int, c: Elements, r: Resolved, rows: RowNumbers, e: int
) -> None:
    b = c.block[e]
    for operand in range(2):
        s = c.blocks[b, S0] if operand == 0 else c.blocks[b, S1]
        width = c.blocks[b, W0] if operand == 0 else c.blocks[b, W1]
        slot = c.slot[e] + OPERAND_BYTES * operand
        place = at + VXM_X + OPERAND_BYTES * operand
        result = s >= ALU0 and s < IMM
        stream = s >= 0 and s < STREAMS
        if result or (stream and is_word(c, r.sources, slot, width)):
            arguments[place] = rows.words[r.sources[slot] // 16]
            arguments[place + MARK] = IS_WORD
        elif stream:
            for j in range(width):
                arguments[place + j] = rows.sources[slot + j]
    arguments[at + VXM_WORD] = rows.words[e]
    _fill_outs(arguments, at + VXM_BYTES, c, rows, e)


@jit_inline
def _fill_memory(arguments: Array, at: int, c: Elements, rows: RowNumbers, e: int) -> None:
    """READ (a copy) and WRITE."""
    word = c.queue[e] * rows.slice_words + c.a[e]
    if c.blocks[c.block[e], OP] == READ:
        arguments[at + READ_WORD] = word
        _fill_outs(arguments, at + READ_COPY, c, rows, e)
    else:
        arguments[at + WRITE_SOURCE] = rows.sources[c.slot[e]]
        arguments[at + WRITE_WORD] = word
        arguments[at + WRITE_CYCLE] = c.cycle[e]
        arguments[at + WRITE_SLICE] = c.queue[e]


@jit_inline
def _fill_window(arguments: Array, at: int, c: Elements, rows: RowNumbers, e: int) -> None:
    """GATHER and SCATTER."""
    b = c.block[e]
    slot = c.slot[e]
    if c.blocks[b, OP] == SCATTER:
        arguments[at + SCATTER_SOURCE] = rows.sources[slot]
        arguments[at + SCATTER_LOW] = rows.sources[slot + 1]
        arguments[at + SCATTER_HIGH] = rows.sources[slot + 2]
    else:
        arguments[at + GATHER_LOW] = rows.sources[slot]
        arguments[at + GATHER_HIGH] = rows.sources[slot + 1]
        _fill_outs(arguments, at + GATHER_OUT, c, rows, e)
    arguments[at + WINDOW_SLICE] = c.queue[e]
    arguments[at + WINDOW_BASE] = c.a[e]
    arguments[at + WINDOW_FIRST] = c.blocks[b, LO]
    arguments[at + WINDOW_LAST] = c.blocks[b, HI]
    arguments[at + WINDOW_CYCLE] = c.cycle[e]


@jit_inline
def _fill_acc(
    arguments: Array, at: int, c: Elements, r: Resolved, rows: RowNumbers, e: int
) -> None:
    abc = r.abc_of[e]
    wide = c.blocks[c.block[abc], W0] == 2
    load = r.install_of[abc, 0]
    groups = 0
    while groups < GROUPS and r.loads[load, groups] >= 0:
        groups += 1
    arguments[at + ACC_MODE] = c.blocks[c.block[e], MODE]
    arguments[at + ACC_ROW] = c.a[e]
    arguments[at + ACC_TYPE] = FP16 if wide else INT8
    arguments[at + ACC_GROUPS] = groups
    arguments[at + ACC_WEIGHTS] = rows.weights[load]
    arguments[at + ACC_ACTIVATION] = rows.sources[c.slot[abc]]
    if wide:
        arguments[at + ACC_WEIGHTS_HIGH] = rows.weights[r.install_of[abc, 1]]
        arguments[at + ACC_ACTIVATION_HIGH] = rows.sources[c.slot[abc] + 1]
    arguments[at + ACC_WORD] = rows.words[e]
    _fill_outs(arguments, at + ACC_BYTES, c, rows, e)
    arguments[at + ACC_PLANE] = plane_of(c.queue[e])


@jit_inline
def _fill_sxm(arguments: Array, at: int, c: Elements, rows: RowNumbers, e: int) -> None:
    b = c.block[e]
    op = c.blocks[b, OP]
    slot = c.slot[e]
    if op == DISTRIBUTE:
        width = c.blocks[b, W0]
        arguments[at + DISTRIBUTE_WIDTH] = width
        for j in range(width):
            arguments[at + DISTRIBUTE_SOURCES + j] = rows.sources[slot + j]
        arguments[at + DISTRIBUTE_LANES] = rows.sources[slot + width]
        _fill_outs(arguments, at + DISTRIBUTE_OUTS, c, rows, e)
    elif op == TRANSPOSE:
        for j in range(16):
            arguments[at + TRANSPOSE_SOURCES + j] = rows.sources[slot + j]
        _fill_outs(arguments, at + TRANSPOSE_OUTS, c, rows, e)
    else:
        arguments[at + MOVE_SOURCE] = rows.sources[slot]
        _fill_outs(arguments, at + MOVE_OUTS, c, rows, e)


@jit_inline
def fill(
    arguments: Array, at: int, c: Elements, r: Resolved, rows: RowNumbers, write_of: Array, e: int
) -> None:
    """Write the arguments of element ``e`` from ``at`` on, over -1.

    write_of: of a RECEIVE, the WRITE that it does as well, or -1.
    """
    op = c.blocks[c.block[e], OP]
    if is_vxm(op):
        _fill_vxm(arguments, at, c, r, rows, e)
    elif op in (READ, WRITE):
        _fill_memory(arguments, at, c, rows, e)
    elif op in (GATHER, SCATTER):
        _fill_window(arguments, at, c, rows, e)
    elif op == ACC:
        _fill_acc(arguments, at, c, r, rows, e)
    elif op == SEND:
        arguments[at + SEND_ROW] = rows.sources[c.slot[e]]
        arguments[at + SEND_CYCLE] = c.cycle[e]
    elif op == RECEIVE:
        _fill_outs(arguments, at + RECEIVE_ROW, c, rows, e)
        arguments[at + RECEIVE_CYCLE] = c.cycle[e]
        w = write_of[e]
        if w >= 0:
            arguments[at + RECEIVE_ROW] = c.queue[w] * rows.slice_words + c.a[w]
            arguments[at + RECEIVE_WRITE_CYCLE] = c.cycle[w]
            arguments[at + RECEIVE_WRITE_SLICE] = c.queue[w]
    else:
        _fill_sxm(arguments, at, c, rows, e)
