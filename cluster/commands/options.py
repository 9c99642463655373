"""Options that several verbs share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from cluster.option_checks import (
    CHIPS,
    check_at_least,
    check_at_most,
    check_choice,
    check_node,
    check_plot,
)
from cluster.option_types import (
    METRICS_HOST,
    METRICS_LINGER_SECONDS,
    ChipType,
    Json,
    MetricsHost,
    MetricsLinger,
    MetricsPort,
    MetricsSettings,
    Plot,
    Report,
    Save,
)

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
    "board_opener",
    "check_at_least",
    "check_at_most",
    "check_choice",
    "check_node",
    "check_plot",
    "end_tokens",
    "given",
    "open_board",
]


def open_board(context: typer.Context, port: int, host: str, linger: float) -> Board | None:
    """The board that is exported until the command's end; None where no port is given."""
    from cluster.metrics import Exporter, exported

    board: Board | None = context.with_resource(exported(Exporter(port, host, linger)))
    return board


def board_opener(
    context: typer.Context, metrics: MetricsSettings
) -> Callable[[], Board | None]:
    """What opens the board when it is called; see ``open_board``."""
    return lambda: open_board(
        context, metrics.metrics_port, metrics.metrics_host, metrics.metrics_linger
    )


def given(context: typer.Context, parameter: str) -> bool:
    """Whether a parameter stood on the command line, and not in the environment."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def end_tokens(model: dict[str, Any]) -> tuple[int, ...]:
    """Token ids that end a text, from a ``config.json``."""
    value = model.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool))
