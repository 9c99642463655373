"""What the compiled loop is told of each executed element: places in its int32 arguments.

An argument is a row number (an SRAM word or scratch), the number of a 32-bit scratch row, or a
number the loop needs at run time; -1 where there is none.  A piece of the table says where the
arguments of its first element begin (``PIECE_FIRST``) and how many each has (``PIECE_STRIDE``).
"""

from __future__ import annotations

from chip.jit import jit_inline
from chip.opcodes import (
    ACC,
    DISTRIBUTE,
    GATHER,
    GE_F32,
    MOV,
    NOTIFY,
    PERMUTE,
    READ,
    RECEIVE,
    SCATTER,
    SEND,
    SHIFT,
    TRANSPOSE,
    WRITE,
)

#: Columns of ``LinkedProgram.table``.
PIECE_OP, PIECE_QUEUE, PIECE_ELEMENTS, PIECE_FIRST, PIECE_STRIDE, PIECE_IMM, PIECE_BLOCK = range(7)
#: The chip's counter of what the piece's conversions saturate; -1: it converts nothing.
PIECE_COUNTER = 7
PIECE_COLUMNS = 8

# VXM: two operands of four byte rows each, or of a 32-bit row with IS_WORD behind it at MARK; then
# the 32-bit row and the byte rows of the result.
VXM_X, VXM_Y, VXM_WORD, VXM_BYTES, VXM_COUNT = 0, 4, 8, 9, 13
OPERAND_BYTES = 4
MARK, IS_WORD = 1, -2

# READ copies a word that is overwritten before its last use.
READ_WORD, READ_COPY, _READ_COUNT = range(3)
WRITE_SOURCE, WRITE_WORD, WRITE_CYCLE, WRITE_SLICE, _WRITE_COUNT = range(5)

# GATHER and SCATTER share the five behind their rows.
GATHER_LOW, GATHER_HIGH, GATHER_OUT = range(3)
SCATTER_SOURCE, SCATTER_LOW, SCATTER_HIGH = range(3)
WINDOW_SLICE, WINDOW_BASE, WINDOW_FIRST, WINDOW_LAST, WINDOW_CYCLE, WINDOW_COUNT = range(3, 9)

# ACC: of the product (number type, installed column groups, first weight rows of both planes,
# activation's byte rows), then as of a VXM result, then its plane.
ACC_MODE, ACC_ROW, ACC_TYPE, ACC_GROUPS, ACC_WEIGHTS, ACC_WEIGHTS_HIGH = range(6)
ACC_ACTIVATION, ACC_ACTIVATION_HIGH, ACC_WORD, ACC_BYTES, ACC_PLANE, ACC_COUNT = 6, 7, 8, 9, 13, 14
#: Number types of products.
INT8, FP16 = 1, 2

# SXM.  TRANSPOSE has its sources first, PERMUTE, SHIFT and ROTATE their source.
DISTRIBUTE_WIDTH, DISTRIBUTE_SOURCES, DISTRIBUTE_LANES, DISTRIBUTE_OUTS = 0, 1, 9, 10
TRANSPOSE_SOURCES, TRANSPOSE_OUTS = 0, 16
MOVE_SOURCE, MOVE_OUTS = 0, 1
_DISTRIBUTE_COUNT, _TRANSPOSE_COUNT, _MOVE_COUNT, _ROTATE_COUNT = 18, 32, 2, 17

# C2C.  Where a WRITE takes a vector straight from the link, RECEIVE_ROW is the word it writes and
# the WRITE's cycle and slice come behind; else they are -1.
SEND_ROW, SEND_CYCLE, _SEND_COUNT = range(3)
RECEIVE_ROW, RECEIVE_CYCLE, RECEIVE_WRITE_CYCLE, RECEIVE_WRITE_SLICE, _RECEIVE_COUNT = range(5)


@jit_inline
def is_vxm(op: int) -> bool:
    """An opcode of the VXM; all others lie outside MOV .. GE_F32."""
    return op >= MOV and op <= GE_F32


@jit_inline
def is_icu(op: int) -> bool:
    """SYNC or NOTIFY, which any queue takes."""
    return op <= NOTIFY


@jit_inline
def argument_count(op: int) -> int:
    """int32 arguments of one executed element."""
    if is_vxm(op):
        return VXM_COUNT
    if op == READ:
        return _READ_COUNT
    if op == WRITE:
        return _WRITE_COUNT
    if op == SEND:
        return _SEND_COUNT
    if op == RECEIVE:
        return _RECEIVE_COUNT
    if op in (GATHER, SCATTER):
        return WINDOW_COUNT
    if op == ACC:
        return ACC_COUNT
    if op == DISTRIBUTE:
        return _DISTRIBUTE_COUNT
    if op == TRANSPOSE:
        return _TRANSPOSE_COUNT
    return _MOVE_COUNT if op in (PERMUTE, SHIFT) else _ROTATE_COUNT
