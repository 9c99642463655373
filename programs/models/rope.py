"""Rotary angles: frequencies of a configuration, and sine and cosine in plain IEEE arithmetic.

What the fields of a ``config.json`` say of them is read here as well.

Library sines differ in the last place between machines, and a value that lies close to a rounding
boundary would then differ after rounding to fp32.  Everything here is built of single float64
additions and multiplications in a fixed order, so that every host computes the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from reprlib import repr as shown
from typing import Any

import numpy as np
from numpy.typing import NDArray

from programs.models.config import ModelConfig, Rope, RopeScaling
from programs.models.tensors import CheckpointError, number_of, refusal, whole_of

__all__ = ["inverse_frequencies", "read_rope", "score_size", "sin_cos"]

F64 = NDArray[np.float64]

# pi/2 in three parts; the first two have 33 significant bits: k * part is exact for k < 2^20
_HALF_PI = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624879595063154e-21)
_TWO_OVER_PI = 0.6366197723675814
TRAINED = "original_max_position_embeddings"


def inverse_frequencies(config: ModelConfig, table: int = 0) -> F64:
    """Return the angle per position of each pair that turns, radians, float64 [rope_dim / 2].

    table: of `ModelConfig.ropes`.
    """
    rope = config.ropes[table]
    if not rope.theta:
        return np.zeros(config.rope_dim // 2)
    with localcontext() as context:
        context.prec = 40
        theta, d = Decimal(rope.theta), config.rope_dim
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
            if low == high:
                keep = Decimal(turns > low)
            else:
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


def read_rope(fields: Mapping[str, Any], theta: float) -> Rope:
    """The rotary table of a configuration; ``theta`` where it names none."""
    table = _rope_table(fields, theta)
    own = number_of(table, "rope_theta", number_of(fields, "rope_theta", theta))
    if own == 0:  # a `Rope` of 0 is one that turns nothing
        raise refusal("rope_theta is 0", "it must be positive and finite")
    return Rope(own, _scaling(table, fields))


def _rope_table(fields: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """The table that rotary positions follow: ``rope_scaling`` before ``rope_parameters``.

    So transformers 5 has it, and so it takes a theta inside of the table before one outside;
    ``theta`` is that of a configuration that names none.
    """
    tables: dict[str, dict[str, Any]] = {}
    for name in ("rope_scaling", "rope_parameters"):
        table = fields.get(name)
        if table is not None and not isinstance(table, dict):
            raise CheckpointError(f"{name} is {shown(table)}; it must be null or an object")
        if table:
            tables[name] = table
    name, rope = next(iter(tables.items()), ("rope_scaling", {}))
    if rope.get("rope_type", rope.get("type")) is None:
        # Files of transformers 5 that stretch nothing give a theta alone.
        extra = sorted(map(str, set(rope) - {"rope_theta", "partial_rotary_factor"}))
        if extra or {"rope_type", "type"} & set(rope):
            raise CheckpointError(
                f"{name} has no rope_type beside {shown(extra)}; say which scaling it is"
            )
    other = tables.get("rope_parameters", {}).get("rope_theta")
    outside = fields.get("rope_theta")
    if name == "rope_scaling" and other is not None:
        used = rope.get("rope_theta", theta if outside is None else outside)
        if used != other:
            raise CheckpointError(
                f"rope_parameters has rope_theta {shown(other)}, but rope_scaling, which comes "
                f"before it, goes with {shown(used)}; keep one of the two tables"
            )
    for table in (fields, rope):
        turned = table.get("partial_rotary_factor")
        if turned is not None and turned != 1:
            raise CheckpointError(
                f"partial_rotary_factor is {shown(turned)}, which is not supported; "
                "use a model that turns whole heads"
            )
    return rope


def _scaling(rope: Mapping[str, Any], fields: Mapping[str, Any]) -> RopeScaling | None:
    """How a rotary table is stretched; fields: of the whole configuration."""
    stretch = rope.get("rope_type", rope.get("type", "default"))
    if stretch == "default":
        return None
    if stretch == "linear":
        return RopeScaling(stretch, number_of(rope, "factor"))
    if stretch == "llama3":
        return RopeScaling(
            stretch,
            number_of(rope, "factor"),
            number_of(rope, "low_freq_factor"),
            number_of(rope, "high_freq_factor"),
            whole_of({**rope, **_trained(fields)}, TRAINED),
        )
    if stretch == "yarn":
        return _yarn(rope, fields)
    raise refusal(f"rope scaling {shown(stretch)} is not supported", "linear, llama3 and yarn are")


def _trained(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The trained context where the configuration itself names it: before that of the table."""
    return {} if fields.get(TRAINED) is None else {TRAINED: fields[TRAINED]}


def score_size(fields: Mapping[str, Any]) -> float:
    """What latent attention's queries and keys grow by where a table stretches frequencies."""
    table = _rope_table(fields, 10000.0)
    all_dims = number_of(table, "mscale_all_dim", 0.0)
    scaling = _scaling(table, fields)
    one = number_of(table, "mscale", 1.0)
    if scaling is not None and scaling.kind == "yarn" and not all_dims and one != 1:
        raise refusal(
            f"mscale is {one} without mscale_all_dim, which versions of the class read apart",
            "use a model with both",
        )
    if scaling is None or not all_dims:
        return 1.0
    return yarn_size(number_of(table, "factor"), all_dims)


def yarn_size(factor: float, times: float = 1.0) -> float:
    """What cosines and sines grow to by yarn: ``times`` says how fast with the factor."""
    return 1.0 if factor <= 1 else 0.1 * times * float(Decimal(factor).ln()) + 1.0


def _yarn(rope: Mapping[str, Any], fields: Mapping[str, Any]) -> RopeScaling:
    """Yarn, as transformers 5 has it: usually cosines and sines grow to 1 + 0.1 ln(factor)."""
    own = {**rope, **_trained(fields)}
    at = (fields, "max_position_embeddings") if own.get(TRAINED) is None else (own, TRAINED)
    trained = whole_of(*at)
    factor = number_of(rope, "factor")
    one, all_dims = number_of(rope, "mscale", 0.0), number_of(rope, "mscale_all_dim", 0.0)
    if all_dims < 0:
        raise refusal(f"mscale_all_dim is {all_dims}", "it divides, and must be 0 or more")

    usual = yarn_size(factor)
    if one and all_dims:
        usual = yarn_size(factor, one) / yarn_size(factor, all_dims)
    return RopeScaling(
        "yarn",
        factor,
        original_max_position=trained,
        beta_fast=number_of(rope, "beta_fast", 0.0) or 32.0,
        beta_slow=number_of(rope, "beta_slow", 0.0) or 1.0,
        truncate=bool(rope.get("truncate", True)),
        size=number_of(rope, "attention_factor", usual),
    )
