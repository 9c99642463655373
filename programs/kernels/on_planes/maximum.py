"""The greatest score of each head over all lanes, exactly, brought to all lanes.

Within superlanes the distributors turn a head's sixteen lanes past one of them, head h to lane h.
All heads then share one word.  Its bytes, minus 128, each superlane alone, go through the four
planes, whose columns add what lies on the same lane of all superlanes: so each superlane's word
reaches all others, and ALUs put it together again.  Last a distributor brings lane h to all lanes.
"""

from __future__ import annotations

from chip import isa
from chip.isa import SUPERLANES, AccMode, Op
from chip.scheduling import Alu, ScatterWindow, Self, Stream, offsets
from programs.kernels.on_planes.passes import (
    EAST,
    EDGE,
    WEST,
    PlanePass,
    farthest,
    inward,
    outward,
)
from programs.kernels.on_planes.places import HEADS, PlanePlaces

_LANES = 16
_TO_SXM, _FROM_SXM = 15, 12  # cycles between the VXM and the distributors
_SPREAD = 24  # streams by which the maxima leave to be spread over lanes
_SIGNS = -0x7F7F7F80  # 0x80808080: bytes and signed bytes are 128 apart
#: Cycles by which each byte is at the VXM before the lowest.
_BEFORE = (0, 0, 0, 3)


def sender(head: int, heads: int) -> int:
    """The ALU that keeps a head's maximum: its row reaches the streams that it leaves by."""
    side, number = _way(head, heads)
    return 4 * number + side


def _way(head: int, heads: int) -> tuple[int, int]:
    """(side, distributor there) that turns a head: the first half of the heads goes east."""
    east = (heads + 1) // 2
    return (EAST, head) if head < east else (WEST, head - east)


def bring_to_all_lanes(p: PlanePass, when: int, maxima: list[Alu], places: PlanePlaces) -> int:
    """The maximum of each head to ``places.maximum``, on all lanes.

    maxima: ALUs that hold them, lane by lane, until they are sent from ``when`` on.  Returns when
    the first head's is readable; the others follow two cycles apart.
    """
    heads = len(maxima)
    turned = [_turn(p, when, head, heads, places) for head in range(heads)]
    end = turned[0][0]
    parts = [alu for _, alu in turned]
    p.picked |= set(range(isa.ALUS))
    p.free_alus()
    for alu in parts:
        p.keep_alu(alu)
    while len(parts) > 1:
        end += 3
        joined = []
        for i in range(0, len(parts), 2):
            if i + 1 < len(parts):
                alu, _ = p.op(Op.OR, end - 2, parts[i], parts[i + 1], n=3)
            else:
                alu, _ = p.op(Op.MOV, end - 2, parts[i], n=3)
            joined.append(alu)
        p.release(parts)
        parts = joined
    packed_at, packed = _join_three(p, end, parts[0], p.pick())
    p.free_alus()
    known, word = _across(p, packed_at + 3, packed, places)
    return _spread(p, known, word, heads, places)


def _turn(p: PlanePass, when: int, head: int, heads: int, places: PlanePlaces) -> tuple[int, Alu]:
    """The maximum of a head within each superlane, on the head's own lane.

    It leaves its ALU from ``when`` on, once for each of sixteen lanes.  Returns the cycle of the
    last result and the ALU; the last three results are of three interleaved totals.
    """
    side, number = _way(head, heads)
    alu = sender(head, heads)
    _, value = p.again(Alu(alu), when, n=_LANES, out=outward(side, 8 * number))
    p.hold_alu(alu, when, when + _LANES)
    sample = p.driven(when) + _TO_SXM
    unit = isa.SXM_QUEUE + 8 * side
    lanes = places.lane_maps[side]
    own = lanes.part(number, number + 1)
    code = 8 * number + 4
    turn = p.load(own.at(_LANES * head), outward(side, code), sample, unit, n=_LANES, da=1)
    out = Stream(inward(side, code), 4, p.schedule.tag())
    distribute(p, side, sample, value, turn, out, _LANES, 1)
    t, taker = sample + p.spec.distribute_cycles + _FROM_SXM, 4 * number + 2 + side
    p.op(Op.MOV, t, out, alu=taker, n=3)
    p.op(Op.MAX_F32, t + 3, out, Self(), alu=taker, n=_LANES - 3)
    p.hold_alu(taker, t, t + _LANES)
    return t + _LANES - 1, Alu(taker)


def _join_three(p: PlanePass, end: int, alu: Alu, own: int) -> tuple[int, Alu]:
    """The maximum of the results of ``alu`` at ``end`` - 2, ``end`` - 1 and ``end``, by ALU
    ``own``; (cycle, ALU) of it.
    """
    first, _ = p.op(Op.MOV, end + 1, alu, alu=own)
    second, _ = p.op(Op.MOV, end + 2, alu)
    p.again(alu, end + 5)
    p.op(Op.MAX_F32, end + 5, second, Self(), alu=own)
    p.op(Op.MAX_F32, end + 8, alu, Self(), alu=own)
    p.hold_alu(alu.number, end, end + 5)
    p.hold_alu(own, end + 1, end + 8)
    return end + 8, first


def distribute(
    p: PlanePass,
    side: int,
    when: int,
    value: Stream,
    lanes: Stream,
    out: Stream,
    n: tuple[int, int] | int,
    dc: tuple[int, int] | int,
) -> None:
    """DISTRIBUTE fp32 words from ``when`` on, as ``lanes`` say."""
    queue = isa.SXM_QUEUE + 8 * side + value.code % 32 // 8
    p.emit(
        Op.DISTRIBUTE,
        queue,
        when,
        n=n,
        dc=dc,
        s0=value.code,
        w0=4,
        want0=value.tag,
        s1=lanes.code,
        w1=1,
        want1=lanes.tag,
        out=out.code,
        wo=4,
        tag=out.tag,
    )
    start = isa.drive_position(queue, out.code)
    at = when + p.spec.distribute_cycles
    p.drive(out.code, 4, isa.diagonal(out.code, start, at) + offsets(n, dc), start, tag=out.tag)


def _across(p: PlanePass, when: int, packed: Alu, places: PlanePlaces) -> tuple[int, Alu]:
    """The maximum over superlanes of a word whose ALU was dispatched three cycles before ``when``;
    (cycle, ALU) of the result, the same in every superlane.
    """
    spec = p.spec
    readable: dict[int, int] = {}
    for side in (EAST, WEST):
        code = outward(side, 12)
        place = places.pieces[side]
        _, word = p.op(Op.XOR, when, packed, imm=_SIGNS, out=code)
        low = 2 if side == EAST else 0
        two = Stream(code + low, 2, word.tag)
        border = isa.drive_position(isa.VXM_QUEUE, code)
        at = p.driven(when)
        far, distance = farthest((place,), border)
        apart = p.load(places.offsets[1 - side], outward(side, 16), at + distance, far)
        window = ScatterWindow(apart, SUPERLANES - 1)
        readable[side] = p.store(place, two, at, border, window=window)
    # the earliest cycle at which all bytes' results can meet
    through = spec.mxm_multiply_cycles + spec.mxm_accumulate_cycles + EDGE
    meet = 0
    for byte, before in enumerate(_BEFORE):
        side, half = divmod(byte, 2)
        edge = isa.EAST_EDGE if side == EAST else isa.WEST_EDGE
        travel = abs(isa.slice_position(places.pieces[side].queues[half]) - edge)
        meet = max(meet, readable[side] + spec.read_cycles + travel + through + before)
    values = []
    for plane, before in enumerate(_BEFORE):
        side, half = divmod(plane, 2)
        at = meet - before - through
        ones = places.constants[plane].at(3)
        installed = at - spec.mxm_install_cycles
        p.install_same(plane, ones, installed)
        p.hold_plane(plane, installed, at + SUPERLANES)
        place = places.pieces[side]
        source = place.part(half, half + 1)
        queue = isa.MXM_QUEUE + 2 * plane
        piece = p.load(source, outward(side, 16 * half), at, queue, n=SUPERLANES, da=1)
        p.activate(plane, piece, at, SUPERLANES, 1)
        out = Stream(inward(side, 4 * half + (0 if side == EAST else 16)), 4, p.schedule.tag())
        acc = at + spec.mxm_multiply_cycles
        p.accumulate(plane, acc, AccMode.SET_EMIT, SUPERLANES, 1, out=out)
        values.append(out)
    return _greatest(p, meet, values)


def _greatest(p: PlanePass, x: int, values: list[Stream]) -> tuple[int, Alu]:
    """Words put together from signed bytes, low one first, and the greatest of the 20."""
    n = SUPERLANES
    b0, _ = p.op(Op.ADD_I32, x, values[0], imm=_SIGNS, n=n)
    b1, _ = p.op(Op.SHL, x, values[1], imm=8, n=n)
    low, _ = p.op(Op.ADD_I32, x + 3, b0, b1, n=n)
    b3, _ = p.op(Op.SHL, x - 3, values[3], imm=8, n=n)
    high, _ = p.op(Op.ADD_I32, x, values[2], b3, n=n)
    high, _ = p.op(Op.SHL, x + 3, high, imm=16, n=n)
    word, _ = p.op(Op.ADD_I32, x + 6, low, high, n=n)
    t, alu = x + 9, p.pick()
    p.op(Op.MOV, t, word, alu=alu, n=3)
    p.op(Op.MAX_F32, t + 3, word, Self(), alu=alu, n=n - 3)
    p.hold_alu(alu, t, t + n)
    return _join_three(p, t + n - 1, Alu(alu), p.pick(_SPREAD))


def _spread(p: PlanePass, when: int, word: Alu, heads: int, places: PlanePlaces) -> int:
    """Lane h of the word of an ALU to all lanes, for every head, to ``places.maximum``; when the
    first is readable.
    """
    begin, dc = when + 3, 2
    p.hold_alu(word.number, when, begin + dc * heads)
    _, value = p.again(word, begin, n=heads, dc=dc, out=_SPREAD)
    sample = p.driven(begin) + _TO_SXM
    unit = isa.SXM_QUEUE + 8
    lanes = places.lane_maps[EAST].at(_LANES * HEADS)
    own = lanes.part(0, 1)
    turn = p.load(own, 16, sample, unit, n=heads, dc=dc, da=1)
    out = Stream(inward(EAST, 0), 4, p.schedule.tag())
    distribute(p, EAST, sample, value, turn, out, heads, dc)
    leave = sample + p.spec.distribute_cycles
    start = isa.drive_position(unit, out.code)
    return p.store(places.maximum, out, leave, start, n=heads, dc=dc) - dc * (heads - 1)
