"""The pictures of a report that are axes with data: utilisation, links, SRAM, roofline, latencies.

Every function takes a section of a run file and gives a picture with a caption of its numbers;
nothing is computed here but positions and labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.report.drawing import COLOURS, FAINT, INK, Picture, count, drawing, plain, seconds
from cluster.report.run_file import WORD_KINDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Section = dict[str, Any]

#: Colours of ``WORD_KINDS``; free words stay blank.
_WORD_COLOURS = (None, FAINT, *(COLOURS[i] for i in (5, 6, 0, 3, 2, 4)))
_MARKS = {"exact": "o", "estimated": "s", "given": "D"}
_MOST_IN_MATRIX = 72


def utilisation(section: Section) -> Picture:
    """How busy each family of units was over the cycles of a launch."""
    families, edges = section["families"], section["edges"]
    entry = plain(section["entry"])
    title = f"Units over the cycles of {entry}"
    with drawing("units", title, height_inches=0.55 + 0.62 * len(families)) as made:
        panels = made.axes(len(families), sharex=True)
        for number, (family, axes) in enumerate(zip(families, panels, strict=True)):
            most = max(*family["ratio"], 1e-9)
            axes.stairs(
                family["ratio"], edges, fill=True, color=COLOURS[number % len(COLOURS)], alpha=0.85
            )
            axes.set_ylim(0, most * 1.1)
            axes.set_yticks([0, most], ["0", f"{most:.0%}" if most >= 0.01 else f"{most:.1%}"])
            axes.set_title(
                f"{plain(family['name'])}: mean {family['mean']:.1%} of {family['units']:,}",
                loc="left",
                pad=2,
            )
            axes.set_xlim(edges[0], edges[-1])
        panels[-1].set_xlabel("cycle")
    busiest = max(families, key=lambda family: family["mean"])
    caption = (
        f"{entry}, {edges[-1]:,} cycles; every panel has its own scale.  Busiest: "
        f"{plain(busiest['name'])}, {busiest['mean']:.1%} on average.  {section['note']}"
    )
    return Picture("units", title, caption, made.svg)


def links(section: Section, chips: int) -> Picture:
    """How busy the links were: over time, and each direction of each cable."""
    edges, busy = section["edges"], section["busy"]
    title = f"Links over the cycles of {plain(section['entry'])}"
    matrix = chips <= _MOST_IN_MATRIX
    with drawing("links", title, height_inches=5.6 if matrix else 4.4) as made:
        over, each = made.axes(2, height_ratios=[1, 2.4] if matrix else [1, 1])
        over.stairs(section["most"], edges, fill=True, color=COLOURS[0], alpha=0.3, label="busiest")
        over.stairs(section["mean"], edges, color=COLOURS[0], lw=1.3, label="mean")
        over.set_ylim(0, max(1.0, *section["most"]) * 1.02)
        over.set_xlim(edges[0], edges[-1])
        over.yaxis.set_major_formatter("{x:.0%}")
        over.set_xlabel("cycle")
        over.legend(loc="upper right", ncols=2)
        ratios = np.array([part["ratio"] for part in busy])
        if matrix:
            _matrix(each, busy, chips)
        else:
            each.stairs(np.sort(ratios)[::-1], color=COLOURS[0], fill=True)
            each.set_xlabel("directions of cables, busiest first")
            each.yaxis.set_major_formatter("{x:.0%}")
    low, high, mean = float(ratios.min()), float(ratios.max()), float(ratios.mean())
    caption = (
        f"{len(busy):,} directions of cables; busy for {low:.2%} to {high:.2%} of the launch, "
        f"{mean:.2%} on average.  {section['note']}"
    )
    return Picture("links", title, caption, made.svg)


def _matrix(axes: Axes, busy: list[Section], chips: int) -> None:
    """Rows send, columns receive; doubled cables are added up."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    values = np.full((chips, chips), np.nan)
    for part in busy:
        row, column = part["chip"], part["to"]
        values[row, column] = np.nan_to_num(values[row, column]) + part["ratio"]
    shades = LinearSegmentedColormap.from_list("links", ["#cfe0f3", COLOURS[0]])
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=shades, vmin=0.0)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_xlabel("to chip")
    axes.set_ylabel("from chip")
    if chips <= 16:
        for ways in (axes.xaxis, axes.yaxis):
            ways.set_ticks(np.arange(chips) + 0.5, [str(chip) for chip in range(chips)])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.8, format="{x:.1%}")
    bar.outline.set_visible(False)


def sram(section: Section) -> Picture:
    """What lies where in the slices of a chip."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Patch, Rectangle

    cells = np.array(section["cells"])
    rows, words = cells.shape[1], section["words_per_slice"]
    height = words / rows
    title = "What the SRAM holds"
    used = [n for n in range(1, len(WORD_KINDS)) if (cells == n).any()]
    with drawing("sram", title, height_inches=4.2 + 0.2 * len(used)) as made:
        axes, held_by = made.axes(2, sharex=True, height_ratios=[3, 2])
        for kind in used:
            boxes = [
                Rectangle((place, first * height), 1, (last - first) * height)
                for place in range(len(cells))
                for first, last in _runs(cells[place] == kind)
            ]
            axes.add_collection(
                PatchCollection(boxes, facecolor=_WORD_COLOURS[kind], edgecolor="none")
            )
        axes.set_xlim(0, 88)
        axes.set_ylim(0, words)
        axes.axvline(44, color=INK, lw=0.8, ls=":")
        axes.set_title("which words", loc="left", pad=2)
        axes.set_ylabel("word")
        bottom = np.zeros(len(cells))
        for kind in used:
            tall = np.array([counts[kind] for counts in section["words"]], float)
            if WORD_KINDS[kind] != "reserved":
                held_by.bar(
                    np.arange(len(cells)) + 0.5, tall, 1.0, bottom, color=_WORD_COLOURS[kind], lw=0
                )
                bottom += tall
        held_by.set_title("how many words, without reserved slices", loc="left", pad=2)
        held_by.set_ylabel("words")
        held_by.axvline(44, color=INK, lw=0.8, ls=":")
        held_by.set_xticks([0.5, 22, 44, 66, 87.5], ["0", "west", "43 | 0", "east", "43"])
        held_by.set_xlabel("MEM slice of a hemisphere")
        legend = [Patch(color=_WORD_COLOURS[kind], label=WORD_KINDS[kind]) for kind in used]
        if legend:
            made.figure.legend(handles=legend, loc="outside lower left", ncols=1)
    held = np.array(section["words"]).sum(axis=0) * section["word_bytes"]
    whole = int(held.sum())
    parts = "; ".join(f"{WORD_KINDS[kind]} {int(held[kind]):,} B" for kind in used)
    caption = f"Of {whole:,} B: {parts or 'nothing'}.  {section['note']}"
    return Picture("sram", title, caption, made.svg)


def _runs(mask: Any) -> list[tuple[int, int]]:
    """First and one past the last of each run of true values."""
    steps = np.flatnonzero(np.diff(np.r_[False, mask, False].astype(np.int8)))
    return [(int(a), int(b)) for a, b in steps.reshape(-1, 2)]


def roofline(section: Section) -> Picture:
    """Roofs of machines over operational intensity, and where a token's work lies."""
    from matplotlib.ticker import EngFormatter, NullFormatter

    title = "Roofline: GPU and LPU"
    machines, points = section["machines"], section["points"]
    knees = [m["ops_per_s"] / m["bytes_per_s"] for m in machines]
    reached = [p["ops_per_byte"] for p in points]
    low, high = min([*reached, *knees]) / 4, max([*reached, *knees]) * 8
    with drawing(
        "roofline", title, height_inches=3.1 + 0.2 * (len(machines) + len(points))
    ) as made:
        (axes,) = made.axes()
        for number, (machine, knee) in enumerate(zip(machines, knees, strict=True)):
            over = np.array([low, knee, high])
            axes.loglog(
                over,
                np.minimum(over * machine["bytes_per_s"], machine["ops_per_s"]),
                color=COLOURS[number % len(COLOURS)],
                lw=1.8,
                ls="-" if machine["source"] == "exact" else "--",
                label=plain(machine["name"]),
            )
        for number, point in enumerate(points):
            axes.loglog(
                [point["ops_per_byte"]],
                [point["ops_per_s"]],
                ls="none",
                marker=_MARKS[point["source"]],
                color=COLOURS[number % len(COLOURS)],
                ms=8,
                mec=INK,
                mew=0.8,
                label=f"{plain(point['name'])} ({point['source']})",
            )
        for ways in (axes.xaxis, axes.yaxis):
            ways.set_major_formatter(EngFormatter(sep=""))
            ways.set_minor_formatter(NullFormatter())
        axes.set_xlabel("operations per byte read")
        axes.set_ylabel("operations per second")
        axes.grid(True)
        made.figure.legend(loc="outside lower left", ncols=1)
    said = "; ".join(
        f"{plain(p['name'])}: {count(p['ops_per_s'] / 1e9)} G operations/s at "
        f"{count(p['ops_per_byte'])} per byte ({p['source']})"
        for p in points
    )
    return Picture("roofline", title, f"{said}.  {section['note']}", made.svg)


def latencies(section: Section, number: int) -> Picture:
    """Distributions in common bins: a deterministic machine is one spike."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    title = plain(section["title"])
    edges, series = section["edges_s"], section["series"]
    name = f"latency-{number}"
    with drawing(name, title, height_inches=0.75 + 0.85 * len(series)) as made:
        panels = made.axes(len(series), sharex=True)
        for which, (one, axes) in enumerate(zip(series, panels, strict=True)):
            colour = COLOURS[which % len(COLOURS)]
            axes.stairs(one["share"], edges, fill=True, color=colour)
            axes.axvline(one["p99_s"], color=colour, ls=":", lw=1)
            axes.set_xscale("log")
            axes.set_ylim(0, max(*one["share"], 1e-9) * 1.12)
            axes.set_yticks([max(one["share"])], [f"{max(one['share']):.0%}"])
            axes.set_title(
                f"{plain(one['name'], 30)} ({one['source']}): p50 {seconds(one['p50_s'])}, "
                f"p99 {seconds(one['p99_s'])}",
                loc="left",
                pad=2,
            )
            axes.set_xlim(edges[0], edges[-1])
        near = edges[-1] < 30 * edges[0]
        panels[-1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if near else (1,)))
        panels[-1].xaxis.set_major_formatter(EngFormatter(unit="s"))
        panels[-1].xaxis.set_minor_formatter(NullFormatter())
    said = "; ".join(
        f"{plain(one['name'])}: {one['count']:,} times from {seconds(one['least_s'])} to "
        f"{seconds(one['most_s'])}, p99/p50 {one['p99_s'] / one['p50_s']:.3f}"
        for one in series
    )
    return Picture(name, title, f"{said}.  Dotted: p99.  {section['note']}", made.svg)


def bars(section: Section, number: int) -> Picture:
    """Values side by side."""
    title, unit, values = plain(section["title"]), plain(section["unit"], 12), section["values"]

    def said(value: float | None) -> str:
        if value is None:
            return "none"
        return seconds(value) if unit == "s" else f"{count(value)} {unit}"

    name = f"bars-{number}"
    with drawing(name, title, height_inches=0.5 + 0.32 * len(values)) as made:
        (axes,) = made.axes()
        names = [plain(one["name"], 24) for one in values]
        widths = [one["value"] or 0.0 for one in values]
        drawn = axes.barh(range(len(values)), widths, color=COLOURS[0])
        axes.bar_label(drawn, [said(one["value"]) for one in values], padding=3)
        axes.set_yticks(range(len(values)), names)
        axes.set_xlim(0, 1.45 * (max(widths) or 1.0))
        axes.set_xticks([])
        axes.invert_yaxis()
        axes.spines["bottom"].set_visible(False)
    said_all = "; ".join(
        f"{plain(one['name'])} {said(one['value'])} ({one['source']})" for one in values
    )
    return Picture(name, title, f"{said_all}.  {section['note']}", made.svg)
