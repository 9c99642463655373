"""What an evaluation can be asked for; an object that exists makes sense."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cluster import option_types
from cluster.errors import InputError
from cluster.option_checks import check_at_least, check_choice, check_node
from cluster.runs import DTYPES

GOLDEN, CHIPS = "golden", "chips"
#: Tokens of a window where nobody says how many, if the model has so many positions.
WINDOW = 512
#: New tokens after each prompt where nobody says how many.
NEW_TOKENS = 48


@dataclass(frozen=True)
class EvaluateSettings:
    """The emulated model against a plain float32 forward: on a text, or on prompts.

    - model: as ``programs.models.open_model`` takes it; None for ``target``.
    - reference: the model that float32 computes, as model; None for the same.  Its residual streams
      may be turned: without layers.
    - text: a UTF-8 file; None for the shipped models' held-out text.  tokens: of it, predicted;
      None for all.  context: tokens of a window; its last prediction sees them all.
    - layers: the residual streams are compared as well, after attention and FFN of every layer.
    - prompts: a file with one on each line, instead of a text: greedy continuations of at most
      max_new_tokens are compared token for token.  chat: the lines are messages.
    - on: what computes the emulated model: ``golden`` (the golden model) or ``chips``.

    Raises InputError, one line, for what cannot be.
    """

    model: option_types.Model = None
    reference: Annotated[
        str | None,
        typer.Option(
            help="Model that float32 computes, of the same tokens.", show_default="the same"
        ),
    ] = None
    text: Annotated[
        Path | None,
        typer.Option(help="A UTF-8 text.", show_default="held-out text of the shipped models"),
    ] = None
    tokens: Annotated[
        int | None, typer.Option(help="Tokens of it to predict, at most.", show_default="all")
    ] = None
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of a window.", show_default="512, or the model's positions"),
    ] = None
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Instead: continue each line of this file and compare the tokens.",
            show_default="none",
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None, typer.Option(help="With --prompts: tokens of each.", show_default="48")
    ] = None
    chat: Annotated[
        bool, typer.Option("--chat", help="With --prompts: lines are messages to a chat model.")
    ] = False
    dtype: option_types.Dtype = "int8"
    chips: Annotated[
        int | None, typer.Option(help="Chips: 1, 2, 4 or 8.", show_default="tp, or 8")
    ] = None
    tp: Annotated[
        int | None,
        typer.Option(help="The same: all chips share every matrix.", show_default="chips"),
    ] = None
    chip: option_types.ChipType = option_types.DEFAULT_CHIP
    on: Annotated[
        str,
        typer.Option(help="What computes: golden (fast, the chips' bits) or chips (their engine)."),
    ] = GOLDEN
    layers: Annotated[
        bool, typer.Option("--layers", help="Where does error enter: layer by layer.")
    ] = False

    def __post_init__(self) -> None:
        """Refuse what cannot be, naming the option."""
        check_choice("--dtype", self.dtype, DTYPES)
        check_choice("--on", self.on, (GOLDEN, CHIPS))
        check_at_least("--tokens", self.tokens, 1)
        check_at_least("--context", self.context, 3)
        check_at_least("--max-new-tokens", self.max_new_tokens, 1)
        _ = self.node
        if self.layers and self.on == CHIPS:
            raise InputError("--layers: chips show no layer; use --on golden")
        if self.layers and self.reference is not None:
            raise InputError(
                "--layers: residual streams of another model are not comparable; use it without "
                "--reference"
            )
        if self.chip != option_types.DEFAULT_CHIP and self.on != CHIPS:
            raise InputError("--chip: numbers of the golden model are those of all; use --on chips")
        if self.prompts is None and (self.chat or self.max_new_tokens is not None):
            raise InputError("--max-new-tokens and --chat: only with --prompts")
        if self.prompts is not None and (self.text or self.tokens or self.context or self.layers):
            raise InputError("--text, --tokens, --context and --layers: only without --prompts")

    @property
    def node(self) -> int:
        """Chips that share every matrix."""
        given = self.tp if self.chips is None else self.chips
        node = check_node(8 if given is None else given)
        if self.tp is not None and self.tp != node:
            raise InputError(
                f"--tp {self.tp}: an evaluation takes one node, of which all {node} chips share "
                "every matrix; give --chips alone"
            )
        return node
