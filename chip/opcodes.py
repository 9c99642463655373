"""The opcodes and ACC modes of ``chip.isa`` as plain ints, constants of compiled code."""

from __future__ import annotations

from chip.isa import AccMode, Op

SYNC, NOTIFY = int(Op.SYNC), int(Op.NOTIFY)
READ, WRITE = int(Op.READ), int(Op.WRITE)
GATHER, SCATTER = int(Op.GATHER), int(Op.SCATTER)

MOV = int(Op.MOV)  # the first of the VXM
ADD_F32, SUB_F32, MUL_F32 = int(Op.ADD_F32), int(Op.SUB_F32), int(Op.MUL_F32)
MAX_F32, MIN_F32 = int(Op.MAX_F32), int(Op.MIN_F32)
ADD_I32, SUB_I32, MUL_I32 = int(Op.ADD_I32), int(Op.SUB_I32), int(Op.MUL_I32)
SHL, ASR = int(Op.SHL), int(Op.ASR)
AND, OR, XOR = int(Op.AND), int(Op.OR), int(Op.XOR)
EXP, TANH, RSQRT = int(Op.EXP), int(Op.TANH), int(Op.RSQRT)
RELU, NEG_F32 = int(Op.RELU), int(Op.NEG_F32)
CVT_F32_I32, CVT_I32_F32 = int(Op.CVT_F32_I32), int(Op.CVT_I32_F32)
CVT_F32_F16, CVT_F16_F32 = int(Op.CVT_F32_F16), int(Op.CVT_F16_F32)
CVT_I32_I8, CVT_I8_I32 = int(Op.CVT_I32_I8), int(Op.CVT_I8_I32)
MASK, MASK_BAR = int(Op.MASK), int(Op.MASK_BAR)
EQ, NE = int(Op.EQ), int(Op.NE)
GT_F32, GE_F32 = int(Op.GT_F32), int(Op.GE_F32)  # GE_F32: the last of the VXM

LW, IW, ABC, ACC = int(Op.LW), int(Op.IW), int(Op.ABC), int(Op.ACC)
DISTRIBUTE, TRANSPOSE = int(Op.DISTRIBUTE), int(Op.TRANSPOSE)
PERMUTE, SHIFT, ROTATE = int(Op.PERMUTE), int(Op.SHIFT), int(Op.ROTATE)
SEND, RECEIVE, DESKEW = int(Op.SEND), int(Op.RECEIVE), int(Op.DESKEW)

#: Modes of ACC; from ``SET_EMIT`` on the row is also driven on streams.
SET, ADD = int(AccMode.SET), int(AccMode.ADD)
SET_EMIT, ADD_EMIT = int(AccMode.SET_EMIT), int(AccMode.ADD_EMIT)
