"""What conversions lose is counted: chips as the golden model, layer by layer, in both modes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from chip.saturation import FP16, INT8, KINDS, Tally
from chip.spec import ChipSpec
from programs.convnet import compile_network, golden_network, mlp, random_input, randomise
from programs.decoder import GoldenDecoder, Host, compile_decoder, partition_model
from programs.decoder.stages import ATTENTION, FFN, Block, Stage, split_layers
from programs.encoder import (
    EncoderShape,
    compile_encoder,
    golden_encoder,
    random_layers,
    random_tokens,
)
from programs.models import Checkpoint, LayerKind, ModelConfig, Rope, random_checkpoint
from programs.models.tensors import TensorSource
from programs.running import (
    BARRIER,
    LOOKAHEAD,
    Generation,
    Runner,
    Saturations,
)
from tests.families import FAMILIES, checkpoint_of

F32 = NDArray[np.float32]
Index = NDArray[np.int64]

SPEC = ChipSpec()
CONTEXT = 64
TOKENS = (3, 41, 59)
GROUPED = ModelConfig(100, 2, 8, 2, 24, 130, 331)
WIDE = ModelConfig(700, 2, 4, 4, 40, 900, 97, head_norms=True)
AFTER = ModelConfig(
    344, 2, 9, 3, 40, 130, 331, pre_norms=False, post_norms=True, wide_norms=True, score_cap=2.0
)
EXPERTS = ModelConfig(100, 2, 4, 2, 24, 700, 331, experts=8, experts_per_token=2)
SHARED = replace(EXPERTS, experts_per_token=1, shared_experts=1, shared_gate=True)
SCALED = replace(  # as Llama 4
    EXPERTS,
    experts_per_token=1,
    shared_experts=1,
    input_shares=True,
    head_norms=True,
    head_gains=False,
    second_rope=Rope(0.0),
    layer_kinds=(LayerKind(), LayerKind(False, True, True)),
)
CUT = replace(  # as gpt-oss
    EXPERTS, activation="clamped_silu", expert_bias=True, sinks=True, qkv_bias=True, o_bias=True
)
ON_PLANES = replace(GROUPED, max_position=4096)
ONE_SHARED = ModelConfig(100, 1, 5, 1, 24, 130, 331, max_position=4096)
GROUPS = checkpoint_of(FAMILIES["deepseek-v2, best groups"]).config


class Loud:
    """A model's tensors, those of which ``factors`` names the end times a factor.

    A pair (channel, value) for the embedding instead: every token has ``value`` in ``channel``.
    """

    def __init__(self, source: TensorSource, factors: dict[str, float], value: float) -> None:
        self._source, self._factors, self._value = source, factors, value

    def read(self, name: str, rows: Index | None, columns: Index | None) -> F32:
        values = self._source.read(name, rows, columns)
        for end, factor in self._factors.items():
            if name.endswith(end):
                values = values * np.float32(factor)
        if name.endswith("embed_tokens.weight") and columns is None and self._value:
            values = values.copy()
            values[:, 7] = self._value
        return values


def loud(config: ModelConfig, value: float = 0.0, **factors: float) -> Checkpoint:
    ends = {f"{name}.weight": factor for name, factor in factors.items()}
    return Checkpoint(config, Loud(random_checkpoint(config, 0).source, ends, value))


def counted(
    checkpoint: Checkpoint,
    tp: int,
    dtype: str,
    pp: int = 1,
    sync: str = LOOKAHEAD,
    stages: list[Stage] | None = None,
    tokens: tuple[int, ...] = TOKENS,
) -> tuple[Saturations, Saturations]:
    """What the chips and what the golden model count over a few tokens, all logits read."""
    model = partition_model(checkpoint, tp, dtype)
    model = replace(model, split=split_layers(stages or []))
    artifact = compile_decoder(model, SPEC, CONTEXT, pp=pp, stages=stages)
    runner, golden = Runner.alone(artifact, Host(artifact, model)), GoldenDecoder(model)
    for position, token in enumerate(tokens):
        for chip in runner.chips:
            runner.host.prepare(chip, token, position)
        runner.launch(f"decode-{CONTEXT}", position, sync)
        golden.step(token, position, CONTEXT)
    wanted = {
        place: {kind: n for kind, n in zip(KINDS, counts.tolist(), strict=True) if n}
        for place, counts in golden.tally.counts.items()
    }
    return runner.saturations, wanted


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize(
    ("config", "tp", "pp"),
    [(GROUPED, 1, 1), (GROUPED, 2, 2), (WIDE, 2, 1), (EXPERTS, 1, 1), (AFTER, 2, 1)],
)
@pytest.mark.cases(2)
def test_one_loud_channel(config: ModelConfig, tp: int, pp: int, dtype: str) -> None:
    """A channel of the embedding at 1e5, ten times that and more: chips as the golden model."""
    found, wanted = counted(loud(config, 1e5), tp, dtype, pp)
    assert found == wanted
    found, wanted = counted(loud(config, 3e9, down_proj=1e5), tp, dtype, pp)
    assert found == wanted and found, "so much saturates in any scheme"
    assert list(found) == ["0", "1", "head"]


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize(
    ("config", "tp"),
    [
        *((GROUPED, 1), (GROUPED, 4), (WIDE, 2), (EXPERTS, 2), (AFTER, 8), (ON_PLANES, 2)),
        *((ONE_SHARED, 1), (ONE_SHARED, 2)),
    ],
)
@pytest.mark.cases(2)
def test_loud_weights(config: ModelConfig, tp: int, dtype: str) -> None:
    """Queries, keys, values and the inputs of O and down beyond fp16."""
    factors = dict.fromkeys(("q_proj", "k_proj", "v_proj", "up_proj", "w3"), 1e5)
    found, wanted = counted(loud(config, **factors), tp, dtype)
    assert found == wanted and found["0"]["fp16"] > 0


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize(
    "config",
    [EXPERTS, SHARED, SCALED, CUT, GROUPS],
    ids=["own", "shared", "scaled", "cut", "groups"],
)
@pytest.mark.cases(2)
def test_loud_routers_and_experts(config: ModelConfig, dtype: str) -> None:
    """Logits of the router beyond fp16 count once, whatever the shares are made of them."""
    factors = dict.fromkeys(("mlp.gate", "block_sparse_moe.gate", "router"), 2e5)
    found, wanted = counted(loud(config, **factors), 2, dtype)
    assert found == wanted and found["0"]["fp16"] > 0
    factors |= dict.fromkeys(("up_proj", "w3", "shared_expert_gate", "q_proj"), 1e5)
    found, wanted = counted(loud(config, 1e5, **factors), 2, dtype)
    assert found == wanted and found["0"]["fp16"] > 0


@pytest.mark.parametrize("tp", [1, 2])
def test_sums_of_large_values_on_planes(tp: int) -> None:
    """Weighted with 2^14 a position, they are beyond what the pieces of their divisor hold: those
    lanes meet zeros, and nobody uses what they lose.
    """
    model, tokens = loud(replace(ON_PLANES, layers=1), v_proj=2e4), (3,) * 12
    for dtype in ("int8", "fp16"):
        assert counted(model, tp, dtype, tokens=tokens) == ({}, {})


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.cases(1)
def test_a_layer_on_two_stages(dtype: str) -> None:
    """Every part of an FFN norms the same x again; all of it is of the one layer."""
    config = ModelConfig(100, 2, 4, 2, 24, 1500, 331)
    stages = [
        Stage(
            (Block(ATTENTION, 0), Block(FFN, 0), Block(ATTENTION, 1), Block(FFN, 1, 0, 3)), False
        ),
        Stage((Block(FFN, 1, 1, 3), Block(FFN, 1, 2, 3)), True),
    ]
    model = loud(config, 3e9, up_proj=1e5, v_proj=1e5)
    found, wanted = counted(model, 2, dtype, stages=stages)
    assert found == wanted and list(found) == ["0", "1", "head"]


def test_ordinary_activations_lose_nothing() -> None:
    for dtype in ("int8", "fp16"):
        assert counted(loud(GROUPED), 2, dtype) == ({}, {})


def test_tokens_that_are_fed_twice_count_twice() -> None:
    """The last of two chunks begins two positions before the first one's end."""
    factors = dict.fromkeys(("q_proj", "k_proj", "v_proj", "up_proj"), 1e5)
    model = partition_model(loud(replace(GROUPED, layers=1), 3e9, **factors), 1, "int8")
    slow = replace(SPEC, pcie_latency_s=1e-3)  # so that the fewest launches are the soonest
    artifact = compile_decoder(model, slow, CONTEXT, chunk=4)
    prompt = (3, 41, 59, 60, 2, 7)
    done = Runner.alone(artifact, Host(artifact, model)).generate(Generation(prompt, 1))
    assert done.entries == ["chunk-64", "chunk-64-end"]
    golden, of_token = GoldenDecoder(model), []
    for position, token in enumerate(prompt):
        before = {place: counts.copy() for place, counts in golden.tally.counts.items()}
        golden.step(token, position, CONTEXT)
        after = golden.tally.counts.items()
        of_token.append({place: counts - before.get(place, 0) for place, counts in after})
    layer = sum(of_token[at]["0"] for at in (0, 1, 2, 3, 2, 3, 4, 5))
    for place, counts in (("0", layer), ("head", of_token[5]["head"])):
        wanted = {kind: n for kind, n in zip(KINDS, counts.tolist(), strict=True) if n}
        assert done.saturations[place] == wanted and wanted


@pytest.mark.long
def test_barriers_count_as_lookahead() -> None:
    loud_model = loud(GROUPED, 3e9)
    assert counted(loud_model, 2, "fp16", 2, BARRIER)[0] == counted(loud_model, 2, "fp16", 2)[0]


@pytest.mark.long
def test_other_golden_models_count_each_value_once() -> None:
    """Their chips convert it for one hemisphere or for both; no lane is padding here."""
    shape = EncoderShape(1, 320, 20, 320, 16)
    layers = random_layers(shape, 0)
    for layer in layers:
        layer.vectors["up_bias"][:] = 1e6
    x = random_tokens(shape, 0)
    artifact = compile_encoder(shape, SPEC, 1, layers, x)
    network = mlp(2, (40, 30, 20))
    image = random_input(network, 0)
    randomise(network, image, 0)
    for made, golden, kind in (
        (artifact, lambda: golden_encoder(shape, layers, x), FP16),
        (compile_network(network, SPEC, image), lambda: golden_network(network, image), INT8),
    ):
        runner, tally = Runner.alone(made), Tally()
        runner.launch(next(iter(made.programs)), 0, LOOKAHEAD)
        with tally.counting():
            golden()
        counts = runner.chips[0].saturated.sum(axis=0)
        once = int(tally.counts[""][kind])
        assert 0 < once <= counts[kind] <= 2 * once
        assert np.count_nonzero(counts) == np.count_nonzero(tally.counts[""]) == 1
