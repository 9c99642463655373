"""``lpu bench``: prints the table that ``cluster.bench`` measures."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster import option_types

#: Names of ``cluster.bench.ROWS``, told without loading what measures them.
ROW_NAMES = (
    "decode_vs_numpy",
    "prefill_vs_numpy",
    "engine_vs_reference",
    "tokens_per_wall_second",
    "first_token_seconds",
    "actors_vs_one_process",
    "allreduce_10440",
    "fabric_flit_hops",
    "allreduce_functional_vs_numpy",
    "plan_70b",
    "timing_chip_cycles",
    "smollm2_token_seconds",
    "smollm2_tokens_per_wall_second",
    "smollm2_first_token_seconds",
    "smollm2_vs_llamacpp",
    "speculative_tokens_per_wall_second",
    "load_10000_requests",
    "trace_overhead",
    "metrics_overhead",
    "recovery_seconds",
    "snapshot_overhead",
)


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(help=f"Rows to measure: {', '.join(ROW_NAMES)}.", show_default="all"),
    ] = None,
    as_json: option_types.Json = False,
) -> None:
    """Measure the performance table, or the rows named."""
    from rich.console import Console
    from rich.table import Table

    from cluster.bench import Row, measure, select
    from cluster.commands.output import print_json, stderr_console, working

    chosen, left_out = select(names or [])
    for line in left_out:
        typer.echo(line, err=True)
    rows: list[Row] = []
    with working("", stderr_console()) as tell:
        for name in chosen:
            tell(f"measuring {name} ...")
            rows += measure(name)
    if as_json:
        print_json(
            {
                "results": [
                    {
                        "name": row.name,
                        "value": row.value,
                        "unit": row.unit,
                        "baseline": row.baseline,
                        "ratio": row.ratio,
                        "baseline_is": row.baseline_is,
                    }
                    for row in rows
                ]
            }
        )
        return
    table = Table(title="lpu bench", title_justify="left")
    for heading in ("row", "value", "baseline", "ratio", "baseline is"):
        table.add_column(heading, no_wrap=heading == "row")  # what would be typed to ask for it
    for row in rows:
        table.add_row(
            row.name,
            f"{row.value:.4g} {row.unit}",
            f"{row.baseline:.4g} {row.unit}",
            f"{row.ratio:.3g}",
            row.baseline_is,
        )
    Console(highlight=False).print(table)
