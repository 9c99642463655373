"""Lines rendered together against the same lines joined one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from chip.encoding import TextColumns
from tests import examples

PIECES = ("", "a", "=x/", "instruction")


@settings(max_examples=examples(200), deadline=None)
@given(st.integers(0, 6), st.lists(st.integers(0, 4), max_size=8), st.integers(0, 2**32))
def test_lines_are_their_pieces(lines: int, kinds: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns, expected = TextColumns(lines), [""] * lines
    places: dict[str, list[int]] = {}
    for number, kind in enumerate(kinds):
        where = rng.random(lines) < 0.5
        if kind == 0:
            pieces = ["k: " if w else "" for w in where]
            columns.text("k: ", where)
        elif kind == 1:
            index = rng.integers(0, len(PIECES), lines)
            pieces = [PIECES[i] if w else "" for i, w in zip(index, where, strict=True)]
            columns.choice(PIECES, index, where)
        elif kind == 2:
            values = rng.integers(-(2**62), 2**62, lines) >> rng.integers(0, 62, lines)
            pieces = [str(v) if w else "" for v, w in zip(values, where, strict=True)]
            columns.integer(values, where)
        elif kind == 3:
            values = rng.integers(0, 1000, lines)
            pieces = [f"{v:03d}" for v in values]
            columns.thousandths(values)
        else:
            places[str(number)] = [len(line) for line in expected]
            pieces = ["   "] * lines
            columns.blank(str(number), 3)
        expected = [line + piece for line, piece in zip(expected, pieces, strict=True)]
    got = columns.render()
    assert got.text.tobytes().decode() == "".join(expected)
    assert got.lengths.tolist() == [len(line) for line in expected]
    begins = np.cumsum([0, *(len(line) for line in expected)])[:-1] if lines else np.zeros(0)
    for name, at in places.items():
        assert (got.places[name] == begins + at).all()
