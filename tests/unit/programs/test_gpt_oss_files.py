"""gpt-oss as published: experts stacked, gates and ups in turns, 4-bit numbers with scales."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from programs.decoder import PartitionError, partition_model
from programs.models import CheckpointError, ModelConfig, load_checkpoint, read_config
from programs.models.checkpoint import tensor_shapes

Tensors = dict[str, NDArray[Any]]

HIDDEN, FFN, EXPERTS = 64, 96, 3
FIELDS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 67,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000,
    "rope_scaling": None,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "quantization_config": {"quant_method": "mxfp4"},
}
#: What the sixteen codes of e2m1 mean, as the specification of microscaling formats lists them.
HALVES = (0, 1, 2, 3, 4, 6, 8, 12)


def element(code: int) -> float:
    """A 4-bit number: the highest bit is the sign."""
    return (-1.0 if code > 7 else 1.0) * HALVES[code % 8] / 2


def packed(rng: np.random.Generator, rows: int, columns: int) -> tuple[Tensors, NDArray[Any]]:
    """Stacked blocks and scales, and the matrices [experts, rows, columns] that they mean."""
    codes = rng.integers(0, 16, (EXPERTS, rows, columns))
    scales = rng.integers(118, 126, (EXPERTS, rows, columns // 32)).astype(np.uint8)
    pairs = codes.reshape(EXPERTS, rows, columns // 32, 16, 2)
    blocks = (pairs[..., 0] + 16 * pairs[..., 1]).astype(np.uint8)
    values = np.vectorize(element)(codes).astype(np.float64)
    values *= 2.0 ** (np.repeat(scales, 32, axis=2).astype(np.float64) - 127)
    return {"_blocks": blocks, "_scales": scales}, values


def published(path: Path, whole: bool = False, **changes: Any) -> tuple[Path, Tensors]:
    """A checkpoint directory, and what its tensors mean by the product's names.

    whole: matrices of experts are stored as float32, their columns first.
    """
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**FIELDS, **changes}))
    rng = np.random.default_rng(5)
    stored: Tensors = {}
    meant: Tensors = {}
    for name, shape in tensor_shapes(read_config(path)).items():
        if ".experts." not in name:
            stored[name] = meant[name] = rng.standard_normal(shape).astype(np.float32)
    for layer in range(2):
        stem = f"model.layers.{layer}.mlp.experts."
        for matrix, rows, columns in (("gate_up", 2 * FFN, HIDDEN), ("down", HIDDEN, FFN)):
            parts, values = packed(rng, rows, columns)
            bias = rng.standard_normal((EXPERTS, rows)).astype(np.float32)
            if whole:
                parts = {"": np.ascontiguousarray(values.astype(np.float32).swapaxes(1, 2))}
            stored |= {f"{stem}{matrix}_proj{end}": of for end, of in parts.items()}
            stored[f"{stem}{matrix}_proj_bias"] = bias
            for e in range(EXPERTS):
                own = {"down": slice(None)}
                if matrix == "gate_up":
                    own = {"gate": slice(0, None, 2), "up": slice(1, None, 2)}
                for part, take in own.items():
                    meant[f"{stem}{e}.{part}_proj.weight"] = values[e, take]
                    meant[f"{stem}{e}.{part}_proj.bias"] = bias[e, take]
    save_file(stored, path / "model.safetensors")
    return path, meant


def changed(path: Path, name: str, value: NDArray[Any] | None) -> Path:
    """The directory with one tensor of its file replaced, or left out."""
    tensors: Mapping[str, NDArray[Any]] = load_file(path / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if n != name}
    save_file(kept if value is None else {**kept, name: value}, path / "model.safetensors")
    return path


@pytest.mark.parametrize("whole", [False, True])
def test_every_published_tensor_is_read_exactly(whole: bool, tmp_path: Path) -> None:
    path, meant = published(tmp_path / "m", whole)
    checkpoint = load_checkpoint(path)
    assert not checkpoint.unread
    assert set(meant) == set(tensor_shapes(checkpoint.config))
    rng = np.random.default_rng(1)
    for name, values in meant.items():
        assert np.array_equal(checkpoint.tensor(name).astype(np.float64), values), name
        if values.ndim == 2:
            rows, columns = (rng.integers(0, extent, 9) for extent in values.shape)
            found = checkpoint.block(name, rows, columns)
            assert np.array_equal(found.astype(np.float64), values[np.ix_(rows, columns)]), name


def test_the_configuration_is_what_the_family_computes(tmp_path: Path) -> None:
    config = read_config(published(tmp_path / "m")[0])
    assert config.sinks and config.expert_bias and config.qkv_bias and config.o_bias
    assert (config.activation, config.swiglu_limit) == ("clamped_silu", 7.0)
    assert [kind.sliding for kind in config.layer_kinds] == [True, False]
    assert (config.experts, config.experts_per_token, config.sliding_window) == (3, 2, 128)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": ...}, "rope_scaling of a gpt-oss model is not given; add it, null if"),
        ({"quantization_config": {"quant_method": "awq"}}, "the weights are already quantised"),
        ({"swiglu_limit": 0}, "swiglu_limit is 0.0; it must be from 1e-06 to 1,000,000"),
        ({"swiglu_limit": 1e39}, r"swiglu_limit is 1e\+39; it must be from 1e-06 to 1,000,000"),
        ({"swiglu_limit": 1e-60}, "swiglu_limit is 1e-60; it must be from 1e-06 to 1,000,000"),
        ({"swiglu_limit": math.nan}, "swiglu_limit is nan; it must be from 1e-06 to 1,000,000"),
        (
            {"swiglu_alpha": 1.5},
            "swiglu_alpha is 1.5, for which there are no kernels; use a model whose gates have 1.7",
        ),
    ],
)
def test_what_is_not_known_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    fields = {n: v for n, v in {**FIELDS, **changes}.items() if v is not ...}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=words):
        read_config(tmp_path)


def test_cut_gates_and_biases_of_experts_go_together() -> None:
    plain = ModelConfig(64, 1, 4, 2, 16, 96, 67, experts=3)
    with pytest.raises(CheckpointError) as told:
        replace(plain, expert_bias=True)
    assert str(told.value) == (
        "activation 'silu' with biases of experts True; clamped_silu and they are known together, "
        "of several experts"
    )
    with pytest.raises(CheckpointError, match="of several experts"):
        replace(plain, experts=1, activation="clamped_silu", expert_bias=True)


def test_damaged_scales_are_refused(tmp_path: Path) -> None:
    path, _ = published(tmp_path / "m")
    name = "model.layers.1.mlp.experts.down_proj_scales"
    scales = np.full((EXPERTS, HIDDEN, FFN // 32), 120, np.uint8)
    for wrong in (None, scales[:, :, :2], scales.astype(np.float32)):
        changed(path, name, wrong)
        with pytest.raises(CheckpointError) as told:
            load_checkpoint(path)
        assert (
            "are no 4-bit numbers in blocks of 32 with a byte of scale for each; fetch the model"
        ) in str(told.value)
    scales[1, 5, 1] = 255
    changed(path, name, scales)
    with pytest.raises(PartitionError, match="holds a NaN or infinity"):
        partition_model(load_checkpoint(path), 1).chip(0)


@pytest.mark.parametrize("end", ["_blocks", "_scales"])
@pytest.mark.parametrize("times", [0.5, 2, 0.9])
def test_bytes_of_4_bit_numbers_are_as_many_as_their_shape_says(
    end: str, times: float, tmp_path: Path
) -> None:
    path, _ = published(tmp_path / "m")
    load_checkpoint(path)
    name = f"model.layers.1.mlp.experts.down_proj{end}"
    file = path / "model.safetensors"
    shape = load_file(file)[name].shape
    changed(path, name, np.zeros(int(np.prod(shape) * times), np.uint8))
    length = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + length])
    header[name]["shape"] = list(shape)  # as it was, of other bytes
    text, rest = json.dumps(header).encode(), file.read_bytes()[8 + length :]
    file.write_bytes(len(text).to_bytes(8, "little") + text + rest)
    with pytest.raises(CheckpointError) as told:
        load_checkpoint(path)
    assert f"tensor {name!r} has the wrong number of bytes" in str(told.value)


def test_experts_of_another_shape_are_refused(tmp_path: Path) -> None:
    path, _ = published(tmp_path / "m")
    (path / "config.json").write_text(json.dumps({**FIELDS, "num_local_experts": 4}))
    with pytest.raises(CheckpointError, match=r"config\.json says"):
        load_checkpoint(path)
