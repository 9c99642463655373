"""Pictures of plans: cycles of a token by phase, and SRAM of the fullest chip by use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.whole_files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


def draw_plans(path: Path, rows: list[Row], swept: str) -> None:
    """The picture of ``plans_figure`` as a file, PNG or SVG by the path's suffix."""
    import matplotlib

    figure = plans_figure(rows, swept)
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "lpu"}):
        replace_file(
            path,
            lambda target: figure.savefig(target, format=path.suffix[1:], metadata=metadata),
        )


def plans_figure(rows: list[Row], swept: str) -> Figure:
    """Stacked bars of ``rows``, one per plan that fits; ``swept`` names their labels."""
    from matplotlib.figure import Figure

    fitting = [row for row in rows if "phases" in row]
    figure = Figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = [f"{row[swept]:,}" for row in fitting]
    for axes, key, scale, title, unit in (
        (left, "phases", 1e3, "cycles of one token", "thousand cycles"),
        (right, "sram_bytes", 1e6, "SRAM of the fullest chip", "MB"),
    ):
        names = list(fitting[0][key]) if fitting else []
        bottom = [0.0] * len(fitting)
        for name in names:
            heights = [row[key][name] / scale for row in fitting]
            axes.bar(labels, heights, bottom=bottom, label=name.replace("_", " "))
            bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.set_xlabel(swept)
        if names:
            # Below the bars: inside it would cover the tallest.
            axes.legend(
                fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2
            )
    return figure
