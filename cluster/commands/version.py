"""The version of this copy of lpu-cluster."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

NAME = "lpu-cluster"
#: Directories above this file in which a checkout's pyproject.toml may lie.
MOST_UP = 4


def version() -> str:
    """That of the checkout this file lies in, else that of the installed package, else unknown."""
    for directory in list(Path(__file__).resolve().parents)[:MOST_UP]:
        try:
            project = tomllib.loads((directory / "pyproject.toml").read_text("utf-8"))["project"]
            if project["name"] == NAME:
                return str(project["version"])
        except (OSError, ValueError, KeyError, TypeError):  # none here, or not ours
            continue
    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return "unknown"
