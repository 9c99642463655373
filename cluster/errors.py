"""The two ways a command ends badly; everything a user can meet is one of them, in one line.

``InputError`` (exit code 2): an argument or a file is wrong; the text says what, where and how to
mend it.  ``RunError`` (exit code 1): the input was fine and the run found a problem.
"""

from __future__ import annotations


class InputError(Exception):
    """A wrong argument or input file."""


class RunError(Exception):
    """A run that found a problem, for instance a chip that retired at an unexpected cycle."""


def one_line(error: BaseException) -> str:
    """The error's text on one line; the class name where there is no text."""
    return " ".join(str(error).split()) or type(error).__name__
