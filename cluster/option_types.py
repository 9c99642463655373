"""Options that several commands share, as types of a parameter or of a settings object's field.

Low in the tree, so that settings objects can be made and used without any command.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
StrictRange = Annotated[
    bool,
    typer.Option("--strict-range", help="End with exit code 1 when a conversion saturated."),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Checkpoint directory, GGUF file, or target, draft or smollm2.", show_default="target"
    ),
]
#: The same where its shape is enough.
MODEL_SHAPE = "Directory, GGUF file, target, draft or smollm2; or a shape: config.json or its name."
Chips = Annotated[
    int | None,
    typer.Option(help="Chips in all: 1, 2, 4, 8 or nodes of 8.", show_default="tp x pp, or 8"),
]
NodeChips = Annotated[int, typer.Option(help="Chips: 1, 2, 4 or 8.")]
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
Chunk = Annotated[int, typer.Option(help="Tokens of a prompt that share each install of weights.")]
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
DEFAULT_CHIP = "groq-lpu-1"
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


@dataclass(frozen=True)
class MetricsSettings:
    """Where metrics are served while a command works: at port 0 nowhere."""

    metrics_port: MetricsPort = 0
    metrics_host: MetricsHost = METRICS_HOST
    metrics_linger: MetricsLinger = METRICS_LINGER_SECONDS


@dataclass(frozen=True)
class TraceSettings:
    """A trace of a run, and which of its cycles it shows."""

    trace: Trace = None
    trace_window: TraceWindow = None


@dataclass(frozen=True)
class LaunchTraceSettings(TraceSettings):
    """A trace of a run of many launches."""

    trace_launches: TraceLaunches = None


@dataclass(frozen=True)
class ReportSettings:
    """A run kept for later, and its page."""

    save: Save = None
    report: Report = None
