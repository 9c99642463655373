"""The form of every instruction as tables: its unit, and how wide its operands are.

Data alone, by opcode and by queue.  The checker and linking each prove a program against it in
code of their own, so that a mistake in one is seen by the other; the reference has a table of its
own, and is the oracle of this one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip.isa import ALUS, LINKS, PLANES, SLICES, STREAMS, VXM_ARITY, Op, alu_stream_groups

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Opcodes lie below this.
OPCODES = 256

#: Unit of each queue: 0 MEM, 1 VXM, 2 MXM weights, 3 MXM activations, 4 distributor,
#: 5 transposer, 6 permutor, 7 rotator, 8 link.
_SXM_UNITS = [4, 4, 4, 4, 5, 5, 6, 7]
UNIT_OF_QUEUE = np.array(
    [0] * SLICES + [1] * ALUS + [2, 3] * PLANES + _SXM_UNITS * 2 + [8] * LINKS, np.int64
)
_OPS_OF_UNIT: tuple[tuple[Op, ...], ...] = (
    (Op.READ, Op.WRITE, Op.GATHER, Op.SCATTER),
    tuple(VXM_ARITY),
    (Op.LW, Op.IW),
    (Op.ABC, Op.ACC),
    (Op.DISTRIBUTE,),
    (Op.TRANSPOSE,),
    (Op.PERMUTE, Op.SHIFT),
    (Op.ROTATE,),
    (Op.SEND, Op.RECEIVE, Op.DESKEW),
)
#: Unit of an opcode that every queue takes, and of one that does not exist.
ANY_UNIT, NO_UNIT = 99, -1

#: Streams that the instruction itself says: w0, w1 or wo (of the VXM where the operand is a stream
#: at all); n * n for ROTATE's n; ``EMITTED`` of an ACC whose mode emits.
BY_W0, BY_W1, BY_WO, BY_ROTATE, BY_MODE = -1, -2, -3, -4, -5
EMITTED = 4


def _by_op(values: dict[int, tuple[Op, ...]], otherwise: int = 0) -> Ints:
    table = np.full(OPCODES, otherwise, np.int64)
    for value, ops in values.items():
        table[list(ops)] = value
    return table


_VXM = tuple(VXM_ARITY)
_BINARY = tuple(op for op, operands in VXM_ARITY.items() if operands == 2)

#: Unit of each opcode.
UNIT_OF_OP = _by_op(
    {**dict(enumerate(_OPS_OF_UNIT)), ANY_UNIT: (Op.SYNC, Op.NOTIFY)}, otherwise=NO_UNIT
)
#: Operands of a VXM opcode, 0 of every other.
ARITY = _by_op({1: tuple(op for op in _VXM if op not in _BINARY), 2: _BINARY})

#: Streams that an opcode takes from s0 and s1, and drives from out.
S0_STREAMS = _by_op(
    {
        1: (Op.WRITE, Op.SCATTER, Op.PERMUTE, Op.SHIFT, Op.ROTATE, Op.SEND),
        16: (Op.LW, Op.TRANSPOSE),
        BY_W0: (*_VXM, Op.ABC, Op.DISTRIBUTE),
    }
)
S1_STREAMS = _by_op({1: (Op.DISTRIBUTE,), 2: (Op.GATHER, Op.SCATTER), BY_W1: _BINARY})
OUT_STREAMS = _by_op(
    {
        1: (Op.READ, Op.GATHER, Op.PERMUTE, Op.SHIFT, Op.RECEIVE),
        16: (Op.TRANSPOSE,),
        BY_WO: _VXM,
        BY_W0: (Op.DISTRIBUTE,),
        BY_ROTATE: (Op.ROTATE,),
        BY_MODE: (Op.ACC,),
    }
)

#: Opcodes of which those streams begin at a multiple of their number, bool [OPCODES].
S0_ALIGNED = _by_op({1: (*_VXM, Op.ABC, Op.LW, Op.TRANSPOSE)}) == 1
S1_ALIGNED = _by_op({1: (*_BINARY, Op.GATHER, Op.SCATTER)}) == 1
OUT_ALIGNED = _by_op({1: (*_VXM, Op.ACC, Op.TRANSPOSE)}) == 1

#: Widths allowed where the instruction says them.
VXM_WIDTHS, ABC_WIDTHS, DISTRIBUTE_WIDTHS = (1, 2, 4), (1, 2), (1, 2, 4, 8)
ROTATE_SIZES = (3, 4)

#: Column groups of LW and IW (``a``): the least and the most.
GROUPS_RANGES = {Op.LW: (0, 19), Op.IW: (1, 20)}

#: Stream groups of four that each ALU reaches, bool [ALUS, STREAMS // 8].
ALU_REACH: Bools = np.array(
    [[g in alu_stream_groups(alu) for g in range(STREAMS // 8)] for alu in range(ALUS)], np.bool_
)
