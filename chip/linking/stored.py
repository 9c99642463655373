"""Linked programs in files, so that processes of one run need not each link what they share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from chip.jit import sources_digest
from chip.linking.linker import LinkedProgram
from chip.spec import ChipSpec

_ARRAYS = ("table", "starts", "arguments", "weights", "maps")
_NUMBERS = ("byte_rows", "word_rows", "cycles", "elements", "counters")


def save_linked(linked: LinkedProgram, path: Path) -> None:
    """Write ``linked`` without its spec to ``path``, which is there when all of it is.

    It names the sources that it was linked with.  Raises OSError.
    """
    numbers = np.array([getattr(linked, name) for name in _NUMBERS], np.int64)
    arrays = {name: getattr(linked, name) for name in _ARRAYS}
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, sources=np.array(sources_digest()), numbers=numbers, **arrays)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_linked(path: Path, spec: ChipSpec) -> LinkedProgram | None:
    """What ``save_linked`` wrote, of a program that was linked for ``spec``.

    None where there is no such file, or a damaged one, or one of another copy of the package: its
    reader can always link for itself.
    """
    try:
        with path.open("rb") as file, np.load(file) as stored:
            fields: dict[str, Any] = {name: stored[name] for name in _ARRAYS}
            fields |= zip(_NUMBERS, stored["numbers"].tolist(), strict=True)
            same = str(stored["sources"]) == sources_digest()
    except Exception:  # NumPy, its zip and zlib raise a dozen kinds over damaged files
        return None
    return LinkedProgram(**fields, spec=spec) if same else None
