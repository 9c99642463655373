"""The picture of the four packages and their sub-packages: ``docs/images/architecture.svg``.

Made from the folders and the first line of each ``__init__``; `python -m cluster.reference_pages`
writes it.  Knows nothing of what is inside a sub-package.
"""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
#: From the top; each imports only what is below it.
PACKAGES = {
    "cluster": "the running system: processes, experiments, the command line",
    "programs": "what runs: models, kernels, compilers, artifacts",
    "interconnect": "the wires: cables, routes, slots, collectives, clocks",
    "chip": "one LPU: instructions, the definition, the fast engine, the proof of legality",
}
_FILLS = ("#e8f0fa", "#eaf5ee", "#fbf1e4", "#f3ecf8")
_EDGES = ("#3b6ea8", "#2f7d54", "#b0702a", "#7a559c")

# Pixels.
_WIDTH, _MARGIN, _GAP = 1220, 16, 10
_COLUMNS, _TILE = 4, 80
_HEAD, _ARROW = 42, 34
_LINE, _LETTERS = 15, 41


def sub_packages(package: str) -> list[tuple[str, str]]:
    """(path inside the package, first line of its docstring), in the order of their names."""
    found = []
    for path in sorted((ROOT / package).glob("*/**/__init__.py")):
        line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        if len(list(path.parent.glob("*.py"))) > 1:
            name = path.parent.relative_to(ROOT / package).as_posix()
            found.append((name, line.replace("`", "")))
    return found


def draw() -> str:
    """The picture as SVG text."""
    parts: list[str] = []
    top = _MARGIN
    for number, (package, what) in enumerate(PACKAGES.items()):
        if number:
            parts.append(_arrow(top))
            top += _ARROW
        rooms = sub_packages(package)
        height = _HEAD + -(-len(rooms) // _COLUMNS) * (_TILE + _GAP)
        parts += _package(top, height, package, what, number)
        parts += [
            line for place, room in enumerate(rooms) for line in _tile(top, place, *room, number)
        ]
        top += height
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top + _MARGIN}" '
        f'width="{_WIDTH}" height="{top + _MARGIN}" role="img" '
        'font-family="Helvetica, Arial, sans-serif" fill="#1d2733">'
    )
    title = "<title>Four packages; each imports only what is below it</title>"
    back = '<rect width="100%" height="100%" rx="8" fill="#ffffff"/>'
    return "\n".join([head, title, back, *parts, "</svg>"]) + "\n"


def _package(top: int, height: int, name: str, what: str, number: int) -> list[str]:
    return [
        f'<rect x="{_MARGIN}" y="{top}" width="{_WIDTH - 2 * _MARGIN}" height="{height}" rx="8" '
        f'fill="{_FILLS[number]}" stroke="{_EDGES[number]}" stroke-width="1.5"/>',
        f'<text x="{_MARGIN + _GAP}" y="{top + 27}" font-size="19" font-weight="bold">{name}'
        f'<tspan dx="14" font-size="15" font-weight="normal">{escape(what)}</tspan></text>',
    ]


def _tile(top: int, place: int, name: str, what: str, number: int) -> list[str]:
    width = (_WIDTH - 2 * _MARGIN - (_COLUMNS + 1) * _GAP) // _COLUMNS
    x = _MARGIN + _GAP + place % _COLUMNS * (width + _GAP)
    y = top + _HEAD + place // _COLUMNS * (_TILE + _GAP)
    lines = textwrap.wrap(what, _LETTERS)
    return [
        f'<rect x="{x}" y="{y}" width="{width}" height="{_TILE}" rx="5" fill="#ffffff" '
        f'stroke="{_EDGES[number]}"/>',
        f'<text x="{x + 9}" y="{y + 20}" font-size="15" font-weight="bold">{escape(name)}</text>',
        *(
            f'<text x="{x + 9}" y="{y + 38 + i * _LINE}" font-size="12">{escape(line)}</text>'
            for i, line in enumerate(lines)
        ),
    ]


def _arrow(top: int) -> str:
    x, end = _WIDTH // 2, top + _ARROW
    return (
        f'<path d="M{x} {top + 3} V{end - 5} m-6 -8 l6 8 l6 -8" fill="none" stroke="#1d2733" '
        f'stroke-width="2"/><text x="{x + 14}" y="{top + 22}" font-size="13">imports</text>'
    )
