"""The instruction set: opcodes, queues, positions, streams and operand codes.

This module is the contract between the assembler, the two executors, the checker and the
compiler.  It knows names, numbers and geometry; it executes nothing.

Streams.  Code 0..31 is eastward stream E0..E31, code 32..63 is westward stream W0..W31.  A value
on an eastward stream keeps its diagonal ``d = cycle - position``, on a westward stream
``d = cycle + position``.  A consumer at position q sees, on its diagonal, the nearest *upstream*
producer: greatest p < q eastward, smallest p > q westward (exclusive, so a unit never sees what
its own position drives in that cycle).

Positions.  0..44 are the 45 stream-register positions: west SXM 0..8, west MEM 9..19 (group 10
is at 9, group 0 at 19), VXM 20..24, east MEM 25..35, east SXM 36..44.  The MXM and C2C edges are
-1 and 45.  (45 = 5 VXM + 2 x (11 MEM + 9 SXM): assumed split, hardware facts section 9.)

Queues (a published *count* of 144; this map is assumed):
    0..43    west MEM slices      44..87   east MEM slices
    88..103  VXM ALUs (id = 4*row + column)
    104..111 MXM: plane p has 104+2p (LW, IW) and 105+2p (ABC, ACC)
    112..127 SXM: hemisphere h has 112+8h: +0..3 distributors (one per SG8), +4..5 transposers
             (one per SG16), +6 permutor/shifter, +7 rotator
    128..143 C2C links (0..7 west edge, 8..15 east edge)
Planes 0, 1 are in the west hemisphere, planes 2, 3 in the east one.
"""

from __future__ import annotations

from enum import IntEnum

LANES = 320
SUPERLANES = 20
LANES_PER_SUPERLANE = 16
SLICES_PER_HEMISPHERE = 44
SLICES = 88
BANKS = 2
MAX_WORDS_PER_BANK = 16_384  # a chip's own number is ``ChipSpec.words_per_bank``
MAX_WORDS_PER_SLICE = BANKS * MAX_WORDS_PER_BANK  # word addresses have 15 bits
STREAMS = 64
EAST_STREAMS = 32
QUEUES = 144
PLANES = 4
ACCUMULATOR_ROWS = 320
ALUS = 16
LINKS = 16

VXM_QUEUE = 88
MXM_QUEUE = 104
SXM_QUEUE = 112
C2C_QUEUE = 128

WEST_EDGE = -1
EAST_EDGE = 45

# Operand codes of a VXM instruction beyond the stream codes 0..63.
NONE = -1
ALU0 = 64  # ALU0 + k: the result of ALU k, dispatched exactly 3 cycles earlier
SELF = 80  # this ALU's own most recent result that was dispatched at least 3 cycles earlier
IMM = 81  # the instruction's 32-bit immediate

WEST, EAST = 0, 1


class Op(IntEnum):
    """Opcodes.  The group is ``op // 32``: ICU, MEM, VXM (2 groups), MXM, SXM, C2C."""

    # ICU
    SYNC = 1  # park the queue until the next NOTIFY reaches it
    NOTIFY = 2  # release every parked queue after ``notify_cycles``
    # MEM
    READ = 32  # out <- sram[a]
    WRITE = 33  # sram[a] <- s0
    GATHER = 34  # out <- sram[a + offset(superlane)], offsets from map stream pair s1 (SG2)
    SCATTER = 35  # sram[a + offset(superlane)] <- s0, offsets from map stream pair s1 (SG2)
    # VXM: z = op(x, y); x is s0, y is s1; 32-bit internal registers
    MOV = 64  # x
    ADD_F32 = 65  # x + y
    SUB_F32 = 66  # x - y
    MUL_F32 = 67  # x * y
    MAX_F32 = 68  # the greater of x and y
    MIN_F32 = 69  # the smaller of x and y
    ADD_I32 = 70  # x + y, modulo 2^32
    SUB_I32 = 71  # x - y, modulo 2^32
    MUL_I32 = 72  # x * y, modulo 2^32
    SHL = 73  # x << (y & 31)
    ASR = 74  # x >> (y & 31), arithmetic
    AND = 75  # bitwise, of x and y
    OR = 76  # bitwise, of x and y
    XOR = 77  # bitwise, of x and y
    EXP = 78  # correctly rounded fp32
    TANH = 79  # correctly rounded fp32
    RSQRT = 80  # 1 / sqrt(x), correctly rounded fp32
    RELU = 81  # fp32 max(x, +0), NaN stays NaN
    NEG_F32 = 82  # -x
    CVT_F32_I32 = 83  # fp32 -> int32, to nearest even, saturating, NaN -> 0
    CVT_I32_F32 = 84  # int32 -> fp32, to nearest even
    CVT_F32_F16 = 85  # fp32 -> fp16 bits (low half), nearest even, saturating at +-65504
    CVT_F16_F32 = 86  # fp16 bits (low half) -> fp32, exactly
    CVT_I32_I8 = 87  # int32 -> int8 (low byte), saturating
    CVT_I8_I32 = 88  # sign-extend the low byte
    MASK = 89  # low 8 bits of y nonzero ? x : 0
    MASK_BAR = 90  # low 8 bits of y nonzero ? 0 : x
    EQ = 91  # integer compare of the 32 bits: 1 or 0
    NE = 92  # 0 or 1, the opposite of EQ
    GT_F32 = 93  # x > y: 1 or 0
    GE_F32 = 94  # x >= y: 1 or 0
    # MXM
    LW = 128  # column group ``a`` of the plane's weight buffer <- the 16 streams from s0
    IW = 129  # install the first ``a`` column groups of the buffer, zero the other columns
    ABC = 130  # activation s0 (w0 = 1: int8 on one plane; w0 = 2: fp16 SG2 on a plane pair)
    ACC = 131  # accumulate the product of the ABC dispatched d_multiply earlier into row ``a``
    # SXM
    DISTRIBUTE = 160  # w0 streams from s0, remapped inside each superlane by map stream s1
    TRANSPOSE = 161  # 16 streams from s0 -> 16 streams from out: lanes <-> streams per superlane
    PERMUTE = 162  # one stream, lane map ``imm`` of the program's map table
    SHIFT = 163  # one stream, lanes moved by ``imm`` (positive: towards lane 319), zero filled
    ROTATE = 164  # one stream -> n*n streams (n = imm, 3 or 4): all rotations of n x n lanes
    # C2C
    SEND = 192  # s0 at the edge -> link
    RECEIVE = 193  # link -> out
    DESKEW = 194  # hold issue until the next HAC overflow (no effect inside one clock domain)


class AccMode(IntEnum):
    """Modes of ACC (``mode`` column)."""

    SET = 0
    ADD = 1
    SET_EMIT = 2
    ADD_EMIT = 3


#: Number of operands of each VXM opcode.
_UNARY = (
    Op.MOV,
    Op.EXP,
    Op.TANH,
    Op.RSQRT,
    Op.RELU,
    Op.NEG_F32,
    Op.CVT_F32_I32,
    Op.CVT_I32_F32,
    Op.CVT_F32_F16,
    Op.CVT_F16_F32,
    Op.CVT_I32_I8,
    Op.CVT_I8_I32,
)
VXM_ARITY: dict[Op, int] = {op: 1 if op in _UNARY else 2 for op in Op if Op.MOV <= op <= Op.GE_F32}


def is_east(stream: int) -> bool:
    """True when the stream code flows eastward."""
    return stream < EAST_STREAMS


def slice_position(queue: int) -> int:
    """Stream-register position of a MEM slice given its queue 0..87."""
    if queue < SLICES_PER_HEMISPHERE:
        return 19 - queue // 4
    return 25 + (queue - SLICES_PER_HEMISPHERE) // 4


def sample_position(queue: int, stream: int) -> int:
    """Position at which the unit of ``queue`` samples ``stream``."""
    if queue < VXM_QUEUE:
        return slice_position(queue)
    if queue < MXM_QUEUE:
        return 20 if is_east(stream) else 24
    if queue < SXM_QUEUE:
        return WEST_EDGE if queue < MXM_QUEUE + 4 else EAST_EDGE
    if queue < C2C_QUEUE:
        if queue < SXM_QUEUE + 8:  # west: outward is westward
            return 4 if is_east(stream) else 5
        return 39 if is_east(stream) else 40
    return WEST_EDGE if queue < C2C_QUEUE + 8 else EAST_EDGE


def drive_position(queue: int, stream: int) -> int:
    """Position that the unit of ``queue`` drives when it puts a value on ``stream``."""
    if queue < VXM_QUEUE:
        return slice_position(queue)
    if queue < MXM_QUEUE:
        return 24 if is_east(stream) else 20
    if queue < SXM_QUEUE:
        return WEST_EDGE if queue < MXM_QUEUE + 4 else EAST_EDGE
    if queue < C2C_QUEUE:
        if queue < SXM_QUEUE + 8:
            return 8 if is_east(stream) else 4
        return 40 if is_east(stream) else 36
    return WEST_EDGE if queue < C2C_QUEUE + 8 else EAST_EDGE


def diagonal(stream: int, position: int, cycle: int) -> int:
    """Diagonal of ``stream`` that passes ``position`` at ``cycle``."""
    return cycle - position if is_east(stream) else cycle + position


def queue_name(queue: int) -> str:
    """Readable name of a queue, for instance ``mem_w[12]``, ``alu[5]``, ``mxm[2].weights``."""
    if queue < SLICES_PER_HEMISPHERE:
        return f"mem_w[{queue}]"
    if queue < VXM_QUEUE:
        return f"mem_e[{queue - SLICES_PER_HEMISPHERE}]"
    if queue < MXM_QUEUE:
        return f"alu[{queue - VXM_QUEUE}]"
    if queue < SXM_QUEUE:
        plane, kind = divmod(queue - MXM_QUEUE, 2)
        return f"mxm[{plane}].{'activations' if kind else 'weights'}"
    if queue < C2C_QUEUE:
        hemisphere, unit = divmod(queue - SXM_QUEUE, 8)
        unit_name = (
            "distributor[0]",
            "distributor[1]",
            "distributor[2]",
            "distributor[3]",
            "transposer[0]",
            "transposer[1]",
            "permutor",
            "rotator",
        )[unit]
        return f"sxm_{'we'[hemisphere]}.{unit_name}"
    return f"c2c[{queue - C2C_QUEUE}]"


def safe_queue_name(queue: int) -> str:
    """``queue_name`` that survives numbers outside the map."""
    return queue_name(queue) if 0 <= queue < QUEUES else f"queue {queue}"


def stream_name(code: int) -> str:
    """Readable name of an operand code: ``E5``, ``W17``, ``alu3``, ``self``, ``imm``, ``-``."""
    if code == NONE:
        return "-"
    if code < EAST_STREAMS:
        return f"E{code}"
    if code < STREAMS:
        return f"W{code - EAST_STREAMS}"
    if code < SELF:
        return f"alu{code - ALU0}"
    return "self" if code == SELF else "imm"


def alu_stream_groups(alu: int) -> tuple[int, int, int, int]:
    """SG4 numbers an ALU may read and write: row r reaches SG4[2r .. 2r+3 mod 8] (MORSE)."""
    row = alu // 4
    return ((2 * row) % 8, (2 * row + 1) % 8, (2 * row + 2) % 8, (2 * row + 3) % 8)
