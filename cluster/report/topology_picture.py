"""The picture of a machine: chips in rings of nodes, cables, and what stands beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cluster.report.drawing import COLOURS, INK, WIDTH_INCHES, Picture, drawing, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Section = dict[str, Any]
Points = NDArray[np.float64]

_MOST_NAMED = 72
#: Thickness and opacity of a cable, by how many there are.
_THIN = 200
#: How far the picture reaches from its middle; to the right where something stands beside.
_ROOM, _WITH_OTHERS = 1.55, 4.6


def places(chips: int, per_node: int) -> Points:
    """Where the chips are, float64 [chips, 2]: a ring of nodes, each a ring of its chips."""
    nodes = -(-chips // per_node)
    node, member = np.divmod(np.arange(chips), per_node)
    radius = 0.0 if nodes == 1 else 1.0
    inner = 1.0 if nodes == 1 else min(0.8 * np.pi / nodes, 0.32)
    if chips == 1:
        inner = 0.0
    around = 2 * np.pi * node / nodes + np.pi / 2
    within = 2 * np.pi * member / per_node + np.pi / 2
    return np.stack(
        [
            radius * np.cos(around) + inner * np.cos(within),
            radius * np.sin(around) + inner * np.sin(within),
        ],
        axis=1,
    )


def topology(section: Section) -> Picture:
    """Chips, cables between them, and GPUs beside them."""
    from matplotlib.collections import LineCollection

    chips, cables, others = section["chips"], section["cables"], section["others"]
    at = places(chips, section["chips_per_node"])
    chips_text = "1 chip" if chips == 1 else f"{chips:,} chips"
    title = f"{chips_text}, {plain(section['topology'])}"
    right = _WITH_OTHERS if others else _ROOM
    high = 0.6 if chips == 1 else _ROOM
    with drawing(
        "topology", title, height_inches=WIDTH_INCHES * 2 * high / (_ROOM + right)
    ) as made:
        (axes,) = made.axes()
        ends = np.array([[cable[0], cable[2]] for cable in cables], np.int64).reshape(-1, 2)
        few = len(cables) <= _THIN
        axes.add_collection(
            LineCollection(
                list(at[ends]),
                colors=COLOURS[0],
                linewidths=1.2 if few else 0.4,
                alpha=0.6 if few else 0.35,
            )
        )
        axes.scatter(
            at[:, 0],
            at[:, 1],
            s=260 if chips <= 16 else 40 if chips <= _MOST_NAMED else 8,
            color=COLOURS[0],
            zorder=3,
        )
        if chips <= 16:
            for number, (x, y) in enumerate(at):
                axes.text(x, y, str(number), ha="center", va="center", color="white", zorder=4)
        elif chips <= 512:
            _name_nodes(axes, at, section["chips_per_node"])
        _beside(axes, others, 0.35 if chips == 1 else 1.25)
        axes.set_aspect("equal")
        axes.set_axis_off()
        axes.set_xlim(-_ROOM, right)
        axes.set_ylim(-high, high)
    beside = "".join(
        f"  Beside them {other['count']:,} x {plain(other['name'])}"
        + (f" over {plain(other['link'])}" if other["link"] else "")
        + "."
        for other in others
    )
    per_node = section["chips_per_node"]
    nodes = f"{-(-chips // per_node):,} nodes of {per_node}" if chips > per_node else "one node"
    caption = (
        f"{chips_text} ({plain(section['chip'])}, {section['clock_hz'] / 1e6:,.0f} MHz) in "
        f"{nodes}, {len(cables):,} cables.{beside}  {section['note']}"
    )
    return Picture("topology", title, caption, made.svg)


def _name_nodes(axes: Axes, at: Points, per_node: int) -> None:
    for first in range(0, len(at), per_node):
        members = at[first : first + per_node]
        middle = members.mean(axis=0)
        reach = float(np.linalg.norm(members - middle, axis=1).max())
        x, y = middle * (1.1 + 1.25 * reach)
        axes.text(
            x,
            y,
            f"{first}–{min(first + per_node, len(at)) - 1}",
            ha="center",
            va="center",
            fontsize=7 if len(at) <= _MOST_NAMED else 5,
        )


def _beside(axes: Axes, others: list[Section], near: float) -> None:
    """Boxes to the right of the chips, each with a line to them; near: where lines begin."""
    for number, other in enumerate(others):
        y = 0.8 * (number - (len(others) - 1) / 2)
        axes.plot([near, 2.55], [0, y], color=COLOURS[1], lw=1.5, ls="--")
        if other["link"]:
            axes.text(1.9, y / 2 + 0.06, plain(other["link"], 16), ha="center", va="bottom")
        axes.text(
            2.65,
            y,
            f"{other['count']:,} ×\n{plain(other['name'], 16)}",
            ha="left",
            va="center",
            bbox={"boxstyle": "round", "fc": "none", "ec": COLOURS[1]},
            color=INK,
        )
