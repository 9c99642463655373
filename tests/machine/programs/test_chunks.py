"""A prompt in chunks of tokens that share each install of weights: the same bits, sooner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chip.scheduling import CompileError
from chip.spec import ChipSpec
from programs.artifact import Artifact, ArtifactError, decoder_of
from programs.decoder import (
    GoldenDecoder,
    Host,
    PartitionedModel,
    compile_decoder,
    ends_prompt,
    partition_model,
)
from programs.decoder.stages import ATTENTION, FFN, Block, Stage, split_layers
from programs.models import Checkpoint, ModelConfig, random_checkpoint
from programs.running import BARRIER, LOOKAHEAD, Generation, LpuSession, Runner, prompt_feedings
from tests.families import FAMILIES, checkpoint_of, on_planes
from tests.machine.programs.test_pipeline import assert_legal

SPEC = ChipSpec()
LONG = {"max_position": 4096}
SHAPES = {
    "own heads": ModelConfig(100, 2, 4, 4, 24, 130, 331),
    "shared heads": ModelConfig(100, 2, 8, 2, 24, 130, 331),
    "one shared head": ModelConfig(100, 2, 8, 1, 24, 130, 331),
    "planes, own heads": ModelConfig(100, 2, 4, 4, 24, 130, 331, **LONG),
    "planes, shared heads": ModelConfig(100, 2, 8, 2, 24, 130, 331, **LONG),
    "planes, two rounds of own heads": ModelConfig(100, 2, 8, 8, 40, 130, 331, **LONG),
    "planes, many tiles": ModelConfig(60, 1, 24, 12, 72, 90, 61, **LONG),
    "shares of sums": ModelConfig(3600, 1, 8, 8, 40, 90, 61),
}


def compare(
    checkpoint: Checkpoint,
    tp: int,
    pp: int,
    dtype: str,
    chunk: int,
    prompt: int,
    new: int = 2,
    context: int = 64,
    sync: str = LOOKAHEAD,
) -> Artifact:
    """Feed a prompt in chunks and tokens after it; every logit must be the golden model's."""
    model = partition_model(checkpoint, tp, dtype)
    artifact = compile_decoder(model, SPEC, context, pp=pp, chunk=chunk)
    assert_legal(artifact)
    tokens = np.random.default_rng(prompt).integers(0, checkpoint.config.vocab, prompt + new)
    golden = GoldenDecoder(model)
    wanted = [golden.step(int(token), at, context) for at, token in enumerate(tokens)]
    runner = Runner.alone(artifact, Host(artifact, model))
    launches, chunks = 0, 0
    for first, count in ((0, prompt), *((prompt + n, 1) for n in range(new))):
        for feeding in prompt_feedings(artifact, first, count):
            chunks += feeding.tokens > 1
            resting = runner.prepare(feeding, tokens.tolist())
            retired = runner.launch(feeding.entry, launches, sync, resting=resting)
            launches += 1
            assert set(retired.values()) == {artifact.predicted_cycles[feeding.entry]}
        logits = np.concatenate([runner.host.read_logits(chip) for chip in runner.chips])
        at = first + count - 1
        np.testing.assert_array_equal(logits.view(np.uint32), wanted[at].view(np.uint32), f"{at}")
    assert chunks > 0
    return artifact


@pytest.mark.parametrize(
    ("name", "tp", "pp", "dtype", "chunk", "prompt"),
    [
        ("planes, own heads", 1, 1, "int8", 4, 9),
        ("shared heads", 2, 2, "int8", 4, 18),
        pytest.param("own heads", 1, 1, "int8", 16, 41, marks=pytest.mark.long),
        pytest.param("own heads", 2, 1, "fp16", 4, 8, marks=pytest.mark.long),
        pytest.param("one shared head", 8, 1, "int8", 8, 13, marks=pytest.mark.long),
        pytest.param("planes, shared heads", 2, 2, "int8", 8, 37, marks=pytest.mark.long),
        pytest.param("planes, many tiles", 1, 1, "fp16", 3, 7, marks=pytest.mark.long),
        pytest.param("planes, two rounds of own heads", 1, 1, "int8", 3, 7, marks=pytest.mark.long),
        pytest.param("shares of sums", 8, 1, "int8", 2, 5, marks=pytest.mark.long),
    ],
)
def test_every_logit_is_that_of_one_token_after_another(
    name: str, tp: int, pp: int, dtype: str, chunk: int, prompt: int
) -> None:
    compare(random_checkpoint(SHAPES[name], 0), tp, pp, dtype, chunk, prompt)


@pytest.mark.parametrize(
    ("name", "planes", "tp"),
    [
        ("qwen3, some windows", False, 1),
        ("qwen3, some windows", True, 2),
        ("llama, all biases", True, 1),
        ("olmo2", False, 2),
        ("gemma2", True, 1),
        ("gemma3, nested ropes", True, 2),
        ("smollm3, windows", False, 2),
        ("deepseek-v2, latent queries", False, 1),
        ("deepseek-v2, latent queries", True, 2),
    ],
)
@pytest.mark.long
def test_families_in_chunks(name: str, planes: bool, tp: int) -> None:
    """Norms of heads and after blocks, biases, windows, caps, second tables: of every token."""
    family = on_planes(FAMILIES[name]) if planes else FAMILIES[name]
    compare(checkpoint_of(family), tp, 1, "int8", 3, 11)


@pytest.mark.long
def test_chunks_over_blocks_of_positions() -> None:
    """The last chunks lie in the second block of 320 positions, one begins in the first."""
    config = ModelConfig(60, 1, 4, 2, 24, 90, 61, **LONG)
    compare(random_checkpoint(config, 1), 1, 1, "int8", 7, 329, context=512)


def made(config: ModelConfig, chunk: int, tp: int, pp: int) -> tuple[Artifact, PartitionedModel]:
    model = partition_model(random_checkpoint(config, 3), tp)
    return compile_decoder(model, SPEC, 64, pp=pp, chunk=chunk), model


@pytest.mark.parametrize(("pp", "sync"), [(1, LOOKAHEAD), (2, BARRIER)])
def test_a_run_in_chunks_is_the_run_token_by_token_and_sooner(pp: int, sync: str) -> None:
    prompt = tuple(np.random.default_rng(0).integers(0, 331, 21).tolist())
    job = Generation(prompt, 6, sync=sync)
    runs, first = [], []
    for chunk in (8, 1):
        artifact, model = made(SHAPES["planes, own heads"], chunk, 1, pp)
        run = Runner.alone(artifact, Host(artifact, model)).generate(job)
        runs.append(run)
        before = run.entries[: run.decode[0] + 1]
        first.append(sum(artifact.predicted_cycles[entry] for entry in before))
    chunked, alone = runs
    assert chunked.tokens == alone.tokens and chunked.saturations == alone.saturations
    assert any("chunk" in entry for entry in chunked.entries)
    assert ends_prompt(chunked.entries[chunked.decode[0]])
    assert first[0] < (0.7 if pp == 1 else 0.95) * first[1]


@pytest.mark.long
def test_a_session_steps_back_and_reads_in_chunks() -> None:
    """Of a text whose end is read anew, from within a group of sixteen positions."""
    artifact, model = made(SHAPES["planes, shared heads"], 4, 2, 1)
    session, golden = LpuSession(artifact, model), GoldenDecoder(model)
    tokens = np.random.default_rng(1).integers(0, 331, 40).tolist()
    session.read(tokens)
    other = [*tokens[:13], *tokens[20:30]]
    logits = session.read(other[13:], 13)
    for position, token in enumerate(other):
        wanted = golden.step(token, position, 64)
    np.testing.assert_array_equal(logits.view(np.uint32), wanted.view(np.uint32))


def test_too_short_a_prompt_is_fed_token_by_token() -> None:
    artifact, _ = made(SHAPES["own heads"], 4, 1, 1)
    assert [f.tokens for f in prompt_feedings(artifact, 0, 3)] == [1, 1, 1]
    last = prompt_feedings(artifact, 58, 6)[-1]
    assert last.positions == (60,) and last.tokens == 4, "the last chunk ends with the context"


def test_chunks_that_no_program_has_are_refused() -> None:
    for chunk in (0, 65):
        with pytest.raises(CompileError, match=f"a chunk of {chunk} tokens: must be 1 to 64"):
            made(SHAPES["own heads"], chunk, 1, 1)
    experts = checkpoint_of(FAMILIES["mixtral"])
    with pytest.raises(CompileError, match="a chunk of 4 tokens: they would choose different exp"):
        compile_decoder(partition_model(experts, 1), SPEC, 64, chunk=4)
    stages = [
        Stage((Block(ATTENTION, 0), Block(FFN, 0, 0, 2)), False),
        Stage((Block(FFN, 0, 1, 2),), True),
    ]
    config = ModelConfig(100, 1, 8, 4, 24, 700, 331)
    model = replace(partition_model(random_checkpoint(config, 0), 1), split=split_layers(stages))
    with pytest.raises(CompileError, match="stages that compute a part of an FFN take one; use"):
        compile_decoder(model, SPEC, 64, stages=stages, chunk=4)


def test_an_artifact_whose_inputs_are_of_another_chunk_is_no_decoder() -> None:
    artifact, _ = made(SHAPES["own heads"], 4, 1, 1)
    assert decoder_of(artifact).chunk == 4
    with pytest.raises(ArtifactError, match="no compiled decoder"):
        decoder_of(replace(artifact, model={**artifact.model, "chunk": 3}))
    scaled = {
        name: [(slice_, first, words // 4 * 128) for slice_, first, words in planes]
        for name, planes in artifact.bindings["inputs"].items()
    }
    for chunk in (64, 128):  # both divide the inputs, but a launch takes 64 at most
        bindings = {**artifact.bindings, "inputs": scaled}
        other = replace(artifact, bindings=bindings, model={**artifact.model, "chunk": chunk})
        if chunk == 64:
            assert decoder_of(other).chunk == 64
        else:
            with pytest.raises(ArtifactError, match="no compiled decoder"):
                decoder_of(other)


def test_an_artifact_without_programs_of_chunks_is_fed_token_by_token() -> None:
    artifact, _ = made(SHAPES["own heads"], 4, 1, 1)
    own = {name: of for name, of in artifact.programs.items() if not name.startswith("chunk")}
    fed = prompt_feedings(replace(artifact, programs=own), 0, 5)
    assert [feeding.entry for feeding in fed] == ["prefill-64"] * 4 + ["decode-64"]
