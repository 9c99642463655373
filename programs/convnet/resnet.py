"""Networks to compare the machine with published measurements: ResNet-50 and a plain MLP.

Shapes are those of the literature; weights are random (seeded) and calibrated as trained ones would
be: quantised by output column, activation scales from the run of one random input, scales and
biases folded for zero points.  What such a network answers is meaningless; its cycles are not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip.scheduling import CompileError
from programs.convnet.golden import finish_layer, layer_sums
from programs.convnet.layers import INPUT, ConvLayer, Network, Parameters

#: (channels, blocks, stride of the first block) of the four stages.
_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
_EXPANSION = 4
_STEM = (7, 2, 3)  # kernel, stride and border of the first convolution
#: Share of a calibration's absolute values that the int8 range covers.
_COVERED = 0.999


def resnet50(size: int = 224, classes: int = 1000) -> Network:
    """ResNet-50 for images of size x size x 3 (size a multiple of 32).

    The stride of a stage is in its 3 x 3 convolution.  The first convolution takes patches: the
    host lays the 7 x 7 x 3 values of each of its output pixels on the lanes of one word.
    """
    if size % 32:
        raise CompileError(f"image size {size}: use a multiple of 32")
    kernel = _STEM[0]
    layers = [ConvLayer("stem", INPUT, 64, pooled=True)]
    last = "stem"
    for stage, (channels, blocks, stride) in enumerate(_STAGES):
        for block in range(blocks):
            name = f"stage{stage + 1}.{block}"
            step = stride if block == 0 else 1
            shortcut = last
            layers.append(ConvLayer(f"{name}.reduce", last, channels))
            layers.append(ConvLayer(f"{name}.middle", f"{name}.reduce", channels, 3, step, 1))
            if block == 0:
                shortcut = f"{name}.shortcut"
                layers.append(
                    ConvLayer(shortcut, last, _EXPANSION * channels, stride=step, relu=False)
                )
            layers.append(
                ConvLayer(
                    f"{name}.expand", f"{name}.middle", _EXPANSION * channels, residual=shortcut
                )
            )
            last = f"{name}.expand"
    layers.append(ConvLayer("classes", last, classes, joined=True, relu=False, logits=True))
    return Network("resnet50", (size // 2, size // 2, 3 * kernel**2), layers)


def mlp(batch: int, sizes: tuple[int, ...]) -> Network:
    """Dense layers from sizes[0] inputs to sizes[-1] outputs, ReLU between them."""
    if batch < 1 or len(sizes) < 2 or min(sizes) < 1:
        raise CompileError(f"batch {batch}, sizes {sizes}: use at least 1 and two sizes")
    layers = [
        ConvLayer(
            f"dense{i}",
            INPUT if i == 0 else f"dense{i - 1}",
            size,
            relu=i < len(sizes) - 2,
            logits=i == len(sizes) - 2,
        )
        for i, size in enumerate(sizes[1:])
    ]
    return Network("mlp", (batch, 1, sizes[0]), layers)


def patches(image: NDArray[np.int8]) -> NDArray[np.int8]:
    """The stem's input [size / 2, size / 2, 147] of an image [size, size, 3]."""
    kernel, stride, pad = _STEM
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(0, 1))
    strided = np.moveaxis(windows[::stride, ::stride], 2, -1)
    return np.ascontiguousarray(strided).reshape(*strided.shape[:2], -1)


def random_input(network: Network, seed: int) -> NDArray[np.int8]:
    """A random input of the network's shape; for ResNet-50 the patches of a random image."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    if network.name == "resnet50":
        size = 2 * network.shape[0]
        return patches(rng.integers(-127, 128, (size, size, 3)).astype(np.int8))
    return rng.integers(-127, 128, network.shape).astype(np.int8)


def randomise(network: Network, image: NDArray[np.int8], seed: int) -> None:
    """Give ``network`` random weights, quantised and calibrated on ``image``, in place.

    Weights are normal with variance 2 / terms, biases normal with 0.1; the input's scale is 1 / 64.
    A layer with a residual and the layer the residual comes from share one scale.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 2]))
    scales = {INPUT: 1.0 / 64.0}
    tensors: dict[str, NDArray[np.int8]] = {INPUT: image}
    for layer in network.layers:
        channels = network.shape_of(layer.source)[2]
        terms = layer.kernel**2 * channels
        weights = rng.standard_normal((layer.channels, layer.kernel**2, channels))
        weights *= np.sqrt(2.0 / terms)
        bias = 0.1 * rng.standard_normal(layer.channels)
        step = np.abs(weights).max(axis=(1, 2)) / 127.0
        quantised = np.rint(weights / step[:, None, None]).astype(np.int8)
        source, zero = tensors[layer.source], network.zero_of(layer.source)
        sums = layer_sums(layer, source, zero, quantised)
        size = network.shape_of(layer.source)
        pixels = size[0] * size[1] if layer.joined else 1
        real = step * scales[layer.source] / pixels
        offset = pixels * zero * quantised.sum(axis=(1, 2), dtype=np.float64)
        y = (sums - offset) * real + bias
        if layer.logits:
            network.parameters[layer.name] = _folded(quantised, real, bias - offset * real)
            continue
        own_zero = network.zero_of(layer.name)
        if layer.residual is not None:
            scale, other = scales[layer.residual], network.zero_of(layer.residual)
        else:
            top = np.quantile(np.abs(y[:, :, : min(layer.channels, 64)]), _COVERED)
            scale, other = float(max(top, 1e-6)) / (127.0 - own_zero), 0
            if _is_shortcut(network, layer.name):
                scale *= 2.0  # room for what later residuals add
        scales[layer.name] = scale
        shift = own_zero - (other if layer.residual is not None else 0)
        folded = _folded(quantised, real / scale, (bias - offset * real) / scale + shift)
        network.parameters[layer.name] = folded
        value = sums.astype(np.float32) * folded.scale + folded.bias
        if layer.residual is not None:
            value = value + tensors[layer.residual].astype(np.float32)
        tensors[layer.name] = finish_layer(layer, value)


def _is_shortcut(network: Network, name: str) -> bool:
    return any(layer.residual == name for layer in network.layers)


def _folded(
    weights: NDArray[np.int8], scale: NDArray[np.float64], bias: NDArray[np.float64]
) -> Parameters:
    return Parameters(weights, scale.astype(np.float32), bias.astype(np.float32))
