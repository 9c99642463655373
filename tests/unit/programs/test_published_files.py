"""Model files as people really have them: read as the ecosystem reads them, or refused by name.

Every test is a kind of file that once gave wrong numbers without a word, or sent its owner the
wrong way.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models

from chip.errors import LpuWarning
from chip.toml_files import read_toml
from interconnect.wiring import named_topology
from programs.decoder import PartitionError, partition_model
from programs.models import (
    Checkpoint,
    CheckpointError,
    ModelConfig,
    continuation,
    find_model,
    load_checkpoint,
    open_model,
    random_checkpoint,
    read_config,
)
from programs.models.checkpoint import read_tokenizer, tensor_shapes
from programs.models.tensors import TensorSource

SMALL = ModelConfig(48, 2, 4, 2, 12, 56, 67, tied=False, max_position=2048)
TIED = ModelConfig(48, 1, 4, 2, 12, 56, 67, tied=True, max_position=2048)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
Tensors = dict[str, NDArray[Any]]


def fields_of(config: ModelConfig, **changes: Any) -> dict[str, Any]:
    """The config.json of a Llama of this shape; a change to ``...`` leaves a field out."""
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn,
        "vocab_size": config.vocab,
        "rms_norm_eps": config.eps,
        "tie_word_embeddings": config.tied,
    }
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def tensors_of(config: ModelConfig) -> Tensors:
    """A random model's tensors, float32."""
    drawn = random_checkpoint(config, 3)
    return {name: drawn.tensor(name) for name in tensor_shapes(config)}


def write(path: Path, config: ModelConfig, tensors: Tensors, **changes: Any) -> Path:
    """A checkpoint directory with these tensors."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(fields_of(config, **changes)))
    save_file(tensors, path / "model.safetensors")
    return path


def config_of(path: Path, **changes: Any) -> ModelConfig:
    """What is read of SMALL's config.json with these changes."""
    (path / "config.json").write_text(json.dumps(fields_of(SMALL, **changes)))
    return read_config(path)


def refused(path: Path, *words: str) -> None:
    """Opening the directory fails with one line that has these words and the directory's name."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    line = str(caught.value)
    assert all(word in line for word in (*words, str(path))), line
    assert "\n" not in line and "again" not in line.replace("fetch both files again", ""), line


def same(path: Path, tensors: Tensors) -> None:
    """The directory gives these tensors by the product's names, whole and in parts."""
    checkpoint = load_checkpoint(path)
    rows, columns = np.array([5, 0, 7]), np.array([40, 2, 3])
    for name, values in tensors.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), values, err_msg=name)
        if values.ndim == 2:
            np.testing.assert_array_equal(checkpoint.block(name, rows), values[rows])
            block = checkpoint.block(name, rows, columns)
            np.testing.assert_array_equal(block, values[np.ix_(rows, columns)])
            block = checkpoint.block(name, rows[:0], columns)
            assert block.shape == (0, 3)
    np.testing.assert_array_equal(checkpoint.embedding_row(66), tensors[EMBEDDING][66])


# --- rotary tables --------------------------------------------------------------------------------


def test_the_theta_inside_of_a_rope_table_comes_first(tmp_path: Path) -> None:
    """An older theta outside of the table does not hold."""
    read = config_of(tmp_path, rope_theta=1e4, rope_parameters={**LLAMA3, "rope_theta": 5e5})
    assert read.rope_theta == 5e5
    assert read.rope_scaling is not None and read.rope_scaling.kind == "llama3"


def test_rope_scaling_comes_before_rope_parameters(tmp_path: Path) -> None:
    """A default table beside it takes no scaling away."""
    plain = {"rope_type": "default", "rope_theta": 1e4}
    read = config_of(tmp_path, rope_scaling=LLAMA3, rope_parameters=plain)
    assert read.rope_theta == 1e4
    assert read.rope_scaling is not None and read.rope_scaling.original_max_position == 32
    read = config_of(tmp_path, rope_parameters=plain, rope_scaling=None)
    assert read.rope_scaling is None


def test_rope_tables_that_disagree_on_theta_are_refused(tmp_path: Path) -> None:
    """One of them would be dropped without a word."""
    table = {"rope_type": "default", "rope_theta": 5e5}
    with pytest.raises(CheckpointError, match=r"rope_theta 500000\.0, but rope_scaling, .* keep"):
        config_of(tmp_path, rope_scaling=LLAMA3, rope_parameters=table)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rope_scaling": {"factor": 4.0}}, r"rope_scaling has no rope_type beside \['factor'\]"),
        ({"rope_parameters": {"rope_type": None, "factor": 4.0}}, "rope_parameters has no rope_ty"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, which is not supported"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
            "partial_rotary_factor is 0.25",
        ),
        ({"head_dim": ..., "num_attention_heads": 30}, "hidden_size is 48, no multiple of 30 head"),
        ({"head_dim": None, "num_attention_heads": 30}, "head_dim is not given; correct"),
    ],
)
def test_fields_that_say_half_are_refused(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """What was taken without a word, and was not what the model computes."""
    with pytest.raises(CheckpointError, match=says):
        config_of(tmp_path, **changes)


@pytest.mark.parametrize(
    ("architecture", "left_out"), [("LlamaForCausalLM", 4), ("MistralForCausalLM", 8)]
)
def test_null_key_value_heads_are_as_many_as_heads(
    architecture: str, left_out: int, tmp_path: Path
) -> None:
    """Null and a field that is left out differ, as in the published classes."""
    named = {"architectures": [architecture]}
    assert config_of(tmp_path, **named, num_key_value_heads=None).kv_heads == 4
    if left_out == 8:  # no 4 heads share these
        with pytest.raises(CheckpointError, match="4 query heads cannot share 8"):
            config_of(tmp_path, **named, num_key_value_heads=...)
    else:
        assert config_of(tmp_path, **named, num_key_value_heads=...).kv_heads == left_out
    with pytest.raises(CheckpointError, match="num_key_value_heads is null"):
        config_of(tmp_path, architectures=["GemmaForCausalLM"], num_key_value_heads=None)


# --- which file a tensor comes from ---------------------------------------------------------------


def sharded(path: Path, weight_map: dict[str, str], shards: dict[str, Tensors]) -> Path:
    """A checkpoint of several files with an index."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(fields_of(SMALL)))
    for name, tensors in shards.items():
        save_file(tensors, path / name)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def test_the_index_decides_which_file_a_tensor_comes_from(tmp_path: Path) -> None:
    """An older copy in another listed file, read earlier or later, is not taken."""
    tensors = tensors_of(SMALL)
    rest = {name: values for name, values in tensors.items() if name != HEAD}
    old = {HEAD: tensors[HEAD] + 1}
    for head, other in (("a.safetensors", "b.safetensors"), ("b.safetensors", "a.safetensors")):
        weight_map = {name: head if name == HEAD else other for name in tensors}
        shards = {head: {HEAD: tensors[HEAD]}, other: rest | old}
        same(sharded(tmp_path / head, weight_map, shards), tensors)


def test_an_index_that_names_the_wrong_file_is_refused(tmp_path: Path) -> None:
    """The tensor is elsewhere, and nobody can tell whether that one is meant."""
    tensors = tensors_of(SMALL)
    rest = {name: values for name, values in tensors.items() if name != "model.norm.weight"}
    weight_map = dict.fromkeys(rest, "a.safetensors") | {"model.norm.weight": "b.safetensors"}
    shards = {"a.safetensors": tensors, "b.safetensors": {"x": np.ones(1, np.float32)}}
    path = sharded(tmp_path / "model", weight_map, shards)
    refused(path, "'model.norm.weight' is in b.safetensors, which does not hold it")


def test_a_tensor_in_two_files_without_an_index_is_refused(tmp_path: Path) -> None:
    """Which of them counted was a matter of their names."""
    path = write(tmp_path / "model", SMALL, tensors_of(SMALL))
    (path / "model.safetensors").rename(path / "part-1.safetensors")
    save_file({HEAD: tensors_of(SMALL)[HEAD]}, path / "part-2.safetensors")
    refused(path, "part-1.safetensors both hold tensor 'lm_head.weight'", "remove")


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("model.language_model.", "lm_head.weight"),
        ("language_model.model.", "language_model.lm_head.weight"),
        ("language_model.model.", "lm_head.weight"),
        ("", "lm_head.weight"),
        ("model.text_model.", "lm_head.weight"),
    ],
)
def test_a_decoder_with_another_prefix_is_read(prefix: str, head: str, tmp_path: Path) -> None:
    """A part of a larger model, or the decoder saved without its head's class."""
    tensors = tensors_of(SMALL)
    renamed = {
        head if name == HEAD else prefix + name.removeprefix("model."): values
        for name, values in tensors.items()
    }
    same(write(tmp_path / "model", SMALL, renamed), tensors)


@pytest.mark.parametrize("prefix", ["model.", "model.language_model."])
def test_fused_matrices_are_read_by_rows(prefix: str, tmp_path: Path) -> None:
    """Query, key and value as one matrix, gate and up as another."""
    tensors = tensors_of(SMALL)
    stored = {
        name.replace("model.", prefix, 1): values
        for name, values in tensors.items()
        if not name.endswith(tuple(f"{part}_proj.weight" for part in ("q", "k", "v", "gate", "up")))
    }
    for layer in range(SMALL.layers):
        own = f"model.layers.{layer}"
        q, k, v = (tensors[f"{own}.self_attn.{part}_proj.weight"] for part in "qkv")
        gate, up = (tensors[f"{own}.mlp.{part}_proj.weight"] for part in ("gate", "up"))
        to = f"{prefix}layers.{layer}"
        stored[f"{to}.self_attn.qkv_proj.weight"] = np.vstack([q, k, v])
        stored[f"{to}.mlp.gate_up_proj.weight"] = np.vstack([gate, up])
    same(write(tmp_path / "model", SMALL, stored), tensors)
    fused = f"{prefix}layers.1.mlp.gate_up_proj.weight"
    stored[fused] = stored[fused][:-1]
    refused(write(tmp_path / "short", SMALL, stored), fused, "[111, 48] but config.json says [112,")


def test_a_missing_head_asks_whether_it_is_tied(tmp_path: Path) -> None:
    """Fetching files again would not bring what the publisher never stored."""
    tensors = tensors_of(SMALL)
    del tensors[HEAD]
    path = write(tmp_path / "model", SMALL, tensors, tie_word_embeddings=...)
    with pytest.raises(CheckpointError, match="set tie_word_embeddings to true in"):
        load_checkpoint(path)


def test_unknown_names_are_named(tmp_path: Path) -> None:
    """Names of another program, and matrices that a quantiser has replaced."""
    foreign = {
        name.replace("model.", "").replace("self_attn", "attention"): values
        for name, values in tensors_of(SMALL).items()
        if "embed" not in name
    }
    path = write(tmp_path / "foreign", SMALL, foreign)
    refused(path, "'layers.0.attention.k_proj.weight'", "as the transformers library saves it")
    tensors = tensors_of(SMALL)
    gone = "model.layers.1.self_attn.q_proj"
    tensors[f"{gone}.qweight"] = tensors.pop(f"{gone}.weight")
    path = write(tmp_path / "packed", SMALL, tensors)
    refused(path, f"{gone}.weight' is missing, and '{gone}.qweight' stands in its place")
    tensors[f"{gone}_in.weight"] = tensors.pop(f"{gone}.qweight")
    path = write(tmp_path / "other", SMALL, tensors)
    refused(path, f"'{gone}.weight' is missing", f"'{gone}_in.weight'")


# --- tied heads, tensors that nothing reads -------------------------------------------------------


def test_a_stored_head_equal_to_the_embedding_it_is_tied_to(tmp_path: Path) -> None:
    """Many checkpoints have both; nothing is told."""
    tensors = tensors_of(TIED)
    path = write(tmp_path / "model", TIED, tensors | {HEAD: tensors[EMBEDDING]})
    checkpoint = load_checkpoint(path)
    assert checkpoint.head_name == EMBEDDING and checkpoint.unread == ()


def test_a_tied_model_may_be_stored_by_its_head_alone(tmp_path: Path) -> None:
    """Of two tensors that share their memory, files keep one."""
    tensors = tensors_of(TIED)
    stored = {HEAD if name == EMBEDDING else name: values for name, values in tensors.items()}
    same(write(tmp_path / "model", TIED, stored), tensors)


def test_a_stored_head_that_differs_though_declared_tied_is_refused(tmp_path: Path) -> None:
    """In its last element alone, too."""
    tensors = tensors_of(TIED)
    head = tensors[EMBEDDING].copy()
    head[-1, -1] += 0.5
    path = write(tmp_path / "model", TIED, tensors | {HEAD: head})
    refused(path, "'lm_head.weight' differs from the embedding", "tie_word_embeddings to false")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.1.post_feedforward_layernorm.weight",
        "model.layers.1.mlp.up_proj.lora_A.weight",
        "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.0.mlp.up_proj.weight_scale_inv",
        "model.embed_positions.weight",
    ],
)
def test_a_tensor_that_would_change_the_result_is_refused(name: str, tmp_path: Path) -> None:
    """Nothing here computes with it, and the published model does."""
    extra = {name: np.ones((1, 12), np.float32)}
    refused(write(tmp_path / "model", SMALL, tensors_of(SMALL) | extra), f"tensor {name!r}")


@pytest.mark.parametrize(
    "name", ["model.layers.1.input_layernorm.bias", "model.norm.bias", "lm_head.bias"]
)
def test_every_bias_is_refused(name: str, tmp_path: Path) -> None:
    """Of norms and of the head as of projections."""
    extra = {name: np.ones(48, np.float32)}
    refused(write(tmp_path / "model", SMALL, tensors_of(SMALL) | extra), f"{name!r} is a bias")


def test_other_tensors_that_nothing_reads_are_told_once(tmp_path: Path) -> None:
    """Parts of a larger model and layers beyond the configuration's; constants say nothing."""
    extra = ["model.vision_tower.patch.weight", "model.layers.2.eh_proj.weight", "score.weight"]
    quiet = "model.layers.0.self_attn.rotary_emb.inv_freq"
    stored = tensors_of(SMALL) | {name: np.ones(3, np.float32) for name in [*extra, quiet]}
    path = write(tmp_path / "model", SMALL, stored)
    assert sorted(load_checkpoint(path).unread) == sorted(extra)
    with pytest.warns(LpuWarning, match=r"model: 3 tensors \('.*' \.\.\.\) not read") as told:
        open_model(path)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_model(write(tmp_path / "plain", SMALL, tensors_of(SMALL)))


# --- number types ---------------------------------------------------------------------------------


def e4m3(code: int) -> float:
    """The value of a pattern, from the definition, in exact fractions."""
    sign, exponent, mantissa = -1 if code >> 7 else 1, code >> 3 & 15, code & 7
    if code & 127 == 127:
        return float("nan")
    value = Fraction(mantissa, 8) if exponent == 0 else Fraction(8 + mantissa, 8)
    return float(sign * value * Fraction(2) ** (max(exponent, 1) - 7))


def write_raw(file: Path, tensors: dict[str, tuple[str, NDArray[Any]]]) -> None:
    """A safetensors file of arrays of bits with the number types given."""
    header, body = {}, b""
    for name, (dtype, values) in tensors.items():
        data = values.tobytes()
        span = [len(body), len(body) + len(data)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": span}
        body += data
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)


def fp8_checkpoint(path: Path) -> tuple[Path, Tensors]:
    """A block-scaled fp8 checkpoint whose blocks end within rows and columns, and its values."""
    shape = ModelConfig(
        hidden_size=160, layers=1, heads=2, kv_heads=1, head_dim=80, ffn=296, vocab=67, tied=True
    )
    random = np.random.default_rng(5)
    table = np.array([e4m3(code) for code in range(256)])
    stored: dict[str, tuple[str, NDArray[Any]]] = {}
    values = tensors_of(shape)
    for name, plain in values.items():
        stored[name] = ("F32", plain)
        if "_proj" in name:
            codes = random.integers(0, 256, plain.shape).astype(np.uint8)
            codes[codes & 127 == 127] = 3
            blocks = [-(-extent // 128) for extent in plain.shape]
            scales = random.uniform(1e-3, 2.0, blocks).astype(np.float32)
            spread = np.kron(scales, np.ones((128, 128)))[: plain.shape[0], : plain.shape[1]]
            # float64 holds the product exactly: one rounding to float32.
            values[name] = (table[codes] * spread).astype(np.float32)
            stored[name] = ("F8_E4M3", codes)
            stored[f"{name}_scale_inv"] = ("F32", scales)
    path.mkdir()
    quantised = {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}
    fields = fields_of(shape, quantization_config=quantised)
    (path / "config.json").write_text(json.dumps(fields))
    write_raw(path / "model.safetensors", stored)
    return path, values


def test_block_scaled_fp8_is_read_exactly(tmp_path: Path) -> None:
    """Every element is its pattern's value times the scale of its block, rounded once."""
    path, values = fp8_checkpoint(tmp_path / "model")
    checkpoint = load_checkpoint(path)
    assert checkpoint.unread == ()
    rows, columns = np.array([130, 3, 131, 159]), np.array([127, 128, 0])
    for name, expected in values.items():
        np.testing.assert_array_equal(checkpoint.tensor(name), expected, err_msg=name)
        if expected.shape[0] >= 160 and expected.ndim == 2:
            block = checkpoint.block(name, rows, columns)
            np.testing.assert_array_equal(block, expected[np.ix_(rows, columns)])


def test_every_fp8_pattern_decodes(tmp_path: Path) -> None:
    """All 256, subnormals, both zeros and both NaN included."""
    config = ModelConfig(
        hidden_size=32, layers=1, heads=1, kv_heads=1, head_dim=2, ffn=1, vocab=8, tied=True
    )
    stored = {name: ("F32", np.ones_like(values)) for name, values in tensors_of(config).items()}
    codes = np.arange(256, dtype=np.uint8).reshape(8, 32)
    scale = np.ones((1, 1), np.float32)
    raw = stored | {EMBEDDING: ("F8_E4M3", codes), f"{EMBEDDING}_scale_inv": ("F32", scale)}
    (tmp_path / "config.json").write_text(json.dumps(fields_of(config)))
    write_raw(tmp_path / "model.safetensors", raw)
    expected = np.array([e4m3(code) for code in range(256)], np.float32).reshape(8, 32)
    read = load_checkpoint(tmp_path).tensor(EMBEDDING)
    np.testing.assert_array_equal(read, expected)
    np.testing.assert_array_equal(np.signbit(read)[4, 0], True)


def test_other_fp8_is_refused(tmp_path: Path) -> None:
    """One scale for a matrix, other blocks, or no scales at all."""
    path, _ = fp8_checkpoint(tmp_path / "model")
    config = path / "config.json"
    fields = json.loads(config.read_text())
    for size in (None, [128, 64]):
        fields["quantization_config"]["weight_block_size"] = size
        config.write_text(json.dumps(fields))
        refused(path, "already quantised to fp8", "or the fp16, bf16 or fp32 model")
    del fields["quantization_config"]
    config.write_text(json.dumps(fields))
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data.replace(b"_scale_inv", b"_scale_xyz"))
    refused(path, "has no float32 scales [", "_scale_inv'", "store it as F16")


def test_weights_beyond_fp16_are_refused_by_name(tmp_path: Path) -> None:
    """As NaN is, in fp16 alone; the last value that rounds to 65,504 is taken."""
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = tensors_of(SMALL)
    tensors[name][3, 5] = 65519.0
    path = write(tmp_path / "model", SMALL, tensors)
    chip = partition_model(load_checkpoint(path), 1, "fp16").chip(0)
    assert np.abs(chip.layers[1].down.values.view(np.float16)).max() == np.float16(65504)
    for beyond in (65520.0, -7e4):
        tensors[name][3, 5] = beyond
        checkpoint = load_checkpoint(write(path, SMALL, tensors))
        with pytest.raises(PartitionError, match=r"down_proj\.weight' holds weights up to .*int8"):
            partition_model(checkpoint, 1, "fp16").chip(0)
        partition_model(checkpoint, 1, "int8").chip(0)


def test_no_tensor_with_a_nan_is_taken(tmp_path: Path) -> None:
    """Embeddings, gains of heads and routers too, in both number types."""
    special = replace(SMALL, head_norms=True, experts=3, experts_per_token=2)
    broken = [EMBEDDING, "model.layers.1.self_attn.k_norm.weight"]
    broken += ["model.layers.0.mlp.gate.weight"]
    for name in broken:
        values = random_checkpoint(special, 3).tensor(name)
        values.reshape(-1)[5] = np.nan
        source = _Changed(random_checkpoint(special, 3).source, name, values)
        for dtype in ("int8", "fp16"):
            model = partition_model(Checkpoint(special, source), 2, dtype)
            with pytest.raises(PartitionError, match=f"'{name}' holds a NaN or infinity"):
                model.chip(0)
                model.embedding(0)


@dataclass
class _Changed:
    """A model with one tensor that is another."""

    source: TensorSource
    name: str
    values: NDArray[np.float32]

    def read(
        self, name: str, rows: NDArray[np.int64] | None, columns: NDArray[np.int64] | None
    ) -> NDArray[np.float32]:
        if name != self.name:
            return self.source.read(name, rows, columns)
        values = self.values if rows is None else self.values[rows]
        return values if columns is None else values[:, columns]


def test_a_file_that_was_not_fetched_is_the_mend(tmp_path: Path) -> None:
    """Though old files hold rotary frequencies that nothing computes with."""
    tensors = tensors_of(SMALL)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.ones(6, np.float32)
    with pytest.raises(CheckpointError, match="fetch every safetensors file"):
        load_checkpoint(write(tmp_path, SMALL, tensors))


def test_a_directory_of_gguf_files_says_which_to_name(tmp_path: Path) -> None:
    """With a config.json beside them, as they are published."""
    (tmp_path / "config.json").write_text(json.dumps(fields_of(SMALL)))
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"name one of them, for instance .*a\.gguf"):
        open_model(tmp_path)


# --- other files ----------------------------------------------------------------------------------


def words() -> Tokenizer:
    """A tokenizer of single characters with the word mark of SentencePiece."""
    vocabulary = {letter: number for number, letter in enumerate("?abcdefgh\u2581")}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def test_truncation_and_padding_of_a_tokenizer_are_off(tmp_path: Path) -> None:
    """Settings for training would cut or fill a prompt."""
    fresh = Tokenizer(models.BPE({letter: i for i, letter in enumerate("abcd")}, []))
    file = tmp_path / "tokenizer.json"
    fresh.enable_truncation(6)
    fresh.save(str(file))
    assert len(Tokenizer.from_file(str(file)).encode("abcdabcdab").ids) == 6
    assert len(read_tokenizer(file).encode("abcdabcdab").ids) == 10
    fresh.no_truncation()
    fresh.enable_padding(length=16)
    fresh.save(str(file))
    assert len(Tokenizer.from_file(str(file)).encode("abcdabcdab").ids) == 16
    assert len(read_tokenizer(file).encode("abcdabcdab").ids) == 10


def test_a_continuation_keeps_its_leading_space() -> None:
    """A decoder that drops the space of a text's begin drops none of what follows a prompt."""
    tokenizer = words()
    a, b, mark = (tokenizer.token_to_id(letter) for letter in "ab\u2581")
    assert tokenizer.decode([mark, b]).strip() == "b"
    both = tokenizer.decode([a, mark, b])
    assert continuation(tokenizer, [a], [mark, b]) == both[1:]
    assert continuation(tokenizer, [a], []) == ""


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    """In every file that people write themselves, as their editors leave it."""
    mark = b"\xef\xbb\xbf"
    path = write(tmp_path / "model", SMALL, tensors_of(SMALL))
    weight_map = dict.fromkeys(tensors_of(SMALL), "model.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    words().save(str(path / "tokenizer.json"))
    for name in ("config.json", "model.safetensors.index.json", "tokenizer.json"):
        (path / name).write_bytes(mark + (path / name).read_bytes())
    checkpoint = load_checkpoint(path)
    assert checkpoint.config == SMALL
    assert checkpoint.tokenizer.get_vocab_size() == 10
    wiring = tmp_path / "pair.json"
    wiring.write_bytes(mark + b'{"chips": 2, "cables": [[0, 3, 1, 3]]}')
    assert named_topology(str(wiring)).chips == 2
    toml = tmp_path / "pair.toml"
    toml.write_bytes(mark + b"chips = 2\n")
    assert read_toml(toml) == {"chips": 2}


def test_a_checkpoint_by_a_relative_path_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actors and later runs work in other directories than the command."""
    write(tmp_path / "model", SMALL, tensors_of(SMALL))
    monkeypatch.chdir(tmp_path)
    checkpoint = open_model("model")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert checkpoint.path == tmp_path / "model"
    np.testing.assert_array_equal(checkpoint.tensor(HEAD), tensors_of(SMALL)[HEAD])


def test_a_directory_with_a_configuration_alone_is_a_shape(tmp_path: Path) -> None:
    """It is planned as its config.json is; what needs weights says that there are none."""
    (tmp_path / "config.json").write_text(json.dumps(fields_of(SMALL)))
    assert find_model(tmp_path, "kernels").checkpoint is None
    with pytest.raises(CheckpointError, match="is a shape without weights"):
        open_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no \*\.safetensors file; fetch the model's"):
        load_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="convert the weights to safetensors"):
        open_model(tmp_path)
