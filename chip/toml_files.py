"""TOML files that anybody may have written: bounded in size, and refused in one line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 1 << 20


class TomlFileError(ValueError):
    """Why a file holds no table; whoever reads it puts the file's name before it."""


def read_toml(path: Path, most_bytes: int = MAX_FILE_BYTES) -> dict[str, Any]:
    """The table in a file of at most ``most_bytes``; raises TomlFileError for everything else."""
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise TomlFileError(f"not readable: {reason}") from None
    if len(data) > most_bytes:
        raise TomlFileError(f"more than {most_bytes} bytes; use a smaller file")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise TomlFileError("not valid TOML: nested too deeply") from None
    except ValueError as error:
        raise TomlFileError(f"not valid TOML: {' '.join(str(error).split())[:200]}") from None
