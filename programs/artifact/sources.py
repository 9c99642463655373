"""Which line of which assembler file a block comes from, kept in the artifact.

``model["sources"]`` has one entry for every program: ``{"file": name, "lines": runs}``, each run
``[first block, line, blocks]`` of blocks on consecutive lines.  What reads it believes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from chip.faults import LockstepViolation, ProgramFault
from programs.artifact.file import Artifact

SOURCES = "sources"
#: Runs kept of a file; an artifact's header has room for no more than it takes.
MOST_RUNS = 10_000

#: A block in a text about programs, and the chip if the text names one for it.
_BLOCK = re.compile(r"(?:\bchip ([0-9]{1,6}) c2c\[[0-9]+\] [A-Z]+ \()?\bblock ([0-9]{1,9})\b")


def source_entry(name: str, lines: Sequence[int]) -> dict[str, Any]:
    """The entry of a program whose block i stands on ``lines[i]`` of the file ``name``."""
    cuts = [i for i, (a, b) in enumerate(pairwise(lines), 1) if b != a + 1]
    ends = [*cuts, len(lines)] if lines else []
    runs = [
        [first, lines[first], end - first] for first, end in zip([0, *cuts], ends, strict=False)
    ]
    return {"file": name, "lines": runs[:MOST_RUNS]}


def place_of(artifact: Artifact, chip: int | None, block: int) -> tuple[str, int] | None:
    """(file, line) of a block of the program that ``chip`` runs; None where it is not known."""
    sources = artifact.model.get(SOURCES)
    if chip is None or not 0 <= chip < artifact.chips or not isinstance(sources, list):
        return None
    number = artifact.program_of_chip[chip]
    entry = sources[number] if number < len(sources) else None
    if not isinstance(entry, dict):
        return None
    name, runs = entry.get("file"), entry.get("lines")
    if not isinstance(name, str) or not name.isprintable() or not isinstance(runs, list):
        return None
    for run in runs:
        if not (isinstance(run, list) and len(run) == 3 and all(type(n) is int for n in run)):
            return None
        if 0 <= block - run[0] < run[2]:
            return name[:100], run[1] + block - run[0]
    return None


def without_sources(artifact: Artifact) -> Artifact:
    """``artifact`` as if it said nothing of assembler files."""
    model = {key: value for key, value in artifact.model.items() if key != SOURCES}
    return replace(artifact, model=model)


def with_places(text: str, artifact: Artifact, chip: int | None) -> str:
    """``text`` with file and line beside the blocks it names of the program of ``chip``."""

    def place(match: re.Match[str]) -> str:
        found = place_of(artifact, chip if match[1] is None else int(match[1]), int(match[2]))
        return match[0] if found is None else f"{match[0]}, {found[0]}:{found[1]}"

    return _BLOCK.sub(place, text)


def fault_text(fault: ProgramFault | LockstepViolation, artifact: Artifact) -> str:
    """A fault in words, with file and line where the artifact has them."""
    return with_places(str(fault), artifact, fault.chip)
