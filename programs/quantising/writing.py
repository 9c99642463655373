"""A rounded model as a checkpoint directory of Llama's kind, float32, for every command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from programs.models import Checkpoint
from programs.quantising.plain import PlainModel, QuantisingError, matrix_name

__all__ = ["check_new", "write_checkpoint"]

F32 = NDArray[np.float32]


def write_checkpoint(model: PlainModel, checkpoint: Checkpoint, directory: Path) -> None:
    """Write ``model`` with the tokenizer and chat template of the ``checkpoint`` it came from.

    The gains of norms are 1, and the head has weights of its own.  ``config.json`` is written
    last: without it there is no checkpoint.  See ``check_new``.
    """
    check_new(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = model.config
    gain = np.ones(config.hidden_size, np.float32)
    tensors: dict[str, F32] = {"model.embed_tokens.weight": model.embedding}
    for number, layer in enumerate(model.layers):
        tensors |= {matrix_name(number, name): matrix for name, matrix in layer.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{number}.{norm}.weight"] = gain
    tensors |= {"model.norm.weight": gain, "lm_head.weight": model.head}
    _write_tensors(directory / "model.safetensors", tensors)
    if checkpoint.path is not None:
        checkpoint.tokenizer.save(str(directory / "tokenizer.json"))
    texts: dict[str, str] = dict(checkpoint.special_tokens)
    if checkpoint.chat_template is not None:
        texts["chat_template"] = checkpoint.chat_template
    _write_json(directory / "tokenizer_config.json", texts)
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.eps,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": list(checkpoint.end_tokens),
    }
    _write_json(directory / "config.json", fields)


def check_new(directory: Path) -> None:
    """Raise QuantisingError where something lies already."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise QuantisingError(f"{directory} is not empty; name a new directory for the checkpoint")


def _write_json(file: Path, fields: Mapping[str, object]) -> None:
    file.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tensors(file: Path, tensors: Mapping[str, F32]) -> None:
    """A safetensors file: the length of its header, the header, the tensors one behind another."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            stream.write(np.ascontiguousarray(tensor, "<f4").data)
