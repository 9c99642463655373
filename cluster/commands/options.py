"""Options that several verbs share, and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    MODEL_SHAPE,
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
    "MODEL_SHAPE",
    "ChipType",
    "Json",
    "MetricsHost",
    "MetricsLinger",
    "MetricsPort",
    "Plot",
    "Report",
    "Save",
    "board_of",
    "check_at_least",
    "check_at_most",
    "check_choice",
    "check_node",
    "check_plot",
    "given",
    "open_board",
]


def open_board(context: typer.Context, port: int, host: str, linger: float) -> Board | None:
    """The board that is exported until the command's end; None where no port is given."""
    return board_of(context, MetricsSettings(port, host, linger))


def board_of(context: typer.Context, metrics: MetricsSettings) -> Board | None:
    """The board that is exported until the command's end; None where no port is given."""
    from cluster.metrics import Exporter, exported

    exporter = Exporter(metrics.metrics_port, metrics.metrics_host, metrics.metrics_linger)
    board: Board | None = context.with_resource(exported(exporter))
    return board


def given(context: typer.Context, parameter: str) -> bool:
    """Whether a parameter stood on the command line, and not in the environment."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"
