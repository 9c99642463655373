"""Residuals of published models: a few channels tens of thousands of times the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from programs.decoder import GoldenDecoder, Host, compile_decoder, partition_model
from programs.models import Checkpoint, ModelConfig, random_checkpoint
from programs.models.tensors import TensorSource
from programs.running import LOOKAHEAD, Runner
from tests.machine.programs.test_families import CONTEXT, SPEC, TOLERANCE, tokens_of
from tests.oracles.llama_float32 import LlamaFloat32

CHANNEL = 41
#: The FFN is of more tiles than a pass cuts in two.
CONFIG = ModelConfig(344, 2, 4, 2, 40, 8000, 97, eps=1e-6)


@dataclass
class _Outlier:
    """A random model, one channel of whose embeddings is ``size``; quiet: no norm passes it on."""

    source: TensorSource
    size: float
    quiet: bool

    def read(
        self, name: str, rows: NDArray[np.int64] | None, columns: NDArray[np.int64] | None
    ) -> NDArray[np.float32]:
        values = self.source.read(name, None, None)
        if "embed" in name:
            values[:, CHANNEL] = self.size
        elif self.quiet and name.endswith("norm.weight"):
            values[CHANNEL] = 1e-4
        values = values if rows is None else values[rows]
        return values if columns is None else values[:, columns]


def outlier(size: float, quiet: bool) -> Checkpoint:
    checkpoint = random_checkpoint(CONFIG, 5)
    return replace(checkpoint, source=_Outlier(checkpoint.source, size, quiet))


def relative_error(checkpoint: Checkpoint, dtype: str) -> float:
    """Of the golden model's logits, against the independent float32 forward."""
    tokens = tokens_of(CONFIG)
    wanted = LlamaFloat32(checkpoint).logits(tokens)
    logits = GoldenDecoder(partition_model(checkpoint, 2, dtype)).logits_for(tokens)
    return float(np.sqrt(np.mean((logits - wanted) ** 2)) / wanted.std())


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("size", [20_000.0, 60_000.0, 1e5])
@pytest.mark.cases(1)
def test_a_large_channel_costs_no_accuracy(size: float, dtype: str) -> None:
    assert relative_error(outlier(size, quiet=False), dtype) < 0.01


@pytest.mark.long
@pytest.mark.parametrize("size", [20_000.0, 60_000.0, 1e5])
@pytest.mark.cases(1)
def test_a_large_channel_that_norms_hold_back_costs_no_accuracy_in_fp16(size: float) -> None:
    """What trained models do: all that counts is in the other channels, thousandths of it."""
    assert relative_error(outlier(size, quiet=True), "fp16") < 0.01


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.cases(2)
def test_chips_equal_the_golden_model(tp: int, dtype: str) -> None:
    model = partition_model(outlier(1e5, quiet=True), tp, dtype)
    artifact = compile_decoder(model, SPEC, CONTEXT)
    runner, golden = Runner.alone(artifact, Host(artifact, model)), GoldenDecoder(model)
    for position, token in enumerate(tokens_of(CONFIG)):
        for chip in runner.chips:
            runner.host.prepare(chip, token, position)
        runner.launch(f"decode-{CONTEXT}", position, LOOKAHEAD)
        wanted = golden.step(token, position, CONTEXT)
        logits = np.concatenate([runner.host.read_logits(chip) for chip in runner.chips])
        np.testing.assert_array_equal(logits.view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.cases(1)
def test_inputs_of_o_and_down_may_be_large(dtype: str) -> None:
    """A gain of thousands makes values, and the FFN's products, far larger than fp16 holds."""
    checkpoint = random_checkpoint(CONFIG, 6)
    source = checkpoint.source

    class Large:
        def read(
            self, name: str, rows: NDArray[np.int64] | None, columns: NDArray[np.int64] | None
        ) -> NDArray[np.float32]:
            values = source.read(name, rows, columns)
            return values * np.float32(3000.0) if "up_proj" in name else values

    assert relative_error(replace(checkpoint, source=Large()), dtype) < TOLERANCE[dtype]
