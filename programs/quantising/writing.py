"""A rounded model as a checkpoint directory of Llama's kind, float32, for every command."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from programs.models import CHIPS_OF_ROUNDING, Checkpoint, special_numbers
from programs.quantising.plain import PlainModel, QuantisingError, matrix_name

__all__ = ["files_beside", "new_directory", "write_checkpoint"]

F32 = NDArray[np.float32]

CONFIG, TENSORS = "config.json", "model.safetensors"
#: What a directory may hold for its tokens and its generation: taken over byte for byte.
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """Make a directory for a checkpoint; where the work inside fails, it goes again if it is empty.

    Raises QuantisingError, before any work, where something lies already or nothing can be written.
    """
    made: list[Path] = []
    try:
        try:
            check_new(directory)
            made = [one for one in (directory, *directory.parents) if not one.exists()]
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            raise _unwritten(directory, error) from None
        yield directory
    except BaseException:
        with suppress(OSError):  # what somebody has put something into stays
            for one in made:
                one.rmdir()
        raise


def files_beside(checkpoint: Checkpoint, chips: int) -> dict[str, bytes]:
    """The contents of every file but the tensors', by name; ``config.json`` is the last.

    A directory's own files for tokens and generation are taken as they are; those of a GGUF file
    are made.  Raises CheckpointError for what cannot be read.
    """
    found: dict[str, bytes] = {}
    numbers = special_numbers(checkpoint)
    if checkpoint.path is not None:
        tokenizer = checkpoint.tokenizer  # read, as the template, whether copied or not
        texts: dict[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": checkpoint.config.max_position,
            "clean_up_tokenization_spaces": False,
            **checkpoint.special_tokens,
        }
        if (template := checkpoint.chat_template) is not None:
            texts["chat_template"] = template
        if checkpoint.path.is_dir():
            own = ((name, checkpoint.path / name) for name in COPIED)
            found = {name: file.read_bytes() for name, file in own if file.is_file()}
        else:
            found["tokenizer.json"] = tokenizer.to_str().encode()
            found["tokenizer_config.json"] = _json(texts)
    config = checkpoint.config
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
        **numbers,
        CHIPS_OF_ROUNDING: chips,
    }
    return {**found, CONFIG: _json(fields)}


def write_checkpoint(model: PlainModel, beside: Mapping[str, bytes], directory: Path) -> None:
    """Write ``model`` and the files ``beside`` its tensors, see ``files_beside``.

    The gains of norms are 1, and the head has weights of its own.  ``config.json`` is written
    last: without it there is no checkpoint.  Raises QuantisingError as ``new_directory`` does, and
    where there is no room.
    """
    gain = np.ones(model.config.hidden_size, np.float32)
    tensors: dict[str, F32] = {"model.embed_tokens.weight": model.embedding}
    for number, layer in enumerate(model.layers):
        tensors |= {matrix_name(number, name): matrix for name, matrix in layer.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{number}.{norm}.weight"] = gain
    tensors |= {"model.norm.weight": gain, "lm_head.weight": model.head}
    written: list[Path] = []
    with new_directory(directory):
        try:
            with _new_file(directory / TENSORS, written) as stream:
                _write_tensors(stream, tensors)
            for name, contents in beside.items():
                with _new_file(directory / name, written) as stream:
                    stream.write(contents)
        except BaseException as error:
            for file in written:
                with suppress(OSError):
                    file.unlink()
            if isinstance(error, OSError):
                raise _unwritten(directory, error) from None
            raise


def _new_file(file: Path, written: list[Path]) -> BinaryIO:
    """Open a file that was not there, and add it to ``written``."""
    stream = file.open("xb")
    written.append(file)
    return stream


def check_new(directory: Path) -> None:
    """Raise QuantisingError where something lies already."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise QuantisingError(f"{directory} is not empty; name a new directory for the checkpoint")


def _unwritten(directory: Path, error: OSError) -> QuantisingError:
    reason = error.strerror or type(error).__name__
    return QuantisingError(
        f"{directory}: no checkpoint written: {reason}; name another directory, or make room"
    )


def _json(fields: Mapping[str, object]) -> bytes:
    return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()


def _write_tensors(stream: BinaryIO, tensors: Mapping[str, F32]) -> None:
    """A safetensors file: the length of its header, the header, the tensors one behind another."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        stream.write(np.ascontiguousarray(tensor, "<f4").data)
