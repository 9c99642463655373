"""The two ways a command ends badly where no package below has an error of its own for it.

``InputError`` (exit code 2): an argument or a file is wrong; the text says what, where and how to
mend it.  ``RunError`` (exit code 1): the input was fine and the run found a problem.
"""

from __future__ import annotations

from chip.errors import ErrorKind, LpuError


class InputError(LpuError):
    """A wrong argument or input file."""


class RunError(LpuError):
    """A run that found a problem, for instance a chip that retired at an unexpected cycle."""

    kind = ErrorKind.PROBLEM


def one_line(error: BaseException) -> str:
    """The error's text on one line; the class name where there is no text."""
    return " ".join(str(error).split()) or type(error).__name__
