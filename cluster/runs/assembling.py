"""Assembler text, a file for every chip of a node, becomes an artifact."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from chip.encoding import Assembly, AssemblyError, read_assembly
from chip.faults import ProgramFault
from chip.isa import SLICES_PER_HEMISPHERE, queue_name
from chip.linking import link
from chip.spec import ChipSpec
from cluster.errors import InputError
from cluster.option_checks import check_choice
from interconnect.wiring import NODE_SIZES, node_cables
from programs.artifact import OUTPUT_TYPES, SOURCES, Artifact, fault_text, source_entry

_RESULT = re.compile(r"mem_([we])\[(\d+)-(\d+)\]:(\d+)(?::(\d+))?")
MOST_BYTES = 64 << 20


def assemble_node(
    texts: Sequence[Path], spec: ChipSpec, result: str | None = None, result_type: str | None = None
) -> tuple[Artifact, str | None]:
    """The artifact of a node's chips, and why its first illegal program cannot be linked, if so.

    texts: assembler files of chip 0, 1, ...  result: where a run finds its 32-bit results, as
    ``mem_e[0-3]:8:20``; result_type: what they are, ``f32`` or ``i32``.  Raises InputError for a
    file that holds no program, a number of files that no node has, and results that lie nowhere.
    """
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
    sources = [
        source_entry(path.name, assembly.lines) for path, assembly in zip(texts, read, strict=True)
    ]
    made = Artifact(
        spec=spec,
        topology="node",
        chips=len(programs),
        cables=node_cables(len(programs)),
        programs={"main": programs},
        program_of_chip=list(range(len(programs))),
        memory=[assembly.memory for assembly in read],
        bindings=bindings,
        model={SOURCES: sources},
    )
    lengths: list[int] = []
    try:
        # A launch lasts as long on every chip.
        for program in programs:
            lengths.append(link(program, spec).cycles)
    except ProgramFault as fault:
        # An illegal program can be written down, too.
        at = ProgramFault(fault.code, fault.cycle, fault.queue, fault.message, chip=len(lengths))
        return made, fault_text(at, made)
    made.predicted_cycles["main"] = max(lengths)
    made.programs["main"] = [replace(p, cycles=max(lengths)) for p in programs]
    return made, None


def _assembled(path: Path, words_per_slice: int) -> Assembly:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: larger than {MOST_BYTES:,} bytes: no program of a chip is")
        assembly = read_assembly(path.read_text(encoding="utf-8-sig"))
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
