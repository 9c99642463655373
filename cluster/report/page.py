"""One self-contained HTML page from a run: pictures inline, no network, no outside script.

Every string of the run becomes text: the template escapes it, and the page's own policy allows no
script but the one that moves the belt.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from cluster.report import pictures
from cluster.report.drawing import Picture, paragraphs, plain, printable, seconds
from cluster.report.run_file import Run
from cluster.report.topology_picture import topology
from cluster.whole_files import replace_text

#: Items of a belt in its table; the animation has them all.
_ROWS = 40
#: How stages begin in which something is on a link; they have a colour of their own.
_LINK_STAGES = ("exchange", "to the verifier", "back")
_SHORT = {
    "topology": "topology",
    "units": "units",
    "links": "links",
    "sram": "SRAM",
    "roofline": "roofline",
}
_SECTION_NAMES = {
    "machine": "topology",
    "belts": "conveyor belt",
    "sram": "SRAM map",
    "utilisation": "utilisation of units",
    "links": "utilisation of links",
    "roofline": "roofline",
    "latencies": "latency distributions",
}


def _text(name: str) -> str:
    return files("cluster.report").joinpath(name).read_text(encoding="utf-8")


def draw(run: Run) -> list[Picture]:
    """All pictures of a run, in the order of the page."""
    drawn: list[Picture] = []
    if (machine := run.get("machine")) is not None:
        drawn.append(topology(machine))
    drawn += [pictures.bars(one, n) for n, one in enumerate(run.get("bars", ()))]
    drawn += [pictures.latencies(one, n) for n, one in enumerate(run.get("latencies", ()))]
    if "roofline" in run:
        drawn.append(pictures.roofline(run["roofline"]))
    if "utilisation" in run:
        drawn.append(pictures.utilisation(run["utilisation"]))
    if "links" in run:
        drawn.append(pictures.links(run["links"], run["machine"]["chips"]))
    if "sram" in run:
        drawn.append(pictures.sram(run["sram"]))
    return drawn


def _belt(belt: dict[str, Any]) -> dict[str, Any]:
    """A belt as the template wants it: texts."""

    def said(time: int) -> str:
        return f"{time:,}" if belt["unit"] == "cycles" else seconds(time / belt["per_second"])

    items = belt["items"]
    last = items[-1]["times"]
    unit = " cycles" if belt["unit"] == "cycles" else ""
    return {
        "name": plain(belt["name"]),
        "note": plain(belt["note"], 600),
        "stages": [plain(stage, 30) for stage in belt["stages"]],
        "spans": [f"{said(b - a)}{unit}" for a, b in pairwise(last)],
        "looks": [
            "exchange" if stage.startswith(_LINK_STAGES) else "compute" for stage in belt["stages"]
        ],
        "begin": f"{len(items):,} items, from {said(items[0]['times'][0])}{unit}",
        "rows": [
            {"label": plain(item["label"], 40), "times": [said(time) for time in item["times"]]}
            for item in items[:_ROWS]
        ],
        "left_out": max(0, len(items) - _ROWS),
    }


def _belt_data(belts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "unit": "cycles" if belt["unit"] == "cycles" else "s",
            "per_second": belt["per_second"],
            "stages": [plain(stage, 30) for stage in belt["stages"]],
            "items": [
                {"label": plain(item["label"], 30), "times": item["times"]}
                for item in belt["items"]
            ],
        }
        for belt in belts
    ]


def render(run: Run) -> str:
    """The page of a run that has been checked."""
    from jinja2 import Environment, StrictUndefined

    run = printable(run)
    script = _text("belt.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    drawn = draw(run)
    belts = run.get("belts", [])
    contents = [{"name": "belts", "short": "belt"}] if belts else []
    contents += [
        {"name": picture.name, "short": _SHORT.get(picture.name, picture.title)}
        for picture in drawn
    ]
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(_text("page.html"))
    return page.render(
        title=plain(run["title"], 200),
        kind=run["kind"],
        facts=[(plain(name), paragraphs(value, 2000)) for name, value in run["facts"]],
        contents=contents,
        belts=[_belt(belt) for belt in belts],
        belt_data=_belt_data(belts),
        pictures=drawn,
        absent=[(_SECTION_NAMES[name], plain(why, 200)) for name, why in run["absent"].items()],
        style=_text("page.css"),
        script=script,
        script_hash=f"sha256-{digest}",
    )


def write_page(run: Run, path: Path) -> None:
    """Write the page of ``run`` to ``path``, whole or not at all."""
    replace_text(path, render(run))
