"""What the options of a command mean besides their values: where they come from, what they open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cluster.option_types import MetricsSettings

if TYPE_CHECKING:
    from cluster.metrics import Board


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
