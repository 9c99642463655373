"""Batches: a token of each of several sequences through a stage at once, each as if alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chip.engine import Chip
from chip.linking import link
from chip.reference import ReferenceChip
from chip.saturation import KINDS
from chip.scheduling import CompileError
from chip.spec import ChipSpec
from interconnect.wiring import topology_of
from programs.artifact import Artifact, ArtifactError, decoder_of
from programs.decoder import (
    GoldenDecoder,
    Host,
    Numbers,
    PartitionedModel,
    belt_entry,
    compile_belt,
    partition_model,
)
from programs.decoder.pipeline import build_pipeline
from programs.decoder.places import StagePlaces
from programs.decoder.stages import ATTENTION, FFN, Block, Stage
from programs.models import Checkpoint, ModelConfig, random_checkpoint
from programs.running import LOOKAHEAD, Runner, Saturations, run_belt
from tests.families import FAMILIES, checkpoint_of, on_planes
from tests.machine.programs.test_pipeline import assert_legal
from tests.machine.programs.test_saturation import Loud, loud

SPEC = ChipSpec()
LONG = {"max_position": 4096}
SHAPES = {
    "own heads": ModelConfig(100, 2, 4, 4, 24, 130, 331),
    "shared heads": ModelConfig(100, 2, 8, 2, 24, 130, 331),
    "one shared head": ModelConfig(100, 2, 8, 1, 24, 130, 331),
    "planes, own heads": ModelConfig(100, 2, 4, 4, 24, 130, 331, **LONG),
    "planes, shared heads": ModelConfig(100, 2, 8, 2, 24, 130, 331, **LONG),
    "planes, many tiles": ModelConfig(60, 1, 24, 12, 72, 90, 61, **LONG),
    "shares of sums": ModelConfig(3600, 1, 8, 8, 40, 90, 61),
}
Logits = dict[tuple[int, int], NDArray[np.float32]]


def texts(checkpoint: Checkpoint, lengths: tuple[int, ...]) -> list[list[int]]:
    rng = np.random.default_rng(sum(lengths))
    return [rng.integers(0, checkpoint.config.vocab, n).tolist() for n in lengths]


def golden_logits(
    model: PartitionedModel, tokens: list[list[int]], context: int
) -> tuple[Logits, Saturations]:
    """Of every sequence alone, by (sequence, position); and what all of them lose."""
    found: Logits = {}
    golden = GoldenDecoder(model)
    for sequence, own in enumerate(tokens):
        golden.reset()
        for position, token in enumerate(own):
            found[sequence, position] = golden.step(token, position, context)
    lost = {
        place: {kind: n for kind, n in zip(KINDS, counts.tolist(), strict=True) if n}
        for place, counts in golden.tally.counts.items()
    }
    return found, lost


def fed(
    artifact: Artifact,
    model: PartitionedModel,
    tokens: list[list[int]],
    starts: tuple[int, ...],
) -> tuple[Logits, Saturations]:
    """Logits of every token of every sequence, by (sequence, position).

    Groups take turns in the stages; sequence q enters with its group's turn ``starts[q]``.
    """
    facts = decoder_of(artifact)
    assert facts.sequences is not None
    batch, stages = facts.batch, facts.pp
    groups = facts.sequences // batch
    host = Host(artifact, model)
    runner = Runner.alone(artifact, host)
    rounds = max(start + len(own) for start, own in zip(starts, tokens, strict=True))
    found: Logits = {}

    def rows(turn: int) -> list[tuple[int | None, int]]:
        """A token, or none, and its position for each sequence of the turn's group."""
        of_round, group = divmod(turn, groups)
        every: list[tuple[int | None, int]] = []
        for sequence in range(group * batch, (group + 1) * batch):
            own = tokens[sequence] if sequence < len(tokens) else []
            at = of_round - (starts[sequence] if sequence < len(tokens) else 0)
            known = 0 <= at < len(own)
            every.append((own[at], at) if known else (None, 0))
        return every

    for beat in range(rounds * groups + stages - 1):
        of_chip, resting = {}, []
        for chip in runner.chips:
            stage = host.stage_of(chip.chip_id)
            turn = beat - stage
            if not 0 <= turn < rounds * groups:
                resting.append(chip.chip_id)
            host.prepare_batch(chip, rows(max(turn, 0)))
            of_chip[chip.chip_id] = belt_entry(facts.context, (max(turn, 0) + stage) % groups)
        first = belt_entry(facts.context, 0)
        ends = runner.launch(first, beat, LOOKAHEAD, resting=resting, entry_of=of_chip.__getitem__)
        assert set(ends.values()) == {artifact.predicted_cycles[first]}
        turn = beat - stages + 1
        if turn < 0:
            continue
        values = np.concatenate([host.read_rows(chip) for chip in runner.chips], axis=1)
        for row, (token, position) in enumerate(rows(turn)):
            if token is not None:
                found[turn % groups * batch + row, position] = values[row]
    return found, runner.saturations


def compare(
    checkpoint: Checkpoint,
    tp: int,
    pp: int,
    dtype: str,
    batch: int,
    lengths: tuple[int, ...],
    starts: tuple[int, ...],
    context: int = 64,
) -> Artifact:
    """Every logit of every sequence is the golden model's of the sequence alone."""
    model = partition_model(checkpoint, tp, dtype)
    artifact = compile_belt(model, SPEC, context, pp, batch=batch)
    assert decoder_of(artifact).batch == batch
    assert_legal(replace(artifact, programs=dict(list(artifact.programs.items())[:2])))
    tokens = texts(checkpoint, lengths)
    found, lost = fed(artifact, model, tokens, starts)
    wanted, of_all = golden_logits(model, tokens, context)
    assert found.keys() == wanted.keys()
    for key, own in wanted.items():
        np.testing.assert_array_equal(found[key].view(np.uint32), own.view(np.uint32), f"{key}")
    assert lost == of_all, "sequences that rest lose nothing"
    return artifact


def test_a_sequence_joins_another() -> None:
    small = ModelConfig(40, 1, 4, 2, 16, 50, 61, **LONG)
    compare(random_checkpoint(small, 0), 1, 1, "int8", 2, (2, 1), (0, 1))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "tp", "pp", "dtype", "lengths", "starts"),
    [
        ("planes, shared heads", 1, 1, "int8", (2, 1), (1, 0)),
        ("own heads", 1, 1, "int8", (5, 3, 9), (0, 4, 1)),
        ("shared heads", 2, 1, "fp16", (4, 6), (3, 0)),
        ("one shared head", 8, 1, "int8", (3, 1, 4, 2), (0, 2, 1, 0)),
        ("planes, own heads", 1, 2, "int8", (3, 2, 4, 5), (2, 0, 1, 0)),
        ("shared heads", 2, 2, "int8", (3, 2, 4, 5, 1), (2, 0, 1, 0, 3)),
        ("planes, shared heads", 2, 1, "fp16", (19, 3), (0, 15)),
        ("planes, many tiles", 1, 1, "fp16", (3, 2), (0, 1)),
        ("shares of sums", 8, 1, "int8", (2, 2), (0, 1)),
    ],
)
def test_every_logit_is_that_of_the_sequence_alone(
    name: str, tp: int, pp: int, dtype: str, lengths: tuple[int, ...], starts: tuple[int, ...]
) -> None:
    batch = -(-len(lengths) // pp)
    compare(random_checkpoint(SHAPES[name], 0), tp, pp, dtype, batch, lengths, starts)


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
    ],
)
@pytest.mark.long
def test_families_in_batches(name: str, planes: bool, tp: int) -> None:
    """Norms of heads and after blocks, biases, windows, caps, second tables: of every row."""
    family = on_planes(FAMILIES[name]) if planes else FAMILIES[name]
    compare(checkpoint_of(family), tp, 1, "int8", 3, (9, 2, 5), (0, 6, 1))


@pytest.mark.long
@settings(max_examples=6, deadline=None)
@given(st.data())
def test_drawn_batches(data: st.DataObject) -> None:
    heads, per_key = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    config = ModelConfig(
        hidden_size=2 * data.draw(st.integers(8, 200)),
        layers=data.draw(st.integers(1, 2)),
        heads=heads * per_key,
        kv_heads=heads,
        head_dim=2 * data.draw(st.integers(4, 24)),
        ffn=data.draw(st.integers(10, 400)),
        vocab=data.draw(st.integers(20, 400)),
        max_position=data.draw(st.sampled_from([256, 4096])),
    )
    pp, batch = data.draw(st.integers(1, 2)), data.draw(st.integers(2, 5))
    count = data.draw(st.integers((pp - 1) * batch + 1, pp * batch))
    lengths = tuple(data.draw(st.integers(1, 6)) for _ in range(count))
    starts = tuple(data.draw(st.integers(0, 5)) for _ in range(count))
    dtype = data.draw(st.sampled_from(["int8", "fp16"]))
    compare(random_checkpoint(config, 0), 1, pp, dtype, batch, lengths, starts)


@pytest.mark.long
def test_sequences_in_different_blocks_of_positions() -> None:
    """One is in the second block of 320 positions while the other begins."""
    config = ModelConfig(60, 1, 4, 2, 24, 90, 61, **LONG)
    compare(random_checkpoint(config, 1), 1, 1, "int8", 2, (323, 4), (0, 318), context=512)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_what_sequences_lose_is_counted(dtype: str) -> None:
    """That of all of them, of a model whose conversions lose; those that rest lose nothing."""
    factors = dict.fromkeys(("q_proj", "k_proj", "v_proj", "up_proj"), 1e5)
    model = partition_model(loud(SHAPES["shared heads"], **factors), 2, dtype)
    artifact = compile_belt(model, SPEC, 64, 1, batch=3)
    tokens = [[3, 41, 59], [7]]
    _, lost = fed(artifact, model, tokens, (0, 1))
    _, wanted = golden_logits(model, tokens, 64)
    assert lost == wanted and lost["0"]["fp16"] > 0


@pytest.mark.long
def test_rows_that_rest_count_what_biases_lose() -> None:
    """A row of nobody loses what a token's does, a belt without such a row only what texts lose."""
    config = replace(SHAPES["shared heads"], layers=1, qkv_bias=True)
    source = Loud(random_checkpoint(config, 0).source, {"v_proj.bias": 1e8}, 0.0)
    model = partition_model(Checkpoint(config, source), 1)
    prompts, new = [[3, 41], [7, 9]], 2
    found = [
        run_belt(compile_belt(model, SPEC, 64, 1, batch=n), prompts, new, model) for n in (2, 3)
    ]
    texts = [[*own, *more][:-1] for own, more in zip(prompts, found[0].tokens, strict=True)]
    _, lost = golden_logits(model, texts, 64)
    assert found[0].tokens == found[1].tokens and found[0].saturations == lost
    assert found[1].saturations["0"]["fp16"] == lost["0"]["fp16"] * 3 // 2 > 0


@pytest.mark.parametrize(
    ("name", "dtype"), [("planes, shared heads", "int8"), ("shared heads", "fp16")]
)
@pytest.mark.long
def test_reference_and_engine_agree_on_a_batch(name: str, dtype: str) -> None:
    """Two sequences at different positions: the same digest and memory on both executors."""
    model = partition_model(random_checkpoint(replace(SHAPES[name], layers=1), 0), 1, dtype)
    artifact = compile_belt(model, SPEC, 64, 1, batch=2)
    host = Host(artifact, model)
    reference, engine = ReferenceChip(SPEC), Chip(SPEC, 0)
    for queue, address, rows in artifact.memory[0]:
        engine.write_words(queue, address, rows)
    host.prepare_batch(engine, [(3, 1), (7, 17)])
    reference.sram[:] = engine.sram
    (program,) = artifact.programs["belt-64-0"]
    result = reference.run(program)
    engine.begin(link(program, SPEC), 0)
    engine.run()
    assert result.cycles == engine.retired_cycles == program.cycles
    assert list(result.digest_sums) == [int(value) for value in engine.digest_sums]
    assert np.array_equal(reference.sram, engine.sram)


@pytest.mark.long
@pytest.mark.parametrize(
    ("pp", "batch", "lengths"),
    [
        (1, 2, (3, 1)),
        (1, 4, (3, 1, 7)),
        (2, 2, (3, 2)),
        (4, 2, (2, 5, 1, 4, 3, 1, 2)),
    ],
)
def test_a_belt_of_batches_gives_every_sequence_its_own_tokens(
    pp: int, batch: int, lengths: tuple[int, ...]
) -> None:
    """Prompts of different lengths: sequences go on while others are in their prompts."""
    checkpoint = random_checkpoint(SHAPES["planes, own heads"], 0)
    model = partition_model(checkpoint, 1)
    belt = compile_belt(model, SPEC, 64, pp, batch=batch)
    prompts, new = texts(checkpoint, lengths), 3
    found = run_belt(belt, prompts, new, model)
    assert set(found.retired) == {found.interval_cycles}
    golden = GoldenDecoder(model)
    for prompt, tokens in zip(prompts, found.tokens, strict=True):
        golden.reset()
        text = list(prompt)
        row = golden.block(text, 0, 64)[-1]
        for _ in range(new):
            text.append(int(np.argmax(row)))
            row = golden.step(text[-1], len(text) - 1, 64)
        assert tokens == text[len(prompt) :]
    if pp == 2:  # one for each stage, so none rests: the beats of a belt of one at a time
        alone = run_belt(compile_belt(model, SPEC, 64, pp), prompts, new, model)
        assert len(found.retired) == len(alone.retired)
    if pp == 1:  # nobody waits for anybody
        assert found.first_token_beats == list(lengths)
        assert len(found.retired) == max(lengths) + new - 1


@pytest.mark.long
def test_weights_of_a_batch_are_taken_once() -> None:
    """Eight sequences cost less than half of eight alone."""
    config = ModelConfig(640, 1, 4, 4, 64, 1600, 640, **LONG)
    model = partition_model(random_checkpoint(config, 0), 1)
    alone, together = (
        compile_belt(model, SPEC, 64, 1, batch=n, weights=False).predicted_cycles["belt-64-0"]
        for n in (1, 8)
    )
    assert alone < together < 4 * alone


def test_batches_that_cannot_be() -> None:
    model = partition_model(random_checkpoint(SHAPES["own heads"], 0), 1)
    for batch in (0, 65):
        with pytest.raises(CompileError, match=f"a batch of {batch} sequences: must be 1 to 64"):
            compile_belt(model, SPEC, 64, 1, sequences=130, batch=batch)
    with pytest.raises(CompileError, match="4 sequences on a belt of 2 stages: use 5 or more"):
        compile_belt(model, SPEC, 64, 2, sequences=4, batch=4)
    experts = partition_model(checkpoint_of(FAMILIES["mixtral"]), 1)
    with pytest.raises(CompileError, match="a batch of 4 sequences: they would choose different"):
        compile_belt(experts, SPEC, 64, 1, batch=4)
    stages = [
        Stage((Block(ATTENTION, 0), Block(FFN, 0, 0, 2)), False),
        Stage((Block(FFN, 0, 1, 2),), True),
    ]
    places = StagePlaces(SPEC, model.layout, "int8", 64, 8, 4, True)
    with pytest.raises(CompileError, match="a batch of 4 sequences: stages that compute a part"):
        build_pipeline(stages, places, Numbers.of(model.config), topology_of(2), 4)


@pytest.mark.long
def test_caches_that_do_not_fit_are_refused() -> None:
    config = ModelConfig(1024, 4, 8, 8, 128, 1024, 331, **LONG)
    model = partition_model(random_checkpoint(config, 0), 1)
    compile_belt(model, SPEC, 2048, 1, weights=False)
    with pytest.raises(CompileError, match="the model does not fit"):
        compile_belt(model, SPEC, 2048, 1, weights=False, batch=8)


def test_an_artifact_whose_words_are_of_another_batch_is_no_decoder() -> None:
    model = partition_model(random_checkpoint(ModelConfig(40, 1, 2, 2, 16, 50, 61), 0), 1)
    artifact = compile_belt(model, SPEC, 64, 1, weights=False, batch=4)
    assert (decoder_of(artifact).batch, decoder_of(artifact).chunk) == (4, 1)
    for model_of in ({"batch": 3}, {"sequences": 6}, {"batch": 65}):
        with pytest.raises(ArtifactError, match="no compiled decoder"):
            decoder_of(replace(artifact, model={**artifact.model, **model_of}))
