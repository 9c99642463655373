"""The arithmetic of the reference executor: ALU results, exact fp16 dot products, lane moves.

Plain NumPy and Python integers; of :mod:`chip.numerics` it uses the array functions that define
exp, tanh, rsqrt and the conversions, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip import numerics
from chip.isa import LANES, LANES_PER_SUPERLANE, SUPERLANES, Op
from chip.saturation import FP16, INT8, INT32

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint32]
Floats = NDArray[np.float32]

_NAN = np.uint32(0x7FC00000)
_FP16_ENDS, _INT32_ENDS, _INT8_ENDS = (-65504.0, 65504.0), (-(2.0**31), 2.0**31 - 1), (-128, 127)


def _f(x: Words) -> Floats:
    """The bits as fp32."""
    return x.view(np.float32)


def _bits(value: NDArray[Any]) -> Words:
    """fp32 or int32 values as bits; every NaN canonical."""
    bits = np.ascontiguousarray(value).view(np.uint32)
    if value.dtype == np.float32:
        return np.where(np.isnan(value), _NAN, bits)
    return bits


def _pick(x: Words, y: Words, greater: bool) -> Words:
    """MAX or MIN: the number if one is NaN; zeros by their sign bits."""
    a, b = _f(x), _f(y)
    first = a > b if greater else a < b
    ordered = np.where(first, x, y)
    both = (x & y) if greater else (x | y)  # of two equal operands: only zeros differ in bits
    chosen = np.where(a == b, both, ordered)
    chosen = np.where(np.isnan(a), y, np.where(np.isnan(b), x, chosen))
    return _bits(_f(chosen))


def _f16_value(x: Words) -> Floats:
    return numerics.from_f16_bits((x & 0xFFFF).astype(np.uint16))


_UNARY: dict[Op, Callable[[Words], Words]] = {
    Op.MOV: lambda x: x,
    Op.EXP: lambda x: _bits(numerics.exp(_f(x))),
    Op.TANH: lambda x: _bits(numerics.tanh(_f(x))),
    Op.RSQRT: lambda x: _bits(numerics.rsqrt(_f(x))),
    Op.RELU: lambda x: np.where(np.isnan(_f(x)), _NAN, np.where(_f(x) > 0, x, np.uint32(0))),
    Op.NEG_F32: lambda x: _bits(-_f(x)),
    Op.CVT_F32_I32: lambda x: _bits(numerics.to_i32(_f(x))),
    Op.CVT_I32_F32: lambda x: _bits(x.view(np.int32).astype(np.float32)),
    Op.CVT_F32_F16: lambda x: numerics.to_f16_bits(_f(x)).astype(np.uint32),
    Op.CVT_F16_F32: lambda x: _bits(_f16_value(x)),
    Op.CVT_I32_I8: lambda x: _bits(np.clip(x.view(np.int32), -128, 127)) & np.uint32(0xFF),
    Op.CVT_I8_I32: lambda x: _bits(x.astype(np.uint8).view(np.int8).astype(np.int32)),
}


def _outside(value: NDArray[Any], ends: tuple[float, float], nan: bool) -> NDArray[np.bool_]:
    """Which values lie beyond the ends of a type's range; ``nan``: what a NaN counts as."""
    is_nan = np.isnan(value)
    exact = np.where(is_nan, 0, value).astype(np.float64)
    return np.where(is_nan, nan, (exact < ends[0]) | (exact > ends[1]))


#: The conversions that saturate: the kind as of ``chip.saturation``, and which lanes lose theirs.
SATURATING: dict[Op, tuple[int, Callable[[Words], NDArray[np.bool_]]]] = {
    Op.CVT_F32_F16: (FP16, lambda x: _outside(_f(x), _FP16_ENDS, False)),
    Op.CVT_F32_I32: (INT32, lambda x: _outside(_f(x), _INT32_ENDS, True)),
    Op.CVT_I32_I8: (INT8, lambda x: _outside(x.view(np.int32), _INT8_ENDS, False)),
}

_BINARY: dict[Op, Callable[[Words, Words], Words]] = {
    Op.ADD_F32: lambda x, y: _bits(_f(x) + _f(y)),
    Op.SUB_F32: lambda x, y: _bits(_f(x) - _f(y)),
    Op.MUL_F32: lambda x, y: _bits(_f(x) * _f(y)),
    Op.MAX_F32: lambda x, y: _pick(x, y, True),
    Op.MIN_F32: lambda x, y: _pick(x, y, False),
    Op.ADD_I32: lambda x, y: x + y,
    Op.SUB_I32: lambda x, y: x - y,
    Op.MUL_I32: lambda x, y: x * y,
    Op.SHL: lambda x, y: x << (y & np.uint32(31)),
    Op.ASR: lambda x, y: _bits(x.view(np.int32) >> (y & np.uint32(31)).view(np.int32)),
    Op.AND: lambda x, y: x & y,
    Op.OR: lambda x, y: x | y,
    Op.XOR: lambda x, y: x ^ y,
    Op.MASK: lambda x, y: np.where(y & 0xFF, x, np.uint32(0)),
    Op.MASK_BAR: lambda x, y: np.where(y & 0xFF, np.uint32(0), x),
    Op.EQ: lambda x, y: (x == y).astype(np.uint32),
    Op.NE: lambda x, y: (x != y).astype(np.uint32),
    Op.GT_F32: lambda x, y: (_f(x) > _f(y)).astype(np.uint32),
    Op.GE_F32: lambda x, y: (_f(x) >= _f(y)).astype(np.uint32),
}


def alu_result(op: Op, x: Words, y: Words) -> Words:
    """The result register of an ALU: op(x, y) on uint32 bits [320]; unary ops ignore ``y``."""
    with np.errstate(all="ignore"):
        return _UNARY[op](x) if op in _UNARY else _BINARY[op](x, y)


def add_rows(row: NDArray[Any], value: NDArray[Any]) -> NDArray[Any]:
    """An accumulator row plus a product: int32 modulo 2^32 or fp32."""
    with np.errstate(all="ignore"):
        total: NDArray[Any] = row + value
    return _bits(total).view(value.dtype)


def dot_f16(matrix: NDArray[np.uint16], vector: NDArray[np.uint16]) -> Floats:
    """Exact dot products of fp16 bits: ``matrix`` [320 columns, 320 lanes] with ``vector`` [320].

    Every finite fp16 is an integer times 2^-24, so a sum of products is a Python integer times
    2^-48: exact, then rounded once.
    """
    weights, activation = matrix.view(np.float16), vector.view(np.float16)
    finite = bool(np.isfinite(activation).all())
    wrong = np.array([not (finite and np.isfinite(column).all()) for column in weights])
    out = np.zeros(len(weights), np.float32)
    lanes = np.flatnonzero(np.nan_to_num(activation, nan=0.0, posinf=0.0, neginf=0.0))
    right = [int(a) for a in activation[lanes].astype(np.float64) * 2.0**24]
    for n, column in enumerate(weights):
        if not wrong[n] and column[lanes].any():
            left = (column[lanes].astype(np.float64) * 2.0**24).astype(np.int64).tolist()
            out[n] = _round_to_f32(sum(a * b for a, b in zip(left, right, strict=True)), -48)
    out[wrong] = _NAN.view(np.float32)
    return out


def _round_to_f32(integer: int, exponent: int) -> float:
    """``integer`` * 2**``exponent`` rounded once, to nearest even, to 24 bits (no subnormals)."""
    magnitude = abs(integer)
    shift = max(0, magnitude.bit_length() - 24)
    kept, lost = magnitude >> shift, magnitude & ((1 << shift) - 1)
    half = (1 << shift) >> 1
    if shift and (lost > half or (lost == half and kept & 1)):
        kept += 1
    return math.copysign(math.ldexp(kept, shift + exponent), integer)


def distributed(vectors: Bytes, lanes: Bytes) -> Bytes:
    """DISTRIBUTE of ``vectors`` [n, 320]: lane j of a superlane takes its lane ``lanes[j]``."""
    out = np.zeros_like(vectors)
    for lane in range(LANES):
        source = int(lanes[lane])
        if source < LANES_PER_SUPERLANE:
            superlane = lane // LANES_PER_SUPERLANE
            out[:, lane] = vectors[:, LANES_PER_SUPERLANE * superlane + source]
    return out


def transposed(vectors: Bytes) -> Bytes:
    """TRANSPOSE of ``vectors`` [16, 320]: streams and lanes of every superlane change places."""
    tiles = vectors.reshape(16, SUPERLANES, LANES_PER_SUPERLANE)
    return tiles.transpose(2, 1, 0).reshape(16, LANES)


def shifted(vector: Bytes, lanes: int) -> Bytes:
    """SHIFT of ``vector`` [320]: out lane n is in lane n - ``lanes``, zero filled."""
    out = np.zeros_like(vector)
    for lane in range(LANES):
        if 0 <= lane - lanes < LANES:
            out[lane] = vector[lane - lanes]
    return out


def rotated(vector: Bytes, n: int) -> Bytes:
    """ROTATE of ``vector`` [320]: all rotations [n*n, 320] of each superlane's n x n matrix."""
    tiles = vector.reshape(SUPERLANES, LANES_PER_SUPERLANE)
    out = np.zeros((n * n, SUPERLANES, LANES_PER_SUPERLANE), np.uint8)
    for up in range(n):
        for left in range(n):
            for row in range(n):
                for column in range(n):
                    source = (row + up) % n * n + (column + left) % n
                    out[up * n + left, :, row * n + column] = tiles[:, source]
    return out.reshape(n * n, LANES)
