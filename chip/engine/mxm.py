"""Compiled matrix products of one plane, and their sums in accumulator rows.

int8 products are exact in int32, fp16 ones exact and rounded once to fp32.  ACCs that follow each
other with one install, as those of a chunk of tokens do, share a pass over its weights.

Weights are read in place: column c of an installed plane is row ``rows[at + c]`` of the chip's
rows.  Neighbouring columns with the same row are computed once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.engine.dot_fp16 import ACTIVATIONS, dot_fp16, find_repeats, lay_fp16
from chip.engine.dot_int8 import dot, lay, lay_many, products_of_many
from chip.engine.machine import LinkedPiece, Machine
from chip.engine.vxm import encode
from chip.jit import jit_inline, jit_uncounted, prefetch_row, row_of
from chip.linking import (
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
    INT8,
)
from chip.opcodes import SET, SET_EMIT

Array = NDArray[Any]
_NAN = np.uint32(0x7FC00000).view(np.float32)
_AHEAD = 24  # columns whose rows are fetched before they are needed, across installs
_FEW = 4  # int8 activations that are multiplied two by two


@jit_uncounted
def lay_int8(row: Array, out: Array) -> None:
    """An activation int8 [320] as ``dot_int8`` takes it, into int16 [320]."""
    lay(row, out)


@jit_uncounted
def dot_int8(
    signed: Array, rows: Array, at: int, groups: int, a: Array, b: Array, p: Array, q: Array
) -> None:
    """p[c] = weights of column c . a and q[c] the same with b, in one pass over the weights.

    signed int8 [rows, 320]; a, b int16 [320] as ``lay_int8`` left them; p, q int32 [320], zero
    beyond 16 * groups columns.
    Column 16 * g + j comes from the j-th of 16 slices, so columns are taken slice by slice: their
    words lie one behind the other in memory.
    """
    last = rows.shape[0] - 1
    ahead_at = at
    ahead_j = _AHEAD // groups if groups > 0 else 0
    ahead_g = _AHEAD % groups if groups > 0 else 0
    for j in range(16):
        for g in range(groups):
            if ahead_j >= 16:  # the install loaded next, most likely as large as this one
                ahead_at += 16 * groups
                ahead_j -= 16
            prefetch_row(signed, np.int64(rows[min(ahead_at + 16 * ahead_g + ahead_j, last)]))
            ahead_g += 1
            if ahead_g == groups:
                ahead_g = 0
                ahead_j += 1
            c = 16 * g + j
            r = rows[at + c]
            if g > 0 and r == rows[at + c - 16]:
                p[c] = p[c - 16]
                q[c] = q[c - 16]
                continue
            w = row_of(signed, r)
            s, t = dot(w, a, b)
            p[c] = s
            q[c] = t
    for c in range(16 * groups, 320):
        p[c] = 0
        q[c] = 0


@jit_inline
def _accumulate(
    mode: int, number_type: int, row: Array, row_f: Array, product: Array, product_f: Array
) -> None:
    """SET or ADD one product uint32 [320] (or its float32 view) to an accumulator row."""
    if mode in (SET, SET_EMIT):
        for i in range(320):
            row[i] = product[i]
    elif number_type == INT8:
        for i in range(320):
            row[i] = row[i] + product[i]
    else:
        for i in range(320):
            r = row_f[i] + product_f[i]
            row_f[i] = r if r == r else _NAN


@jit_inline
def _copy_word(source: Array, target: Array) -> None:
    """target[:] = source, 32-bit lanes [320]."""
    for i in range(320):
        target[i] = source[i]


@jit_inline
def _together(m: Machine, p: LinkedPiece, k: int) -> int:
    """How many ACCs from element ``k`` on, of one install, one pass over its weights takes."""
    arguments = m.arguments
    at = p.first + k * p.stride
    limit = min(p.elements - k, ACTIVATIONS)
    count = 1
    while count < limit:
        after = at + count * p.stride
        if (
            arguments[after + ACC_TYPE] != arguments[at + ACC_TYPE]
            or arguments[after + ACC_WEIGHTS] != arguments[at + ACC_WEIGHTS]
            or arguments[after + ACC_WEIGHTS_HIGH] != arguments[at + ACC_WEIGHTS_HIGH]
        ):
            break
        count += 1
    return count


@jit_inline
def _multiply_int8(m: Machine, at: int, stride: int, count: int) -> None:
    """The products of ``count`` int8 ACCs of one install."""
    arguments = m.arguments
    install = arguments[at + ACC_WEIGHTS]
    groups = arguments[at + ACC_GROUPS]
    if count > _FEW:
        for k in range(count):
            activation = row_of(m.signed, arguments[at + k * stride + ACC_ACTIVATION])
            m.tile.excess[k] = lay_many(activation, row_of(m.laid, k))
        products_of_many(
            m.signed,
            m.weights,
            install,
            groups,
            count,
            m.laid,
            m.tile.columns,
            m.tile.excess,
            m.products_i,
        )
        return
    for first in range(0, count, 2):
        for k in range(first, min(first + 2, count)):
            activation = row_of(m.signed, arguments[at + k * stride + ACC_ACTIVATION])
            lay_int8(activation, row_of(m.laid, k))
        dot_int8(  # of a last one that is alone, the second product is of no use
            m.signed,
            m.weights,
            install,
            groups,
            row_of(m.laid, first),
            row_of(m.laid, first + 1),
            row_of(m.products_i, first),
            row_of(m.products_i, first + 1),
        )


@jit_inline
def _multiply(
    m: Machine, at: int, stride: int, count: int, compared: int, compared_high: int
) -> None:
    """The products of ``count`` ACCs of one install.

    compared, compared_high: where the columns of the planes of the fp16 install start whose equal
    neighbours are known; either is reloaded without the other.
    """
    arguments = m.arguments
    install = arguments[at + ACC_WEIGHTS]
    groups = arguments[at + ACC_GROUPS]
    if arguments[at + ACC_TYPE] == INT8:
        _multiply_int8(m, at, stride, count)
        return
    high_install = arguments[at + ACC_WEIGHTS_HIGH]
    if install != compared or high_install != compared_high:
        find_repeats(m.quads, m.weights, install, high_install, 16 * groups, m.repeats)
    h = m.halves
    for k in range(count):
        low = arguments[at + k * stride + ACC_ACTIVATION]
        high = arguments[at + k * stride + ACC_ACTIVATION_HIGH]
        lay_fp16(m.rows, low, high, h, k)
    dot_fp16(
        m.rows, m.weights, install, high_install, 16 * groups, count, h, m.products_f, m.repeats
    )


@jit_inline
def run_acc(m: Machine, p: LinkedPiece, first: int) -> None:
    """The elements of an ACC from ``first`` on, and the ABCs whose products they take."""
    arguments = m.arguments
    compared = compared_high = -1
    k = first
    while k < p.elements:
        at = p.first + k * p.stride
        count = _together(m, p, k)
        _multiply(m, at, p.stride, count, compared, compared_high)
        if arguments[at + ACC_TYPE] != INT8:
            compared = arguments[at + ACC_WEIGHTS]
            compared_high = arguments[at + ACC_WEIGHTS_HIGH]
        for j in range(count):
            mode = arguments[at + ACC_MODE]
            number = arguments[at + ACC_PLANE] * m.plane_rows + arguments[at + ACC_ROW]
            row = row_of(m.accumulators, number)
            _accumulate(
                mode,
                arguments[at + ACC_TYPE],
                row,
                row_of(m.accumulators_f, number),
                row_of(m.products_u, j),
                row_of(m.products_f, j),
            )
            if mode >= SET_EMIT:
                if arguments[at + ACC_WORD] >= 0:
                    _copy_word(row, row_of(m.words, arguments[at + ACC_WORD]))
                encode(m, row, at + ACC_BYTES)
            at += p.stride
        k += count
