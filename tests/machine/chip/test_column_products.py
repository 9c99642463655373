"""Products of whole installs as the engine computes them, column by column, against integers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from chip.engine import dot_int8 as _dot_int8
from chip.engine.dot_fp16 import ACTIVATIONS, BLOCK, dot_fp16, find_repeats, lay_fp16
from chip.engine.machine import Halves
from chip.engine.mxm import dot_int8, lay_int8
from chip.jit import jit

U8 = NDArray[np.uint8]
lay_signed, lay_wide = _dot_int8.lay_signed, _dot_int8.lay_wide


@jit
def _lay_signed(rows: Any, laid: Any, excess: Any) -> None:
    for k in range(rows.shape[0]):
        excess[k] = lay_signed(rows[k], laid[k])


@jit
def _lay_wide(rows: Any, laid: Any, excess: Any) -> None:
    for k in range(rows.shape[0]):
        lay_wide(rows[k], laid[k])


OF_MANY = [
    pytest.param(_lay_wide, _dot_int8.products_in_pairs, id="pairs"),
    pytest.param(
        _lay_signed,
        _dot_int8.products_in_tiles,
        id="tiles",
        marks=pytest.mark.skipif(not _dot_int8.has_vnni(), reason="no AVX-512 VNNI here"),
    ),
]


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


@pytest.mark.parametrize(("lay", "multiply"), OF_MANY)
@pytest.mark.parametrize(("groups", "count"), [(0, 5), (1, 1), (2, 7), (3, 8), (19, 9), (20, 16)])
def test_many_activations_share_a_pass(lay: Any, multiply: Any, groups: int, count: int) -> None:
    """Each product is its own; what lies beyond the activations stays out of them."""
    rng = np.random.default_rng(groups * 1000 + count)
    words = 700
    signed = rng.integers(-128, 128, (words, 320)).astype(np.int8)
    signed[:3] = np.array([-128, 127, 0], np.int8)[:, None]
    rows = rng.integers(0, words, 7 + 320 + 9).astype(np.int32)
    rows[7:10] = 0, 1, 2
    if groups > 2:
        rows[7 + 32 : 7 + 48] = rows[7 + 16 : 7 + 32]  # a group that is the same as that before
        rows[7 + 16 : 7 + 19] = rows[7:10]  # some columns of one
    x = rng.integers(-128, 128, (count, 320)).astype(np.int8)
    x[0] = -128
    laid = rng.integers(-100, 100, (ACTIVATIONS, 320)).astype(np.int16)
    excess = np.zeros(ACTIVATIONS, np.int32)
    tile = np.zeros(_dot_int8.TILE_BYTES, np.uint8)
    p = rng.integers(-9, 9, (ACTIVATIONS, 320)).astype(np.int32)
    lay(x, laid, excess)
    multiply(signed, rows, 7, groups, count, laid, tile, excess, p)
    want = np.zeros((count, 320), np.int64)
    weights = signed[rows[7 : 7 + 16 * groups]].astype(np.int64)
    want[:, : 16 * groups] = x.astype(np.int64) @ weights.T
    assert np.array_equal(p[:count], want)


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
    rng = np.random.default_rng(1)
    return Halves(
        np.zeros(ACTIVATIONS, np.bool_),
        rng.standard_normal((ACTIVATIONS + 3, 320)),  # of other passes
        np.zeros(ACTIVATIONS),
        np.zeros(ACTIVATIONS),
        np.zeros(320 // BLOCK, np.int64),
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
    repeats = np.full(320, 9, np.uint8)
    quads = rows.view(np.uint32)
    find_repeats(quads, weights, 0, number, number, repeats)
    assert repeats[:number].tolist() == [int(c == 2) for c in range(number)]
    moved = weights.copy()
    moved[[3, number + 3]] = moved[[2, number + 2]]  # the same rows are the same word
    find_repeats(quads, moved, 0, number, number, repeats)
    assert repeats[:5].tolist() == [0, 0, 1, 1, 0]
    moved[3] = moved[5]  # one byte differs
    find_repeats(quads, moved, 0, number, number, repeats)
    assert repeats[:5].tolist() == [0, 0, 1, 0, 0]
    find_repeats(quads, weights, 0, number, number, repeats)

    inputs = halves()
    for k in range(count):
        lay_fp16(rows, k, number + k, inputs, k)
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


@pytest.mark.parametrize("count", [1, 2, 4, 5, 8, 9, 16])
def test_fp16_activations_of_a_head_are_zero_elsewhere(count: int) -> None:
    """Whatever lanes are zero in all, and however many activations share a pass."""
    rng = np.random.default_rng(count)
    words = [rng.standard_normal(320).astype(np.float16) for _ in range(count)]
    for k, word in enumerate(words):
        word[: 8 * (count % 5) + 3] = 0.0
        word[128 + k : 256] = -0.0
    weights_of = [(rng.standard_normal(320) * 8.0**-k).astype(np.float16) for k in range(4)]
    rows, weights = columns([*weights_of, *words])
    number = 4 + count
    inputs = halves()
    for k in range(count):
        lay_fp16(rows, 4 + k, number + 4 + k, inputs, k)
    p = np.full((ACTIVATIONS, 320), 7.0, np.float32)
    dot_fp16(rows, weights, 0, number, 4, count, inputs, p, np.zeros(320, np.uint8))
    for k, x in enumerate(words):
        for c, w in enumerate(weights_of):
            assert p[k, c].tobytes() == exact(w, x).tobytes(), (k, c)
    assert (p[:count, 4:] == 0.0).all() and (p[count:] == 7.0).all()


def test_fp16_groups_that_are_the_same_are_found() -> None:
    """A group with the rows of the group before; one where some differ; one of one word."""
    rng = np.random.default_rng(3)
    words = [rng.standard_normal(320).astype(np.float16) for _ in range(20)]
    rows, _ = columns(words)
    own = np.concatenate([np.arange(16), np.arange(16), [16], np.arange(1, 16), [16] * 16])
    weights = np.concatenate([own, own + 20]).astype(np.int32)
    repeats = np.full(320, 9, np.uint8)
    find_repeats(rows.view(np.uint32), weights, 0, 64, 64, repeats)
    assert repeats[:64].tolist() == [0] * 16 + [16] * 16 + [0] * 16 + [0] + [1] * 15
    inputs = halves()
    lay_fp16(rows, 17, 37, inputs, 0)
    p = np.zeros((ACTIVATIONS, 320), np.float32)
    dot_fp16(rows, weights, 0, 64, 64, 1, inputs, p, repeats)
    for c, number in enumerate(own):
        assert p[0, c].tobytes() == exact(words[number], words[17]).tobytes(), c
