"""Speculative decoding's acceptance rule and its closed formulas, as pure functions.

Leviathan, Kalman, Matias (arXiv 2211.17192): a draft proposes tokens x ~ q, the target knows p.

- Greedy: a proposal is accepted while it is the target's argmax (ties: the lowest id); the first
  other position takes the argmax itself.
- Sampling: x is accepted if u < p(x) / q(x); the first rejected position is drawn from
  norm(max(0, p - q)); when all are accepted, one more token is drawn from the target's p.

Either way the text is the target's own: the same tokens when greedy, the same distribution when
sampling.  Randomness is counter-based, keyed by (seed, request, position in the text, use), so no
result depends on how requests are batched or where they run.

Distributions are float64 [vocab] with sum 1; logits are float32 [vocab].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_WORD = 2**64 - 1


class Use(IntEnum):
    """What a uniform number at a position of a text decides."""

    DRAFT = 0
    ACCEPT = 1
    RESIDUAL = 2
    TARGET = 3
    CHECK = 4


@dataclass(frozen=True)
class Draws:
    """The random numbers of one request."""

    seed: int
    request: int

    def uniform(self, position: int, use: Use) -> float:
        """The number in [0, 1) that decides ``use`` for the token at ``position``."""
        philox = np.random.Philox(
            key=[self.seed & _WORD, self.request & _WORD], counter=[0, position, int(use), 0]
        )
        return float(np.random.Generator(philox).random())


@dataclass(frozen=True)
class Verdict:
    """What one step gives: the proposals taken, then one token of the target's own."""

    accepted: int
    token: int


def probabilities(logits: F32, temperature: float) -> F64:
    """softmax(logits / temperature), float64 [vocab]; all on the argmax when temperature is 0."""
    if temperature <= 0.0:
        return point_mass(int(np.argmax(logits)), len(logits))
    # Differences first: at a tiny temperature they become -inf, quotients inf - inf.
    below = logits.astype(np.float64) - float(logits.max())
    with np.errstate(over="ignore"):
        weights = np.exp(below / temperature)
    return np.asarray(weights / weights.sum(), np.float64)


def point_mass(token: int, vocab: int) -> F64:
    """The distribution of a drafter that is sure, float64 [vocab]."""
    mass = np.zeros(vocab, np.float64)
    mass[token] = 1.0
    return mass


def draw(p: F64, u: float) -> int:
    """The token at which the cumulative distribution of ``p`` passes ``u``; never one of p = 0."""
    total = np.cumsum(p)
    token = int(np.searchsorted(total, u * total[-1], side="right"))
    if token >= len(p) or p[token] <= 0.0:  # u * total rounded up to the total
        token = int(np.flatnonzero(p)[-1])
    return token


def residual(p: F64, q: F64) -> F64:
    """norm(max(0, p - q)), float64 [vocab]: what is drawn from after a rejection."""
    rest = np.maximum(p - q, 0.0)
    total = float(rest.sum())
    # p == q rejects with probability 0; a rounding may still lead here.
    return p if total <= 0.0 else np.asarray(rest / total, np.float64)


def acceptance_rate(p: F64, q: F64) -> float:
    """sum_x min(p(x), q(x)): the probability that a proposal x ~ q is accepted."""
    return float(np.minimum(p, q).sum())


def accept_greedy(proposed: Sequence[int], target: F32) -> Verdict:
    """The verdict at temperature 0.

    target: float32 [len(proposed) + 1, vocab], the target's logits for the position of every
    proposal and of the token after them.
    """
    best = np.argmax(target, axis=1)
    for number, token in enumerate(proposed):
        if token != best[number]:
            return Verdict(number, int(best[number]))
    return Verdict(len(proposed), int(best[len(proposed)]))


def accept_sampled(
    proposed: Sequence[int], q: Sequence[F64], p: Sequence[F64], position: int, draws: Draws
) -> Verdict:
    """The verdict when sampling.

    q: a distribution per proposal; p: one more than proposals, the target's.  position: of the
    first proposal in the text.
    """
    for number, token in enumerate(proposed):
        at = position + number
        if draws.uniform(at, Use.ACCEPT) * q[number][token] >= p[number][token]:
            rest = residual(p[number], q[number])
            return Verdict(number, draw(rest, draws.uniform(at, Use.RESIDUAL)))
    last = len(proposed)
    return Verdict(last, draw(p[last], draws.uniform(position + last, Use.TARGET)))


# --- closed formulas for i.i.d. acceptance with probability alpha --------------------------------


def expected_tokens(alpha: float, gamma: int) -> float:
    """E[tokens per step] = (1 - alpha^(gamma+1)) / (1 - alpha): gamma proposals and one more."""
    return sum(alpha**n for n in range(gamma + 1))


def speedup(alpha: float, gamma: int, cost: float) -> float:
    """Against decoding with the target alone; cost: seconds of a draft token / a target step."""
    return expected_tokens(alpha, gamma) / (gamma * cost + 1.0)


def operations_factor(alpha: float, gamma: int, cost: float) -> float:
    """Arithmetic per token against the target alone; cost: operations of draft / target."""
    return (gamma * cost + gamma + 1.0) / expected_tokens(alpha, gamma)


def token_distribution(alpha: float, gamma: int) -> F64:
    """P(n tokens in a step) for n = 1 .. gamma + 1, float64 [gamma + 1]."""
    powers = alpha ** np.arange(gamma + 1, dtype=np.float64)
    return np.append(powers[:-1] * (1.0 - alpha), powers[-1])


def alpha_of(tokens_per_step: float, gamma: int) -> float:
    """The alpha at which ``expected_tokens`` is ``tokens_per_step``, to 1e-12, by bisection."""
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (
            (middle, high) if expected_tokens(middle, gamma) < tokens_per_step else (low, middle)
        )
    return (low + high) / 2


def monte_carlo(alpha: float, gamma: int, steps: int, seed: int) -> NDArray[np.int64]:
    """How many of ``steps`` simulated steps gave n = 1 .. gamma + 1 tokens, int64 [gamma + 1]."""
    random = np.random.Generator(np.random.Philox(key=[seed & _WORD, gamma]))
    accepted = random.random((steps, gamma)) < alpha
    tokens = np.cumprod(accepted, axis=1, dtype=np.int64).sum(axis=1)
    return np.bincount(tokens, minlength=gamma + 1)


def mean_tokens(counts: NDArray[np.int64]) -> float:
    """Tokens per step of ``monte_carlo``'s counts."""
    return float(counts @ np.arange(1, len(counts) + 1) / counts.sum())
