"""Every mutant of the product, and a seeded draw that gives each stratum the same share."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from .compiled import compiled_lines
from .defaults import Defaults
from .imports import Imports
from .mutant import Mutant, replace_bytes
from .operators import edits
from .text import Text

PACKAGES = ("chip", "interconnect", "programs", "cluster")
COMPILED = "compiled"
#: Trained elsewhere and scripts of the owner: nobody imports them.
OUTSIDE = ("programs.checkpoints", "programs.workloads")


def product(imports: Imports, packages: Iterable[str]) -> list[str]:
    """The modules of some packages that are to be mutated."""
    outside = tuple(f"{package}." for package in OUTSIDE)
    chosen = set(packages)
    return [
        module
        for module in imports.paths
        if module.split(".")[0] in chosen and not f"{module}.".startswith(outside)
    ]


def mutants(imports: Imports, modules: Iterable[str]) -> list[Mutant]:
    """Every mutant of some modules, in the order of their files."""
    defaults = Defaults(imports.trees.values())
    found: list[Mutant] = []
    for module in modules:
        path = imports.paths[module]
        text = Text(path.read_bytes())
        compiled = compiled_lines(text.tree)
        file = path.relative_to(imports.root).as_posix()
        for edit in edits(text, defaults):
            line, column = text.place(edit.start)
            begin, end = edit.start - column + 1, text.line_end(edit.end)
            after = replace_bytes(
                text.source[begin:end], edit.start - begin, edit.end - begin, edit.text
            )
            old = " ".join(text.source[edit.start : edit.end].decode().split())
            if len(old) > 60:
                old = f"{old[:57]}..."
            found.append(
                Mutant(
                    file,
                    line,
                    column,
                    edit.start,
                    edit.end,
                    edit.text,
                    edit.operator,
                    f"{old} -> {edit.text or '(nothing)'}",
                    text.line(line),
                    after.decode().splitlines()[0].strip(),
                    line in compiled,
                )
            )
    return sorted(found)


def stratum(mutant: Mutant) -> str:
    """The mutant's package, or ``compiled``."""
    return COMPILED if mutant.compiled else mutant.package


def draw(root: Path, found: list[Mutant], number: int, seed: int) -> list[Mutant]:
    """``number`` mutants, no two of the same bytes, the strata taking turns; fewer if there are
    not as many places.  Each of them parses in the sources below ``root``.
    """
    places: dict[str, dict[tuple[str, int, int], list[Mutant]]] = {}
    for mutant in found:
        here = places.setdefault(stratum(mutant), {})
        here.setdefault((mutant.file, mutant.start, mutant.end), []).append(mutant)
    queues = []
    for name in (*PACKAGES, COMPILED):
        # of its own, so that a larger sample begins with the smaller one
        stream = random.Random(f"{seed} {name}")
        order = sorted(places.get(name, {}))
        stream.shuffle(order)
        picked = (stream.choice(places[name][place]) for place in order)
        queues.append(list(islice((one for one in picked if _parses(root, one)), number)))
    turns = [queue[n] for n in range(number) for queue in queues if n < len(queue)]
    return turns[:number]


def _parses(root: Path, mutant: Mutant) -> bool:
    try:
        ast.parse(mutant.apply((root / mutant.file).read_bytes()))
    except (SyntaxError, ValueError):
        return False
    return True
