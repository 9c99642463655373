"""Check ``chip.numerics`` on all 2**32 inputs: ``python -m chip.verify_numerics exp``.

Every fp32 bit pattern goes through the compiled function and is compared, bit for bit, with a
reference that shares no arithmetic with it:

* ``rsqrt``: exact integers.  A result m * 2**e is right if and only if the input lies between
  the inverse squares of m - 1/2 and m + 1/2.
* ``exp``, ``tanh``: long double (64-bit mantissa) from the C library, converted once to fp32.
  An input whose long double comes within ``GUARD`` of a rounding boundary (far more than the
  library's error, and more than the error of a double) is listed as hard and recomputed with
  60 decimal digits.
* where the answer is known without computing (saturation, and arguments so small that the
  result is 1 or x), it is compared with that answer.

The functions consist of exactly specified IEEE operations, so a run on one machine is a proof
for all.  Exit status 0: every input agrees.  A part of the range: ``--start``, ``--stop`` (bit
patterns); ``--chunk`` is the number of inputs held in memory at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip import numerics

Array = NDArray[Any]

GUARD = 2.0**-50  # relative; long double functions are good to a few units of 2**-64
CONTEXT = Context(prec=60)

EXP_ONE_BELOW = 2.0**-26  # |x| below: exp(x) rounds to 1
EXP_OVERFLOW = 89.0  # above: exp(x) > 2**128 - 2**103
EXP_UNDERFLOW = -104.0  # below: exp(x) < 2**-150
TANH_LINEAR_BELOW = 2.0**-13  # |x| below: |tanh(x) - x| < |x|**3 / 3 < half a unit of x
TANH_ONE_ABOVE = 9.5  # 1 - tanh(x) < 2**-25


def round_decimal(value: Decimal) -> np.float32:
    """A nonzero decimal rounded once to fp32, nearest even (no overflow)."""
    magnitude = abs(value)
    exponent = 0
    while magnitude >= 2 and exponent < 127:
        magnitude = CONTEXT.divide(magnitude, Decimal(2))
        exponent += 1
    while magnitude < 1 and exponent > -126:
        magnitude = CONTEXT.multiply(magnitude, Decimal(2))
        exponent -= 1
    units = CONTEXT.multiply(magnitude, Decimal(2**23)).to_integral_value(ROUND_HALF_EVEN)
    return np.float32(np.copysign(float(units) * 2.0 ** (exponent - 23), float(value)))


def decimal_exp(x: float) -> np.float32:
    """exp(x) by 60-digit arithmetic."""
    return round_decimal(CONTEXT.exp(Decimal(x)))


def decimal_tanh(x: float) -> np.float32:
    """tanh(x) by 60-digit arithmetic."""
    e = CONTEXT.exp(Decimal(2 * x))
    return round_decimal(CONTEXT.divide(CONTEXT.subtract(e, 1), CONTEXT.add(e, 1)))


def _by_long_double(
    x: Array, function: Callable[[Array], Array], exact: Callable[[float], np.float32]
) -> tuple[Array, Array]:
    """The reference results, and for which of them decimal arithmetic decided."""
    wide = function(x.astype(np.longdouble))
    result = wide.astype(np.float32)
    low = (wide * np.longdouble(1 - GUARD)).astype(np.float32)
    high = (wide * np.longdouble(1 + GUARD)).astype(np.float32)
    hard = low != high
    for i in np.flatnonzero(hard):
        result[i] = exact(float(x[i]))
    return result, hard


def expected_exp(x: Array) -> tuple[Array, Array]:
    """exp of float32 values, NaN excepted, and which of them are hard cases."""
    hard = np.zeros(x.shape, np.bool_)
    result = np.ones_like(x)
    result[x > EXP_OVERFLOW] = np.inf
    result[x < EXP_UNDERFLOW] = 0
    rest = (np.abs(x) >= EXP_ONE_BELOW) & (x <= EXP_OVERFLOW) & (x >= EXP_UNDERFLOW)
    result[rest], hard[rest] = _by_long_double(x[rest], np.exp, decimal_exp)
    return result, hard


def expected_tanh(x: Array) -> tuple[Array, Array]:
    """tanh of float32 values, NaN excepted, and which of them are hard cases."""
    hard = np.zeros(x.shape, np.bool_)
    size = np.abs(x)
    result = np.where(size < TANH_LINEAR_BELOW, x, np.copysign(np.float32(1), x))
    rest = (size >= TANH_LINEAR_BELOW) & (size <= TANH_ONE_ABOVE)
    result[rest], hard[rest] = _by_long_double(x[rest], np.tanh, decimal_tanh)
    return result, hard


def rsqrt_is_right(x: Array, y: Array) -> Array:
    """Per element: is y the fp32 nearest to 1/sqrt(x)?  x positive, finite; integers only."""
    u = x.view(np.uint32)
    v = y.view(np.uint32)
    biased = (u >> np.uint32(23)).astype(np.int64)
    mantissa = (u & np.uint32(0x7FFFFF)).astype(np.uint64)
    mantissa[biased > 0] += np.uint64(1 << 23)
    exponent = np.maximum(biased, 1) - 150  # x = mantissa * 2**exponent
    m = (v & np.uint32(0x7FFFFF)).astype(np.uint64) + np.uint64(1 << 23)
    e = (v >> np.uint32(23)).astype(np.int64) - 150  # y = m * 2**e, always normal
    # (2m-1)**2 * mantissa < 2**t < (2m+1)**2 * mantissa, t = 2 - 2e - exponent; a tie is
    # impossible.  Powers of two (m = 2**23) have a nearer lower neighbour: 4m - 1 over 4.
    t = 2 - 2 * e - exponent
    plain = _square_times_below(2 * m - 1, mantissa, t)
    binade = _square_times_below(4 * m - 1, mantissa, t + 2)
    below = np.where(m == 1 << 23, binade, plain)
    above = ~_square_times_below(2 * m + 1, mantissa, t)
    normal = (y > 0) & (e > -150) & (e < 105)
    return np.asarray(normal & below & above)


def _square_times_below(a: Array, b: Array, t: Array) -> Array:
    """a**2 * b < 2**t for a < 2**26, b < 2**24 (uint64), t in 26..89, without overflow."""
    square = a * a
    low = (square & np.uint64((1 << 26) - 1)) * b
    high = (square >> np.uint64(26)) * b + (low >> np.uint64(26))
    # The product is high * 2**26 + (low bits): below 2**t exactly if high is below 2**(t-26).
    shift = np.clip(t - 26, 0, 63).astype(np.uint64)
    return np.asarray(high < (np.uint64(1) << shift))


def wrong_rsqrt(x: Array, y: Array) -> Array:
    """Per element: is y not rsqrt(x)?  NaN excepted."""
    right = np.isnan(y)
    right[x == 0] = y[x == 0] == np.copysign(np.inf, x[x == 0])
    right[x == np.inf] = y[x == np.inf].view(np.uint32) == 0
    plain = (x > 0) & (x < np.inf)
    right[plain] = rsqrt_is_right(x[plain], y[plain])
    return np.asarray(~right)


def verify_chunk(name: str, first: int, last: int) -> tuple[Array, Array]:
    """Check the bit patterns first..last-1; return the wrong ones and the hard ones."""
    u = np.arange(first, last, dtype=np.uint32)
    x = u.view(np.float32)
    y = getattr(numerics, name)(x)
    hard = np.zeros(x.shape, np.bool_)
    nan = np.isnan(x)
    with np.errstate(all="ignore"):
        if name == "rsqrt":
            wrong = wrong_rsqrt(x, y)
        else:
            expected, hard = (expected_exp if name == "exp" else expected_tanh)(x)
            wrong = y.view(np.uint32) != expected.view(np.uint32)
    wrong = np.where(nan, False, wrong)
    wrong |= np.isnan(y) & (y.view(np.uint32) != numerics.NAN_BITS)
    wrong |= nan & ~np.isnan(y)
    return u[wrong], u[hard]


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 if every input is right."""
    parser = argparse.ArgumentParser(description="Verify chip.numerics on all fp32 inputs.")
    parser.add_argument("function", choices=["exp", "tanh", "rsqrt"])
    parser.add_argument("--start", type=lambda s: int(s, 0), default=0)
    parser.add_argument("--stop", type=lambda s: int(s, 0), default=1 << 32)
    parser.add_argument("--chunk", type=lambda s: int(s, 0), default=1 << 18)
    options = parser.parse_args(arguments)
    if np.finfo(np.longdouble).nmant < 63:
        print("this machine's long double is too short to serve as the reference")
        return 2
    began = time.perf_counter()
    count = hard_total = wrong_total = 0
    for first in range(options.start, options.stop, options.chunk):
        last = min(first + options.chunk, options.stop)
        wrong, hard = verify_chunk(options.function, first, last)
        for pattern in hard:
            print(f"hard: {options.function}(0x{int(pattern):08x})", flush=True)
        for pattern in wrong[: max(0, 20 - wrong_total)]:
            print(f"wrong: {options.function}(0x{int(pattern):08x})", flush=True)
        wrong_total += wrong.size
        hard_total += hard.size
        count += last - first
    elapsed = time.perf_counter() - began
    print(
        f"{options.function}: {count} inputs, {wrong_total} wrong, "
        f"{hard_total} decided by 60-digit arithmetic, {elapsed:.0f} s"
    )
    return 1 if wrong_total else 0


if __name__ == "__main__":
    sys.exit(main())
