"""Assembler text: a program as lines people can read, edit, diff and grep.

``chip.encoding.disassembly`` writes it, this module reads it.  One line is one block; a table
survives ``assemble(disassemble(p))`` column for column::

    .cycles 4000
    .gang 0 mem_w[0-3]+mem_e[7]          ; only where the order of the gangs has to be said
    .map 0 16-31,0-15,32-319             ; out lane -> in lane, for PERMUTE imm=0
    .data mem_e[0-3]:8 f32 1.5 2.5 x4    ; SRAM before the launch: see ``chip.encoding.data_text``
    100: mem_w[12] READ a=20 out=E5 wo=1 x8/1/2 x4/320/8
    100: mem_w[0-3,7] WRITE a=64 s0=W17 w0=1 dsg=1   # a gang: five slices, one instruction each
    130: alu[5] MUL_F32 s0=E4 w0=4 s1=imm imm=1.5f

``<cycle>: <queue> <OP> key=value ... [xN/DC/DA [xN/DC/DA]]``.  Queues are named as by
``chip.isa.queue_name``; a gang lists MEM slices (``a-b`` runs up or down, ``+`` joins the
hemispheres).  Keys are the columns of ``chip.program.BLOCK_DTYPE``; those at their neutral value
are left out.  ``s0``, ``s1`` and ``out`` take ``E5``, ``W17``, ``alu3``, ``self``, ``imm``, ``-``;
``mode`` a number or ``SET``, ``ADD``, ``SET_EMIT``, ``ADD_EMIT``; ``imm`` a decimal, ``0x`` bits or
a float32 with a final ``f``; every other key a decimal or ``0x`` integer.

Repeats: the first ``xN/DC/DA`` is n1, dc1, da1, the second n2, dc2, da2; missing numbers are 0.
Gangs are numbered as they first appear, after those that ``.gang`` declares.  ``gang=N`` picks one
of several equal gangs or one of a single member; ``queue=NAME`` sets a ganged block's queue column
where that is not its first member.  ``;`` and ``#`` begin comments.

This module knows names and ranges, not legality: an illegal program can be written down, and the
checker will say what is wrong with it.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from chip.encoding.assembly_error import AssemblyError
from chip.encoding.assembly_error import shown as _show
from chip.encoding.data_text import MAX_DATA_BYTES, Words, read_data
from chip.isa import (
    IMM,
    LANES,
    MAX_WORDS_PER_SLICE,
    QUEUES,
    SLICES_PER_HEMISPHERE,
    AccMode,
    Op,
    queue_name,
    stream_name,
)
from chip.program import (
    BLOCK_DTYPE,
    COLUMN_RANGES,
    MAX_BLOCKS,
    MAX_CYCLES,
    MAX_GANG_MEMBERS,
    MAX_GANGS,
    MAX_MAPS,
    BlockTable,
    Program,
    ProgramLimitError,
    new_blocks,
    validate_program,
)

__all__ = ["Assembly", "AssemblyError", "assemble", "immediate_text", "read_assembly"]

MAX_LINE = 10_000  # characters

_COLUMN: dict[str, int] = {name: i for i, name in enumerate(BLOCK_DTYPE.names or ())}
_NEUTRAL: tuple[int, ...] = new_blocks(1)[0].item()
_REPEATS = (("n1", "dc1", "da1"), ("n2", "dc2", "da2"))
_KEYS = (
    "a",
    "s0",
    "w0",
    "s1",
    "w1",
    "out",
    "wo",
    "mode",
    "imm",
    "lo",
    "hi",
    "tag",
    "want0",
    "want1",
    "dcg",
    "dsg",
)
_OPERAND_KEYS = ("s0", "s1", "out")
_QUEUE_CODE = {queue_name(q): q for q in range(QUEUES)}
_OPERAND_CODE = {stream_name(code): code for code in range(-1, IMM + 1)}
_CHUNK = 4096  # blocks converted together

_BLOCK_LINE = re.compile(r"([0-9]+)\s*:\s*(\S+)\s+(\S+)(.*)", re.ASCII)
_INTEGER = re.compile(r"[+-]?([0-9]{1,15}|0x[0-9a-fA-F]{1,15})", re.ASCII)
_FLOAT = re.compile(r"[+-]?([0-9]{1,40}\.?[0-9]{0,60}|\.[0-9]{1,60})(e[+-]?[0-9]{1,3})?f", re.ASCII)
_RUN = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", re.ASCII)
_GANG_PART = re.compile(r"mem_([we])\[([0-9,-]+)\]", re.ASCII)


@dataclass
class Assembly:
    """What a text says: the program, the SRAM words it fills, and whence each block comes.

    memory: (slice 0..87, first word, uint8 [words, 320]), no word twice.  lines: the number of
    each block's line, from 1.
    """

    program: Program
    memory: list[Words] = field(default_factory=list)
    lines: Sequence[int] = ()


def assemble(text: str) -> Program:
    """The program that ``text`` describes; raises :class:`AssemblyError` for any other text.

    A program alone has no memory, so ``.data`` is refused: :func:`read_assembly` takes it.
    """
    assembly = read_assembly(text)
    if assembly.memory:
        raise AssemblyError(".data fills memory, which a program alone lacks; use read_assembly")
    return assembly.program


def read_assembly(text: str) -> Assembly:
    """All that ``text`` says; raises :class:`AssemblyError` for text that is no program."""
    reader = _Reader()
    number = 0
    try:
        for number, line in enumerate(_lines(text), 1):
            reader.read(line, number)
    except AssemblyError as error:
        raise AssemblyError(f"line {number}: {error}") from None
    return Assembly(reader.program(), reader.memory(), reader.line_of_block)


def _lines(text: str) -> Iterator[str]:
    """Lines of ``text`` one by one, without a list of all of them."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end + 1


class _Reader:
    """The program read so far."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []
        self.parts: list[BlockTable] = []
        self.line_of_block = array("q")
        self.gangs: list[tuple[int, ...]] = []
        self.gang_number: dict[tuple[int, ...], int] = {}
        self.maps: list[NDArray[np.int16]] = []
        self.cycles: int | None = None
        self.data: list[tuple[int, int, int, Words]] = []  # slice, first word, line, all of it
        self.data_bytes = 0

    def read(self, line: str, number: int) -> None:
        """Take in one line."""
        if len(line) > MAX_LINE:
            raise AssemblyError(f"{len(line)} characters; keep a line within {MAX_LINE}")
        line = line.partition(";")[0].partition("#")[0].strip()
        if not line:
            return
        if line.startswith("."):
            self._directive(line.split(), number)
            return
        if len(self.line_of_block) >= MAX_BLOCKS:
            raise AssemblyError(f"more than {MAX_BLOCKS} blocks; use repeats")
        self.rows.append(self._block(line))
        self.line_of_block.append(number)
        if len(self.rows) == _CHUNK:
            self._flush()

    def program(self) -> Program:
        """The finished program, inside the limits."""
        self._flush()
        blocks = np.concatenate(self.parts) if self.parts else new_blocks(0)
        program = Program(blocks, self.gangs, self.maps, self.cycles or 0)
        try:
            validate_program(program)
        except ProgramLimitError as error:
            at = 0 if error.block is None else self.line_of_block[error.block]
            raise AssemblyError(f"line {at}: {error.message}") from None
        return program

    def memory(self) -> list[Words]:
        """The words that ``.data`` fills, by slice and word; none may be filled twice."""
        self.data.sort(key=lambda entry: entry[:3])
        for (slice_, at, line, (_, _, rows)), (other, next_at, next_line, _) in pairwise(self.data):
            if slice_ == other and at + len(rows) > next_at:
                raise AssemblyError(
                    f"line {max(line, next_line)}: word {next_at} of {queue_name(slice_)} is "
                    f"filled twice, by line {min(line, next_line)} too; keep one"
                )
        return [entry[3] for entry in self.data]

    def _flush(self) -> None:
        if self.rows:
            self.parts.append(np.array(self.rows, BLOCK_DTYPE))
            self.rows = []

    def _directive(self, words: list[str], line: int) -> None:
        name = words[0]
        if name == ".cycles" and len(words) == 2:
            if self.cycles is not None:
                raise AssemblyError(".cycles is given twice; keep one")
            self.cycles = _integer(words[1], ".cycles", 0, MAX_CYCLES)
        elif name == ".gang" and len(words) == 3:
            self._expect_number(words[1], ".gang", len(self.gangs), MAX_GANGS)
            if self.line_of_block:
                raise AssemblyError(".gang after a block; move it above the first one")
            gang = _gang(words[2])
            self.gang_number.setdefault(gang, len(self.gangs))
            self.gangs.append(gang)
        elif name == ".map" and len(words) == 3:
            self._expect_number(words[1], ".map", len(self.maps), MAX_MAPS)
            lanes = _runs(words[2], "lane", LANES - 1, LANES)
            if len(lanes) != LANES:
                raise AssemblyError(f".map has {len(lanes)} lanes; list all {LANES}")
            self.maps.append(np.array(lanes, np.int16))
        elif name == ".data" and len(words) >= 2:
            place, colon, first = words[1].rpartition(":")
            if not colon:
                raise AssemblyError(f".data {_show(first)} lacks its word; write mem_e[0-3]:8")
            at = _integer(first, "the word of .data", 0, MAX_WORDS_PER_SLICE - 1)
            for entry in read_data(_gang(place), at, words[2:]):
                self.data.append((entry[0], at, line, entry))
                self.data_bytes += entry[2].nbytes
            if self.data_bytes > MAX_DATA_BYTES:
                raise AssemblyError(f"all .data together fill more than {MAX_DATA_BYTES} bytes")
        else:
            raise AssemblyError(
                f"{_show(' '.join(words))} is no directive; use .cycles N, .gang N QUEUES, "
                ".map N LANES or .data QUEUES:WORD TYPE VALUES"
            )

    @staticmethod
    def _expect_number(text: str, what: str, expected: int, limit: int) -> None:
        if expected >= limit:
            raise AssemblyError(f"more than {limit} of {what}; share equal ones")
        if text != str(expected):
            raise AssemblyError(f"{what} number {_show(text)}; the next one is {expected}")

    def _block(self, line: str) -> tuple[int, ...]:
        match = _BLOCK_LINE.fullmatch(line)
        if match is None:
            raise AssemblyError(f"{_show(line)} is no block; write <cycle>: <queue> <OP> key=value")
        cycle, unit, op, rest = match.groups()
        row = list(_NEUTRAL)
        row[_COLUMN["cycle"]] = _integer(cycle, "the cycle", *COLUMN_RANGES["cycle"])
        if op not in Op.__members__:
            near = get_close_matches(op.upper()[:40], Op.__members__, 1)
            mend = f"do you mean {near[0]}? All" if near else "all"
            raise AssemblyError(
                f"{_show(op)} is no opcode; {mend} are in docs/reference/instructions.md"
            )
        row[_COLUMN["op"]] = int(Op[op])
        keys: dict[str, str] = {}
        level = 0
        for word in rest.split():
            if word.startswith("x"):
                if level == len(_REPEATS):
                    raise AssemblyError("a third repeat; a block has two, so split it")
                _read_repeat(word, _REPEATS[level], row)
                level += 1
                continue
            key, equals, value = word.partition("=")
            if not equals or (key not in _KEYS and key not in ("gang", "queue")):
                raise AssemblyError(
                    f"{_show(word)} is not understood; use xN/DC/DA or one of"
                    f" {'=, '.join((*_KEYS, 'gang', 'queue'))}="
                )
            if key in keys:
                raise AssemblyError(f"{key}= is given twice; keep one")
            keys[key] = value
        self._read_unit(unit, keys.pop("gang", None), keys.pop("queue", None), row)
        for key, value in keys.items():
            row[_COLUMN[key]] = _value(key, value)
        return tuple(row)

    def _read_unit(self, unit: str, gang: str | None, queue: str | None, row: list[int]) -> None:
        """Fill the columns ``queue`` and ``gang``."""
        if gang is None and unit in _QUEUE_CODE:
            if queue is not None:
                raise AssemblyError("queue= beside a single queue; leave it out")
            row[_COLUMN["queue"]] = _QUEUE_CODE[unit]
            return
        members = _gang(unit)
        if gang is not None:
            number = _integer(gang, "gang", 0, MAX_GANGS - 1)
            if number >= len(self.gangs) or self.gangs[number] != members:
                raise AssemblyError(f"gang {number} is not {_show(unit)}; declare it with .gang")
        else:
            number = self.gang_number.setdefault(members, len(self.gangs))
            if number == len(self.gangs):
                if number >= MAX_GANGS:
                    raise AssemblyError(f"more than {MAX_GANGS} gangs; share equal ones")
                self.gangs.append(members)
        if queue is not None and queue not in _QUEUE_CODE:
            raise AssemblyError(f"{_show(queue)} is no queue; {_QUEUE_HELP}")
        row[_COLUMN["gang"]] = number
        row[_COLUMN["queue"]] = members[0] if queue is None else _QUEUE_CODE[queue]


_QUEUE_HELP = "use a name such as mem_w[0], mem_e[0-3,7], alu[5], mxm[2].weights, c2c[3]"


def _integer(text: str, what: str, low: int, high: int) -> int:
    value = int(text, 0 if "x" in text else 10) if _INTEGER.fullmatch(text) else None
    if value is None or not low <= value <= high:
        raise AssemblyError(f"{what} is {_show(text)}; use an integer in {low}..{high}")
    return value


def _value(key: str, text: str) -> int:
    """The number that ``key=text`` stands for."""
    low, high = COLUMN_RANGES[key]
    if key in _OPERAND_KEYS:
        code = _OPERAND_CODE.get(text)
        if code is None or not low <= code <= high:
            others = "" if key == "out" else ", alu0..alu15, self, imm"
            raise AssemblyError(f"{key} is {_show(text)}; use E0..E31, W0..W31{others} or -")
        return code
    if key == "mode" and text in AccMode.__members__:
        return int(AccMode[text])
    if key == "imm":
        if _FLOAT.fullmatch(text):
            try:
                return int(struct.unpack("<i", struct.pack("<f", float(text[:-1])))[0])
            except OverflowError:
                raise AssemblyError(f"imm is {_show(text)}; float32 ends at 3.4028235e38") from None
        value = _integer(text, "imm", low, 2**32 - 1 if text.startswith("0x") else high)
        return value - 2**32 if value > high else value
    return _integer(text, key, low, high)


def _read_repeat(word: str, names: tuple[str, str, str], row: list[int]) -> None:
    numbers = word[1:].split("/")
    if len(numbers) > len(names):
        raise AssemblyError(f"{_show(word)} is no repeat; write xN/DC/DA")
    for name, text in zip(names, numbers, strict=False):
        row[_COLUMN[name]] = _integer(text, f"{name} of {_show(word)}", *COLUMN_RANGES[name])


def _runs(text: str, what: str, high: int, limit: int) -> list[int]:
    """Numbers of a list such as ``0-3,7``; each in 0..high, at most ``limit`` of them."""
    numbers: list[int] = []
    for piece in text.split(","):
        match = _RUN.fullmatch(piece)
        first = int(match[1]) if match else high + 1
        last = int(match[2]) if match and match[2] else first
        if max(first, last) > high:
            raise AssemblyError(
                f"{what} {_show(piece)} of the list {_show(text)}: {what}s are 0 to {high}; "
                "write one as 7, several as 0-3 or 0-3,7"
            )
        step = 1 if last >= first else -1
        numbers.extend(range(first, last + step, step))
        if len(numbers) > limit:
            raise AssemblyError(f"a list of more than {limit}; shorten it")
    return numbers


def _gang(text: str) -> tuple[int, ...]:
    """MEM queues of ``mem_w[0-3,7]+mem_e[2]``, in the order written."""
    members: list[int] = []
    for part in text.split("+"):
        match = _GANG_PART.fullmatch(part)
        if match is None:
            raise AssemblyError(f"{_show(text)} is no queue; {_QUEUE_HELP}")
        base = SLICES_PER_HEMISPHERE if match[1] == "e" else 0
        slices = _runs(match[2], "slice", SLICES_PER_HEMISPHERE - 1, MAX_GANG_MEMBERS)
        members.extend(base + s for s in slices)
    if len(members) > MAX_GANG_MEMBERS:
        raise AssemblyError(f"a gang of {len(members)}; keep it within {MAX_GANG_MEMBERS}")
    return tuple(members)


def immediate_text(value: int) -> str:
    """An immediate (int32 bits) as the float32 that an instruction takes it for, exactly."""
    text = f"{np.array([value], np.int32).view(np.float32)[0]!s}f"
    if _FLOAT.fullmatch(text) and _value("imm", text) == value:
        return text
    return f"0x{value & 0xFFFFFFFF:08x}"
