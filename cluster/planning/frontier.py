"""Tokens per second of one user against tokens per second of all for a kilowatt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from cluster.planning.csv_rows import write_rows
from cluster.planning.steps import PlanStep, specs_of
from cluster.whole_files import check_writable

Row = dict[str, Any]

#: Columns of the file after what varies.
FRONTIER_COLUMNS = (
    "chips",
    "context",
    "batch",
    "mode",
    "tokens_per_second_per_user",
    "tokens_per_second_total",
    "tokens_per_second_per_kw",
    "on_frontier",
)


def frontier_points(rows: Sequence[Row]) -> list[Row]:
    """Rows that have a plan and a power, with ``tokens_per_second_per_kw`` and ``on_frontier``.

    On the frontier is what no other plan beats in one of the two without losing in the other.
    Raises InputError where no chip's power is known.
    """
    points = [
        {**row, "tokens_per_second_per_kw": 1e3 / row["energy"]["joules_per_token_in_all"]}
        for row in rows
        if row.get("energy") is not None
    ]
    if not points:
        raise _no_power()
    best = 0.0
    fastest_first = sorted(
        points,
        key=lambda p: (-p["tokens_per_second_per_user"], -p["tokens_per_second_per_kw"]),
    )
    for point in fastest_first:
        point["on_frontier"] = point["tokens_per_second_per_kw"] > best
        best = max(best, point["tokens_per_second_per_kw"])
    return points


def _no_power() -> InputError:
    return InputError(
        "--frontier: no plan has a power; give it with --set chip.average_power_w=WATTS"
    )


def check_power(steps: Sequence[PlanStep]) -> None:
    """Refuse a frontier of chips without a power, before anything is planned."""
    specs = specs_of(steps)
    if specs and not any(spec.average_power_w for spec in specs):
        raise _no_power()


def check_frontier(path: Path) -> None:
    """Refuse a file that could not be written, before anything is planned."""
    if path.suffix not in (".csv", ".png", ".svg"):
        raise InputError(f"--frontier {path}: use a name that ends in .csv, .png or .svg")
    check_writable(path)


def write_frontier(points: Sequence[Row], axes: Sequence[str], path: Path) -> None:
    """The points as CSV, in the order of the plans."""
    write_rows(points, axes, FRONTIER_COLUMNS, path)
