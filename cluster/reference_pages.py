"""The pages of ``docs/reference``, made from the code: ``python -m cluster.reference_pages``.

Instructions, chip and GPU specs with the source of every value, the command line, metrics; and the
picture of the packages.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from chip import isa
from chip import spec as chip_spec
from chip.isa import AccMode, Op
from chip.program import BLOCK_DTYPE
from cluster import architecture_picture
from cluster.gpu import GPU_PRESETS
from cluster.gpu import field_source as gpu_field_source
from cluster.instruction_examples import example, when
from cluster.metrics import metrics_page
from cluster.whole_files import replace_file

DIRECTORY = Path(__file__).parent.parent / "docs" / "reference"
_HEADINGS = ("opcode", "number", "meaning", "effect, dispatched at T", "example")
_FAMILIES = ((1, "ICU"), (32, "MEM"), (64, "VXM"), (128, "MXM"), (160, "SXM"), (192, "C2C"))


def _table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heading, tuple("---" for _ in heading), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)


def _meanings() -> dict[str, str]:
    """What is said beside each opcode where it is defined."""
    found = re.findall(r"^    ([A-Z0-9_]+) = \d+(?:  # (.*))?$", inspect.getsource(Op), re.M)
    return dict(found)


def instructions() -> str:
    """Opcodes with their numbers and meanings, queues, and the columns of a block."""
    meanings = _meanings()
    parts = [
        "# Instructions",
        "Made from `chip/isa.py` and `chip/program/blocks.py`. What each does to the bit is in "
        "[machine.md](../machine.md), how a line is written in [assembler.md](../assembler.md). "
        "Cycles are those of the default chip; x is s0, y is s1.",
    ]
    for index, (first, family) in enumerate(_FAMILIES):
        end = _FAMILIES[index + 1][0] if index + 1 < len(_FAMILIES) else 256
        rows = [
            (f"`{op.name}`", str(int(op)), meanings[op.name], when(op), f"`{example(op)}`")
            for op in Op
            if first <= int(op) < end
        ]
        parts += [f"## {family}", _table(_HEADINGS, rows)]
    modes = [(f"`{mode.name}`", str(int(mode))) for mode in AccMode]
    parts += ["## Modes of ACC", _table(("mode", "number"), modes)]
    queues = [
        (f"`{isa.queue_name(first)}` to `{isa.queue_name(end - 1)}`", f"{first} to {end - 1}")
        for first, end in (
            (0, isa.SLICES_PER_HEMISPHERE),
            (isa.SLICES_PER_HEMISPHERE, isa.VXM_QUEUE),
            (isa.VXM_QUEUE, isa.MXM_QUEUE),
            (isa.MXM_QUEUE, isa.SXM_QUEUE),
            (isa.SXM_QUEUE, isa.C2C_QUEUE),
            (isa.C2C_QUEUE, isa.QUEUES),
        )
    ]
    parts += ["## Queues", _table(("queues", "numbers"), queues)]
    columns = [(f"`{n}`", str(BLOCK_DTYPE[n])) for n in BLOCK_DTYPE.names or ()]
    parts += [
        "## Columns of a block",
        "What they mean: [assembler.md](../assembler.md).",
        _table(("column", "type"), columns),
    ]
    return "\n\n".join(parts) + "\n"


def chip_specs() -> str:
    """Every field of every chip preset with its source."""
    return _specs(
        "# Chip specs\n\nMade from `chip/spec.py`. A TOML file with a `[chip]` table overrides any "
        "of them (`--chip FILE.toml`); `base` names the preset to start from.",
        chip_spec.PRESETS,
        chip_spec.field_source,
    )


def gpu_specs() -> str:
    """Every field of every GPU preset with its source."""
    return _specs(
        "# GPU specs\n\nMade from `cluster/gpu/spec.py`. A TOML file with a `[gpu]` table "
        "overrides any of them (`--gpu FILE.toml`); `base` names the preset to start from.",
        GPU_PRESETS,
        gpu_field_source,
    )


def _specs(
    heading: str, presets: Mapping[str, Any], source_of: Callable[[str, str], tuple[str, str]]
) -> str:
    parts = [heading]
    for name, spec in presets.items():
        rows = [
            (f"`{f.name}`", _number(getattr(spec, f.name)), *source_of(name, f.name))
            for f in fields(spec)
        ]
        parts += [f"## {name}", _table(("field", "value", "source", "note"), rows)]
    return "\n\n".join(parts) + "\n"


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def command_line() -> str:
    """Every command, argument and option, as the command line itself tells them."""
    import typer.main
    from typer.cli import get_docs_for_click

    from cluster.cli import app

    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="lpu")
    text = str(get_docs_for_click(obj=command, ctx=context, name="lpu"))
    return "# Command line\n\nMade from `lpu --help`.\n\n" + text.replace("# `lpu`", "## `lpu`", 1)


#: File names and what makes them.
PAGES: dict[str, Callable[[], str]] = {
    "instructions.md": instructions,
    "chip-specs.md": chip_specs,
    "gpu-specs.md": gpu_specs,
    "command-line.md": command_line,
    "metrics.md": metrics_page,
}


def main() -> int:
    """Write every page and the picture."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        replace_file(DIRECTORY / name, partial(_write, make()))
    picture = architecture_picture.PICTURE
    picture.parent.mkdir(parents=True, exist_ok=True)
    replace_file(picture, partial(_write, architecture_picture.draw()))
    return 0


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
