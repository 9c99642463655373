"""Small GGUF files, written with the library's writer as the published converters write them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from programs.models import ModelConfig, load_checkpoint, random_checkpoint
from programs.models.config import tensor_shapes
from tests.long.fuzz.mutation import damage_bytes

F32 = NDArray[np.float32]

#: The smallest model whose rows are whole blocks of 32.
SMALL = ModelConfig(
    hidden_size=64, layers=1, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=32, tied=False
)
AFTER_BLOCKS = ("gemma2", "gemma3", "olmo2", "gpt-oss")
"""Families whose norms have other names, as they stand elsewhere."""
BYTES = [*"abcdefgh", "Ġ"]
PIECES = ["▁", "a", "b", "ab", "ba", "▁ab"]
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"


def tensors_of(config: ModelConfig, seed: int = 1) -> dict[str, F32]:
    """A random model's tensors by the product's names.

    Gains have few digits, as bf16 leaves them: 1 + w, which a file of Gemma's holds, is exact.
    """
    checkpoint = random_checkpoint(config, seed)
    tensors = {name: checkpoint.tensor(name) for name in tensor_shapes(config)}
    return {
        name: np.rint(tensor * 256) / np.float32(256) if tensor.ndim == 1 else tensor
        for name, tensor in tensors.items()
    }


def permuted(matrix: F32, heads: int) -> F32:
    """As llama.cpp's ``LlamaModel.permute``: halves of a head side by side, row by row."""
    halves = matrix.reshape(heads, 2, len(matrix) // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(matrix.shape))


@cache
def _names_of(architecture: str) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], 62)


@cache
def stored_name(name: str, family: str = "qwen3") -> str:
    """The library's own table of names; experts are not in it."""
    table = family.upper().replace("-", "_") if family in AFTER_BLOCKS else "QWEN3"
    found = _names_of(table).get_name(name, (".weight", ".bias"))
    assert found is not None, name
    return str(found)


def write(
    path: Path,
    config: ModelConfig,
    tensors: Mapping[str, F32],
    *,
    family: str = "llama",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    fields: Mapping[str, Any] | None = None,
    extra: Mapping[str, F32] | None = None,
) -> Path:
    """Write a model: matrices as ``kind``, vectors as float32, whatever ``fields`` say in the end.

    A field of None is left out.  extra: tensors under their own names.
    """
    writer = gguf.GGUFWriter(path, family)
    values: dict[str, Any] = {
        "block_count": config.layers,
        "context_length": config.max_position,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.ffn,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.eps,
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.head_dim,
    }
    values = {f"{family}.{name}": value for name, value in values.items()} | dict(fields or {})
    for name, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif value is not None:
            writer.add_array(name, value)
    for name, tensor in tensors.items():
        if family in ("llama", "granite", "smollm3") and ("q_proj" in name or "k_proj" in name):
            tensor = permuted(tensor, config.heads if "q_proj" in name else config.kv_heads)
        if family.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + np.float32(1)
        if tensor.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(stored_name(name, family), tensor)
        else:
            writer.add_tensor(
                stored_name(name, family), gguf.quantize(tensor, kind), raw_dtype=kind
            )
    for name, tensor in (extra or {}).items():
        if tensor.ndim < 3 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, tensor)
        else:  # stacked experts
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer_fields(model: str, vocab: int = SMALL.vocab) -> dict[str, Any]:
    """A small vocabulary: ``gpt2`` (byte pairs) or ``llama`` (pieces with scores)."""
    tokens = ["<unk>", "<s>", "</s>"]
    kinds = [2, 3, 3]
    if model == "gpt2":
        tokens += [*BYTES, "ab", "Ġa", "Ġab"]
    else:
        tokens += [*PIECES, "<0x21>", "<0xC3>", "<0xA9>"]
    kinds += [6 if token.startswith("<0x") else 1 for token in tokens[3:]]
    tokens += [f"<unused{n}>" for n in range(vocab - len(tokens))]
    kinds += [5] * (vocab - len(kinds))
    fields: dict[str, Any] = {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }
    if model == "gpt2":
        return fields | {
            "tokenizer.ggml.pre": "llama-bpe",
            "tokenizer.ggml.merges": ["a b", "Ġ a", "Ġa b"],
        }
    return fields | {"tokenizer.ggml.scores": [-float(n) for n in range(vocab)]}


def write_sample(path: Path, model: str) -> Path:
    """A whole small model with its tokenizer."""
    return write(path, SMALL, tensors_of(SMALL), fields=tokenizer_fields(model))


#: Bytes of a sample that are damaged: all but most of the matrices.
GGUF_HEADER = 2300


def damage_gguf(data: bytes, rng: random.Random) -> bytes:
    """Mostly the header alone, the matrices as they were or cut off."""
    header = data[:GGUF_HEADER]
    if rng.random() < 0.2:
        return damage_bytes(data, rng)
    if rng.random() < 0.5:  # one number, its neighbours as they were
        at = rng.randrange(4, len(header) - 8)
        size = rng.choice((1, 4, 8))
        value = rng.choice((0, 1, 9, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1, rng.getrandbits(64)))
        new = (value % 2 ** (8 * size)).to_bytes(size, "little")
        return header[:at] + new + header[at + size :] + data[GGUF_HEADER:]
    return damage_bytes(header, rng) + data[GGUF_HEADER:]


def read_all(data: bytes, directory: Path) -> None:
    """All that is read of a file: what ``lpu chat`` does before it computes."""
    path = directory / "input.gguf"
    path.write_bytes(data)
    checkpoint = load_checkpoint(path)
    tokenizer = checkpoint.tokenizer
    tokenizer.decode(tokenizer.encode("ab a").ids)
    assert isinstance(checkpoint.chat_template, str | None)
    assert all(token >= 0 for token in checkpoint.end_tokens), checkpoint.special_tokens
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"):
        checkpoint.block(name, np.arange(2))
