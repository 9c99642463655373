"""Compiled int8 networks against the golden model, and the golden model against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chip.checker import check
from chip.scheduling import CompileError
from chip.spec import ChipSpec
from programs.convnet import (
    Network,
    compile_network,
    golden_network,
    mlp,
    place_network,
    random_input,
    randomise,
    read_logits,
    resnet50,
)
from programs.convnet.compiler import ENTRY
from programs.convnet.layers import INPUT, ConvLayer
from programs.convnet.resnet import patches
from programs.running import LOOKAHEAD, Runner

SPEC = ChipSpec()


def compare(network: Network, seed: int = 0) -> int:
    """Random weights and input: legal, on time, and every logit the golden model's."""
    image = random_input(network, seed)
    randomise(network, image, seed)
    artifact = compile_network(network, SPEC, image)
    assert [str(finding) for finding in check(artifact.program(ENTRY, 0), SPEC)] == []
    runner = Runner.alone(artifact)
    cycles = artifact.predicted_cycles[ENTRY]
    assert runner.launch(ENTRY, 0, LOOKAHEAD) == {0: cycles}
    found = read_logits(network, place_network(network, SPEC), runner.chips[0])
    wanted = golden_network(network, image)[network.layers[-1].name]
    assert found.shape == wanted.shape
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))
    return cycles


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    batch=st.integers(1, 400),
    sizes=st.lists(st.integers(1, 900), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
)
def test_mlps_equal_the_golden_model(batch: int, sizes: list[int], seed: int) -> None:
    compare(mlp(batch, tuple(sizes)), seed)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    height=st.integers(4, 24),
    width=st.integers(4, 24),
    channels=st.lists(st.integers(1, 400), min_size=4, max_size=4),
    kernel=st.sampled_from([1, 2, 3, 5]),
    stride=st.sampled_from([1, 2]),
    pad=st.integers(0, 2),
    pooled=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_convolutions_equal_the_golden_model(
    height: int,
    width: int,
    channels: list[int],
    kernel: int,
    stride: int,
    pad: int,
    pooled: bool,
    seed: int,
) -> None:
    """A residual block of convolutions after a layer that may be pooled, then a mean."""
    if pooled:
        height, width = height & ~1, width & ~1
        channels[1] = min(channels[1], 320)
    layers = [
        ConvLayer("first", INPUT, channels[1], pooled=pooled),
        ConvLayer("short", "first", channels[2], stride=stride, relu=False),
        ConvLayer("middle", "first", channels[3], 3, stride, 1),
        ConvLayer("sum", "middle", channels[2], residual="short"),
        ConvLayer("wide", "sum", channels[3], kernel, 1, max(pad, kernel // 2)),
        ConvLayer("out", "wide", 7, joined=True, relu=False, logits=True),
    ]
    compare(Network("block", (height, width, channels[0]), layers), seed)


def test_borders_wider_than_the_kernel() -> None:
    """Some rows of the output see nothing but the border."""
    layers = [
        ConvLayer("first", INPUT, 20),
        ConvLayer("framed", "first", 30, 1, 1, 3),
        ConvLayer("out", "framed", 5, joined=True, relu=False, logits=True),
    ]
    compare(Network("framed", (9, 7, 10), layers))


def test_golden_convolution_is_the_definition() -> None:
    """One pixel after another, in whole numbers; borders hold the zero point."""
    layers = [
        ConvLayer("a", INPUT, 5, 3, 2, 1, pooled=True),
        ConvLayer("b", "a", 4, 3, 1, 1, relu=False, logits=True),
    ]
    network = Network("tiny", (11, 15, 3), layers)
    image = random_input(network, 3)
    randomise(network, image, 3)
    tensors = golden_network(network, image)
    for layer, source, zero in ((layers[0], image, 0), (layers[1], tensors["a"], -128)):
        parameters = network.parameters[layer.name]
        height, width = network.product_size(layer)
        y = np.zeros((height, width, layer.channels), np.float32)
        for row, column, out in np.ndindex(y.shape):
            total = 0
            for ky, kx in np.ndindex(3, 3):
                at = row * layer.stride + ky - 1, column * layer.stride + kx - 1
                inside = 0 <= at[0] < source.shape[0] and 0 <= at[1] < source.shape[1]
                for channel in range(source.shape[2]):
                    value = int(source[(*at, channel)]) if inside else zero
                    total += value * int(parameters.weights[out, 3 * ky + kx, channel])
            y[row, column, out] = np.float32(total) * parameters.scale[out] + parameters.bias[out]
        if layer.logits:
            assert np.array_equal(tensors["b"], y)
            continue
        whole = np.clip(np.rint(y), -128, 127)
        for row, column in np.ndindex(tensors["a"].shape[:2]):
            top, left = max(2 * row - 1, 0), max(2 * column - 1, 0)
            window = whole[top : 2 * row + 2, left : 2 * column + 2]
            assert np.array_equal(tensors["a"][row, column], window.max(axis=(0, 1)))


def test_random_networks_use_their_range() -> None:
    """A calibrated layer neither sticks to its ends nor stays near zero."""
    network = mlp(64, (100, 300, 300, 10))
    image = random_input(network, 0)
    randomise(network, image, 0)
    hidden = golden_network(network, image)["dense1"].astype(int)
    assert 0.3 < (hidden == -128).mean() < 0.7
    assert (hidden == 127).mean() < 0.01
    assert hidden.max() > 60


def test_patches_are_the_first_convolutions_windows() -> None:
    image = np.arange(64 * 64 * 3).reshape(64, 64, 3).astype(np.int8)
    laid = patches(image)
    assert laid.shape == (32, 32, 147)
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)))
    for row, column in ((0, 0), (5, 31), (31, 2)):
        window = padded[2 * row : 2 * row + 7, 2 * column : 2 * column + 7]
        assert np.array_equal(laid[row, column], window.ravel())


def test_resnet50_is_the_published_network() -> None:
    network = resnet50()
    assert len(network.layers) == 54  # 53 convolutions and the classifier
    weights = 0
    for layer in network.layers:
        weights += layer.kernel**2 * network.shape_of(layer.source)[2] * layer.channels
    assert weights == 25_502_912  # 25.557 million parameters less batch norm's and biases'
    assert round(network.multiply_accumulates() / 1e9, 2) == 4.09


def test_what_does_not_fit_says_by_how_much() -> None:
    with pytest.raises(CompileError, match=r"network mlp does not fit: [\d,]+ bytes too many"):
        place_network(mlp(16, (16_000, 16_000, 16_000)), SPEC)
    with pytest.raises(CompileError, match=r"words, [\d,]+ more than a slice holds"):
        place_network(resnet50(448), SPEC)
    with pytest.raises(CompileError, match="is no layer before it"):
        Network("loop", (4, 4, 4), [ConvLayer("a", "b", 4)])


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_resnet50() -> None:
    compare(resnet50())
