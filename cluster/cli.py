"""The command ``lpu``.

Results go to stdout, progress to stderr.  Exit codes: 0 fine, 1 the run found a problem, 2 the
input or the arguments are wrong; an error is one line that says what, where and how to mend it.
"""

from __future__ import annotations

import signal
import sys
from typing import Annotated, NoReturn

import typer

from cluster.commands import artifacts, assembling, benchmarks, experiment, fabric, workload
from cluster.commands.belt import belt
from cluster.commands.chat import chat
from cluster.commands.clean import clean
from cluster.commands.evaluate import evaluate
from cluster.commands.generate import generate
from cluster.commands.help_pages import Verb
from cluster.commands.invoke import interrupt, invoke
from cluster.commands.plan import plan
from cluster.commands.quantise import quantise
from cluster.commands.report import report


def _print_version(asked: bool) -> None:
    if asked:
        from cluster.commands.version import version

        typer.echo(f"lpu-cluster {version()}")
        raise typer.Exit


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def lpu(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """A cluster of LPUs, emulated: exact numbers, exact cycles."""


app.command(cls=Verb)(generate)
app.command(cls=Verb)(chat)
app.command(cls=Verb)(evaluate)
app.command(cls=Verb)(quantise)
app.command("compile", cls=Verb)(artifacts.compile_)
app.command(cls=Verb)(assembling.assemble)
app.command(cls=Verb)(artifacts.check)
app.command(cls=Verb)(artifacts.inspect)
app.command(cls=Verb)(artifacts.run)
app.command(cls=Verb)(plan)
app.command(cls=Verb)(belt)
app.command(cls=Verb)(benchmarks.bench)
app.command(cls=Verb)(report)
app.command(cls=Verb)(clean)
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
