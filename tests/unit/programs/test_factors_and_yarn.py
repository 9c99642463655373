"""Phi-3, Granite and yarn: what their configurations say, and what is refused by name."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from programs.decoder import partition_model
from programs.models import (
    CheckpointError,
    ModelConfig,
    RopeScaling,
    inverse_frequencies,
    load_checkpoint,
    random_checkpoint,
    read_config,
)
from programs.models.config import tensor_shapes
from tests.families import FAMILIES
from tests.oracles.families_float64 import rotary

Fields = dict[str, Any]
#: As published for models of 32,768 positions that are stretched to four times as many.
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def written(path: Path, name: str, **changes: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**FAMILIES[name].fields, **changes}))
    return path


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"truncate": False},
        {"beta_fast": 8, "beta_slow": 2},
        {"attention_factor": 1.5},
        {"mscale": 1.0, "mscale_all_dim": 0.5},
        {"factor": 1.0},
        {"original_max_position_embeddings": None},
        {"original_max_position_embeddings": 10},
    ],
)
@pytest.mark.parametrize("theta", [500.0, 1e6])
def test_yarn_is_what_its_paper_says(more: Fields, theta: float, tmp_path: Path) -> None:
    fields = {"rope_theta": theta, "rope_scaling": YARN | more}
    config = read_config(written(tmp_path / "m", "qwen2", **fields))
    whole = {**FAMILIES["qwen2"].fields, **fields}
    speeds, size = rotary(whole, config.head_dim)
    np.testing.assert_allclose(inverse_frequencies(config), speeds, rtol=1e-13)
    assert math.isclose(config.ropes[0].size, size, rel_tol=1e-15)
    assert config.plain is False


@pytest.mark.parametrize("name", ["llama, llama3", "llama, yarn"])
def test_a_trained_context_beside_the_table_comes_before_the_one_inside(
    name: str, tmp_path: Path
) -> None:
    """So transformers 5 has it; where neither is given, yarn's is that of all positions."""
    own = "original_max_position_embeddings"

    def trained(**fields: Any) -> int:
        scaling = read_config(written(tmp_path / "m", name, **fields)).rope_scaling
        assert scaling is not None
        return scaling.original_max_position

    table = FAMILIES[name].fields["rope_scaling"]
    assert table[own] == trained() == trained(**{own: None}) == 32
    assert trained(**{own: 64}) == trained(rope_scaling=table | {own: None}, **{own: 64}) == 64


def test_qwen2_has_its_biases_whatever_a_flag_says(tmp_path: Path) -> None:
    """Its class knows no flag ``attention_bias``."""
    plain = read_config(written(tmp_path / "m", "qwen2"))
    for flag in (True, False):
        read = read_config(written(tmp_path / "m", "qwen2", attention_bias=flag))
        assert read == plain and read.qkv_bias and not read.o_bias


def test_yarn_makes_cosines_and_sines_larger() -> None:
    config = ModelConfig(8, 1, 1, 1, 8, 8, 8, rope_scaling=RopeScaling("yarn", 4.0, size=1.25))
    ((cos, sin),) = partition_model(random_checkpoint(config, 0), 1).rope_rows(0)
    assert set(cos.tolist()) == {0.0, 1.25} and not sin.any()
    assert not config.plain and replace(config, rope_scaling=None).plain


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("phi3, window", {"rope_scaling": {"type": "longrope"}}, "rope scaling 'longrope' is not"),
        ("phi3, window", {"rope_scaling": YARN}, "'yarn' of a phi3 model means longrope, which is"),
        ("phi3, window", {"partial_rotary_factor": 0.75}, "partial_rotary_factor is 0.75, which"),
        ("phi3, window", {"attention_bias": True}, "attention_bias is set, which is not supported"),
        ("granite", {"mlp_bias": True}, "mlp_bias is set, which is not supported"),
        ("granite", {"logits_scaling": 0}, "logits_scaling is 0.0; logits are divided by"),
        ("granite", {"attention_multiplier": 0}, "attention_multiplier is 0; scores need another"),
        ("granite", {"residual_multiplier": -1}, "residual_factor is -1.0; what is multiplied"),
        ("qwen2", {"rope_scaling": YARN | {"beta_fast": 1}}, "beta_slow is 1.0 and beta_fast 1.0"),
        (
            "qwen2",
            {"rope_scaling": YARN | {"mscale": 1, "mscale_all_dim": -10 / math.log(4)}},
            "mscale_all_dim is -7.2",
        ),
        ("qwen2", {"rope_scaling": YARN, "rope_theta": 1}, "rope_theta is 1.0; yarn needs more"),
        (
            "qwen2",
            {"rope_scaling": YARN | {"attention_factor": -1}},
            "attention_factor is -1.0; use one above 0",
        ),
    ],
)
def test_what_has_no_kernels_is_refused_by_name(
    name: str, changes: Fields, words: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_config(written(tmp_path / "m", name, **changes))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_factor_before_a_norm_is_refused() -> None:
    with pytest.raises(CheckpointError, match="a factor of what a norm gives has no effect"):
        ModelConfig(8, 1, 1, 1, 8, 8, 8, post_norms=True, residual_factor=0.5)


def test_phi3_is_read_with_its_fused_matrices(tmp_path: Path) -> None:
    path = written(tmp_path / "phi", "phi3, window")
    config = read_config(path)
    assert config.sliding_window == 6 and all(kind.sliding for kind in config.layer_kinds)
    drawn = random_checkpoint(config, 5)
    tensors = {name: drawn.tensor(name) for name in tensor_shapes(config)}
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}"
        for whole, parts in (
            ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            rows = [tensors.pop(f"{prefix}.{part}.weight") for part in parts]
            tensors[f"{prefix}.{whole}.weight"] = np.concatenate(rows)
    save_file(tensors, path / "model.safetensors")
    read = load_checkpoint(path)
    for name in tensor_shapes(config):
        np.testing.assert_array_equal(read.tensor(name), drawn.tensor(name))


@pytest.mark.parametrize(
    ("scaling", "positions"),
    [
        ({"type": "linear", "factor": 4.0}, 8192),
        ({"type": "linear", "factor": 1e300}, 2**31 - 1),
        ({**YARN, "original_max_position_embeddings": 512}, 2048),
        ({**YARN, "original_max_position_embeddings": 2048}, 8192),
        ({"type": "yarn", "factor": 2.5}, 5120),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
            2048,
        ),
    ],
)
def test_a_stretched_table_reaches_further(scaling: Fields, positions: int, tmp_path: Path) -> None:
    """A model of 2,048 positions stretched four times was held to its 2,048."""
    fields = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 64,
        "max_position_embeddings": 2048,
        "rope_scaling": scaling,
    }
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    assert read_config(tmp_path).max_position == positions
