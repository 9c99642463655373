"""The acceptance rule emits the target's own distribution; the closed formulas hold."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.experiments.speculative import acceptance
from cluster.experiments.speculative.acceptance import Draws, Use

#: E[tokens per step] by alpha (rows) and gamma (columns), as printed in the literature.
GAMMAS = (1, 2, 3, 4, 5, 7, 8, 16)
TABLE = {
    0.6: (1.60, 1.96, 2.18, 2.31, 2.38, 2.46, 2.47, 2.50),
    0.7: (1.70, 2.19, 2.53, 2.77, 2.94, 3.14, 3.20, 3.33),
    0.8: (1.80, 2.44, 2.95, 3.36, 3.69, 4.16, 4.33, 4.89),
    0.9: (1.90, 2.71, 3.44, 4.10, 4.69, 5.70, 6.13, 8.33),
}
CELLS = [(a, g, e) for a, row in TABLE.items() for g, e in zip(GAMMAS, row, strict=True)]
DRAWS = 20_000


def chi_square_limit(freedom: int) -> float:
    """The value that chi-square passes with probability 0.001 (Wilson and Hilferty)."""
    spread = 2.0 / (9.0 * freedom)
    return float(freedom * (1.0 - spread + 3.0902 * math.sqrt(spread)) ** 3)


def check_drawn_from(tokens: list[int], p: NDArray[np.float64]) -> None:
    """Pearson's test of ``tokens`` against ``p``, rare tokens taken together."""
    counts = np.bincount(tokens, minlength=len(p))
    assert not counts[p == 0].any()
    expected = p * len(tokens)
    often = expected >= 10
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    assert statistic < chi_square_limit(len(wanted) - 1)


def random_law(seed: int, vocab: int, sharpness: float) -> NDArray[np.float64]:
    random = np.random.Generator(np.random.Philox(seed))
    return acceptance.probabilities(
        (sharpness * random.standard_normal(vocab)).astype(np.float32), 1.0
    )


def emitted(p: NDArray[np.float64], q: NDArray[np.float64], seed: int) -> Iterator[int]:
    """The first token of DRAWS steps that each draft one token."""
    for request in range(DRAWS):
        draws = Draws(seed, request)
        token = acceptance.draw(q, draws.uniform(7, Use.DRAFT))
        verdict = acceptance.accept_sampled([token], [q], [p, p], 7, draws)
        yield token if verdict.accepted else verdict.token


@pytest.mark.long
@pytest.mark.parametrize("sharpness", [0.3, 2.0])
def test_emitted_tokens_follow_the_target(sharpness: float) -> None:
    p, q = random_law(1, 40, sharpness), random_law(2, 40, sharpness)
    check_drawn_from(list(emitted(p, q, 5)), p)


@pytest.mark.long
def test_a_sure_drafter_is_corrected_too() -> None:
    p = random_law(1, 12, 1.0)
    check_drawn_from(list(emitted(p, acceptance.point_mass(3, 12), 5)), p)


def test_the_check_would_find_a_wrong_rule() -> None:
    p, q = random_law(1, 40, 0.3), random_law(2, 40, 0.3)
    draws = (Draws(5, request).uniform(7, Use.DRAFT) for request in range(DRAWS))
    with pytest.raises(AssertionError):
        check_drawn_from([acceptance.draw(q, u) for u in draws], p)


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 4.0])
def test_emitted_law_is_the_targets(sharpness: float) -> None:
    p, q = random_law(3, 50, sharpness), random_law(4, 50, sharpness)
    rejected = 1.0 - acceptance.acceptance_rate(p, q)
    emitted = np.minimum(p, q) + rejected * acceptance.residual(p, q)
    assert np.abs(emitted - p).max() < 1e-15 * 50
    assert acceptance.acceptance_rate(p, p) == pytest.approx(1.0)


@pytest.mark.parametrize(("alpha", "gamma", "expected"), CELLS)
def test_every_cell_of_the_table(alpha: float, gamma: int, expected: float) -> None:
    assert acceptance.expected_tokens(alpha, gamma) == pytest.approx(expected, abs=0.006)
    counts = acceptance.monte_carlo(alpha, gamma, 200_000, seed=11)
    assert acceptance.mean_tokens(counts) == pytest.approx(expected, rel=0.01)
    law = acceptance.token_distribution(alpha, gamma)
    assert law.sum() == pytest.approx(1.0)
    assert law @ np.arange(1, gamma + 2) == pytest.approx(acceptance.expected_tokens(alpha, gamma))
    statistic = ((counts - 200_000 * law) ** 2 / (200_000 * law)).sum()
    assert statistic < chi_square_limit(gamma)


def test_other_formulas() -> None:
    assert acceptance.speedup(0.8, 4, 0.0) == acceptance.expected_tokens(0.8, 4)
    assert acceptance.speedup(0.8, 4, 0.05) == pytest.approx(
        (1 - 0.8**5) / ((1 - 0.8) * (4 * 0.05 + 1))
    )
    assert acceptance.operations_factor(0.8, 4, 0.1) == pytest.approx(
        (1 - 0.8) * (4 * 0.1 + 5) / (1 - 0.8**5)
    )
    assert acceptance.expected_tokens(1.0, 5) == 6.0
    assert acceptance.alpha_of(acceptance.expected_tokens(0.73, 6), 6) == pytest.approx(0.73)
    assert acceptance.alpha_of(1.0, 4) == pytest.approx(0.0, abs=1e-9)


def rows_with_best(*tokens: int) -> NDArray[np.float32]:
    rows = np.zeros((len(tokens), 9), np.float32)
    rows[np.arange(len(tokens)), tokens] = 1.0
    return rows


def test_greedy_rule() -> None:
    target = rows_with_best(4, 5, 6)
    assert acceptance.accept_greedy([4, 5], target) == acceptance.Verdict(2, 6)
    assert acceptance.accept_greedy([4, 1], target) == acceptance.Verdict(1, 5)
    assert acceptance.accept_greedy([1, 5], target) == acceptance.Verdict(0, 4)
    assert acceptance.accept_greedy([], target[:1]) == acceptance.Verdict(0, 4)
    ties = np.ones((2, 9), np.float32)
    assert acceptance.accept_greedy([0], ties) == acceptance.Verdict(1, 0)


def test_random_numbers_are_keyed() -> None:
    numbers = {
        Draws(seed, request).uniform(position, use)
        for seed in (0, 1)
        for request in (0, 1)
        for position in (0, 1, 2**40)
        for use in Use
    }
    assert len(numbers) == 2 * 2 * 3 * 5
    assert Draws(3, 4).uniform(5, Use.ACCEPT) == Draws(3, 4).uniform(5, Use.ACCEPT)


def test_draw_never_takes_the_impossible() -> None:
    p = np.array([0.0, 0.5, 0.0, 0.5, 0.0])
    assert {acceptance.draw(p, u) for u in np.linspace(0, 1, 101)} == {1, 3}
    assert acceptance.draw(np.array([1.0, 0.0]), np.nextafter(1.0, 0.0)) == 0


def test_any_temperature_gives_a_distribution() -> None:
    logits = np.array([3.0, -2.0, 3.5, 3.5], np.float32)
    for temperature in (1e-320, 1e-300, 1e-3, 1.0, 1e300):
        p = acceptance.probabilities(logits, temperature)
        assert np.isfinite(p).all() and p.sum() == pytest.approx(1.0)
    assert acceptance.probabilities(logits, 1e-320).tolist() == [0.0, 0.0, 0.5, 0.5]
