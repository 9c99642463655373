"""The base of every error that a person can meet, in one line: what, where, what would mend it.

Its kind says whose fault it is, and with that the exit code of the command line.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class ErrorKind(Enum):
    """WRONG_INPUT: an argument or a file.  PROBLEM: the input was fine, the run found something."""

    WRONG_INPUT = "wrong input"
    PROBLEM = "problem of the run"


class LpuError(Exception):
    """Anything that goes wrong as it may; whatever else is raised is a bug."""

    kind: ClassVar[ErrorKind] = ErrorKind.WRONG_INPUT


class LpuWarning(UserWarning):
    """What is worth knowing of an input that can be used, in one line; a command says it once."""
