"""What ``--model`` names, the same in every command: the one rule for names of models.

A model is named by the directory of its checkpoint, by a ``config.json`` (a shape without weights),
or by a name of ``ARCHITECTURES``, of which only those of ``SHIPPED`` have weights here.  What a
command needs of a model differs: its shape is enough to count; kernels have to exist for it to be
planned; it runs only where its weights are.  What does not suffice is refused in one line, which
offers nothing that would be refused in turn.

The kernels are those of Llama-family decoders (rotary positions, RMS norms, grouped queries,
SwiGLU), of Qwen3 (norms of query and key heads), of Gemma (GeGLU) and of Mixtral (a router that
chooses two experts).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chip.errors import LpuWarning
from programs.models.architectures import (
    ARCHITECTURES,
    SHIPPED,
    Architecture,
    missing_kernels,
    shape_of,
    shipped_model,
)
from programs.models.checkpoint import Checkpoint, load_checkpoint
from programs.models.config import GELU_TANH, SILU, ModelConfig, read_config
from programs.models.tensors import CheckpointError, has_weights

__all__ = ["ModelSource", "Need", "architecture", "config_of", "find_model", "open_model"]

Need = Literal["shape", "kernels", "weights"]
"""What a command needs of a model; each includes the ones before."""
#: Positions of a model by name: its own limit is not part of its shape.
UNLIMITED = 1 << 30


@dataclass(frozen=True)
class ModelSource:
    """What a model's name stands for.

    config: None where there are no kernels for the model.  checkpoint: the directory of its
    weights, None where only its shape is known.
    """

    architecture: Architecture
    config: ModelConfig | None
    checkpoint: Path | None

    @property
    def name(self) -> str:
        """The name of its shape, or of the directory it lies in."""
        return self.architecture.name


def find_model(source: str | Path, need: Need = "shape") -> ModelSource:
    """The model that ``source`` names: a name of ``ARCHITECTURES`` first, then a path.

    A known name means that model even where a file or directory is called the same (``./name``, and
    any ``Path``, means the directory).  Raises CheckpointError with one line for what does not
    exist, cannot be read, or has less than ``need``.
    """
    if isinstance(source, str) and source in ARCHITECTURES:
        found = _named(source)
    else:
        path = Path(source)
        if not path.exists():
            raise CheckpointError(
                f"model {str(source)!r} does not exist; name a checkpoint directory or one of "
                f"{_offered(need)}"
            )
        config = read_config(path)
        directory = path if path.is_dir() else path.parent
        shape = shape_of(directory.resolve().name, config)
        # A directory with a config.json alone is a shape, as the file itself is.
        found = ModelSource(shape, config, path if path.is_dir() and has_weights(path) else None)
    if found.config is None and need != "shape":
        lacking = " and ".join(missing_kernels(found.architecture))
        raise CheckpointError(
            f"model {str(source)!r} needs {lacking}, for which there are no kernels; "
            f"use one of {_offered(need)}"
        )
    if found.checkpoint is None and need == "weights":
        raise CheckpointError(
            f"model {str(source)!r} is a shape without weights; name the directory of a "
            f"checkpoint that has them, or use {_offered(need, ' or ')}"
        )
    return found


def architecture(source: str | Path) -> Architecture:
    """The shape of a model; see ``find_model``."""
    return find_model(source).architecture


def config_of(source: str | Path) -> tuple[str, ModelConfig]:
    """(name, configuration) of a model that kernels can compute; see ``find_model``."""
    found = find_model(source, "kernels")
    assert found.config is not None
    return found.name, found.config


def open_model(source: str | Path) -> Checkpoint:
    """The checkpoint of a model whose weights are here; see ``find_model``, ``load_checkpoint``.

    Warns with an LpuWarning of one line of stored tensors that nothing computes with.
    """
    found = find_model(source, "weights")
    assert found.checkpoint is not None
    checkpoint = load_checkpoint(found.checkpoint)
    if checkpoint.unread:
        count, first = len(checkpoint.unread), checkpoint.unread[0]
        those = f"tensor {first!r}" if count == 1 else f"{count} tensors ({first!r} ...)"
        warnings.warn(
            LpuWarning(f"{checkpoint.path}: {those} not read: no part of the decoder"),
            stacklevel=2,
        )
    return checkpoint


def _named(name: str) -> ModelSource:
    """A model of ``ARCHITECTURES``."""
    shape = ARCHITECTURES[name]
    if name in SHIPPED:
        return ModelSource(shape, read_config(shipped_model(name)), shipped_model(name))
    if missing_kernels(shape):
        return ModelSource(shape, None, None)
    config = ModelConfig(
        hidden_size=shape.hidden_size,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        ffn=shape.ffn,
        vocab=shape.vocab,
        tied=shape.tied,
        max_position=UNLIMITED,
        head_norms=shape.head_norms,
        activation=GELU_TANH if shape.gemma else SILU,
        unit_gain=shape.gemma,
        scaled_embedding=shape.gemma,
        experts=shape.experts,
        experts_per_token=shape.experts_per_token,
    )
    return ModelSource(shape, config, None)


def _offered(need: Need, last: str = ", ") -> str:
    """The names that have what is needed."""
    names = [
        name
        for name, shape in ARCHITECTURES.items()
        if need == "shape" or (name in SHIPPED if need == "weights" else not missing_kernels(shape))
    ]
    return last.join(names)
