"""The command ``lpu``.

Results go to stdout, progress to stderr.  Exit codes: 0 fine, 1 the run found a problem, 2 the
input or the arguments are wrong; an error is one line that says what, where and how to mend it.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import typer

from cluster.commands import artifacts, assembling, benchmarks, experiment, fabric, workload
from cluster.commands.belt import belt
from cluster.commands.generate import generate
from cluster.commands.invoke import interrupt, invoke
from cluster.commands.plan import plan
from cluster.commands.report import report

app = typer.Typer(
    help="A cluster of LPUs, emulated: exact numbers, exact cycles.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(generate)
app.command("compile")(artifacts.compile_)
app.command()(assembling.assemble)
app.command()(artifacts.check)
app.command()(artifacts.inspect)
app.command()(artifacts.run)
app.command()(plan)
app.command()(belt)
app.command()(benchmarks.bench)
app.command()(report)
app.add_typer(fabric.app, name="fabric")
app.add_typer(experiment.app, name="experiment")
app.add_typer(workload.app, name="workload")


def main() -> NoReturn:
    """Run ``lpu`` with the process's arguments and exit."""
    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run ``lpu`` with ``arguments``; the exit code."""
    return invoke(app, arguments, "lpu")


if __name__ == "__main__":
    main()
