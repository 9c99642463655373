"""Findings: what breaks a rule, in words, and collecting them about rows of a program's columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from chip.isa import safe_queue_name
from chip.program import Columns, Ints

ERROR, WARNING = "error", "warning"

#: Findings kept per rule and call; the rest are dropped.
FINDINGS_PER_RULE = 100


@dataclass(frozen=True)
class Finding:
    """One broken rule (or warning): who, when, against whom, and what would mend it.

    ``block`` is the index of the instruction's block in the program, -1 where it has none.
    """

    code: str
    chip: int | None
    cycle: int
    queue: int
    instruction: str
    other: str
    mend: str
    severity: str = ERROR
    block: int = -1

    def __str__(self) -> str:
        """One line: severity, rule, place, instruction, other party, mend."""
        where = "" if self.chip is None else f"chip {self.chip} "
        return (
            f"{self.severity} [{self.code}] {where}cycle {self.cycle} "
            f"{safe_queue_name(self.queue)}: {self.instruction}: {self.other}; {self.mend}"
        )


class CheckReport:
    """Collects findings about rows of one program's columns."""

    def __init__(self, columns: Columns, chip: int | None) -> None:
        self.columns = columns
        self.chip = chip
        self.findings: list[Finding] = []

    def add(
        self,
        code: str,
        rows: Ints,
        other: Callable[[int], str] | str,
        mend: str,
        severity: str = ERROR,
    ) -> None:
        """One finding per row; ``other`` gets the index into ``rows`` (not the row)."""
        if len(rows) == 0:
            return
        c = self.columns
        order = np.argsort(c.cycle[rows], kind="stable")
        for i in order[:FINDINGS_PER_RULE].tolist():
            row = int(rows[i])
            self.findings.append(
                Finding(
                    code,
                    self.chip,
                    int(c.cycle[row]),
                    int(c.queue[row]),
                    c.text(row),
                    other if isinstance(other, str) else other(i),
                    mend,
                    severity,
                    int(c.block[row]),
                )
            )

    def against(
        self, code: str, rows: Ints, others: Ints, mend: str, note: str = "", severity: str = ERROR
    ) -> None:
        """One finding per row whose other party is a row too (-1: none)."""

        def name(i: int) -> str:
            row = int(others[i])
            return f"{note}{self.columns.place(row)}" if row >= 0 else f"{note}nothing"

        self.add(code, rows, name, mend, severity)
