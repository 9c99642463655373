"""Options that several verbs share, and what they mean."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import InputError
from cluster.whole_files import check_writable

CHIPS = (1, 2, 4, 8)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Model = Annotated[
    Path | None,
    typer.Option(help="Hugging Face checkpoint directory.", show_default="shipped model"),
]
Chips = Annotated[
    int | None,
    typer.Option(help="Chips in all: 1, 2, 4, 8 or nodes of 8.", show_default="tp x pp, or 8"),
]
Tp = Annotated[
    int | None,
    typer.Option(help="Chips that share every matrix: 1, 2, 4 or 8.", show_default="chips / pp"),
]
Pp = Annotated[
    int | None,
    typer.Option(help="Pipeline stages of tp chips each.", show_default="chips / tp"),
]
Dtype = Annotated[str, typer.Option(help="Number type of weights: int8 or fp16.")]
Context = Annotated[
    int | None, typer.Option(help="Positions to compile for.", show_default="what is needed")
]
Plot = Annotated[
    Path | None, typer.Option(help="Write a picture: .png or .svg.", show_default="none")
]
ChipType = Annotated[str, typer.Option("--chip", help="Chip preset or a TOML file.")]


def shipped_model() -> Path:
    """The checkpoint that comes with the package."""
    return Path(str(files("programs") / "checkpoints" / "target"))


def check_parallelism(
    chips: int | None, tp: int | None = None, pp: int | None = None
) -> tuple[int, int]:
    """The tensor parallelism and the pipeline stages that the three options ask for."""
    for option, value in (("--chips", chips), ("--tp", tp), ("--pp", pp)):
        check_at_least(option, value, 1)
    if chips is None:
        chips = (tp or (8 if pp is None else 0)) * (pp or 1) or 8 * (pp or 1)
    if tp is None:
        tp = chips // pp if pp else min(chips, 8)
    if tp not in CHIPS:
        raise InputError(
            f"--chips {chips} --pp {pp or 1}: {tp} chips would share every matrix; use 1, 2, 4 or 8"
        )
    stages = pp or chips // tp
    if tp * stages != chips:
        raise InputError(
            f"--chips {chips} with --tp {tp} and {stages} pipeline stages: {tp} x {stages} are "
            f"{tp * stages}; use --chips {tp * stages}"
        )
    return tp, stages


def check_node(chips: int) -> None:
    """Refuse a number of chips that no node has."""
    if chips not in CHIPS:
        raise InputError(f"--chips {chips}: a node has 1, 2, 4 or 8 chips; use one of these")


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> str:
    """``value`` if it is one of ``choices``."""
    if value not in choices:
        raise InputError(f"{option} {value}: use {' or '.join(choices)}")
    return value


def check_at_least(option: str, value: int | None, least: int) -> None:
    """Refuse a number below ``least``."""
    if value is not None and value < least:
        raise InputError(f"{option} {value}: use {least} or more")


def check_plot(path: Path | None) -> None:
    """Refuse a picture that could not be written, before anything is computed for it."""
    if path is None:
        return
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"--plot {path}: use a name that ends in .png or .svg")
    check_writable(path)


def check_at_most(option: str, value: int, most: int) -> None:
    """Refuse a number above ``most``."""
    if value > most:
        raise InputError(f"{option} {value}: use {most} or less")


def end_tokens(model: dict[str, Any]) -> tuple[int, ...]:
    """Token ids that end a text, from a ``config.json``."""
    value = model.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool))
