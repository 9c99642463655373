"""Checkpoints of decoders, as Hugging Face or GGUF has them: configuration, tensors, tokenizer.

A checkpoint directory holds ``config.json``, one or more ``*.safetensors`` files (with
``model.safetensors.index.json`` when there are several) and ``tokenizer.json``; a GGUF file holds
all of it (``programs.models.gguf``).  Everything about it is checked when it is opened -
architecture, presence, shape and number type of every tensor (``programs.models.names``) - and
nothing is read until it is asked for: tensors are views of mapped files, decoded to float32 row by
row on request, so a caller who reads slices never holds a whole matrix.

This module knows how a checkpoint is stored (``programs.models.config`` what its configuration
means).  It knows nothing about chips, and it never runs the model.  Every problem is a
`CheckpointError` of one line.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from programs.models.config import ModelConfig, RopeScaling, tensor_shapes
from programs.models.families import read_config
from programs.models.generation import chat_template_of, end_tokens_of, special_tokens_of
from programs.models.gguf import GgufSource, is_gguf, read_gguf
from programs.models.gguf_metadata import (
    gguf_chat_template,
    gguf_config,
    gguf_end_tokens,
    gguf_source,
    gguf_special_tokens,
    gguf_tokenizer,
)
from programs.models.names import name_tensors
from programs.models.tensors import CheckpointError, TensorSource, find_tensors, read_json

__all__ = [
    "CHIPS_OF_ROUNDING",
    "Checkpoint",
    "CheckpointError",
    "ModelConfig",
    "RopeScaling",
    "continuation",
    "load_checkpoint",
    "random_checkpoint",
    "read_config",
    "read_tokenizer",
    "special_numbers",
    "tensor_shapes",
]

F32 = NDArray[np.float32]
Index = NDArray[np.int64]

#: A field of ``config.json``: the chips for whose slices ``lpu quantise`` rounded the weights.
CHIPS_OF_ROUNDING = "rounded_for_chips"


@dataclass(frozen=True)
class Checkpoint:
    """A model's configuration and its tensors, read on request."""

    config: ModelConfig
    source: TensorSource
    path: Path | None = None
    """The directory or GGUF file, absolute, or None for a model that exists only in memory."""
    unread: tuple[str, ...] = ()
    """Names of stored tensors that no part of the decoder computes with."""
    rounded_for: int | None = None
    """Chips for whose slices the weights lie on int8's steps; None where nobody says so."""

    def tensor(self, name: str) -> F32:
        """Return the whole tensor `name` as float32 in its stored shape."""
        return self.source.read(name, None, None)

    def block(self, name: str, rows: Index, columns: Index | None = None) -> F32:
        """Return float32 [rows, columns] of matrix `name`; only these elements are read."""
        return self.source.read(name, rows, columns)

    def embedding_row(self, token: int) -> F32:
        """Return the embedding of `token`, float32 [hidden_size]."""
        if not 0 <= token < self.config.vocab:
            raise CheckpointError(
                f"token {token} is outside the vocabulary of {self.config.vocab}; "
                "use a token of this model's tokenizer"
            )
        rows = np.array([token], dtype=np.int64)
        row: F32 = self.source.read("model.embed_tokens.weight", rows, None)[0]
        return row

    @property
    def head_name(self) -> str:
        """Name of the output head's tensor [vocab, hidden_size]."""
        return "model.embed_tokens.weight" if self.config.tied else "lm_head.weight"

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the directory or file, loaded at each access."""
        if isinstance(self.source, GgufSource):
            return gguf_tokenizer(self.source.file)
        if self.path is None:
            raise CheckpointError("a model in memory has no tokenizer; give token numbers instead")
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; copy it from where the model was published")
        return read_tokenizer(file)

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Token ids that end a text; none for a model in memory."""
        if isinstance(self.source, GgufSource):
            return gguf_end_tokens(self.source.file)
        return () if self.path is None else end_tokens_of(self.path)

    @property
    def chat_template(self) -> str | None:
        """The Jinja text that turns a chat into a prompt; None where there is none."""
        if isinstance(self.source, GgufSource):
            return gguf_chat_template(self.source.file)
        return None if self.path is None else chat_template_of(self.path)

    @property
    def special_tokens(self) -> dict[str, str]:
        """Texts of the tokens that a chat template knows by name, such as ``bos_token``."""
        if isinstance(self.source, GgufSource):
            return gguf_special_tokens(self.source.file)
        return {} if self.path is None else special_tokens_of(self.path)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Open the directory or GGUF file `path` and check that it is complete and supported."""
    # Absolute: an actor, and whoever opens an artifact later, works in another directory.
    directory = Path(path).absolute()
    if is_gguf(directory):
        file = read_gguf(directory)
        config = gguf_config(file)
        return Checkpoint(config, gguf_source(file, config), file.path)
    config = read_config(directory)
    source, unread = name_tensors(directory, config, find_tensors(directory))
    chips = read_json(directory / "config.json").get(CHIPS_OF_ROUNDING)
    rounded_for = chips if isinstance(chips, int) else None
    return Checkpoint(config, source, directory, unread, rounded_for)


def special_numbers(checkpoint: Checkpoint) -> dict[str, Any]:
    """``bos_token_id`` and its like as a ``config.json`` has them; only those that there are.

    Of a directory they are its own, as they are.
    """
    path = checkpoint.path
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    if path is None or path.is_dir():
        fields = {} if path is None else read_json(path / "config.json")
        return {name: fields[name] for name in names if name in fields}
    tokenizer = checkpoint.tokenizer
    texts = checkpoint.special_tokens
    found: dict[str, Any] = {
        name: tokenizer.token_to_id(texts[name.removesuffix("_id")])
        for name in ("bos_token_id", "pad_token_id")
        if name.removesuffix("_id") in texts
    }
    return {**found, "eos_token_id": list(checkpoint.end_tokens)}


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer in ``file``; raises CheckpointError with one line for what is none.

    The file's settings for batches of training, truncation and padding, are off: a prompt is
    taken as it is.
    """
    value = read_json(file)
    # The library cuts this prefix off the second half of every merge without looking, and may end
    # the process where it is not there; byte-level vocabularies, the only ones here, have none.
    model = value.get("model")
    if isinstance(model, dict) and model.get("continuing_subword_prefix"):
        raise CheckpointError(
            f"{file} gives its model a continuing_subword_prefix, which byte-level tokens do not "
            "have; set it to null"
        )
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8-sig"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    except BaseException as error:  # the library's panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:100]
        raise CheckpointError(
            f"{file} is no readable tokenizer ({reason}); fetch the file again"
        ) from None


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text that ``tokens`` add to a prompt.

    Some decoders drop the space that a text begins with: tokens decoded alone would lose it.
    """
    before = tokenizer.decode(list(prompt))
    whole = tokenizer.decode([*prompt, *tokens])
    # A prompt that ends within a character becomes another text with the next token.
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(list(tokens))


class _RandomSource:
    """Tensors drawn from a counter-based generator keyed by seed and name; the last is kept."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self._shapes = tensor_shapes(config)
        self._tied = config.tied
        self._gain = 0.0 if config.unit_gain else 1.0
        self._seed = seed
        self._kept: tuple[str, F32] | None = None

    def read(self, name: str, rows: Index | None, columns: Index | None) -> F32:
        """Generate and slice; see `TensorSource.read`."""
        if name not in self._shapes:
            raise CheckpointError(f"a model of this configuration has no tensor {name!r}")
        if self._kept is None or self._kept[0] != name:
            self._kept = (name, self._generate(name))
        values = self._kept[1]
        values = values if rows is None else values[rows]
        return values.copy() if columns is None else values[:, columns]

    def _generate(self, name: str) -> F32:
        shape = self._shapes[name]
        key = np.array([self._seed, zlib.crc32(name.encode())], dtype=np.uint64)
        values = np.random.Generator(np.random.Philox(key=key)).random(shape, dtype=np.float32)
        values -= np.float32(0.5)
        if name.endswith(("bias", ".sinks")):
            return values
        if len(shape) == 1:  # a norm's gain, 1 +- 0.25
            return values * np.float32(0.5) + np.float32(self._gain)
        # uniform with standard deviation 1 / sqrt(inputs), 1 for an embedding that is no head
        deviation = 1.0 if "embed" in name and not self._tied else shape[1] ** -0.5
        values *= np.float32(math.sqrt(12.0) * deviation)
        return values


def random_checkpoint(config: ModelConfig, seed: int) -> Checkpoint:
    """Return a model of seeded random weights (uniform, sensible scales), without any file."""
    return Checkpoint(config, _RandomSource(config, seed))
