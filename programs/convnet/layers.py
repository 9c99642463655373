"""A feed-forward network of int8 layers: dense ones and convolutions, residuals, pooling.

A tensor is an image [height, width, channels] of int8 numbers; a dense layer is a 1 x 1 convolution
whose image is the batch.  A layer computes, column n by column n,

    y = float32(sum of weight * activation, exact in int32) * scale[n] + bias[n] (+ residual)

and stores int8(y) to nearest even, saturated; float32 operations each round once.  Outputs of
layers with ``relu`` have the zero point -128, so the saturation *is* the ReLU and all 8 bits are
used; scale and bias hold all that follows from zero points.  Borders of a convolution hold the zero
point of its source.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chip.scheduling import CompileError

I8 = NDArray[np.int8]
F32 = NDArray[np.float32]

INPUT = "input"
#: Zero point of what a ReLU made.
RELU_ZERO = -128
#: Height, width and stride of the maximum that ``pooled`` asks for, and its border.
POOL, POOL_STRIDE, POOL_PAD = 3, 2, 1


@dataclass(frozen=True)
class ConvLayer:
    """One layer; ``source`` and ``residual`` name layers before it, or ``input``.

    kernel, stride, pad: of the convolution, the same in both directions.  residual: added before
    the rounding, on the same scale as the output.  pooled: the 3 x 3 maximum with stride 2 follows.
    joined: the sums of all pixels are added up (a mean over the image whose divisor the scale
    holds), so the output is one pixel.  logits: the float32 y itself is the output.
    """

    name: str
    source: str
    channels: int
    kernel: int = 1
    stride: int = 1
    pad: int = 0
    relu: bool = True
    residual: str | None = None
    pooled: bool = False
    joined: bool = False
    logits: bool = False


@dataclass(frozen=True)
class Parameters:
    """weights int8 [channels out, kernel * kernel, channels in]; scale, bias float32 [out]."""

    weights: I8
    scale: F32
    bias: F32


@dataclass
class Network:
    """Layers in the order in which they run; the last one makes the output.

    shape: height, width and channels of the input, whose zero point is 0.
    """

    name: str
    shape: tuple[int, int, int]
    layers: list[ConvLayer]
    parameters: dict[str, Parameters] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {INPUT}
        for layer in self.layers:
            for source in (layer.source, layer.residual or INPUT):
                if source not in known:
                    raise CompileError(f"layer {layer.name}: {source} is no layer before it")
            known.add(layer.name)

    def shape_of(self, name: str) -> tuple[int, int, int]:
        """Height, width and channels of a layer's output, after its pooling."""
        if name == INPUT:
            return self.shape
        layer = self.layer(name)
        height, width = self.product_size(layer)
        if layer.pooled:
            height, width = (
                (size + 2 * POOL_PAD - POOL) // POOL_STRIDE + 1 for size in (height, width)
            )
        return height, width, layer.channels

    def product_size(self, layer: ConvLayer) -> tuple[int, int]:
        """Height and width of what the layer's matrix product makes."""
        height, width, _ = self.shape_of(layer.source)
        if layer.joined:
            return 1, 1
        each = [
            (size + 2 * layer.pad - layer.kernel) // layer.stride + 1 for size in (height, width)
        ]
        if min(each) < 1:
            raise CompileError(f"layer {layer.name}: nothing is left of {height} x {width} pixels")
        return each[0], each[1]

    def layer(self, name: str) -> ConvLayer:
        """The layer called ``name``."""
        return next(layer for layer in self.layers if layer.name == name)

    def zero_of(self, name: str) -> int:
        """The zero point of a tensor."""
        return RELU_ZERO if name != INPUT and self.layer(name).relu else 0

    def multiply_accumulates(self) -> int:
        """Useful multiply-accumulates of one run: those with a weight and a real pixel or border.

        A mean before a dense layer counts as one product of that layer.
        """
        total = 0
        for layer in self.layers:
            height, width = self.product_size(layer)
            taps = layer.kernel**2
            total += height * width * taps * self.shape_of(layer.source)[2] * layer.channels
        return total
