"""What the pictures of experiments show: every number of the rows at its place, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator

from cluster import plots
from cluster.experiments.serving import PS, Latencies
from cluster.experiments.speculative import (
    GPU_DRAFT,
    GPU_ONLY,
    LOOKUP,
    LPU_KV,
    LPU_ONLY,
    LPU_TOKENS,
)

NOWHERE = Path("nowhere.svg")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The figures made, not written."""
    found: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: found.append(figure))
    yield found
    for axes in (one for figure in found for one in figure.axes if one.has_data()):
        # to read numbers off; what says that there is nothing has none
        lines = [*axes.get_xgridlines(), *axes.get_ygridlines()]
        assert any(line.get_visible() for line in lines), axes.get_title()


def bars(axes: Axes) -> list[tuple[float, float, float, float]]:
    """(middle, width, bottom, height) of every bar."""
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [
        (b.get_x() + b.get_width() / 2, b.get_width(), b.get_y(), b.get_height()) for b in boxes
    ]


def labels(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("gpus", [True, False])
def test_a_sweep(gpus: bool, drawn: list[Figure]) -> None:
    rows = [
        {
            "bytes": 1024 * n,
            "latency_ns": 100 * n,
            "gpu_p50_ns": 900 * n if gpus else None,
            "gpu_best_ns": 800 * n,
            "gpu_p99_ns": 999 * n,
        }
        for n in (1, 4)
    ]
    plots.draw_sweep(rows, "all-reduce", 1024, NOWHERE)
    (axes,) = drawn[0].axes
    assert axes.get_title() == "all-reduce on 1,024 chips"
    assert axes.get_xscale() == axes.get_yscale() == "log"
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    sizes = [1024, 4096]
    assert lines == [(sizes, [100, 400])] + [(sizes, [900, 3600])] * gpus
    if gpus:
        (band,) = axes.collections
        corners = {(float(x), float(y)) for x, y in band.get_paths()[0].vertices}
        assert corners == {(1024, 800), (1024, 999), (4096, 3200), (4096, 3996)}
        assert labels(axes) == [
            "LPU fabric (exact)",
            "GPUs p50 (model)",
            "GPUs best to p99 (model)",
        ]
    else:
        assert labels(axes) == ["LPU fabric (exact)"] and not axes.collections
    plots.draw_sweep([], "all-reduce", 8, NOWHERE)


def test_plans_are_stacked() -> None:
    rows: list[dict[str, Any]] = [
        {"chips": 8, "phases": {"a_b": 1000, "c": 3000}, "sram_bytes": {"free": 2e6, "kv": 5e6}},
        {"chips": 7, "problem": "does not fit"},
        {"chips": 1024, "phases": {"a_b": 2000, "c": 500}, "sram_bytes": {"free": 1e6, "kv": 0}},
    ]
    left, right = plots.plans_figure(rows, ["chips"]).axes
    # thousands of cycles, megabytes; the second of each on the first
    heights = [(bottom, height) for _, _, bottom, height in bars(left)]
    assert heights == [(0, 1), (0, 2), (1, 3), (2, 0.5)]
    assert [(b, h) for _, _, b, h in bars(right)] == [(0, 2), (0, 1), (2, 5), (1, 0)]
    assert [middle for middle, *_ in bars(left)] == pytest.approx([0, 1, 0, 1])
    assert [t.get_text() for t in left.get_xticklabels()] == ["8", "1,024"]
    assert (labels(left), labels(right)) == (["a b", "c"], ["free", "kv"])
    assert [axes.get_legend() for axes in plots.plans_figure(rows[1:2], ["chips"]).axes] == [
        None
    ] * 2


def test_one_request_alone(drawn: list[Figure]) -> None:
    report = {
        "platforms": {"gpu": 0, "both": 0},
        "prompt_tokens": 1000,
        "output_tokens": 20,
        "model": "target",
        "ttft_s": {"gpu": 0.5, "both": 0.25},
        "second_token_s": {"gpu": None, "both": 2e-3},
        "tpot_s": {"gpu": None, "both": None},
    }
    plots.draw_disaggregated(report, NOWHERE)
    first, second, further = drawn[0].axes
    widths = [[width for _, width, _, _ in bars(axes)] for axes in drawn[0].axes]
    assert widths == [[0.5, 0.25], [0, 2e-3], [0, 0]]
    assert [t.get_text() for t in first.texts] == ["500.00 ms", "250.00 ms"]
    assert [t.get_text() for t in second.texts] == ["none", "2.00 ms"]
    # room for the number beside the longest bar
    for axes, most in ((first, 0.5), (second, 2e-3), (further, 1.0)):
        assert axes.get_xlim()[0] == 0 and 1.2 * most < axes.get_xlim()[1] < 1.5 * most
        assert axes.yaxis_inverted()
        assert axes.xaxis.get_major_formatter()(2e-3, 0) == "2 ms"
        if axes is not first:
            assert not axes.yaxis.get_tick_params()["labelleft"]
    assert first.get_ylabel() == "target, one request\nof 1,000 + 20 tokens"
    assert [axes.get_title() for axes in drawn[0].axes] == [
        "first token",
        "second after first",
        "per further token",
    ]


def test_histograms_share_their_bins(drawn: list[Figure]) -> None:
    def latencies(ttft: list[float], tpot: list[float]) -> Any:
        both = {"ttft_ps": ttft, "tpot_ps": tpot}
        took: Any = object.__new__(Latencies)
        for name, seconds in both.items():
            object.__setattr__(took, name, np.array(seconds) * PS)
        return took

    pools = {"gpu": latencies([0.01] * 98 + [0.02, 0.04], []), "lpu": latencies([0.5], [])}
    plots.draw_load(pools, NOWHERE)
    first, further = drawn[0].axes
    assert [t.get_text() for t in further.texts] == ["no request has any"]
    assert labels(first) == [
        "gpu: p50 10.00 ms, p99 20.00 ms (dotted)",
        "lpu: p50 500.00 ms, p99 500.00 ms (dotted)",
    ]
    assert [line.get_xdata()[0] for line in first.lines] == pytest.approx([0.02, 0.5])
    assert first.get_xscale() == "log"
    assert first.xaxis.get_major_formatter()(2e-3, 0) == "2 ms"
    subs = first.xaxis.get_minor_locator()
    assert isinstance(subs, LogLocator) and tuple(subs._subs) == (2, 5)
    # between 10 and 500 ms the ticks between powers of ten are named; not over more than 100 times
    assert first.xaxis.get_minor_formatter()(2e-2, 0) == "20 ms"
    wide = {"gpu": latencies([0.005, 0.5], [])}
    plots.draw_load(wide, NOWHERE)
    assert drawn[1].axes[0].xaxis.get_minor_formatter()(2e-2, 0) == ""
    gpu, lpu = (patch.get_path().vertices for patch in first.patches)
    # of each pool all together a hundred percent, in bins between the same ends
    assert (gpu[:, 0].min(), gpu[:, 0].max()) == (lpu[:, 0].min(), lpu[:, 0].max())
    assert 0.009 < gpu[:, 0].min() < 0.01 and 0.5 < gpu[:, 0].max() < 0.55
    assert gpu[:, 1].max() == pytest.approx(98) and lpu[:, 1].max() == pytest.approx(100)
    assert len(np.unique(gpu[:, 0])) == plots.BINS + 1


def row(variant: str, link: str | None, gamma: int, speedup: float, heat: float | None) -> Any:
    return {
        "variant": variant,
        "link": link,
        "gamma": gamma,
        "speedup": speedup,
        "temperature": heat,
    }


def test_drafting_over_gamma(drawn: list[Figure]) -> None:
    rows = [
        row(LPU_TOKENS, "pcie", 4, 1.5, 0.5),
        row(LPU_TOKENS, "pcie", 2, 1.25, 0.5),
        row(LPU_KV, "pcie", 2, 0.75, 0.5),
        row(LPU_TOKENS, "eth", 2, 1.125, 0.5),
        row(GPU_DRAFT, None, 2, 1.0625, 0.5),
        row(LPU_TOKENS, "pcie", 2, 3.0, 1.0),
        row(GPU_ONLY, None, 0, 1.0, None),
        row(LPU_ONLY, None, 0, 2.0, None),
    ]
    plots.draw_speculative(rows, NOWHERE)
    cool, hot = drawn[0].axes

    def lines(axes: Axes) -> list[tuple[Any, list[float], list[float]]]:
        return [
            (line.get_color(), list(line.get_xdata()), list(line.get_ydata()))
            for line in axes.lines
        ]

    # a colour per link, in the order of gamma; then the machines alone, over the whole width
    ends = [("black", [0, 1], [1.0, 1.0]), ("black", [0, 1], [2.0, 2.0])]
    assert lines(cool) == [
        ("C0", [2, 4], [1.25, 1.5]),
        ("C0", [2], [0.75]),
        ("C1", [2], [1.125]),
        ("black", [2], [1.0625]),
        *ends,
    ]
    assert lines(hot) == [("C0", [2], [3.0]), *ends]
    dashes = [line.get_linestyle() for line in cool.lines]
    assert dashes == ["-", ":", "-", "--", "-", "-."]
    assert [axes.get_title() for axes in (cool, hot)] == ["temperature 0.5", "temperature 1"]
    assert cool.get_ylim() == hot.get_ylim() and cool.get_ylim()[0] == 0
    assert (cool.get_ylabel(), hot.get_ylabel()) == ("decoding speed over GPU-only", "")
    # one legend for both, of what there is
    assert labels(cool) == []
    assert labels(hot) == [
        "pcie",
        "eth",
        f"{LPU_TOKENS} over a link",
        f"{LPU_KV} over a link",
        "draft on GPU",
        GPU_ONLY,
        LPU_ONLY,
    ]
    assert LOOKUP not in {one["variant"] for one in rows}


@pytest.mark.parametrize("beaten", [True, False])
def test_the_frontier_is_joined(beaten: bool, drawn: list[Figure]) -> None:
    speed, thrift = "tokens_per_second_per_user", "tokens_per_second_per_kw"
    points = [
        {"model": "m", "chips": 8, speed: 300.0, thrift: 5.0, "on_frontier": True},
        {"model": "m", "chips": 16, speed: 200.0, thrift: 4.0, "on_frontier": not beaten},
        {"model": "m", "chips": 1024, speed: 100.0, thrift: 9.0, "on_frontier": True},
    ]
    plots.draw_frontier(points, ["chips"], NOWHERE)
    (axes,) = drawn[0].axes
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    if beaten:
        assert lines == [([100, 300], [9, 5]), ([200], [4])]
        assert labels(axes) == ["frontier", "beaten in both"]
    else:
        assert lines == [([100, 200, 300], [9, 4, 5])] and labels(axes) == ["frontier"]
    told = [(note.get_text(), note.xy) for note in axes.texts]
    assert told == [("8", (300, 5)), ("16", (200, 4)), ("1,024", (100, 9))]
    assert axes.get_title() == "m by chips"
    assert axes.get_xlabel() == "tokens/s of one user"
    assert axes.get_ylabel() == "tokens/s of all for a kW (estimate)"


def test_errors_of_layers(drawn: list[Figure]) -> None:
    rows = [
        {"layer": n, "attention": 10.0 ** -(n + 3), "ffn": 2 * 10.0 ** -(n + 3)} for n in range(3)
    ]
    plots.draw_layers(rows, "of a model", NOWHERE)
    (axes,) = drawn[0].axes
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert lines == [([0, 1, 2], [row[key] for row in rows]) for key in ("attention", "ffn")]
    assert labels(axes) == ["after attention", "after FFN"]
    assert axes.get_yscale() == "log" and axes.get_xscale() == "linear"
    assert axes.get_title() == "of a model"
    assert [float(tick) % 1 for tick in axes.get_xticks()] == [0.0] * len(axes.get_xticks())
