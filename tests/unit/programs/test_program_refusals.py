"""What the programs' layer refuses, in its own words: shapes, files, plans, products."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from chip.scheduling import CompileError
from chip.spec import ChipSpec
from programs.convnet import compile_network, mlp, resnet50
from programs.encoder import EncoderShape, compile_encoder
from programs.faults import FaultPlanError, load_fault_plan
from programs.matmul import MatmulShape, compile_matmul
from programs.models import (
    ARCHITECTURES,
    CheckpointError,
    ModelConfig,
    load_checkpoint,
    random_checkpoint,
)
from programs.models.config import RopeScaling, tensor_shapes
from programs.models.families import read_config
from programs.plans import compile_plan

SPEC = ChipSpec()
SMALL = ModelConfig(64, 1, 2, 1, 32, 96, 64, tied=True)
TWO_CYCLES = replace(SPEC, alu_cycles=2)
SHAPE = MatmulShape(40, 50, 60, dtype="int8")
ENCODER = EncoderShape(1, 64, 2, 96, 16)


def planned(**asked: Any) -> object:
    return compile_plan("small", SMALL, asked.pop("spec", SPEC), context=8, **asked)


#: name: (what is asked for, the error, its text)
REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "groups": (lambda: planned(chips=8, tp=3), Exception, "8 chips in groups of 3: use a multiple"),
    "alu": (
        lambda: planned(spec=TWO_CYCLES),
        CompileError,
        "alu_cycles is 2: the decoder's kernels are written for 3",
    ),
    "alu's entry": (
        lambda: planned(spec=replace(SPEC, alu_entry_cycles=3)),
        CompileError,
        "alu_entry_cycles is 3: the decoder's kernels are written for 4 or more",
    ),
    "gap": (
        lambda: planned(spec=replace(SPEC, mxm_reload_gap_cycles=6)),
        CompileError,
        "mxm_reload_gap_cycles is 6: two activations need 7 with mxm_install_cycles 3",
    ),
    "install": (
        lambda: planned(spec=replace(SPEC, mxm_install_cycles=21, mxm_reload_gap_cycles=25)),
        CompileError,
        "mxm_install_cycles is 21: the decoder's kernels are written for 20 or fewer",
    ),
    "encoder's alu": (
        lambda: compile_encoder(ENCODER, TWO_CYCLES, 1),
        CompileError,
        "alu_cycles is 2: these kernels are written for 3",
    ),
    "slices": (
        lambda: compile_encoder(ENCODER, replace(SPEC, reserved_slices_west=tuple(range(9)))),
        CompileError,
        "35 usable slices in a hemisphere: use 38 or more",
    ),
    "network's alu": (
        lambda: compile_network(mlp(1, (20, 10)), TWO_CYCLES),
        CompileError,
        "alu_cycles is 2: these kernels are written for 3",
    ),
    "encoder": (
        lambda: replace(ENCODER, heads=0),
        CompileError,
        "an encoder's sizes must all be 1 or more",
    ),
    "image": (lambda: resnet50(100, 10), CompileError, "image size 100: use a multiple of 32"),
    "batch": (lambda: mlp(0, (4, 4)), CompileError, "batch 0, sizes .*: use at least 1 and two"),
    "sizes": (lambda: mlp(1, (4,)), CompileError, "batch 1, sizes .*: use at least 1 and two"),
    "m": (lambda: replace(SHAPE, m=0), CompileError, "m is 0: use 1 or more"),
    "split": (lambda: replace(SHAPE, split="x"), CompileError, "split 'x': use "),
    "chips": (lambda: replace(SHAPE, chips=3), CompileError, "3 chips: a node has 1, 2, 4 or 8; "),
    "type": (lambda: replace(SHAPE, dtype="fp8"), CompileError, "number type 'fp8': use int8 or"),
    "shape": (
        lambda: replace(ARCHITECTURES["llama-3-8b"], layers=0),
        CheckpointError,
        "layers is 0; it is at least 1",
    ),
    "size": (
        lambda: replace(SMALL, layers=0),
        CheckpointError,
        r"layers is 0; it must be from 1 to",
    ),
    "activation": (
        lambda: replace(SMALL, activation="relu"),
        CheckpointError,
        "activation 'relu' is not supported; silu, .* are",
    ),
    "heads": (
        lambda: replace(SMALL, heads=3, kv_heads=2),
        CheckpointError,
        "3 query heads cannot share 2 key/value heads evenly",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    act, kind, says = REFUSED[name]
    with pytest.raises(kind, match=says) as caught:
        act()
    assert "\n" not in str(caught.value)


# --- checkpoints ----------------------------------------------------------------------------------

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": "x"}, "hidden_size is 'x'.*it must be a whole number"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x'.*it must be a number"),
        ({"mlp_bias": True}, "mlp_bias is set, which is not supported.*use a model without biases"),
        ({"rope_scaling": 3}, "rope_scaling is 3.*it must be null or an object"),
        ({"quantization_config": {"a": 1}}, "already quantised.*use the fp16, bf16 or fp32 model"),
        ({"model_type": "opt"}, "architecture 'opt' is not supported; use a .* or .* model"),
        ({"hidden_act": "relu"}, "activation 'relu' is not supported; silu is"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "linear, llama3 and yarn are"),
    ],
)
def test_configurations_that_are_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | changes), encoding="utf-8")
    with pytest.raises(CheckpointError, match=says) as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing; name a Hugging Face checkpoint dir"):
        read_config(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist; name a checkpoint directory"):
        read_config(tmp_path / "none")


def test_rope_without_its_positions() -> None:
    with pytest.raises(CheckpointError, match="original_max_position is 0; it must be a number of"):
        RopeScaling("llama3", 8.0, original_max_position=0)


HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ([1], "its header is no table"),
        ("{", "its header is not JSON"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "the entry of 'a' is damaged"),
        ({"a": {**HEADER["a"], "data_offsets": [0, 4]}}, "'a' has the wrong number of bytes"),
        ({"a": {**HEADER["a"], "data_offsets": [0, 800]}}, "tensor 'a' lies outside the file"),
    ],
)
def test_damaged_tensors(tmp_path: Path, header: object, says: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(8)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=says):
        load_checkpoint(tmp_path)


def test_a_file_that_is_shorter_than_its_header(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes((1000).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="header of 1000 bytes in a file of 10"):
        load_checkpoint(tmp_path)


def test_tensors_that_went_away(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    config = read_config(tmp_path)
    drawn = random_checkpoint(config, 0)
    file = tmp_path / "model.safetensors"
    save_file({name: drawn.tensor(name) for name in tensor_shapes(config)}, file)
    stored = load_checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"can no longer be read \(.*\); put the file back"):
        stored.tensor("model.norm.weight")


def test_a_checkpoint_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a model in memory has no tokenizer; give token"):
        random_checkpoint(SMALL, 0).tokenizer()


# --- products, networks, fault plans --------------------------------------------------------------


def test_data_of_a_product_are_of_its_shape() -> None:
    a, b = np.zeros((40, 50), np.int8), np.zeros((50, 60), np.int8)
    with pytest.raises(ValueError, match=r"data are float32: a int8 product takes .*int8"):
        compile_matmul(SHAPE, SPEC, a.astype(np.float32), b)
    with pytest.raises(ValueError, match=r"data are \(40, 50\) and \(50, 61\): the product is"):
        compile_matmul(SHAPE, SPEC, a, np.zeros((50, 61), np.int8))


def test_the_input_of_a_network_is_of_its_shape() -> None:
    network = mlp(1, (20, 10))
    with pytest.raises(ValueError, match=r"the input is int8 \(3,\): use int8 \("):
        compile_network(network, SPEC, np.zeros(3, np.int8))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("links = 3", r"links is no table; write \[links\]"),
        ("[links]\nspeed = 3", "has 'speed'; use bit_error_rate"),
        ("[links]\nbit_error_rate = 2", "bit_error_rate is 2; use a number from 0 to"),
        ("seed = 0.5", "seed is 0.5; use a whole number from 0 to"),
        ("[[dead_node]]\nlaunch = 3", "node is missing; use a whole number from 0 to"),
    ],
)
def test_fault_plans_that_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FaultPlanError, match=says):
        load_fault_plan(path)
