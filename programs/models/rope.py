"""Rotary angles: frequencies of a configuration, and sine and cosine in plain IEEE arithmetic.

Library sines differ in the last place between machines, and a value that lies close to a rounding
boundary would then differ after rounding to fp32.  Everything here is built of single float64
additions and multiplications in a fixed order, so that every host computes the same rows.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

from programs.models.config import ModelConfig, RopeScaling

__all__ = ["inverse_frequencies", "sin_cos"]

F64 = NDArray[np.float64]

# pi/2 in three parts; the first two have 33 significant bits: k * part is exact for k < 2^20
_HALF_PI = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624879595063154e-21)
_TWO_OVER_PI = 0.6366197723675814


def inverse_frequencies(config: ModelConfig, table: int = 0) -> F64:
    """Return the angle per position of each pair, radians, float64 [head_dim / 2].

    table: of `ModelConfig.ropes`.
    """
    rope = config.ropes[table]
    if not rope.theta:
        return np.zeros(config.head_dim // 2)
    with localcontext() as context:
        context.prec = 40
        theta, d = Decimal(rope.theta), config.head_dim
        plain = [theta ** (Decimal(-2 * i) / d) for i in range(d // 2)]
        scaling = rope.scaling
        if scaling is None:
            return np.array([float(value) for value in plain])
        factor = Decimal(scaling.factor)
        if scaling.kind == "linear":
            return np.array([float(value / factor) for value in plain])
        if scaling.kind == "yarn":
            kept = _kept(scaling, theta, d)
            return np.array(
                [float((1 - k) * v / factor + k * v) for k, v in zip(kept, plain, strict=True)]
            )
        # llama3: full turns of each pair within the trained context decide how much it is slowed
        two_pi = _two_pi()
        low, high = Decimal(scaling.low_freq_factor), Decimal(scaling.high_freq_factor)
        scaled = []
        for value in plain:
            turns = scaling.original_max_position * value / two_pi
            keep = min(max((turns - low) / (high - low), Decimal(0)), Decimal(1))
            scaled.append(float((1 - keep) * value / factor + keep * value))
        return np.array(scaled)


def _two_pi() -> Decimal:
    return 4 * sum((Decimal(part) for part in _HALF_PI), Decimal(0))


def _kept(scaling: RopeScaling, theta: Decimal, d: int) -> list[Decimal]:
    """How much of its frequency every pair keeps by yarn: from 1, of fast ones, to 0."""
    trained = Decimal(scaling.original_max_position)

    def pair_that_turns(times: float) -> Decimal:
        return d * (trained / (Decimal(times) * _two_pi())).ln() / (2 * theta.ln())

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = low.to_integral_value(ROUND_FLOOR), high.to_integral_value(ROUND_CEILING)
    low, high = max(low, Decimal(0)), min(high, Decimal(d - 1))
    if low == high:
        high += Decimal("0.001")
    slowed = [(i - low) / (high - low) for i in range(d // 2)]
    return [1 - min(max(s, Decimal(0)), Decimal(1)) for s in slowed]


def sin_cos(angle: F64) -> tuple[F64, F64]:
    """Return (sin, cos) of `angle` in radians, float64, accurate to about 1e-16 below 10^6."""
    quarter = np.rint(angle * _TWO_OVER_PI)
    rest = angle
    for part in _HALF_PI:
        rest = rest - quarter * part
    square = rest * rest
    sin = np.zeros_like(rest)
    cos = np.zeros_like(rest)
    for n in range(9, 0, -1):  # Taylor series to x^19 and x^18 on |x| <= pi/4
        sin = (1.0 - sin) * square / (2.0 * n * (2.0 * n + 1.0))
        cos = (1.0 - cos) * square / (2.0 * n * (2.0 * n - 1.0))
    sin, cos = rest - rest * sin, 1.0 - cos
    turn = quarter.astype(np.int64) & 3
    odd = (turn & 1) == 1
    sin, cos = np.where(odd, cos, sin), np.where(odd, sin, cos)
    return np.where(turn >= 2, -sin, sin), np.where((turn == 1) | (turn == 2), -cos, cos)
