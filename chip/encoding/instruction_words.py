"""Instruction memory: a program as the 16-byte words of its 144 queues, and back.

Each queue issues in order, one issue slot per cycle.  A slot is one instruction word, or two when
the first has its pair bit set (a read with a write, an ABC with an ACC).  ``NOP n`` issues nothing
for n cycles (n <= 65,535); ``Repeat n, d`` issues the last slot n times more, d cycles apart, and
adds a step to its ``a`` at each repetition.  Encodings are not public: this one is assumed, and
holds every field an executor needs.  Tags and wants are the checker's and take no room on the
chip; lane maps stay beside the words.  Fetching itself is not simulated.

Word layout, low bit first (128 bits): opcode 8, pair 1, mode 2, w0 5, w1 5, wo 5, s0 8, s1 8,
out 8, a 16, imm 32, lo 15, hi 15; operand code 255 is "none".  NOP: opcode 0, count in ``a``.
Repeat: opcode 3, n in ``a``, d in the low half of ``imm``; steps of the slot's one or two
instructions in ``lo`` and ``hi`` as 13-bit two's complement.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.isa import NONE, Op
from chip.program import Program, expand, new_blocks

WORD_BYTES = 16
NOP, REPEAT = 0, 3
NOP_MAX = 65_535

_LAYOUT = (
    ("op", 8),
    ("pair", 1),
    ("mode", 2),
    ("w0", 5),
    ("w1", 5),
    ("wo", 5),
    ("s0", 8),
    ("s1", 8),
    ("out", 8),
    ("a", 16),
    ("imm", 32),
    ("lo", 15),
    ("hi", 15),
)
_STEP_MODULUS = 1 << 13
_NO_OPERAND = 255
#: Columns an instruction word carries.
FIELDS = ("op", "mode", "w0", "w1", "wo", "s0", "s1", "out", "a", "imm", "lo", "hi")

Fields = dict[str, int]
Slot = tuple[int, list[Fields]]  # cycle and the instructions issued in it


@dataclass
class InstructionMemory:
    """Words by queue (bytes, a multiple of 16 each) and what lies beside them."""

    queues: dict[int, bytes] = field(default_factory=dict)
    maps: list[NDArray[np.int16]] = field(default_factory=list)
    cycles: int = 0

    @property
    def size(self) -> int:
        """Bytes of all queues."""
        return sum(len(words) for words in self.queues.values())


def encode(program: Program) -> InstructionMemory:
    """The instruction words of a legal program."""
    memory = InstructionMemory(maps=list(program.maps), cycles=program.cycles)
    for queue, slots in _slots(program).items():
        memory.queues[queue] = _encode_queue(queue, slots)
    return memory


def decode(memory: InstructionMemory) -> Program:
    """A program that expands to the encoded instructions (without tags and wants)."""
    rows: list[Fields] = []
    for queue, words in sorted(memory.queues.items()):
        rows += _decode_queue(queue, words)
    blocks = new_blocks(len(rows))
    for name in rows[0] if rows else ():
        blocks[name] = [row[name] for row in rows]
    return Program(blocks, [], list(memory.maps), memory.cycles)


def instruction_bytes(program: Program) -> int:
    """Instruction memory the program takes, in bytes."""
    return encode(program).size


def _slots(program: Program) -> dict[int, list[Slot]]:
    """The issue slots of every queue, in order of cycle."""
    table = expand(program)
    columns = {name: table[name].tolist() for name in ("cycle", "queue", *FIELDS)}
    queues: dict[int, list[Slot]] = {}
    for i in range(len(table)):
        fields = {name: columns[name][i] for name in FIELDS}
        cycle = columns["cycle"][i]
        slots = queues.setdefault(columns["queue"][i], [])
        if slots and slots[-1][0] == cycle:
            slots[-1][1].append(fields)
        else:
            slots.append((cycle, [fields]))
    return queues


def _encode_queue(queue: int, slots: list[Slot]) -> bytes:
    words: list[Fields] = []
    free = 0  # first cycle the queue has not accounted for
    i = 0
    while i < len(slots):
        cycle, instructions = slots[i]
        if len(instructions) > 2 or cycle < free:
            raise ValueError(f"queue {queue} cannot issue {len(instructions)} at cycle {cycle}")
        while free < cycle:
            idle = min(cycle - free, NOP_MAX)
            words.append({"op": NOP, "a": idle})
            free += idle
        for k, fields in enumerate(instructions):
            words.append({**fields, "pair": int(k + 1 < len(instructions))})
        repeats, distance, steps = _run(slots, i)
        if repeats:
            lo, hi = (step % _STEP_MODULUS for step in (*steps, 0)[:2])
            words.append({"op": REPEAT, "a": repeats, "imm": distance, "lo": lo, "hi": hi})
        free = cycle + repeats * distance + 1
        i += repeats + 1
    return b"".join(_pack(word) for word in words)


def _run(slots: list[Slot], first: int) -> tuple[int, int, list[int]]:
    """How often slot ``first`` repeats: (repeats, cycles between, step of each ``a``)."""
    if first + 1 == len(slots):
        return 0, 0, []
    distance = slots[first + 1][0] - slots[first][0]
    start, after = slots[first][1], slots[first + 1][1]
    if len(start) != len(after):
        return 0, 0, []
    steps = [y["a"] - x["a"] for x, y in zip(start, after, strict=True)]
    if distance > NOP_MAX or any(abs(step) >= _STEP_MODULUS // 2 for step in steps):
        return 0, 0, []
    repeats = 0
    while first + repeats + 1 < len(slots) and repeats < NOP_MAX:
        cycle, instructions = slots[first + repeats + 1]
        expected = [
            {**x, "a": x["a"] + (repeats + 1) * step} for x, step in zip(start, steps, strict=True)
        ]
        if cycle != slots[first][0] + (repeats + 1) * distance or instructions != expected:
            break
        repeats += 1
    return repeats, distance, steps


def _pack(word: Fields) -> bytes:
    bits = shift = 0
    for name, width in _LAYOUT:
        value = word.get(name, 0)
        if name in ("s0", "s1", "out") and value == NONE:
            value = _NO_OPERAND
        elif name == "imm":
            value &= 0xFFFFFFFF
        if not 0 <= value < 1 << width:
            raise ValueError(f"{name} = {value} does not fit the {width} bits of its field")
        bits |= value << shift
        shift += width
    return bits.to_bytes(WORD_BYTES, "little")


def _unpack(data: bytes) -> Fields:
    bits = int.from_bytes(data, "little")
    word: Fields = {}
    for name, width in _LAYOUT:
        word[name] = bits & ((1 << width) - 1)
        bits >>= width
    for name in ("s0", "s1", "out"):
        if word[name] == _NO_OPERAND:
            word[name] = NONE
    return word


def _decode_queue(queue: int, data: bytes) -> list[Fields]:
    """Blocks (column values) of one queue's words."""
    rows: list[Fields] = []
    slot: list[Fields] = []
    free = 0
    for at in range(0, len(data), WORD_BYTES):
        word = _unpack(data[at : at + WORD_BYTES])
        if word["op"] == NOP:
            free += word["a"]
            slot = []
        elif word["op"] == REPEAT:
            distance = word["imm"] & 0xFFFF
            for row, name in zip(slot, ("lo", "hi"), strict=False):
                step = (word[name] + _STEP_MODULUS // 2) % _STEP_MODULUS - _STEP_MODULUS // 2
                row.update(n1=word["a"] + 1, dc1=distance, da1=step)
            free += word["a"] * distance
            slot = []
        else:
            pair = word.pop("pair")
            if slot and slot[-1]["last"]:
                slot = []
            imm = word["imm"]
            row = {
                **word,
                "cycle": free,
                "queue": queue,
                "n1": 1,
                "dc1": 0,
                "da1": 0,
                "imm": imm - (1 << 32) if imm >> 31 else imm,
                "last": 1 - pair,
            }
            slot.append(row)
            rows.append(row)
            free += 1 - pair
    for row in rows:
        del row["last"]
    return rows


def describe(memory: InstructionMemory, queue: int) -> list[str]:
    """One queue's words, readable: ``NOP 12``, ``Repeat 19, 1``, ``READ a=7 ...``."""
    lines: list[str] = []
    data = memory.queues.get(queue, b"")
    for at in range(0, len(data), WORD_BYTES):
        word: dict[str, Any] = _unpack(data[at : at + WORD_BYTES])
        if word["op"] == NOP:
            lines.append(f"NOP {word['a']}")
        elif word["op"] == REPEAT:
            lines.append(f"Repeat {word['a']}, {word['imm'] & 0xFFFF}")
        else:
            fields = " ".join(
                f"{name}={word[name]}" for name in FIELDS[1:] if word[name] not in (0, NONE)
            )
            lines.append(f"{Op(word['op']).name} {fields}".rstrip())
    return lines
