"""Sweeps as tables for people: what fits 80 columns.  A CSV file has every column."""

from __future__ import annotations

import re
from collections.abc import Sequence
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


def print_plans(title: str, swept: str, rows: Sequence[Row]) -> None:
    """Plans side by side, then each bottleneck once and why steps of the sweep have no plan."""
    headings = [swept] if swept == "chips" else [swept, "chips"]
    headings += [
        "tp x\nstages",
        "cycles\nper token",
        "interval\nof a belt",
        "tokens/s\nper user",
        "tokens/s\nin all",
        "J per\ntoken",
    ]
    table = _table(title, headings)
    bottlenecks: dict[str, list[Row]] = {}
    problems: list[str] = []
    for row in rows:
        if "problem" in row:
            problems.append(f"no plan for {swept} {row[swept]:,}: {row['problem']}")
            continue
        energy = row["energy"]
        cells = [f"{row[swept]:,}"] + ([] if swept == "chips" else [f"{row['chips']:,}"])
        table.add_row(
            *cells,
            f"{row['tp']} x {row['pp']}",
            f"{row['cycles_per_token']:,}",
            f"{row['initiation_interval_cycles']:,}",
            f"{row['tokens_per_second_per_user']:,.1f}",
            f"{row['tokens_per_second_total']:,.1f}",
            "-" if energy is None else f"{energy['joules_per_token_in_all']:.3g}",
        )
        bottlenecks.setdefault(_PERCENT.sub("%", row["bottleneck"]), []).append(row)
    Console(highlight=False).print(table)
    for alike in bottlenecks.values():
        values = "; ".join(f"{row[swept]:,}" for row in alike)
        typer.echo(f"bottleneck at {swept} {values}: {_in_short(alike)}")
    for problem in problems:
        typer.echo(problem)


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
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
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
