"""Sweeps as tables for people: what fits 80 columns.  A CSV file has every column."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]

_PERCENT = re.compile(r"([0-9]+)%")


def print_sweep(title: str, rows: Sequence[Row], gpu: str | None) -> None:
    """A collective's rows (``runs.sweep_sizes``) by size; GPU times where there are any."""
    headings = ["size", "algorithm", "time", "GB/s"]
    if gpu is not None:
        headings += ["GPUs best", "p50", "p99"]
    table = _table(title, headings)
    for row in rows:
        cells = [
            size_text(row["bytes"]),
            row["algorithm"],
            time_text(row["latency_ns"]),
            f"{row['bandwidth_gb_s']:.3g}",
        ]
        if gpu is not None:
            cells += [time_text(row[f"gpu_{name}_ns"]) for name in ("best", "p50", "p99")]
        table.add_row(*cells)
    Console(highlight=False).print(table)
    typer.echo(
        "time is exact, GB/s of one chip's tensor"
        + ("" if gpu is None else f"; GPUs: as many {gpu}, an estimate")
    )
    conflicts = sum(row["link_conflicts"] for row in rows)
    if conflicts:
        typer.echo(f"link conflicts: {conflicts}")


def print_passes(title: str, passes: Sequence[Row]) -> None:
    """The passes of a block in order of time, and what each waited for, cycle by cycle."""
    table = _table(title, ["pass", "begins", "ends", "late"])
    table.add_column("waited for (who had it)")
    table.columns[0].justify = "left"
    for one in sorted(passes, key=lambda placed: (placed["start"], placed["end"])):
        waits = [
            f"{wait['cycles']:,} {wait['resource']} ({wait['holder'] or 'no name'})"
            for wait in one["waits"]
        ]
        times = (one["start"], one["end"], one["start"] - one["wanted"])
        cells = (f"{number:,}" for number in times)
        table.add_row(one["name"] or "no name", *cells, "\n".join(waits) or "-")
    Console(highlight=False).print(table)


#: Plans of one bottleneck that are named one by one, at most.
_LISTED = 4
_INTERVAL = "interval\nof a belt"
#: Columns of plans beside what varies; where two things vary the interval has no room.
_PLAN_COLUMNS: list[tuple[str, Callable[[Row], str]]] = [
    ("chips", lambda row: f"{row['chips']:,}"),
    ("tp x\nstages", lambda row: f"{row['tp']} x {row['pp']}"),
    ("cycles\nper token", lambda row: f"{row['cycles_per_token']:,}"),
    (_INTERVAL, lambda row: f"{row['initiation_interval_cycles']:,}"),
    ("tokens/s\nper user", lambda row: _rate(row["tokens_per_second_per_user"])),
    ("tokens/s\nin all", lambda row: _rate(row["tokens_per_second_total"])),
    ("J per\ntoken", lambda row: _joules(row)),
]


def _rate(per_second: float) -> str:
    return f"{per_second:,.1f}" if per_second < 10_000 else f"{per_second:,.0f}"


def _joules(row: Row) -> str:
    energy = row["energy"]
    return "-" if energy is None else f"{energy['joules_per_token_in_all']:.3g}"


def print_plans(title: str, axes: Sequence[str], rows: Sequence[Row]) -> None:
    """Plans side by side, then each bottleneck once and why some points have no plan."""
    priced = any("cost" in row for row in rows)
    left_out = {*axes, *([_INTERVAL] if priced or len(axes) > 1 else [])}
    columns = [column for column in _PLAN_COLUMNS if column[0] not in left_out]
    if priced:
        columns.append(
            ("cost of\nM tokens", lambda row: f"{row['cost']['per_million_tokens']:,.3g}")
        )
    numbers = [name for name in axes if all(isinstance(row[name], int) for row in rows)]
    table = _table(title, [*map(_heading, axes), *(heading for heading, _ in columns)])
    for column, name in zip(table.columns, axes, strict=False):
        column.justify = "right" if name in numbers else "left"
        column.no_wrap = name in numbers
    bottlenecks: dict[str, list[Row]] = {}
    problems: list[str] = []
    for row in rows:
        if "problem" in row:
            problems.append(f"no plan for {_point(row, axes)}: {row['problem']}")
            continue
        table.add_row(*(_shown(row[name]) for name in axes), *(text(row) for _, text in columns))
        bottlenecks.setdefault(_PERCENT.sub("%", row["bottleneck"]), []).append(row)
    Console(highlight=False).print(table)
    for alike in bottlenecks.values():
        values = [" / ".join(_shown(row[name]) for name in axes) for row in alike]
        shown = (
            "; ".join(values)
            if len(values) <= _LISTED
            else f"{values[0]} to {values[-1]} ({len(values)} plans)"
        )
        typer.echo(f"bottleneck at {' and '.join(axes)} {shown}: {_in_short(alike)}")
    for problem in problems:
        typer.echo(problem)


def _heading(name: str) -> str:
    """A field's name over several lines."""
    return name.replace("chip.", "").replace("_cycles", "\ncycles").replace("_per_", "\nper_")


def _point(row: Row, axes: Sequence[str]) -> str:
    return ", ".join(f"{name} {_shown(row[name])}" for name in axes)


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def _in_short(alike: Sequence[Row]) -> str:
    """A bottleneck that differs in its percentages only, with their range over the rows."""
    shares = zip(
        *([int(n) for n in _PERCENT.findall(row["bottleneck"])] for row in alike), strict=True
    )
    ranges = iter(
        [
            f"{min(share)}%" if min(share) == max(share) else f"{min(share)} to {max(share)}%"
            for share in shares
        ]
    )
    return _PERCENT.sub(lambda _: next(ranges), alike[0]["bottleneck"])


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for heading in headings:
        justify: Any = "left" if heading == "algorithm" else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    return table


def size_text(count: int) -> str:
    """Bytes in the largest binary unit of which there is at least one."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min((count.bit_length() - 1) // 10, len(units) - 1) if count else 0
    return f"{count / 1024**power:.4g} {units[power]}"


def time_text(ns: float) -> str:
    """Nanoseconds in us, or in ms from 10 ms on."""
    return f"{ns / 1e6:,.2f} ms" if ns >= 1e7 else f"{ns / 1e3:,.2f} us"
