"""Norms and quantisation: a sum over all lanes by a ones-plane, then digits or fp16 activations.

The square sum needs no lane crossing but one matrix of ones: the fp32 sums of a lane are split
into three fp16 pieces at different powers of two (22 bits and more over the range 2^-37..2^28),
each piece meets the ones on the east plane pair, and every lane receives the three totals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chip import isa
from chip.isa import AccMode, Op
from chip.scheduling import Alu, Pass, Place, Repeat, Schedule, Self, Stream, offsets
from chip.spec import ChipSpec
from programs.kernels.gemv import Activations

_PAIR = 2  # the east plane pair holds the ones


@dataclass(frozen=True)
class Constants:
    """Words every kernel shares: zero and 0x3C bytes on the weight slices of the east planes."""

    zero: Place
    one_high: Place


def square_sum(
    p: Pass, spec: ChipSpec, x: Place, tiles: int, code: int, constants: Constants
) -> tuple[Alu, int]:
    """Sum of squares of ``tiles`` fp32 words over all lanes, on every lane, in one ALU.

    Returns that ALU and the cycle at which a chained ALU takes its result.  ``code``: inward
    stream group (SG4 0 or 1 of its direction) x travels on; the loads start at cycle 0 or so.
    """
    start = 40
    product, total = p.pick(code), p.pick()
    value = p.load(x, code, start, n=tiles, dc=3, da=1)
    p.op(Op.MUL_F32, start, value, value, alu=product, n=tiles, dc=3)
    p.op(Op.MOV, start + 3, Alu(product), alu=total)
    if tiles > 1:
        p.op(Op.ADD_F32, start + 6, Alu(product), Self(), alu=total, n=tiles - 1, dc=3)
    t = start + 3 + 3 * tiles
    result, at = lane_sums(p, spec, total, t, lambda meet: _install_ones(p, spec, constants, meet))
    p.hold_alu(total, start + 4, t + 20)
    return result, at


def lane_sums(
    p: Pass,
    spec: ChipSpec,
    total: int,
    t: int,
    install: Callable[[int], None],
    n: int = 1,
    dc: int = 1,
) -> tuple[Alu, int]:
    """Sums over lanes of ``n`` fp32 results of ALU ``total``, ``dc`` >= 36 apart, in one ALU.

    The first is chained at ``t`` and must stay the ALU's latest until t + 20.  ``install`` puts
    fp16 ones, in force at the cycle it is given, on the east plane pair: a lane gets the sum over
    the lanes with a one in its column.  Returns as ``square_sum``.
    """
    # Split into fp16 pieces; the total stays in its ALU as `self`.
    scale, narrow, widen = p.pick(), p.pick(0), p.pick()
    up, down = float(2.0**12), float(2.0**-12)
    tag = p.schedule.tag()
    pieces = (t + 3, t + 15, t + 27)
    p.op(Op.MUL_F32, t, Alu(total), imm=down, alu=scale, n=n, dc=dc)
    p.op(Op.CVT_F32_F16, pieces[0], Alu(scale), alu=narrow, out=0, width=2, tag=tag, n=n, dc=dc)
    p.op(Op.CVT_F16_F32, t + 6, Alu(narrow), alu=widen, n=n, dc=dc)
    p.op(Op.MUL_F32, t + 9, Alu(widen), imm=up, alu=scale, n=n, dc=dc)
    p.op(Op.SUB_F32, t + 12, Self(), Alu(scale), alu=total, n=n, dc=dc)
    p.op(Op.CVT_F32_F16, pieces[1], Alu(total), alu=narrow, out=0, width=2, tag=tag, n=n, dc=dc)
    p.op(Op.CVT_F16_F32, t + 18, Alu(narrow), alu=widen, n=n, dc=dc)
    p.op(Op.SUB_F32, t + 21, Self(), Alu(widen), alu=total, n=n, dc=dc)
    p.op(Op.MUL_F32, t + 24, Alu(total), imm=up, alu=scale, n=n, dc=dc)
    p.op(Op.CVT_F32_F16, pieces[2], Alu(scale), alu=narrow, out=0, width=2, tag=tag, n=n, dc=dc)
    # Through the ones.
    three: Repeat = 3 if n == 1 else (3, n)
    apart: Repeat = 12 if n == 1 else (12, dc)
    meet = p.driven(pieces[0]) + isa.EAST_EDGE - isa.drive_position(isa.VXM_QUEUE, 0)
    install(meet)
    queue = isa.MXM_QUEUE + 2 * _PAIR + 1
    last = meet + (n - 1) * dc + 25
    for half in range(2):
        p.hold_plane(_PAIR + half, meet, last)
    p.emit(Op.ABC, queue, meet, n=three, dc=apart, s0=0, w0=2, want0=tag)
    p.hold(queue + 2, meet, last)
    out_tag = p.schedule.tag()
    p.emit(
        Op.ACC,
        queue,
        meet + spec.mxm_multiply_cycles,
        n=three,
        dc=apart,
        mode=int(AccMode.SET_EMIT),
        out=32,
        wo=4,
        tag=out_tag,
    )
    leave = meet + spec.mxm_multiply_cycles + spec.mxm_accumulate_cycles
    p.drive(32, 4, leave + isa.EAST_EDGE + offsets(three, apart), isa.EAST_EDGE, 24)
    at = leave + 21
    piece = Stream(32, 4, out_tag)
    join, low = p.pick(32), p.pick(32)
    p.op(Op.MUL_F32, at, piece, imm=up, alu=join, n=n, dc=dc)
    p.op(Op.ADD_F32, at + 12, piece, Self(), alu=join, n=n, dc=dc)
    p.op(Op.MUL_F32, at + 24, piece, imm=down, alu=low, n=n, dc=dc)
    p.op(Op.ADD_F32, at + 27, Alu(low), Self(), alu=join, n=n, dc=dc)
    p.hold_alu(join, at + 1, at + 26 + (n - 1) * dc)
    return Alu(join), at + 30


def _install_ones(p: Pass, spec: ChipSpec, constants: Constants, meet: int) -> None:
    """320 columns of fp16 ones on the east pair, in force at ``meet``, kept for three pieces."""
    end = meet - spec.mxm_install_cycles
    for half, place in enumerate((constants.zero, constants.one_high)):
        plane = _PAIR + half
        queue = isa.MXM_QUEUE + 2 * plane
        ones = p.load(place, 16 * half, end - 20, queue, n=20, da=0)
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
    """rsqrt(mean square + eps), times ``gain`` if given, on every lane of a west fp32 word."""
    p = Pass(schedule, spec)
    total, t = square_sum(p, spec, x, tiles, 32, constants)
    a, _ = p.op(Op.MUL_F32, t, total, imm=inv_h)
    a, _ = p.op(Op.ADD_F32, t + 3, a, imm=eps)
    if gain is None:
        _, out = p.op(Op.RSQRT, t + 6, a, out=32, reach=11)
        p.keep(target, out, t + 6)
    else:
        a, _ = p.op(Op.RSQRT, t + 6, a)
        _, out = p.op(Op.MUL_F32, t + 9, a, imm=gain, out=32, reach=11)
        p.keep(target, out, t + 9)
    return schedule.place(p, ready - p.blocks[0]["cycle"]) + p.ready


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
    total, t = square_sum(p, spec, x, tiles, 32, constants)
    a, _ = p.op(Op.MUL_F32, t, total, imm=1.0 + 2.0**-7)
    slack, _ = p.op(Op.ADD_F32, t + 3, a, imm=1e-30)
    root, _ = p.op(Op.RSQRT, t + 6, slack)
    _, out = p.op(Op.MUL_F32, t + 9, root, imm=16256.0, out=32, reach=11)
    p.keep(inverse, out, t + 9)
    p.op(Op.MUL_F32, t + 9, Self(), root, alu=slack.number)
    p.hold_alu(slack.number, t + 4, t + 8)
    _, out = p.op(Op.MUL_F32, t + 12, slack, imm=1.0 / 16256.0, out=8, reach=33)
    p.keep(scale, out, t + 12)
    return schedule.place(p, ready - p.blocks[0]["cycle"]) + p.ready


def quantise(
    schedule: Schedule,
    spec: ChipSpec,
    x: Place,
    tiles: int,
    ready: int,
    factor: Place,
    target: Activations,
) -> int:
    """x * factor as two int8 digits, written to both hemispheres."""
    p = Pass(schedule, spec)
    t = 40
    value = p.load(x, 32, t, n=tiles, da=1)
    inverse = p.load(factor, 4, t, n=tiles, da=0)
    a, _ = p.op(Op.MUL_F32, t, value, inverse, n=tiles)
    a, _ = p.op(Op.CVT_F32_I32, t + 3, a, n=tiles)
    rounded, _ = p.op(Op.ADD_I32, t + 6, a, imm=64, n=tiles)
    high, _ = p.op(Op.ASR, t + 9, rounded, imm=7, n=tiles)
    low, _ = p.op(Op.AND, t + 9, rounded, imm=127, n=tiles)
    for side, code in ((1, 8), (0, 40)):
        reach = 45 if side else -1
        _, out = p.op(Op.CVT_I32_I8, t + 12, high, n=tiles, out=code, width=1, reach=reach)
        p.keep(target.first[side], out, t + 12, n=tiles)
        _, out = p.op(Op.SUB_I32, t + 12, low, imm=64, n=tiles, out=code + 4, width=1, reach=reach)
        p.keep(target.second[side], out, t + 12, n=tiles)
    return schedule.place(p, ready - min(b["cycle"] for b in p.blocks[:2])) + p.ready


def halve(
    schedule: Schedule,
    spec: ChipSpec,
    x: Place,
    tiles: int,
    ready: int,
    factor: Place | None,
    target: Activations,
) -> int:
    """x (times factor, if given) as fp16, written to both hemispheres."""
    p = Pass(schedule, spec)
    t = 40
    value = p.load(x, 32, t, n=tiles, da=1)
    if factor is not None:
        inverse = p.load(factor, 4, t, n=tiles, da=0)
        a, _ = p.op(Op.MUL_F32, t, value, inverse, n=tiles)
    else:
        a, _ = p.op(Op.MOV, t, value, n=tiles)
    for side, code in ((1, 8), (0, 40)):
        reach = 45 if side else -1
        _, out = p.op(Op.CVT_F32_F16, t + 3, a, n=tiles, out=code, width=2, reach=reach)
        both = Place(
            target.first[side].queues + target.second[side].queues, target.first[side].address
        )
        p.keep(both, out, t + 3, n=tiles)
    return schedule.place(p, ready - min(b["cycle"] for b in p.blocks[:2])) + p.ready
