"""What a workload script has in common with others: options, progress, metrics, a result as JSON.

A script is a function that does the work and returns plain data; ``run_workload`` makes a program
of it that behaves like ``lpu``: one line for an error, exit codes 0, 1 and 2.  The result stays as
one JSON object in a file, because a submitted job's output scrolls away and its working directory
is a copy that Ray removes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from cluster import option_types
from cluster.commands import options
from cluster.commands.invoke import interrupt, invoke
from cluster.commands.settings import takes_settings
from cluster.processes import JOB_VARIABLE
from cluster.whole_files import check_writable, replace_file

if TYPE_CHECKING:
    from cluster.metrics import Board

RESULTS = "lpu-results"
RESULTS_VARIABLE = "LPU_RESULTS_DIR"


@dataclass(frozen=True)
class ScriptJob:
    """What a script is given.  board: for metrics, None where nobody asked for them."""

    name: str
    board: Board | None

    def say(self, line: str) -> None:
        """A line of progress on stdout, at once: jobs are followed while they run."""
        print(line, flush=True)


def results_directory() -> Path:
    """Where results go: ``LPU_RESULTS_DIR``; else ``lpu-results`` here, of a job in its home."""
    return kept_place(Path(os.environ.get(RESULTS_VARIABLE) or RESULTS))


def kept_place(path: Path) -> Path:
    """``path``, absolute: from here, or of a job, whose directory is removed, from its home."""
    return (Path.home() if os.environ.get(JOB_VARIABLE) else Path.cwd()) / path


def run_workload(name: str, work: Callable[[ScriptJob], dict[str, Any]]) -> NoReturn:
    """Run ``work`` with the process's arguments, leave its result as JSON, and exit."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command(help=(sys.modules["__main__"].__doc__ or "").split("\n\n")[0])
    @takes_settings
    def workload(
        context: typer.Context,
        *,
        result: Annotated[
            Path | None,
            typer.Option(
                "--json", help="Write the result here.", show_default="lpu-results/NAME.json"
            ),
        ] = None,
        metrics: option_types.MetricsSettings,
    ) -> None:
        path = result
        if path is None:
            path = results_directory() / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
        path = kept_place(path)
        check_writable(path)
        board = options.board_of(context, metrics)
        data = {"workload": name, **work(ScriptJob(name, board))}
        text = json.dumps(data, indent=1) + "\n"

        def write(target: Path) -> None:
            target.write_text(text, encoding="utf-8")

        replace_file(path, write)
        print(f"result: {path.resolve()}", flush=True)

    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(invoke(app, sys.argv[1:], f"{name}.py"))
