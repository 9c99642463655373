"""Compiled matrix products of one plane, and their sums in accumulator rows.

int8 products are exact in int32, fp16 ones exact and rounded once to fp32.

Weights are read in place: column c of an installed plane is row ``rows[at + c]`` of the chip's
rows.  Neighbouring columns with the same row are computed once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.engine.dot_int8 import dot, lay
from chip.engine.machine import Halves, LinkedPiece, Machine
from chip.engine.vxm import encode
from chip.jit import jit_any_order, jit_inline, jit_uncounted, prefetch_row, row_of
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
_SCALE = np.float32(2.0**112)
#: fp16 activations multiplied in one pass over the weights.
ACTIVATIONS = 16


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


@jit_uncounted
def decode_half(low: Array, high: Array, bits: Array, values: Array) -> bool:
    """uint16 bits and float32 values of 320 fp16 numbers; False if one is infinite or NaN."""
    top = np.uint32(0)
    for i in range(320):
        h = np.uint32(low[i]) | (np.uint32(high[i]) << np.uint32(8))
        magnitude = np.uint32(h & np.uint32(0x7FFF))
        top = max(top, magnitude)
        bits[i] = np.uint16(h)
        u = np.uint32(
            (np.uint32(h & np.uint32(0x8000)) << np.uint32(16)) | (magnitude << np.uint32(13))
        )
        values[i] = u.view(np.float32) * _SCALE
    return bool(top < np.uint32(0x7C00))


@jit_any_order
def float_dot(w: Array, a: Array) -> Any:
    """Sum of products and of their magnitudes in float64; each product is exact in fp32."""
    s = 0.0
    m = 0.0
    for i in range(320):
        p = np.float64(np.float32(w[i] * a[i]))
        s += p
        m += abs(p)
    return s, m


@jit_uncounted
def _fixed(h: Any) -> Any:
    """An fp16 number (bits) in units of 2^-24."""
    exponent = (h >> 10) & 31
    fraction = h & 1023
    value = fraction if exponent == 0 else (fraction | 1024) << (exponent - 1)
    return -value if h & 0x8000 else value


@jit_uncounted
def exact_dot(w: Array, a: Array) -> Any:
    """The dot product of finite fp16 bits uint16 [320], exact, rounded once to fp32."""
    high = np.int64(0)
    middle = np.int64(0)
    low = np.int64(0)
    mask = np.int64((1 << 20) - 1)
    for i in range(320):
        x = _fixed(np.int64(w[i]))
        y = _fixed(np.int64(a[i]))
        xh = x >> 20
        xl = x & mask
        yh = y >> 20
        yl = y & mask
        high += xh * yh
        middle += xh * yl + xl * yh
        low += xl * yl
    middle += low >> 20
    low &= mask
    high += middle >> 20
    middle &= mask
    negative = high < 0
    if negative:  # negate the three digits
        low = -low
        middle = -middle + (low >> 20)
        low &= mask
        high = -high + (middle >> 20)
        middle &= mask
    rest = (middle << 20) | low
    if high < 1 << 22:
        value = np.float32((high << 40) | rest) * np.float32(2.0**-48)
    else:
        sticky = 1 if rest & ((1 << 28) - 1) else 0
        value = np.float32((high << 12) | (rest >> 28) | sticky) * np.float32(2.0**-20)
    return -value if negative else value


@jit_uncounted
def find_repeats(
    quads: Array, weights: Array, at_low: int, at_high: int, columns: int, repeats: Array
) -> None:
    """repeats[c]: column c holds the same 320 fp16 numbers as column c - 1 (bool [320]).

    quads: the rows as uint32 [rows, 80].  Queries and ones fill many columns with one word.
    """
    repeats[0] = False
    for c in range(1, columns):
        same = True
        for at in (at_low, at_high):
            if weights[at + c] != weights[at + c - 1]:
                a = row_of(quads, weights[at + c])
                b = row_of(quads, weights[at + c - 1])
                difference = np.uint32(0)
                for i in range(80):
                    difference |= a[i] ^ b[i]
                same = same and difference == 0
        repeats[c] = same


@jit_uncounted
def dot_fp16(
    rows8: Array,
    weights: Array,
    at_low: int,
    at_high: int,
    columns: int,
    count: int,
    activations: Halves,
    p: Array,
    repeats: Array,
) -> None:
    """p[k, c] = fp16 column c (low and high byte rows) . activation k < count, fp32.

    p float32 [ACTIVATIONS, 320], zero beyond ``columns``; repeats as of ``find_repeats``.
    """
    bits, values, finite = activations.bits, activations.values, activations.finite
    for c in range(columns):
        if repeats[c]:
            for k in range(count):
                p[k, c] = p[k, c - 1]
            continue
        low = row_of(rows8, weights[at_low + c])
        high = row_of(rows8, weights[at_high + c])
        w_bits = row_of(bits, ACTIVATIONS)
        w_values = row_of(values, ACTIVATIONS)
        w_finite = decode_half(low, high, w_bits, w_values)
        for k in range(count):
            if not w_finite or not finite[k]:
                p[k, c] = _NAN
                continue
            s, magnitude = float_dot(w_values, row_of(values, k))
            error = magnitude * (512.0 * 2.0**-53)
            first = np.float32(s - error)
            if magnitude == 0.0:
                p[k, c] = np.float32(0.0)
            elif first == np.float32(s + error) and first != np.float32(0.0):
                p[k, c] = first
            else:
                p[k, c] = exact_dot(w_bits, row_of(bits, k))
    for k in range(count):
        for c in range(columns, 320):
            p[k, c] = np.float32(0.0) if finite[k] else _NAN


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
    limit = min(p.elements - k, 2 if arguments[at + ACC_TYPE] == INT8 else ACTIVATIONS)
    count = 1
    while count < limit:
        after = at + count * p.stride
        if (
            arguments[after + ACC_TYPE] != arguments[at + ACC_TYPE]
            or arguments[after + ACC_WEIGHTS] != arguments[at + ACC_WEIGHTS]
        ):
            break
        count += 1
    return count


@jit_inline
def _multiply(m: Machine, at: int, stride: int, count: int, compared: int) -> None:
    """The products of ``count`` ACCs of one install.

    compared: where the columns of the fp16 install start whose equal neighbours are known.
    """
    arguments = m.arguments
    install = arguments[at + ACC_WEIGHTS]
    groups = arguments[at + ACC_GROUPS]
    if arguments[at + ACC_TYPE] == INT8:
        for k in range(count):  # when it is one, the second product is of no use
            activation = arguments[at + k * stride + ACC_ACTIVATION]
            lay_int8(row_of(m.signed, activation), row_of(m.laid, k))
        dot_int8(
            m.signed,
            m.weights,
            install,
            groups,
            row_of(m.laid, 0),
            row_of(m.laid, 1),
            row_of(m.products_i, 0),
            row_of(m.products_i, 1),
        )
        return
    high_install = arguments[at + ACC_WEIGHTS_HIGH]
    if install != compared:
        find_repeats(m.quads, m.weights, install, high_install, 16 * groups, m.repeats)
    h = m.halves
    for k in range(count):
        low = row_of(m.rows, arguments[at + k * stride + ACC_ACTIVATION])
        high = row_of(m.rows, arguments[at + k * stride + ACC_ACTIVATION_HIGH])
        h.finite[k] = decode_half(low, high, row_of(h.bits, k), row_of(h.values, k))
    dot_fp16(
        m.rows, m.weights, install, high_install, 16 * groups, count, h, m.products_f, m.repeats
    )


@jit_inline
def run_acc(m: Machine, p: LinkedPiece, first: int) -> None:
    """The elements of an ACC from ``first`` on, and the ABCs whose products they take."""
    arguments = m.arguments
    compared = -1
    k = first
    while k < p.elements:
        at = p.first + k * p.stride
        count = _together(m, p, k)
        _multiply(m, at, p.stride, count, compared)
        if arguments[at + ACC_TYPE] != INT8:
            compared = arguments[at + ACC_WEIGHTS]
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
