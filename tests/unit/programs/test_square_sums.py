"""Square sums of the golden model against float64, over all sizes that residuals have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from programs.decoder.golden import _square_sum
from tests import examples

#: Beyond the roundings of the fp32 sums of a lane, one a tile.
TOLERANCE = 5e-7


def error(x: NDArray[np.float32]) -> float:
    """Relative error of the square sum of tiles [T, 320] against float64."""
    wanted = np.sum(np.square(x.astype(np.float64)))
    return float(abs(np.float64(_square_sum(x[None])[0, 0, 0]) - wanted) / wanted)


@settings(max_examples=examples(300), deadline=None)
@given(
    tiles=st.integers(1, 52),
    exponent=st.floats(-3, 6),
    spread=st.floats(0, 3),
    seed=st.integers(0, 1 << 32),
)
def test_square_sums_are_right(tiles: int, exponent: float, spread: float, seed: int) -> None:
    """Elements of one magnitude, or of magnitudes up to 1000 apart, none above a million."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** np.clip(exponent + spread * rng.uniform(-1, 0, (tiles, 320)), -3, 6)
    x = (sizes * rng.choice([-1, 1], sizes.shape)).astype(np.float32)
    assert error(x) < TOLERANCE + tiles * 2.0**-24


@pytest.mark.parametrize("size", [1e-3, 0.7, 127.9, 128.0, 16384.0, 22547.0, 65504.0, 1e5, 1e6])
@pytest.mark.parametrize("tiles", [1, 2, 26, 52])
def test_square_sums_of_equal_elements_are_right(tiles: int, size: float) -> None:
    """Every lane rounds the same way, so that no error cancels another."""
    assert error(np.full((tiles, 320), size, np.float32)) < TOLERANCE + tiles * 2.0**-24


@pytest.mark.parametrize("large", [1e4, 22547.0, 1e5, 1e6])
def test_one_channel_may_dominate(large: float) -> None:
    x = np.random.default_rng(3).standard_normal((2, 320)).astype(np.float32)
    x[1, 7] = large
    assert error(x) < 1e-6
