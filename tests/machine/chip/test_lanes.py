"""Wide vectors of bytes and halves in both forms, with and without what some processors lack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chip.engine import dot_fp16 as _dot_fp16
from chip.engine import sxm as _sxm
from chip.jit import jit, processor_has, shuffle_lanes, transpose_rows

pick_lanes_plainly = _sxm.pick_lanes_plainly


@jit
def _plainly(source: Any, lanes: Any, out: Any) -> None:
    pick_lanes_plainly(source, lanes, out)


@jit
def _shuffled(source: Any, lanes: Any, out: Any) -> None:
    shuffle_lanes(source, lanes, out)


@jit
def _transposed(rows: Any, arguments: Any) -> None:
    transpose_rows(rows, arguments, 1, 17)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(_plainly, id="plain"),
        pytest.param(
            _shuffled,
            id="shuffled",
            marks=pytest.mark.skipif(not processor_has("ssse3"), reason="no SSSE3 here"),
        ),
    ],
)
def test_lanes_are_picked_within_their_superlane(form: Any) -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, 320).astype(np.uint8)
    lanes = np.arange(320).astype(np.uint8)  # all values, in another superlane the first again
    lanes[256:] = rng.integers(0, 18, 64)
    out = np.full(320, 7, np.uint8)
    form(source, lanes, out)
    picked = source.reshape(20, 16)[np.arange(320) // 16, lanes % 16]
    assert np.array_equal(out, np.where(lanes < 16, picked, 0))


def test_rows_are_transposed_within_superlanes() -> None:
    """Targets that nobody wants are left out; no other row changes."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (40, 320)).astype(np.uint8)
    sources, targets = rng.permutation(16), 20 + rng.permutation(16)
    targets[[0, 5, 15]] = -1
    want = rows.copy()
    turned = rows[sources].reshape(16, 20, 16).transpose(2, 1, 0).reshape(16, 320)
    for target, row in zip(targets, turned, strict=True):
        if target >= 0:
            want[target] = row
    _transposed(rows, np.array([-9, *sources, *targets, -9], np.int32))
    assert np.array_equal(rows, want)


@pytest.mark.long
@pytest.mark.parametrize("converts", [False, True])
@pytest.mark.parametrize(("activations", "apart"), [(8, 1), (4, 1), (1, 4)])
def test_sums_of_blocks(
    converts: bool, activations: int, apart: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the blocks that are named, and with halves widened by hand as well as by the processor."""
    if converts and not processor_has("f16c"):
        pytest.skip("no F16C here")
    monkeypatch.setattr(_dot_fp16, "processor_has", lambda _: converts)
    dots = _dot_fp16._dots(activations, apart)

    @jit
    def summed(low: Any, high: Any, wide: Any, live: Any, blocks: int, sums: Any) -> None:
        dots(low, high, wide, live, blocks, 1, sums)

    rng = np.random.default_rng(0)
    column = rng.standard_normal(320).astype(np.float16)
    column[:9] = 0.0, -0.0, 65504.0, -65504.0, 2.0**-24, -(2.0**-24), 2.0**-14, 1.0, -1.0
    low, high = column.view(np.uint8).reshape(320, 2).T.copy()
    wide = rng.integers(-64, 64, (17, 320)).astype(np.float64)
    for blocks in (0, 1, 6, 40):
        live = 8 * rng.permutation(40)
        sums = np.full(16, 7.0)
        summed(low, high, wide, live, blocks, sums)
        chosen = (live[:blocks, None] + np.arange(8)).reshape(-1)
        want = wide[1 : 1 + activations, chosen] @ column[chosen].astype(np.float64)
        assert np.allclose(sums[1 : 1 + activations], want, rtol=1e-13, atol=1e-9)
        assert sums[0] == 7.0 and (sums[1 + activations :] == 7.0).all()
