"""Contexts beyond the words of a bank: caches in segments, against the golden model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip import numerics
from chip.scheduling import CompileError, Place, Symbol
from chip.spec import ChipSpec
from programs.decoder import (
    GoldenDecoder,
    Layout,
    PartitionedModel,
    compile_belt,
    compile_decoder,
    partition_model,
)
from programs.decoder.places import AttentionMatrices, place_decoder
from programs.decoder.stages import Stage, model_blocks, single_stage
from programs.kernels import Segments
from programs.models import ModelConfig, random_checkpoint
from programs.running import LOOKAHEAD, Generation, Runner, run_belt
from programs.sram import SramPlacement
from tests import examples
from tests.machine.programs.test_pipeline import assert_legal, runner_of

SPEC = ChipSpec()
CONTEXT = 128
SHAPES = {  # (words of a bank, tp, pp, dtype, shape); segments of 14, 14 and 30 positions
    "two tiles, each with its cache": (64, 1, 1, "int8", ModelConfig(100, 1, 12, 12, 24, 130, 331)),
    "replicated keys, two stages": (64, 2, 2, "fp16", ModelConfig(100, 2, 8, 2, 24, 130, 331)),
    "one stage whole, one cut": (128, 1, 2, "int8", ModelConfig(100, 5, 8, 8, 24, 130, 331)),
}
BOUNDARIES = sorted(
    {p for each in (14, 30) for first in range(each, CONTEXT, each) for p in (first - 1, first)}
)


def segments(context: int, each: int) -> list[list[int]]:
    return [[first, min(each, context - first)] for first in range(0, context, each)]


def whole_layers(layers: int, stages: int) -> list[Stage]:
    """Stages of whole layers, of which the last may have one more."""
    cuts = [2 * (layers * n // stages) for n in range(stages + 1)]
    blocks = model_blocks(layers, 1)
    return [Stage(blocks[a:b], b == len(blocks)) for a, b in pairwise(cuts)]


class Machine:
    """A compiled model on chips beside its golden model; both keep their caches."""

    def __init__(self, model: PartitionedModel, spec: ChipSpec, context: int, pp: int) -> None:
        stages = whole_layers(model.config.layers, pp)
        self.artifact = compile_decoder(model, spec, context, stages=stages)
        self.runner: Runner = runner_of(self.artifact, model)
        self.golden = GoldenDecoder(model)

    def agree_at(self, token: int, position: int) -> None:
        """One launch: every logit as the golden model's, the cycles as predicted."""
        host = self.runner.host
        for chip in self.runner.chips:
            host.prepare(chip, token, position)
        entry = host.entry(position, False)
        retired = self.runner.launch(entry, position, LOOKAHEAD)
        assert set(retired.values()) == {self.artifact.predicted_cycles[entry]}
        wanted = self.golden.step(token, position, int(entry.split("-")[1]))
        logits = np.concatenate([host.read_logits(chip) for chip in self.runner.chips])
        wrong = np.flatnonzero(logits.view(np.uint32) != wanted.view(np.uint32))
        assert wrong.size == 0, f"position {position}: {wrong.size} logits differ"


@cache
def shallow(name: str) -> Machine:
    words, tp, pp, dtype, config = SHAPES[name]
    spec = replace(SPEC, words_per_bank=words)
    return Machine(partition_model(random_checkpoint(config, 0), tp, dtype), spec, CONTEXT, pp)


@pytest.mark.parametrize("name", SHAPES)
def test_long_programs_are_legal(name: str) -> None:
    artifact = shallow(name).artifact
    whole = [(0, CONTEXT)] if "whole" in name else []
    written = [(first, last) for first, last in artifact.bindings["cache_segments"]]
    assert written == whole + list(map(tuple, segments(CONTEXT, 30 if whole else 14)))
    assert_legal(artifact)


def test_stages_may_lie_differently() -> None:
    """A stage whose caches fit beside the VXM keeps its tiles whole; the host need not know."""
    words, tp, pp, dtype, config = SHAPES["one stage whole, one cut"]
    spec, layout = replace(SPEC, words_per_bank=words), Layout.of(config, tp)
    counts = []
    for stage in whole_layers(config.layers, pp):
        variant = place_decoder(spec, layout, dtype, CONTEXT, stage).variants[0]
        assert isinstance(variant, AttentionMatrices)
        counts.append(len(variant.keys[0]))
    assert sorted(counts) == [1, 5]


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(list(SHAPES)),
    positions=st.lists(
        st.sampled_from(BOUNDARIES) | st.integers(0, CONTEXT - 1), min_size=2, max_size=4
    ),
    token=st.integers(0, 330),
)
def test_any_positions_in_any_order(name: str, positions: list[int], token: int) -> None:
    """A key goes to its own segment's word and no other; what lay there before is attended to.

    Caches are kept from one example to the next, on the chips as in the golden model.
    """
    machine = shallow(name)
    for at, position in enumerate(positions):
        machine.agree_at((token + at) % 331, position)


def test_segments_beside_experts_fill_the_slices_of_maps_first() -> None:
    """The fastest place: other slices take segments only when no run is left there."""
    config = ModelConfig(100, 1, 4, 2, 24, 130, 331, experts=4, experts_per_token=2)
    spec = replace(SPEC, words_per_bank=256)
    model = partition_model(random_checkpoint(config, 0), 1, "int8")
    placed = place_decoder(spec, model.layout, "int8", 500)
    outside = SramPlacement(spec, maps=True).map_slices(1)
    (own,) = (m for m in placed.variants if isinstance(m, AttentionMatrices))
    on = [segment.place.queues for segment in own.keys[0]]
    assert on[:4] == [outside[:2]] * 4
    machine = Machine(model, spec, 500, 1)
    assert_legal(machine.artifact)
    for position, token in enumerate((3, 41, 59)):
        machine.agree_at(token, position)


@pytest.mark.parametrize(("words", "context", "sequences"), [(64, 128, 2), (160, 64, 6)])
def test_a_belt_of_long_sequences(words: int, context: int, sequences: int) -> None:
    """Segments of several sequences' caches: more than a bank each, or more than a slice in all."""
    spec = replace(SPEC, words_per_bank=words)
    model = partition_model(
        random_checkpoint(ModelConfig(100, 2, 4, 2, 24, 130, 331), 0), 1, "int8"
    )
    belt = compile_belt(model, spec, context, 2, sequences=sequences)
    assert len(belt.bindings["cache_segments"]) > 1
    assert_legal(belt)
    prompts = [[3, 5, 7], [11, 13]]
    result = run_belt(belt, prompts, 17, model)
    alone = compile_decoder(model, SPEC, context, pp=2)
    for prompt, tokens in zip(prompts, result.tokens, strict=True):
        run = runner_of(alone, model).generate(Generation(tuple(prompt), 17))
        assert run.tokens == tokens


@settings(max_examples=examples(80), deadline=None)
@given(
    words=st.integers(48, 300),
    banks=st.floats(0.3, 3),
    sequences=st.integers(1, 4),
    layers=st.integers(1, 4),
    kv_heads=st.sampled_from([1, 4, 12]),
    tp=st.sampled_from([1, 2]),
)
def test_segments_hold_every_position_once(
    words: int, banks: float, sequences: int, layers: int, kv_heads: int, tp: int
) -> None:
    """Each within a bank and apart from all other caches and scores, or all refused in a line."""
    context = max(3, int(words * banks))
    config = ModelConfig(100, layers, 12, kv_heads, 24, 130, 331)
    layout = Layout.of(config, tp)
    spec = replace(SPEC, words_per_bank=words)
    stage = single_stage(layers)[0]
    try:
        places = place_decoder(spec, layout, "int8", context, stage, sequences)
    except CompileError as error:
        assert "bytes too many" in str(error) and "\n" not in str(error)
        return
    taken: set[tuple[int, int]] = set()

    def take(place: Place, bases: dict[Symbol, int], count: int) -> range:
        base = 0 if place.symbol is None else bases[place.symbol]
        held = range(base + place.address, base + place.address + count)
        assert held[0] >= 0 and held[-1] < 2 * words
        for queue in place.queues:
            new = {(queue, word) for word in held}
            assert not new & taken
            taken.update(new)
        return held

    for segment in places.attention.scores:
        take(segment.place, {}, segment.positions)
    assert sum(s.positions for s in places.attention.scores) == context
    for bases in places.bases:
        for number, own in enumerate(bases):
            variant = places.variants[places.variant_of[number]]
            if not isinstance(variant, AttentionMatrices):
                continue
            assert len(variant.keys) == len(variant.values) == layout.cache_tiles
            for run in (*variant.keys, *variant.values):
                assert sum(s.positions for s in run) == context
                first = 0
                for segment in run:
                    assert places.cache_maps[segment.number] == (first, segment.positions)
                    first += segment.positions
                    held = take(segment.place, own, segment.positions + (len(run) > 1))
                    assert held[0] // words == held[-1] // words


def test_too_long_a_context_says_by_how_much() -> None:
    layout = Layout.of(ModelConfig(100, 2, 8, 8, 24, 130, 331), 1)
    spec = replace(SPEC, words_per_bank=160)
    with pytest.raises(CompileError, match=r"does not fit: [\d,]+ bytes too many of scores"):
        place_decoder(spec, layout, "int8", 3000)
    with pytest.raises(CompileError, match=r"does not fit: [\d,]+ bytes too many of caches"):
        place_decoder(spec, layout, "int8", 1000, sequences=3)


def fill(machine: Machine, model: PartitionedModel, spec: ChipSpec, context: int) -> None:
    """Random keys and values at all positions, in the chips' SRAM and in the golden model."""
    layout, rng = model.layout, np.random.default_rng(0)
    places = place_decoder(spec, layout, model.dtype, context)

    def put(chip: int, run: Segments, bases: dict[Symbol, int], bits: numerics.BitsF16) -> None:
        first = 0
        for segment in run:
            rows = bits[first : first + segment.positions]
            assert segment.place.symbol is not None
            for byte, queue in enumerate(segment.place.queues):
                address = bases[segment.place.symbol] + segment.place.address
                plane = (rows >> (8 * byte)).astype(np.uint8)
                machine.runner.chips[chip].write_words(queue, address, plane)
            first += segment.positions

    for chip in range(layout.tp):
        golden = machine.golden._chips[chip].caches
        for number, block in enumerate(places.stage.blocks):
            matrices = places.variants[places.variant_of[number]]
            if not isinstance(matrices, AttentionMatrices):
                continue
            layer = block.layer
            golden[layer].grow(context)
            for tile in range(layout.cache_tiles):
                q_tiles = [t for t, own in enumerate(layout.cache_of_tile) if own == tile]
                used = layout.q_axis(chip)[q_tiles[0]] >= 0
                noise = rng.normal(size=(2, context, 320)).astype(np.float32) * used
                keys, values = numerics.to_f16_bits(noise)
                put(chip, matrices.keys[tile], places.bases[0][number], keys)
                put(chip, matrices.values[tile], places.bases[0][number], values)
                split = numerics.split_f16(keys)
                for q_tile in q_tiles:
                    golden[layer].key_h[q_tile], golden[layer].key_l[q_tile] = split.h, split.l
                    golden[layer].value[q_tile] = numerics.from_f16_bits(values)


@pytest.mark.long
@pytest.mark.parametrize(
    ("tp", "dtype", "config"),
    [
        (1, "int8", ModelConfig(100, 2, 12, 12, 24, 130, 331)),
        (2, "fp16", ModelConfig(200, 1, 16, 2, 64, 130, 331)),
    ],
)
def test_512_positions_in_small_banks(tp: int, dtype: str, config: ModelConfig) -> None:
    """Full caches: positions beyond a bank and on both sides of segments."""
    spec = replace(SPEC, words_per_bank=256)
    model = partition_model(random_checkpoint(config, 0), tp, dtype)
    machine = Machine(model, spec, 512, 1)
    written = [(first, last) for first, last in machine.artifact.bindings["cache_segments"]]
    assert len(written) > 1 and [0, *np.cumsum([n for _, n in written])[:-1]] == [
        first for first, _ in written
    ]
    assert_legal(machine.artifact)
    fill(machine, model, spec, 512)
    borders = [p for first, _ in written[1:] for p in (first - 1, first)]
    for at, position in enumerate((*borders, 511)):
        machine.agree_at(7 + at, position)
