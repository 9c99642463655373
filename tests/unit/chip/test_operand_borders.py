"""Operands at the borders of what is legal: three readings of docs/machine.md say the same.

The reference's forms, the loader's static check and the checker share opcodes and tables of widths,
but no rule; each says of an instruction with which code it is refused, or that it is sound.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chip.checker import check
from chip.faults import ProgramFault
from chip.isa import C2C_QUEUE, LANES, MXM_QUEUE, SXM_QUEUE, VXM_ARITY, VXM_QUEUE, Op
from chip.linking.static import check_blocks
from chip.program import Program, new_blocks
from chip.reference.forms import Instruction, check_form
from chip.spec import ChipSpec

Row = dict[str, int]
SPEC = ChipSpec()
MAPS = [np.arange(LANES, dtype=np.int16)]
ALU, WEIGHTS, ACTIVATIONS, SXM = VXM_QUEUE, MXM_QUEUE, MXM_QUEUE + 1, SXM_QUEUE
ONE_OUT, ONE_IN, WINDOW = {"out": 0, "wo": 1}, {"s0": 0, "w0": 1}, {"s1": 2, "lo": 5, "hi": 9}

#: A sound instruction of every opcode: its queue and columns.
SOUND: dict[Op, tuple[int, Row]] = {
    Op.SYNC: (5, {}),
    Op.NOTIFY: (5, {}),
    Op.READ: (3, ONE_OUT),
    Op.WRITE: (3, ONE_IN),
    Op.GATHER: (3, ONE_OUT | WINDOW),
    Op.SCATTER: (3, ONE_IN | WINDOW),
    **{op: (ALU, {"s0": 4, "w0": 4, "s1": 12, "w1": 4, "out": 8, "wo": 4}) for op in VXM_ARITY},
    Op.LW: (WEIGHTS, {"s0": 0}),
    Op.IW: (WEIGHTS, {"a": 1}),
    Op.ABC: (ACTIVATIONS, {"s0": 4, "w0": 2}),
    Op.ACC: (ACTIVATIONS, {"mode": 2, "out": 4}),
    Op.DISTRIBUTE: (SXM, {"s0": 0, "w0": 2, "s1": 9, "out": 12}),
    Op.TRANSPOSE: (SXM + 4, {"s0": 0, "out": 0}),
    Op.PERMUTE: (SXM + 6, {"s0": 3, "out": 5}),
    Op.SHIFT: (SXM + 6, {"s0": 3, "out": 5}),
    Op.ROTATE: (SXM + 7, {"s0": 3, "imm": 3, "out": 5}),
    Op.SEND: (C2C_QUEUE, {"s0": 3}),
    Op.RECEIVE: (C2C_QUEUE, {"out": 3}),
    Op.DESKEW: (C2C_QUEUE, {}),
}
CODES = [-1, 0, 1, 4, 8, 15, 16, 17, 20, 31, 32, 33, 48, 49, 60, 63, 64, 65, 79, 80, 81, 82]
BORDERS: dict[str, list[int]] = {
    "a": [-1, 0, 1, 19, 20, 21, 319, 320, 8191, 8192],
    "s0": CODES,
    "s1": CODES,
    "out": CODES,
    "w0": [0, 1, 2, 3, 4, 5, 7, 8, 9, 16],
    "w1": [0, 1, 2, 3, 4, 5],
    "wo": [0, 1, 2, 3, 4, 5],
    "imm": [-1, 0, 1, 2, 3, 4, 5],
    "mode": [-1, 0, 3, 4],
    "lo": [-1, 0, 9, 10, 4095],
    "hi": [4, 5, 4095, 4096, 8191, 8192],
}
QUEUES = [-1, 0, 87, 88, 103, 104, 105, 106, 109, 110, 111, 112, 115, 116, 117, 118, 119]
QUEUES += [120, 123, 124, 125, 126, 127, 128, 143, 144]
#: Operands that hang together: widths and the first stream.
PAIRS = [("w0", "s0"), ("w0", "out"), ("wo", "out"), ("imm", "out")]
#: Where two readings give a different name to what both refuse: (opcode, reference, loader).
OTHERWISE = {
    (Op.ABC, "mxm", "align"),
    (Op.DISTRIBUTE, "sxm", "bounds"),
    (Op.ROTATE, "bounds", "align"),
}
FORMS = {"queue", "bounds", "align", "alu", "mxm", "sxm"}


def odd(op: Op, queue: int) -> bool:
    """An fp16 activation of an odd plane: the loader refuses it later, with the planes."""
    return op == Op.ABC and queue in (107, 111)


def rows() -> list[Row]:
    found: list[Row] = []
    for op, (queue, columns) in SOUND.items():
        sound = {"op": op, "queue": queue, **columns}
        alike = op in VXM_ARITY and op not in (Op.MOV, Op.ADD_F32)
        found.append(sound)
        for name, values in BORDERS.items():
            found += [sound | {name: value} for value in (values[:1] if alike else values)]
        if not alike:
            found += [sound | {"queue": queue} for queue in QUEUES if not odd(op, queue)]
        if op in (Op.MOV, Op.ABC, Op.DISTRIBUTE, Op.ROTATE):
            for width, stream in PAIRS:
                found += [
                    sound | {width: wide, stream: first}
                    for wide in (1, 2, 3, 4, 8)
                    for first in (0, 6, 7, 14, 16, 17, 23, 28, 30, 31, 48, 56, 60, 62, 63)
                ]
    return found


def table(found: list[Row]) -> Any:
    blocks = new_blocks(len(found))
    for i, row in enumerate(found):
        for name, value in row.items():
            blocks[name][i] = value
    blocks["cycle"] = 40 + 1000 * np.arange(len(found))
    return blocks


def by_reference(blocks: Any) -> list[str | None]:
    program = Program(blocks, [], MAPS)
    problems = [check_form(Instruction(*row.tolist()), program, SPEC) for row in blocks]
    return [None if problem is None else problem[0] for problem in problems]


def by_loader(blocks: Any) -> str | None:
    try:
        check_blocks(Program(blocks, [], MAPS), SPEC)
    except ProgramFault as fault:
        return fault.code
    return None


def by_checker(blocks: Any) -> list[set[str]]:
    found: list[set[str]] = []
    for first in range(0, len(blocks), 90):  # of one rule a call keeps no more than 100
        some = blocks[first : first + 90]
        codes: list[set[str]] = [set() for _ in some]
        for finding in check(Program(some, [], MAPS, cycles=10**7), SPEC):
            codes[finding.block].add(finding.code)
        found += codes
    return found


@pytest.fixture(scope="module")
def judged() -> tuple[list[Row], Any, list[str | None]]:
    found = rows()
    blocks = table(found)
    return found, blocks, by_reference(blocks)


def test_the_loader_refuses_what_the_reference_does(
    judged: tuple[list[Row], Any, list[str | None]],
) -> None:
    found, blocks, codes = judged
    sound = np.array([code is None for code in codes])
    assert by_loader(blocks[sound]) is None
    assert min(sound.sum(), (~sound).sum()) > 900
    for i in np.flatnonzero(~sound).tolist():
        code = by_loader(blocks[i : i + 1])
        assert code == codes[i] or (found[i]["op"], codes[i], code) in OTHERWISE, found[i]


def test_the_checker_finds_what_the_reference_refuses(
    judged: tuple[list[Row], Any, list[str | None]],
) -> None:
    """Beside it others; of a sound one that nothing came before it, and no fault of its form."""
    found, blocks, codes = judged
    for row, code, findings in zip(found, codes, by_checker(blocks), strict=True):
        if code is None:
            assert findings & FORMS <= {"mxm"}, row
        else:
            assert code in findings, row
