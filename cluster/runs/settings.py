"""What the runs can be asked for: settings objects, the same from Python and from ``lpu``.

Plain data; an object that exists makes sense, or making it raised InputError or CompileError.  The
options of the command line are in the annotations, see ``cluster.commands.settings``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cluster import option_types
from cluster.errors import InputError
from cluster.option_checks import CHIPS, check_at_least, check_choice

DTYPES = ("int8", "fp16")
SYNC = ("lookahead", "barrier")
DEFAULT_PROMPT = "def "


@dataclass(frozen=True)
class GenerateSettings:
    """A generation, from a prompt to its continuation.

    model: a checkpoint directory, None for the shipped one or that of ``artifact``.  chips, tp, pp:
    None for what the others leave.  address: of a Ray to join, None for a private one.  context:
    positions to compile for, None for as many as the text can take.
    """

    model: option_types.Model = None
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = DEFAULT_PROMPT
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 32
    chips: option_types.Chips = None
    tp: option_types.Tp = None
    pp: option_types.Pp = None
    chips_per_actor: Annotated[str, typer.Option(help="Chips per process, or auto.")] = "auto"
    sync: Annotated[str, typer.Option(help="lookahead or barrier.")] = "lookahead"
    dtype: option_types.Dtype = "int8"
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join, or auto.", show_default="a private local Ray"),
    ] = None
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0
    context: option_types.Context = None
    chip: option_types.ChipType = "groq-lpu-1"
    artifact: Annotated[
        Path | None,
        typer.Option(
            help="Run this .lpu file instead of compiling the model.", show_default="none"
        ),
    ] = None
    in_process: Annotated[
        bool, typer.Option("--in-process", help="All chips in this process, without Ray.")
    ] = False
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after an end-of-text token.")
    ] = False

    def __post_init__(self) -> None:
        """Refuse what cannot be, naming the option."""
        _ = self.split
        check_choice("--dtype", self.dtype, DTYPES)
        check_choice("--sync", self.sync, SYNC)
        check_at_least("--max-new-tokens", self.max_new_tokens, 1)
        check_at_least("--context", self.context, 1)
        if not self.temperature >= 0 or self.temperature == float("inf"):
            raise InputError(f"--temperature {self.temperature}: use a finite number, 0 or more")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed {self.seed}: use an integer from 0 to 2^63 - 1")
        _ = self.packing

    @property
    def split(self) -> tuple[int, int]:
        """Chips that share every matrix, and stages of so many."""
        from programs.decoder import check_parallelism

        return check_parallelism(self.chips, self.tp, self.pp)

    @property
    def packing(self) -> int | None:
        """Chips per process; None for as many as fit."""
        text = self.chips_per_actor
        if text == "auto":
            return None
        if text.isascii() and text.isdigit() and int(text) in CHIPS:
            return int(text)
        raise InputError(f"--chips-per-actor {text}: use 1, 2, 4, 8 or auto")
