"""What any block table must satisfy before a later stage may touch it.

These are limits of *representation*: every column inside the range its meaning allows, known
opcodes, existing gangs, and an expansion that stays countable.  A program inside the limits can
be expanded, checked and disassembled in bounded time and memory without an integer overflowing.
Whether it is *legal* (bounds of reached addresses, drivers, units) is the checker's question.

The assembler and the artifact reader both call :func:`validate_program`; the table is read in
slices, so the check needs a few MiB whatever the table's size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip.isa import IMM, LANES, MAX_WORDS_PER_SLICE, NONE, QUEUES, STREAMS, VXM_QUEUE, Op
from chip.program.blocks import BLOCK_DTYPE, BlockTable, Program

#: Largest cycle number, of an instruction or of a launch (20 minutes at 900 MHz).
MAX_CYCLES = 2**40
#: Largest number of single instructions a program may expand to, whoever looks at it; linking,
#: which holds a few hundred bytes of each, takes ``MAX_LINKED``.
MAX_INSTRUCTIONS = 200_000_000
MAX_LINKED = 2**24
#: Largest number of words in the windows of a linked program's gathers and scatters.
MAX_WINDOW_WORDS = 2**27
MAX_BLOCKS = 2**24
MAX_GANGS = 65_536
MAX_MAPS = 65_536
MAX_GANG_MEMBERS = VXM_QUEUE

_INT32 = (-(2**31), 2**31 - 1)
_WORD = (0, MAX_WORDS_PER_SLICE - 1)  # of any chip; a chip's own SRAM is the checker's question

#: Inclusive range of every column of a block.
COLUMN_RANGES: dict[str, tuple[int, int]] = {
    "cycle": (0, MAX_CYCLES),
    "queue": (0, QUEUES - 1),
    "op": (min(Op), max(Op)),
    "n1": (1, MAX_INSTRUCTIONS),
    "dc1": _INT32,
    "da1": _INT32,
    "n2": (1, MAX_INSTRUCTIONS),
    "dc2": _INT32,
    "da2": _INT32,
    "gang": (-1, MAX_GANGS - 1),
    "dcg": _INT32,
    "dsg": (-(STREAMS - 1), STREAMS - 1),
    "a": _WORD,
    "s0": (NONE, IMM),
    "s1": (NONE, IMM),
    "out": (NONE, STREAMS - 1),
    "w0": (0, 16),
    "w1": (0, 16),
    "wo": (0, 16),
    "mode": (0, 3),
    "imm": _INT32,
    "lo": _WORD,
    "hi": _WORD,
    "tag": _INT32,
    "want0": _INT32,
    "want1": _INT32,
}

_KNOWN_OP = np.zeros(max(Op) + 1, bool)
_KNOWN_OP[[int(op) for op in Op]] = True
_SLICE_OF_TABLE = 16_384  # blocks looked at together


class ProgramLimitError(ValueError):
    """A program outside the limits; one line.  ``block`` is the offending block, if it is one."""

    def __init__(self, message: str, block: int | None = None) -> None:
        """Keep ``message`` apart from the block's number, which a caller may name otherwise."""
        super().__init__(message if block is None else f"block {block}: {message}")
        self.message = message
        self.block = block


def validate_program(program: Program) -> None:
    """Raise :class:`ProgramLimitError` unless ``program`` is inside every limit."""
    blocks = program.blocks
    if not isinstance(blocks, np.ndarray) or blocks.dtype != BLOCK_DTYPE or blocks.ndim != 1:
        raise ProgramLimitError("the blocks are no one-dimensional table of BLOCK_DTYPE")
    if len(blocks) > MAX_BLOCKS:
        raise ProgramLimitError(f"{len(blocks)} blocks; use repeats to stay within {MAX_BLOCKS}")
    if isinstance(program.cycles, bool) or not isinstance(program.cycles, (int, np.integer)):
        raise ProgramLimitError("the launch's cycles are no integer")
    if not 0 <= program.cycles <= MAX_CYCLES:
        raise ProgramLimitError(f"cycles is {program.cycles}; keep it within 0..{MAX_CYCLES}")
    _validate_gangs(program)
    _validate_maps(program)
    members = np.array([len(gang) for gang in program.gangs] + [1], np.int64)  # [-1]: no gang
    total = 0
    for start in range(0, len(blocks), _SLICE_OF_TABLE):
        total += _validate_slice(blocks[start : start + _SLICE_OF_TABLE], start, members, total)


def expanded_elements(program: Program) -> int:
    """Instructions of ``program`` and the stream elements they take and drive, all together.

    What looking at every single one of them costs is proportional to this.
    """
    blocks = program.blocks
    members = np.array([len(gang) for gang in program.gangs] + [1], np.int64)  # [-1]: no gang
    streams = sum(blocks[name].astype(np.int64) for name in ("w0", "w1", "wo"))
    for op, fixed in ((Op.LW, 16), (Op.TRANSPOSE, 32)):
        streams = np.where(blocks["op"] == op, fixed, streams)
    times = blocks["n1"].astype(np.int64) * blocks["n2"] * members[blocks["gang"]]
    return int((times * (1 + streams)).sum())


def _validate_gangs(program: Program) -> None:
    """Every gang has 1..88 members, each a MEM queue."""
    if len(program.gangs) > MAX_GANGS:
        raise ProgramLimitError(f"{len(program.gangs)} gangs; keep them within {MAX_GANGS}")
    for number, gang in enumerate(program.gangs):
        if not isinstance(gang, tuple) or not 1 <= len(gang) <= MAX_GANG_MEMBERS:
            raise ProgramLimitError(f"gang {number} is no tuple of 1..{MAX_GANG_MEMBERS} queues")
        for queue in gang:
            if not isinstance(queue, (int, np.integer)) or not 0 <= queue < VXM_QUEUE:
                raise ProgramLimitError(
                    f"gang {number} holds {queue!r:.20}; only MEM queues 0..{VXM_QUEUE - 1} gang"
                )


def _validate_maps(program: Program) -> None:
    """Every lane map is int16 [320] with lanes 0..319 (a permutation is the checker's rule)."""
    if len(program.maps) > MAX_MAPS:
        raise ProgramLimitError(f"{len(program.maps)} maps; keep them within {MAX_MAPS}")
    for number, lanes in enumerate(program.maps):
        if not isinstance(lanes, np.ndarray) or lanes.dtype != np.int16 or lanes.shape != (LANES,):
            raise ProgramLimitError(f"map {number} is no int16 array of {LANES} lanes")
        if lanes.min() < 0 or lanes.max() >= LANES:
            raise ProgramLimitError(f"map {number} names a lane outside 0..{LANES - 1}")


def _validate_slice(part: BlockTable, start: int, members: NDArray[np.int64], before: int) -> int:
    """Check the blocks ``part`` (the first is number ``start``); how many instructions they are."""
    for name, (low, high) in COLUMN_RANGES.items():
        column = part[name]
        if column.min() < low or column.max() > high:
            row = int(np.argmax((column < low) | (column > high)))
            raise ProgramLimitError(
                f"{name} is {int(column[row])}; keep it within {low}..{high}", start + row
            )
    wide = {name: part[name].astype(np.int64) for name in COLUMN_RANGES}

    def refuse(bad: NDArray[np.bool_], message: str) -> None:
        if bad.any():
            raise ProgramLimitError(message, start + int(np.argmax(bad)))

    refuse(~_KNOWN_OP[wide["op"]], "the opcode is unknown; use the numbers of chip.isa.Op")
    refuse(wide["gang"] >= len(members) - 1, "the gang does not exist; add it to the gangs")
    size = members[wide["gang"]]
    count = wide["n1"] * wide["n2"]
    too_many = f"the program expands to more than {MAX_INSTRUCTIONS} instructions; repeat less"
    refuse(count > MAX_INSTRUCTIONS, too_many)
    running = before + np.cumsum(count * size)
    refuse(running > MAX_INSTRUCTIONS, too_many)
    for first, steps, low, high in (
        ("cycle", (("n1", "dc1"), ("n2", "dc2")), -MAX_CYCLES, MAX_CYCLES),
        ("a", (("n1", "da1"), ("n2", "da2")), *_INT32),
    ):
        least, most = wide[first].copy(), wide[first].copy()
        spans = [(wide[n] - 1) * wide[d] for n, d in steps]
        if first == "cycle":
            spans.append((size - 1) * wide["dcg"])
        for span in spans:
            least += np.minimum(span, 0)
            most += np.maximum(span, 0)
        refuse(
            (least < low) | (most > high),
            f"the repeats carry {first} outside {low}..{high}; use smaller steps",
        )
    return int(running[-1]) - before
