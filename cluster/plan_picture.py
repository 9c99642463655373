"""Pictures of plans: cycles of a token by phase, and SRAM of the fullest chip by use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.whole_files import replace_file

Row = dict[str, Any]


def draw_plans(path: Path, rows: list[Row], swept: str) -> None:
    """Stacked bars of ``rows``, one per plan that fits; ``swept`` names their labels."""
    import matplotlib
    from matplotlib.figure import Figure

    fitting = [row for row in rows if "phases" in row]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
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
            axes.legend(fontsize="small")
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "lpu"}):
        replace_file(
            path,
            lambda target: figure.savefig(target, format=path.suffix[1:], metadata=metadata),
        )
