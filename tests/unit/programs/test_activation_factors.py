"""int8: normed activations take a norm's gain; weights keep what of it is beyond a few medians."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from programs.decoder import GoldenDecoder, Layout, partition, partition_model
from programs.decoder.lanes import PartitionError
from programs.decoder.partition import activation_factors, chip_weights
from programs.models import Checkpoint, ModelConfig, random_checkpoint
from programs.models.tensors import TensorSource
from tests import examples
from tests.oracles.llama_float32 import LlamaFloat32

F32 = NDArray[np.float32]
Index = NDArray[np.int64]
CONFIG = ModelConfig(hidden_size=352, layers=2, heads=4, kv_heads=2, head_dim=24, ffn=200, vocab=90)
#: sqrt(hidden (1 + 2^-7)) / 16256: one step of a normed activation.
STEP = np.sqrt(CONFIG.hidden_size * (1 + 2.0**-7)) / 16256


@dataclass
class _Gains:
    """A model whose norms' gains are others."""

    source: TensorSource
    gains: F32

    def read(self, name: str, rows: Index | None, columns: Index | None) -> F32:
        return self.gains if "norm" in name else self.source.read(name, rows, columns)


def model_with(gains: NDArray[np.float64]) -> Checkpoint:
    checkpoint = random_checkpoint(CONFIG, 3)
    return replace(checkpoint, source=_Gains(checkpoint.source, gains.astype(np.float32)))


def uneven(seed: int) -> NDArray[np.float64]:
    """Gains as trained norms have them: most alike, some a tenth of that, some three times."""
    size = np.exp(np.random.default_rng(seed).normal(0, 0.7, CONFIG.hidden_size))
    return np.clip(size, 0.1, 3.5)


@settings(max_examples=examples(200), deadline=None)
@given(
    n=st.integers(1, 40),
    spread=st.floats(0, 30),
    zeros=st.floats(0, 1),
    unit=st.sampled_from([1e-30, 1e-3, 1.0, 1e20]),
    seed=st.integers(0, 1 << 32),
)
def test_factors_follow_gains_up_to_four_medians(
    n: int, spread: float, zeros: float, unit: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    gain = unit * np.exp(spread * rng.normal(size=n)) * rng.choice([-1, 1], n)
    gain[rng.random(n) < zeros] = 0
    factors = activation_factors(gain)
    assert factors.dtype == np.float32
    assert (factors > 0).all() and factors.max() == 1
    size, median = np.abs(gain), np.sort(np.abs(gain))[[(n - 1) // 2, n // 2]].mean()
    bound = min(size.max(), 4 * median) if median > 0 else size.max()
    wanted = np.minimum(size, bound) / bound if bound else np.ones(n)
    kept = wanted > 1e-37  # fp32 holds no less in full
    np.testing.assert_allclose(factors[kept], wanted[kept], rtol=2.0**-23)
    assert (np.abs(factors[~kept] - wanted[~kept]) <= 1).all()


@pytest.mark.parametrize("tp", [1, 2])
def test_factors_and_weights_are_the_normed_matrices(tp: int) -> None:
    """Steps, scale and factors of every column give gain times weight, to half a step."""
    checkpoint, gains = model_with(uneven(1)), uneven(1).astype(np.float32).astype(np.float64)
    layout = Layout.of(CONFIG, tp)
    whole = {
        "gate": checkpoint.tensor("model.layers.1.mlp.gate_proj.weight"),
        "head": checkpoint.tensor(checkpoint.head_name),
    }
    for chip in range(tp):
        built = chip_weights(checkpoint, layout, "int8", chip)
        layer = built.layers[1]
        for name, own, factors, axis in (
            ("gate", layer.gate, layer.factors[1], layout.ffn_axis(chip)),
            ("head", built.head, built.factors, layout.vocab_axis(chip)),
        ):
            assert factors is not None and own.scale is not None
            tile, lane = np.nonzero(layout.x_axis() >= 0)
            rows = layout.x_axis()[tile, lane]
            assert (factors[layout.x_axis() < 0] == 0).all()
            for block, column in zip(*np.nonzero(axis >= 0), strict=True):
                step = np.float64(own.scale[block, column]) / STEP
                ours = own.values[tile, block, column, lane] * step * factors[tile, lane]
                wanted = whole[name][axis[block, column], rows] * gains[rows]
                assert (np.abs(ours - wanted) <= 0.501 * step * factors[tile, lane]).all()


def test_every_chip_takes_the_same_activations() -> None:
    """Experts are chosen by every chip alone: they would part where x did."""
    checkpoint = model_with(uneven(2))
    chips = partition_model(checkpoint, 4).chips
    for chip in chips[1:]:
        for a, b in zip(chips[0].layers, chip.layers, strict=True):
            np.testing.assert_array_equal(a.factors, b.factors)  # type: ignore[arg-type]
        np.testing.assert_array_equal(chips[0].factors, chip.factors)


@pytest.mark.parametrize("seed", [0, 1])
def test_uneven_gains_cost_no_accuracy(seed: int) -> None:
    """With all of the gains in the columns of the weights the error is above 0.02."""
    uneven_model, tokens = model_with(uneven(seed)), [3, 41, 59, 26, 5, 8]
    wanted = LlamaFloat32(uneven_model).logits(tokens)
    logits = GoldenDecoder(partition_model(uneven_model, 2)).logits_for(tokens)
    error = np.sqrt(np.mean((logits - wanted) ** 2)) / wanted.std()
    assert error < 0.015


@dataclass
class _Massive:
    """A model one of whose channels is huge for every token, as some have them.

    weights: what those that take this channel are multiplied by.
    """

    source: TensorSource
    channel: int
    size: float
    weights: float

    def read(self, name: str, rows: Index | None, columns: Index | None) -> F32:
        values = self.source.read(name, rows, columns).copy()
        if "embed" in name:
            values[:, self.channel] = self.size
        elif any(part in name for part in ("q_proj", "k_proj", "v_proj", "gate", "up_", "lm_head")):
            values[:, self.channel] *= self.weights
        return values


def massive_errors(
    seed: int, ratio: float, weights: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[float, float]:
    """Errors of logits with factors, and with all of the gains in the weights; in deviations."""
    gains = uneven(seed)
    gains[7] = 0.05  # norms make such a channel small
    model = model_with(gains)
    size = ratio * float(model.tensor("model.embed_tokens.weight").std())
    model = replace(model, source=_Massive(model.source, 7, size, weights))
    tokens = [3, 41, 59, 26, 5, 8]
    wanted = LlamaFloat32(model).logits(tokens)

    def error() -> float:
        logits = GoldenDecoder(partition_model(model, 2)).logits_for(tokens)
        return float(np.sqrt(np.mean((logits - wanted) ** 2)) / wanted.std())

    taken = error()
    with monkeypatch.context() as patch:
        patch.setattr(partition, "activation_factors", lambda gain: np.ones(len(gain), np.float32))
        return taken, error()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("ratio", [30.0, 3000.0])
def test_a_massive_channel_costs_less_than_with_gains_in_weights(
    seed: int, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows of weights, which keep less of the gain, spend fewer of the others' steps."""
    taken, folded = massive_errors(seed, ratio, 1.0, monkeypatch)
    assert taken < 0.025 and taken < folded / 3


def test_a_massive_channel_that_no_weight_takes_costs_steps_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one case that factors make worse: up to the reach, which they take of every other lane.

    The norm of x still has the channel, and its factor nothing to give back.
    """
    taken, folded = massive_errors(0, 3000.0, 0.0, monkeypatch)
    assert folded < taken < partition.GAIN_REACH * folded


def test_fp16_folds_whole_gains_and_takes_no_factors() -> None:
    built = chip_weights(model_with(uneven(1)), Layout.of(CONFIG, 1), "fp16", 0)
    assert built.factors is None and built.layers[0].factors == (None, None)


def test_a_gain_that_is_no_number_is_refused() -> None:
    gains = uneven(1)
    gains[7] = np.nan
    with pytest.raises(
        PartitionError, match=r"'model.layers.0.input_layernorm.weight' holds a NaN"
    ):
        chip_weights(model_with(gains), Layout.of(CONFIG, 1), "int8", 0)
