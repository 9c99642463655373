"""Options that several verbs share, and what they mean."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import InputError
from cluster.whole_files import check_writable

CHIPS = (1, 2, 4, 8)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Model = Annotated[
    Path | None,
    typer.Option(help="Hugging Face checkpoint directory.", show_default="shipped model"),
]
Chips = Annotated[int, typer.Option(help="Chips of the node: 1, 2, 4 or 8.")]
Tp = Annotated[
    int | None, typer.Option(help="Chips that share every matrix.", show_default="all chips")
]
Pp = Annotated[int, typer.Option(help="Pipeline stages; only 1 is built.")]
Dtype = Annotated[str, typer.Option(help="Number type of weights: int8 or fp16.")]
Context = Annotated[
    int | None, typer.Option(help="Positions to compile for.", show_default="what is needed")
]
Plot = Annotated[
    Path | None, typer.Option(help="Write a picture: .png or .svg.", show_default="none")
]
Faults = Annotated[
    Path | None,
    typer.Option(help="Faults of the modelled machine, a TOML file.", show_default="none"),
]
ChipType = Annotated[str, typer.Option("--chip", help="Chip preset or a TOML file.")]


def shipped_model() -> Path:
    """The checkpoint that comes with the package."""
    return Path(str(files("programs") / "checkpoints" / "target"))


def check_parallelism(chips: int, tp: int | None, pp: int) -> int:
    """The tensor parallelism that the three options ask for."""
    if chips not in CHIPS:
        raise InputError(f"--chips {chips}: a node has 1, 2, 4 or 8 chips; use one of these")
    if pp != 1:
        raise InputError(f"--pp {pp}: pipeline stages are not built yet; use --pp 1")
    if tp is not None and tp != chips:
        raise InputError(
            f"--tp {tp} with --chips {chips}: without pipeline stages every chip shares every "
            f"matrix; use --tp {chips} or leave it out"
        )
    return chips


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> str:
    """``value`` if it is one of ``choices``."""
    if value not in choices:
        raise InputError(f"{option} {value}: use {' or '.join(choices)}")
    return value


def check_at_least(option: str, value: int | None, least: int) -> None:
    """Refuse a number below ``least``."""
    if value is not None and value < least:
        raise InputError(f"{option} {value}: use {least} or more")


def check_plot(path: Path | None) -> None:
    """Refuse a picture that could not be written, before anything is computed for it."""
    if path is None:
        return
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"--plot {path}: use a name that ends in .png or .svg")
    check_writable(path)


def check_at_most(option: str, value: int, most: int) -> None:
    """Refuse a number above ``most``."""
    if value > most:
        raise InputError(f"{option} {value}: use {most} or less")


def end_tokens(model: dict[str, Any]) -> tuple[int, ...]:
    """Token ids that end a text, from a ``config.json``."""
    value = model.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool))


def fault_summary(counts: dict[str, int]) -> str:
    """What befell the modelled machine, in words."""
    return (
        f"{counts['fec_corrected']:,} packets corrected, {counts['uncorrectable']:,} not; SRAM "
        f"{counts['sram_corrected']:,} corrected, {counts['sram_detected']:,} detected; "
        f"{counts['replays']:,} replays, {counts['spare_used']} spares; "
        f"cost {counts['cost_cycles']:,} cycles"
    )
