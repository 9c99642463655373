"""From a checkpoint directory to an artifact, with the errors people can meet on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from chip.spec import load_chip_spec
from cluster.errors import InputError
from programs.artifact import Artifact
from programs.checkpoint import Checkpoint, load_checkpoint
from programs.compiler import compile_decoder
from programs.layout import Layout
from programs.partition import partition

DTYPES = ("int8", "fp16")


def open_model(directory: Path) -> Checkpoint:
    """The checkpoint in ``directory``."""
    return load_checkpoint(directory)


def home_of(artifact: Artifact) -> Path:
    """The checkpoint directory that an artifact was compiled from."""
    home = artifact.model.get("checkpoint")
    if not isinstance(home, str) or not home:
        raise InputError("the artifact names no checkpoint: name its directory with --model")
    return Path(home)


def adopt(artifact: Artifact, checkpoint: Checkpoint, positions: int) -> Artifact:
    """``artifact`` with ``checkpoint`` for its embeddings, if the two belong together."""
    layout = Layout.of(checkpoint.config, artifact.chips)
    try:
        sizes = (
            artifact.bindings["inputs"]["x"][0][2],
            artifact.bindings["outputs"]["logits"][0][2],
        )
        most = artifact.bindings["context"]
    except (KeyError, IndexError, TypeError):
        raise InputError(
            "the artifact is no compiled decoder: compile one with lpu compile"
        ) from None
    if sizes != (layout.x_tiles, layout.vocab_blocks):
        raise InputError(
            f"the artifact was not compiled from {checkpoint.path}: name its model with --model"
        )
    if positions > most:
        raise InputError(
            f"{positions} positions asked for, but the artifact was compiled for {most}; shorten "
            "the prompt, lower --max-new-tokens, or compile with a longer --context"
        )
    return replace(artifact, model={**artifact.model, "checkpoint": str(checkpoint.path)})


def compile_model(
    checkpoint: Checkpoint, *, tp: int, dtype: str, context: int, chip: str
) -> Artifact:
    """Compile ``checkpoint`` for ``tp`` chips of type ``chip`` and ``context`` positions."""
    most = checkpoint.config.max_position
    if context > most:
        raise InputError(
            f"{context} positions asked for, but {checkpoint.path} was made for {most}; shorten "
            "the prompt, or lower --max-new-tokens or --context"
        )
    model = partition(checkpoint, tp, dtype)
    return compile_decoder(model, load_chip_spec(chip), context)
