"""Attention's numbers on the planes against a float64 softmax of the same fp16 operands."""

import numpy as np
import pytest
from numpy.typing import NDArray

from chip import numerics
from programs.decoder.weighted_values import mean_on_planes

Bits = NDArray[np.uint16]
F32 = NDArray[np.float32]

LANES = 24
#: Unit values: what fp16 shares and one fp32 sum per block may move a mean by.
TOLERANCE = 4e-4


def drawn(seed: int, positions: int, spread: float) -> tuple[Bits, Bits, Bits]:
    """fp16 bits of five queries, keys and values; scores reach to about ``spread``."""
    random = np.random.default_rng(seed)
    shapes = ((5, LANES), (positions, LANES), (positions, LANES))
    q, k, v = (random.standard_normal(shape) for shape in shapes)
    q *= spread / 3 / np.sqrt(LANES)
    return tuple(x.astype(np.float16).view(np.uint16) for x in (q, k, v))  # type: ignore[return-value]


def mean(q: Bits, k: Bits, v: Bits, seen: NDArray[np.bool_], cap: float = 0.0) -> F32:
    return mean_on_planes(q, numerics.split_f16(k), numerics.split_f16(v), seen, cap)


def exact(
    q: Bits, k: Bits, v: Bits, seen: NDArray[np.bool_], cap: float = 0.0
) -> NDArray[np.float64]:
    """The softmax's mean of values in float64."""
    wide = [x.view(np.float16).astype(np.float64) for x in (q, k, v)]
    scores = wide[0] @ wide[1].T
    if cap:
        scores = cap * np.tanh(scores / cap)
    scores = np.where(seen, scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return (shares / shares.sum(axis=1, keepdims=True)) @ wide[2]


def last_five(positions: int, window: int) -> NDArray[np.bool_]:
    """What the last five positions see."""
    ages = np.arange(positions - 5, positions)[:, None] - np.arange(positions)
    return (ages >= 0) & (ages < window)


@pytest.mark.parametrize("positions", [5, 319, 320, 321, 640, 645, 1300])
@pytest.mark.parametrize("window", [1, 4, 330, 2000])
def test_means_are_those_of_a_float64_softmax(positions: int, window: int) -> None:
    q, k, v = drawn(positions + window, positions, 10)
    seen = last_five(positions, window)
    assert np.abs(mean(q, k, v, seen) - exact(q, k, v, seen)).max() < TOLERANCE
    capped = mean(q, k, v, seen, 2.5), exact(q, k, v, seen, 2.5)
    assert np.abs(capped[0] - capped[1]).max() < TOLERANCE


@pytest.mark.parametrize("largest", [10, 300, 6_000, 10_000_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_scores_of_any_size_are_compared_with_their_largest(largest: int, sign: int) -> None:
    """Whole scores, the largest or smallest by far, twice in different blocks: halves of both."""
    positions = 700
    q, k, v = drawn(largest, positions, 1)
    half = np.float16(np.sqrt(largest))
    q[:], k[:] = 0, 0
    q[:, 0] = np.full(5, half).view(np.uint16)
    column = np.full(positions, half / 2 if sign > 0 else -half, np.float16)
    column[[17, 500]] = half if sign > 0 else -half / 2
    k[:, 0] = column.view(np.uint16)
    seen = np.ones((5, positions), bool)
    wanted = exact(q, k, v, seen)
    assert np.abs(mean(q, k, v, seen) - wanted).max() < TOLERANCE
    if largest > 100:
        both = v[[17, 500]].view(np.float16).astype(np.float64).mean(axis=0)
        assert np.abs(wanted - both).max() < 1e-9


def test_no_bit_hangs_on_what_is_hidden_or_asked_together() -> None:
    """Longer caches, other values beyond what is seen, and queries alone change nothing."""
    q, k, v = drawn(7, 700, 10)
    seen = last_five(700, 300)
    together = mean(q, k, v, seen)
    for query in range(5):
        alone = mean(q[query : query + 1], k, v, seen[query : query + 1])
        assert alone.tobytes() == together[query].tobytes()
    first, last = 300, 650
    some = np.zeros((5, 700), bool)
    some[:, first:last] = True
    short = mean(q, k[:last], v[:last], some[:, :last])
    k[:first], k[last:] = k[last - 1], 0x7BFF
    v[:first], v[last:] = 0xFBFF, 0x7BFF
    assert mean(q, k, v, some).tobytes() == short.tobytes()
