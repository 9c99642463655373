"""Llama 4 as it is published: other names, experts stacked, heads' halves in turns."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from programs.models import (
    CheckpointError,
    ModelConfig,
    inverse_frequencies,
    load_checkpoint,
    read_config,
)

Tensors = dict[str, NDArray[np.float32]]

H, F, E, D = 48, 20, 3, 12
TEXT = {
    "model_type": "llama4_text",
    "hidden_size": H,
    "intermediate_size": F,
    "intermediate_size_mlp": 77,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": D,
    "num_local_experts": E,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 1,
    "no_rope_layers": [1, 0],
    "layer_types": ["chunked_attention", "full_attention"],
    "max_position_embeddings": 10485760,
    "vocab_size": 67,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
    },
}


def written(path: Path, **changes: Any) -> Path:
    """A directory with the configuration of the whole model, of which the text part is read."""
    path.mkdir(exist_ok=True)
    fields = {
        "architectures": ["Llama4ForConditionalGeneration"],
        "text_config": {n: v for n, v in {**TEXT, **changes}.items() if v is not ...},
    }
    (path / "config.json").write_text(json.dumps(fields))
    return path


def test_the_configuration_is_what_the_family_computes(tmp_path: Path) -> None:
    config = read_config(written(tmp_path / "m"))
    assert (config.experts, config.experts_per_token, config.shared_experts) == (E, 1, 1)
    assert config.input_shares and config.head_norms and not config.head_gains
    assert [(k.second_rope, k.plain_heads) for k in config.layer_kinds] == [
        (False, False),
        (True, True),
    ]
    assert config.max_position == 8191  # beyond it queries grow and chunks begin
    own = read_config(written(tmp_path / "m", floor_scale=100, attention_chunk_size=64))
    assert own.max_position == 64
    both = {"attn_temperature_tuning": False, "attention_chunk_size": None}
    assert read_config(written(tmp_path / "m", **both)).max_position == 10485760
    bare = read_config(written(tmp_path / "m", use_qk_norm=False))
    assert not bare.head_norms and not any(kind.plain_heads for kind in bare.layer_kinds)
    every = read_config(written(tmp_path / "m", no_rope_layers=[], num_hidden_layers=4))
    assert [kind.second_rope for kind in every.layer_kinds] == [False, False, False, True]


def test_equal_factors_of_frequencies_leave_nothing_between(tmp_path: Path) -> None:
    config = read_config(written(tmp_path / "m"))
    plain = inverse_frequencies(replace(config, rope_scaling=None))
    turns = 64 * plain / (2 * math.pi)
    wanted = np.where(turns > 1, plain, plain / 16)
    np.testing.assert_allclose(inverse_frequencies(config), wanted, rtol=1e-14)
    assert 0 < (turns > 1).sum() < len(plain)


def drawn() -> tuple[Tensors, Tensors]:
    """The tensors of a file as published, and what they mean by the product's names."""
    rng = np.random.default_rng(4)

    def draw(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    stored = {"model.embed_tokens.weight": draw(67, H), "model.norm.weight": draw(H)}
    meant = dict(stored)
    for layer in range(2):
        at = f"model.layers.{layer}."
        same = {
            "input_layernorm.weight": draw(H),
            "post_attention_layernorm.weight": draw(H),
            "self_attn.v_proj.weight": draw(2 * D, H),
            "self_attn.o_proj.weight": draw(H, 4 * D),
        }
        stored |= {at + name: of for name, of in same.items()}
        meant |= {at + name: of for name, of in same.items()}
        for part, heads in (("q", 4), ("k", 2)):
            rows = draw(heads, D, H)
            stored[f"{at}self_attn.{part}_proj.weight"] = rows.reshape(-1, H)
            halves = np.concatenate([rows[:, 0::2], rows[:, 1::2]], axis=1)
            meant[f"{at}self_attn.{part}_proj.weight"] = halves.reshape(-1, H)
        router, both, down = draw(E, H), draw(E, H, 2 * F), draw(E, F, H)
        stored[f"{at}feed_forward.router.weight"] = meant[f"{at}mlp.gate.weight"] = router
        stored[f"{at}feed_forward.experts.gate_up_proj"] = both
        stored[f"{at}feed_forward.experts.down_proj"] = down
        for e in range(E):
            meant[f"{at}mlp.experts.{e}.gate_proj.weight"] = both[e, :, :F].T
            meant[f"{at}mlp.experts.{e}.up_proj.weight"] = both[e, :, F:].T
            meant[f"{at}mlp.experts.{e}.down_proj.weight"] = down[e].T
        for matrix, shape in (("gate", (F, H)), ("up", (F, H)), ("down", (H, F))):
            shared = draw(*shape)
            stored[f"{at}feed_forward.shared_expert.{matrix}_proj.weight"] = shared
            meant[f"{at}mlp.shared_expert.0.{matrix}_proj.weight"] = shared
    head = draw(67, H)
    stored = {"language_model." + name: of for name, of in stored.items()}
    stored |= {"language_model.lm_head.weight": head, "vision_model.patch.weight": draw(3, 3)}
    meant["lm_head.weight"] = head
    return stored, meant


def test_published_names_and_orders_are_read(tmp_path: Path) -> None:
    path = written(tmp_path / "m")
    stored, meant = drawn()
    save_file(stored, path / "model.safetensors")
    read = load_checkpoint(path)
    assert read.unread == ("vision_model.patch.weight",)
    rows, columns = np.array([7, 3, 1]), np.array([0, 19, 4])
    for name, values in meant.items():
        np.testing.assert_array_equal(read.tensor(name), values, name)
        if values.ndim == 2 and len(values) > 7:
            found = read.block(name, rows, columns)
            np.testing.assert_array_equal(found, values[np.ix_(rows, columns)], name)


def test_every_tensor_that_is_left_out_is_named(tmp_path: Path) -> None:
    """The file's own name is told, whichever of a layer it is."""
    path = written(tmp_path / "m")
    stored, _ = drawn()
    own = [name for name in stored if ".layers.1." in name]
    assert len(own) == 12
    for name in own:
        save_file({n: of for n, of in stored.items() if n != name}, path / "model.safetensors")
        with pytest.raises(CheckpointError) as told:
            load_checkpoint(path)
        assert f"tensor {name!r} is missing; fetch every safetensors file" in str(told.value)


def test_experts_stored_one_by_one_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "m")
    stored, _ = drawn()
    stem = "language_model.model.layers.0.feed_forward.experts."
    both = stored.pop(f"{stem}gate_up_proj")
    for e in range(E):
        stored[f"{stem}{e}.gate_proj.weight"] = np.ascontiguousarray(both[e, :, :F].T)
        stored[f"{stem}{e}.up_proj.weight"] = np.ascontiguousarray(both[e, :, F:].T)
    save_file(stored, path / "model.safetensors")
    with pytest.raises(CheckpointError, match="the files have names that are not known here") as e:
        load_checkpoint(path)
    assert f"{stem}gate_up_proj' is missing" in str(e.value)
    assert f"{stem}0.gate_proj.weight'" in str(e.value)


@pytest.mark.parametrize(
    "changes", [{"interleave_moe_layer_step": 2}, {"moe_layers": [1]}], ids=str
)
def test_layers_without_experts_are_read(changes: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path / "m", **changes)
    stored, meant = drawn()
    begin, rng = "language_model.model.layers.0.feed_forward.", np.random.default_rng(5)
    stored = {name: of for name, of in stored.items() if not name.startswith(begin)}
    for part, shape in (("gate", (77, H)), ("up", (77, H)), ("down", (H, 77))):
        own = rng.standard_normal(shape).astype(np.float32)
        stored[f"{begin}{part}_proj.weight"] = meant[f"model.layers.0.mlp.{part}_proj.weight"] = own
    save_file(stored, path / "model.safetensors")
    read = load_checkpoint(path)
    assert [kind.dense for kind in read.config.layer_kinds] == [True, False]
    assert read.config.dense_ffn == 77 and read.unread == ("vision_model.patch.weight",)
    absent = ("model.layers.0.mlp.gate.", "model.layers.0.mlp.experts", "model.layers.0.mlp.shared")
    for name in [name for name in meant if not name.startswith(absent)]:
        np.testing.assert_array_equal(read.tensor(name), meant[name], name)


def test_every_so_many_layers_have_experts(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as told:
        read_config(written(tmp_path / "m", interleave_moe_layer_step=0))
    assert str(told.value).endswith("interleave_moe_layer_step is 0; it must be 1 or more")


@pytest.mark.parametrize("named", [5, ["a", 1], [0, True], {"0": 1}], ids=str)
def test_layers_with_experts_are_a_list_of_numbers(named: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as told:
        read_config(written(tmp_path / "m", moe_layers=named))
    assert "moe_layers is " in str(told.value)
    assert str(told.value).endswith("; it must be a list of layers' numbers")
    assert read_config(written(tmp_path / "m", moe_layers=[1, 0])).experts == E


def test_inputs_are_scaled_by_one_logit() -> None:
    plain = ModelConfig(48, 1, 4, 4, 12, 20, 67, experts=3, experts_per_token=2)
    with pytest.raises(CheckpointError, match="shares of what goes into experts are of one logit"):
        replace(plain, input_shares=True, shares_of_all=True)
