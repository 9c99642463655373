"""What families add: compiled programs against the golden model, that against float32."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chip.checker import check
from chip.scheduling import CompileError
from chip.spec import ChipSpec
from interconnect.vectors import check_fabric
from programs.decoder import (
    ATTENTION,
    GoldenDecoder,
    Host,
    Layout,
    compile_decoder,
    partition_model,
)
from programs.decoder.places import FfnMatrices, place_decoder
from programs.decoder.stages import FFN, Block, Stage, split_layers
from programs.models import Checkpoint, ModelConfig, random_checkpoint
from programs.models.tensors import TensorSource
from programs.plans import check_plan, compile_plan, run_timing, timing_programs
from programs.running import LOOKAHEAD, Runner
from tests import examples
from tests.oracles.llama_float32 import LlamaFloat32

F32 = NDArray[np.float32]
Index = NDArray[np.int64]

SPEC = ChipSpec()
CONTEXT = 64
#: Root-mean-square logit error allowed, relative to the spread of the float32 logits.
TOLERANCE = {"int8": 0.03, "fp16": 0.003}
TOKENS = [3, 41, 59, 26, 5, 8]


def tokens_of(config: ModelConfig) -> list[int]:
    return [token % config.vocab for token in TOKENS]


def run_and_compare(config: ModelConfig, tp: int, dtype: str, seed: int = 0) -> None:
    """Legal, as long as predicted, and every logit of every position bit for bit."""
    run_checkpoint(random_checkpoint(config, seed), tp, dtype)


def run_checkpoint(checkpoint: Checkpoint, tp: int, dtype: str, spec: ChipSpec = SPEC) -> None:
    """As ``run_and_compare``, of tensors that are there."""
    config = checkpoint.config
    model = partition_model(checkpoint, tp, dtype)
    artifact = compile_decoder(model, spec, CONTEXT)
    for entry, programs in artifact.programs.items():
        assert [str(f) for f in check(programs[0], spec)] == [], entry
        assert check_fabric(programs, [0] * tp, artifact.cables, spec) == []
    runner = Runner.alone(artifact, Host(artifact, model))
    golden = GoldenDecoder(model)
    entry = f"decode-{CONTEXT}"
    for position, token in enumerate(tokens_of(config)):
        for chip in runner.chips:
            runner.host.prepare(chip, token, position)
        retired = runner.launch(entry, position, LOOKAHEAD)
        assert set(retired.values()) == {artifact.predicted_cycles[entry]}
        wanted = golden.step(token, position, CONTEXT)
        logits = np.concatenate([runner.host.read_logits(chip) for chip in runner.chips])
        wrong = np.flatnonzero(logits.view(np.uint32) != wanted.view(np.uint32))
        assert wrong.size == 0, f"position {position}: {wrong.size} logits differ, first {wrong[0]}"


def golden_error(config: ModelConfig, tp: int, dtype: str, seed: int = 0) -> float:
    """The golden model's logits against the independent float32 forward's."""
    checkpoint = random_checkpoint(config, seed)
    reference = LlamaFloat32(checkpoint).logits(tokens_of(config))
    logits = GoldenDecoder(partition_model(checkpoint, tp, dtype)).logits_for(tokens_of(config))
    return float(np.sqrt(np.mean((logits - reference) ** 2)) / reference.std())


QWEN = {
    "grouped": ModelConfig(100, 2, 8, 2, 24, 130, 331, head_norms=True),
    "one head a tile": ModelConfig(344, 1, 5, 5, 200, 333, 97, head_norms=True, eps=1e-6),
    "many tiles": ModelConfig(60, 1, 24, 12, 128, 90, 61, head_norms=True),
}

_GEMMA = {
    "activation": "gelu_tanh",
    "unit_gain": True,
    "scaled_embedding": True,
    "tied": True,
    "eps": 1e-6,
}
GEMMA = {
    "one KV head": ModelConfig(100, 2, 8, 1, 256, 330, 331, **_GEMMA),
    "own KV heads": ModelConfig(344, 1, 4, 4, 64, 3300, 97, **_GEMMA),
}
MIXTRAL = {
    "eight experts": ModelConfig(100, 2, 4, 2, 24, 700, 331, experts=8, experts_per_token=2),
    "two experts": ModelConfig(344, 1, 4, 4, 40, 130, 97, experts=2, experts_per_token=2),
    "many small experts": ModelConfig(60, 1, 2, 1, 64, 50, 61, experts=19, experts_per_token=3),
    "one of three": ModelConfig(60, 1, 2, 1, 64, 50, 61, experts=3, experts_per_token=1),
}
FAMILIES = QWEN | GEMMA | MIXTRAL
AFTER_BLOCKS = {
    "capped": ModelConfig(
        100, 2, 6, 3, 24, 130, 331, **_GEMMA, post_norms=True, score_cap=1.5, logit_cap=2.0
    ),
    "normed heads": ModelConfig(
        344, 2, 4, 1, 24, 130, 331, **_GEMMA, post_norms=True, head_norms=True, query_scale=0.3
    ),
    "all heads together": ModelConfig(
        344, 2, 9, 3, 40, 333, 97, pre_norms=False, post_norms=True, wide_norms=True
    ),
    "many tiles": ModelConfig(
        2300, 1, 12, 6, 128, 90, 61, pre_norms=False, post_norms=True, wide_norms=True
    ),
}
"""What Gemma 2, Gemma 3 and OLMo-2 add; their values are checked in ``tests/families.py``."""


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("tp", [1, pytest.param(2, marks=pytest.mark.long), 8])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.cases(4)
def test_compiled_families_equal_the_golden_model(name: str, tp: int, dtype: str) -> None:
    run_and_compare(FAMILIES[name], tp, dtype)


QUICK = {("capped", 1, "int8"), ("normed heads", 8, "fp16"), ("all heads together", 8, "int8")}


@pytest.mark.parametrize(
    ("name", "tp", "dtype"),
    [
        pytest.param(*row, marks=[] if row in QUICK else pytest.mark.long)
        for row in product(AFTER_BLOCKS, (1, 2, 8), ("int8", "fp16"))
        if row[0] != "many tiles" or row[1] == 1
    ],
)
def test_norms_after_blocks_equal_the_golden_model(name: str, tp: int, dtype: str) -> None:
    run_and_compare(AFTER_BLOCKS[name], tp, dtype)


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.cases(5)
def test_golden_families_are_close_to_float32(name: str, dtype: str) -> None:
    assert golden_error(FAMILIES[name], 2, dtype) < TOLERANCE[dtype]


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Any mixture of what the families add, on any shape of a few tiles."""
    kv = draw(st.integers(1, 4))
    experts = draw(st.sampled_from([1, 1, 2, 3, 5]))
    heads = draw(st.sampled_from(["plain", "each", "together"]))
    before = experts > 1 or draw(st.booleans())
    return ModelConfig(
        hidden_size=draw(st.integers(8, 400)),
        layers=1,
        heads=kv * draw(st.integers(1, 3)),
        kv_heads=kv,
        head_dim=2 * draw(st.integers(1, 130)),
        ffn=draw(st.integers(1, 700)),
        vocab=draw(st.integers(8, 400)),
        eps=draw(st.sampled_from([1e-5, 1e-6])),
        tied=draw(st.booleans()),
        head_norms=heads == "each",
        wide_norms=heads == "together",
        pre_norms=before,
        post_norms=not before or draw(st.booleans()),
        query_scale=draw(st.sampled_from([0.0, 0.3])),
        score_cap=draw(st.sampled_from([0.0, 0.5])),
        logit_cap=draw(st.sampled_from([0.0, 2.0])),
        activation=draw(st.sampled_from(["silu", "gelu_tanh"])),
        unit_gain=draw(st.booleans()),
        scaled_embedding=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        o_bias=draw(st.booleans()),
        experts=experts,
        experts_per_token=min(experts, draw(st.integers(1, 4))),
    )


_DRAWN = {
    "config": configs(),
    "tp": st.sampled_from([1, 2, 4, 8]),
    "dtype": st.sampled_from(["int8", "fp16"]),
    "seed": st.integers(0, 99),
}


@settings(max_examples=6, deadline=None, derandomize=True)
@given(**_DRAWN)
@pytest.mark.long
def test_any_mixture_equals_the_golden_model(
    config: ModelConfig, tp: int, dtype: str, seed: int
) -> None:
    run_and_compare(config, tp, dtype, seed)


@pytest.mark.long
@settings(max_examples=examples(60), deadline=None)
@given(**_DRAWN)
def test_many_mixtures_equal_the_golden_model(
    config: ModelConfig, tp: int, dtype: str, seed: int
) -> None:
    run_and_compare(config, tp, dtype, seed)


class _Rows:
    """A model's tensors, but routers whose rows are equal in groups, so that logits tie."""

    def __init__(self, source: TensorSource, of_row: list[int]) -> None:
        self._source, self._of_row = source, of_row

    def read(self, name: str, rows: Index | None, columns: Index | None) -> F32:
        values = self._source.read(name, rows, columns)
        return values[self._of_row] if name.endswith("moe.gate.weight") else values


@pytest.mark.parametrize("chosen", [1, 2, 3, 4])
@pytest.mark.parametrize("of_row", [[0] * 8, [0, 1, 1, 0, 4, 1, 4, 0]], ids=["all", "some"])
def test_equal_logits_choose_the_first_experts(of_row: list[int], chosen: int) -> None:
    """Ties are common here and the lower index wins, in both models and on the chips."""
    config = replace(MIXTRAL["eight experts"], layers=1, ffn=300, experts_per_token=chosen)
    drawn = random_checkpoint(config, 3)
    checkpoint = Checkpoint(config, _Rows(drawn.source, of_row))
    reference = LlamaFloat32(checkpoint).logits(tokens_of(config))
    logits = GoldenDecoder(partition_model(checkpoint, 2, "fp16")).logits_for(tokens_of(config))
    assert np.sqrt(np.mean((logits - reference) ** 2)) < TOLERANCE["fp16"] * reference.std()
    run_checkpoint(checkpoint, 1, ("fp16", "int8")[chosen % 2])


@pytest.mark.parametrize(
    ("words", "ffn", "dtype", "cut"),
    [
        (256, 150, "int8", 2),
        pytest.param(360, 150, "fp16", 2, marks=pytest.mark.long),
        pytest.param(136, 50, "int8", 8, marks=pytest.mark.long),
    ],
)
def test_experts_beyond_the_reach_of_a_gather_are_cut(
    words: int, ffn: int, dtype: str, cut: int
) -> None:
    """Their words lie in several places, each in reach; two or three share a word of ``down``."""
    spec = replace(SPEC, words_per_bank=words)
    config = ModelConfig(344, 1, 4, 2, 24, ffn, 97, experts=19, experts_per_token=3)
    layout = Layout.of(config, 1)
    assert layout.turns == min(3, 320 // layout.ffn_width) > 1
    variants = place_decoder(spec, layout, dtype, CONTEXT).variants
    (own,) = (m for m in variants if isinstance(m, FfnMatrices))
    gate = own.gate_up.rounds[0][0].weights
    assert 2 <= len(gate.beyond) + 1 <= cut and gate.reach * 19 <= words
    run_checkpoint(random_checkpoint(config, 0), 1, dtype, spec)


def test_more_experts_than_a_gather_reaches_are_refused() -> None:
    config = ModelConfig(60, 1, 4, 2, 24, 50, 97, experts=64, experts_per_token=2)
    with pytest.raises(CompileError, match="words a slice of each of 64 experts") as told:
        place_decoder(replace(SPEC, words_per_bank=48), Layout.of(config, 1), "int8", 8)
    assert "a Gather reaches 48; use more chips or int8 weights" in str(told.value)


_WIDE = ModelConfig(100, 1, 4, 2, 24, 1500, 331, experts=5, experts_per_token=2)
_NARROW = ModelConfig(100, 1, 4, 2, 24, 300, 331, experts=7, experts_per_token=3, head_norms=True)


@pytest.mark.parametrize(
    ("config", "tp", "dtype"),
    [
        (_WIDE, 2, "int8"),
        pytest.param(_WIDE, 1, "fp16", marks=pytest.mark.long),
        (_NARROW, 2, "int8"),
        pytest.param(_NARROW, 8, "fp16", marks=pytest.mark.long),
    ],
    ids=["tiles-int8", "tiles-fp16", "experts-int8", "experts-fp16"],
)
def test_experts_split_between_stages(config: ModelConfig, tp: int, dtype: str) -> None:
    """A stage may end inside every expert or between them; every part routes by the same x."""
    stages = [
        Stage((Block(ATTENTION, 0), Block(FFN, 0, 0, 3)), False),
        Stage((Block(FFN, 0, 1, 3), Block(FFN, 0, 2, 3)), True),
    ]
    model = partition_model(random_checkpoint(config, 0), tp, dtype)
    model = replace(model, split=split_layers(stages))
    artifact = compile_decoder(model, SPEC, CONTEXT, stages=stages)
    runner = Runner.alone(artifact, Host(artifact, model))
    golden = GoldenDecoder(model)
    reference = LlamaFloat32(model.checkpoint).logits(tokens_of(config))
    error = golden.logits_for(tokens_of(config)) - reference
    assert np.sqrt(np.mean(error**2)) < TOLERANCE[dtype] * reference.std()
    golden.reset()
    for position, token in enumerate(tokens_of(config)[:3]):
        for chip in runner.chips:
            runner.host.prepare(chip, token, position)
        runner.launch(f"decode-{CONTEXT}", position, LOOKAHEAD)
        logits = np.concatenate([runner.host.read_logits(chip) for chip in runner.chips])
        wanted = golden.step(token, position, CONTEXT)
        np.testing.assert_array_equal(logits.view(np.uint32), wanted.view(np.uint32))


FOR_PLANS = [
    QWEN["grouped"],
    GEMMA["one KV head"],
    MIXTRAL["two experts"],
    pytest.param(AFTER_BLOCKS["capped"], marks=pytest.mark.long),
    AFTER_BLOCKS["all heads together"],
]


def test_no_stage_computes_a_part_of_an_ffn_that_is_normed_whole() -> None:
    config = replace(AFTER_BLOCKS["capped"], ffn=1500)
    stages = [
        Stage((Block(ATTENTION, 0), Block(FFN, 0, 0, 2)), False),
        Stage((Block(FFN, 0, 1, 2), Block(ATTENTION, 1), Block(FFN, 1)), True),
    ]
    model = replace(partition_model(random_checkpoint(config, 0), 1), split=split_layers(stages))
    with pytest.raises(CompileError, match="norms what a whole FFN gives") as told:
        compile_decoder(model, SPEC, CONTEXT, stages=stages)
    assert "so no stage can compute a part of one; use stages of whole FFNs" in str(told.value)


@pytest.mark.parametrize("family", FOR_PLANS)
@pytest.mark.cases(1)
def test_a_plan_takes_the_cycles_of_the_compiled_family(family: ModelConfig) -> None:
    plan = compile_plan("family", family, SPEC, context=CONTEXT, chips=2)
    check_plan(plan)
    artifact = compile_decoder(
        partition_model(random_checkpoint(family, 0), 2, "int8"), SPEC, CONTEXT
    )
    assert artifact.predicted_cycles[f"decode-{CONTEXT}"] == plan.cycles
    done = run_timing(plan, timing_programs(plan))
    assert set(done.retired.tolist()) == {plan.cycles}
