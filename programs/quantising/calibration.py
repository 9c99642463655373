"""A model's matrices rounded one after another, each for what it takes on a calibration text.

Layer after layer: a matrix sees activations of the layers before it as they are already rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from programs.decoder import Layout
from programs.quantising.compensation import (
    Compensation,
    nearest,
    round_columns,
    weighted_error,
)
from programs.quantising.plain import PlainLayer, PlainModel, QuantisingError, gated

__all__ = ["MatrixError", "round_model"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class MatrixError:
    """What rounding changed in a matrix's products, sums of squares over the calibration text.

    layer: None for the head.  nearest: the same of weights rounded to nearest.
    """

    layer: int | None
    name: str
    compensated: float
    nearest: float


@np.errstate(over="ignore", invalid="ignore")  # told below, in a line
def round_model(
    model: PlainModel,
    tokens: Index,
    tp: int,
    damping: float,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[PlainModel, list[MatrixError]]:
    """Round every matrix for the calibration ``tokens`` [sequences, length], for ``tp`` chips.

    The embedding stays as it is.  Beside the model and its rounded matrices, a layer's mixed
    activations are held: 4 bytes for each of heads x hidden elements of every token.  Raises
    QuantisingError where activations are beyond float32's range.
    """
    rounding = _Rounding(model, Layout.of(model.config, tp), damping)
    xs = [model.embedding[row] for row in tokens]
    layers: list[PlainLayer] = []
    for number, layer in enumerate(model.layers):
        tell(f"rounding layer {number + 1} of {len(model.layers)} ...")
        rounded = rounding.attention(number, layer, xs)
        rounded |= rounding.ffn(number, layer, xs)
        layers.append(rounded)
    tell("rounding the head ...")
    moments = _moments(map(model.unit, xs), model.config.hidden_size)
    head = rounding.matrix(None, "head", model.head, moments)
    return replace(model, layers=layers, head=head), rounding.errors


class _Rounding:
    """Rounds matrices and keeps what that changed."""

    def __init__(self, model: PlainModel, layout: Layout, damping: float) -> None:
        self._model = model
        self._damping = damping
        self._whole = [np.arange(model.config.hidden_size)]
        axes = [layout.q_axis(chip) for chip in range(layout.tp)]
        inner = [layout.ffn_axis(chip) for chip in range(layout.tp)]
        self._heads, self._inner = (
            [axis[axis >= 0] for axis in each if (axis >= 0).any()] for each in (axes, inner)
        )
        self.errors: list[MatrixError] = []

    def matrix(
        self,
        layer: int | None,
        name: str,
        weights: F32,
        moments: F64,
        slices: Sequence[Index] | None = None,
    ) -> F32:
        slices = slices or self._whole
        rounded = round_columns(weights, Compensation.of(moments, self._damping), slices)
        ours, plain = (
            weighted_error(weights, each, moments) for each in (rounded, nearest(weights, slices))
        )
        self.errors.append(MatrixError(layer, name, ours, plain))
        return rounded

    def attention(self, number: int, layer: PlainLayer, xs: list[F32]) -> dict[str, F32]:
        """Round a layer's attention; its results are added to ``xs``.

        Values are weighted as attention mixes them: the moments are those of mixed activations.
        """
        model, config = self._model, self._model.config
        moments = _moments(map(model.unit, xs), config.hidden_size)
        rounded = {name: self.matrix(number, name, layer[name], moments) for name in "qk"}
        mixes: list[F32] = []  # of each sequence, [kv heads, group, P, hidden]
        for x in xs:
            normed = model.unit(x)
            q, k = (model.in_heads(normed @ rounded[name].T) for name in "qk")
            mixes.append(model.shares(q, k) @ normed)
        size, values = config.head_dim, []
        for head in range(config.kv_heads):
            seen = (mix[head].reshape(-1, config.hidden_size) for mix in mixes)
            own = layer["v"][head * size : (head + 1) * size]
            values.append(self.matrix(number, "v", own, _moments(seen, config.hidden_size)))
        rounded["v"] = np.concatenate(values)
        turned: F32 = np.stack(values)[:, None].swapaxes(-1, -2)  # [kv heads, 1, hidden, d]
        mixed = [_side_by_side(np.matmul(mix, turned, dtype=np.float32)) for mix in mixes]
        moments = _moments(mixed, config.heads * size)
        rounded["o"] = self.matrix(number, "o", layer["o"], moments, self._heads)
        for at, given in enumerate(mixed):
            xs[at] = xs[at] + given @ rounded["o"].T
        return rounded

    def ffn(self, number: int, layer: PlainLayer, xs: list[F32]) -> dict[str, F32]:
        """Round a layer's feed-forward network; its results are added to ``xs``."""
        model = self._model
        moments = _moments(map(model.unit, xs), model.config.hidden_size)
        rounded = {n: self.matrix(number, n, layer[n], moments) for n in ("gate", "up")}
        taken = [gated(model.unit(x), rounded) for x in xs]
        moments = _moments(taken, model.config.ffn)
        rounded["down"] = self.matrix(number, "down", layer["down"], moments, self._inner)
        for at, given in enumerate(taken):
            xs[at] = xs[at] + given @ rounded["down"].T
        return rounded


def _side_by_side(heads: F32) -> F32:
    """[kv heads, group, P, d] as [P, heads * d]."""
    flat = heads.reshape(-1, *heads.shape[2:])
    return flat.swapaxes(0, 1).reshape(flat.shape[1], -1)


def _moments(activations: Iterable[F32], size: int) -> F64:
    """Sums of products of activations [P, size], float64 [size, size]."""
    sums = np.zeros((size, size))
    for each in activations:
        sums += each.T @ each
    if not np.isfinite(sums).all():
        raise QuantisingError(
            "the model's activations on the calibration text exceed the range of float32; use "
            "its weights as they are"
        )
    return sums
