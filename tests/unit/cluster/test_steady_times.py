"""Wall seconds of tokens after the first: the middle one of those that were measured."""

from __future__ import annotations

import math

import pytest

from cluster.runs.generation import _steady

NAN = math.nan


@pytest.mark.parametrize(
    ("seconds", "decode", "middle"),
    [
        ([], [0], 0.0),
        ([9.0, 1.0, 4.0, 2.0], [0, 1, 2, 3, 4], 3.0),  # 9, 1, 4 and 2
        ([9.0, 1.0, 4.0, 2.0], [1, 2, 3, 4], 2.0),  # a launch of the prompt alone came first
        ([9.0, 1.0, 4.0, 2.0], [3, 4], 2.0),
        ([9.0, 1.0, 4.0, 2.0], [4], 0.0),
        ([9.0, NAN, 4.0, 2.0], [1, 2, 3, 4], 3.0),  # a process was lost in between
        ([9.0, NAN], [1, 2], 0.0),
    ],
)
def test_the_middle_of_what_was_measured(
    seconds: list[float], decode: list[int], middle: float
) -> None:
    """Entry i lasts from the end of launch i to that of launch i + 1."""
    assert _steady(seconds, decode) == middle
