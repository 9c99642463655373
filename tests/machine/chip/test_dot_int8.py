"""Both forms of the int8 dot products against NumPy, the extremes included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip.engine import dot_int8 as _dot_int8
from chip.jit import jit
from tests import examples

lay_wide, dot_wide = _dot_int8.lay_wide, _dot_int8.dot_wide
lay_unsigned, dot_unsigned = _dot_int8.lay_unsigned, _dot_int8.dot_unsigned


@jit
def _wide(w: Any, x: Any, y: Any, a: Any, b: Any) -> Any:
    lay_wide(x, a)
    lay_wide(y, b)
    return dot_wide(w, a, b)


@jit
def _unsigned(w: Any, x: Any, y: Any, a: Any, b: Any) -> Any:
    lay_unsigned(x, a)
    lay_unsigned(y, b)
    return dot_unsigned(w, a, b)


FORMS = [
    pytest.param(_wide, id="wide"),
    pytest.param(
        _unsigned,
        id="unsigned",
        marks=pytest.mark.skipif(not _dot_int8.has_vnni(), reason="no AVX-512 VNNI here"),
    ),
]


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=examples(200), deadline=None)
@given(st.integers(0, 2**32), st.tuples(*[st.sampled_from([None, -128, -127, 127])] * 3))
def test_products_are_exact(form: Any, seed: int, constant: tuple[int | None, ...]) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        rng.integers(-128, 128, 320).astype(np.int8)
        if value is None
        else np.full(320, value, np.int8)
        for value in constant
    ]
    w, x, y = rows
    scratch = rng.integers(-100, 100, (2, 320)).astype(np.int16)
    got = form(w, x, y, scratch[0], scratch[1])
    wide = w.astype(np.int64)
    assert (int(got[0]), int(got[1])) == (int(wide @ x), int(wide @ y))
