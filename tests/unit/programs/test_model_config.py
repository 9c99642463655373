"""Configurations of every family: published files are read, what has no kernels is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from programs.decoder import partition_model
from programs.decoder.partition import chip_weights
from programs.models import (
    ARCHITECTURES,
    CheckpointError,
    LayerKind,
    ModelConfig,
    Rope,
    architecture,
    config_of,
    load_checkpoint,
    random_checkpoint,
)
from programs.models.checkpoint import read_config, tensor_shapes

Fields = dict[str, Any]
#: What the models' published config.json files say, fields without a meaning here left out.
PUBLISHED: dict[str, Fields] = {
    "qwen3-8b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "max_position_embeddings": 40960,
        "max_window_layers": 36,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "gemma-2b": {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        "attention_bias": False,
        "head_dim": 256,
        "hidden_act": "gelu",
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "vocab_size": 256000,
    },
    "gemma-7b": {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        "attention_bias": False,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": None,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "max_position_embeddings": 8192,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "vocab_size": 256000,
    },
    "mixtral-8x7b": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "qwen3-30b-a3b": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "mistral-7b": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
}
#: Positions each may have: what it was trained for.
POSITIONS = {
    "qwen3-8b": 40960,
    "gemma-2b": 8192,
    "gemma-7b": 8192,
    "mixtral-8x7b": 32768,
    "qwen3-30b-a3b": 40960,
    "mistral-7b": 32768,
}


def written(path: Path, fields: Fields, **changes: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(fields | changes))
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_the_named_models(name: str, tmp_path: Path) -> None:
    """By name or by file: one shape, and one computation but for the limits of positions."""
    path = written(tmp_path / name, PUBLISHED[name])
    assert architecture(path) == ARCHITECTURES[name]
    config, (_, named) = read_config(path), config_of(name)
    assert config.max_position == POSITIONS[name]
    limits = ("eps", "rope_theta", "max_position", "sliding_window", "layer_kinds")
    for field in ModelConfig.__dataclass_fields__:
        assert field in limits or getattr(config, field) == getattr(named, field), field
    assert config.parameters == ARCHITECTURES[name].parameters
    only_type = {k: v for k, v in PUBLISHED[name].items() if k != "architectures"}
    assert read_config(written(tmp_path / "untitled", only_type)) == config


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, "9 of 8 experts"),
        ("mixtral-8x7b", {"num_local_experts": 1, "num_experts_per_tok": 1}, "without a router"),
        ("mixtral-8x7b", {"num_local_experts": "8"}, "num_local_experts"),
        ("gemma-2b", {"hidden_activation": "gelu"}, "gelu_pytorch_tanh is"),
        ("gemma-7b", {"hidden_act": "silu"}, "activation 'silu'"),
        ("qwen3-8b", {"hidden_act": "gelu_pytorch_tanh"}, "silu is"),
        ("mistral-7b", {"attention_bias": True}, "attention_bias"),
        ("gemma-7b", {"architectures": ["Gemma3nForCausalLM"]}, "Gemma3nForCausalLM"),
        ("qwen3-8b", {"architectures": ["DeepseekV32ForCausalLM"]}, "DeepseekV32ForCausalLM"),
        ("qwen3-8b", {"architectures": ["OPTForCausalLM"]}, "OPTForCausalLM"),
        ("qwen3-8b", {"architectures": None, "model_type": "qwen3_next"}, "qwen3_next"),
        ("qwen3-30b-a3b", {"mlp_only_layers": 3}, "is 3; it must be a list of layers' numbers"),
        ("qwen3-30b-a3b", {"decoder_sparse_step": 0}, "decoder_sparse_step is 0; it must be 1 or"),
        ("qwen3-30b-a3b", {"num_experts": 1}, "num_experts is 1; a model without a router"),
        ("qwen3-30b-a3b", {"num_experts": 257}, "8 of 257 experts"),
    ],
)
def test_what_has_no_kernels_is_refused_in_one_line(
    name: str, changes: Fields, words: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "model", PUBLISHED[name], **changes)
    with pytest.raises(CheckpointError) as caught:
        read_config(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "dense"),
    [
        ({"mlp_only_layers": [3, 0]}, [0, 3]),
        ({"decoder_sparse_step": 2}, list(range(0, 48, 2))),
        (
            {"decoder_sparse_step": 3, "mlp_only_layers": [2]},
            [n for n in range(48) if n == 2 or n % 3 != 2],
        ),
        ({"decoder_sparse_step": 1, "mlp_only_layers": None}, []),
    ],
)
def test_layers_without_experts(changes: Fields, dense: list[int], tmp_path: Path) -> None:
    config = read_config(written(tmp_path / "model", PUBLISHED["qwen3-30b-a3b"], **changes))
    assert [n for n, kind in enumerate(config.layer_kinds) if kind.dense] == dense
    assert config.dense_ffn == (6144 if dense else 0) and config.ffn == 768


def windows_of(path: Path) -> tuple[int, list[int]]:
    """The window, and the layers that have it."""
    config = read_config(path)
    assert config.max_position > config.sliding_window
    return config.sliding_window, [n for n, kind in enumerate(config.layer_kinds) if kind.sliding]


@pytest.mark.parametrize(
    ("changes", "window"),
    [({"sliding_window": None}, 0), ({"sliding_window": 100}, 100), ({"sliding_window": 10**6}, 0)],
)
def test_windows_of_published_configurations(changes: Fields, window: int, tmp_path: Path) -> None:
    """One that no text can exceed is none; Qwen's is switched on, from a layer on."""
    mistral = written(tmp_path / "model", PUBLISHED["mistral-7b"], **changes)
    assert windows_of(mistral) == (window, list(range(32)) if window else [])
    qwen = written(tmp_path / "qwen", PUBLISHED["qwen3-8b"], **changes)
    assert windows_of(qwen) == (0, [])
    on = changes | {"use_sliding_window": True, "max_window_layers": 34}
    layers = [34, 35] if window else []
    assert windows_of(written(qwen, PUBLISHED["qwen3-8b"], **on)) == (window, layers)


def test_layer_types_say_which_layers_have_the_window(tmp_path: Path) -> None:
    types = ["full_attention"] * 36
    types[5] = types[7] = "sliding_attention"
    on = {"use_sliding_window": True, "sliding_window": 64, "layer_types": types}
    path = written(tmp_path / "qwen", PUBLISHED["qwen3-8b"], **on)
    assert windows_of(path) == (64, [5, 7])


SMOLLM3: Fields = PUBLISHED["mistral-7b"] | {
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "num_hidden_layers": 6,
    "sliding_window": None,
}


@pytest.mark.parametrize(
    ("changes", "still"),
    [
        ({}, [3]),
        ({"no_rope_layer_interval": 2}, [1, 3, 5]),
        ({"no_rope_layers": [0, 1, 1, 1, 1, 0]}, [0, 5]),
        ({"no_rope_layers": [1] * 6}, []),
    ],
)
def test_layers_of_smollm3_without_rotary_positions(
    changes: Fields, still: list[int], tmp_path: Path
) -> None:
    config = read_config(written(tmp_path / "model", SMOLLM3, **changes))
    assert [n for n in range(6) if config.kind_of(n).second_rope] == still
    assert len(config.ropes) == 1 + bool(still)
    assert not still or config.ropes[1].theta == 0


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("mistral-7b", {"sliding_window": 0}, "sliding_window is 0; it must be null or a number"),
        ("mistral-7b", {"layer_types": ["full_attention"] * 32}, "differ from the layers that"),
        ("qwen3-8b", {"layer_types": "full"}, "it must be a list of 36, one for each layer"),
        ("qwen3-8b", {"layer_types": ["chunked_attention"] * 36}, "'chunked_attention', which is"),
        ("qwen3-8b", {"layer_types": ["sliding_attention"] * 36}, "but there is no sliding window"),
        ("smollm3", {"no_rope_layers": [1, 2]}, "it must be a list of 6 zeros and ones"),
        ("smollm3", {"no_rope_layers": [[1]] * 6}, "it must be a list of 6 zeros and ones"),
        ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0; it must be 1"),
    ],
)
def test_layers_that_cannot_be_are_refused(
    name: str, changes: Fields, words: str, tmp_path: Path
) -> None:
    fields = SMOLLM3 if name == "smollm3" else PUBLISHED[name]
    with pytest.raises(CheckpointError) as caught:
        read_config(written(tmp_path / "model", fields, **changes))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_layers_name_what_their_model_has() -> None:
    one = ModelConfig(8, 2, 1, 1, 8, 8, 8)
    sliding, second = LayerKind(sliding=True), LayerKind(second_rope=True)
    for changes, words in (
        ({"layer_kinds": (sliding,)}, "kinds of 1 layers are given, but there are 2"),
        ({"layer_kinds": (sliding, sliding)}, "sliding_window is not given; say how many"),
        ({"layer_kinds": (second, second)}, "but there is one alone; give both"),
        ({"sliding_window": -1}, "sliding_window is -1; it must be a number of positions"),
    ):
        with pytest.raises(CheckpointError, match=words):
            replace(one, **changes)  # type: ignore[arg-type]
    several = replace(one, experts=3, dense_ffn=8, layer_kinds=(LayerKind(), LayerKind(dense=True)))
    for changes in ({"dense_ffn": 0}, {"layer_kinds": ()}, {"experts": 1}):
        with pytest.raises(CheckpointError, match="they need a size, and others that have experts"):
            replace(several, **changes)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="second table is inf; it must be finite, 0 or more"):
        Rope(float("inf"))


@pytest.mark.parametrize("name", ["qwen3-8b", "gemma-2b", "mixtral-8x7b", "qwen3-30b-a3b"])
def test_stored_checkpoints_of_every_family_are_partitioned(name: str, tmp_path: Path) -> None:
    """The tensors' published names; a file's chip holds what the same model's in memory does."""
    small: Fields = {
        "hidden_size": 48,
        "intermediate_size": 56,
        "num_attention_heads": 4,
        "head_dim": 12,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "vocab_size": 67,
        "num_local_experts": 3,
        "num_experts": 9,
        "moe_intermediate_size": 24,
    }
    path = written(tmp_path / name, PUBLISHED[name], **small)
    config = read_config(path)
    drawn = random_checkpoint(config, 5)
    tensors = {key: drawn.tensor(key) for key in tensor_shapes(config)}
    save_file(tensors, path / "model.safetensors")
    stored = load_checkpoint(path)
    assert stored.config == config
    layout = partition_model(stored, 2, "int8").layout
    mine, real = (chip_weights(c, layout, "int8", 1).layers[0] for c in (stored, drawn))
    for field in ("q", "gate", "down", "router"):
        if getattr(real, field) is not None:
            np.testing.assert_array_equal(getattr(mine, field).values, getattr(real, field).values)
    special = {
        "qwen3-8b": "self_attn.q_norm.weight",
        "gemma-2b": "mlp.up_proj.weight",
        "mixtral-8x7b": "block_sparse_moe.experts.2.w3.weight",
        "qwen3-30b-a3b": "mlp.experts.8.up_proj.weight",
    }[name]
    del tensors[f"model.layers.0.{special}"]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is missing"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score_cap": 1e7}, "score_cap is 10000000.0; it must be from 1e-06 to 1,000,000, or 0"),
        ({"logit_cap": -1.0}, "logit_cap is -1.0; it must be from"),
        ({"query_scale": float("nan")}, "query_scale is nan; it must be from"),
        (
            {"head_norms": True, "wide_norms": True},
            "query heads are normed each alone or all together, not both",
        ),
        (
            {"pre_norms": False},
            "no block has a norm, before it or after it; give it one",
        ),
        (
            {"pre_norms": False, "post_norms": True, "experts": 4, "experts_per_token": 2},
            "a router takes x normed; use a model with norms before its FFNs",
        ),
    ],
)
def test_norms_and_caps_that_cannot_be(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(words)):
        ModelConfig(64, 1, 4, 2, 16, 96, 64, **change)
