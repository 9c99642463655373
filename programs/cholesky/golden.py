"""The golden model of the factorisation: every number and the order of every sum, in NumPy.

Knows nothing of chips but the rules of their numbers (``chip.numerics``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip import numerics

LANES, ROWS = 320, 16
F32 = NDArray[np.float32]
Bits = NDArray[np.uint16]


def golden_cholesky(a: F32) -> F32:
    """Lower triangle L [n, n] of a symmetric positive definite ``a`` [n, n], L L^T = a.

    Only the upper triangle of ``a`` is read.
    """
    n = len(a)
    tiles = -(-n // LANES)
    rows = -(-n // ROWS) * ROWS
    s = np.zeros((rows, tiles * LANES), np.float32)
    s[:n, :n] = np.triu(a)
    s[range(n, rows), range(n, rows)] = 1
    upper = np.zeros_like(s)
    for first in range(0, rows, LANES):
        _factor_block(s, upper, first)
        _update_rest(s, upper, first)
    return np.ascontiguousarray(upper[:n, :n].T)


def _factor_block(s: F32, upper: F32, first: int) -> None:
    """Rows first .. first + 319 of the factor's transpose, sixteen at a time."""
    end = min(first + LANES, len(s))
    for j in range(first, end, ROWS):
        part = s[j : j + ROWS, first:].copy()
        if j > first:
            done = upper[first:end, first:]
            part -= _product(done.T, done[:, j - first : j - first + ROWS].T)
        scalars = _in_three(part[:, j - first : j - first + ROWS])
        for k in range(ROWS):
            factor = numerics.rsqrt(scalars[k, k : k + 1])
            row, small = part[k] * factor, scalars[k] * factor
            for m in range(k + 1, ROWS):
                part[m] -= small[m] * row
                scalars[m] -= small[m] * small
            upper[j + k, j + k :] = row[j + k - first :]


def _update_rest(s: F32, upper: F32, first: int) -> None:
    """What lies behind the block, less the product of the block's rows."""
    done = upper[first : first + LANES]
    for row in range(first + LANES, len(s), LANES):
        end = min(row + LANES, len(s))
        s[row:end, row:] -= _product(done[:, row:].T, done[:, row:end].T)


def _product(columns: F32, rows: F32) -> F32:
    """rows [m, k] times columns [n, k] transposed, both in two fp16 parts, k at most 320."""
    high, low = _in_two(columns)
    row_high, row_low = _in_two(rows)
    total = numerics.dot_f16_exact(high, row_high)
    total = total + numerics.dot_f16_exact(high, row_low)
    return total + numerics.dot_f16_exact(low, row_high)


def _in_two(x: F32) -> tuple[Bits, Bits]:
    """x as fp16 and what that leaves as fp16, [n, 320]."""
    padded = np.zeros((len(x), LANES), np.float32)
    padded[:, : x.shape[1]] = x
    high = numerics.to_f16_bits(padded)
    return high, numerics.to_f16_bits(padded - numerics.from_f16_bits(high))


def _in_three(x: F32) -> F32:
    """x as the sum of three fp16 parts, each 2^-11 of the one before."""
    step = np.float32(2048)
    total, rest = np.zeros_like(x), x
    for number in range(3):
        part = numerics.from_f16_bits(numerics.to_f16_bits(rest))
        total = total + part * np.float32(2.0 ** (-11 * number))
        rest = (rest - part) * step
    return total
