"""Options that several verbs share, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cluster.errors import InputError
from cluster.option_types import (
    METRICS_HOST,
    METRICS_LINGER_SECONDS,
    ChipType,
    Json,
    MetricsHost,
    MetricsLinger,
    MetricsPort,
    Plot,
    Report,
    Save,
)
from cluster.whole_files import check_writable

if TYPE_CHECKING:
    from cluster.metrics import Board

#: What commands use of this module; the types are of ``cluster.option_types``.
__all__ = [
    "CHIPS",
    "METRICS_HOST",
    "METRICS_LINGER_SECONDS",
    "ChipType",
    "Json",
    "MetricsHost",
    "MetricsLinger",
    "MetricsPort",
    "Plot",
    "Report",
    "Save",
    "check_at_least",
    "check_at_most",
    "check_choice",
    "check_node",
    "check_parallelism",
    "check_plot",
    "end_tokens",
    "given",
    "open_board",
    "shipped_model",
]

CHIPS = (1, 2, 4, 8)

def open_board(context: typer.Context, port: int, host: str, linger: float) -> Board | None:
    """The board that is exported until the command's end; None where no port is given."""
    from cluster.metrics import Exporter, exported

    board: Board | None = context.with_resource(exported(Exporter(port, host, linger)))
    return board


def given(context: typer.Context, parameter: str) -> bool:
    """Whether a parameter stood on the command line, and not in the environment."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


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
