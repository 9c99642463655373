"""SECDED: every single error is mended, every double one seen, over all positions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chip.ecc import (
    CLEAN,
    CODE_BITS,
    CORRECTED,
    DATA_BITS,
    DETECTED,
    SUPERLANES,
    decode,
    encode,
    flip,
)


def random_words(n: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (n, 320), np.uint8)


def damaged(word: np.ndarray, wrong: list[tuple[int, ...]], superlane: int):
    """Copies of one word with bits 0..136 of a superlane turned over; words and check bits."""
    words = np.repeat(word, len(wrong), axis=0)
    checks = np.repeat(encode(word), len(wrong), axis=0)
    for row, bits in enumerate(wrong):
        flip(words, row, superlane, tuple(bit for bit in bits if bit < DATA_BITS))
        for bit in bits:
            if bit >= DATA_BITS:
                checks[row, superlane] ^= np.uint16(1 << bit - DATA_BITS)
    return words, checks


@given(st.integers(0, 2**32 - 1), st.integers(0, SUPERLANES - 1))
def test_every_single_error_is_mended(seed: int, superlane: int) -> None:
    word = random_words(1, seed)
    words, checks = damaged(word, [(bit,) for bit in range(CODE_BITS)], superlane)
    fixed, state = decode(words, checks)
    assert (fixed == word).all()
    assert (state[:, superlane] == CORRECTED).all()
    assert (np.delete(state, superlane, axis=1) == CLEAN).all()


def test_every_double_error_is_seen() -> None:
    word = random_words(1, 5)
    pairs = list(combinations(range(CODE_BITS), 2))
    words, checks = damaged(word, pairs, 7)
    fixed, state = decode(words, checks)
    assert (state[:, 7] == DETECTED).all()
    assert (fixed == words).all()


def test_clean_words_stay_as_they_are() -> None:
    words = random_words(50, 9)
    fixed, state = decode(words, encode(words))
    assert (fixed == words).all() and (state == CLEAN).all()


def test_errors_of_different_superlanes_are_apart() -> None:
    word = random_words(1, 11)
    words, checks = word.copy(), encode(word)
    for superlane in range(SUPERLANES):
        flip(words, 0, superlane, (superlane * 6,))
    fixed, state = decode(words, checks)
    assert (fixed == word).all() and (state == CORRECTED).all()
