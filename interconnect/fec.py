"""Bit errors on links and what forward error correction makes of them, packet by packet.

Published (ISCA'22): single-bit errors are corrected in place, which changes no arrival; bursts are
detected; nothing is sent again.  Not public: the code's strength.  Assumed: bits fail on their
own, exactly one wrong bit of a packet is corrected, two or more are detected and not corrected.

Errors are drawn per link and launch, never per bit: of ``n`` packets so many have one wrong bit
and so many have more, which is one multinomial draw.  Draws are keyed by (seed, launch, attempt),
so every process of a run knows all of them without a word.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
#: Purposes of random streams; a stream serves one.
LINK_ERRORS, SRAM_ERRORS, SRAM_PLACES = 1, 2, 3


def random_stream(seed: int, purpose: int, launch: int, attempt: int) -> np.random.Generator:
    """The random numbers of one purpose in one attempt at one launch."""
    key = [(seed << 8 | purpose) & (1 << 64) - 1, launch << 32 | attempt]
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))


def error_chances(bit_error_rate: float, bits: int) -> tuple[float, float]:
    """Chance that of ``bits`` exactly one is wrong, and that more are; exact for tiny rates."""
    p = bit_error_rate
    if not 0 <= p < 1:
        raise ValueError(f"a bit error rate of {p}: use 0 or more, below 1")
    if p == 0:
        return 0.0, 0.0
    term = bits * p * math.exp((bits - 1) * math.log1p(-p))
    one, more = term, 0.0
    if bits * p > 1:  # no cancellation here, and the series would be long
        return one, max(0.0, 1.0 - one - math.exp(bits * math.log1p(-p)))
    for k in range(2, bits + 1):
        term *= (bits - k + 1) / k * p / (1 - p)
        more += term
        if term < 1e-18 * more:
            break
    return one, more


def draw_errors(
    counts: ArrayLike, bit_error_rates: ArrayLike, bits: int, random: np.random.Generator
) -> tuple[Ints, Ints]:
    """Of ``counts`` [n] packets of ``bits`` each, how many have one wrong bit and how many more.

    bit_error_rates: one for all or [n].  Both results int64 [n].
    """
    packets = np.asarray(counts, np.int64)
    rates = np.broadcast_to(np.asarray(bit_error_rates, np.float64), packets.shape)
    chances = np.empty((len(packets), 3))
    for rate in np.unique(rates):
        one, more = error_chances(float(rate), bits)
        chances[rates == rate] = one, more, max(0.0, 1.0 - one - more)
    drawn = random.multinomial(packets, chances)
    return drawn[:, 0].astype(np.int64), drawn[:, 1].astype(np.int64)
