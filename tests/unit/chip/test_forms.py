"""The shared table of operand forms against the reference, which has its own."""

from __future__ import annotations

import numpy as np
import pytest

from chip.isa import ALU0, LANES, MXM_QUEUE, QUEUES, SXM_QUEUE, VXM_ARITY, VXM_QUEUE, Op
from chip.program import (
    ANY_UNIT,
    NO_UNIT,
    OPCODES,
    OUT_ALIGNED,
    S0_ALIGNED,
    S0_STREAMS,
    UNIT_OF_OP,
    UNIT_OF_QUEUE,
    Program,
    new_blocks,
)
from chip.reference.forms import Instruction, check_form
from chip.spec import ChipSpec

SPEC = ChipSpec()
MAPS = [np.arange(LANES, dtype=np.int16)]
#: A queue of each unit that serves streams 0..15, and the columns that make its opcode legal.
LEGAL = {
    Op.LW: (MXM_QUEUE, {"s0": 0}),
    Op.TRANSPOSE: (SXM_QUEUE + 4, {"s0": 0, "out": 0}),
    Op.PERMUTE: (SXM_QUEUE + 6, {"s0": 3, "out": 5}),
    Op.SHIFT: (SXM_QUEUE + 6, {"s0": 3, "out": 5}),
    Op.ABC: (MXM_QUEUE + 1, {"s0": 4, "w0": 2}),
    Op.MOV: (VXM_QUEUE, {"s0": 4, "w0": 4, "out": 8, "wo": 4}),
}


def broken(op: int, queue: int, **columns: int) -> str | None:
    """The code of the rule that one instruction breaks, by the reference."""
    row = new_blocks(1)
    row["op"], row["queue"] = op, queue
    for name, value in columns.items():
        row[name] = value
    problem = check_form(Instruction(*row[0].tolist()), Program(row, [], MAPS), SPEC)
    return None if problem is None else problem[0]


def test_units() -> None:
    known = {int(op) for op in Op}
    for op in range(OPCODES):
        assert (UNIT_OF_OP[op] == NO_UNIT) == (op not in known), op
        for queue in range(QUEUES):
            fits = UNIT_OF_OP[op] in (ANY_UNIT, UNIT_OF_QUEUE[queue])
            assert fits == (broken(op, queue) != "queue"), (op, queue)


@pytest.mark.parametrize("op", LEGAL)
def test_alignment(op: Op) -> None:
    """Every first stream that the reference takes, and no other, is a multiple of the width."""
    queue, columns = LEGAL[op]
    assert broken(op, queue, **columns) is None
    for name, table in (("s0", S0_ALIGNED), ("out", OUT_ALIGNED)):
        if name in columns:
            codes = [broken(op, queue, **{**columns, name: columns[name] + by}) for by in (1, 2)]
            assert bool(table[op]) == ("align" in codes), (op, name)


def test_binary_operations_take_two_operands() -> None:
    for op, arity in VXM_ARITY.items():
        bad = broken(op, VXM_QUEUE, s0=ALU0, s1=-1)
        assert (bad == "bounds") == (arity == 2), op
        assert S0_STREAMS[op] < 0
