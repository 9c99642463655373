"""The golden model of matrix products: what a compiled product must compute, bit for bit.

int8: exact sums in int32.  fp16: for every tile of 320 terms of a chip the exact dot product
rounded once to fp32, added in ascending tile order in fp32; after a split by rows of the second
matrix the chips' sums are added by the tree ((0+1)+(2+3))+((4+5)+(6+7)).  It knows numbers and
their order only.  Every partial sum of a matrix library's call is exact, so its order cannot show.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip import numerics

LANES = 320
F32 = NDArray[np.float32]


def golden_matmul(
    a: NDArray[np.generic], b: NDArray[np.generic], chips: int = 1, split: str = "columns"
) -> NDArray[np.generic]:
    """C of ``a`` [m, k] and ``b`` [k, n], both int8 (C int32) or both float16 (C float32)."""
    if a.dtype == np.int8:
        return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int32)
    if split == "columns" or chips == 1:
        return product_f16(a.view(np.uint16), np.ascontiguousarray(b.T).view(np.uint16))
    share = -(-a.shape[1] // chips)
    parts: list[F32] = []
    for chip in range(chips):
        terms = slice(chip * share, (chip + 1) * share)
        rows = np.ascontiguousarray(a[:, terms]).view(np.uint16)
        columns = np.ascontiguousarray(b[terms].T).view(np.uint16)
        tiles = -(-share // LANES)
        parts.append(product_f16(rows, columns, tiles))
    while len(parts) > 1:
        parts = [x + y for x, y in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def golden_grid(a: NDArray[np.generic], b: NDArray[np.generic], rows: int) -> NDArray[np.generic]:
    """C of ``a`` and ``b`` as ``golden_matmul`` has them, on ``rows`` rows of chips.

    Each has the same number of terms, but for the last ones; their sums are added in ascending
    order, ((p0 + p1) + p2) + ...
    """
    if a.dtype == np.int8:
        return golden_matmul(a, b)
    share = -(-a.shape[1] // rows)
    total: F32 | None = None
    for row in range(rows):
        terms = slice(row * share, (row + 1) * share)
        left = np.ascontiguousarray(a[:, terms]).view(np.uint16)
        right = np.ascontiguousarray(b[terms].T).view(np.uint16)
        part = product_f16(left, right, -(-share // LANES))
        total = part if total is None else total + part
    assert total is not None
    return total


def product_f16(
    rows: NDArray[np.uint16], columns: NDArray[np.uint16], tiles: int | None = None
) -> F32:
    """float32 [m, n] of fp16 bits [m, k] and [n, k], tile by tile; missing tiles are zero."""
    count = -(-rows.shape[1] // LANES) if tiles is None else tiles
    total = np.zeros((len(rows), len(columns)), np.float32)
    for tile in range(count):
        terms = slice(tile * LANES, (tile + 1) * LANES)
        part = numerics.dot_f16_split(
            numerics.split_f16(columns[:, terms]), numerics.split_f16(rows[:, terms])
        )
        total = part if tile == 0 else total + part
    return total
