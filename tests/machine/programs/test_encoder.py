"""Compiled encoders against the golden model, and the golden model against float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chip import numerics
from chip.checker import check
from chip.scheduling import CompileError
from chip.spec import ChipSpec
from interconnect.vectors import check_fabric
from programs.encoder import (
    EncoderShape,
    compile_encoder,
    golden_encoder,
    layers_of_chips,
    place_encoder,
    read_encoder,
)
from programs.encoder.compiler import ENTRY
from programs.encoder.shape import random_layers, random_tokens
from programs.running import LOOKAHEAD, Runner

SPEC = ChipSpec()


def compare(shape: EncoderShape, chips: int = 1, seed: int = 0) -> int:
    """Random weights and tokens: legal, on time, every bit of the output the golden model's."""
    layers, x = random_layers(shape, seed), random_tokens(shape, seed)
    artifact = compile_encoder(shape, SPEC, chips, layers, x)
    each = [artifact.program(ENTRY, chip) for chip in range(chips)]
    for program in each:
        assert [str(finding) for finding in check(program, SPEC)] == []
    assert check_fabric(each, range(chips), artifact.cables, SPEC) == []
    runner = Runner.alone(artifact)
    cycles = artifact.predicted_cycles[ENTRY]
    assert set(runner.launch(ENTRY, 0, LOOKAHEAD).values()) == {cycles}
    places = place_encoder(shape, layers_of_chips(shape.layers, chips)[0], SPEC)
    found = read_encoder(shape, places, runner.chips[-1])
    assert np.array_equal(found, golden_encoder(shape, layers, x))
    return cycles


@pytest.mark.long
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    heads=st.integers(1, 9),
    head_groups=st.integers(1, 6),
    ffn=st.integers(1, 900),
    token_groups=st.integers(1, 6),
    layers=st.integers(1, 3),
    seed=st.integers(0, 1000),
    more_chips=st.booleans(),
)
def test_encoders_equal_the_golden_model(
    heads: int,
    head_groups: int,
    ffn: int,
    token_groups: int,
    layers: int,
    seed: int,
    more_chips: bool,
) -> None:
    shape = EncoderShape(layers, heads * 16 * head_groups, heads, ffn, 16 * token_groups)
    compare(shape, 2 if more_chips and layers > 1 else 1, seed)


@pytest.mark.parametrize("chips", [4, 8])
def test_a_pipeline_of_chips(chips: int) -> None:
    compare(EncoderShape(9, 128, 2, 200, 32), chips)


def test_layers_take_equal_cycles() -> None:
    """A layer is scheduled once: each further one costs the same, whatever its number."""
    cycles = [
        compile_encoder(EncoderShape(layers, 192, 3, 300, 32), SPEC).predicted_cycles[ENTRY]
        for layers in (1, 2, 5)
    ]
    assert cycles[1] == 2 * cycles[0] and cycles[2] == 5 * cycles[0]


def _float64(shape: EncoderShape, seed: int) -> NDArray[np.float64]:
    """The encoder as textbooks have it, in float64."""
    x = numerics.from_f16_bits(random_tokens(shape, seed)).astype(np.float64)

    def normalise(z: NDArray[np.float64], gain: str, shift: str) -> NDArray[np.float64]:
        z = z - z.mean(axis=1, keepdims=True)
        z = z / np.sqrt((z * z).mean(axis=1, keepdims=True) + 1e-12)
        return np.asarray(z * vectors[gain] + vectors[shift])

    for layer in random_layers(shape, seed):
        vectors = layer.vectors
        m = {n: numerics.from_f16_bits(w).astype(np.float64) for n, w in layer.matrices.items()}
        q, k, v = x @ m["q"] + vectors["q_bias"], x @ m["k"], x @ m["v"]
        heads = []
        for h in range(shape.heads):
            own = slice(h * shape.head_size, (h + 1) * shape.head_size)
            e = np.exp(q[:, own] @ k[:, own].T)
            heads.append(e / e.sum(axis=1, keepdims=True) @ v[:, own])
        x = normalise(
            np.concatenate(heads, axis=1) @ m["o"] + vectors["o_bias"] + x, "gain1", "shift1"
        )
        y = x @ m["up"] + vectors["up_bias"]
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = normalise(y @ m["down"] + vectors["down_bias"] + x, "gain2", "shift2")
    return x


def test_golden_encoder_is_an_encoder() -> None:
    """fp16 between products keeps it within a few thousandths of float64."""
    shape = EncoderShape(3, 384, 6, 700, 48)
    bits = golden_encoder(shape, random_layers(shape, 5), random_tokens(shape, 5))
    found, wanted = numerics.from_f16_bits(bits).astype(np.float64), _float64(shape, 5)
    assert np.abs(found - wanted).max() < 0.02
    assert np.sqrt(((found - wanted) ** 2).mean()) < 0.003
    assert wanted.std() > 0.5


def test_what_cannot_be_is_refused() -> None:
    large = EncoderShape(24, 1024, 16, 4096, 128)
    with pytest.raises(CompileError, match=r"6 encoder layers .* [\d,]+ bytes too many"):
        compile_encoder(large, SPEC, 4)
    with pytest.raises(CompileError, match="100 tokens: use a multiple of 16"):
        EncoderShape(1, 128, 2, 256, 100)
    with pytest.raises(CompileError, match="a multiple of 16 values"):
        EncoderShape(1, 120, 5, 256, 32)
    with pytest.raises(CompileError, match="2 chips for 1 layers"):
        compile_encoder(EncoderShape(1, 128, 2, 256, 32), SPEC, 2)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_bert_large() -> None:
    compare(EncoderShape(24, 1024, 16, 4096, 128), 8)
