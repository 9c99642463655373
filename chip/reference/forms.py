"""What an instruction must look like, whatever else runs: the timeless rules.

Each check returns (code, message) of the first rule broken, or None.  The rules that depend on
time or data live in :mod:`chip.reference`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from chip.isa import (
    ALU0,
    C2C_QUEUE,
    IMM,
    LANES,
    MXM_QUEUE,
    QUEUES,
    SLICES,
    STREAMS,
    SXM_QUEUE,
    VXM_ARITY,
    VXM_QUEUE,
    AccMode,
    Op,
    alu_stream_groups,
    is_east,
)
from chip.program import Program
from chip.spec import ChipSpec

Problem = tuple[str, str]

MEM_OPS = (Op.READ, Op.WRITE, Op.GATHER, Op.SCATTER)
_OPCODES = {int(op) for op in Op}


class Instruction(NamedTuple):
    """One row of the expansion; the fields of ``BLOCK_DTYPE`` in order."""

    cycle: int
    queue: int
    op: int
    n1: int
    dc1: int
    da1: int
    n2: int
    dc2: int
    da2: int
    gang: int
    dcg: int
    dsg: int
    a: int
    s0: int
    s1: int
    out: int
    w0: int
    w1: int
    wo: int
    mode: int
    imm: int
    lo: int
    hi: int
    tag: int
    want0: int
    want1: int


class BrokenRule(Exception):  # noqa: N818 - the rule, not the error
    """A unit refuses an instruction; the chip turns it into a ProgramFault."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


def check_block(block: Any, program: Program) -> Problem | None:
    """Rules on the block notation itself; ``block`` is a row of ``Program.blocks``."""
    if block["n1"] < 1 or block["n2"] < 1:
        return "bounds", f"repeat counts {block['n1']}, {block['n2']} must be at least 1"
    if block["gang"] >= 0:
        if block["op"] not in MEM_OPS:
            return "bounds", "only MEM ops may be ganged"
        if block["gang"] >= len(program.gangs):
            return "bounds", f"the program has no gang {block['gang']}"
    return None


def check_form(ins: Instruction, program: Program, spec: ChipSpec) -> Problem | None:
    """Codes queue, bounds, align, alu, mxm (form only), sxm of one instruction."""
    if ins.op not in _OPCODES or not 0 <= ins.queue < QUEUES or not _is_unit(ins.queue, ins.op):
        return "queue", f"queue {ins.queue} does not take opcode {ins.op}"
    op = Op(ins.op)
    if op in MEM_OPS:
        return _check_mem(ins, op, spec)
    if op in VXM_ARITY:
        return _check_alu(ins, op)
    if op in (Op.LW, Op.IW, Op.ABC, Op.ACC):
        return _check_mxm(ins, op, spec)
    if op in (Op.SEND, Op.RECEIVE):
        return _group(ins.s0 if op == Op.SEND else ins.out, 1)
    if SXM_QUEUE <= ins.queue < C2C_QUEUE and op not in (Op.SYNC, Op.NOTIFY):
        return _check_sxm(ins, op, program)
    return None


def _is_unit(queue: int, op: int) -> bool:
    """Whether the unit of ``queue`` executes ``op``."""
    if op in (Op.SYNC, Op.NOTIFY):
        return True
    if queue < SLICES:
        return op in MEM_OPS
    if queue < MXM_QUEUE:
        return op in VXM_ARITY
    if queue < SXM_QUEUE:
        return op in ((Op.ABC, Op.ACC) if (queue - MXM_QUEUE) % 2 else (Op.LW, Op.IW))
    if queue < C2C_QUEUE:
        unit = (queue - SXM_QUEUE) % 8
        if unit < 4:
            return op == Op.DISTRIBUTE
        if unit < 6:
            return op == Op.TRANSPOSE
        return op in ((Op.PERMUTE, Op.SHIFT) if unit == 6 else (Op.ROTATE,))
    return op in (Op.SEND, Op.RECEIVE, Op.DESKEW)


def _group(first: int, width: int, align: int = 1) -> Problem | None:
    """``width`` streams from ``first`` exist, flow one way and are aligned."""
    last = first + width - 1
    if not 0 <= first <= last < STREAMS:
        return "bounds", f"streams {first}..{last} do not exist"
    if is_east(first) != is_east(last):
        return "bounds", f"streams {first}..{last} cross the border of the directions"
    if first % align:
        return "align", f"stream {first} is not aligned to {align}"
    return None


def _check_mem(ins: Instruction, op: Op, spec: ChipSpec) -> Problem | None:
    words = spec.words_per_slice
    if not 0 <= ins.a < words:
        return "bounds", f"word {ins.a} does not exist; a slice has words 0..{words - 1}"
    if op in (Op.GATHER, Op.SCATTER):
        if not 0 <= ins.lo <= ins.hi < words:
            return "bounds", f"the window [{ins.lo}, {ins.hi}] is not in 0..{words - 1}"
        if ins.lo // spec.words_per_bank != ins.hi // spec.words_per_bank:
            return "bounds", f"the window [{ins.lo}, {ins.hi}] spans both banks"
        if problem := _group(ins.s1, 2, 2):
            return problem
    return _group(ins.out if op in (Op.READ, Op.GATHER) else ins.s0, 1)


def _check_alu(ins: Instruction, op: Op) -> Problem | None:
    operands = [(ins.s0, ins.w0), (ins.s1, ins.w1)][: VXM_ARITY[op]]
    entering = [(code, width) for code, width in operands if 0 <= code < STREAMS]
    leaving = [(ins.out, ins.wo)] if ins.wo else []
    for code, _ in operands:
        if not (0 <= code < STREAMS or ALU0 <= code <= IMM):
            return "bounds", f"operand code {code} names nothing"
    for code, width in entering + leaving:
        if width not in (1, 2, 4):
            return "align", f"an ALU value has 1, 2 or 4 bytes, not {width}"
        if problem := _group(code, width, width):
            return problem
    alu = ins.queue - VXM_QUEUE
    for code, _ in entering + leaving:
        if code % 32 // 4 not in alu_stream_groups(alu):
            return "alu", f"ALU {alu} does not reach the SG4 of stream {code}"
    if len(entering) == 2:
        (first, _), (second, _) = entering
        if first % 32 // 4 == second % 32 // 4 and is_east(first) != is_east(second):
            return "alu", f"SG4 {first % 32 // 4} enters from both directions"
    return None


def _check_mxm(ins: Instruction, op: Op, spec: ChipSpec) -> Problem | None:
    if op == Op.LW:
        if not 0 <= ins.a < 20:
            return "bounds", f"column group {ins.a} does not exist"
        return _group(ins.s0, 16, 16)
    if op == Op.IW:
        return None if 1 <= ins.a <= 20 else ("bounds", f"{ins.a} column groups to install")
    if op == Op.ABC:
        if ins.w0 not in (1, 2):
            return "mxm", f"an activation has 1 or 2 bytes, not {ins.w0}"
        if ins.w0 == 2 and (ins.queue - MXM_QUEUE) // 2 % 2:
            return "mxm", "an fp16 activation goes to the even plane of a pair"
        return _group(ins.s0, ins.w0, ins.w0)
    if not 0 <= ins.a < spec.mxm_accumulator_rows:
        return "bounds", f"accumulator row {ins.a} does not exist"
    if not 0 <= ins.mode <= AccMode.ADD_EMIT:
        return "bounds", f"accumulate mode {ins.mode} does not exist"
    if ins.mode in (AccMode.SET_EMIT, AccMode.ADD_EMIT):
        return _group(ins.out, 4, 4)
    return None


def _check_sxm(ins: Instruction, op: Op, program: Program) -> Problem | None:
    unit = (ins.queue - SXM_QUEUE) % 8
    if op == Op.TRANSPOSE:
        if problem := _group(ins.s0, 16, 16) or _group(ins.out, 16, 16):
            return problem
        if unit != 4 + ins.s0 % 32 // 16:
            return "sxm", f"transposer {unit - 4} does not serve stream {ins.s0}"
        return None
    if op == Op.DISTRIBUTE:
        if ins.w0 not in (1, 2, 4, 8):
            return "sxm", f"a distributor takes 1, 2, 4 or 8 streams, not {ins.w0}"
        for first in (ins.s0, ins.out):
            if problem := _group(first, 1):
                return problem
            if first // 8 != (first + ins.w0 - 1) // 8:
                return "sxm", f"{ins.w0} streams from {first} cross their SG8"
        if unit != ins.s0 % 32 // 8:
            return "sxm", f"distributor {unit} does not serve stream {ins.s0}"
        return _group(ins.s1, 1)
    if problem := _group(ins.s0, 1) or _group(ins.out, 1):
        return problem
    if op == Op.ROTATE:
        if ins.imm not in (3, 4):
            return "sxm", f"a rotation is 3 x 3 or 4 x 4, not {ins.imm}"
        if ins.out % 32 + ins.imm**2 > 32:
            return "align", f"{ins.imm**2} streams from {ins.out} cross the border"
    if op == Op.PERMUTE:
        if not 0 <= ins.imm < len(program.maps):
            return "sxm", f"the program has no map {ins.imm}"
        if sorted(np.asarray(program.maps[ins.imm]).tolist()) != list(range(LANES)):
            return "sxm", f"map {ins.imm} is no permutation of {LANES} lanes"
    return None
