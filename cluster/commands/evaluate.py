"""``lpu evaluate``: how far the emulated model is from float32."""

from __future__ import annotations

from typing import Any

from cluster import option_checks, option_types
from cluster.commands.settings import takes_settings
from cluster.errors import InputError
from cluster.evaluation import EvaluateSettings


@takes_settings
def evaluate(
    settings: EvaluateSettings,
    plot: option_types.Plot = None,
    strict_range: option_types.StrictRange = False,
    as_json: option_types.Json = False,
) -> None:
    """Compare a model's numbers with float32 on a text, or its answers to prompts."""
    option_checks.check_plot(plot)
    if plot is not None and not settings.layers:
        raise InputError("--plot: a picture shows where error enters; use --layers, on a text")
    from cluster import evaluation
    from cluster.commands.output import (
        check_range,
        print_json,
        print_table,
        stderr_console,
        working,
    )
    from programs.running import saturation_text

    with working("evaluating ...", stderr_console()) as tell:
        done = evaluation.evaluate(settings, tell)
    rows = evaluation.layer_rows(done)
    if plot is not None:
        from cluster.plots import draw_layers

        draw_layers(rows, f"{settings.model or 'target'}, {settings.dtype}", plot)
    if as_json:
        print_json(evaluation.evaluation_json(done))
    else:
        print_table("evaluated", evaluation.evaluation_facts(done))
        _print_layers(rows)
    check_range(strict_range, saturation_text(done.saturations))


def _print_layers(rows: list[dict[str, Any]]) -> None:
    """A line for each layer."""
    if not rows:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="relative error of the residual stream (rms)", title_justify="left")
    for name in ("layer", "after attention", "after FFN"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(str(row["layer"]), f"{row['attention']:.3g}", f"{row['ffn']:.3g}")
    Console(highlight=False).print(table)
