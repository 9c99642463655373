"""Whether sampled texts look like the target's own samples: a test of the run, not of the rule.

Independent of how the tokens were made.  At every position plain decoding of the text gives the
target's distribution p; if the token there was drawn from it, then

    u = P(more likely tokens) + v P(the token),  v uniform and its own

is uniform on [0, 1), and independent of all others.  Kolmogorov's statistic of the u of all tokens
of a run tells by how far they miss it.  Tokens that the target finds less likely than its own
samples, which is what a leaking draft leaves behind, push u up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.experiments.speculative import acceptance
from cluster.experiments.speculative.acceptance import Draws, Use

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

LEAST_P_VALUE = 1e-6
"""Below it a run is not the target's; one honest run in a million is called that wrongly."""


@dataclass(frozen=True)
class SamplingCheck:
    """tokens: how many were tested.  p_value: the share of honest runs that fit no better."""

    tokens: int
    p_value: float

    @property
    def fits(self) -> bool:
        """Whether the tokens may be the target's samples."""
        return self.p_value >= LEAST_P_VALUE

    @property
    def told(self) -> str:
        """The finding in words."""
        if self.fits:
            return (
                f"{self.tokens:,} sampled tokens fit the target's distributions "
                f"(Kolmogorov, p = {self.p_value:.2g}), which no sample proves"
            )
        return (
            f"{self.tokens:,} sampled tokens do not fit the target's distributions "
            f"(Kolmogorov, p = {self.p_value:.2g})"
        )


def place(p: F64, token: int, v: float) -> float:
    """The u of ``token`` under ``p``, float64 [vocab]; tokens as likely as it share its room."""
    share = float(p[token])
    above, level = float(p[p > share].sum()), p == share
    if share <= 0.0:
        return 1.0
    before = int(np.count_nonzero(level[:token]))
    return min(above + (before + v) * share, 1.0)


def kolmogorov(u: F64) -> float:
    """The p-value of uniformity on [0, 1) of ``u``, float64 [n]; Stephens's form for small n."""
    n = len(u)
    ordered, ranks = np.sort(u), np.arange(1, n + 1)
    distance = max(float((ranks / n - ordered).max()), float((ordered - (ranks - 1) / n).max()))
    scaled = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * distance
    if scaled < 0.3:  # the series converges slowly; the value is 1 to 5 digits
        return 1.0
    steps = np.arange(1, 101)
    terms = np.where(steps % 2, 2.0, -2.0) * np.exp(-2.0 * (steps * scaled) ** 2)
    return min(max(float(terms.sum()), 0.0), 1.0)


def check_sampling(
    texts: Sequence[Sequence[int]], rows: Sequence[Sequence[F32]], temperature: float, seed: int
) -> SamplingCheck:
    """Test texts of requests 0, 1, ...; rows: the target's logits per token, float32 [vocab]."""
    places = []
    for request, (tokens, laws) in enumerate(zip(texts, rows, strict=True)):
        draws = Draws(seed, request)
        for position, (token, row) in enumerate(zip(tokens, laws, strict=True)):
            p = acceptance.probabilities(row, temperature)
            places.append(place(p, token, draws.uniform(position, Use.CHECK)))
    return SamplingCheck(len(places), kolmogorov(np.array(places)))
