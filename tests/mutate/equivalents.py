"""Mutants that somebody judged equivalent, each with the reason."""

from __future__ import annotations

import json
from pathlib import Path

from .mutant import Mutant

#: A list's path, the line that is mutated and what it becomes, both stripped.
Key = tuple[str, str, str]


class EquivalentsError(Exception):
    """A list that cannot be read; one line."""


def read_equivalents(path: Path) -> dict[Key, str]:
    """The reasons, by file, line and mutated line.

    EquivalentsError where the file is missing or not a list of such entries.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        found = {
            (entry["file"], entry["line"], entry["becomes"]): entry["reason"] for entry in entries
        }
    except OSError as error:
        raise EquivalentsError(f"{path}: {error.strerror}; name a list with --equivalent") from None
    except (ValueError, TypeError, KeyError):
        text = "a JSON list of objects with file, line, becomes and reason is wanted"
        raise EquivalentsError(f"{path}: {text}") from None
    if not all(isinstance(value, str) for key, reason in found.items() for value in (*key, reason)):
        raise EquivalentsError(f"{path}: file, line, becomes and reason are texts")
    return found


def key(mutant: Mutant) -> Key:
    """Where the mutant would stand in a list."""
    return mutant.file, mutant.before, mutant.after
