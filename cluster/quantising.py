"""``lpu quantise``: from a model to a checkpoint of int8 weights that compensate each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from cluster import option_types
from cluster.errors import InputError
from cluster.option_checks import check_at_least, check_node

if TYPE_CHECKING:  # a command's help loads no arrays
    import numpy as np
    from numpy.typing import NDArray

    from programs.models import Checkpoint
    from programs.quantising import MatrixError, PlainModel

    Index = NDArray[np.int64]

#: A share of the mean square of activations, chosen on text that the model wrote itself.
DAMPING = 0.05


@dataclass(frozen=True)
class QuantiseSettings:
    """A model's weights rounded to int8 for ``chips`` that share every matrix.

    - model: as ``programs.models.open_model`` takes it; None for ``target``.  to: a new directory.
    - sequences of length tokens are the calibration text: the beginning of ``text``, or where there
      is none what the model writes itself.  seed: of that text, and of the rotations.

    Raises InputError, one line, for what cannot be.
    """

    to: Annotated[Path, typer.Option(help="New directory for the checkpoint.")]
    model: option_types.Model = None
    chips: option_types.NodeChips = 8
    text: Annotated[
        Path | None,
        typer.Option(help="A UTF-8 text to calibrate on.", show_default="written by the model"),
    ] = None
    sequences: Annotated[int, typer.Option(help="Sequences of the calibration text.")] = 12
    length: Annotated[int, typer.Option(help="Tokens of each.")] = 512
    seed: Annotated[int, typer.Option(help="Of that text, and of the rotations.")] = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be, naming the option."""
        check_node(self.chips)
        check_at_least("--sequences", self.sequences, 1)
        check_at_least("--length", self.length, 2)
        check_at_least("--seed", self.seed, 0)


@dataclass(frozen=True)
class Quantised:
    """What was done.  errors: of every matrix.  tokens: of the calibration text, in all."""

    settings: QuantiseSettings
    errors: list[MatrixError]
    tokens: int
    wall_seconds: float


def quantise_model(
    settings: QuantiseSettings, tell: Callable[[str], None] = lambda _: None
) -> Quantised:
    """Write the checkpoint; ``tell`` hears what goes on.

    Raises an LpuError, one line, for a model of another kind or a text that is too short.
    """
    from programs.models import open_model
    from programs.quantising import check_new, plain_model, rotated, round_model, write_checkpoint

    began = perf_counter()
    check_new(settings.to)
    tell("opening the model ...")
    checkpoint = open_model(settings.model or "target")
    if settings.length > checkpoint.config.max_position:
        raise InputError(
            f"--length {settings.length}: the model reads {checkpoint.config.max_position:,} "
            "positions at most; use shorter sequences"
        )
    model = rotated(plain_model(checkpoint), settings.seed)
    tokens = _calibration(settings, checkpoint, model, tell)
    rounded, errors = round_model(model, tokens, settings.chips, DAMPING, tell)
    tell("writing ...")
    write_checkpoint(rounded, checkpoint, settings.to)
    return Quantised(settings, errors, tokens.size, perf_counter() - began)


def _calibration(
    settings: QuantiseSettings,
    checkpoint: Checkpoint,
    model: PlainModel,
    tell: Callable[[str], None],
) -> Index:
    """Tokens [sequences, length]."""
    import numpy as np

    from programs.quantising import sample_tokens

    sequences, length = settings.sequences, settings.length
    if settings.text is None:
        never = checkpoint.end_tokens
        return sample_tokens(model, sequences, length, settings.seed, never, tell)
    try:
        text = settings.text.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise InputError(
            f"--text {settings.text} is no text to calibrate on ({reason}); name a UTF-8 file"
        ) from None
    ids = checkpoint.tokenizer.encode(text).ids
    if len(ids) < sequences * length:
        raise InputError(
            f"--text {settings.text}: has {len(ids):,} tokens, {sequences} sequences of {length} "
            f"need {sequences * length:,}; use a longer text, or fewer --sequences"
        )
    return np.array(ids[: sequences * length], np.int64).reshape(sequences, length)
