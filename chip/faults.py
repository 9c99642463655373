"""What can go wrong on a chip: illegal programs and chips that fell out of step.

The codes are those of ``docs/machine.md``; the checker's findings carry the same ones.
"""

from __future__ import annotations

from chip.errors import ErrorKind, LpuError
from chip.isa import safe_queue_name

#: Rule codes in a fixed order; compiled code reports the index.
CODES = (
    "queue",
    "bank",
    "in-flight",
    "bounds",
    "align",
    "driver",
    "missing",
    "want",
    "alu",
    "mxm",
    "sxm",
    "link",
    "sync",
    "offset",
)


class ProgramFault(LpuError):  # noqa: N818 (a name of the design)
    """A program broke a rule.  ``code`` names the rule; chip is -1 when it is not known."""

    kind = ErrorKind.PROBLEM

    def __init__(self, code: str, cycle: int, queue: int, message: str, *, chip: int = -1) -> None:
        self.code = code
        self.chip = chip
        self.cycle = cycle
        self.queue = queue
        self.message = message
        name = safe_queue_name(queue)
        where = f"chip {chip}, " if chip >= 0 else ""
        super().__init__(f"{where}cycle {cycle}, {name}: {code}: {message}")


class LockstepViolation(LpuError):  # noqa: N818 (a name of the design)
    """A vector arrived that is not the one this Receive was scheduled for.

    forged: its checksum is wrong, so no chip of the run sent it as it is.
    """

    kind = ErrorKind.PROBLEM

    def __init__(
        self,
        chip: int,
        peer: int,
        cycle: int,
        send_cycle: int,
        message: str,
        *,
        forged: bool = False,
    ) -> None:
        self.chip = chip
        self.peer = peer
        self.cycle = cycle
        self.send_cycle = send_cycle
        self.forged = forged
        super().__init__(message)
