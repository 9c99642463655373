"""The weights of experts as a chip holds them: side by side as one wide FFN, and their router.

Element i of expert e is element e * ffn + i of the wide FFN.  Knows numbers, not places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from programs.decoder.lanes import LANES, Axis, Layout, PartitionError
from programs.models import Checkpoint

__all__ = [
    "finite",
    "fp16_weights",
    "router_columns",
    "router_parts",
    "router_values",
    "side_by_side",
]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Index = NDArray[np.int64]

#: Width of a router's column block in its stored form: one word of each of sixteen slices.
COLUMNS = 16
#: The fine part of a router's int8 weight counts 1/254 of the coarse one's step.
FINE_STEPS = 254


def side_by_side(
    checkpoint: Checkpoint, names: Sequence[str], ffn: int, outputs: Index, inputs: Index
) -> F32:
    """Elements [outputs, inputs] of one matrix of each expert, joined along the wide FFN.

    The axis that runs along the FFN is the one with elements beyond a matrix's own: outputs of
    gate and up are all of one expert, inputs of down those of several, in ascending order.
    """
    if len(names) == 1:
        return checkpoint.block(names[0], outputs, inputs)
    if names[0].endswith(".w2.weight"):
        expert = inputs // ffn
        parts = [
            checkpoint.block(names[e], outputs, inputs[expert == e] - e * ffn)
            for e in np.unique(expert)
        ]
        return np.concatenate(parts, axis=1)
    first = int(outputs[0]) // ffn
    return checkpoint.block(names[first], outputs - first * ffn, inputs)


def router_parts(dtype: str) -> int:
    """Column blocks per expert: int8 weights have a coarse and a fine part."""
    return 2 if dtype == "int8" else 1


def router_columns(layout: Layout, dtype: str) -> int:
    """Stored columns of 320 weights that the router of a layer takes on each chip."""
    if layout.experts == 1:
        return 0
    return layout.x_tiles * layout.experts * router_parts(dtype) * COLUMNS


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

    values: [K tiles, parts * experts, 16, 320], all columns of a block the same; scale: float32
    [parts * experts, 320], ``constant`` in it (int8), or None.
    """
    finite(weights, name)
    tile, lane = np.nonzero(k_axis >= 0)
    rows = k_axis[tile, lane]
    scale: F32 | None = None
    if dtype == "int8":
        step = np.abs(weights).max(axis=1) / 127.0
        divisor = np.where(step > 0.0, step, 1.0)[:, None]
        coarse = np.rint(weights / divisor)
        fine = np.rint((weights / divisor - coarse) * FINE_STEPS)
        columns: NDArray[Any] = np.concatenate([coarse, fine]).astype(np.int8)
        both = np.concatenate([step, step / FINE_STEPS]) * constant
        scale = np.repeat(both.astype(np.float32)[:, None], LANES, axis=1)
    else:
        columns = fp16_weights(weights, name)
    values = np.zeros((len(k_axis), len(columns), COLUMNS, LANES), columns.dtype)
    values[tile, :, :, lane] = columns.T[rows][:, :, None]
    return values, scale
