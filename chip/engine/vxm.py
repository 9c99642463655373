"""Compiled VXM operations on rows of 320 lanes; see ``docs/machine.md`` for their definition.

``x``, ``y``, ``z`` are uint32 [320]; the f and i forms are float32 and int32 views of the same
rows, so that every loop below is a plain vector loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.engine.machine import LinkedPiece, Machine
from chip.jit import jit_inline, row_of
from chip.linking import IS_WORD, MARK, OPERAND_BYTES, VXM_BYTES, VXM_WORD, VXM_X, VXM_Y
from chip.numerics import (
    F16_MAX,
    I32_LIMIT,
    exp_f32,
    f16_bits_to_f32,
    f32_to_f16_bits,
    f32_to_i32,
    max_f32,
    min_f32,
    rsqrt_f32,
    tanh_f32,
)
from chip.opcodes import (
    ADD_F32,
    ADD_I32,
    AND,
    ASR,
    CVT_F16_F32,
    CVT_F32_F16,
    CVT_F32_I32,
    CVT_I8_I32,
    CVT_I32_F32,
    CVT_I32_I8,
    EQ,
    EXP,
    GE_F32,
    GT_F32,
    MASK,
    MASK_BAR,
    MAX_F32,
    MIN_F32,
    MOV,
    MUL_F32,
    MUL_I32,
    NE,
    NEG_F32,
    OR,
    RELU,
    RSQRT,
    SHL,
    SUB_F32,
    SUB_I32,
    TANH,
    XOR,
)

Array = NDArray[Any]
_NAN_BITS = np.uint32(0x7FC00000)
_NAN = _NAN_BITS.view(np.float32)
_F16_MAX_BITS, _I32_LIMIT_BITS = F16_MAX.view(np.uint32), I32_LIMIT.view(np.uint32)
#: 32-bit rows that belong to the loop, as many as ``chip.linking`` leaves free.
_X, _Y, _IMMEDIATE, _UNUSED = range(4)
_BYTE_1, _BYTE_2, _BYTE_3 = 1, 2, 3  # behind an operand's first


@jit_inline
def _decode_bytes(m: Machine, at: int, out: Array) -> None:
    """Little-endian bytes into uint32 [320], of the 1, 2 or 4 rows that the arguments from ``at``
    name (absent ones -1).
    """
    rows, arguments = m.rows, m.arguments
    r1, r2, r3 = arguments[at + _BYTE_1], arguments[at + _BYTE_2], arguments[at + _BYTE_3]
    b0 = row_of(rows, arguments[at])
    if r1 < 0:
        for i in range(320):
            out[i] = np.uint32(b0[i])
        return
    b1 = row_of(rows, r1)
    if r2 < 0:
        for i in range(320):
            out[i] = np.uint32(b0[i]) | (np.uint32(b1[i]) << np.uint32(8))
        return
    b2 = row_of(rows, r2)
    b3 = row_of(rows, r3)
    for i in range(320):
        out[i] = (
            np.uint32(b0[i])
            | (np.uint32(b1[i]) << np.uint32(8))
            | (np.uint32(b2[i]) << np.uint32(16))
            | (np.uint32(b3[i]) << np.uint32(24))
        )


@jit_inline
def encode_byte(word: Array, shift: int, out: Array) -> None:
    """One byte of each uint32 lane."""
    s = np.uint32(shift)
    for i in range(320):
        out[i] = np.uint8((word[i] >> s) & np.uint32(255))


@jit_inline
def _binary(op: int, x: Array, y: Array, z: Array, xf: Array, yf: Array, zf: Array) -> None:
    if op == ADD_F32:
        for i in range(320):
            r = xf[i] + yf[i]
            zf[i] = r if r == r else _NAN
    elif op == SUB_F32:
        for i in range(320):
            r = xf[i] - yf[i]
            zf[i] = r if r == r else _NAN
    elif op == MUL_F32:
        for i in range(320):
            r = xf[i] * yf[i]
            zf[i] = r if r == r else _NAN
    elif op == MAX_F32:
        for i in range(320):
            zf[i] = max_f32(xf[i], yf[i])
    elif op == MIN_F32:
        for i in range(320):
            zf[i] = min_f32(xf[i], yf[i])
    elif op == ADD_I32:
        for i in range(320):
            z[i] = x[i] + y[i]
    elif op == SUB_I32:
        for i in range(320):
            z[i] = x[i] - y[i]
    elif op == MUL_I32:
        for i in range(320):
            z[i] = np.uint32(x[i] * y[i])
    elif op == SHL:
        for i in range(320):
            z[i] = x[i] << (y[i] & np.uint32(31))
    elif op == AND:
        for i in range(320):
            z[i] = x[i] & y[i]
    elif op == OR:
        for i in range(320):
            z[i] = x[i] | y[i]
    elif op == XOR:
        for i in range(320):
            z[i] = x[i] ^ y[i]
    elif op == MASK:
        for i in range(320):
            z[i] = x[i] if (y[i] & np.uint32(255)) != np.uint32(0) else np.uint32(0)
    elif op == MASK_BAR:
        for i in range(320):
            z[i] = np.uint32(0) if (y[i] & np.uint32(255)) != np.uint32(0) else x[i]
    elif op == EQ:
        for i in range(320):
            z[i] = np.uint32(1) if x[i] == y[i] else np.uint32(0)
    elif op == NE:
        for i in range(320):
            z[i] = np.uint32(1) if x[i] != y[i] else np.uint32(0)
    elif op == GT_F32:
        for i in range(320):
            z[i] = np.uint32(1) if xf[i] > yf[i] else np.uint32(0)
    elif op == GE_F32:
        for i in range(320):
            z[i] = np.uint32(1) if xf[i] >= yf[i] else np.uint32(0)


@jit_inline
def _unary(op: int, x: Array, z: Array, xf: Array, zf: Array, xi: Array, zi: Array) -> None:
    if op == MOV:
        for i in range(320):
            z[i] = x[i]
    elif op == EXP:
        for i in range(320):
            zf[i] = exp_f32(xf[i])
    elif op == TANH:
        for i in range(320):
            zf[i] = tanh_f32(xf[i])
    elif op == RSQRT:
        for i in range(320):
            zf[i] = rsqrt_f32(xf[i])
    elif op == RELU:
        for i in range(320):
            u = x[i]
            is_nan = (u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            positive = u if u < np.uint32(0x80000000) else np.uint32(0)
            z[i] = _NAN_BITS if is_nan else positive
    elif op == NEG_F32:
        for i in range(320):
            u = x[i]
            is_nan = (u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            z[i] = _NAN_BITS if is_nan else u ^ np.uint32(0x80000000)
    elif op == CVT_F32_I32:
        for i in range(320):
            zi[i] = f32_to_i32(xf[i])
    elif op == CVT_I32_F32:
        for i in range(320):
            zf[i] = np.float32(xi[i])
    elif op == CVT_F32_F16:
        for i in range(320):
            z[i] = np.uint32(f32_to_f16_bits(xf[i]))
    elif op == CVT_F16_F32:
        for i in range(320):
            zf[i] = f16_bits_to_f32(np.uint16(x[i] & np.uint32(0xFFFF)))
    elif op == CVT_I32_I8:
        for i in range(320):
            v = xi[i]
            v = np.int32(127) if v > np.int32(127) else v
            v = np.int32(-128) if v < np.int32(-128) else v
            zi[i] = v & np.int32(255)
    elif op == CVT_I8_I32:
        for i in range(320):
            zi[i] = np.int32(np.int8(x[i] & np.uint32(255)))


@jit_inline
def vxm(
    op: int,
    x: Array,
    y: Array,
    z: Array,
    xf: Array,
    yf: Array,
    zf: Array,
    xi: Array,
    yi: Array,
    zi: Array,
) -> None:
    """z = op(x, y)."""
    if op == ASR:
        for i in range(320):
            zi[i] = xi[i] >> (yi[i] & np.int32(31))
    elif (op >= ADD_F32 and op <= XOR) or op >= MASK:
        _binary(op, x, y, z, xf, yf, zf)
    else:
        _unary(op, x, z, xf, zf, xi, zi)


@jit_inline
def _greatest(op: int, x: Array) -> Any:
    """Of 320 lanes the greatest magnitude's bits, or of integers the one farthest from int8's."""
    most = np.uint32(0)
    if op == CVT_I32_I8:
        for i in range(320):
            a = np.uint32(x[i] + np.uint32(128))
            most = a if a > most else most
    else:
        for i in range(320):
            a = np.uint32(x[i] & np.uint32(0x7FFFFFFF))
            most = a if a > most else most
    return most


@jit_inline
def _saturated(op: int, x: Array, xf: Array, xi: Array) -> int:
    """Lanes whose value lies beyond the range of the conversion's result.

    One maximum over the lanes says that there are none, as nearly always.
    """
    most = _greatest(op, x)
    lost = 0
    if op == CVT_F32_F16:
        if most > _F16_MAX_BITS:
            for i in range(320):
                lost += 1 if xf[i] > F16_MAX or xf[i] < -F16_MAX else 0
    elif op == CVT_F32_I32:
        if most >= _I32_LIMIT_BITS:
            for i in range(320):
                lost += 0 if xf[i] >= -I32_LIMIT and xf[i] < I32_LIMIT else 1
    elif most > np.uint32(255):
        for i in range(320):
            lost += 1 if xi[i] > np.int32(127) or xi[i] < np.int32(-128) else 0
    return lost


@jit_inline
def encode(m: Machine, word: Array, at: int) -> None:
    """The wanted bytes of a 32-bit row into the byte rows that the arguments from ``at`` name."""
    for j in range(OPERAND_BYTES):
        row = m.arguments[at + j]
        if row >= 0:
            encode_byte(word, 8 * j, row_of(m.rows, row))


@jit_inline
def _operand(m: Machine, at: int, temporary: int) -> int:
    """The 32-bit row of an operand: a result, the immediate's row, or decoded bytes."""
    arguments = m.arguments
    if arguments[at + MARK] == IS_WORD:
        return int(arguments[at])
    if arguments[at] < 0:
        return _IMMEDIATE
    _decode_bytes(m, at, row_of(m.words, temporary))
    return temporary


@jit_inline
def _is_coded(m: Machine, at: int) -> bool:
    """Whether the arguments from ``at`` name any byte row."""
    found = False
    for j in range(OPERAND_BYTES):
        found = found or m.arguments[at + j] >= 0
    return found


@jit_inline
def run_vxm(m: Machine, p: LinkedPiece) -> None:
    """The elements of a VXM operation whose results somebody uses, and of all that may saturate."""
    arguments = m.arguments
    immediate = row_of(m.words, _IMMEDIATE)
    immediate[:] = np.uint32(p.imm & 0xFFFFFFFF)
    for k in range(p.elements):
        at = p.first + k * p.stride
        coded = _is_coded(m, at + VXM_BYTES)
        word = arguments[at + VXM_WORD]
        if word < 0 and not coded and p.counter < 0:
            continue
        x = _operand(m, at + VXM_X, _X)
        y = _operand(m, at + VXM_Y, _Y)
        z = word if word >= 0 else _UNUSED
        vxm(
            p.op,
            row_of(m.words, x),
            row_of(m.words, y),
            row_of(m.words, z),
            row_of(m.words_f, x),
            row_of(m.words_f, y),
            row_of(m.words_f, z),
            row_of(m.words_i, x),
            row_of(m.words_i, y),
            row_of(m.words_i, z),
        )
        if p.counter >= 0:
            lost = _saturated(p.op, row_of(m.words, x), row_of(m.words_f, x), row_of(m.words_i, x))
            m.saturated[p.counter] += lost
        if coded:
            encode(m, row_of(m.words, z), at + VXM_BYTES)
