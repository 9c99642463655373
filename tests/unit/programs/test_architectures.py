"""Counting models: published totals, the KV bytes of a token, and shapes that cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from programs.models import (
    ARCHITECTURES,
    Architecture,
    CheckpointError,
    architecture,
    load_checkpoint,
    missing_kernels,
)
from programs.models.checkpoint import read_config
from tests import ROOT

SHIPPED = ROOT / "programs" / "checkpoints"

#: Totals as the models' cards give them; the first rows are the exact counts of their tensors.
TOTALS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3-405b": 405_853_388_800,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-8b": 8_190_735_360,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "llama-4-scout": 107_769_861_120,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "qwen3-235b": 235e9,
    "qwen3-30b-a3b": 30.5e9,
    "opt-66b": 65.7e9,
    "deepseek-v3": 671e9,
    "deepseek-v2-lite": 15_706_484_224,
}
ACTIVE = {"mixtral-8x7b": 12.9e9, "qwen3-235b": 22e9, "qwen3-30b-a3b": 3.3e9, "deepseek-v3": 37e9}
ACTIVE |= {"llama-4-scout": 17e9, "deepseek-v2-lite": 2_661_150_208}
KV_BYTES = {
    "llama-2-70b": 327_680,
    "llama-3-70b": 327_680,
    "opt-66b": 2_359_296,
    "llama-3-405b": 516_096,
    "deepseek-v3": 70_272,
    "deepseek-v2-lite": 31_104,
    "qwen3-8b": 147_456,
    "qwen3-235b": 192_512,
}

names = st.sampled_from(sorted(ARCHITECTURES))


@pytest.mark.parametrize("name", TOTALS)
def test_parameters_are_the_published_totals(name: str) -> None:
    published = TOTALS[name]
    exact = isinstance(published, int)
    assert ARCHITECTURES[name].parameters == pytest.approx(published, rel=0 if exact else 0.01)


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters_are_the_published_ones(name: str) -> None:
    assert ARCHITECTURES[name].active_parameters == pytest.approx(ACTIVE[name], rel=0.02)


@pytest.mark.parametrize("name", KV_BYTES)
def test_kv_bytes_of_a_token(name: str) -> None:
    model = ARCHITECTURES[name]
    assert model.kv_bytes_per_token() == KV_BYTES[name]
    assert model.kv_bytes_per_token(1) * 2 == KV_BYTES[name]


@pytest.mark.parametrize("name", ["target", "draft"])
def test_shipped_models_count_as_their_files(name: str) -> None:
    for model in (ARCHITECTURES[name], architecture(SHIPPED / name)):
        assert model.name == name
        assert model.parameters == load_checkpoint(SHIPPED / name).config.parameters
    assert architecture(SHIPPED / name / "config.json") == ARCHITECTURES[name]


def test_a_config_file_is_a_model(tmp_path: Path) -> None:
    fields = json.loads((SHIPPED / "draft" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"tie_word_embeddings": False}))
    model = architecture(str(tmp_path))
    assert model.parameters == read_config(tmp_path).parameters
    assert model.parameters == ARCHITECTURES["draft"].parameters + model.embedding_parameters


def test_operations_of_a_token() -> None:
    model = ARCHITECTURES["llama-2-7b"]
    assert model.flops_per_token(0) == pytest.approx(2 * model.active_parameters, rel=0.03)
    more = model.flops_per_token(1000) - model.flops_per_token(0)
    assert more == 4 * 32 * 4096 * 1000  # layers, heads x head_dim, positions


def test_latent_attention_computes_less_once_keys_are_expanded() -> None:
    model = ARCHITECTURES["deepseek-v3"]
    assert model.attention_flops(1) == 2 * 61 * 128 * (512 + 64 + 512)
    assert model.attention_flops(1, expanded=True) == 2 * 61 * 128 * (128 + 64 + 128)


@given(names, st.integers(1, 10_000), st.integers(1, 10_000))
def test_a_pass_reads_between_the_active_and_all_parameters(name: str, one: int, two: int) -> None:
    model = ARCHITECTURES[name]
    fewer, more = sorted((one, two))
    looked_up = model._tables() - model.embedding_parameters
    low, high = model.active_parameters - looked_up, model.parameters - looked_up
    slack = 1 + 1e-12
    assert low <= model.parameters_read(fewer) * slack
    assert model.parameters_read(fewer) <= model.parameters_read(more) * slack
    assert model.parameters_read(more) <= high * slack


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"kv_heads": 5}, "multiple"),
        ({"experts_per_token": 2}, "more experts"),
        ({"dense_layers": 99}, "more of them than layers"),
        ({"dense_ffn": -1}, "at least 0"),
    ],
)
def test_shapes_that_cannot_be(change: dict[str, int], words: str) -> None:
    model: Architecture = ARCHITECTURES["llama-3-8b"]
    with pytest.raises(CheckpointError, match=words) as caught:
        replace(model, **change)
    assert "\n" not in str(caught.value)


def test_up_to_sixteen_experts_of_256_have_kernels() -> None:
    most = replace(ARCHITECTURES["qwen3-235b"], experts=256, experts_per_token=16)
    assert missing_kernels(most) == []
    for experts, chosen in ((256, 17), (257, 8)):
        more = replace(most, experts=experts, experts_per_token=chosen)
        assert missing_kernels(more) == [f"routing to {chosen} of {experts} experts"]


def test_an_unknown_model_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="mixtral-8x7b"):
        architecture("llama-9")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        architecture(tmp_path)
