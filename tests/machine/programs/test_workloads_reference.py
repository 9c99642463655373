"""The workloads' programs on the executor that defines the machine: no fault, the same memory."""

from __future__ import annotations

import numpy as np
import pytest

from chip.engine import Chip
from chip.linking import link
from chip.reference import ReferenceChip
from chip.spec import ChipSpec
from programs.artifact import Artifact
from programs.cholesky import CholeskyShape, compile_cholesky
from programs.convnet import Network, compile_network, random_input, randomise
from programs.convnet.layers import INPUT, ConvLayer
from programs.decoder import Host, compile_decoder, partition_model
from programs.encoder import EncoderShape, compile_encoder
from programs.encoder.shape import random_layers, random_tokens
from programs.matmul import MatmulShape, compile_matmul
from programs.models import ModelConfig, random_checkpoint

SPEC = ChipSpec()


def product(dtype: str) -> Artifact:
    rng = np.random.Generator(np.random.Philox(key=[1, 0]))
    a, b = rng.integers(-9, 9, (20, 400)), rng.integers(-9, 9, (400, 40))
    wanted = np.int8 if dtype == "int8" else np.float16
    return compile_matmul(MatmulShape(20, 400, 40, dtype), SPEC, a.astype(wanted), b.astype(wanted))


def network() -> Artifact:
    layers = [
        ConvLayer("stem", INPUT, 40, pooled=True),
        ConvLayer("short", "stem", 20, relu=False),
        ConvLayer("middle", "stem", 20, 3, 1, 1),
        ConvLayer("sum", "middle", 20, residual="short"),
        ConvLayer("out", "sum", 5, joined=True, relu=False, logits=True),
    ]
    network = Network("small", (4, 6, 30), layers)
    image = random_input(network, 0)
    randomise(network, image, 0)
    return compile_network(network, SPEC, image)


def encoder() -> Artifact:
    shape = EncoderShape(1, 32, 2, 40, 16)
    return compile_encoder(shape, SPEC, 1, random_layers(shape, 0), random_tokens(shape, 0))


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.cases(1)
def test_reference_and_engine_agree_on_a_decoder(dtype: str) -> None:
    """Head norms, GeGLU and routing in one layer, second position of a sequence."""
    config = ModelConfig(
        40,
        1,
        2,
        1,
        18,
        30,
        20,
        head_norms=True,
        activation="gelu_tanh",
        experts=3,
        experts_per_token=2,
    )
    model = partition_model(random_checkpoint(config, 0), 1, dtype)
    artifact = compile_decoder(model, SPEC, 64)
    host = Host(artifact, model)
    reference, engine = ReferenceChip(SPEC), Chip(SPEC, 0)
    for queue, address, rows in artifact.memory[0]:
        engine.write_words(queue, address, rows)
    host.prepare(engine, 3, 1)
    reference.sram[:] = engine.sram
    (program,) = artifact.programs["decode-64"]
    result = reference.run(program)
    engine.begin(link(program, SPEC), 0)
    engine.run()
    assert result.cycles == engine.retired_cycles == program.cycles
    assert list(result.digest_sums) == [int(value) for value in engine.digest_sums]
    assert list(result.saturated) == engine.saturated.sum(axis=0).tolist()
    assert np.array_equal(reference.sram, engine.sram)


def factorisation() -> Artifact:
    g = np.random.Generator(np.random.Philox(key=[1, 0])).standard_normal((20, 20))
    return compile_cholesky(CholeskyShape(20), SPEC, (g @ g.T + 20 * np.eye(20)).astype(np.float32))


LONG = pytest.param("factorisation", marks=pytest.mark.long)


@pytest.mark.parametrize("kind", ["int8", "fp16", "network", "encoder", LONG])
@pytest.mark.cases(2)
def test_reference_and_engine_agree(kind: str) -> None:
    made = {"network": network, "encoder": encoder, "factorisation": factorisation}
    artifact = made.get(kind, lambda: product(kind))()
    (program,) = next(iter(artifact.programs.values()))
    reference, engine = ReferenceChip(SPEC), Chip(SPEC, 0)
    for queue, address, rows in artifact.memory[0]:
        reference.sram[queue, address : address + len(rows)] = rows
        engine.write_words(queue, address, rows)
    result = reference.run(program)
    engine.begin(link(program, SPEC), 0)
    engine.run()
    assert result.cycles == engine.retired_cycles == program.cycles
    assert list(result.digest_sums) == [int(value) for value in engine.digest_sums]
    assert list(result.saturated) == engine.saturated.sum(axis=0).tolist()
    assert np.array_equal(reference.sram, engine.sram)
