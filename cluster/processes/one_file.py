"""A compiled model that is whole in one file: its tokenizer and embeddings travel with it.

Whoever runs it lays its files down in a directory of their own for as long as the process lasts;
actors on the same host read them there.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InputError, RunError
from cluster.processes.leftovers import hold, release
from programs.artifact import Artifact
from programs.decoder import home_of
from programs.models import Checkpoint, load_checkpoint, open_model, portable_files

#: Where files of this process's artifacts lie, by what they hold.
_unpacked: dict[str, Path] = {}
_directories: list[Path] = []


def carrying(artifact: Artifact, checkpoint: Checkpoint) -> Artifact:
    """``artifact`` with what of its checkpoint it needs to run anywhere."""
    return replace(artifact, files=portable_files(checkpoint))


def open_carried(
    artifact: Artifact, model: str | Path | None = None
) -> tuple[Artifact, Checkpoint]:
    """``artifact`` without its files, and the checkpoint that they are.

    model: to be opened instead.  An artifact of an older version has no files; its checkpoint is
    looked for where it was.  Raises InputError where it no longer is, or for a model of another
    shape than the one that was compiled; RunError where there is no room to lay files down.
    """
    if model is not None:
        checkpoint = open_model(model)
        if artifact.files:
            _check_same_shape(load_checkpoint(_unpack(artifact)), checkpoint, model)
    elif artifact.files:
        checkpoint = load_checkpoint(_unpack(artifact))
    else:
        home = home_of(artifact)
        if not home.exists():
            raise InputError(
                f"the artifact does not carry its tokenizer, as an older version wrote it, and its "
                f"checkpoint {home} is gone; name one with --model, or compile it again"
            )
        checkpoint = open_model(home)
    return replace(artifact, files={}), checkpoint


def _check_same_shape(own: Checkpoint, other: Checkpoint, model: str | Path) -> None:
    """Raise InputError unless embeddings and tokens of ``other`` could be those of ``own``."""
    for name in ("layers", "hidden_size", "heads", "kv_heads", "head_dim", "ffn", "vocab"):
        has, given = getattr(own.config, name), getattr(other.config, name)
        if has != given:
            raise InputError(
                f"--model {model}: has {name} {given}, the compiled model {has}; leave --model "
                "out, or compile that model"
            )


def _unpack(artifact: Artifact) -> Path:
    """The checkpoint that the artifact carries, laid down; what was left out are holes."""
    digest = hashlib.sha256()
    for name, (size, parts) in sorted(artifact.files.items()):
        digest.update(repr((name, size, [at for at, _ in parts])).encode())
        for _, part in parts:
            digest.update(part.data)
    key = digest.hexdigest()
    if key not in _unpacked:
        directory = Path(tempfile.mkdtemp(prefix="lpu-model-"))
        hold(directory)
        _directories.append(directory)
        try:
            for name, (size, parts) in artifact.files.items():
                _lay_down(directory / name, size, parts)
        except OSError as error:
            raise RunError(
                f"{directory}: the artifact's files cannot be laid down ({error.strerror}); free "
                "some disk, or name another directory with TMPDIR"
            ) from None
        _unpacked[key] = directory / next(iter(artifact.files)).partition("/")[0]
    return _unpacked[key]


def _lay_down(path: Path, size: int, parts: tuple[tuple[int, NDArray[np.uint8]], ...]) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        for at, part in parts:
            file.seek(at)
            file.write(part.data)
        file.truncate(size)


def forget_unpacked() -> None:
    """Remove all files that were laid down; at the end of the process by itself."""
    _unpacked.clear()
    while _directories:
        directory = _directories.pop()
        release(directory)
        shutil.rmtree(directory, ignore_errors=True)


atexit.register(forget_unpacked)
