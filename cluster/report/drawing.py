"""A Matplotlib figure as SVG inside a page: text stays text, colours follow the page.

Lines and letters are drawn in the page's own text colour, so that a picture is legible on light
and on dark.  Names that come from a file are text, never mathematics or markup.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Stand-ins for the page's colours of text and of faint lines; no data is drawn in them.
INK, FAINT = "#010203", "#040506"
#: Colours of data: mid tones, told apart on white and on black.
COLOURS = ("#3b82d0", "#d9722e", "#2e9e63", "#9a63c9", "#d1495b", "#2a9da8", "#b58900", "#808890")
WIDTH_INCHES = 4.4

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
#: What XML cannot hold, or a terminal would obey.
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


@dataclass(frozen=True)
class Picture:
    """An SVG element as text, and what it shows: a title and a caption with numbers."""

    name: str
    title: str
    caption: str
    svg: str


def printable(value: Any) -> Any:
    """A value of JSON whose strings hold nothing but text and line ends."""
    if isinstance(value, str):
        return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, list):
        return [printable(one) for one in value]
    if isinstance(value, dict):
        return {key: printable(one) for key, one in value.items()}
    return value


def plain(text: str, most: int = 60) -> str:
    """``text`` fit for a label: one line, not too long."""
    clean = " ".join(text.split())
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def paragraphs(text: str, most: int) -> str:
    """``text`` with its line ends, not too long."""
    return "\n".join(plain(line, most) for line in text[:most].splitlines())


def count(number: float) -> str:
    """A number for people: 4 significant digits, thousands apart."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def seconds(value: float) -> str:
    """A time for people, in the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(value) >= scale:
            return f"{value / scale:.4g} {unit}"
    return f"{value / 1e-9:.4g} ns"


class Drawing:
    """A figure being drawn; ``svg`` is set at the end."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.svg = ""

    def axes(
        self, rows: int = 1, sharex: bool = False, height_ratios: Sequence[float] | None = None
    ) -> list[Axes]:
        """Axes under each other in the page's colours."""
        made = self.figure.subplots(
            rows, 1, squeeze=False, sharex=sharex, height_ratios=height_ratios
        )
        return list(made[:, 0])


@contextmanager
def drawing(name: str, title: str, height_inches: float) -> Iterator[Drawing]:
    """A figure of the page's width; its ids begin with ``name``."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"lpu-{name}",
        "text.parse_math": False,
        "font.size": 9,
        "font.family": "sans-serif",
        "axes.titlesize": 9,
        "legend.fontsize": 8,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": FAINT,
        "grid.linewidth": 0.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        made = Drawing(figure)
        yield made
        out = io.StringIO()
        hidden = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=hidden)
    made.svg = _inline(out.getvalue(), name, title)


def _inline(text: str, name: str, title: str) -> str:
    """The SVG element alone, with unique ids, a title, and the page's colours."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(text)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    href = f"{{{_XLINK}}}href"
    for element in root.iter():
        if "id" in element.attrib:
            element.set("id", f"{name}-{element.get('id')}")
        if (target := element.get(href, "")).startswith("#"):
            element.set(href, f"#{name}-{target[1:]}")
        for key, value in element.attrib.items():
            value = value.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
            element.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title")
    label = ElementTree.Element(f"{{{_SVG}}}title", {"id": f"{name}-title"})
    label.text = title
    root.insert(0, label)
    return ElementTree.tostring(root, encoding="unicode")
