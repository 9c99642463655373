"""The machine's floating-point functions, bit for bit the same on every host.

``exp``, ``tanh`` and ``rsqrt`` return the correctly rounded fp32 result for *every* input, using
only IEEE double add, subtract, multiply, divide and square root in a fixed order: no libm, no
fused multiply-add, no tables.  The doubles carry an error near 2**-52, which could in principle
fall on the wrong side of a rounding boundary; it does so for no fp32 input.  That is proven by
enumeration, not by argument: ``python -m chip.verify_numerics`` checks all 2**32 inputs of each
function (the operations are exactly specified, so one machine speaks for all).  Hence no slow
path, no data-dependent branch, and loops over lanes vectorise.

Conversions, MAX and MIN follow ``docs/machine.md``: nearest-even, subnormals kept, saturation,
one canonical NaN (0x7FC00000; fp16 0x7E00).

Three layers: compiled scalar functions (``exp_f32`` ...) for kernels that loop over lanes; array
functions (``exp`` ...) for NumPy callers; and the exact fp16 dot product on matrix products whose
every sum is exact, which is the golden model's definition of the MXM's fp16 mode.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.jit import compiled
from chip.saturation import FP16, INT8, INT32, note

F32Array = NDArray[np.float32]
F64Array = NDArray[np.float64]
U16Array = NDArray[np.uint16]
I32Array = NDArray[np.int32]

NAN_BITS = 0x7FC00000
NAN_F16_BITS = 0x7E00
#: The largest fp16 value, and what is as large as no int32.
F16_MAX = np.float32(65504.0)
I32_LIMIT = np.float32(2147483648.0)

_NAN = np.uint32(NAN_BITS).view(np.float32)
_SIGN = np.uint32(0x80000000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)

# Adding 1.5 * 2**52 rounds a small double to an integer, nearest even, in its low mantissa bits.
_ROUNDER = 6755399441055744.0
_INV_LN2 = 1.4426950408889634
_LN2_HI = 0.6931471803691238  # 33 significant bits: k * _LN2_HI is exact for |k| < 2**20
_LN2_LO = 1.9082149292705877e-10

# Taylor coefficients 1/n! of exp: on |r| <= ln(2)/2 the first one left out is below 2**-57.
_C2 = 1.0 / 2.0
_C3 = 1.0 / 6.0
_C4 = 1.0 / 24.0
_C5 = 1.0 / 120.0
_C6 = 1.0 / 720.0
_C7 = 1.0 / 5040.0
_C8 = 1.0 / 40320.0
_C9 = 1.0 / 362880.0
_C10 = 1.0 / 3628800.0
_C11 = 1.0 / 39916800.0
_C12 = 1.0 / 479001600.0
_C13 = 1.0 / 6227020800.0


# --- compiled scalar functions -------------------------------------------------------------


@compiled
def f32_bits(x: Any) -> Any:
    """The bits of an fp32 value as uint32."""
    return np.float32(x).view(np.uint32)


@compiled
def bits_f32(u: Any) -> Any:
    """The fp32 value with these uint32 bits."""
    return np.uint32(u).view(np.float32)


@compiled
def canonical(x: Any) -> Any:
    """x, or the canonical NaN if x is any NaN."""
    return x if x == x else _NAN


@compiled
def _expm1_reduced(r: Any) -> Any:
    """exp(r) - 1 for |r| <= ln(2)/2, to about 2**-53 relative."""
    r2 = r * r
    r4 = r2 * r2
    r8 = r4 * r4
    low = (_C2 + r * _C3) + r2 * (_C4 + r * _C5)
    mid = (_C6 + r * _C7) + r2 * (_C8 + r * _C9)
    high = (_C10 + r * _C11) + r2 * (_C12 + r * _C13)
    return r + r2 * (low + (r4 * mid + r8 * high))


@compiled
def exp_f32(x: Any) -> Any:
    """exp(x), correctly rounded to fp32; overflow gives infinity, underflow +0."""
    x = np.float32(x)
    d: Any = np.float64(x)
    d = 89.0 if d > 89.0 else d
    d = -104.0 if d < -104.0 else d
    t = d * _INV_LN2 + _ROUNDER
    k = t - _ROUNDER
    scale = np.int64((np.float64(t).view(np.int64) + 1023) << 52).view(np.float64)
    q = _expm1_reduced((d - k * _LN2_HI) - k * _LN2_LO)
    y = np.float32((1.0 + q) * scale)
    return y if x == x else _NAN


@compiled
def tanh_f32(x: Any) -> Any:
    """tanh(x), correctly rounded to fp32; keeps the sign of zero."""
    x = np.float32(x)
    u = f32_bits(x)
    d: Any = np.float64(np.uint32(u & _MAGNITUDE).view(np.float32)) * 2.0
    d = 20.0 if d > 20.0 else d
    t = d * _INV_LN2 + _ROUNDER
    k = t - _ROUNDER
    scale = np.int64((np.float64(t).view(np.int64) + 1023) << 52).view(np.float64)
    q = _expm1_reduced((d - k * _LN2_HI) - k * _LN2_LO)
    e = q * scale + (scale - 1.0)  # exp(2|x|) - 1, without cancellation near zero
    y = np.float32(e / (e + 2.0)).view(np.uint32) | (u & _SIGN)
    return np.uint32(y).view(np.float32) if x == x else _NAN


@compiled
def rsqrt_f32(x: Any) -> Any:
    """1/sqrt(x), correctly rounded to fp32; +-0 gives +-infinity, negative numbers NaN."""
    x = np.float32(x)
    y = np.float32(1.0 / np.sqrt(np.float64(x)))  # sqrt(-0) = -0
    return y if y == y else _NAN


@compiled
def max_f32(a: Any, b: Any) -> Any:
    """The greater operand; the other one if one is NaN; max(-0, +0) = +0."""
    equal = bits_f32(f32_bits(a) & f32_bits(b))
    ordered = a if a > b else (b if b > a else equal)
    return canonical(b) if a != a else (a if b != b else ordered)


@compiled
def min_f32(a: Any, b: Any) -> Any:
    """The lesser operand; the other one if one is NaN; min(-0, +0) = -0."""
    equal = bits_f32(f32_bits(a) | f32_bits(b))
    ordered = a if a < b else (b if b < a else equal)
    return canonical(b) if a != a else (a if b != b else ordered)


@compiled
def f32_to_i32(x: Any) -> Any:
    """The nearest int32, ties to even; saturates; NaN gives 0."""
    d: Any = np.float64(x)
    d = 2147483647.0 if d > 2147483647.0 else d
    d = -2147483648.0 if d < -2147483648.0 else d
    i = np.int32(np.float64(d + _ROUNDER).view(np.int64) & 0xFFFFFFFF)
    return i if x == x else np.int32(0)


@compiled
def f32_to_f16_bits(x: Any) -> Any:
    """The bits (uint16) of the nearest fp16, ties to even; saturates at +-65504; NaN is 0x7E00."""
    u = f32_bits(x)
    a = u & _MAGNITUDE
    # Below 2**-14 the fp16 result is subnormal: adding 0.5 rounds at its unit, 2**-24.
    small = f32_bits(bits_f32(a) + np.float32(0.5)) - np.uint32(0x3F000000)
    odd = (a >> np.uint32(13)) & np.uint32(1)
    normal = ((a + np.uint32(0xFFF) + odd) >> np.uint32(13)) - np.uint32(112 << 10)
    h = small if a < np.uint32(0x38800000) else normal
    h = np.uint32(0x7BFF) if a >= np.uint32(0x477FE000) else h
    h |= (u >> np.uint32(16)) & np.uint32(0x8000)
    return np.uint16(np.uint32(NAN_F16_BITS) if a > _INFINITY else h)


@compiled
def f16_bits_to_f32(h: Any) -> Any:
    """The fp32 value of these fp16 bits (uint16); every NaN becomes the canonical one."""
    w = np.uint32(h)
    a = w & np.uint32(0x7FFF)
    small = f32_bits(np.float32(a) * np.float32(5.9604644775390625e-08))
    bias = np.uint32(112 << 23) if a < np.uint32(0x7C00) else np.uint32(224 << 23)
    normal = (a << np.uint32(13)) + bias
    u = small if a < np.uint32(0x400) else normal
    u |= (w & np.uint32(0x8000)) << np.uint32(16)
    return bits_f32(np.uint32(NAN_BITS) if a > np.uint32(0x7C00) else u)


# --- array functions ------------------------------------------------------------------------


@compiled
def exp_into(x: Any, out: Any) -> None:
    """out[i] = exp(x[i]) for one-dimensional float32 arrays."""
    for i in range(x.shape[0]):
        out[i] = exp_f32(x[i])


@compiled
def tanh_into(x: Any, out: Any) -> None:
    """out[i] = tanh(x[i]) for one-dimensional float32 arrays."""
    for i in range(x.shape[0]):
        out[i] = tanh_f32(x[i])


@compiled
def rsqrt_into(x: Any, out: Any) -> None:
    """out[i] = 1/sqrt(x[i]) for one-dimensional float32 arrays."""
    for i in range(x.shape[0]):
        out[i] = rsqrt_f32(x[i])


@compiled
def f32_to_f16_into(x: Any, out: Any) -> None:
    """out[i] = fp16 bits of x[i] for one-dimensional float32 and uint16 arrays."""
    for i in range(x.shape[0]):
        out[i] = f32_to_f16_bits(x[i])


@compiled
def f16_to_f32_into(x: Any, out: Any) -> None:
    """out[i] = value of the fp16 bits x[i] for one-dimensional uint16 and float32 arrays."""
    for i in range(x.shape[0]):
        out[i] = f16_bits_to_f32(x[i])


@compiled
def f32_to_i32_into(x: Any, out: Any) -> None:
    """out[i] = nearest int32 of x[i] for one-dimensional float32 and int32 arrays."""
    for i in range(x.shape[0]):
        out[i] = f32_to_i32(x[i])


@compiled
def canonical_into(x: Any, out: Any) -> None:
    """out[i] = x[i], or the canonical NaN, for one-dimensional float32 arrays."""
    for i in range(x.shape[0]):
        out[i] = canonical(x[i])


def _map(kernel: Any, x: NDArray[Any], source: type, result: type) -> NDArray[Any]:
    """Apply an ``*_into`` kernel to an array of any shape and layout."""
    if x.dtype != source:
        raise TypeError(f"expected {np.dtype(source)}, got {x.dtype}")
    flat = np.ascontiguousarray(x).reshape(-1)
    out: NDArray[Any] = np.empty(flat.shape, result)
    kernel(flat, out)
    return out.reshape(x.shape)


def exp(x: F32Array) -> F32Array:
    """exp, correctly rounded, of a float32 array."""
    return _map(exp_into, x, np.float32, np.float32)


def tanh(x: F32Array) -> F32Array:
    """tanh, correctly rounded, of a float32 array."""
    return _map(tanh_into, x, np.float32, np.float32)


def rsqrt(x: F32Array) -> F32Array:
    """1/sqrt, correctly rounded, of a float32 array."""
    return _map(rsqrt_into, x, np.float32, np.float32)


def to_f16_bits(x: F32Array, copies: int = 1) -> U16Array:
    """A float32 array as fp16 bits: nearest even, saturating, NaN 0x7E00.

    copies: how often the machine does it, for ``chip.saturation``.
    """
    note(FP16, copies, lambda: np.abs(x) > F16_MAX)
    return _map(f32_to_f16_into, x, np.float32, np.uint16)


def from_f16_bits(bits: U16Array) -> F32Array:
    """The float32 values of an array of fp16 bits (uint16)."""
    return _map(f16_to_f32_into, bits, np.uint16, np.float32)


def to_i32(x: F32Array) -> I32Array:
    """A float32 array as int32: nearest even, saturating, NaN 0."""
    note(INT32, 1, lambda: ~((x >= -I32_LIMIT) & (x < I32_LIMIT)))
    return _map(f32_to_i32_into, x, np.float32, np.int32)


def to_i8(x: I32Array, copies: int = 1) -> NDArray[np.int8]:
    """An int32 array as int8, saturating; copies: as of ``to_f16_bits``."""
    note(INT8, copies, lambda: (x > 127) | (x < -128))
    return np.clip(x, -128, 127).astype(np.int8)


def canonical_nan(x: F32Array) -> F32Array:
    """A copy of a float32 array with every NaN replaced by the canonical one."""
    return _map(canonical_into, x, np.float32, np.float32)


# --- exact fp16 dot products ----------------------------------------------------------------

MAX_DOT_TERMS = 4096  # three sums of this many products stay below 2**53


class SplitF16(NamedTuple):
    """fp16 values as integers in units of 2**-24, split so that sums of products are exact.

    ``value = (h * 2**20 + l) * 2**-24`` with integers |h|, |l| < 2**20 held in float64, zero
    where the value is NaN or infinite; ``bad`` says which rows (last axis) have such a value.
    """

    h: F64Array
    l: F64Array  # noqa: E741
    bad: NDArray[np.bool_]


@cache
def _split_tables() -> tuple[F64Array, F64Array, NDArray[np.bool_]]:
    """h, l and "is NaN or infinite" for each of the 65,536 fp16 bit patterns."""
    w = np.arange(1 << 16)
    exponent = (w >> 10) & 31
    fraction = w & 0x3FF
    magnitude = np.where(exponent == 0, fraction, (fraction | 1024) << np.maximum(exponent - 1, 0))
    magnitude[exponent == 31] = 0
    sign = np.where(w & 0x8000, -1, 1)
    h = ((magnitude >> 20) * sign).astype(np.float64)
    low = ((magnitude & 0xFFFFF) * sign).astype(np.float64)
    return h, low, exponent == 31


def split_f16(bits: U16Array) -> SplitF16:
    """Decode fp16 bits for :func:`dot_f16_split`; worth caching for weights."""
    h, low, bad = _split_tables()
    return SplitF16(h[bits], low[bits], np.asarray(bad[bits].any(axis=-1)))


@compiled
def _two_sum(a: Any, b: Any) -> Any:
    """a + b as a rounded sum and its exact error (Knuth)."""
    s = a + b
    z = s - a
    return s, (a - (s - z)) + (b - z)


@compiled
def round_sums_into(hh: Any, hl: Any, ll: Any, out: Any) -> None:
    """out[i] = (hh[i] 2**40 + hl[i] 2**20 + ll[i]) 2**-48, rounded once to fp32.

    One-dimensional float64 arrays of integers below 2**53, and a float32 one.
    """
    for i in range(out.shape[0]):
        s, tail = _two_sum(hl[i] * 2.0**20, ll[i])
        s, rest = _two_sum(hh[i] * 2.0**40, s)
        s, rest = _two_sum(s, rest + tail)  # rest + tail: integers far below 2**53, exact
        # s is the sum rounded to nearest; make it the sum rounded to odd, so that rounding again
        # to fp32 is as good as rounding once.
        bits = np.float64(s).view(np.int64)
        if rest != 0.0 and bits & 1 == 0:
            bits += 1 if (rest > 0.0) == (s > 0.0) else -1
        out[i] = np.float32(np.int64(bits).view(np.float64) * 2.0**-48 + 0.0)


def dot_f16_split(weights: SplitF16, activations: SplitF16) -> F32Array:
    """Dot products of weights [N, K] and activations [K] or [M, K]: float32 [N] or [M, N].

    Each is the exact sum of the exact products, rounded once to fp32, nearest even.  An exact
    zero is +0; a NaN or infinity in either row makes the result the canonical NaN.
    """
    if weights.h.shape[-1] > MAX_DOT_TERMS:
        raise ValueError(f"{weights.h.shape[-1]} terms; exact up to {MAX_DOT_TERMS}")
    # Every partial sum of these products is an integer below 2**53: exact in any order.
    wh, wl = weights.h.T, weights.l.T
    hh = activations.h @ wh
    hl = activations.h @ wl + activations.l @ wh
    ll = activations.l @ wl
    result = np.empty(hh.shape, np.float32)
    round_sums_into(hh.reshape(-1), hl.reshape(-1), ll.reshape(-1), result.reshape(-1))
    bad = activations.bad[..., np.newaxis] | weights.bad
    result[bad] = _NAN
    return result


def dot_f16_exact(weights_bits: U16Array, activation_bits: U16Array) -> F32Array:
    """:func:`dot_f16_split` of fp16 bits: weights [N, K], activations [K] or [M, K]."""
    return dot_f16_split(split_f16(weights_bits), split_f16(activation_bits))
