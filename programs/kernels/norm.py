"""Norms and quantisation: a sum over all lanes by a ones-plane, then digits or fp16 activations.

The square sum needs no lane crossing but one matrix of ones: the fp32 sums of a lane are split
into fp16 pieces at different powers of two, each piece meets the ones on the east plane pair, and
every lane receives the totals.  Residuals of published models reach 1e5 in a few channels and 1e-3
in others; five pieces of 12 bits hold sums from 2^-23 to 2^46 to 2^-20 and better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chip import isa
from chip.isa import AccMode, Op
from chip.scheduling import Alu, Pass, Place, Repeat, Schedule, Self, Stream, offsets
from chip.spec import ChipSpec
from programs.kernels.gemv import PART_BITS, Activations

#: Streams: of an east factor, inward; of the east's digits, outward.
_FACTOR, _EAST_DIGITS = 36, 8
_PAIR = 2  # the east plane pair holds the ones
#: Pieces of a sum, the power of two that the first is taken at, and the bits between two.
PIECES, FIRST_BITS, PIECE_BITS = 5, 30, 12
#: What ``lane_sums`` counts in: its callers' next factor has it, which saves an instruction.
SUM_UNIT = 2.0 ** (FIRST_BITS - PIECE_BITS * (PIECES - 1))
#: Cycles from one piece to the next: fp16, back, the rest, the next power of two.
_PIECE_CYCLES = 12
#: Tiles of a pass that cuts them in two: it reads them again so many cycles later.
_TILES_IN_TWO = 12
#: Cycles from a normed word's factor to its digits: two products, an integer, halves, their types.
_TO_DIGITS = 15
#: Cycles a sum keeps its pieces' ALUs and the plane pair.
SUM_CYCLES = _PIECE_CYCLES * PIECES


@dataclass(frozen=True)
class Constants:
    """Words every kernel shares: zero and 0x3C bytes on the weight slices of the east planes."""

    zero: Place
    one_high: Place


def square_sum(
    p: Pass, spec: ChipSpec, x: Place, tiles: int, code: int, constants: Constants
) -> tuple[Alu, int, Stream]:
    """Sum of squares of ``tiles`` fp32 words over all lanes, in SUM_UNITs on every lane of one ALU.

    Returns that ALU, the cycle at which a chained ALU takes its result, and x as it is read.
    ``code``: inward stream group (SG4 0 or 1 of its direction) that x travels on.
    """
    start = 40
    product, total = p.pick(code), p.pick()
    value = p.load(x, code, start, n=tiles, dc=3, da=1)
    p.op(Op.MUL_F32, start, value, value, alu=product, n=tiles, dc=3)
    p.op(Op.MOV, start + 3, Alu(product), alu=total)
    if tiles > 1:
        p.op(Op.ADD_F32, start + 6, Alu(product), Self(), alu=total, n=tiles - 1, dc=3)
    t = start + 3 + 3 * tiles
    result, at = lane_sums(p, spec, total, t, lambda meet: install_ones(p, spec, constants, meet))
    p.hold_alu(total, start + 4, t - 1)
    return result, at, value


def lane_sums(
    p: Pass,
    spec: ChipSpec,
    total: int,
    t: int,
    install: Callable[[int], None],
    n: int = 1,
    dc: int = 1,
) -> tuple[Alu, int]:
    """Sums over lanes of ``n`` fp32 results of ALU ``total``, in SUM_UNITs, in one ALU.

    The results are ``dc`` >= SUM_CYCLES apart, the first is chained at ``t``.  ``install`` puts
    fp16 ones, in force at the cycle it is given, on the east plane pair: a lane gets the sum over
    the lanes with a one in its column.  Returns as ``square_sum``.
    """
    rest, narrow, widen = p.pick(), p.pick(0), p.pick()
    up = float(2.0**PIECE_BITS)
    tag = p.schedule.tag()
    p.op(Op.MUL_F32, t, Alu(total), imm=float(2.0**-FIRST_BITS), alu=rest, n=n, dc=dc)
    first = t + 3
    for k in range(PIECES):
        at = first + _PIECE_CYCLES * k
        p.op(Op.CVT_F32_F16, at, Alu(rest), alu=narrow, out=0, width=2, tag=tag, n=n, dc=dc)
        if k < PIECES - 1:
            p.op(Op.CVT_F16_F32, at + 3, Alu(narrow), alu=widen, n=n, dc=dc)
            p.op(Op.SUB_F32, at + 6, Self(), Alu(widen), alu=rest, n=n, dc=dc)
            p.op(Op.MUL_F32, at + 9, Self(), imm=up, alu=rest, n=n, dc=dc)
    span = (n - 1) * dc + _PIECE_CYCLES * (PIECES - 1)
    p.hold_alu(rest, t + 1, first + span)
    # Through the ones.
    each: Repeat = PIECES if n == 1 else (PIECES, n)
    apart: Repeat = _PIECE_CYCLES if n == 1 else (_PIECE_CYCLES, dc)
    meet = p.driven(first) + isa.EAST_EDGE - isa.drive_position(isa.VXM_QUEUE, 0)
    install(meet)
    queue = isa.MXM_QUEUE + 2 * _PAIR + 1
    last = meet + span + 1
    for half in range(2):
        p.hold_plane(_PAIR + half, meet, last)
    p.emit(Op.ABC, queue, meet, n=each, dc=apart, s0=0, w0=2, want0=tag)
    p.hold(queue + 2, meet, last)
    out_tag = p.schedule.tag()
    p.emit(
        Op.ACC,
        queue,
        meet + spec.mxm_multiply_cycles,
        n=each,
        dc=apart,
        mode=int(AccMode.SET_EMIT),
        out=32,
        wo=4,
        tag=out_tag,
    )
    leave = meet + spec.mxm_multiply_cycles + spec.mxm_accumulate_cycles
    p.drive(32, 4, leave + isa.EAST_EDGE + offsets(each, apart), isa.EAST_EDGE, 24)
    at = leave + 21
    piece = Stream(32, 4, out_tag)
    join = p.pick(32)
    p.op(Op.MUL_F32, at, piece, imm=up, alu=join, n=n, dc=dc)
    for k in range(1, PIECES):
        at += _PIECE_CYCLES
        p.op(Op.ADD_F32, at, piece, Self(), alu=join, n=n, dc=dc)
        if k < PIECES - 1:
            p.op(Op.MUL_F32, at + 3, Self(), imm=up, alu=join, n=n, dc=dc)
    p.hold_alu(join, at - _PIECE_CYCLES * (PIECES - 1) + 1, at + (n - 1) * dc - 1)
    return Alu(join), at + 3


def install_ones(
    p: Pass, spec: ChipSpec, constants: Constants, meet: int, own: Place | None = None
) -> None:
    """320 columns of fp16 ones on the east pair, in force at ``meet``, kept for the pieces.

    own: twenty words of other high bytes, ones on some of their lanes.
    """
    end = meet - spec.mxm_install_cycles
    for half, place in enumerate((constants.zero, own or constants.one_high)):
        plane = _PAIR + half
        queue = isa.MXM_QUEUE + 2 * plane
        ones = p.load(place, 16 * half, end - 20, queue, n=20, da=int(place is own))
        p.emit(Op.LW, queue, end - 20, n=20, da=1, a=0, s0=16 * half, w0=16, want0=ones.tag)
        p.emit(Op.IW, queue, end, a=20)
        p.hold_buffer(plane, end - 20, end + spec.mxm_reload_gap_cycles - 1)
        p.hold_plane(plane, end, meet)


def norm_factor(
    schedule: Schedule,
    spec: ChipSpec,
    x: Place,
    tiles: int,
    ready: int,
    constants: Constants,
    inv_h: float,
    eps: float,
    gain: float | None,
    target: Place,
) -> int:
    """rsqrt(mean square + eps), times ``gain`` if given, on every lane of an fp32 word."""
    p = Pass(schedule, spec)
    total, t, value = square_sum(p, spec, x, tiles, 32, constants)
    _factor_of(p, total, t, inv_h, eps, gain, target)
    return schedule.place(p, ready - p.first_read(value), "norm factor") + p.ready


def factor_of_sum(
    schedule: Schedule,
    spec: ChipSpec,
    sums: Place,
    ready: int,
    constants: Constants,
    inv_n: float,
    eps: float,
    target: Place,
) -> int:
    """As ``norm_factor``, of an east fp32 word whose lanes hold sums of squares already."""
    p = Pass(schedule, spec)
    t = 40
    total = p.pick(32)
    value = p.load(sums, 32, t)
    p.op(Op.MOV, t, value, alu=total)
    a, at = lane_sums(p, spec, total, t + 3, lambda meet: install_ones(p, spec, constants, meet))
    _factor_of(p, a, at, inv_n, eps, None, target)
    return schedule.place(p, ready - p.first_read(value), "factor of sum") + p.ready


def _factor_of(
    p: Pass, total: Alu, t: int, inv_n: float, eps: float, gain: float | None, target: Place
) -> None:
    """rsqrt(total inv_n + eps), times ``gain`` if given, to a word in the west or the east."""
    out = 32 if target.inward == 0 else 8
    a, _ = p.op(Op.MUL_F32, t, total, imm=inv_n * SUM_UNIT)
    a, _ = p.op(Op.ADD_F32, t + 3, a, imm=eps)
    if gain is None:
        _, driven = p.op(Op.RSQRT, t + 6, a, out=out)
        p.keep(target, driven, t + 6)
    else:
        a, _ = p.op(Op.RSQRT, t + 6, a)
        _, driven = p.op(Op.MUL_F32, t + 9, a, imm=gain, out=out)
        p.keep(target, driven, t + 9)


def dynamic_factor(
    schedule: Schedule,
    spec: ChipSpec,
    x: Place,
    tiles: int,
    ready: int,
    constants: Constants,
    inverse: Place,
    scale: Place,
) -> int:
    """Dynamic quantisation: 16256 / norm to ``inverse`` (west), its inverse to ``scale``."""
    p = Pass(schedule, spec)
    total, t, value = square_sum(p, spec, x, tiles, 32, constants)
    a, _ = p.op(Op.MUL_F32, t, total, imm=(1.0 + 2.0**-7) * SUM_UNIT)
    slack, _ = p.op(Op.ADD_F32, t + 3, a, imm=1e-30)
    root, _ = p.op(Op.RSQRT, t + 6, slack)
    _, out = p.op(Op.MUL_F32, t + 9, root, imm=16256.0, out=32)
    p.keep(inverse, out, t + 9)
    p.op(Op.MUL_F32, t + 9, Self(), root, alu=slack.number)
    p.hold_alu(slack.number, t + 4, t + 8)
    _, out = p.op(Op.MUL_F32, t + 12, slack, imm=1.0 / 16256.0, out=8)
    p.keep(scale, out, t + 12)
    return schedule.place(p, ready - p.first_read(value), "dynamic factor") + p.ready


def quantise(
    schedule: Schedule,
    spec: ChipSpec,
    x: Place,
    tiles: int,
    ready: int,
    factor: Place,
    target: Activations,
    gains: Place | None = None,
) -> int:
    """x * factor as two int8 digits, written to both hemispheres.

    gains: west words that the product is multiplied by, ``factor`` being in the east then, where it
    must be clear of the digits (``clear_of_digits``); it is in the west without.
    """
    p = Pass(schedule, spec)
    t = 40
    value = p.load(x, 32, t, n=tiles, da=1)
    inverse = p.load(factor, 4 if gains is None else _FACTOR, t, n=tiles, da=0)
    a, _ = p.op(Op.MUL_F32, t, value, inverse, n=tiles)
    if gains is not None:
        t += 3
        gain = p.load(gains, 4, t, n=tiles, da=1)
        a, _ = p.op(Op.MUL_F32, t, a, gain, n=tiles)
    a, _ = p.op(Op.CVT_F32_I32, t + 3, a, n=tiles)
    rounded, _ = p.op(Op.ADD_I32, t + 6, a, imm=64, n=tiles)
    high, _ = p.op(Op.ASR, t + 9, rounded, imm=7, n=tiles)
    low, _ = p.op(Op.AND, t + 9, rounded, imm=127, n=tiles)
    for side, code in ((1, _EAST_DIGITS), (0, 40)):
        _, out = p.op(Op.CVT_I32_I8, t + 12, high, n=tiles, out=code, width=1)
        p.keep(target.first[side], out, t + 12, n=tiles)
        _, out = p.op(Op.SUB_I32, t + 12, low, imm=64, n=tiles, out=code + 4, width=1)
        p.keep(target.second[side], out, t + 12, n=tiles)
    return schedule.place(p, ready - p.first_read(value, inverse), "quantise") + p.ready


def clear_of_digits(spec: ChipSpec, factor: Place, tiles: int, target: Activations) -> bool:
    """Whether ``quantise`` can read the east word ``factor`` for ``tiles`` words, with gains.

    It reads the factor once a word, and soon writes digits: on a slice that has both, the last read
    must come before the first digit.
    """
    digits = {queue for place in (*target.first, *target.second) for queue in place.queues}
    taken = isa.sample_position(isa.VXM_QUEUE, _FACTOR)
    driven = isa.drive_position(isa.VXM_QUEUE, _EAST_DIGITS)
    for position in {isa.slice_position(queue) for queue in digits & set(factor.queues)}:
        read = -spec.read_cycles - abs(position - taken)
        at = _TO_DIGITS + spec.alu_entry_cycles + spec.alu_cycles + abs(position - driven)
        if read + tiles > at:
            return False
    return True


def halve(
    schedule: Schedule,
    spec: ChipSpec,
    x: Place,
    tiles: int,
    ready: int,
    factor: Place,
    target: Activations,
) -> int:
    """x times factor as fp16, written to both hemispheres."""
    p = Pass(schedule, spec)
    t = 40
    value = p.load(x, 32, t, n=tiles, da=1)
    inverse = p.load(factor, 4, t, n=tiles, da=0)
    a, _ = p.op(Op.MUL_F32, t, value, inverse, n=tiles)
    _store_f16(p, a, t + 3, tiles, target)
    return schedule.place(p, ready - p.first_read(value, inverse), "halve") + p.ready


def in_two(
    schedule: Schedule, spec: ChipSpec, x: Place, tiles: int, ready: int, target: Activations
) -> int:
    """x as two fp16 parts, words 2 k and 2 k + 1 of tile k, written to both hemispheres.

    The first is x 2^-PART_BITS, the second what that leaves: 22 bits from 2^-3 to 2^28, and below
    never less than one fp16 has.
    """
    done = ready
    for first in range(0, tiles, _TILES_IN_TWO):
        n = min(_TILES_IN_TWO, tiles - first)
        p = Pass(schedule, spec)
        t = 40
        value = p.load(x.at(first), 32, t, n=n, da=1)
        first_read = p.first_read(value)
        a, _ = p.op(Op.MUL_F32, t, value, imm=2.0**-PART_BITS, n=n)
        narrow = _store_f16(p, a, t + 3, n, target, (2 * first, 2))
        a, _ = p.op(Op.CVT_F16_F32, t + 6, narrow, n=n)
        a, _ = p.op(Op.MUL_F32, t + 9, a, imm=2.0**PART_BITS, n=n)
        late = p.load(x.at(first), 36, t + _TILES_IN_TWO, n=n, da=1)
        a, _ = p.op(Op.SUB_F32, t + _TILES_IN_TWO, late, a, n=n)
        _store_f16(p, a, t + _TILES_IN_TWO + 3, n, target, (2 * first + 1, 2))
        done = max(done, schedule.place(p, ready - first_read, "in two") + p.ready)
    return done


def _store_f16(
    p: Pass, value: Alu, when: int, n: int, target: Activations, words: tuple[int, int] = (0, 1)
) -> Alu:
    """Round ``n`` results of an ALU to fp16, to words (first, every so many) of both sides."""
    first, stride = words
    for side, code in ((1, 8), (0, 40)):
        code += 4 * (first % stride)
        narrow, out = p.op(Op.CVT_F32_F16, when, value, n=n, out=code, width=2)
        both = Place(
            target.first[side].queues + target.second[side].queues, target.first[side].address
        )
        p.keep(both.at(first), out, when, n=n, da=stride)
    return narrow
