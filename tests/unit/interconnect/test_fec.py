"""Bit errors: chances against exact arithmetic, draws against bits drawn one by one."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from interconnect.fec import LINK_ERRORS, draw_errors, error_chances, random_stream

BITS = 328 * 8


@pytest.mark.parametrize("exponent", [*range(-15, -2)])
def test_chances_are_exact(exponent: int) -> None:
    p = Fraction(10) ** exponent
    one, more = error_chances(float(p), BITS)
    exact_one = BITS * p * (1 - p) ** (BITS - 1)
    exact_more = 1 - exact_one - (1 - p) ** BITS
    assert one == pytest.approx(float(exact_one), rel=1e-9)
    assert more == pytest.approx(float(exact_more), rel=1e-9)


def test_no_errors_without_a_rate_and_no_rates_beyond_one() -> None:
    assert error_chances(0.0, BITS) == (0.0, 0.0)
    for rate in (-1e-9, 1.0, math.nan):
        with pytest.raises(ValueError, match="bit error rate"):
            error_chances(rate, BITS)


def test_draws_are_as_of_bits_drawn_one_by_one() -> None:
    rate, packets = 2e-4, 40_000
    random = np.random.Generator(np.random.PCG64(4))
    wrong = np.zeros(packets, np.int64)
    for first in range(0, packets, 4000):
        wrong[first : first + 4000] = (random.random((4000, BITS)) < rate).sum(axis=1)
    one, more = draw_errors([packets], rate, BITS, random_stream(1, LINK_ERRORS, 0, 0))
    for seen, drawn in ((int((wrong == 1).sum()), one[0]), (int((wrong > 1).sum()), more[0])):
        assert abs(seen - drawn) < 6 * math.sqrt(2 * seen)


@pytest.mark.parametrize("exponent", range(-15, -5))
def test_counts_match_the_binomial_expectation(exponent: int) -> None:
    """56 links of eight chips over 2,000 launches of a million vectors each."""
    rate = 10.0**exponent
    chances = error_chances(rate, BITS)
    sums = np.zeros(2)
    packets = 0
    for launch in range(2000):
        counts = np.full(56, 1_000_000)
        drawn = draw_errors(counts, rate, BITS, random_stream(9, LINK_ERRORS, launch, 0))
        sums += [part.sum() for part in drawn]
        packets += int(counts.sum())
    for seen, chance in zip(sums, chances, strict=True):
        expected = packets * chance
        # Beyond six standard deviations once in 10^9; Poisson's tail where almost none is expected.
        assert abs(seen - expected) <= 6 * math.sqrt(expected) + (5 if expected < 10 else 0)


def test_a_link_has_its_own_rate_and_draws_repeat() -> None:
    rates = np.array([0.0, 1e-3, 0.0])
    first = draw_errors([5000] * 3, rates, BITS, random_stream(2, LINK_ERRORS, 3, 1))
    again = draw_errors([5000] * 3, rates, BITS, random_stream(2, LINK_ERRORS, 3, 1))
    other = draw_errors([5000] * 3, rates, BITS, random_stream(2, LINK_ERRORS, 3, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0][[0, 2]] == 0).all() and first[0][1] > 100
    assert (first[0] != other[0]).any()
