"""Configurations of Gemma 2, Gemma 3 and OLMo-2: what published files say, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from programs.models import CheckpointError, ModelConfig, Rope, RopeScaling, architecture
from programs.models.families import read_config

Fields = dict[str, Any]
GEMMA2_2B: Fields = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "attention_bias": False,
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
GEMMA3_1B: Fields = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
OLMO2_7B: Fields = {
    "architectures": ["Olmo2ForCausalLM"],
    "model_type": "olmo2",
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": None,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "vocab_size": 100352,
}
FULL, SLIDING = "full_attention", "sliding_attention"


def read(tmp_path: Path, fields: Fields, **changes: Any) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps({**fields, **changes}))
    return read_config(tmp_path)


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [(GEMMA2_2B, 2_614_341_888), (GEMMA3_1B, 999_885_952), (OLMO2_7B, 7_298_617_344)],
    ids=["gemma-2-2b", "gemma-3-1b", "olmo-2-7b"],
)
def test_parameters_are_the_published_totals(
    fields: Fields, parameters: int, tmp_path: Path
) -> None:
    config = read(tmp_path, fields)
    assert config.parameters == parameters and not config.plain
    assert architecture(tmp_path / "config.json").parameters == parameters


def sliding(config: ModelConfig) -> list[int]:
    return [n for n in range(config.layers) if config.kind_of(n).sliding]


def second(config: ModelConfig) -> list[int]:
    return [n for n in range(config.layers) if config.kind_of(n).second_rope]


def test_gemma_2_caps_and_every_other_layer(tmp_path: Path) -> None:
    config = read(tmp_path, GEMMA2_2B)
    assert (config.score_cap, config.logit_cap, config.query_scale) == (50.0, 30.0, 1 / 16)
    assert sliding(config) == list(range(0, 26, 2)) and config.sliding_window == 4096
    assert config.post_norms and config.pre_norms and config.tied and config.second_rope is None
    left_out = {n: v for n, v in GEMMA2_2B.items() if "soft" not in n and n != "sliding_window"}
    assert read(tmp_path, left_out) == config
    none = read(tmp_path, GEMMA2_2B, attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (none.score_cap, none.logit_cap) == (0.0, 0.0)
    assert read(tmp_path, GEMMA2_2B, query_pre_attn_scalar=144).query_scale == 1 / 12
    types = [FULL] * 25 + [SLIDING]
    assert sliding(read(tmp_path, GEMMA2_2B, layer_types=types)) == [25]


def test_gemma_3_has_two_rotary_tables(tmp_path: Path) -> None:
    config = read(tmp_path, GEMMA3_1B)
    usual = [n for n in range(26) if n not in (5, 11, 17, 23)]
    assert sliding(config) == second(config) == usual and config.sliding_window == 512
    assert config.head_norms and (config.score_cap, config.logit_cap) == (0.0, 0.0)
    assert config.ropes == (Rope(1e6), Rope(1e4))
    types = [FULL if n % 6 == 5 else SLIDING for n in range(26)]
    assert read(tmp_path, GEMMA3_1B, sliding_window_pattern=2, layer_types=types) == config
    assert sliding(read(tmp_path, GEMMA3_1B, sliding_window_pattern=2)) == list(range(0, 26, 2))
    # A window as long as the text changes nothing, but the tables stay two.
    wide = read(tmp_path, GEMMA3_1B, sliding_window=32768)
    assert sliding(wide) == [] and second(wide) == usual
    linear = {"rope_type": "linear", "factor": 8.0}
    stretched = read(tmp_path, GEMMA3_1B, rope_scaling=linear)
    assert stretched.ropes == (Rope(1e6, RopeScaling("linear", 8.0)), Rope(1e4))
    old = ("rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern")
    fields = {name: value for name, value in GEMMA3_1B.items() if name not in old}
    tables = {
        FULL: {**linear, "rope_theta": 1e6},
        SLIDING: {"rope_type": "default", "rope_theta": 1e4},
    }
    assert read(tmp_path, fields, rope_parameters=tables) == stretched


def test_olmo_2_norms_what_blocks_give(tmp_path: Path) -> None:
    config = read(tmp_path, OLMO2_7B)
    assert (config.pre_norms, config.post_norms, config.wide_norms) == (False, True, True)
    assert config.kv_heads == 32 and config.head_dim == 128 and not config.head_norms
    assert not config.layer_kinds and config.query_scale == 0.0


@pytest.mark.parametrize(
    ("fields", "change", "words"),
    [
        (
            GEMMA3_1B,
            {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"},
            "architecture ['Gemma3ForConditionalGeneration'] is not supported",
        ),
        (
            GEMMA3_1B,
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention is set, which is not supported; use a model that attends "
            "to the past alone",
        ),
        (
            GEMMA2_2B | {"architectures": ["GemmaForCausalLM"]},
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention is set, which is not supported",
        ),
        (GEMMA3_1B, {"rope_local_base_freq": 0}, "rope_theta is 0; it must be positive and finite"),
        (GEMMA3_1B, {"rope_local_base_freq": -1}, "rope_theta of the second table is -1.0"),
        (GEMMA2_2B, {"layer_types": [["a"]] * 26}, "layer_types has ['a'], which is not supported"),
        (
            GEMMA2_2B,
            {"query_pre_attn_scalar": 0},
            "query_pre_attn_scalar is 0.0; it must be positive",
        ),
        (
            GEMMA2_2B,
            {"attn_logit_softcapping": 0},
            "attn_logit_softcapping is 0.0; it must be null or positive",
        ),
        (GEMMA2_2B, {"final_logit_softcapping": -1}, "final_logit_softcapping is -1.0; it must be"),
        (GEMMA2_2B, {"final_logit_softcapping": "x"}, "final_logit_softcapping is 'x'; it must be"),
        (GEMMA2_2B, {"sliding_window": None}, "sliding_window is null"),
        (GEMMA2_2B, {"num_key_value_heads": None}, "num_key_value_heads is null"),
        (
            GEMMA3_1B,
            {"sliding_window_pattern": 0},
            "sliding_window_pattern is 0; it must be 1 or more",
        ),
        (
            GEMMA3_1B,
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            "it must be an object of full_attention and sliding_attention",
        ),
        (
            GEMMA3_1B,
            {
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "rope_parameters": {FULL: {"rope_theta": 1e6}, SLIDING: {"rope_theta": 1e4}},
            },
            "rope_scaling and rope_parameters are given, and which of them holds differs; keep "
            "one of the two tables",
        ),
        (OLMO2_7B, {"attention_bias": True}, "attention_bias is set, which is not supported"),
        (GEMMA2_2B, {"attention_bias": True}, "attention_bias is set, which is not supported"),
        (OLMO2_7B, {"hidden_act": "gelu"}, "activation 'gelu' is not supported"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    fields: Fields, change: Fields, words: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(words)) as told:
        read(tmp_path, fields, **change)
    assert "\n" not in str(told.value)
