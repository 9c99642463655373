"""The verdicts as a table, kill rates per stratum, and all of it as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from .sampling import COMPILED, PACKAGES, stratum
from .trial import EQUIVALENT, KILLED, SURVIVED, TIMEOUT, Verdict

ALL = "all"


def lines(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """A table of mutants and one of kill rates, ready to print."""
    rows: list[Sequence[str]] = [("place", "mutant", "outcome", "s", "by")]
    for verdict in verdicts:
        rows.append(
            (
                verdict.mutant.place,
                verdict.mutant.change,
                verdict.outcome,
                f"{verdict.seconds:.0f}",
                _by(verdict),
            )
        )
    yield from _aligned(rows)
    yield ""
    counts: list[Sequence[str]] = [("", "run", KILLED, TIMEOUT, SURVIVED, EQUIVALENT, "kill rate")]
    for name, found in rates(verdicts).items():
        rate = "-" if found["kill_rate"] is None else f"{found['kill_rate']:.0%}"
        numbers = [str(found[kind]) for kind in ("run", KILLED, TIMEOUT, SURVIVED, EQUIVALENT)]
        counts.append((name, *numbers, rate))
    yield from _aligned(counts)


def row(verdict: Verdict) -> str:
    """One verdict in one line."""
    mutant = verdict.mutant
    return f"{mutant.place}  {mutant.change}  {verdict.outcome}  {_by(verdict)}".rstrip()


def rates(verdicts: Sequence[Verdict]) -> dict[str, dict[str, Any]]:
    """Per package, for compiled functions (of any package) and over all.

    The kill rate is that of the mutants run; None if none was.
    """
    found = {}
    for name in (*PACKAGES, COMPILED, ALL):
        here = [v for v in verdicts if name == ALL or stratum(v.mutant) == name]
        kinds = (KILLED, TIMEOUT, SURVIVED, EQUIVALENT)
        counts: dict[str, Any] = {kind: sum(v.outcome == kind for v in here) for kind in kinds}
        if here:
            run = len(here) - counts[EQUIVALENT]
            rate = (counts[KILLED] + counts[TIMEOUT]) / run if run else None
            found[name] = {**counts, "run": run, "kill_rate": rate}
    return found


def as_json(verdicts: Sequence[Verdict], settings: dict[str, Any]) -> dict[str, Any]:
    """Settings, every verdict with the whole mutant, and the rates."""
    rows = []
    for verdict in verdicts:
        values = asdict(verdict)
        values["mutant"]["place"] = verdict.mutant.place
        values["mutant"]["stratum"] = stratum(verdict.mutant)
        rows.append(values)
    return {"settings": settings, "verdicts": rows, "rates": rates(verdicts)}


def _by(verdict: Verdict) -> str:
    if verdict.outcome != SURVIVED:
        return verdict.by
    return f"{verdict.files} test files, {verdict.left_out} left out"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(cells[n]) for cells in rows) for n in range(len(rows[0]))]
    for cells in rows:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        yield "  ".join(padded).rstrip()
