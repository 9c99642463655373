"""Writing assembler text, in the notation of ``chip.encoding.assembly``, which reads it back."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from chip.encoding.assembly import immediate_text
from chip.encoding.text_columns import TextColumns
from chip.isa import IMM, QUEUES, SLICES_PER_HEMISPHERE, AccMode, Op, queue_name, stream_name
from chip.program import Program, new_blocks, validate_program

__all__ = ["disassemble", "write_instructions"]

_NEUTRAL = new_blocks(1)[0]
_STREAM_NAMES = tuple(stream_name(code) for code in range(-1, IMM + 1))
_QUEUE_NAMES = tuple(queue_name(queue) for queue in range(QUEUES))
_MODE_NAMES = tuple(AccMode(number).name for number in range(len(AccMode)))
#: By number of the operation.
_OP_NAMES = tuple(f" {Op(n).name}" if n in list(Op) else "" for n in range(max(Op) + 1))
_OF_FLOATS = np.array([name.endswith("_F32") for name in _OP_NAMES])
_AFTER_OPERANDS = ("lo", "hi", "tag", "want0", "want1", "dcg", "dsg")


def disassemble(program: Program) -> str:
    """``program`` as assembler text; raises ProgramLimitError if it is outside the limits."""
    validate_program(program)
    lines = [f".cycles {program.cycles}\n"]
    _, first_use = np.unique(program.blocks["gang"], return_index=True)
    in_use = [int(program.blocks["gang"][i]) for i in np.sort(first_use)]
    if (
        [gang for gang in in_use if gang >= 0] != list(range(len(program.gangs)))
        or len(set(program.gangs)) != len(program.gangs)
        or any(len(gang) == 1 for gang in program.gangs)
    ):
        lines += [f".gang {i} {_gang_name(gang)}\n" for i, gang in enumerate(program.gangs)]
    lines += [f".map {i} {_run_text(lanes.tolist())}\n" for i, lanes in enumerate(program.maps)]
    columns = TextColumns(len(program.blocks))
    columns.integer(program.blocks["cycle"].astype(np.int64))
    columns.text(": ")
    write_instructions(program, columns)
    columns.text("\n")
    return "".join(lines) + columns.render().text.tobytes().decode("ascii")


def write_instructions(program: Program, columns: TextColumns) -> None:
    """Add every block's line without its cycle; the program is inside the limits."""
    blocks = program.blocks
    gang, queue = blocks["gang"].astype(np.int64), blocks["queue"].astype(np.int64)
    op = blocks["op"].astype(np.int64)
    ganged = gang >= 0
    columns.choice(_QUEUE_NAMES, queue, ~ganged)
    if program.gangs:
        columns.choice(tuple(_gang_name(members) for members in program.gangs), gang, ganged)
    columns.choice(_OP_NAMES, op)
    for key in ("a", "s0", "w0", "s1", "w1", "out", "wo"):
        given = blocks[key] != _NEUTRAL[key]
        if not given.any():
            continue
        columns.text(f" {key}=", given)
        if key in ("s0", "s1", "out"):
            columns.choice(_STREAM_NAMES, blocks[key].astype(np.int64) + 1, given)
        else:
            columns.integer(blocks[key].astype(np.int64), given)
    _write_mode(blocks["mode"].astype(np.int64), op == Op.ACC, columns)
    _write_immediates(program, columns)
    for key in _AFTER_OPERANDS:
        given = blocks[key] != _NEUTRAL[key]
        if given.any():
            columns.text(f" {key}=", given)
            columns.integer(blocks[key].astype(np.int64), given)
    _write_gangs(program, gang, queue, columns)
    _write_repeats(program, columns)


def _write_mode(mode: NDArray[np.int64], accumulates: NDArray[np.bool_], to: TextColumns) -> None:
    given = mode != _NEUTRAL["mode"]
    if given.any():
        to.text(" mode=", given)
        to.choice(_MODE_NAMES, np.where(accumulates, mode, 0), given & accumulates)
        to.integer(mode, given & ~accumulates)


def _write_immediates(program: Program, columns: TextColumns) -> None:
    """Float32 where the instruction takes the immediate as one, otherwise the integer."""
    blocks = program.blocks
    given = blocks["imm"] != _NEUTRAL["imm"]
    if not given.any():
        return
    columns.text(" imm=", given)
    floats = given & ((blocks["s0"] == IMM) | (blocks["s1"] == IMM))
    floats &= _OF_FLOATS[blocks["op"]]
    columns.integer(blocks["imm"].astype(np.int64), given & ~floats)
    if floats.any():
        distinct, which = np.unique(blocks["imm"][floats], return_inverse=True)
        index = np.zeros(len(blocks), np.int64)
        index[floats] = which
        texts = tuple(_immediate_text(number) for number in distinct.tolist())
        columns.choice(texts, index, floats)


def _write_gangs(
    program: Program, gang: NDArray[np.int64], queue: NDArray[np.int64], columns: TextColumns
) -> None:
    """What a list of queues does not say: which of some equal gangs, and another queue column."""
    if not program.gangs:
        return
    meant: dict[tuple[int, ...], int] = {}
    for number, members in enumerate(program.gangs):
        meant.setdefault(members, number)
    said = np.array(
        [
            len(members) > 1 and meant[members] == number
            for number, members in enumerate(program.gangs)
        ]
    )
    heads = np.array([members[0] for members in program.gangs], np.int64)
    unsaid = (gang >= 0) & ~said[gang]
    columns.text(" gang=", unsaid)
    columns.integer(gang, unsaid)
    other = (gang >= 0) & (heads[gang] != queue)
    if other.any():
        columns.text(" queue=", other)
        columns.choice(_QUEUE_NAMES, queue, other)


def _write_repeats(program: Program, columns: TextColumns) -> None:
    repeats = [
        [program.blocks[name].astype(np.int64) for name in names]
        for names in (("n1", "dc1", "da1"), ("n2", "dc2", "da2"))
    ]
    given = np.zeros(len(program.blocks), bool)
    written = []
    for n, dc, da in reversed(repeats):
        given = given | (n != 1) | (dc != 0) | (da != 0)
        written.append((given, n, dc, da))
    for given, n, dc, da in reversed(written):
        columns.text(" x", given)
        columns.integer(n, given)
        moves, steps = given & (da != 0), given & ((da != 0) | (dc != 0))
        columns.text("/", steps)
        columns.integer(dc, steps)
        columns.text("/", moves)
        columns.integer(da, moves)


_immediate_text = lru_cache(maxsize=4096)(immediate_text)


@lru_cache(maxsize=4096)
def _gang_name(members: tuple[int, ...]) -> str:
    parts: list[tuple[str, list[int]]] = []
    for queue in members:
        side = "we"[queue // SLICES_PER_HEMISPHERE]
        if not parts or parts[-1][0] != side:
            parts.append((side, []))
        parts[-1][1].append(queue % SLICES_PER_HEMISPHERE)
    return "+".join(f"mem_{side}[{_run_text(slices)}]" for side, slices in parts)


def _run_text(numbers: list[int]) -> str:
    """``0-3,7`` for 0, 1, 2, 3, 7; runs go up or down by one."""
    pieces: list[str] = []
    i = 0
    while i < len(numbers):
        end = i
        for step in (1, -1):
            while end + 1 < len(numbers) and numbers[end + 1] - numbers[i] == step * (end + 1 - i):
                end += 1
            if end > i:
                break
        pieces.append(f"{numbers[i]}-{numbers[end]}" if end > i + 1 else str(numbers[i]))
        i = end + 1 if end > i + 1 else i + 1
    return ",".join(pieces)
