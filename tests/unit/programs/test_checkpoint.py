"""Opening checkpoints: every number type, shards, and one clear line for everything wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from programs.models import (
    CheckpointError,
    ModelConfig,
    load_checkpoint,
    names,
    random_checkpoint,
)
from programs.models.checkpoint import read_config, tensor_shapes
from tests import ROOT, examples

SMALL = ModelConfig(
    hidden_size=48, layers=2, heads=4, kv_heads=2, head_dim=12, ffn=56, vocab=67, tied=False
)
ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def hf_fields(config: ModelConfig, **changes: Any) -> dict[str, Any]:
    """Return the config.json fields of `config`, with `changes`."""
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn,
        "vocab_size": config.vocab,
        "rms_norm_eps": config.eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.max_position,
    }
    return fields | changes


def tensors_of(config: ModelConfig, seed: int = 1) -> dict[str, NDArray[Any]]:
    """Return a random model's tensors as float32."""
    checkpoint = random_checkpoint(config, seed)
    return {name: checkpoint.tensor(name) for name in tensor_shapes(config)}


def write(path: Path, config: ModelConfig, **changes: Any) -> Path:
    """Write a whole float32 checkpoint into `path`."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(hf_fields(config, **changes)))
    save_file(tensors_of(config), path / "model.safetensors")
    return path


def write_bf16(file: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    """Write `tensors`, which bf16 must hold exactly, as a bf16 safetensors file."""
    header, body = {}, b""
    for name, values in tensors.items():
        data = (values.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": list(values.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)


def test_sharded_files_of_three_number_types_read_back(tmp_path: Path) -> None:
    """Shards in bf16, fp16 and fp32 give exactly the float32 values that were stored."""
    stored = tensors_of(SMALL)
    names = sorted(stored)
    parts = [names[0::3], names[1::3], names[2::3]]
    for name in parts[0]:
        stored[name] = (stored[name].view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    for name in parts[1]:
        stored[name] = stored[name].astype(np.float16).astype(np.float32)
    files = [f"model-0000{i + 1}-of-00003.safetensors" for i in range(3)]
    write_bf16(tmp_path / files[0], {name: stored[name] for name in parts[0]})
    save_file({n: stored[n].astype(np.float16) for n in parts[1]}, tmp_path / files[1])
    save_file({n: stored[n] for n in parts[2]}, tmp_path / files[2])
    weight_map = {name: files[i] for i, part in enumerate(parts) for name in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps(hf_fields(SMALL)))

    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.config == SMALL
    rows, columns = np.array([5, 1, 7]), np.array([40, 2])
    for name, values in stored.items():
        read = checkpoint.tensor(name)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, values, err_msg=name)
        if values.ndim == 2:
            np.testing.assert_array_equal(checkpoint.block(name, rows), values[rows])
            block = checkpoint.block(name, rows, columns)
            np.testing.assert_array_equal(block, values[np.ix_(rows, columns)])
    embedding = stored["model.embed_tokens.weight"]
    np.testing.assert_array_equal(checkpoint.embedding_row(66), embedding[66])


def test_every_bf16_and_fp16_pattern_decodes(tmp_path: Path) -> None:
    """All 65,536 patterns of both 16-bit types, subnormals and infinities included."""
    config = ModelConfig(
        hidden_size=64, layers=1, heads=1, kv_heads=1, head_dim=2, ffn=1, vocab=1024, tied=True
    )
    patterns = np.arange(1 << 16, dtype=np.uint32).reshape(1024, 64)
    stored = tensors_of(config)
    name = "model.embed_tokens.weight"
    (tmp_path / "config.json").write_text(json.dumps(hf_fields(config)))
    widened = (patterns << np.uint32(16)).view(np.float32)
    rest = {n: np.ones_like(v) for n, v in stored.items()}
    write_bf16(tmp_path / "model.safetensors", rest | {name: widened})
    read = load_checkpoint(tmp_path).tensor(name)
    np.testing.assert_array_equal(read.view(np.uint32), patterns << np.uint32(16))
    halves = patterns.astype(np.uint16).view(np.float16)
    save_file(rest | {name: halves}, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(load_checkpoint(tmp_path).tensor(name), halves.astype(np.float32))


def test_shipped_checkpoints_open() -> None:
    """Target and draft load, share one tokenizer and say how large they are."""
    home = ROOT / "programs" / "checkpoints"
    target, draft = (load_checkpoint(home / name) for name in ("target", "draft"))
    assert (target.config.hidden_size, target.config.layers) == (256, 4)
    assert (draft.config.hidden_size, draft.config.layers) == (128, 2)
    text = "def main() -> None:\n"
    tokens = target.tokenizer.encode(text).ids
    assert tokens == draft.tokenizer.encode(text).ids
    assert target.tokenizer.decode(tokens) == text
    assert target.config.parameters == sum(
        target.tensor(name).size for name in tensor_shapes(target.config)
    )


def test_configuration_variants(tmp_path: Path) -> None:
    """Defaults that config.json may leave out, and both spellings of rope scaling."""
    file = tmp_path / "config.json"
    fields = hf_fields(SMALL, rope_scaling=ROPE)
    for name in ("head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta"):
        del fields[name]
    file.write_text(json.dumps(fields))
    config = read_config(file)
    assert (config.head_dim, config.kv_heads, config.eps, config.rope_theta) == (12, 4, 1e-6, 1e4)
    assert config.rope_scaling is not None
    assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("llama3", 8.0)
    del fields["rope_scaling"]
    fields["rope_parameters"] = {"rope_type": "linear", "factor": 2, "rope_theta": 5e5}
    file.write_text(json.dumps(fields))
    config = read_config(tmp_path)
    assert config.rope_theta == 5e5
    assert config.rope_scaling is not None and config.rope_scaling.kind == "linear"


def remove_index_target(path: Path) -> None:
    """Turn the checkpoint into a sharded one whose only shard is absent."""
    (path / "model.safetensors").rename(path / "elsewhere.bin")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def rewrite(**changes: NDArray[Any] | None) -> Callable[[Path], None]:
    """Return a damage that replaces tensors (None: removes) by dotted names with ``__``."""

    def damage(path: Path) -> None:
        tensors = tensors_of(SMALL)
        for key, values in changes.items():
            name = key.replace("__", ".")
            tensors.pop(name, None)
            if values is not None:
                tensors[name] = values
        save_file(tensors, path / "model.safetensors")

    return damage


def cut(path: Path) -> None:
    """Cut the weights in half."""
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


def config_with(**changes: Any) -> Callable[[Path], None]:
    """Return a damage that writes config.json with `changes`."""

    def damage(path: Path) -> None:
        (path / "config.json").write_text(json.dumps(hf_fields(SMALL, **changes)))

    return damage


DAMAGES: list[tuple[str, Callable[[Path], Any]]] = [
    ("config.json is missing", lambda path: (path / "config.json").unlink()),
    ("config.json is not JSON", lambda path: (path / "config.json").write_text("{")),
    ("no JSON object", lambda path: (path / "config.json").write_text("[]")),
    ("no *.safetensors file", lambda path: (path / "model.safetensors").unlink()),
    ("cannot be read", remove_index_target),
    ("no complete safetensors", cut),
    ("no complete safetensors", lambda path: (path / "model.safetensors").write_bytes(b"")),
    ("not JSON", lambda path: (path / "model.safetensors").write_bytes(b"\x04" + bytes(40))),
    ("table of file names", lambda path: (path / "model.safetensors.index.json").write_text("{}")),
    ("'model.norm.weight' is missing", rewrite(model__norm__weight=None)),
    ("has shape [47] but", rewrite(model__norm__weight=np.ones(47, np.float32))),
    ("number type F64", rewrite(model__norm__weight=np.ones(48))),
    ("is a bias", rewrite(model__layers__0__self_attn__q_proj__bias=np.ones(48, np.float32))),
    ("'DeepseekV32ForCausalLM'", config_with(architectures=["DeepseekV32ForCausalLM"])),
    ("activation 'gelu'", config_with(hidden_act="gelu")),
    ("q_proj.bias' is missing", config_with(attention_bias=True)),
    ("mlp_bias", config_with(mlp_bias=True)),
    ("already quantised", config_with(quantization_config={"quant_method": "gptq"})),
    ("rope scaling 'longrope'", config_with(rope_scaling={"type": "longrope", "factor": 4})),
    ("low_freq_factor is None", config_with(rope_scaling={"type": "llama3", "factor": 4})),
    ("rope factor is 0.5", config_with(rope_scaling={"type": "linear", "factor": 0.5})),
    ("hidden_size is None", config_with(hidden_size=None)),
    ("hidden_size is '48'", config_with(hidden_size="48")),
    ("layers is 0", config_with(num_hidden_layers=0)),
    ("layers is 1000000000000", config_with(num_hidden_layers=10**12)),
    ("head_dim is 13", config_with(head_dim=13)),
    ("cannot share 3", config_with(num_key_value_heads=3)),
    ("eps is nan", config_with(rms_norm_eps=float("nan"))),
    ("eps is 1e+39; it must be from 1.2e-38 to 1,000,000", config_with(rms_norm_eps=1e39)),
    ("eps is 1e-60; it must be from 1.2e-38 to 1,000,000", config_with(rms_norm_eps=1e-60)),
    ("rope_theta is too large", config_with(rope_theta=10**400)),
    ("vocab_size is too large; correct it", config_with(vocab_size=10**400)),
]


@pytest.mark.parametrize(("words", "damage"), DAMAGES, ids=[words for words, _ in DAMAGES])
def test_problems_are_one_line(words: str, damage: Callable[[Path], Any], tmp_path: Path) -> None:
    """Each problem is named in one line that says where it is and what would mend it."""
    path = write(tmp_path / "model", SMALL)
    damage(path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 600
    assert str(path) in message


def test_problems_after_opening_are_one_line(tmp_path: Path) -> None:
    """Absent directories, absent tokenizers, tokens out of range and vanished files."""
    path = write(tmp_path / "model", SMALL)
    with pytest.raises(CheckpointError, match="does not exist; name a checkpoint"):
        load_checkpoint(tmp_path / "absent")
    checkpoint = load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        _ = checkpoint.tokenizer
    (path / "tokenizer.json").write_text('{\n"model": 3}')
    with pytest.raises(CheckpointError, match="no readable tokenizer") as caught:
        _ = checkpoint.tokenizer
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="token 67 is outside the vocabulary of 67"):
        checkpoint.embedding_row(67)
    with pytest.raises(CheckpointError, match="no tensor 'x'"):
        checkpoint.tensor("x")
    cut(path)
    with pytest.raises(CheckpointError, match="has shrunk"):
        for name in tensor_shapes(SMALL):
            checkpoint.tensor(name)


@settings(
    max_examples=examples(150),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    """Random bytes over the header and the configuration: loaded, or one line."""
    path = tmp_path / "model"
    if not path.exists():
        write(path, SMALL)
        (path / "whole").write_bytes((path / "model.safetensors").read_bytes())
        (path / "config.whole").write_bytes((path / "config.json").read_bytes())
    for source, file in (("whole", "model.safetensors"), ("config.whole", "config.json")):
        content = bytearray((path / source).read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, min(len(content), 2500) - 1))
            content[at] = data.draw(st.integers(0, 255))
        (path / file).write_bytes(content)
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        for name in tensor_shapes(checkpoint.config):
            checkpoint.tensor(name)


def test_random_checkpoints_are_seeded() -> None:
    """The same seed gives the same model, another seed another one, in any reading order."""
    first, second, other = (random_checkpoint(SMALL, seed) for seed in (5, 5, 6))
    names = list(tensor_shapes(SMALL))
    forward = {name: first.tensor(name) for name in names}
    for name in reversed(names):
        np.testing.assert_array_equal(second.tensor(name), forward[name])
        assert not np.array_equal(other.tensor(name), forward[name])
    with pytest.raises(CheckpointError, match="no tokenizer"):
        _ = first.tokenizer


@pytest.mark.parametrize("rows", [1, 4095, 4096, 4097, 10_000])
def test_rows_are_compared_some_at_a_time(rows: int) -> None:
    """A tied head of a large vocabulary is never held twice as a whole."""
    blocks = [*names._blocks(rows)]
    assert np.concatenate(blocks).tolist() == list(range(rows))
    assert [len(block) for block in blocks[:-1]] == [4096] * (len(blocks) - 1)
    assert 0 < len(blocks[-1]) <= 4096
