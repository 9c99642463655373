"""What a config.json leaves out is what the published configuration classes say.

The defaults are those of the classes of Hugging Face's transformers, one family after another.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from programs.models import (
    CheckpointError,
    LatentAttention,
    LayerKind,
    ModelConfig,
    Rope,
    RopeScaling,
    read_config,
)
from programs.models import families as published
from tests import ROOT

#: What no class has a default for that is used here: 32 heads of 32, twelve layers.
GIVEN = {
    "hidden_size": 1024,
    "intermediate_size": 96,
    "num_attention_heads": 32,
    "num_hidden_layers": 12,
    "vocab_size": 64,
}
SIZES: dict[str, Any] = {
    "hidden_size": 1024,
    "layers": 12,
    "heads": 32,
    "kv_heads": 32,
    "head_dim": 32,
    "ffn": 96,
    "vocab": 64,
    "max_position": 2048,
    "eps": 1e-6,
    "rope_theta": 10_000.0,
}
PLAIN, SLIDES, UNTURNED = LayerKind(), LayerKind(True, False), LayerKind(False, True)
GEMMA: dict[str, Any] = {
    "head_dim": 256,
    "tied": True,
    "activation": "gelu_tanh",
    "unit_gain": True,
    "scaled_embedding": True,
}
SECOND = {"kv_heads": 4, "post_norms": True, "query_scale": 1 / 16, "sliding_window": 4096}
#: model_type: what is not as in Llama.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {
        "kv_heads": 8,
        "max_position": 131_072,
        "sliding_window": 4096,
        "layer_kinds": (SLIDES,) * 12,
    },
    "mixtral": {
        "kv_heads": 8,
        "eps": 1e-5,
        "rope_theta": 1e6,
        "max_position": 131_072,
        "experts": 8,
        "experts_per_token": 2,
    },
    "qwen2": {"max_position": 32_768, "qkv_bias": True},
    "qwen3": {"head_dim": 128, "max_position": 32_768, "head_norms": True},
    "qwen2_moe": {
        "kv_heads": 16,
        "max_position": 32_768,
        "qkv_bias": True,
        "ffn": 1408,
        "experts": 60,
        "experts_per_token": 4,
        "shared_experts": 4,
        "shared_gate": True,
    },
    "qwen3_moe": {  # with shares that add up to one, which is not its default
        "kv_heads": 4,
        "max_position": 32_768,
        "head_norms": True,
        "ffn": 768,
        "experts": 128,
        "experts_per_token": 8,
    },
    "phi3": {"eps": 1e-5, "max_position": 4096},
    "granite": {"query_scale": 1.0},
    "smollm3": {
        "kv_heads": 4,
        "rope_theta": 2e6,
        "tied": True,
        "max_position": 32_768,
        "layer_kinds": (PLAIN, PLAIN, PLAIN, UNTURNED) * 3,
        "second_rope": Rope(0.0),
    },
    "gemma": GEMMA | {"kv_heads": 16, "max_position": 8192},
    "gemma2": GEMMA
    | SECOND
    | {
        "max_position": 8192,
        "score_cap": 50.0,
        "logit_cap": 30.0,
        "layer_kinds": (SLIDES, PLAIN) * 6,
    },
    "gemma3_text": GEMMA
    | SECOND
    | {
        "rope_theta": 1e6,
        "max_position": 131_072,
        "head_norms": True,
        "second_rope": Rope(10_000.0),
        "layer_kinds": (*[LayerKind(True, True)] * 5, PLAIN) * 2,
    },
    "gpt_oss": {
        "kv_heads": 8,
        "head_dim": 64,
        "eps": 1e-5,
        "rope_theta": 150_000.0,
        "max_position": 131_072,
        "qkv_bias": True,
        "o_bias": True,
        "sinks": True,
        "expert_bias": True,
        "activation": "clamped_silu",
        "swiglu_limit": 7.0,
        "experts": 128,
        "experts_per_token": 4,
        "sliding_window": 128,
        "layer_kinds": (SLIDES, PLAIN) * 6,
    },
    "llama4_text": {
        "kv_heads": 8,
        "head_dim": 128,
        "eps": 1e-5,
        "rope_theta": 500_000.0,
        "max_position": 8191,  # before queries grow and chunks begin
        "experts": 16,
        "experts_per_token": 1,
        "shared_experts": 1,
        "input_shares": True,
        "head_norms": True,
        "head_gains": False,
        "layer_kinds": (PLAIN, PLAIN, PLAIN, LayerKind(False, True, True)) * 3,
        "second_rope": Rope(0.0),
    },
    "olmo2": {"eps": 1e-5, "pre_norms": False, "post_norms": True, "wide_norms": True},
}
LATENT: dict[str, Any] = {
    "head_dim": 192,
    "latent": LatentAttention(512, 64, 1536, 128),
    "query_scale": 192**-0.5,
}
FAMILIES |= {
    "deepseek_v2": LATENT
    | {
        "ffn": 1407,
        "experts": 64,
        "experts_per_token": 6,  # has to be given
        "shared_experts": 2,
        "shares_of_all": True,
    },
    "deepseek_v3": LATENT
    | {
        "ffn": 2048,
        "max_position": 4096,
        "experts": 256,
        "experts_per_token": 8,
        "shared_experts": 1,
        "sigmoid_scores": True,
        "expert_groups": 8,
        "chosen_groups": 4,
        "routed_factor": 2.5,
        "dense_ffn": 96,
        "layer_kinds": (LayerKind(dense=True),) * 3 + (PLAIN,) * 9,
    },
}
#: What people call the others than by their model_type.
CALLED = {
    "qwen2": "Qwen",
    "qwen3": "Qwen",
    "qwen2_moe": "Qwen2-MoE",
    "qwen3_moe": "Qwen3-MoE",
    "phi3": "Phi-3",
    "gemma2": "Gemma",
    "gemma3_text": "Gemma",
    "gpt_oss": "gpt-oss",
    "llama4_text": "Llama 4",
    "olmo2": "OLMo-2",
    "deepseek_v2": "DeepSeek",
    "deepseek_v3": "DeepSeek",
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


def read(path: Path, model_type: str, **more: Any) -> ModelConfig:
    file = path / "config.json"
    fields = {"model_type": model_type, "norm_topk_prob": True, **GIVEN, **more}
    if model_type == "gpt_oss":
        fields["rope_scaling"] = None  # has to be given
    if model_type == "deepseek_v2":
        fields |= {"norm_topk_prob": False, "num_experts_per_tok": 6}
    file.write_text(json.dumps(fields), encoding="utf-8")
    return read_config(file)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_out(family: str, tmp_path: Path) -> None:
    found = read(tmp_path, family)
    assert found == ModelConfig(**SIZES | FAMILIES[family])
    assert found.plain == (family in ("llama", "phi3"))
    # null is as many as heads; Gemma's classes know no null
    if not family.startswith("gemma"):
        assert read(tmp_path, family, num_key_value_heads=None).kv_heads == 32
    if "latent" not in FAMILIES[family]:  # else every head has its own
        assert read(tmp_path, family, num_key_value_heads=2).kv_heads == 2


def test_windows_that_are_switched_on(tmp_path: Path) -> None:
    """From the 28th layer on where nobody says from which."""
    more: dict[str, Any] = {"use_sliding_window": True, "num_hidden_layers": 30}
    for family in ("qwen2", "qwen3"):
        found = read(tmp_path, family, **more)
        assert found.sliding_window == 4096
        assert found.layer_kinds == (*[PLAIN] * 28, SLIDES, SLIDES)
        found = read(tmp_path, family, **more, max_window_layers=29, sliding_window=100)
        assert (found.sliding_window, found.layer_kinds) == (100, (*[PLAIN] * 29, SLIDES))


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe"])
def test_windows_of_experts_need_types_of_layers(family: str, tmp_path: Path) -> None:
    """Versions of these classes give them to different layers."""
    with pytest.raises(CheckpointError) as told:
        read(tmp_path, family, use_sliding_window=True)
    assert str(told.value).endswith(
        "use_sliding_window is set, and versions of the class disagree on the layers that it "
        "means; name them in layer_types"
    )
    types = ["sliding_attention", "full_attention"] * 6
    found = read(tmp_path, family, use_sliding_window=True, layer_types=types)
    assert found.layer_kinds == (SLIDES, PLAIN) * 6
    # what has no effect is not refused
    assert not read(tmp_path, family, sliding_window=100).layer_kinds


def test_biases_of_qwen2_with_experts_can_be_left_out(tmp_path: Path) -> None:
    found = read(tmp_path, "qwen2_moe", qkv_bias=False)
    assert found == replace(read(tmp_path, "qwen2_moe"), qkv_bias=False)
    assert read(tmp_path, "qwen2_moe", qkv_bias=True).qkv_bias
    assert read(tmp_path, "qwen2", qkv_bias=False).qkv_bias  # whose class has no such flag


@pytest.mark.parametrize(("window", "slides"), [(4095, True), (4096, False), (4097, False)])
def test_a_window_as_long_as_the_model_is_none(window: int, slides: bool, tmp_path: Path) -> None:
    found = read(tmp_path, "phi3", sliding_window=window)
    assert (found.sliding_window, found.layer_kinds) == (
        (window, (SLIDES,) * 12) if slides else (0, ())
    )


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        ({}, True),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, True),
        ({"rope_scaling": YARN}, False),
        ({"attention_bias": True}, False),
        ({"tie_word_embeddings": True}, True),
    ],
)
def test_plain_is_what_llama_computes(change: dict[str, Any], plain: bool, tmp_path: Path) -> None:
    """A table stretched by YaRN also makes cosines larger, which Llama's does not."""
    assert read(tmp_path, "llama", **change).plain == plain


def test_factors_of_granite(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "granite",
        embedding_multiplier=12.0,
        residual_multiplier=0.25,
        attention_multiplier=0.125,
        logits_scaling=8.0,
    )
    factors = (found.embedding_factor, found.residual_factor, found.query_scale, found.logit_factor)
    assert factors == (12.0, 0.25, 0.125, 0.125)


def test_a_table_stretched_reaches_as_far(tmp_path: Path) -> None:
    linear = read(tmp_path, "llama", rope_scaling={"rope_type": "linear", "factor": 2.5})
    assert linear.max_position == 5120 and linear.rope_scaling == RopeScaling("linear", 2.5)
    far = read(tmp_path, "llama", rope_scaling={"rope_type": "linear", "factor": 1e9})
    assert far.max_position == 2**31 - 1
    gemma = read(tmp_path, "gemma3_text", rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert gemma.max_position == 131_072


@pytest.mark.parametrize("page", ["README.md", "docs/limits.md", "docs/how-to.md"])
def test_every_family_is_named_where_a_user_looks(page: str) -> None:
    assert set(FAMILIES) == set(published.FAMILIES)
    text = (ROOT / page).read_text(encoding="utf-8")
    text = text.partition("## Limits")[2] or text
    for family in FAMILIES:
        assert CALLED.get(family, family).lower() in text.lower(), family
