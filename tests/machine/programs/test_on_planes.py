"""Attention on the planes, whole models: chips against the golden model, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chip import numerics
from chip.checker import check
from chip.engine import Chip
from chip.scheduling import CompileError
from chip.spec import ChipSpec
from interconnect.vectors import check_fabric
from programs.artifact import decoder_of
from programs.decoder import (
    GoldenDecoder,
    Host,
    Layout,
    PartitionedModel,
    PartitionError,
    compile_belt,
    compile_decoder,
    partition_model,
)
from programs.decoder.places import AttentionMatrices, place_decoder
from programs.models import LayerKind, ModelConfig, random_checkpoint
from programs.plans import check_plan, compile_plan, run_timing, timing_programs
from programs.running import LOOKAHEAD, LpuSession, Runner, run_belt
from tests import examples

SPEC = ChipSpec()
LONG = {"max_position": 4096}
#: Plain and replicated heads, several tiles, a head of one tile's most lanes, awkward sizes.
SHAPES = {
    "own heads": ModelConfig(100, 2, 4, 4, 24, 130, 331, **LONG),
    "two rounds of own heads": ModelConfig(100, 2, 8, 8, 40, 130, 331, **LONG),
    "shared heads": ModelConfig(100, 2, 8, 2, 24, 130, 331, **LONG),
    "one shared head": ModelConfig(100, 2, 8, 1, 40, 130, 331, **LONG),
    "a tile of fewer heads": ModelConfig(100, 1, 7, 1, 64, 90, 61, **LONG),
    "tiles of fewer heads": ModelConfig(100, 1, 14, 2, 64, 90, 61, **LONG),
    "a chip of fewer heads": ModelConfig(100, 1, 7, 1, 256, 90, 61, **LONG),
    "many tiles": ModelConfig(60, 1, 24, 12, 72, 90, 61, **LONG),
    "many small heads": ModelConfig(96, 1, 20, 20, 16, 90, 61, **LONG),
    "the widest head": ModelConfig(344, 1, 3, 1, 304, 90, 61, **LONG),
    "capped, biases": ModelConfig(
        344, 1, 9, 3, 40, 130, 97, score_cap=0.5, qkv_bias=True, o_bias=True, **LONG
    ),
    "experts": ModelConfig(100, 2, 4, 2, 24, 700, 331, experts=8, experts_per_token=2, **LONG),
    "small experts": ModelConfig(
        344, 1, 8, 2, 40, 50, 97, experts=19, experts_per_token=3, head_norms=True, **LONG
    ),
}


def exact_bits(high: NDArray[np.float64], low: NDArray[np.float64]) -> NDArray[np.uint16]:
    """The fp16 bits that were split."""
    return ((high * 2.0**20 + low) * 2.0**-24).astype(np.float16).view(np.uint16)


class Machine:
    """The chips of a compiled model beside its golden model."""

    def __init__(self, model: PartitionedModel, context: int, pp: int = 1) -> None:
        self.model, self.context = model, context
        self.artifact = compile_decoder(model, SPEC, context, pp=pp)
        self.runner = Runner.alone(self.artifact, Host(self.artifact, model))
        self.golden = GoldenDecoder(model)
        self.launches = 0

    def check(self) -> None:
        """Every program is legal."""
        for entry, programs in self.artifact.programs.items():
            for program in programs:
                assert [str(f) for f in check(program, SPEC)] == [], entry
            of = self.artifact.program_of_chip
            assert check_fabric(programs, of, self.artifact.cables, SPEC) == []

    def agree_at(self, token: int, position: int) -> None:
        """One launch, every logit."""
        for chip in self.runner.chips:
            self.runner.host.prepare(chip, token, position)
        entry = self.runner.host.entry(position, prefill=False)
        retired = self.runner.launch(entry, self.launches, LOOKAHEAD)
        self.launches += 1
        assert set(retired.values()) == {self.artifact.predicted_cycles[entry]}
        wanted = self.golden.step(token, position, self.context)
        logits = np.concatenate([self.runner.host.read_logits(c) for c in self.runner.chips])
        wrong = np.flatnonzero(logits.view(np.uint32) != wanted.view(np.uint32))
        assert wrong.size == 0, f"position {position}: {wrong.size} logits differ, first {wrong[0]}"

    def fill(self) -> None:
        """Random keys and values at all positions, in the chips' SRAM and in the golden model."""
        layout, random = self.model.layout, np.random.default_rng(0)
        for number, chip in enumerate(self.golden._chips):
            for cache in chip.caches:
                cache.grow(self.context)
                for cached in range(layout.cache_tiles):
                    own = [t for t, c in enumerate(layout.cache_of_tile) if c == cached]
                    used = layout.q_axis(number)[own[0]] >= 0
                    noise = random.normal(size=(2, self.context, 320)).astype(np.float32) * used
                    keys, values = map(numerics.split_f16, numerics.to_f16_bits(noise))
                    for tile in own:
                        cache.key_h[tile], cache.key_l[tile] = keys.h, keys.l
                        cache.value_h[tile], cache.value_l[tile] = values.h, values.l
        self.copy()

    def copy(self) -> None:
        """The golden model's keys and values to where the chips have theirs."""
        layout = self.model.layout
        places = place_decoder(SPEC, layout, self.model.dtype, self.context)
        for number, block in enumerate(places.stage.blocks):
            m, bases = places.variants[places.variant_of[number]], places.bases[0][number]
            if not isinstance(m, AttentionMatrices):
                continue
            for chip, own in zip(self.runner.chips, self.golden._chips, strict=True):
                cache = own.caches[block.layer]
                for cached, tile in enumerate(m.cached):
                    of = layout.cache_of_tile.index(cached)
                    keys = exact_bits(cache.key_h[of], cache.key_l[of])
                    values = exact_bits(cache.value_h[of], cache.value_l[of])
                    for first in range(0, len(keys), 320):
                        rows = np.zeros((2, 320, 320), np.uint16)
                        count = len(keys[first : first + 320])
                        rows[0, :count] = keys[first : first + 320]
                        rows[1, :, :count] = values[first : first + 320].T
                        side, block_of_side = 1 - first // 320 % 2, first // 640
                        for where, columns, words in (
                            (tile.keys[side], rows[0], 20),
                            (tile.values[side], rows[1], tile.columns // 16),
                        ):
                            for half, place in enumerate(where):
                                assert place.symbol is not None
                                address = bases[place.symbol] + block_of_side * words
                                for number_of_slice, queue in enumerate(place.queues):
                                    own_words = columns[number_of_slice::16][:words]
                                    plane = (own_words >> (8 * half)).astype(np.uint8)
                                    chip.write_words(queue, address, plane)


def machine(config: ModelConfig, tp: int, dtype: str, context: int, pp: int = 1) -> Machine:
    return Machine(partition_model(random_checkpoint(config, 0), tp, dtype), context, pp)


@pytest.mark.parametrize(
    ("name", "tp", "dtype"),
    [
        ("own heads", 1, "int8"),
        pytest.param("two rounds of own heads", 1, "int8", marks=pytest.mark.long),
        ("shared heads", 8, "fp16"),
        ("one shared head", 1, "int8"),
        ("a tile of fewer heads", 1, "int8"),
        pytest.param("a tile of fewer heads", 2, "fp16", marks=pytest.mark.long),
        pytest.param("tiles of fewer heads", 2, "int8", marks=pytest.mark.long),
        pytest.param("a chip of fewer heads", 4, "int8", marks=pytest.mark.long),
        pytest.param("shared heads", 1, "int8", marks=pytest.mark.long),
        pytest.param("many tiles", 1, "fp16", marks=pytest.mark.long),
        pytest.param("many tiles", 2, "int8", marks=pytest.mark.long),
        pytest.param("many small heads", 1, "int8", marks=pytest.mark.long),
        pytest.param("the widest head", 1, "fp16", marks=pytest.mark.long),
        pytest.param("capped, biases", 2, "int8", marks=pytest.mark.long),
        pytest.param("capped, biases", 8, "fp16", marks=pytest.mark.long),
        ("small experts", 1, "int8"),
        pytest.param("small experts", 8, "fp16", marks=pytest.mark.long),
        pytest.param("small experts", 4, "int8", marks=pytest.mark.long),
        pytest.param("shared heads", 4, "fp16", marks=pytest.mark.long),
        pytest.param("experts", 2, "int8", marks=pytest.mark.long),
        pytest.param("experts", 1, "fp16", marks=pytest.mark.long),
    ],
)
def test_chips_equal_the_golden_model(name: str, tp: int, dtype: str) -> None:
    own = machine(SHAPES[name], tp, dtype, 64)
    own.check()
    for position, token in enumerate((3, 41, 59, 26, 5)):
        own.agree_at(token, position)


@pytest.mark.long
@settings(max_examples=examples(8))
@given(
    kv_heads=st.integers(1, 4),
    group=st.integers(1, 8),
    head_dim=st.sampled_from((24, 40, 64, 96, 112, 160, 256)),
    tp=st.sampled_from((1, 2, 4, 8)),
    dtype=st.sampled_from(("int8", "fp16")),
    bias=st.booleans(),
)
def test_heads_however_they_lie_in_tiles(
    kv_heads: int, group: int, head_dim: int, tp: int, dtype: str, bias: bool
) -> None:
    heads = min(kv_heads * group, 16) // kv_heads * kv_heads
    shape = 60, 1, heads, kv_heads, head_dim, 90, 61
    chips = max(count for count in (1, 2, 4, 8) if count <= min(tp, heads))
    own = machine(ModelConfig(*shape, qkv_bias=bias, **LONG), chips, dtype, 64)
    for position, token in enumerate((3, 41, 59)):
        own.agree_at(token, position)


@pytest.mark.parametrize(
    ("tp", "dtype", "name"),
    [
        (1, "int8", "shared heads"),
        pytest.param(2, "fp16", "own heads", marks=pytest.mark.long),
        pytest.param(1, "int8", "two rounds of own heads", marks=pytest.mark.long),
        pytest.param(8, "int8", "capped, biases", marks=pytest.mark.long),
        pytest.param(1, "int8", "experts", marks=pytest.mark.long),
    ],
)
def test_the_borders_of_blocks(tp: int, dtype: str, name: str) -> None:
    """Both sides, the first and the last lanes of blocks, steps back and forth."""
    own = machine(SHAPES[name], tp, dtype, 1024)
    own.agree_at(3, 0)
    own.fill()
    before = 0
    for at, position in enumerate((317, 318, 319, 320, 321, 639, 640, 641, 958, 960, 1023, 335)):
        if position != before + 1:
            own.copy()  # a launch leaves what is beside its position and not yet written undefined
        own.agree_at(7 + at, position)
        before = position


@pytest.mark.parametrize("window", [4, pytest.param(330, marks=pytest.mark.long)])
def test_layers_with_a_window_see_its_positions(window: int) -> None:
    kinds = LayerKind(sliding=True), LayerKind()
    config = replace(SHAPES["shared heads"], sliding_window=window, layer_kinds=kinds)
    own = machine(config, 1, "int8", 1024)
    assert decoder_of(own.artifact).window == window
    own.agree_at(3, 0)
    own.fill()
    for at, position in enumerate((19, 20, 318, 322, 649, 650, 1000)):
        own.copy()
        own.agree_at(7 + at, position)


@pytest.mark.parametrize(("tp", "pp"), [(1, 2), pytest.param(2, 2, marks=pytest.mark.long)])
def test_stages_of_a_pipeline(tp: int, pp: int) -> None:
    own = machine(SHAPES["shared heads"], tp, "int8", 64, pp)
    own.check()
    for position, token in enumerate((3, 41, 59)):
        own.agree_at(token, position)


@pytest.mark.parametrize(
    ("stages", "prompts"),
    [
        (2, [[3, 41], [59], [26, 5, 8]]),
        (2, [[3]]),  # a stage rests before every token, and leaves what is beside it as it was
        pytest.param(4, [[3]], marks=pytest.mark.long),
        pytest.param(4, [[3], [59, 41]], marks=pytest.mark.long),
    ],
)
def test_a_belt_keeps_its_sequences_apart(stages: int, prompts: list[list[int]]) -> None:
    model = partition_model(random_checkpoint(SHAPES["shared heads"], 0), 1)
    belt = compile_belt(model, SPEC, 64, stages, sequences=stages + 1)
    found = run_belt(belt, prompts, 20, model)
    golden = GoldenDecoder(model)
    for prompt, tokens in zip(prompts, found.tokens, strict=True):
        golden.reset()
        text = list(prompt)
        row = golden.block(text, 0, 64)[-1]
        for _ in range(20):
            text.append(int(np.argmax(row)))
            row = golden.step(text[-1], len(text) - 1, 64)
        assert tokens == text[len(prompt) :]


def test_stepping_back_over_groups_of_sixteen() -> None:
    """A text is left for another at positions whose group's values are no longer kept apart."""
    model = partition_model(random_checkpoint(SHAPES["own heads"], 0), 1)
    artifact = compile_decoder(model, SPEC, 64)
    session, golden = LpuSession(artifact, model), GoldenDecoder(model)
    text = [3 + 7 * n % 320 for n in range(45)]
    session.read(text)
    for keep, new in ((20, 8), (35, 0), (16, 20), (5, 30), (33, 9)):
        length = min(keep, len(text))
        fresh = [11 + 5 * n % 300 + keep for n in range(new or 6)]
        text = text[:length] + fresh
        logits = session.read(fresh, length)
        golden.reset()
        wanted = golden.block(text, 0, 64)[-1]
        assert logits.tobytes() == wanted.tobytes(), f"after a step back to {length}"


def test_a_step_back_is_charged_whoever_fed_the_launch_before() -> None:
    """A host that takes chips over charges what the one before it would have."""
    config = ModelConfig(64, 1, 2, 1, 32, 96, 64, tied=True, **LONG)
    model = partition_model(random_checkpoint(config, 0), 1)
    artifact = compile_decoder(model, SPEC, 64, weights=False)
    chip = Chip(SPEC, 0)

    def charged(host: Host, position: int) -> float:
        before = host.virtual_io_seconds
        host.prepare(chip, 5, position)
        return host.virtual_io_seconds - before

    first = Host(artifact, model)
    on = charged(first, 40)  # no launch before it
    back = charged(first, 21)
    assert back > on
    for position, tokens, cost in ((40, 1, back), (30, 11, back), (20, 1, on), (14, 7, on)):
        taking = Host(artifact, model)
        taking.took_over(chip, position, tokens)
        assert charged(taking, 21) == cost, (position, tokens)


def test_a_plan_takes_the_cycles_of_the_compiled_model() -> None:
    config = SHAPES["shared heads"]
    plan = compile_plan("long", config, SPEC, context=1024, chips=2)
    check_plan(plan)
    artifact = compile_decoder(partition_model(random_checkpoint(config, 0), 2), SPEC, 1024)
    assert artifact.predicted_cycles["decode-1024"] == plan.cycles
    done = run_timing(plan, timing_programs(plan))
    assert set(done.retired.tolist()) == {plan.cycles}


@pytest.mark.parametrize(
    ("positions", "head_dim", "tiles", "heads"),
    [(512, 64, 2, 5), (513, 64, 3, 4), (513, 16, 2, 5), (512, 16, 1, 10), (513, 304, 10, 1)],
)
def test_one_limit_decides_where_a_model_attends(
    positions: int, head_dim: int, tiles: int, heads: int
) -> None:
    config = ModelConfig(100, 1, 10, 10, head_dim, 130, 97, max_position=positions)
    layout = Layout.of(config, 1)
    assert layout.on_planes == (positions > 512)
    assert (layout.q_tiles, layout.heads_per_tile) == (tiles, heads)
    for _, own, counts in layout.query_groups if layout.on_planes else ():
        assert sum(counts) <= 8 and len(own) == len(counts)


def test_a_head_leaves_room_for_counting_positions() -> None:
    Layout.of(ModelConfig(100, 1, 1, 1, 320, 130, 97, max_position=512), 1)
    with pytest.raises(PartitionError) as told:
        Layout.of(ModelConfig(100, 1, 1, 1, 306, 130, 97, max_position=513), 1)
    assert str(told.value) == (
        "head_dim is 306; a model for more than 512 positions has heads of at most 304, 16 lanes "
        "of a tile count its positions"
    )


def test_a_tile_of_keys_longer_than_a_bank_is_refused() -> None:
    """By how much, and a context that fits."""
    config = replace(SHAPES["shared heads"], max_position=100_000)
    spec = replace(SPEC, words_per_bank=160)
    with pytest.raises(CompileError) as told:
        compile_plan("long", config, spec, context=6000)
    text = str(told.value)
    assert "bytes too many of a tile's keys or values for a bank" in text and "\n" not in text
    assert "; use a shorter context" in str(place_refusal(config, spec, 6000))
    longest = int(text.rpartition("use --context ")[2].split()[0])
    check_plan(compile_plan("long", config, spec, context=longest))


def place_refusal(config: ModelConfig, spec: ChipSpec, context: int) -> CompileError:
    with pytest.raises(CompileError) as told:
        place_decoder(spec, Layout.of(config, 1), "int8", context)
    return told.value
