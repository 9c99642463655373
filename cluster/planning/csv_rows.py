"""Rows of plans as a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.whole_files import replace_file


def write_rows(
    rows: Sequence[dict[str, Any]], axes: Sequence[str], columns: Sequence[str], path: Path
) -> None:
    """The rows with a heading, what varies first; an old file stays until this one is whole."""

    def write(target: Path) -> None:
        with target.open("w", newline="", encoding="utf-8") as file:
            names = [*axes, *(name for name in columns if name not in axes)]
            writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    replace_file(path, write)
