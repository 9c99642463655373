"""``lpu assemble``: assembler text, a file for every chip, becomes an artifact."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster import option_types
from cluster.errors import InputError
from cluster.option_checks import check_choice

if TYPE_CHECKING:
    from chip.encoding import Assembly

_RESULT = re.compile(r"mem_([we])\[(\d+)-(\d+)\]:(\d+)(?::(\d+))?")
MOST_BYTES = 64 << 20


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
    from chip.faults import ProgramFault
    from chip.linking import link
    from chip.spec import load_chip_spec
    from cluster.commands.output import print_json, print_table
    from interconnect.wiring import NODE_SIZES, node_cables
    from programs.artifact import OUTPUT_TYPES, SOURCES, Artifact, fault_text, save, source_entry

    spec = load_chip_spec(chip)
    if len(texts) not in NODE_SIZES:
        sizes = ", ".join(map(str, NODE_SIZES))
        raise InputError(f"{len(texts)} files: a node has {sizes} chips; give a file for each")
    bindings: dict[str, Any] = {"inputs": {}, "outputs": {}}
    if result is not None:
        bindings["outputs"] = {"result": _places(result, spec.words_per_slice)}
        shown_as = check_choice("--result-type", result_type or "f32", tuple(OUTPUT_TYPES))
        if shown_as != "f32":
            bindings["output_types"] = {"result": shown_as}
    elif result_type is not None:
        raise InputError("--result-type: there is no result to show; add --result")
    read = [_assembled(path, spec.words_per_slice) for path in texts]
    programs = [assembly.program for assembly in read]
    made = Artifact(
        spec=spec, topology="node", chips=len(programs), cables=node_cables(len(programs)),
        programs={"main": programs}, program_of_chip=list(range(len(programs))),
        memory=[assembly.memory for assembly in read], bindings=bindings,
        model={SOURCES: [source_entry(path.name, assembly.lines)
                         for path, assembly in zip(texts, read, strict=True)]},
    )  # fmt: skip
    predicted = made.predicted_cycles
    lengths: list[int] = []
    try:
        # A launch lasts as long on every chip.
        for program in programs:
            lengths.append(link(program, spec).cycles)
        predicted["main"] = max(lengths)
        made.programs["main"] = [replace(p, cycles=predicted["main"]) for p in programs]
    except ProgramFault as fault:
        # An illegal program can be written down, too; lpu check names everything that is wrong.
        at = ProgramFault(fault.code, fault.cycle, fault.queue, fault.message, chip=len(lengths))
        typer.echo(f"lpu: {fault_text(at, made)}; lpu check {output} tells all", err=True)
    save(made, output)
    blocks = sum(len(program.blocks) for program in programs)
    if as_json:
        print_json({"artifact": str(output), "chips": len(programs), "blocks": blocks,
                    "predicted_cycles": predicted})  # fmt: skip
        return
    known = f"{predicted['main']:,}" if predicted else "not known"
    print_table(
        str(output),
        [("chips", str(len(programs))), ("blocks", f"{blocks:,}"), ("cycles", known)],
    )


def _assembled(path: Path, words_per_slice: int) -> Assembly:
    from chip.encoding import AssemblyError, read_assembly
    from chip.isa import queue_name

    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: larger than {MOST_BYTES:,} bytes: no program of a chip is")
        assembly = read_assembly(path.read_text(encoding="utf-8"))
    except AssemblyError as error:
        raise InputError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"{path}: cannot be read: {reason}") from None
    for slice_, first, rows in assembly.memory:
        if first + len(rows) > words_per_slice:
            raise InputError(
                f"{path}: .data fills {queue_name(slice_)} up to word {first + len(rows) - 1}; "
                f"this chip's slices have words 0 to {words_per_slice - 1}"
            )
    return assembly


def _places(text: str, words_per_slice: int) -> list[list[int]]:
    """(slice, first word, words) of every byte of the results."""
    from chip.isa import SLICES_PER_HEMISPHERE

    match = _RESULT.fullmatch(text)
    if match is not None:
        first, last, word, count = int(match[2]), int(match[3]), int(match[4]), int(match[5] or 1)
        base = SLICES_PER_HEMISPHERE if match[1] == "e" else 0
        fits = last - first == 3 and last < SLICES_PER_HEMISPHERE
        if fits and count >= 1 and word + count <= words_per_slice:
            return [[base + number, word, count] for number in range(first, last + 1)]
    raise InputError(
        f"--result {text}: use four slices in ascending order, a word and how many, within "
        f"{words_per_slice} words, as mem_e[0-3]:8:20"
    )
