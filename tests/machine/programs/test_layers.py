"""Layers that differ: rotary tables, sliding windows; and the families that need them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from chip.spec import ChipSpec
from programs.decoder import GoldenDecoder, Host, Layout, compile_decoder, partition_model
from programs.decoder.image import sliding_table
from programs.decoder.places import place_decoder
from programs.models import (
    LayerKind,
    ModelConfig,
    Rope,
    RopeScaling,
    inverse_frequencies,
    random_checkpoint,
)
from programs.plans import check_plan, compile_plan
from programs.running import LOOKAHEAD, Runner
from tests.families import (
    FAMILIES,
    TOKENS,
    TOLERANCE,
    Family,
    bits_equal,
    checkpoint_of,
    exact_logits,
    on_planes,
    relative_error,
)
from tests.oracles.against_transformers import CLOSE, KEPT

SPEC = ChipSpec()
LIBRARY_LOGITS = json.loads(KEPT.read_text())
LINEAR = RopeScaling("linear", 4.0)
ONE = ModelConfig(100, 2, 5, 1, 24, 130, 331)
TWO = replace(
    ONE,
    sliding_window=4,
    second_rope=Rope(500.0, LINEAR),
    layer_kinds=(LayerKind(sliding=True), LayerKind(second_rope=True)),
)


def bits(config: ModelConfig) -> bytes:
    model = partition_model(random_checkpoint(config, 0), 1, "fp16")
    return GoldenDecoder(model).logits_for([token % config.vocab for token in TOKENS]).tobytes()


def all_of(config: ModelConfig, kind: LayerKind) -> ModelConfig:
    return replace(config, layer_kinds=(kind,) * config.layers)


def test_a_table_does_the_same_wherever_it_stands() -> None:
    alone = replace(ONE, rope_theta=500.0, rope_scaling=LINEAR)
    assert bits(all_of(TWO, LayerKind(second_rope=True))) == bits(alone)
    assert bits(all_of(TWO, LayerKind())) == bits(ONE) != bits(alone)
    assert not inverse_frequencies(replace(ONE, second_rope=Rope(0.0)), 1).any()


def test_a_window_as_long_as_the_text_changes_nothing() -> None:
    long, short = (replace(ONE, sliding_window=w) for w in (len(TOKENS), len(TOKENS) - 1))
    assert bits(all_of(long, LayerKind(sliding=True))) == bits(ONE)
    assert bits(all_of(short, LayerKind(sliding=True))) != bits(ONE)


@pytest.mark.parametrize(
    ("context", "window"),
    [*product([64], [1, 7, 63]), *product([1024], [1, 63, 64, 65, 100, 130])],
)
def test_runs_of_the_sliding_mask(context: int, window: int) -> None:
    """What the offsets choose of the table, against the definition, at every position."""
    config = all_of(replace(ONE, layers=1, sliding_window=window), LayerKind(sliding=True))
    model = partition_model(random_checkpoint(config, 0), 1, "int8")
    artifact = compile_decoder(model, SPEC, context, weights=False)
    host = Host(artifact, model)
    mask = place_decoder(SPEC, model.layout, "int8", context).sliding
    assert mask is not None
    table, j = sliding_table(mask)[:, 0], np.arange(context)
    for position in range(context):
        offsets = host._sliding_offsets(position)
        assert min(offsets) >= 0 and max(offsets) + mask.positions <= mask.words
        runs = np.concatenate([table[o : o + mask.positions] for o in offsets])[:context]
        seen = (j <= position) & (j > position - window)
        np.testing.assert_array_equal(runs, np.where(seen, 0, -np.inf), str(position))


@pytest.mark.long
@pytest.mark.parametrize("tp", [1, 2])
def test_a_window_over_several_runs_of_the_mask(tp: int) -> None:
    """Equal bits in a context whose mask has many runs, some positions left out."""
    config = replace(TWO, sliding_window=70)
    model = partition_model(random_checkpoint(config, 0), tp, "fp16")
    artifact = compile_decoder(model, SPEC, 512)
    runner, golden = Runner.alone(artifact, Host(artifact, model)), GoldenDecoder(model)
    for position in (0, 1, 63, 64, 65, 133, 134, 199, 400, 401):
        for chip in runner.chips:
            runner.host.prepare(chip, 5, position)
        entry = runner.host.entry(position, prefill=False)
        runner.launch(entry, position, LOOKAHEAD)
        bucket = int(entry.rpartition("-")[2])
        logits = np.concatenate([runner.host.read_logits(chip) for chip in runner.chips])
        assert logits.tobytes() == golden.step(5, position, bucket).tobytes(), position


@pytest.mark.long
def test_stages_of_layers_that_differ() -> None:
    """Each stage has its own kinds of layers, and takes the inputs of both tables."""
    config = replace(TWO, layers=4, layer_kinds=TWO.layer_kinds[:1] + TWO.layer_kinds[1:] * 3)
    model = partition_model(random_checkpoint(config, 0), 1, "int8")
    artifact = compile_decoder(model, SPEC, 64, pp=4)
    runner, golden = Runner.alone(artifact, Host(artifact, model)), GoldenDecoder(model)
    for position in range(8):
        for chip in runner.chips:
            runner.host.prepare(chip, position, position)
        runner.launch("decode-64", position, LOOKAHEAD)
        logits = np.concatenate([runner.host.read_logits(chip) for chip in runner.chips])
        assert logits.tobytes() == golden.step(position, position, 64).tobytes(), position


def test_the_first_chip_alone_adds_the_bias_of_the_output() -> None:
    config = replace(ONE, qkv_bias=True, o_bias=True, layers=1)
    chips = partition_model(random_checkpoint(config, 0), 2, "int8").chips
    first, second = (chip.layers[0] for chip in chips)
    assert first.o_bias is not None and first.o_bias.any()
    assert second.o_bias is not None and not second.o_bias.any()
    assert first.bias is not None and second.bias is not None and second.bias.any()


def test_other_layers_cost_no_cycles() -> None:
    """Windows and tables are data; a plan is of the cycles of the compiled model."""
    cycles = []
    for config in (ONE, TWO):
        artifact = compile_decoder(
            partition_model(random_checkpoint(config, 0), 2, "int8"), SPEC, 64, weights=False
        )
        plan = compile_plan("layers", config, SPEC, context=64, chips=2)
        check_plan(plan)
        cycles += [artifact.predicted_cycles["decode-64"], plan.cycles]
    assert len(set(cycles)) == 1


QUICK = {
    ("mistral, window", "int8", 8),
    ("smollm3, windows", "fp16", 1),
    ("gemma2, large residual", "int8", 1),
    ("gemma3", "fp16", 1),
    ("olmo2, shared heads", "int8", 8),
    ("qwen3 moe, some without", "int8", 8),
    ("qwen2, large biases", "fp16", 1),
    ("llama, all biases", "int8", 8),
    ("granite, other factors", "int8", 8),
    ("gpt-oss, cut gates", "int8", 8),
    ("qwen2 moe", "int8", 8),
    ("llama 4", "fp16", 1),
    ("deepseek-v2", "int8", 8),
    ("qwen3 moe, shares of all", "fp16", 1),
}
ROWS = [
    pytest.param(*row, marks=() if row in QUICK else pytest.mark.long)
    for row in product(FAMILIES, ("fp16", "int8"), (1, 8))
]


QUICK_ON_PLANES = {("mistral, window", "fp16"), ("gemma2", "int8"), ("olmo2", "fp16")}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(*row, marks=() if row in QUICK_ON_PLANES else pytest.mark.long)
        for row in product(FAMILIES, ("fp16", "int8"))
        if "gpt-oss" not in row[0]  # models with sinks attend there in any case
    ],
)
def test_a_family_attends_on_the_planes(name: str, dtype: str) -> None:
    """The same models made for longer texts; one chip in fp16, eight in int8."""
    family, tp = on_planes(FAMILIES[name]), 1 if dtype == "fp16" else 8
    assert Layout.of(checkpoint_of(family).config, tp).on_planes
    assert relative_error(family, tp, dtype) < TOLERANCE[dtype]
    assert bits_equal(family, tp, dtype)


@pytest.mark.parametrize(("name", "dtype", "tp"), ROWS)
def test_a_family_is_what_its_description_says(name: str, dtype: str, tp: int) -> None:
    family = FAMILIES[name]
    assert relative_error(family, tp, dtype) < TOLERANCE[dtype]
    assert bits_equal(family, tp, dtype)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gemma2", {"sliding_window": 3}),
        ("gemma2", {"query_pre_attn_scalar": 40}),
        ("gemma2", {"attn_logit_softcapping": 3.0}),
        ("gemma2", {"final_logit_softcapping": 3.0}),
        ("gemma3", {"query_pre_attn_scalar": 24}),
        ("gemma3", {"rope_theta": 1e4}),
        ("gemma3", {"rope_local_base_freq": 1e6}),
        ("gemma3", {"rope_scaling": None}),
        ("gemma3", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("granite, other factors", {"embedding_multiplier": 1.0}),
        ("granite, other factors", {"residual_multiplier": 1.0}),
        ("granite, other factors", {"attention_multiplier": 40**-0.5}),
        ("granite, other factors", {"logits_scaling": 1.0}),
        ("granite, other factors", {"attention_bias": False}),
        ("mistral, window", {"sliding_window": 5}),
        ("phi3, window", {"sliding_window": 7}),
        ("smollm3, windows", {"sliding_window": 7}),
        ("smollm3, windows", {"no_rope_layer_interval": 3}),
        ("qwen3, some windows", {"max_window_layers": 0}),
        ("llama, all biases", {"attention_bias": False}),
        ("llama, llama3", {"rope_scaling": None}),
        ("llama, linear", {"rope_scaling": None}),
        ("llama, yarn", {"rope_scaling": None}),
        ("qwen2 moe", {"norm_topk_prob": True}),
        ("qwen2 moe", {"num_experts_per_tok": 3}),
        ("qwen3 moe, shares of all", {"norm_topk_prob": True}),
        ("llama 4", {"no_rope_layers": [1, 1, 1]}),
        ("llama 4, two of nine", {"num_experts_per_tok": 1}),
        ("gpt-oss", {"rope_scaling": None}),
        ("gpt-oss", {"sliding_window": 5}),
        ("gpt-oss", {"num_experts_per_tok": 2}),
        ("gpt-oss", {"layer_types": ["full_attention"] * 3}),
        ("gpt-oss, cut gates", {"swiglu_limit": 7.0}),
    ],
)
def test_every_field_counts(name: str, change: dict[str, object]) -> None:
    """The error bar of these families is one that a field read wrongly would not pass."""
    family = FAMILIES[name]
    checkpoint = checkpoint_of(family)
    wanted = exact_logits(family, checkpoint)
    other = exact_logits(Family({**family.fields, **change}, family.scaled), checkpoint)
    assert np.sqrt(np.mean((other - wanted) ** 2)) > 2 * TOLERANCE["fp16"] * wanted.std()


def test_the_large_residual_is_large() -> None:
    """Tens of thousands, as published Gemma models reach them."""
    seen: list[float] = []
    golden = GoldenDecoder(partition_model(checkpoint_of(FAMILIES["gemma2, large residual"]), 1))
    golden.block(TOKENS, 0, 64, lambda layer, where, x: seen.append(float(np.abs(x).max())))
    assert max(seen) > 30_000 and not golden.tally.counts


@pytest.mark.parametrize("name", LIBRARY_LOGITS)
def test_the_oracle_is_what_the_library_computes(name: str) -> None:
    """Logits kept of ``transformers``; ``tests/oracles/against_transformers.py`` renews them."""
    family, kept = FAMILIES[name], np.array(LIBRARY_LOGITS[name])
    logits = exact_logits(family, checkpoint_of(family))[-1]
    assert np.abs(logits[: len(kept)] - kept).max() < CLOSE * np.abs(logits).max()
