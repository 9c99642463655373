"""Options that several verbs share, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.errors import InputError
from cluster.whole_files import check_writable

if TYPE_CHECKING:
    from cluster.metrics import Board

CHIPS = (1, 2, 4, 8)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Model = Annotated[
    str | None,
    typer.Option(help="Checkpoint directory, or target or draft.", show_default="target"),
]
#: The same where its shape is enough.
MODEL_SHAPE = "Checkpoint directory, target or draft; or a shape: config.json or its name."
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
Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace", help="Write a trace: .json, .json.gz or .pftrace.", show_default="none"
    ),
]
TraceWindow = Annotated[
    str | None,
    typer.Option(help="With --trace: cycles FIRST:LAST of the run.", show_default="all"),
]
TraceLaunches = Annotated[
    int | None,
    typer.Option(help="With --trace: the last so many launches.", show_default="all"),
]
Save = Annotated[
    Path | None,
    typer.Option("--save", help="Write the run for lpu report: .json.", show_default="none"),
]
Report = Annotated[
    Path | None, typer.Option("--report", help="Write an HTML report.", show_default="none")
]
Faults = Annotated[
    Path | None,
    typer.Option(help="Faults of the modelled machine, a TOML file.", show_default="none"),
]
ChipType = Annotated[str, typer.Option("--chip", help="Chip preset or a TOML file.")]

MetricsPort = Annotated[
    int,
    typer.Option(
        help="Serve Prometheus metrics on this port.",
        envvar="LPU_METRICS_PORT",
        show_default="none",
    ),
]
MetricsHost = Annotated[
    str, typer.Option(help="With --metrics-port: address to serve on.", envvar="LPU_METRICS_HOST")
]
MetricsLinger = Annotated[
    float,
    typer.Option(
        help="With --metrics-port: seconds to stay after the end, at most, until two scrapes have "
        "taken the final values.",
        envvar="LPU_METRICS_LINGER",
    ),
]
METRICS_HOST = "127.0.0.1"
METRICS_LINGER_SECONDS = 15.0


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
