"""DeepSeek's models as they are published: their fields, their tensors' names, their numbers."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from programs.decoder import Layout, random_chip_weights
from programs.decoder.partition import Matrix, chip_weights
from programs.models import (
    Checkpoint,
    CheckpointError,
    LatentAttention,
    ModelConfig,
    config_of,
    inverse_frequencies,
    load_checkpoint,
    random_checkpoint,
    read_config,
)
from programs.models.config import tensor_shapes
from tests.families import FAMILIES, checkpoint_of

#: What says of DeepSeek-V2-Lite's published config.json how it is computed.
LITE = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "greedy",
    "v_head_dim": 128,
    "vocab_size": 102400,
}


#: The same of DeepSeek-V3's.
LARGE = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129280,
}


def read(path: Path, published: dict[str, Any], **changes: Any) -> ModelConfig:
    """The configuration of a file with the fields given, ... taking one away."""
    fields = {name: of for name, of in (published | changes).items() if of is not ...}
    (path / "config.json").write_text(json.dumps(fields))
    return read_config(path)


def test_the_large_published_model_is_the_named_one(tmp_path: Path) -> None:
    config = read(tmp_path, LARGE)
    named = config_of("deepseek-v3")[1]
    differ = {
        f.name for f in fields_of(config) if getattr(config, f.name) != getattr(named, f.name)
    }
    assert differ == {"eps", "rope_scaling", "max_position", "query_scale"}
    assert config.query_scale == pytest.approx((0.1 * math.log(40) + 1) ** 2 / 192**0.5, rel=1e-12)
    assert config.sigmoid_scores and not config.shares_of_all
    some = ("architectures", "vocab_size", "hidden_size", "intermediate_size")
    left_out = {name: LARGE[name] for name in (*some, "num_attention_heads", "num_hidden_layers")}
    usual = read(tmp_path, left_out)
    assert (usual.eps, usual.max_position, usual.query_scale) == (1e-6, 4096, 192**-0.5)
    assert replace(usual, query_scale=0.0, max_position=1, eps=1e-5) == replace(
        named, max_position=1
    )
    every = read(tmp_path, LARGE, n_group=4, topk_group=4)
    assert (every.expert_groups, every.chosen_groups) == (1, 1)


def test_the_small_published_model_is_the_named_one(tmp_path: Path) -> None:
    config = read(tmp_path, LITE)
    named = config_of("deepseek-v2-lite")[1]
    differ = {
        f.name for f in fields_of(config) if getattr(config, f.name) != getattr(named, f.name)
    }
    assert differ == {"eps", "rope_scaling", "max_position", "query_scale"}
    assert config.max_position == 163840 and config.parameters == 15_706_484_224
    grown = 0.1 * 0.707 * math.log(40) + 1
    assert config.query_scale == pytest.approx(grown**2 / math.sqrt(192), rel=1e-12)
    assert config.ropes[0].size == 1.0 and len(inverse_frequencies(config)) == 32


def test_fields_left_out_are_the_class_s(tmp_path: Path) -> None:
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    given = ("architectures", "vocab_size", "num_experts_per_tok", *sizes)
    config = read(tmp_path, {name: LITE[name] for name in given})
    assert config.latent == LatentAttention(512, 64, 1536, 128) and config.head_dim == 192
    assert (config.experts, config.shared_experts, config.ffn) == (64, 2, 1407)
    assert (config.dense_ffn, config.layer_kinds, config.routed_factor) == (0, (), 1.0)
    assert config.query_scale == 192**-0.5 and config.eps == 1e-6
    bare = read(tmp_path, LITE, n_routed_experts=None, rope_scaling=None, head_dim=64)
    assert (bare.experts, bare.shared_experts, bare.ffn, bare.head_dim) == (1, 0, 10944, 192)
    for published, alias in ((LITE, "num_experts"), (LARGE, "num_local_experts")):
        assert read(tmp_path, published, n_routed_experts=..., **{alias: 40}).experts == 40
    alone = read(tmp_path, LITE, n_shared_experts=None, first_k_dense_replace=0)
    assert alone.shared_experts == 0 and "model.layers.0.mlp.gate.weight" in tensor_shapes(alone)
    other = read(
        tmp_path, LITE, rope_scaling={**LITE["rope_scaling"], "mscale": 1, "mscale_all_dim": 0}
    )  # type: ignore[dict-item]
    assert other.query_scale == 192**-0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4 beside 16 heads; with latent"),
        ({"moe_layer_freq": 2}, "moe_layer_freq is 2, which versions of the class read apart"),
        ({"topk_method": "best"}, "topk_method is 'best' and scoring_func 'softmax'; 'greedy' of"),
        (
            {"norm_topk_prob": True},
            "norm_topk_prob is True, which versions of the class read apart",
        ),
        ({"rope_interleave": False}, "rope_interleave is False, for which there are no kernels"),
        (
            {"num_experts": 63},
            "num_experts is 63 beside n_routed_experts 64; they are names of one",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 40, "mscale": 0.7}},
            "mscale is 0.7 without mscale_all_dim, which versions of the class read apart; use",
        ),
        ({"n_routed_experts": 1}, "n_routed_experts is 1; a model without a router"),
        ({"attention_bias": True}, "attention_bias is set, which is not supported"),
        ({"routed_scaling_factor": 0}, "routed_factor is 0.0; what is multiplied needs"),
        ({"v_head_dim": 200}, "values of 200 elements are longer than keys of 192"),
        ({"qk_rope_head_dim": 63, "qk_nope_head_dim": 65}, "must be positive, and what turns even"),
        ({"kv_lora_rank": 0}, "sizes of latent attention are LatentAttention(key_value=0,"),
    ],
    ids=lambda of: next(iter(of)) if isinstance(of, dict) else "",
)
def test_what_has_no_kernels_is_refused_in_one_line(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as told:
        read(tmp_path, LITE, **changes)
    assert words in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"scoring_func": "softmax"},
            "and scoring_func 'softmax'; 'noaux_tc' of 'sigmoid' are known",
        ),
        ({"num_experts_per_tok": 1}, "is 1, whose share versions of the class read apart; use a"),
        ({"norm_topk_prob": False}, "norm_topk_prob is False, which versions of the class read"),
        ({"n_group": 3}, "4 of 3 groups of 256 experts for 8 of them; groups are of two or more"),
        ({"topk_group": 9}, "9 of 8 groups of 256 experts"),
        ({"n_group": 256, "topk_group": 100}, "100 of 256 groups of 256 experts"),
        ({"n_group": 128, "topk_group": 3}, "3 of 128 groups of 256 experts"),
    ],
    ids=str,
)
def test_groups_that_cannot_be(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as told:
        read(tmp_path, LARGE, **changes)
    assert words in str(told.value) and "\n" not in str(told.value)


def test_sigmoids_are_shares() -> None:
    config = checkpoint_of(FAMILIES["deepseek-v3"]).config
    with pytest.raises(
        CheckpointError, match="sigmoids that experts are chosen by are their share"
    ):
        replace(config, shares_of_all=True)


def test_what_stands_beside_latents() -> None:
    config = checkpoint_of(FAMILIES["deepseek-v2"]).config
    for changes in ({"kv_heads": 1}, {"head_norms": True}, {"qkv_bias": True}):
        with pytest.raises(CheckpointError, match="latent attention beside shared keys, norms of"):
            replace(config, **changes)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="a factor of chosen experts needs some, without"):
        ModelConfig(8, 2, 1, 1, 8, 8, 8, routed_factor=2.0)


def stored(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    """The model's tensors by their published names: shared experts are one."""
    found, shared = {}, dict[str, list[NDArray[np.float32]]]()
    for name in tensor_shapes(checkpoint.config):
        if part := re.fullmatch(r"(.*shared_expert)\.\d+\.(.*)", name):
            shared.setdefault(f"{part[1]}s.{part[2]}", []).append(checkpoint.tensor(name))
        else:
            found[name] = checkpoint.tensor(name)
    whole = {name: np.concatenate(of, int("down" in name)) for name, of in shared.items()}
    return {name: np.ascontiguousarray(of) for name, of in (found | whole).items()}


#: Names of a layer of the published files, beside those of its FFN.
ATTENTION = {
    "input_layernorm",
    "post_attention_layernorm",
    "self_attn.kv_a_layernorm",
    "self_attn.kv_a_proj_with_mqa",
    "self_attn.kv_b_proj",
    "self_attn.o_proj",
}
DIRECT, LATENT = (
    {"self_attn.q_proj"},
    {f"self_attn.q_{n}" for n in ("a_layernorm", "a_proj", "b_proj")},
)
PARTS = ("gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3"])
def test_names_are_those_of_the_published_files(name: str) -> None:
    checkpoint = checkpoint_of(FAMILIES[name])
    many = checkpoint.config.experts
    usual = ATTENTION | (LATENT if name == "deepseek-v3" else DIRECT)
    experts = {f"mlp.experts.{n}.{part}" for n in range(many) for part in PARTS}
    shared = {f"mlp.shared_experts.{part}" for part in PARTS}
    wanted = {f"model.layers.0.{n}.weight" for n in usual | {f"mlp.{part}" for part in PARTS}}
    wanted |= {f"model.layers.1.{n}.weight" for n in usual | experts | shared | {"mlp.gate"}}
    if name == "deepseek-v3":
        wanted.add("model.layers.1.mlp.gate.e_score_correction_bias")
    found = {n for n in stored(checkpoint) if n.startswith(("model.layers.0.", "model.layers.1."))}
    assert found == wanted


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v2, latent queries", "deepseek-v3"])
def test_published_names_are_read(name: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(FAMILIES[name])
    names = stored(checkpoint)
    many = {
        "model.layers.1.mlp.shared_experts.down_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
    }
    assert name != "deepseek-v2" or many < set(names)
    scores = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert (scores in names) == (name == "deepseek-v3")
    beyond = {"model.layers.2.eh_proj.weight": np.ones((2, 3), np.float32)}
    save_file(names | beyond, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(dict(FAMILIES[name].fields)))
    found = load_checkpoint(tmp_path)
    assert found.config == checkpoint.config and found.unread == tuple(beyond)
    for own in tensor_shapes(checkpoint.config):
        np.testing.assert_array_equal(found.tensor(own), checkpoint.tensor(own), own)


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v2"])
def test_random_chip_weights_have_the_real_shapes(name: str, dtype: str) -> None:
    config = checkpoint_of(FAMILIES[name]).config
    layout = Layout.of(config, 2)
    drawn = random_chip_weights(layout, dtype, 1, 1)
    built = chip_weights(random_checkpoint(config, 1), layout, dtype, 1)
    for ours, theirs in zip(drawn.layers, built.layers, strict=True):
        assert ours.latent is not None and theirs.latent is not None
        for a, b in ((ours, theirs), (ours.latent, theirs.latent)):
            for f in fields_of(a):
                mine, real = getattr(a, f.name), getattr(b, f.name)
                assert type(mine) is type(real), f.name
                if isinstance(mine, Matrix):
                    assert mine.values.shape == real.values.shape
                    np.testing.assert_array_equal(
                        (mine.values != 0).any(axis=(1, 2)), (real.values != 0).any(axis=(1, 2))
                    )
        for mine, real in zip(ours.latent.factors, theirs.latent.factors, strict=True):
            assert (mine is None) == (real is None)
            assert mine is None or np.array_equal(mine == 0, real == 0)
