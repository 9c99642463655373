"""Products of whole installs as the engine computes them, column by column, against integers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from chip.engine.machine import Halves
from chip.engine.mxm import ACTIVATIONS, dot_fp16, dot_int8, find_repeats, lay_int8

U8 = NDArray[np.uint8]


@pytest.mark.parametrize("groups", [0, 1, 2, 3, 19, 20])
@pytest.mark.parametrize("words", [1, 2, 700])
def test_int8_columns_are_their_words(groups: int, words: int) -> None:
    """Also where neighbours, or columns of other groups, hold one word; the install begins at 7."""
    rng = np.random.default_rng(groups * 1000 + words)
    signed = rng.integers(-128, 128, (words, 320)).astype(np.int8)
    rows = rng.integers(0, words, 7 + 320 + 9).astype(np.int32)
    if groups > 2:  # column 16 g + j repeats that of the group before, or of the one after the next
        rows[7 + 16 : 7 + 24] = rows[7 : 7 + 8]
        rows[7 + 16 + 8 : 7 + 32] = rows[7 + 32 + 8 : 7 + 48]
    x, y = rng.integers(-128, 128, (2, 320)).astype(np.int8)
    a, b = np.zeros((2, 320), np.int16)
    lay_int8(x, a)
    lay_int8(y, b)
    p, q = rng.integers(-9, 9, (2, 320)).astype(np.int32)
    dot_int8(signed, rows, 7, groups, a, b, p, q)
    weights = signed[rows[7 : 7 + 16 * groups]].astype(np.int64)
    rest = np.zeros(320 - 16 * groups, np.int64)
    assert np.array_equal(p, np.concatenate([weights @ x.astype(np.int64), rest]))
    assert np.array_equal(q, np.concatenate([weights @ y.astype(np.int64), rest]))


# --- fp16 -----------------------------------------------------------------------------------------


def exact(w: NDArray[np.float16], x: NDArray[np.float16]) -> np.float32:
    """The sum of the products, rounded once; sums that are 0 are +0."""
    total = sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(w, x, strict=True))
    if total == 0:
        return np.float32(0.0)
    # to odd at 60 bits, then once to 24
    sign, size = (1, total) if total > 0 else (-1, -total)
    shift = 60 - (size.numerator.bit_length() - size.denominator.bit_length())
    scaled = size * Fraction(2) ** shift
    whole = scaled.numerator // scaled.denominator
    whole |= int(whole != scaled)
    keep = whole.bit_length() - 24
    least = -149 + shift
    keep = max(keep, least)
    low = whole & ((1 << keep) - 1)
    whole >>= keep
    half = 1 << (keep - 1)
    whole += int(low > half or (low == half and whole & 1 == 1))
    return np.float32(sign * float(Fraction(whole) * Fraction(2) ** (keep - shift)))


def halves() -> Halves:
    return Halves(
        np.zeros((ACTIVATIONS + 1, 320), np.uint16),
        np.zeros((ACTIVATIONS + 1, 320), np.float32),
        np.zeros(ACTIVATIONS + 1, np.bool_),
    )


def columns(words: list[NDArray[np.float16]]) -> tuple[U8, NDArray[np.int32]]:
    """Byte rows of fp16 words [320], all low ones before all high ones, and where each lies."""
    raw = np.stack(words).view(np.uint8).reshape(len(words), 320, 2)
    rows = np.ascontiguousarray(np.concatenate([raw[:, :, 0], raw[:, :, 1]]))
    return rows, np.arange(len(rows), dtype=np.int32)


def words_of(rng: np.random.Generator) -> list[NDArray[np.float16]]:
    """Ordinary ones, zeros, the least, the greatest, sums that cancel, infinite and no numbers."""
    plain = [rng.standard_normal(320).astype(np.float16) for _ in range(3)]
    small = [np.full(320, 2.0**-24, np.float16), (2.0**-15 * plain[0]).astype(np.float16)]
    large = np.where(np.arange(320) % 2, 65504.0, -65504.0).astype(np.float16)
    tie = np.zeros(320, np.float16)
    tie[:3] = 1024.0, 2.0**-14, 2.0**-24
    infinite, nan = plain[1].copy(), plain[1].copy()
    infinite[319], nan[0] = np.inf, np.nan
    return [*plain, *small, np.zeros(320, np.float16), large, tie, infinite, nan]


def test_fp16_columns_are_rounded_once() -> None:
    rng = np.random.default_rng(5)
    words = words_of(rng)
    words.insert(2, words[1])  # a neighbour that is the same
    rows, weights = columns(words)
    count, number = len(words), len(words)
    repeats = np.ones(320, np.bool_)
    quads = rows.view(np.uint32)
    find_repeats(quads, weights, 0, number, number, repeats)
    assert repeats[:number].tolist() == [c == 2 for c in range(number)]
    moved = weights.copy()
    moved[[3, number + 3]] = moved[[2, number + 2]]  # the same rows are the same word
    find_repeats(quads, moved, 0, number, number, repeats)
    assert repeats[:5].tolist() == [False, False, True, True, False]
    moved[3] = moved[5]  # one byte differs
    find_repeats(quads, moved, 0, number, number, repeats)
    assert repeats[:5].tolist() == [False, False, True, False, False]
    find_repeats(quads, weights, 0, number, number, repeats)

    inputs = halves()
    for k, word in enumerate(words):
        inputs.bits[k] = word.view(np.uint16)
        inputs.values[k] = word
        inputs.finite[k] = np.isfinite(word).all()
    p = np.full((ACTIVATIONS, 320), 7.0, np.float32)
    dot_fp16(rows, weights, 0, number, number, count, inputs, p, repeats)
    for k, x in enumerate(words):
        for c, w in enumerate(words):
            if np.isfinite(x).all() and np.isfinite(w).all():
                assert p[k, c].tobytes() == exact(w, x).tobytes(), (k, c)
            else:
                assert p[k, c].view(np.uint32) == 0x7FC00000
        rest = p[k, number:].view(np.uint32)
        assert (rest == (0 if np.isfinite(x).all() else 0x7FC00000)).all()
    assert (p[count:] == 7.0).all()
