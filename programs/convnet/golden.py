"""The golden model of int8 networks: docs/workloads.md and ``layers.py`` in plain NumPy.

It knows numbers and their order only.  Sums are made in float64, where every partial sum of int8
products is exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip import numerics
from programs.convnet.layers import INPUT, POOL, POOL_PAD, POOL_STRIDE, ConvLayer, Network

I8 = NDArray[np.int8]
F32 = NDArray[np.float32]


def golden_network(network: Network, image: I8) -> dict[str, NDArray[np.generic]]:
    """Every layer's output [height, width, channels] for ``image``: int8, logits float32."""
    tensors: dict[str, NDArray[np.generic]] = {INPUT: image}
    for layer in network.layers:
        parameters = network.parameters[layer.name]
        source = tensors[layer.source].astype(np.int8)
        sums = layer_sums(layer, source, network.zero_of(layer.source), parameters.weights)
        y = sums.astype(np.float32) * parameters.scale + parameters.bias
        if layer.residual is not None:
            y = y + tensors[layer.residual].astype(np.float32)
        tensors[layer.name] = y if layer.logits else finish_layer(layer, y)
    return tensors


def layer_sums(layer: ConvLayer, source: I8, zero: int, weights: I8) -> NDArray[np.int32]:
    """Exact sums [height, width, channels out] of a layer's products."""
    if layer.joined:
        total = source.astype(np.int64).sum(axis=(0, 1)) @ weights[:, 0].astype(np.int64).T
        return np.asarray(total, np.int32)[None, None]
    pad = ((layer.pad, layer.pad), (layer.pad, layer.pad), (0, 0))
    padded = np.pad(source, pad, constant_values=zero)
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, (layer.kernel, layer.kernel), axis=(0, 1)
    )[:: layer.stride, :: layer.stride]
    height, width = windows.shape[:2]
    taps = np.moveaxis(windows, 2, -1).reshape(height * width, -1).astype(np.float64)
    columns = weights.reshape(len(weights), -1).astype(np.float64)
    sums: NDArray[np.int32] = (taps @ columns.T).astype(np.int32)
    return sums.reshape(height, width, len(weights))


def finish_layer(layer: ConvLayer, y: F32) -> I8:
    """int8 of y, then the maximum over windows if the layer asks for it."""
    q = numerics.to_i8(numerics.to_i32(y))
    if not layer.pooled:
        return q
    pad = ((POOL_PAD, POOL_PAD), (POOL_PAD, POOL_PAD), (0, 0))
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(q, pad, constant_values=-128), (POOL, POOL), axis=(0, 1)
    )
    pooled: I8 = windows[::POOL_STRIDE, ::POOL_STRIDE].max(axis=(-1, -2))
    return pooled
