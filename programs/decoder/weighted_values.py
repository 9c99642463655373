"""The numbers of attention on the planes, one head: scores, shares, and the mean of its values.

The rules are those of ``docs/numerics.md``; positions lie on lanes, in blocks of 320 that the two
plane pairs take turns with.  Part of the golden model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip import numerics
from programs.decoder.lanes import LANES

__all__ = ["capped", "mean_on_planes"]

F32 = NDArray[np.float32]
Bits = NDArray[np.uint16]

#: What a score is moved by where its position is not seen: bits FF000000.
HIDDEN = np.float32(-(2.0**127))
#: What a share is multiplied by before fp16, so that small ones keep their bits.
SHARES_UP = np.float32(2.0**14)
#: The denominator's pieces in fp16: units of the first and of the second.
FIRST, SECOND = np.float32(2.0**18), np.float32(2.0**6)
ONES = numerics.split_f16(np.full((1, LANES), 0x3C00, dtype=np.uint16))


def capped(x: F32, cap: float) -> F32:
    """Return cap tanh(x / cap), or x where there is no cap."""
    if not cap:
        return x
    result: F32 = numerics.tanh(x * np.float32(1.0 / cap)) * np.float32(cap)
    return result


def mean_on_planes(
    q: Bits,
    keys: numerics.SplitF16,
    values: numerics.SplitF16,
    seen: NDArray[np.bool_],
    cap: float,
    sink: np.float32 | None = None,
) -> F32:
    """Return [P, lanes]: the mean of what queries ``q`` [P, lanes] of one head attend to.

    keys, values: [positions, lanes].  seen: [P, positions], what each query sees; its own position
    at least.  sink: the head's own logit, which takes a share and gives nothing.
    """
    scores = capped(numerics.dot_f16_split(keys, numerics.split_f16(q)), cap)
    scores = scores + np.where(seen, np.float32(0), HIDDEN)
    largest = scores.max(axis=1, keepdims=True)
    if sink is not None:
        largest = np.maximum(largest, sink)
    shares = numerics.to_f16_bits(numerics.exp(scores - largest) * SHARES_UP)
    sides: list[F32 | None] = [None, None]
    for first in range(0, len(keys.h), LANES):
        own = slice(first, first + LANES)
        count = len(values.h[own])
        high, low = (
            np.concatenate([columns[own].T, ones[:, :count]])
            for columns, ones in ((values.h, ONES.h), (values.l, ONES.l))
        )
        weights = numerics.SplitF16(high, low, np.zeros(len(high), dtype=bool))
        part = numerics.dot_f16_split(weights, numerics.split_f16(shares[:, own]))
        side = first // LANES % 2
        before = sides[side]
        sides[side] = part if before is None else before + part
    east, west = sides
    assert east is not None
    total = east if west is None else west + east
    sums, counted = total[:, :-1], total[:, -1:]
    if sink is not None:
        counted = counted + numerics.exp(sink - largest) * SHARES_UP
    large = numerics.from_f16_bits(numerics.to_f16_bits(counted * (1 / FIRST))) * FIRST
    rest = (counted - large) * (1 / SECOND)
    small = numerics.from_f16_bits(numerics.to_f16_bits(rest)) * SECOND
    r = numerics.rsqrt(large + small)
    mean: F32 = sums * (r * r)
    return mean
