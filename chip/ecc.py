"""SECDED over SRAM: nine check bits to every 128 data bits, the 16 bytes of one superlane.

Published (ISCA'20): 128 + 9 bits, single errors corrected and counted, double ones detected, made
where data are produced and checked where they are consumed.  Assumed: which code.  This is Hsiao's
construction, every column of odd weight, so that two errors never look like one.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from chip.isa import LANES

SUPERLANE_BYTES = 16
SUPERLANES = LANES // SUPERLANE_BYTES
DATA_BITS, CHECK_BITS = 8 * SUPERLANE_BYTES, 9
CODE_BITS = DATA_BITS + CHECK_BITS
CLEAN, CORRECTED, DETECTED = 0, 1, 2


def _columns() -> NDArray[np.uint16]:
    """One syndrome per data bit, uint16 [128]: the words of weight three, then of weight five."""
    words = [
        sum(1 << bit for bit in bits)
        for weight in (3, 5)
        for bits in combinations(range(CHECK_BITS), weight)
    ]
    return np.array(words[:DATA_BITS], np.uint16)


_SYNDROMES = np.concatenate([_columns(), 1 << np.arange(CHECK_BITS)]).astype(np.uint16)
#: The erroneous bit of every syndrome (128.. are check bits), -1 for those of no single error.
_BIT_OF = np.full(1 << CHECK_BITS, -1, np.int16)
_BIT_OF[_SYNDROMES] = np.arange(CODE_BITS)


def _superlanes(words: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return words.reshape(-1, SUPERLANES, SUPERLANE_BYTES)


def encode(words: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The check bits of ``words`` uint8 [n, 320]: uint16 [n, 20]."""
    bits = np.unpackbits(_superlanes(words), axis=2, bitorder="little")
    chosen = np.where(bits != 0, _SYNDROMES[:DATA_BITS], np.uint16(0))
    checks: NDArray[np.uint16] = np.bitwise_xor.reduce(chosen, axis=2)
    return checks


def decode(
    words: NDArray[np.uint8], checks: NDArray[np.uint16]
) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Words as they are corrected, uint8 [n, 320], and what was found, int8 [n, 20].

    CLEAN, CORRECTED (one bit was wrong, data or check) or DETECTED (more were; the data stay as
    they are).  Three and more wrong bits may pass for one, as in every code of this kind.
    """
    syndromes = encode(words) ^ checks
    bit = _BIT_OF[syndromes]
    state = np.where(syndromes == 0, CLEAN, np.where(bit >= 0, CORRECTED, DETECTED))
    fixed = words.copy()
    lanes = _superlanes(fixed)
    for row, superlane in np.argwhere((state == CORRECTED) & (bit < DATA_BITS)):
        wrong = int(bit[row, superlane])
        lanes[row, superlane, wrong // 8] ^= np.uint8(1 << wrong % 8)
    return fixed, state.astype(np.int8)


def flip(words: NDArray[np.uint8], row: int, superlane: int, bits: tuple[int, ...]) -> None:
    """Turn over data bits 0..127 of one superlane of ``words`` uint8 [n, 320], in place."""
    for bit in bits:
        words[row, superlane * SUPERLANE_BYTES + bit // 8] ^= np.uint8(1 << bit % 8)
