"""Qwen2-MoE as it is published: one shared expert, several times as large as the chosen ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from chip.scheduling import CompileError
from chip.spec import ChipSpec
from programs.decoder import compile_decoder, partition_model
from programs.models import CheckpointError, ModelConfig, load_checkpoint, read_config
from programs.models.checkpoint import tensor_shapes
from tests.families import FAMILIES, Family, checkpoint_of

FIELDS = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 77,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 60,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "vocab_size": 67,
}


def written(path: Path, **changes: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**FIELDS, **changes}))
    return path


def test_a_shared_expert_is_read_in_parts(tmp_path: Path) -> None:
    path = written(tmp_path / "m")
    config = read_config(path)
    assert (config.shared_experts, config.shared_gate, config.shares_of_all) == (3, True, True)
    rng = np.random.default_rng(2)
    prefix = "model.layers.0.mlp.shared_expert."
    stored = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in tensor_shapes(config).items()
        if prefix not in name
    }
    for matrix, shape in (("gate", (60, 48)), ("up", (60, 48)), ("down", (48, 60))):
        stored[f"{prefix}{matrix}_proj.weight"] = rng.standard_normal(shape).astype(np.float32)
    save_file(stored, path / "model.safetensors")
    read = load_checkpoint(path)
    assert not read.unread
    rows, columns = np.array([7, 3]), np.array([0, 19, 4])
    for part in range(3):
        own = slice(20 * part, 20 * part + 20)
        for matrix in ("gate", "up", "down"):
            whole = stored[f"{prefix}{matrix}_proj.weight"]
            meant = whole[:, own] if matrix == "down" else whole[own]
            name = f"{prefix}{part}.{matrix}_proj.weight"
            np.testing.assert_array_equal(read.tensor(name), meant)
            np.testing.assert_array_equal(
                read.block(name, rows, columns), meant[np.ix_(rows, columns)]
            )
    written(path, shared_expert_intermediate_size=40)
    with pytest.raises(CheckpointError, match=r"config\.json says \[40, 48\]"):
        load_checkpoint(path)


def test_shared_experts_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as told:
        read_config(written(tmp_path / "m", shared_expert_intermediate_size=50))
    assert (
        "shared_expert_intermediate_size is 50, no multiple of the experts' 20; use a model whose "
        "shared expert is as large as some whole ones"
    ) in str(told.value)


def test_what_does_not_go_with_shared_experts() -> None:
    plain = ModelConfig(48, 1, 4, 4, 12, 20, 67, experts=3, experts_per_token=2)
    for changes, words in (
        ({"shared_experts": 15}, "15 shared experts beside 2 chosen of 3; together they are 16"),
        ({"shared_experts": -1}, "-1 shared experts beside 2 chosen of 3"),
        ({"experts": 1, "experts_per_token": 1, "shared_experts": 1}, "at most, of a router's"),
        ({"shared_gate": True}, "a gate of shared experts, but there are none; give both"),
        (
            {"shares_of_all": True, "expert_bias": True, "activation": "clamped_silu"},
            "shared experts beside experts with biases have no kernels",
        ),
    ):
        with pytest.raises(CheckpointError, match=words):
            replace(plain, **changes)


@pytest.mark.long
def test_slots_that_have_schedules() -> None:
    """16 in int8; in fp16 12, shared experts counted, and more are refused by name."""
    spec = ChipSpec()

    def compiled(name: str, chosen: int, dtype: str) -> None:
        fields = dict(FAMILIES[name].fields) | {"num_experts_per_tok": chosen}
        fields |= {"num_hidden_layers": 1, "first_k_dense_replace": 0}
        fields["num_experts" if name == "qwen3 moe" else "n_routed_experts"] = 40
        model = partition_model(checkpoint_of(Family(fields, {})), 1, dtype)
        compile_decoder(model, spec, 64)

    compiled("qwen3 moe", 16, "int8")
    compiled("qwen3 moe", 12, "fp16")
    compiled("deepseek-v3", 11, "fp16")
    for name, chosen in (("qwen3 moe", 13), ("deepseek-v3", 12)):
        words = "13 experts of a token, shared ones counted: fp16 has schedules for 12 at most; use"
        with pytest.raises(CompileError, match=words):
            compiled(name, chosen, "fp16")
