"""``lpu assemble``: assembler text, a file for every chip, becomes an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster import option_types


def assemble(
    texts: Annotated[
        list[Path], typer.Argument(help="Assembler text of chip 0, 1, ...: 1, 2, 4 or 8 files.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path(
        "program.lpu"
    ),
    result: Annotated[
        str | None,
        typer.Option(
            help="Where a run finds its 32-bit results: four slices, one for each byte, a word "
            "and how many (1), as mem_e[0-3]:8 or mem_e[0-3]:8:20.",
            show_default="none",
        ),
    ] = None,
    result_type: Annotated[
        str | None,
        typer.Option(help="What the results are shown as: f32 or i32.", show_default="f32"),
    ] = None,
    chip: option_types.ChipType = "groq-lpu-1",
    as_json: option_types.Json = False,
) -> None:
    """Assemble the programs of a node's chips to one .lpu file; the opposite of inspect."""
    from chip.spec import load_chip_spec
    from cluster.commands.output import print_json, print_table
    from cluster.runs import assemble_node
    from programs.artifact import save

    made, fault = assemble_node(texts, load_chip_spec(chip), result, result_type)
    if fault is not None:
        typer.echo(f"lpu: {fault}; lpu check {output} tells all", err=True)
    save(made, output)
    programs, predicted = made.programs["main"], made.predicted_cycles
    blocks = sum(len(program.blocks) for program in programs)
    if as_json:
        print_json(
            {
                "artifact": str(output),
                "chips": len(programs),
                "blocks": blocks,
                "predicted_cycles": predicted,
            }
        )
        return
    known = f"{predicted['main']:,}" if predicted else "not known"
    print_table(
        str(output),
        [("chips", str(len(programs))), ("blocks", f"{blocks:,}"), ("cycles", known)],
    )
