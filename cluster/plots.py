"""Pictures of experiments, plans and sweeps, PNG or SVG by the suffix of their path.

What is drawn is given; nothing is computed here but bins and labels.  The same data give the same
bytes.  A picture is put in its place whole, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cluster.experiments.serving import PS, Latencies
from cluster.experiments.speculative import (
    GPU_DRAFT,
    GPU_ONLY,
    LOOKUP,
    LPU_KV,
    LPU_ONLY,
    LPU_TOKENS,
)
from cluster.whole_files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

BINS = 80
#: Dash and marker of what crosses a link.
MODES = {LPU_TOKENS: ("-", "o"), LPU_KV: (":", "x")}
#: Variants that no link changes: one line each.
OTHERS = {GPU_DRAFT: ("black", "draft on GPU"), LOOKUP: ("gray", "n-grams of the text")}
BARS = (
    ("ttft_s", "first token"),
    ("second_token_s", "second after first"),
    ("tpot_s", "per further token"),
)


@contextmanager
def _picture(path: Path, columns: int, inches: tuple[float, float]) -> Iterator[Sequence[Axes]]:
    """Axes side by side to draw on; the picture is written at the end."""
    figure, row = _panels(columns, inches=inches)
    yield row
    _save(figure, path)


def _panels(columns: int, inches: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of so many ``inches``, and its axes side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _save(figure: Figure, path: Path) -> None:
    import matplotlib

    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "lpu"}):
        replace_file(
            path,
            lambda target: figure.savefig(target, format=path.suffix[1:], metadata=metadata),
        )


def draw_speculative(rows: Sequence[Row], path: Path) -> None:
    """Speed-up over gamma, a panel per temperature: a colour per link, a dash per mode.

    rows: of a sweep, as the experiment reports them.
    """
    heats = sorted({row["temperature"] for row in rows} - {None})
    names = list(dict.fromkeys(row["link"] for row in rows if row["link"] is not None))
    with _picture(path, len(heats), inches=(1.5 + 4 * len(heats), 5)) as panels:
        for heat, axes in zip(heats, panels, strict=True):
            here = [row for row in rows if row["temperature"] == heat]
            for number, name in enumerate(names):
                # Later links are thinner: lines that coincide stay visible.
                style = {"color": f"C{number % 10}", "lw": max(4 - 0.6 * number, 1)}
                for variant, (dash, mark) in MODES.items():
                    _line(axes, here, variant, name, {**style, "ls": dash, "marker": mark})
            for variant, (colour, _) in OTHERS.items():
                _line(axes, here, variant, None, {"color": colour, "ls": "--", "marker": "."})
            for row in rows:
                if row["variant"] in (GPU_ONLY, LPU_ONLY):
                    dash = "-" if row["variant"] == GPU_ONLY else "-."
                    axes.axhline(row["speedup"], color="black", lw=0.8, ls=dash)
            axes.set_title(f"temperature {heat:g}")
            axes.set_xlabel("gamma: tokens drafted per step")
            axes.grid(alpha=0.3)
            axes.set_ylim(bottom=0)
            if axes is not panels[0]:
                axes.sharey(panels[0])
        panels[0].set_ylabel("decoding speed over GPU-only")
        _explain(panels[-1], names, {row["variant"] for row in rows})


def _line(
    axes: Axes, rows: Sequence[Row], variant: str, link: str | None, style: dict[str, Any]
) -> None:
    points = sorted(
        (row["gamma"], row["speedup"])
        for row in rows
        if row["variant"] == variant and row["link"] == link
    )
    if points:
        gammas, speeds = zip(*points, strict=True)
        axes.plot(gammas, speeds, **style)


def _explain(axes: Axes, links: Sequence[str], variants: set[str]) -> None:
    """One legend for all panels: links by colour, variants by dash."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=f"C{n % 10}", label=name) for n, name in enumerate(links)]
    lines += [
        Line2D([], [], color="dimgray", ls=dash, marker=mark, label=f"{variant} over a link")
        for variant, (dash, mark) in MODES.items()
    ]
    lines += [
        Line2D([], [], color=colour, ls="--", label=label)
        for variant, (colour, label) in OTHERS.items()
        if variant in variants
    ]
    for variant, dash in ((GPU_ONLY, "-"), (LPU_ONLY, "-.")):
        if variant in variants:
            lines.append(Line2D([], [], color="black", lw=0.8, ls=dash, label=variant))
    axes.legend(handles=lines, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small")


def draw_load(pools: dict[str, Latencies], path: Path) -> None:
    """How long requests waited for tokens: a histogram per pool, all pools in the same bins."""
    panels = (
        ("to the first token", {name: took.ttft_ps / PS for name, took in pools.items()}),
        ("per further token", {name: took.tpot_ps / PS for name, took in pools.items()}),
    )
    with _picture(path, 2, inches=(11, 4.5)) as both:
        for (title, seconds), axes in zip(panels, both, strict=True):
            _histograms(axes, seconds)
            axes.set_title(title)
            axes.set_xlabel("seconds, virtual")
        both[0].set_ylabel("requests, %")


def _histograms(axes: Axes, seconds: dict[str, NDArray[np.float64]]) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    every = np.concatenate(list(seconds.values()))
    if not len(every):
        _nothing(axes)
        return
    least, most = max(float(every.min()), 1 / PS), max(float(every.max()), 1 / PS)
    edges = np.geomspace(least / 1.05, most * 1.05, BINS + 1)
    unit = EngFormatter(unit="s", places=2)
    for number, (name, values) in enumerate(seconds.items()):
        if not len(values):
            continue
        middle, tail = (
            float(np.percentile(values, rank, method="inverted_cdf")) for rank in (50, 99)
        )
        axes.hist(
            values,
            bins=edges.tolist(),
            weights=np.full(len(values), 100 / len(values)),
            histtype="stepfilled",
            alpha=0.6,
            color=f"C{number}",
            label=f"{name}: p50 {unit(middle)}, p99 {unit(tail)} (dotted)",
        )
        axes.axvline(tail, color=f"C{number}", ls=":")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(unit="s"))
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.xaxis.set_minor_formatter(
        EngFormatter(unit="s") if most < 100 * least else NullFormatter()
    )
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no request has any", ha="center", transform=axes.transAxes)


def draw_disaggregated(report: Row, path: Path) -> None:
    """Bars of one request alone: first token, second after it, per further token, by platform."""
    from matplotlib.ticker import EngFormatter

    names = list(report["platforms"])
    size = f"{report['prompt_tokens']:,} + {report['output_tokens']:,} tokens"
    with _picture(path, len(BARS), inches=(12, 1.5 + 0.5 * len(names))) as panels:
        for (key, title), axes in zip(BARS, panels, strict=True):
            seconds = [report[key][name] for name in names]
            bars = axes.barh(names, [value or 0.0 for value in seconds], color="C0")
            unit = EngFormatter(unit="s", places=2)
            labels = ["none" if value is None else unit(value) for value in seconds]
            axes.bar_label(bars, labels, padding=3, fontsize="small")
            axes.set_xlim(0, 1.35 * max((v for v in seconds if v), default=1.0))
            axes.xaxis.set_major_formatter(EngFormatter(unit="s"))
            axes.invert_yaxis()
            axes.set_title(title)
            axes.grid(axis="x", alpha=0.3)
            if axes is not panels[0]:
                axes.tick_params(labelleft=False)
        panels[0].set_ylabel(f"{report['model']}, one request\nof {size}")


def draw_plans(rows: Sequence[Row], axes: Sequence[str], path: Path) -> None:
    """The picture of ``plans_figure`` as a file."""
    _save(plans_figure(rows, axes), path)


def plans_figure(rows: Sequence[Row], varied: Sequence[str]) -> Figure:
    """Cycles of a token by phase, SRAM of the fullest chip by use: stacked bars side by side.

    rows: plans as ``lpu plan`` reports them; those that fit are drawn.  varied: names of what their
    labels say.
    """
    fitting = [row for row in rows if "phases" in row]
    labels = [_plan_label(row, varied) for row in fitting]
    figure, panels = _panels(2, inches=(11, 6))
    for axes, key, scale, title, unit in (
        (panels[0], "phases", 1e3, "cycles of one token", "thousand cycles"),
        (panels[1], "sram_bytes", 1e6, "SRAM of the fullest chip", "MB"),
    ):
        names = list(fitting[0][key]) if fitting else []
        bottom = [0.0] * len(fitting)
        for name in names:
            heights = [row[key][name] / scale for row in fitting]
            axes.bar(labels, heights, bottom=bottom, label=name.replace("_", " "))
            bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.set_xlabel(", ".join(varied))
        if names:
            # Below the bars: inside it would cover the tallest.
            axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def draw_frontier(points: Sequence[Row], varied: Sequence[str], path: Path) -> None:
    """Plans by the speed of one user and by tokens of all for a kilowatt; the frontier is joined.

    points: of ``cluster.planning.frontier_points``.  varied: names of what their labels say.
    """
    with _picture(path, 1, inches=(8, 5.5)) as (axes,):
        speed, thrift = "tokens_per_second_per_user", "tokens_per_second_per_kw"
        best = sorted((p for p in points if p["on_frontier"]), key=lambda p: p[speed])
        others = [p for p in points if not p["on_frontier"]]
        axes.plot([p[speed] for p in best], [p[thrift] for p in best], "o-", label="frontier")
        if others:
            speeds, thrifts = [p[speed] for p in others], [p[thrift] for p in others]
            axes.plot(speeds, thrifts, "x", color="gray", label="beaten in both")
        for point in points:
            label = _plan_label(point, varied).replace("\n", ", ")
            axes.annotate(
                label,
                (point[speed], point[thrift]),
                textcoords="offset points",
                xytext=(5, 4),
                fontsize="x-small",
            )
        axes.set_xlabel("tokens/s of one user")
        axes.set_ylabel("tokens/s of all for a kW (estimate)")
        axes.set_title(f"{points[0]['model']} by {', '.join(varied)}")
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
        # Beside the points: inside it would cover some.
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)


def _plan_label(row: Row, varied: Sequence[str]) -> str:
    values = (row[name] for name in varied)
    return "\n".join(f"{v:,}" if isinstance(v, (int, float)) else str(v) for v in values)


def draw_sweep(rows: Sequence[Row], operation: str, chips: int, path: Path) -> None:
    """A collective's time over its size on logarithmic axes, beside the GPUs' where there are any.

    rows: as ``cluster.runs.sweep_sizes`` makes them.
    """
    with _picture(path, 1, inches=(7, 4.5)) as (axes,):
        sizes = [row["bytes"] for row in rows]
        axes.loglog(
            sizes, [row["latency_ns"] for row in rows], marker="o", label="LPU fabric (exact)"
        )
        if rows and rows[0]["gpu_p50_ns"] is not None:
            middle = [row["gpu_p50_ns"] for row in rows]
            axes.loglog(sizes, middle, marker="s", label="GPUs p50 (model)")
            best, worst = ([row[f"gpu_{end}_ns"] for row in rows] for end in ("best", "p99"))
            axes.fill_between(sizes, best, worst, alpha=0.2, label="GPUs best to p99 (model)")
        axes.set_xlabel("bytes per chip")
        axes.set_ylabel("ns")
        axes.set_title(f"{operation} on {chips:,} chips")
        axes.grid(True, which="both", alpha=0.3)
        axes.legend()


def draw_layers(rows: Sequence[Row], title: str, path: Path) -> None:
    """Where error enters: the residual stream's relative error over layers, logarithmic.

    rows: as ``cluster.evaluation.layer_rows`` makes them.
    """
    from matplotlib.ticker import MaxNLocator

    with _picture(path, 1, inches=(8, 4.5)) as (axes,):
        layers = [row["layer"] for row in rows]
        for key, name, mark in (("attention", "attention", "o"), ("ffn", "FFN", "s")):
            axes.semilogy(layers, [row[key] for row in rows], marker=mark, label=f"after {name}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")
        axes.set_ylabel("relative rms difference from float32")
        axes.set_title(title)
        axes.grid(True, which="both", alpha=0.3)
        axes.legend()
