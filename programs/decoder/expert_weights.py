"""The router of experts as a chip holds it: expert e's logit arrives on lane e.

Knows numbers, not places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from programs.decoder.lanes import LANES, Axis, Layout, PartitionError
from programs.models import Checkpoint, bias_name, ffn_names, router_bias_name

__all__ = [
    "expert_biases",
    "finite",
    "fp16_weights",
    "on_axis",
    "router_bias",
    "router_columns",
    "router_parts",
    "router_values",
    "router_width",
]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Index = NDArray[np.int64]

#: The fine part of a router's int8 weight counts 1/254 of the coarse one's step.
FINE_STEPS = 254


def router_parts(dtype: str) -> int:
    """Column blocks of a router: int8 weights have a coarse and a fine part."""
    return 2 if dtype == "int8" else 1


def router_width(experts: int) -> int:
    """Columns of a router's block: experts in whole groups of sixteen."""
    return 16 * -(-experts // 16)


def router_columns(layout: Layout, dtype: str) -> int:
    """Stored columns of 320 weights that the router of a layer takes on each chip."""
    if layout.experts == 1:
        return 0
    width = router_width(layout.routed) + LANES * layout.shared_gate
    return layout.x_tiles * router_parts(dtype) * width


def finite(values: NDArray[Any], name: str) -> None:
    """Raise PartitionError where a tensor's values are not all finite."""
    if not np.isfinite(values).all():
        raise PartitionError(f"tensor {name!r} holds a NaN or infinity; fetch the model again")


def fp16_weights(weights: F64, name: str) -> NDArray[np.uint16]:
    """The bits of a tensor's weights, a norm's gain folded in if it has one, rounded to fp16.

    Raises PartitionError where one would round to infinity: half a step beyond 65,504.
    """
    with np.errstate(over="ignore"):
        rounded = weights.astype(np.float16)
    if np.isinf(rounded).any():
        raise PartitionError(
            f"tensor {name!r} holds weights up to {np.abs(weights).max():,.6g} (a norm's gain "
            "included, if any), beyond fp16's 65,504; use --dtype int8"
        )
    return rounded.view(np.uint16)


def router_values(
    weights: F64, k_axis: Axis, dtype: str, constant: float, name: str
) -> tuple[NDArray[Any], F32 | None]:
    """A router's weights [experts, hidden] (gain folded) as (values, scale) of a ``Matrix``.

    values: [K tiles, parts, columns, 320]; scale: float32 [parts, 320], ``constant`` in it (int8),
    or None.
    """
    finite(weights, name)
    experts = len(weights)
    tile, lane = np.nonzero(k_axis >= 0)
    rows = k_axis[tile, lane]
    scale: F32 | None = None
    if dtype == "int8":
        step = np.abs(weights).max(axis=1) / 127.0
        divisor = np.where(step > 0.0, step, 1.0)[:, None]
        coarse = np.rint(weights / divisor)
        fine = np.rint((weights / divisor - coarse) * FINE_STEPS)
        parts: NDArray[Any] = np.stack([coarse, fine]).astype(np.int8)
        scale = np.zeros((2, LANES), np.float32)
        scale[:, :experts] = np.stack([step, step / FINE_STEPS]) * constant
    else:
        parts = fp16_weights(weights, name)[None]
    width = router_width(experts)
    values = np.zeros((len(k_axis), len(parts), width, LANES), parts.dtype)
    # separate index arrays put the lane axis first: [lanes used, parts, experts]
    values[tile, :, :experts, lane] = parts[..., rows].transpose(2, 0, 1)
    return values, scale


def on_axis(checkpoint: Checkpoint, name: str, axis: Axis, factor: float) -> F32:
    """Return a stored vector times ``factor`` on the lanes of ``axis``, float32 [tiles, 320]."""
    stored = checkpoint.tensor(name).astype(np.float64) * factor
    finite(stored, name)
    placed: F32 = np.where(axis >= 0, stored[np.maximum(axis, 0)], 0.0).astype(np.float32)
    return placed


def router_bias(checkpoint: Checkpoint, number: int) -> F32 | None:
    """Return the bias of a router's logits or sigmoids, expert e's on lane e, if it has one."""
    config = checkpoint.config
    scored = config.sigmoid_scores and not config.kind_of(number).dense
    if not (config.expert_bias or scored):
        return None
    axis = np.full((1, LANES), -1, np.int64)
    axis[0, : checkpoint.config.experts] = np.arange(checkpoint.config.experts)
    return on_axis(checkpoint, router_bias_name(config, number), axis, 1.0)


def expert_biases(
    checkpoint: Checkpoint, axes: tuple[Axis, Axis], number: int, chip: int
) -> tuple[F32, F32, F32] | None:
    """Return the biases of all experts' gate, up and down, one expert after the other.

    axes: of an expert's hidden elements, and of x.
    """
    if not checkpoint.config.expert_bias:
        return None
    hidden, x = axes
    found: list[list[F32]] = [[], [], []]
    for names in ffn_names(checkpoint.config, number):
        for rows, name, axis in zip(found, names, (hidden, hidden, x), strict=True):
            factor = 0.0 if axis is x and chip else 1.0
            rows.append(on_axis(checkpoint, bias_name(name), axis, factor))
    gate, up, down = map(np.concatenate, found)
    return gate, up, down
