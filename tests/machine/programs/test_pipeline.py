"""Pipelines of stages against the golden model: every logit, on 4 to 32 chips, split FFNs too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chip.checker import check
from chip.scheduling import CompileError
from chip.spec import ChipSpec
from interconnect.vectors import check_fabric
from interconnect.wiring import topology_of
from programs.artifact import Artifact
from programs.decoder import (
    ATTENTION,
    GoldenDecoder,
    Host,
    PartitionedModel,
    build_pipeline,
    compile_belt,
    compile_decoder,
    partition_model,
)
from programs.decoder.blocks import Numbers
from programs.decoder.fit import deal_stages
from programs.decoder.places import StagePlaces
from programs.decoder.places import stage as decoder
from programs.decoder.stages import FFN, Block, Stage, model_blocks, parts_apart, split_layers
from programs.models import ModelConfig, random_checkpoint
from programs.running import BARRIER, LOOKAHEAD, Generation, Runner, run_belt

SPEC = ChipSpec()
TWELVE = ModelConfig(100, 12, 8, 4, 24, 130, 331)
#: Three hidden tiles, so that carriers take unequal shares; several FFN tiles to split.
WIDE = ModelConfig(700, 2, 8, 2, 64, 9000, 500)
#: Six hidden tiles, which two chips send at once, those of the first round before the others.
SIX = ModelConfig(1900, 1, 4, 2, 32, 130, 61)


def assert_legal(artifact: Artifact) -> None:
    """Every program by itself and all vectors of all chips against each other."""
    for entry, programs in artifact.programs.items():
        for number, program in enumerate(programs):
            found = check(program, artifact.spec)
            assert [str(f) for f in found] == [], f"{entry}, program {number}"
        found = check_fabric(programs, artifact.program_of_chip, artifact.cables, artifact.spec)
        assert [str(f) for f in found] == [], entry


def runner_of(artifact: Artifact, model: PartitionedModel) -> Runner:
    return Runner.alone(artifact, Host(artifact, model))


def compare(artifact: Artifact, model: PartitionedModel, steps: int, sync: str) -> list[int]:
    """Greedy tokens; every launch's logits must be the golden model's, its cycles as predicted."""
    runner, golden = runner_of(artifact, model), GoldenDecoder(model)
    tokens = [3]
    for position in range(steps):
        for chip in runner.chips:
            runner.host.prepare(chip, tokens[-1], position)
        entry = runner.host.entry(position, False)
        retired = runner.launch(entry, position, sync)
        assert set(retired.values()) == {artifact.predicted_cycles[entry]}
        wanted = golden.step(tokens[-1], position, 64)
        logits = np.concatenate([runner.host.read_logits(chip) for chip in runner.chips])
        np.testing.assert_array_equal(logits.view(np.uint32), wanted.view(np.uint32))
        tokens.append(int(wanted.argmax()))
    return tokens


@pytest.mark.parametrize(
    ("tp", "pp", "dtype", "sync"),
    [(8, 2, "int8", LOOKAHEAD), (8, 4, "int8", BARRIER), (2, 4, "fp16", LOOKAHEAD)],
)
@pytest.mark.cases(1)
def test_stages_compute_what_the_golden_model_does(tp: int, pp: int, dtype: str, sync: str) -> None:
    """Twelve layers on 16 and 32 chips, and on groups of two within one node."""
    model = partition_model(random_checkpoint(TWELVE, 0), tp, dtype)
    artifact = compile_decoder(model, SPEC, 64, pp=pp)
    assert artifact.chips == tp * pp and artifact.model["pp"] == pp
    assert_legal(artifact)
    tokens = compare(artifact, model, 4, sync)
    alone = compile_decoder(model, SPEC, 64)
    assert compare(alone, model, 4, LOOKAHEAD) == tokens


def first_part(layer: int, parts: int) -> tuple[Block, Block]:
    return Block(ATTENTION, layer), Block(FFN, layer, 0, parts)


#: Stages whose FFNs are split, and the boundaries that x crosses before a part is computed.
SPLIT = {
    "a third or two": (
        [
            Stage(first_part(0, 2), False),
            Stage((Block(FFN, 0, 1, 2), Block(ATTENTION, 1)), False),
            Stage((Block(FFN, 1, 0, 3),), False),
            Stage((Block(FFN, 1, 1, 3, span=2),), True),
        ],
        {0, 2},
    ),
    "a stage for each part": (
        [
            Stage(first_part(0, 3), False),
            Stage((Block(FFN, 0, 1, 3),), False),
            Stage((Block(FFN, 0, 2, 3), *first_part(1, 2)), False),
            Stage((Block(FFN, 1, 1, 2),), True),
        ],
        {0, 1, 2},
    ),
    "two parts of a stage": (
        [
            Stage((Block(ATTENTION, 0),), False),
            Stage((Block(FFN, 0, 0, 4),), False),
            Stage((Block(FFN, 0, 1, 4),), False),
            Stage((Block(FFN, 0, 2, 4), Block(FFN, 0, 3, 4), *first_part(1, 1)), True),
        ],
        set(),
    ),
}


@pytest.mark.parametrize(
    ("tp", "dtype", "case"),
    [
        (8, "int8", "a third or two"),
        (2, "fp16", "a stage for each part"),
        (8, "int8", "two parts of a stage"),
    ],
)
@pytest.mark.long
def test_ffns_split_between_stages(tp: int, dtype: str, case: str) -> None:
    """x and the sum of the parts so far go on, together or x before the part is computed."""
    stages, apart = SPLIT[case]
    assert parts_apart(stages) == apart
    model = partition_model(random_checkpoint(WIDE, 0), tp, dtype)
    with pytest.raises(CompileError, match="split other FFNs"):
        compile_decoder(model, SPEC, 64, stages=stages)
    split = replace(model, split=split_layers(stages))
    artifact = compile_decoder(split, SPEC, 64, stages=stages)
    assert_legal(artifact)
    compare(artifact, split, 3, LOOKAHEAD)


@pytest.mark.long
def test_a_stage_may_hold_the_head_alone() -> None:
    whole = (Block(ATTENTION, 0), Block(FFN, 0), Block(ATTENTION, 1), Block(FFN, 1))
    stages = [Stage(whole, False), Stage((), True)]
    model = partition_model(random_checkpoint(WIDE, 1), 2, "int8")
    artifact = compile_decoder(model, SPEC, 64, stages=stages)
    assert_legal(artifact)
    compare(artifact, model, 2, LOOKAHEAD)


def test_contexts_of_several_mask_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long contexts keep scores beside the mask's table and take its windows in turn."""
    for name in ("_SHORT", "_ONE_WINDOW", "_WINDOW"):
        monkeypatch.setattr(decoder, name, 16)
    config = ModelConfig(100, 2, 8, 1, 24, 130, 331)  # four q tiles share one cached tile
    model = partition_model(random_checkpoint(config, 0), 1, "int8")
    artifact = compile_decoder(model, SPEC, 64)
    assert artifact.bindings["mask_positions"] == 16
    assert_legal(artifact)
    compare(artifact, model, 40, LOOKAHEAD)


def test_query_tiles_of_the_same_kv_heads_share_a_cache() -> None:
    config = ModelConfig(200, 2, 16, 1, 64, 130, 331)
    model = partition_model(random_checkpoint(config, 0), 1, "int8")
    assert (model.layout.q_tiles, model.layout.cache_tiles) == (4, 1)
    compare(compile_decoder(model, SPEC, 64), model, 4, LOOKAHEAD)


@pytest.mark.parametrize(
    ("tp", "config"),
    [
        (1, ModelConfig(100, 1, 12, 12, 320, 130, 331)),
        (2, ModelConfig(3500, 1, 4, 2, 32, 130, 61)),
        pytest.param(2, SIX, marks=pytest.mark.long),
        (2, replace(SIX, experts=4, experts_per_token=3)),
        pytest.param(1, replace(SIX, experts=4, experts_per_token=3), marks=pytest.mark.long),
    ],
    ids=["24 tiles of heads", "11 hidden tiles", "6", "6, experts", "6, experts on one chip"],
)
def test_more_tiles_than_a_pass_takes(tp: int, config: ModelConfig) -> None:
    """Rope, append and the sum of an all-reduce go in several passes where tiles are many; some
    tiles leave before others are made.
    """
    model = partition_model(random_checkpoint(config, 0), tp, "int8")
    artifact = compile_decoder(model, SPEC, 64)
    assert_legal(artifact)
    compare(artifact, model, 3, LOOKAHEAD)


@pytest.mark.long
@pytest.mark.parametrize(("tp", "pp", "layers"), [(2, 4, 5), (8, 4, 12)])
@pytest.mark.cases(1)
def test_a_belt_gives_every_sequence_its_own_tokens(tp: int, pp: int, layers: int) -> None:
    """Four sequences at once, prompts of different lengths, as each alone."""
    config = replace(TWELVE, layers=layers)
    model = partition_model(random_checkpoint(config, 0), tp, "int8")
    belt = compile_belt(model, SPEC, 64, pp)
    assert_legal(replace(belt, programs=dict(list(belt.programs.items())[:2])))
    prompts = [[3, 5, 7], [11], [2, 9], [100, 200, 300, 50]]
    result = run_belt(belt, prompts, 4, model)
    assert set(result.retired) == {result.interval_cycles}
    alone = compile_decoder(model, SPEC, 64, pp=pp)
    for prompt, tokens in zip(prompts, result.tokens, strict=True):
        run = runner_of(alone, model).generate(Generation(tuple(prompt), 4))
        assert run.tokens == tokens
    # a full belt gives more tokens than one launch after another, each of them later
    latency = alone.predicted_cycles["decode-64"]
    assert result.interval_cycles < latency < result.latency_cycles


def test_belts_that_cannot_be() -> None:
    model = partition_model(random_checkpoint(TWELVE, 0), 2, "int8")
    with pytest.raises(CompileError, match="3 sequences on a belt of 4 stages"):
        compile_belt(model, SPEC, 64, 4, sequences=3)
    with pytest.raises(CompileError, match="26 pipeline stages for 12 layers: use 1 to 25"):
        compile_decoder(model, SPEC, 64, pp=26)
    belt = compile_belt(model, SPEC, 64, 2)
    with pytest.raises(ValueError, match="3 prompts: use 1 to 2"):
        run_belt(belt, [[1], [2], [3]], 1, model)
    with pytest.raises(ValueError, match="70 positions"):
        run_belt(belt, [[1]], 70, model)


def test_stages_are_dealt_by_cycles_not_by_layers() -> None:
    """Five layers on two stages: half a layer each, where that makes the slowest faster."""
    model = partition_model(random_checkpoint(replace(TWELVE, layers=5), 0), 8, "int8")
    blocks = model_blocks(5, 1)
    whole = [Stage(blocks[:6], False), Stage(blocks[6:], True)]
    places = StagePlaces(SPEC, model.layout, "int8", 64, 2)
    dealt = deal_stages(StagePlaces(SPEC, model.layout, "int8", 64), 2)
    assert [len(stage.blocks) for stage in dealt] == [5, 5]
    beats = [
        build_pipeline(stages, places, Numbers.of(model.config), topology_of(16)).beat(64)[2]
        for stages in (whole, dealt)
    ]
    assert beats[1] < beats[0]
