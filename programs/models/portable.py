"""What of a checkpoint travels with a compiled model: enough to read prompts and to write answers.

Texts go whole; of a file of weights, its header and the embeddings.  What is left out reads as
zeros where the files are laid down again: such a checkpoint opens as the one it was taken of, and
feeds chips that have their weights already, but nothing can be compiled from it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from programs.models.checkpoint import Checkpoint
from programs.models.gguf import GgufSource
from programs.models.gguf_metadata import FREQUENCY_FACTORS
from programs.models.names import NamedSource
from programs.models.tensors import CheckpointError, header_bytes

__all__ = ["PartsOfFile", "portable_files"]

PartsOfFile = tuple[int, tuple[tuple[int, NDArray[np.uint8]], ...]]
"""Bytes of the whole file, and what is kept of it: (offset, uint8 [n]), ascending and apart."""

#: What a directory says besides weights, as ``checkpoint`` and ``generation`` read it.
TEXTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "model.safetensors.index.json",
)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def portable_files(checkpoint: Checkpoint) -> dict[str, PartsOfFile]:
    """The files to lay down elsewhere, by their paths below any directory.

    ``NAME/config.json`` and so on, or ``NAME.gguf``; the first part is what to open.  Empty for a
    model that exists only in memory.  Raises CheckpointError for files that cannot be read.
    """
    source, path = checkpoint.source, checkpoint.path
    if path is None:
        return {}
    if isinstance(source, GgufSource):
        first = min((tensor.begin for tensor in source.file.tensors.values()), default=0)
        ranges = source.places(EMBEDDING) + source.places(FREQUENCY_FACTORS)
        return {_name(path): _parts(path, [(0, first), *ranges])}
    assert isinstance(source, NamedSource)
    kept: dict[Path, list[tuple[int, int]]] = {
        file: [(0, _size(file))] for name in TEXTS if (file := path / name).is_file()
    }
    for file in sorted(path.glob("*.safetensors")):
        kept[file] = [(0, header_bytes(file))]
    # A head that is declared to be the embedding is compared with it when a checkpoint is opened.
    names = (EMBEDDING, HEAD) if checkpoint.config.tied else (EMBEDDING,)
    for file, begin, end in (place for name in names for place in source.places(name)):
        kept[file].append((begin, end))
    return {f"{_name(path)}/{file.name}": _parts(file, ranges) for file, ranges in kept.items()}


def _name(path: Path) -> str:
    """The path's own name, by which reports call the model; not hidden, and in Unicode."""
    plain = path.resolve().name.lstrip(".").encode("utf-8", "replace").decode("utf-8")
    return plain if plain.isprintable() and plain else "model"


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise _unreadable(file, error) from None


def _parts(file: Path, ranges: list[tuple[int, int]]) -> PartsOfFile:
    """The bytes of ``ranges`` (first, end) of a file, mapped; those that meet become one."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if joined and begin <= joined[-1][1]:
            begin, end = joined[-1][0], max(end, joined.pop()[1])
        if begin < end:
            joined.append((begin, end))
    if not joined:
        return _size(file), ()
    try:
        data = np.memmap(file, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from None
    return len(data), tuple((begin, np.asarray(data[begin:end])) for begin, end in joined)


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{file} can no longer be read ({error}); put the file back")
