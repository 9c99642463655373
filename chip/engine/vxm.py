"""Compiled VXM operations on rows of 320 lanes; see ``docs/machine.md`` for their definition.

``x``, ``y``, ``z`` are uint32 [320]; the f and i forms are float32 and int32 views of the same
rows, so that every loop below is a plain vector loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.jit import jit_inline, row_of
from chip.numerics import (
    exp_f32,
    f16_bits_to_f32,
    f32_to_f16_bits,
    f32_to_i32,
    max_f32,
    min_f32,
    rsqrt_f32,
    tanh_f32,
)

Array = NDArray[Any]
_NAN_BITS = np.uint32(0x7FC00000)
_NAN = _NAN_BITS.view(np.float32)


@jit_inline
def decode_bytes(rows: Array, r0: int, r1: int, r2: int, r3: int, out: Array) -> None:
    """Little-endian bytes of 1, 2 or 4 rows (absent ones -1) into uint32 [320]."""
    b0 = row_of(rows, r0)
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
    if op == 65:
        for i in range(320):
            r = xf[i] + yf[i]
            zf[i] = r if r == r else _NAN
    elif op == 66:
        for i in range(320):
            r = xf[i] - yf[i]
            zf[i] = r if r == r else _NAN
    elif op == 67:
        for i in range(320):
            r = xf[i] * yf[i]
            zf[i] = r if r == r else _NAN
    elif op == 68:
        for i in range(320):
            zf[i] = max_f32(xf[i], yf[i])
    elif op == 69:
        for i in range(320):
            zf[i] = min_f32(xf[i], yf[i])
    elif op == 70:
        for i in range(320):
            z[i] = x[i] + y[i]
    elif op == 71:
        for i in range(320):
            z[i] = x[i] - y[i]
    elif op == 72:
        for i in range(320):
            z[i] = np.uint32(x[i] * y[i])
    elif op == 73:
        for i in range(320):
            z[i] = x[i] << (y[i] & np.uint32(31))
    elif op == 75:
        for i in range(320):
            z[i] = x[i] & y[i]
    elif op == 76:
        for i in range(320):
            z[i] = x[i] | y[i]
    elif op == 77:
        for i in range(320):
            z[i] = x[i] ^ y[i]
    elif op == 89:
        for i in range(320):
            z[i] = x[i] if (y[i] & np.uint32(255)) != np.uint32(0) else np.uint32(0)
    elif op == 90:
        for i in range(320):
            z[i] = np.uint32(0) if (y[i] & np.uint32(255)) != np.uint32(0) else x[i]
    elif op == 91:
        for i in range(320):
            z[i] = np.uint32(1) if x[i] == y[i] else np.uint32(0)
    elif op == 92:
        for i in range(320):
            z[i] = np.uint32(1) if x[i] != y[i] else np.uint32(0)
    elif op == 93:
        for i in range(320):
            z[i] = np.uint32(1) if xf[i] > yf[i] else np.uint32(0)
    elif op == 94:
        for i in range(320):
            z[i] = np.uint32(1) if xf[i] >= yf[i] else np.uint32(0)


@jit_inline
def _unary(op: int, x: Array, z: Array, xf: Array, zf: Array, xi: Array, zi: Array) -> None:
    if op == 64:
        for i in range(320):
            z[i] = x[i]
    elif op == 78:
        for i in range(320):
            zf[i] = exp_f32(xf[i])
    elif op == 79:
        for i in range(320):
            zf[i] = tanh_f32(xf[i])
    elif op == 80:
        for i in range(320):
            zf[i] = rsqrt_f32(xf[i])
    elif op == 81:
        for i in range(320):
            u = x[i]
            is_nan = (u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            positive = u if u < np.uint32(0x80000000) else np.uint32(0)
            z[i] = _NAN_BITS if is_nan else positive
    elif op == 82:
        for i in range(320):
            u = x[i]
            is_nan = (u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            z[i] = _NAN_BITS if is_nan else u ^ np.uint32(0x80000000)
    elif op == 83:
        for i in range(320):
            zi[i] = f32_to_i32(xf[i])
    elif op == 84:
        for i in range(320):
            zf[i] = np.float32(xi[i])
    elif op == 85:
        for i in range(320):
            z[i] = np.uint32(f32_to_f16_bits(xf[i]))
    elif op == 86:
        for i in range(320):
            zf[i] = f16_bits_to_f32(np.uint16(x[i] & np.uint32(0xFFFF)))
    elif op == 87:
        for i in range(320):
            v = xi[i]
            v = np.int32(127) if v > np.int32(127) else v
            v = np.int32(-128) if v < np.int32(-128) else v
            zi[i] = v & np.int32(255)
    elif op == 88:
        for i in range(320):
            zi[i] = np.int32(np.int8(x[i] & np.uint32(255)))


@jit_inline
def vxm(
    op: int, x: Array, y: Array, z: Array, xf: Array, yf: Array, zf: Array, xi: Array, yi: Array,
    zi: Array,
) -> None:
    """z = op(x, y)."""
    if op == 74:
        for i in range(320):
            zi[i] = xi[i] >> (yi[i] & np.int32(31))
    elif (op >= 65 and op <= 77) or op >= 89:
        _binary(op, x, y, z, xf, yf, zf)
    else:
        _unary(op, x, z, xf, zf, xi, zi)
