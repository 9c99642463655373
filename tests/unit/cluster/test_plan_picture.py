"""A picture of plans hides no bar behind its legend."""

from __future__ import annotations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from cluster.plots import plans_figure

NAMES = ("weights", "kv_cache", "scores", "exchanges", "everything_else", "sampling", "norms")


@pytest.mark.parametrize("plans", [1, 2, 6])
def test_legends_lie_outside_the_axes_and_inside_the_picture(plans: int) -> None:
    parts = {name: 1000 * (i + 1) for i, name in enumerate(NAMES)}
    rows = [
        {"chips": 8 << i, "phases": parts, "sram_bytes": {n: 10 * v for n, v in parts.items()}}
        for i in range(plans)
    ]
    figure = plans_figure([*rows, {"chips": 7, "problem": "does not fit"}], ["chips"])
    FigureCanvasAgg(figure).draw()
    whole = figure.bbox
    assert len(figure.axes) == 2
    for axes in figure.axes:
        legend = axes.get_legend()
        assert legend is not None and len(legend.get_texts()) == len(NAMES)
        box, plot = legend.get_window_extent(), axes.get_window_extent()
        assert not box.overlaps(plot)
        assert axes.xaxis.label.get_window_extent().y0 >= box.y1
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0
        assert plot.height > 0.4 * whole.height
