"""From a checkpoint directory to an artifact, with the errors people can meet on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chip.spec import load_chip_spec
from cluster.errors import InputError
from interconnect.wiring import Topology
from programs.artifact import Artifact
from programs.decoder import ChipImages, Layout, compiler, partition_model
from programs.models import Checkpoint

Rows = NDArray[np.uint8]


def home_of(artifact: Artifact) -> Path:
    """The checkpoint directory that an artifact was compiled from."""
    home = artifact.model.get("checkpoint")
    if not isinstance(home, str) or not home:
        raise InputError("the artifact names no checkpoint: name its directory with --model")
    return Path(home)


def adopt(artifact: Artifact, checkpoint: Checkpoint, positions: int) -> Artifact:
    """``artifact`` with ``checkpoint`` for its embeddings, if the two belong together."""
    try:
        layout = Layout.of(checkpoint.config, artifact.model["tp"])
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
    checkpoint: Checkpoint, *, tp: int, dtype: str, context: int, chip: str, pp: int = 1,
    wiring: Topology | None = None,
) -> Artifact:  # fmt: skip
    """Compile for ``pp`` stages of ``tp`` chips of type ``chip`` and ``context`` positions.

    wiring: as for ``compile_decoder``.
    """
    compiled, images = compile_apart(
        checkpoint, tp=tp, dtype=dtype, context=context, chip=chip, pp=pp, wiring=wiring
    )
    compiled.memory = images.of(range(compiled.chips))
    join_images(compiled)
    return compiled


def compile_apart(
    checkpoint: Checkpoint, *, tp: int, dtype: str, context: int, chip: str, pp: int = 1,
    wiring: Topology | None = None,
) -> tuple[Artifact, ChipImages]:  # fmt: skip
    """As ``compile_model``, the memory images apart: whoever has a chip reads its weights."""
    most = checkpoint.config.max_position
    if context > most:
        raise InputError(
            f"{context} positions asked for, but {checkpoint.path} was made for {most}; shorten "
            "the prompt, or lower --max-new-tokens or --context"
        )
    model = partition_model(checkpoint, tp, dtype)
    return compiler.compile_apart(
        model, load_chip_spec(chip), context, pp=pp, wiring=wiring
    )


def join_images(artifact: Artifact) -> None:
    """Make one piece of neighbouring pieces of the memory images, in place.

    The compiler emits thousands of pieces of a few words, and a file's header lists every piece.
    """
    for chip, image in enumerate(artifact.memory):
        runs: list[list[tuple[int, int, Rows]]] = []
        for piece in sorted(image, key=lambda piece: piece[:2]):
            last = runs[-1][-1] if runs else (-1, 0, piece[2])
            if (last[0], last[1] + len(last[2])) == piece[:2]:
                runs[-1].append(piece)
            else:
                runs.append([piece])
        artifact.memory[chip] = [
            (run[0][0], run[0][1], np.concatenate([rows for _, _, rows in run])) for run in runs
        ]
