"""Compiled decoders against the golden model: every logit, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from chip.checker import check
from chip.isa import Op
from chip.scheduling import CompileError
from chip.spec import PRESETS, ChipSpec
from interconnect.collectives import share_of
from interconnect.vectors import check_fabric
from programs.artifact import Artifact
from programs.decoder import GoldenDecoder, Host, compile_decoder, partition_model
from programs.models import Checkpoint, ModelConfig, load_checkpoint, random_checkpoint
from programs.running import LOOKAHEAD, Runner

STEPS = 32
PROMPT = "def main("
SPEC = ChipSpec()


def _shipped(name: str) -> Checkpoint:
    return load_checkpoint(str(files("programs") / "checkpoints" / name))


def _awkward(number: int) -> Checkpoint:
    """Hidden sizes that are no multiple of 320, 1 and 3 KV heads, odd vocabularies."""
    shapes = (  # hidden, layers, heads, KV heads, head size, FFN, vocabulary
        (100, 2, 5, 1, 20, 210, 331),
        (344, 2, 6, 3, 40, 333, 997),
        (656, 1, 9, 3, 72, 1000, 513),
    )
    config = ModelConfig(*shapes[number], tied=number == 0, max_position=128)
    return random_checkpoint(config, seed=number)


def _compare(
    checkpoint: Checkpoint,
    tp: int,
    dtype: str,
    prompt: list[int],
    steps: int,
    spec: ChipSpec = SPEC,
) -> Artifact:
    """Run prompt and ``steps`` greedy tokens; every launch's logits and cycles must agree."""
    model = partition_model(checkpoint, tp, dtype)
    artifact = compile_decoder(model, spec, 64)
    for entry, programs in artifact.programs.items():
        assert [str(f) for f in check(programs[0], spec)] == [], entry
        assert check_fabric(programs, [0] * tp, artifact.cables, spec) == []
    runner = Runner.alone(artifact, Host(artifact, model))
    golden = GoldenDecoder(model)
    tokens = list(prompt)
    for position in range(len(prompt) + steps - 1):
        prefill = position < len(prompt) - 1
        entry = runner.host.entry(position, prefill)
        for chip in runner.chips:
            runner.host.prepare(chip, tokens[position], position)
        retired = runner.launch(entry, position, LOOKAHEAD)
        assert set(retired.values()) == {artifact.predicted_cycles[entry]}
        wanted = golden.step(tokens[position], position, 64)
        if prefill:
            continue
        logits = np.concatenate([runner.host.read_logits(chip) for chip in runner.chips])
        wrong = np.flatnonzero(logits.view(np.uint32) != wanted.view(np.uint32))
        assert wrong.size == 0, f"position {position}: {wrong.size} logits differ, first {wrong[0]}"
        if position + 1 == len(tokens):
            tokens.append(int(np.argmax(wanted)))
    return artifact


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["target", "draft"])
@pytest.mark.cases(4)
def test_shipped_logits_equal_the_golden_model(name: str, tp: int, dtype: str) -> None:
    checkpoint = _shipped(name)
    prompt = checkpoint.tokenizer.encode(PROMPT).ids
    _compare(checkpoint, tp, dtype, prompt, STEPS)


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.cases(4)
def test_awkward_logits_equal_the_golden_model(number: int, tp: int, dtype: str) -> None:
    _compare(_awkward(number), tp, dtype, [3, 141, 59, 26, 5], STEPS)


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("words_per_bank", [8_878, 512])
def test_logits_on_chips_of_another_sram(words_per_bank: int, tp: int, dtype: str) -> None:
    """The preset with the deepest SRAM uses its last words; shallow banks do as well."""
    spec = replace(PRESETS["groq-3-lp30"], words_per_bank=words_per_bank)
    artifact = _compare(_awkward(0), tp, dtype, [3, 141, 59, 26, 5], 12, spec)
    used = [p.blocks["a"].max() for programs in artifact.programs.values() for p in programs]
    assert max(used) == spec.words_per_slice - 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("tp", "dtype", "more"),
    [
        (4, "fp16", {}),
        (8, "int8", {"post_norms": True}),
        (8, "int8", {"experts": 3, "experts_per_token": 2}),
        (4, "int8", {"qkv_bias": True, "o_bias": True}),
    ],
)
def test_logits_of_sums_in_two_steps(tp: int, dtype: str, more: dict[str, Any]) -> None:
    """Where links are slow beside a hop, each chip owns tiles of x, and their order differs."""
    near = replace(SPEC, hop_cycles=232)
    config = ModelConfig(2600, 1, 8, 8, 24, 210, 97, **more)  # 9 tiles: one that no chip owns
    assert share_of(near, tp, 9) > 0 and share_of(SPEC, tp, 3) == 0
    artifact = _compare(random_checkpoint(config, 3), tp, dtype, [3, 14], 2, near)
    scattered = [p.blocks[p.blocks["op"] == Op.SCATTER] for p in artifact.programs["decode-64"]]
    assert sum(int((blocks["n1"] == tp).sum()) for blocks in scattered) >= 2  # of O and down


def test_a_model_too_large_says_by_how_much() -> None:
    shape = ModelConfig(
        hidden_size=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        ffn=14336,
        vocab=32000,
        eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        tied=False,
        max_position=128,
    )
    model = partition_model(random_checkpoint(shape, seed=0), 8, "int8")
    with pytest.raises(CompileError, match=r"does not fit: [\d,]+ bytes too many"):
        compile_decoder(model, SPEC, 64, weights=False)
