"""Experts with biases and shared ones: in parts on several stages, and plans of such models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chip.spec import ChipSpec
from programs.decoder import ATTENTION, GoldenDecoder, Host, compile_decoder, partition_model
from programs.decoder.stages import FFN, Block, Stage, of_layers, split_layers
from programs.models import random_checkpoint
from programs.plans import check_plan, compile_plan
from programs.running import LOOKAHEAD, Runner
from tests.families import FAMILIES, TOKENS, TOLERANCE, Family, checkpoint_of, exact_logits

SPEC, CONTEXT = ChipSpec(), 64


@pytest.mark.parametrize(
    ("name", "ffn", "tp", "dtype"),
    [
        ("gpt-oss", 300, 2, "int8"),
        pytest.param("gpt-oss", 1500, 1, "int8", marks=pytest.mark.long),
        pytest.param("gpt-oss", 1500, 2, "fp16", marks=pytest.mark.long),
        pytest.param("gpt-oss", 300, 8, "fp16", marks=pytest.mark.long),
        ("qwen2 moe", 90, 2, "int8"),
        pytest.param("llama 4", 90, 2, "int8", marks=pytest.mark.long),
        pytest.param("llama 4", 1000, 1, "fp16", marks=pytest.mark.long),
        pytest.param("llama 4, every other", 1000, 1, "fp16", marks=pytest.mark.long),
        pytest.param("qwen2 moe", 1000, 1, "fp16", marks=pytest.mark.long),
        pytest.param("qwen2 moe", 270, 8, "fp16", marks=pytest.mark.long),
    ],
)
def test_experts_split_between_stages(name: str, ffn: int, tp: int, dtype: str) -> None:
    """Parts cut between tiles take the biases of down once, those cut between experts each its; a
    shared expert gives nothing in a part that it is not in; a layer without experts has parts too.
    """
    sizes = {"intermediate_size": ffn, "num_hidden_layers": 1, "no_rope_layers": [1]}
    sizes |= {"intermediate_size_mlp": ffn}
    if name == "qwen2 moe":
        sizes |= {"moe_intermediate_size": ffn, "shared_expert_intermediate_size": 2 * ffn}
    fields = {**FAMILIES[name].fields, **sizes}
    family = Family(fields, {"sinks": 3.0, "down_proj.bias": 4.0})
    stages = [
        Stage((Block(ATTENTION, 0), Block(FFN, 0, 0, 3)), False),
        Stage((Block(FFN, 0, 1, 3), Block(FFN, 0, 2, 3)), True),
    ]
    checkpoint = checkpoint_of(family)
    kinds = checkpoint.config.layer_kinds
    stages = of_layers(stages, kinds)
    model = partition_model(checkpoint, tp, dtype)
    model = replace(model, split=split_layers(stages))
    artifact = compile_decoder(model, SPEC, CONTEXT, stages=stages)
    runner = Runner.alone(artifact, Host(artifact, model))
    golden = GoldenDecoder(model)
    wanted = exact_logits(family, checkpoint)
    error = golden.logits_for(TOKENS) - wanted
    assert np.sqrt(np.mean(error**2)) < TOLERANCE[dtype] * wanted.std()
    golden.reset()
    for position, token in enumerate(TOKENS[:3]):
        for chip in runner.chips:
            runner.host.prepare(chip, token, position)
        runner.launch(f"decode-{CONTEXT}", position, LOOKAHEAD)
        found = np.concatenate([runner.host.read_logits(chip) for chip in runner.chips])
        own = golden.step(token, position, CONTEXT)
        np.testing.assert_array_equal(found.view(np.uint32), own.view(np.uint32))


@pytest.mark.parametrize(
    "name",
    [
        "gpt-oss",
        "qwen2 moe",
        "llama 4",
        pytest.param("llama 4, every other", marks=pytest.mark.long),
    ],
)
def test_a_plan_takes_the_cycles_of_the_compiled_model(name: str) -> None:
    config = checkpoint_of(FAMILIES[name]).config
    plan = compile_plan(name, config, SPEC, context=CONTEXT, chips=2)
    check_plan(plan)
    model = partition_model(random_checkpoint(config, 0), 2)
    artifact = compile_decoder(model, SPEC, CONTEXT, weights=False)
    assert artifact.predicted_cycles[f"decode-{CONTEXT}"] == plan.cycles
