"""Linked programs in files, so that processes of one run need not each link what they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from chip.linking.linker import LinkedProgram
from chip.spec import ChipSpec

_ARRAYS = ("table", "starts", "arguments", "weights", "maps")
_NUMBERS = ("byte_rows", "word_rows", "cycles", "elements", "counters")


def save_linked(linked: LinkedProgram, path: Path) -> None:
    """Write ``linked`` without its spec to ``path``, which ends in ``.npz``.

    For other processes of the same run: nothing checks such a file.
    """
    numbers = np.array([getattr(linked, name) for name in _NUMBERS], np.int64)
    np.savez(path, numbers=numbers, **{name: getattr(linked, name) for name in _ARRAYS})


def load_linked(path: Path, spec: ChipSpec) -> LinkedProgram:
    """What ``save_linked`` wrote, of a program that was linked for ``spec``."""
    with np.load(path) as stored:
        fields: dict[str, Any] = {name: stored[name] for name in _ARRAYS}
        fields |= zip(_NUMBERS, stored["numbers"].tolist(), strict=True)
    return LinkedProgram(**fields, spec=spec)
