"""Experts that share a word of weights: each has lanes of its own, and inputs are moved there.

An expert of few lanes leaves most of a word of its last product empty.  So up to three experts lie
side by side, expert e on the lanes of its turn, e modulo their number; the inputs of the one that
is chosen go to those lanes, and the zeros on all others meet the weights of its neighbours.
Which turn that is, is data: all are made by shifts, and all but one are masked.
"""

from __future__ import annotations

from chip import isa
from chip.isa import Op
from chip.scheduling import Alu, Operand, Pass, Place, Schedule, Stream, offsets
from chip.spec import ChipSpec
from programs.kernels.gemv import Activations

_APART = 2  # cycles from one word to the next: two are shifted, the second 3 cycles later
#: Streams of masks, and by byte (low in the west, high in the east) of words shifted, of others on
#: their way to the VXM, and of results: what meets in an ALU is in reach of its row.
_MASKS, _SHIFTED, _STRAIGHT, _RESULTS = 8, (20, 4), (48, 32), (28, 24)
_SHIFTER = 6  # of the units of an SXM


def divide(p: Pass, t: int, index: Operand, turns: int, n: int) -> tuple[Alu, Alu]:
    """Numbers of experts divided by ``turns``, taken at ``t``: what is left, as a part of 1 and
    less (turns - 1) / (2 turns), dispatched at ``t`` + 12, and the quotient, at ``t`` + 9.
    """
    a, _ = p.op(Op.MUL_F32, t, index, imm=1.0 / turns, n=n)
    a, _ = p.op(Op.ADD_F32, t + 3, a, imm=-(turns - 1) / (2.0 * turns), n=n)
    whole, _ = p.op(Op.CVT_F32_I32, t + 6, a, n=n)
    a, _ = p.op(Op.MOV, t + 6, a, n=n)
    quotient, _ = p.op(Op.CVT_I32_F32, t + 9, whole, n=n)
    a, _ = p.op(Op.MOV, t + 9, a, n=n)
    left, _ = p.op(Op.SUB_F32, t + 12, a, quotient, n=n)
    return left, quotient


def find_turns(
    schedule: Schedule,
    spec: ChipSpec,
    ready: int,
    indices: Place,
    chosen: int,
    targets: Place,
) -> int:
    """Which turn each of ``chosen`` experts has; returns when that is readable.

    indices: fp32 words, east.  targets: a slice in the west for each turn, whose words are not
    zero for the experts that have it.
    """
    p = Pass(schedule, spec)
    t, n, turns = 40, chosen, len(targets.queues)
    index = p.load(indices, 56, t, n=n, da=1)
    codes = [40 + 4 * number for number in range(turns)]
    alus = [p.pick(code) for code in codes]
    left, _ = divide(p, t, index, turns, n)
    a, _ = p.op(Op.MUL_F32, t + 15, left, imm=float(turns), n=n)
    a, _ = p.op(Op.ADD_F32, t + 18, a, imm=(turns - 1) / 2.0, n=n)
    turn, _ = p.op(Op.CVT_F32_I32, t + 21, a, n=n)
    for number, (queue, code, alu) in enumerate(zip(targets.queues, codes, alus, strict=True)):
        _, out = p.op(Op.EQ, t + 24, turn, imm=number, alu=alu, n=n, out=code, width=1)
        p.keep(Place((queue,), targets.address), out, t + 24, n=n)
    return schedule.place(p, ready - p.first_read(), "turns of experts") + p.ready


def take_turns(
    schedule: Schedule,
    spec: ChipSpec,
    ready: int,
    words: Activations,
    counts: tuple[int, int],
    turns: Place,
    lanes: int,
) -> int:
    """Move words of both hemispheres to the lanes of their experts' turns; when readable.

    counts: experts, and words of each.  turns: see ``find_turns``.  lanes: of a turn.
    """
    p = Pass(schedule, spec)
    t = 120
    n, dc = (counts[1], counts[0]), (_APART, _APART * counts[1])
    masks = [
        p.load(
            Place((queue,), turns.address), _MASKS + number, _due(t, number), n=n, dc=dc, da=(0, 1)
        )
        for number, queue in enumerate(turns.queues)
    ]
    da = (1, counts[1])
    for side, here in enumerate((words.second, words.first)):
        versions = [p.load(here[1], _STRAIGHT[side], t, n=n, dc=dc, da=da)]
        for number in range(1, len(turns.queues)):
            versions.append(
                _shifted(p, here[side], side, _due(t, number), n, dc, da, lanes * number)
            )
        kept: list[Alu] = []
        for number, (version, mask) in enumerate(zip(versions, masks, strict=True)):
            a, _ = p.op(Op.MASK, _due(t, number), version, mask, n=n, dc=dc)
            kept.append(a)
        joined, when = kept[0], t
        for other in kept[1:]:
            when += 3
            joined, _ = p.op(Op.OR, when, joined, other, n=n, dc=dc)
        when += 3
        if (p.driven(when) - t + spec.read_cycles) % _APART == 0:
            # a slice is read in other cycles than it is written in
            joined, _ = p.op(Op.MOV, when, joined, n=n, dc=dc)
            when += 3
        for to in (0, 1):
            out = _RESULTS[side] + (0 if to else 32)
            _, driven = p.op(Op.MOV, when, joined, n=n, dc=dc, out=out, width=1)
            p.keep(here[to], driven, when, n=n, dc=dc, da=da)
    return schedule.place(p, ready - p.first_read(), "experts' lanes") + p.ready


def _due(t: int, turn: int) -> int:
    """When a word of a turn is at the VXM: the first two at once, the third behind them."""
    return t + 3 * max(0, turn - 1)


def _shifted(
    p: Pass,
    source: Place,
    side: int,
    when: int,
    n: tuple[int, int],
    dc: tuple[int, int],
    da: tuple[int, int],
    lanes: int,
) -> Stream:
    """Words of a slice moved by ``lanes`` in a hemisphere's SXM, taken by ALUs from ``when`` on."""
    code = _SHIFTED[side]
    outward, inward = (code, 32 + code) if side else (32 + code, code)
    unit = isa.SXM_QUEUE + 8 * side + _SHIFTER
    start = isa.drive_position(unit, inward)
    at = when - abs(start - isa.sample_position(isa.VXM_QUEUE, inward))
    sample = at - p.spec.shift_cycles
    value = p.load(source, outward, sample, unit, n=n, dc=dc, da=da)
    moved = Stream(inward, 1, p.schedule.tag())
    p.emit(
        Op.SHIFT,
        unit,
        sample,
        n=n,
        dc=dc,
        s0=value.code,
        w0=1,
        want0=value.tag,
        out=moved.code,
        wo=1,
        tag=moved.tag,
        imm=lanes,
    )
    p.drive(
        moved.code, 1, isa.diagonal(moved.code, start, at) + offsets(n, dc), start, tag=moved.tag
    )
    return moved
