"""The greatest score of each head over all lanes, exactly, brought to all lanes.

Within superlanes the distributors turn a head's sixteen lanes past one of them, head h to lane h.
All heads then share one word.  Its bytes, minus 128, each superlane alone, go through the four
planes, whose columns add what lies on the same lane of all superlanes: so each superlane's word
reaches all others, and ALUs put it together again.  Last a distributor brings lane h to all lanes.
"""

from __future__ import annotations

from chip import isa
from chip.isa import SUPERLANES, AccMode, Op
from chip.scheduling import Alu, Place, ScatterWindow, Schedule, Self, Stream, offsets
from chip.spec import ChipSpec
from programs.kernels.on_planes.passes import (
    EAST,
    EDGE,
    WEST,
    PlanePass,
    farthest,
    inward,
    outward,
)
from programs.kernels.on_planes.places import PlanePlaces
from programs.kernels.on_planes.scores import side_of_head

_LANES = 16
_START = 60  # cycle of a pass at which the first turned word is at the VXM
_SIGNS = -0x7F7F7F80  # 0x80808080: bytes and signed bytes are 128 apart
#: Cycles by which each byte is at the VXM before the lowest.
_BEFORE = (0, 0, 0, 3)


def find_maxima(
    schedule: Schedule, spec: ChipSpec, heads: int, ready: int, places: PlanePlaces
) -> int:
    """The maximum of each head to ``places.maximum``, on all lanes; returns when readable."""
    p = PlanePass(schedule, spec)
    parts = []
    for side in (EAST, WEST):
        own = [head for head in range(heads) if side_of_head(head, heads) == side]
        if own:
            parts += _turn(p, side, own, places)
    first = p.first_read()
    when, packed = p.join(Op.OR, parts)
    for _, alu in parts:
        p.hold_alu(alu.number, _START, when)
    p.free_alus()
    when, word = _across(p, when + 3, packed, places)
    _spread(p, when, word, heads, places)
    return schedule.place(p, ready - first) + p.ready


def _turn(p: PlanePass, side: int, own: list[int], places: PlanePlaces) -> list[tuple[int, Alu]]:
    """The maxima of heads ``own`` within each superlane: (cycle, ALU) of each, on its own lane."""
    t, count = _START, len(own)
    period = max(count, 3)
    n, dc = (count, _LANES), (1, period)
    unit = isa.SXM_QUEUE + 8 * side
    sample = t - 12 - p.spec.distribute_cycles
    code, map_code = outward(side, 0), outward(side, 8)
    value = p.load(places.maxima[side].at(own[0]), code, sample, unit, n=n, dc=dc, da=(1, 0))
    lanes = places.lane_maps[side].at(_LANES * own[0])
    turn = p.load(lanes, map_code, sample, unit, n=n, dc=dc, da=(_LANES, 1))
    out = Stream(inward(side, 0 if side == EAST else 16), 4, p.schedule.tag())
    distribute(p, side, sample, value, turn, out, n, dc)
    found = []
    for i in range(count):
        alu = p.pick(out.code)
        p.op(Op.MOV, t + i, out, alu=alu)
        p.op(Op.MAX_F32, t + i + period, out, Self(), alu=alu, n=_LANES - 1, dc=period)
        found.append((t + i + period * (_LANES - 1), Alu(alu)))
    return found


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
        source = Place(place.queues[half : half + 1], place.address, place.symbol)
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
    end = t + n - 1
    # the last three results are of three interleaved totals
    first, _ = p.op(Op.MOV, end + 1, Alu(alu), alu=p.pick(24))
    second, _ = p.op(Op.MOV, end + 2, Alu(alu))
    p.again(Alu(alu), end + 5)
    p.op(Op.MAX_F32, end + 5, second, Self(), alu=first.number)
    p.op(Op.MAX_F32, end + 8, Alu(alu), Self(), alu=first.number)
    p.hold_alu(alu, t, end + 5)
    p.hold_alu(first.number, end + 1, end + 8)
    return end + 8, first


def _spread(p: PlanePass, when: int, word: Alu, heads: int, places: PlanePlaces) -> None:
    """Lane h of the word of an ALU to all lanes, for every head, to ``places.maximum``."""
    p.hold_alu(word.number, when, when + 3 + heads)
    _, value = p.again(word, when + 3, n=heads, out=24)
    sample = p.driven(when + 3) + 15
    unit = isa.SXM_QUEUE + 8
    lanes = p.load(places.lane_maps[EAST].at(_LANES * 8), 16, sample, unit, n=heads, da=1)
    out = Stream(inward(EAST, 0), 4, p.schedule.tag())
    distribute(p, EAST, sample, value, lanes, out, heads, 1)
    leave = sample + p.spec.distribute_cycles
    p.store(places.maximum, out, leave, isa.drive_position(unit, out.code), n=heads)
