"""Random weights and inputs have the spreads that their docstrings promise, from the seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from programs.convnet import mlp, random_input, randomise
from programs.convnet.resnet import patches
from programs.encoder import EncoderShape, random_layers, random_tokens

SHAPE = EncoderShape(layers=2, hidden=256, heads=4, ffn=512, tokens=160)


def values(bits: np.ndarray) -> np.ndarray:
    return bits.view(np.float16).astype(np.float64)


def test_an_encoders_weights() -> None:
    """Variance 1 / inputs; queries less 1 / sqrt(head size), which attention divides by."""
    for layer in random_layers(SHAPE, 5):
        inputs = {"q": 256 * 64, "k": 256, "v": 256, "o": 256, "up": 256, "down": 512}
        assert set(layer.matrices) == set(inputs)
        for name, divisor in inputs.items():
            found = values(layer.matrices[name])
            assert found.std() * np.sqrt(divisor) == pytest.approx(1, rel=0.03), name
            assert abs(found.mean()) < 4 * found.std() / np.sqrt(found.size), name
        middles = {"gain1": 1, "gain2": 1, "shift1": 0, "shift2": 0}
        names = {"q_bias", "o_bias", "up_bias", "down_bias"} | set(middles)
        assert set(layer.vectors) == names
        for name, vector in layer.vectors.items():
            assert vector.std() == pytest.approx(0.1, rel=0.2), name
            assert vector.mean() == pytest.approx(middles.get(name, 0), abs=0.03), name


def test_tokens_are_normalised() -> None:
    tokens = values(random_tokens(SHAPE, 5))
    assert tokens.shape == (160, 256)
    assert tokens.std() == pytest.approx(1, rel=0.02) and abs(tokens.mean()) < 0.02


def test_seeds_tell_models_apart() -> None:
    one, again, other = (random_layers(SHAPE, seed)[0] for seed in (1, 1, 2))
    assert all((one.matrices[n] == again.matrices[n]).all() for n in one.matrices)
    assert all((one.vectors[n] == again.vectors[n]).all() for n in one.vectors)
    assert (one.matrices["q"] != other.matrices["q"]).mean() > 0.9
    assert (random_tokens(SHAPE, 1) != random_tokens(SHAPE, 2)).mean() > 0.9


def test_a_networks_weights() -> None:
    """Variance 2 / terms before quantisation, biases 0.1; the input's unit is 1 / 64."""
    network = mlp(1, [1024, 256])
    image = random_input(network, 3)
    # every value but -128, in equal shares
    assert (image.min(), image.max()) == (-127, 127)
    assert image.std() == pytest.approx(np.sqrt((255**2 - 1) / 12), rel=0.05)
    randomise(network, image, 3)
    layer = network.parameters["dense0"]
    assert np.abs(layer.weights).max(axis=(1, 2)).tolist() == [127] * 256
    # of 1,024 normal values the farthest is in the median 3.4 deviations from the middle
    assert layer.weights.std() == pytest.approx(127 / 3.4, rel=0.05)
    assert layer.scale.shape == layer.bias.shape == (256,)
    farthest = 3.4 * np.sqrt(2 / 1024)
    assert np.median(layer.scale) == pytest.approx(farthest / 127 / 64, rel=0.05)
    assert layer.bias.std() == pytest.approx(0.1, rel=0.1) and abs(layer.bias.mean()) < 0.02


def test_patches_are_the_stems_windows() -> None:
    """7 x 7 windows, every second pixel, three pixels of zeros around; channels last."""
    image = np.random.default_rng(1).integers(-127, 128, (8, 8, 3)).astype(np.int8)
    found = patches(image)
    assert found.shape == (4, 4, 147)
    for y, x in ((0, 0), (1, 2), (3, 3)):
        window = np.zeros((7, 7, 3), np.int8)
        for i in range(7):
            for j in range(7):
                row, column = 2 * y + i - 3, 2 * x + j - 3
                if 0 <= row < 8 and 0 <= column < 8:
                    window[i, j] = image[row, column]
        assert (found[y, x] == window.reshape(-1)).all()
