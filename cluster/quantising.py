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
    from programs.quantising import MatrixError

    Index = NDArray[np.int64]

#: A share of the mean square of activations, chosen on text that the model wrote itself.
DAMPING = 0.05
#: Tokens of a sequence where nobody says how many, if the model has so many positions.
LENGTH = 512


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
    length: Annotated[
        int | None,
        typer.Option(help="Tokens of each.", show_default="512, or the model's positions"),
    ] = None
    seed: Annotated[int, typer.Option(help="Of that text, and of the rotations.")] = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be, naming the option."""
        check_node(self.chips)
        check_at_least("--sequences", self.sequences, 1)
        check_at_least("--length", self.length, 2)
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed {self.seed}: use an integer from 0 to 2^63 - 1")


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

    Raises an LpuError, one line, for a model of another kind or a text that is too short; what can
    be found out before the long work is.  Where it fails or is interrupted, nothing is left behind.
    """
    from programs import quantising
    from programs.decoder import Layout
    from programs.models import open_model

    began = perf_counter()
    with quantising.new_directory(settings.to):
        tell("opening the model ...")
        checkpoint = open_model(settings.model or "target")
        most = checkpoint.config.max_position
        length = min(LENGTH, most) if settings.length is None else settings.length
        if length > most:
            raise InputError(
                f"--length {length}: the model reads {most:,} positions at most; use shorter "
                "sequences"
            )
        beside = quantising.files_beside(checkpoint, settings.chips)
        tokens = (
            None
            if settings.text is None
            else _tokens_of(settings.text, checkpoint, settings.sequences, length)
        )
        plain = quantising.plain_model(checkpoint)
        Layout.of(checkpoint.config, settings.chips)  # refuses what no chip could hold
        model = quantising.rotated(plain, settings.seed)
        if tokens is None:
            never = checkpoint.end_tokens
            tokens = quantising.sample_tokens(
                model, settings.sequences, length, settings.seed, never, tell
            )
        rounded, errors = quantising.round_model(model, tokens, settings.chips, DAMPING, tell)
        tell("writing ...")
        quantising.write_checkpoint(rounded, beside, settings.to)
    return Quantised(settings, errors, tokens.size, perf_counter() - began)


def _tokens_of(path: Path, checkpoint: Checkpoint, sequences: int, length: int) -> Index:
    """Tokens [sequences, length] of the beginning of a text."""
    import numpy as np

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise InputError(
            f"--text {path} is no text to calibrate on ({reason}); name a UTF-8 file"
        ) from None
    ids = checkpoint.tokenizer.encode(text).ids
    if len(ids) < sequences * length:
        raise InputError(
            f"--text {path}: has {len(ids):,} tokens, {sequences} sequences of {length} "
            f"need {sequences * length:,}; use a longer text, or fewer --sequences"
        )
    return np.array(ids[: sequences * length], np.int64).reshape(sequences, length)
