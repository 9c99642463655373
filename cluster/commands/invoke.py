"""Running a command: its exit code, and whatever goes wrong as one line on stderr.

Exit codes: 0 fine, 1 the run found a problem, 2 the input or the arguments are wrong.
"""

from __future__ import annotations

import os
import sys
import warnings
from types import FrameType
from typing import TextIO

import typer

from chip.errors import ErrorKind, LpuError, LpuWarning
from cluster.errors import one_line

FINE, PROBLEM, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

#: The command line's own complaints (an unknown option, a number that is none).
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def invoke(verbs: typer.Typer, arguments: list[str], program: str) -> int:
    """Run ``program``, whose ``verbs`` these are, with ``arguments``; the exit code.

    With ``LPU_DEBUG`` set an error is raised on instead of told in a line.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("default", LpuWarning)
        warnings.showwarning = _tell
        return _invoke(verbs, arguments, program)


def _invoke(verbs: typer.Typer, arguments: list[str], program: str) -> int:
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
    if isinstance(error, LpuError):
        wrong = error.kind is ErrorKind.WRONG_INPUT
        return _complain(one_line(error), WRONG_INPUT if wrong else PROBLEM)
    if isinstance(error, MemoryError):
        return _complain(one_line(error), PROBLEM)
    return _complain(
        f"internal error: {type(error).__name__}: {one_line(error)} (LPU_DEBUG=1 shows where)",
        PROBLEM,
    )


def _tell(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """What ``warnings`` calls: ours in a line, others as ever."""
    if issubclass(category, LpuWarning):
        typer.echo(f"lpu: {' '.join(str(message).split())}", err=True)
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, end="", file=file or sys.stderr)


def _complain(text: str, code: int) -> int:
    typer.echo(f"lpu: {' '.join(text.split())}", err=True)
    return code


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal handler: end the command as Ctrl-C does."""
    raise KeyboardInterrupt
