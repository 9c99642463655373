"""The command ``lpu``.

Results go to stdout, progress to stderr.  Exit codes: 0 fine, 1 the run found a problem, 2 the
input or the arguments are wrong; an error is one line that says what, where and how to mend it.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from cluster.commands import artifacts, assembling, benchmarks, experiment, fabric, workload
from cluster.commands.belt import belt
from cluster.commands.clean import clean
from cluster.commands.generate import generate
from cluster.commands.help_pages import Verb
from cluster.commands.plan import plan
from cluster.commands.report import report
from cluster.errors import InputError, RunError, one_line

FINE, PROBLEM, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


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
        typer.Option("--version", help="Print the version and exit.", callback=_print_version,
                     is_eager=True),
    ] = False,
) -> None:  # fmt: skip
    """A cluster of LPUs, emulated: exact numbers, exact cycles."""


app.command(cls=Verb)(generate)
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

#: The command line's own complaints (an unknown option, a number that is none).
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def main() -> NoReturn:
    """Run ``lpu`` with the process's arguments and exit."""
    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str], verbs: typer.Typer = app, program: str = "lpu") -> int:
    """Run ``lpu``, or another ``program`` with its verbs, with ``arguments``; the exit code."""
    try:
        code = verbs(arguments, prog_name=program, standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:
            return _complain("interrupted", INTERRUPTED)
        return code if isinstance(code, int) else FINE
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read the output has enough; keep the interpreter from complaining at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PROBLEM
    except Exception as error:
        if os.environ.get("LPU_DEBUG"):
            raise
        return _explain(error)


def _explain(error: Exception) -> int:
    # Typer asks for help by raising a usage error without text.
    if isinstance(error, UsageError):
        text = getattr(error, "format_message", lambda: "")()
        return _complain(f"{text or 'name a verb'} (see lpu --help)", WRONG_INPUT)
    if isinstance(error, InputError | _input_errors()):
        return _complain(one_line(error), WRONG_INPUT)
    if isinstance(error, RunError | _run_errors()):
        return _complain(one_line(error), PROBLEM)
    return _complain(
        f"internal error: {type(error).__name__}: {one_line(error)} (LPU_DEBUG=1 shows where)",
        PROBLEM,
    )


def _input_errors() -> type[Exception] | object:
    from chip.scheduling import CompileError
    from chip.spec import SpecError
    from interconnect.clocks import ClockError
    from interconnect.wires import LinkFramesError
    from interconnect.wiring import FabricError
    from programs.artifact import ArtifactError
    from programs.decoder import PartitionError
    from programs.faults import FaultPlanError
    from programs.models import CheckpointError

    return (
        CompileError | SpecError | ArtifactError | CheckpointError | PartitionError | FabricError
        | ClockError | LinkFramesError | FaultPlanError
    )  # fmt: skip


def _run_errors() -> type[Exception] | object:
    from chip.faults import LockstepViolation, ProgramFault
    from cluster.processes import MappingError
    from interconnect.clocks import AlignmentError, DriftError
    from programs.faults import UnrecoverableError
    from programs.running import StuckError

    return (
        ProgramFault | LockstepViolation | AlignmentError | DriftError | MappingError | StuckError
        | MemoryError | UnrecoverableError
    )  # fmt: skip


def _complain(text: str, code: int) -> int:
    typer.echo(f"lpu: {' '.join(text.split())}", err=True)
    return code


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal handler: end the command as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
