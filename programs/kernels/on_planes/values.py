"""Exponentials of masked scores, and the values weighted with them.

V^T is installed block by block as keys were, beside it columns of ones: the lanes from 304 on of a
product hold the sum of the weights.  A head has a row of accumulators; its last block emits.
"""

from __future__ import annotations

from chip import isa
from chip.isa import AccMode, Op
from chip.scheduling import Alu, Operand, Schedule, Self, Stream
from chip.spec import ChipSpec
from programs.kernels.on_planes.passes import (
    BEHIND,
    EAST,
    EDGE,
    GROUPS,
    WEST,
    InstalledColumns,
    PlanePass,
    inward,
    outward,
    run_activations,
    stream_blocks,
)
from programs.kernels.on_planes.places import CachedTile, HeadRun, PlanePlaces, QueryGroup

#: What weights are scaled by, so that fp16 keeps their bits far below the greatest.
WEIGHT_SCALE = 2.0**14
#: Powers of two of which the two fp16 pieces of a sum of weights are multiples.  Any powers near
#: these give the same bits; with these no piece of a number below 2^33 is beyond fp16.
_COARSE, _FINE = 18, 6
#: AND with these bits leaves sums of weights, from 2^14 to 2^33, as they are, and brings all other
#: numbers, as on the lanes of weighted values, below 2^33: two bits of the exponent are 0.
_BOUNDED = 0x4FFFFFFF


def weigh(
    schedule: Schedule,
    spec: ChipSpec,
    group: QueryGroup,
    runs: list[HeadRun],
    blocks: tuple[int, int],
    ready: tuple[int, int],
    places: PlanePlaces,
) -> int:
    """Weighted values of (west, east) ``blocks`` to ``places.outputs``; when readable.

    ready: when the maximum and the values are.
    """
    sunk = _weigh_sinks(schedule, spec, sum(group.heads), ready[0], places)
    p = PlanePass(schedule, spec)
    heads, apart = sum(group.heads), p.period * len(runs)
    late = (blocks[EAST] - blocks[WEST]) * apart + BEHIND
    starts = {EAST: 40, WEST: 40 + late}
    written = _exponentials(p, starts, runs, blocks, places)
    first_maximum = p.first_read()
    values_read = 1 << 30
    results: dict[int, Stream] = {}
    # words are read an odd number of cycles after they are written, on either side
    behind = 0
    leads = {}
    for side, readable in written.items():
        edge = isa.EAST_EDGE if side == EAST else isa.WEST_EDGE
        travel = abs(places.weights[side].position - edge)
        odd = 1 - spec.write_cycles % 2
        leads[side] = readable + odd + spec.read_cycles + travel - spec.mxm_install_cycles
    if WEST in leads:
        behind = max(0, leads[WEST] - late - leads[EAST])
    when = leads[EAST] + behind + behind % 2
    for side in (EAST, WEST):
        count, begin = blocks[side], when + (late if side == WEST else 0)
        if not count:
            continue
        since = len(p.blocks)
        columns = [_columns(run.tile, places, side) for run in runs]
        stream_blocks(p, side, columns, [run.heads for run in runs], begin, count)
        values_read = min(values_read, p.first_read(since=since))
        results[side] = Stream(inward(side, 0), 4, schedule.tag())
        for turn, run in enumerate(runs):
            own, weights = begin + turn * p.period, places.weights[side].at(run.first)
            run_activations(p, side, weights, run.heads, own, (count, apart), heads)
            _sum_blocks(p, side, own + p.first_sum, run, (count, apart), results[side])
    p.free_alus()
    arrive = when + p.result + (blocks[EAST] - 1) * apart
    since = len(p.blocks)
    _finish(p, arrive, results, group, runs, places)
    sums_read = p.first_read(since=since)
    earliest = max(ready[0] - first_maximum, ready[1] - values_read, sunk - sums_read)
    return schedule.place(p, earliest, "weights and values") + p.ready


def _weigh_sinks(
    schedule: Schedule, spec: ChipSpec, heads: int, ready: int, places: PlanePlaces
) -> int:
    """exp of each head's sink less the maximum, scaled as weights are, where there are sinks; when
    readable.  ready: when the first head's maximum is.
    """
    if places.sinks is None or places.sink_weights is None:
        return ready
    p = PlanePass(schedule, spec)
    t, dc = 40, 2
    sink = p.load(places.sinks, 8, t, n=heads, dc=dc, da=1)
    a, _ = p.op(Op.MOV, t, sink, n=heads, dc=dc)
    since = len(p.blocks)
    # between the Reads of the sinks, which are on the same slices
    maximum = p.load(places.maximum, 12, t + 3, n=heads, dc=dc, da=1)
    first = p.first_read(since=since)
    a, _ = p.op(Op.SUB_F32, t + 3, a, maximum, n=heads, dc=dc)
    a, _ = p.op(Op.EXP, t + 6, a, n=heads, dc=dc)
    _, out = p.op(Op.MUL_F32, t + 9, a, imm=WEIGHT_SCALE, n=heads, dc=dc, out=40)
    p.keep(places.sink_weights, out, t + 9, n=heads, dc=dc)
    return schedule.place(p, ready - first, "sinks") + p.ready


def _exponentials(
    p: PlanePass,
    starts: dict[int, int],
    runs: list[HeadRun],
    blocks: tuple[int, int],
    places: PlanePlaces,
) -> dict[int, int]:
    """Weights of all blocks to ``places.weights``; when each side's first word is readable."""
    heads, dc = sum(run.heads for run in runs), (2, p.period * len(runs))
    greatest = p.pick(8)
    subtract, raised, scale = p.pick(4, 8), p.pick(), p.pick()
    narrow = p.pick(12)
    written: dict[int, int] = {}
    for turn, run in enumerate(runs):
        begin = starts[EAST] + turn * p.period
        maximum: Operand = p.load(
            places.maximum.at(run.first),
            8,
            begin,
            n=(run.heads, blocks[EAST]),
            dc=dc,
            da=(1, 0),
        )
        for side in (EAST, WEST):
            n = (run.heads, blocks[side])
            if not blocks[side]:
                continue
            t, da = starts[side] + turn * p.period, (1, heads)
            if side == WEST:
                maximum, _ = p.op(Op.MOV, t - BEHIND, maximum, n=n, dc=dc, alu=greatest)
            source = places.scores[side].at(run.first)
            score = p.load(source, inward(side, 4), t, n=n, dc=dc, da=da)
            a, _ = p.op(Op.SUB_F32, t, score, maximum, n=n, dc=dc, alu=subtract)
            a, _ = p.op(Op.EXP, t + 3, a, n=n, dc=dc, alu=raised)
            a, _ = p.op(Op.MUL_F32, t + 6, a, imm=WEIGHT_SCALE, n=n, dc=dc, alu=scale)
            place, code = places.weights[side].at(run.first), outward(side, 12)
            _, out = p.op(Op.CVT_F32_F16, t + 9, a, n=n, dc=dc, alu=narrow, out=code, width=2)
            p.keep(place, out, t + 9, n=n, dc=dc, da=da)
            border = isa.drive_position(isa.VXM_QUEUE, out.code)
            readable = p.driven(t + 9) + abs(place.position - border) + p.spec.write_cycles
            written.setdefault(side, readable)
    return written


def _columns(
    tile: CachedTile, places: PlanePlaces, side: int
) -> tuple[list[InstalledColumns], list[InstalledColumns]]:
    """V^T and ones beside it, low and high bytes."""
    each, all_ = tile.columns // 16, tile.width // 16
    found = []
    for half in (0, 1):
        ones = places.constants[2 * side + half].at(half)
        values = tile.values[side][half]
        parts = [InstalledColumns(first, each, values, each) for first in range(0, all_, each)]
        found.append([*parts, InstalledColumns(all_, GROUPS - all_, ones, same=True)])
    return found[0], found[1]


def _sum_blocks(
    p: PlanePass, side: int, when: int, run: HeadRun, blocks: tuple[int, int], out: Stream
) -> None:
    """ACC of all blocks, a row for each head; the last block's sums are emitted to ``out``.

    blocks: how many, and cycles apart.
    """
    plane, row, heads = 2 * side, run.first, run.heads
    count, apart = blocks
    if count == 1:
        p.accumulate(plane, when, AccMode.SET_EMIT, heads, 2, 1, out, row)
        return
    p.accumulate(plane, when, AccMode.SET, heads, 2, 1, row=row)
    between, dc = (heads, count - 2), (2, apart)
    p.accumulate(plane, when + apart, AccMode.ADD, between, dc, (1, 0), row=row)
    p.accumulate(plane, when + apart * (count - 1), AccMode.ADD_EMIT, heads, 2, 1, out, row)


def _finish(
    p: PlanePass,
    at: int,
    results: dict[int, Stream],
    group: QueryGroup,
    runs: list[HeadRun],
    places: PlanePlaces,
) -> None:
    """Sums of both sides, divided by the sums of the weights, to the lanes of their heads."""
    n, dc = sum(group.heads), 2
    alone = WEST not in results
    east = p.pick(0, 4)
    both = east if alone else p.pick(0, 4)
    sinks = east if places.sink_weights is None else p.pick(24, 4)
    for turn, run in enumerate(runs):
        t = at + turn * p.period
        out = 4 if alone and places.sink_weights is None else -1
        total, value = p.op(Op.MOV, t, results[EAST], alu=east, out=out, n=run.heads, dc=dc)
        if not alone:
            t += BEHIND
            x, y = results[WEST], total
            out = 4 if places.sink_weights is None else -1
            total, value = p.op(Op.ADD_F32, t, x, y, alu=both, out=out, n=run.heads, dc=dc)
        if places.sink_weights is not None:
            t += 3
            own = places.sink_weights.at(run.first)
            sunk = p.load(own, 24, t, n=run.heads, dc=dc, da=1)
            total, value = p.op(Op.ADD_F32, t, total, sunk, alu=sinks, out=4, n=run.heads, dc=dc)
        readable = p.keep(places.sums.at(run.first), value, t, n=run.heads, dc=dc)
    divided: Operand = total
    t += 3
    if len(runs) > 1:
        t = readable + p.spec.read_cycles + 1
        divided = p.load(places.sums, 32, t, n=n, dc=dc, da=1)
    pieces = _cut(p, t, divided, n, places)
    p.free_alus()
    (near, coarse), (far, fine) = pieces
    a, _ = p.op(Op.MUL_F32, near, coarse, imm=2.0**_COARSE, n=n, dc=dc)
    waiting = [a]
    for i in range((far - near) // 3):
        a, _ = p.op(Op.MOV, near + 3 * (i + 1), a, n=n, dc=dc)
        waiting.append(a)
    b, _ = p.op(Op.MUL_F32, far, fine, imm=2.0**_FINE, n=n, dc=dc)
    a, _ = p.op(Op.ADD_F32, far + 3, a, b, n=n, dc=dc)
    p.release(waiting)
    r, _ = p.op(Op.RSQRT, far + 6, a, n=n, dc=dc)
    inverse, _ = p.op(Op.MUL_F32, far + 9, r, r, n=n, dc=dc)
    t = far + 12
    summed = p.load(places.sums, 32, t, n=n, dc=dc, da=1)
    a, _ = p.op(Op.MUL_F32, t, summed, inverse, n=n, dc=dc)
    _join_heads(p, t, a, group, places)


def _cut(
    p: PlanePass, c: int, total: Operand, n: int, places: PlanePlaces
) -> list[tuple[int, Stream]]:
    """The sum of the weights on all lanes, in two pieces: (cycle at the VXM, stream) of each.

    The other lanes are multiplied by zeros; they are bounded, so that none counts as saturated.
    """
    dc, unit = 2, _COARSE - _FINE
    total, _ = p.op(Op.AND, c, total, imm=_BOUNDED, n=n, dc=dc)
    x, _ = p.op(Op.MUL_F32, c + 3, total, imm=2.0**-_COARSE, n=n, dc=dc)
    total, _ = p.op(Op.MUL_F32, c + 3, total, imm=2.0**-_FINE, n=n, dc=dc)
    narrow, coarse = p.op(Op.CVT_F32_F16, c + 6, x, n=n, dc=dc, out=8, width=2)
    wide, _ = p.op(Op.CVT_F16_F32, c + 9, narrow, n=n, dc=dc)
    back, _ = p.op(Op.MUL_F32, c + 12, wide, imm=2.0**unit, n=n, dc=dc)
    for i in range(2, 5):
        total, _ = p.op(Op.MOV, c + 3 * i, total, n=n, dc=dc)
    rest, _ = p.op(Op.SUB_F32, c + 15, total, back, n=n, dc=dc)
    _, fine = p.op(Op.CVT_F32_F16, c + 18, rest, n=n, dc=dc, out=40, width=2)
    pieces = []
    spec = p.spec
    for side, value, when in ((EAST, coarse, c + 6), (WEST, fine, c + 18)):
        meet = p.driven(when) + EDGE
        install = meet - spec.mxm_install_cycles
        for half in (0, 1):
            plane = 2 * side + half
            p.install_same(plane, places.constants[plane].at(2 * half), install)
            p.hold_plane(plane, install, meet + 2 * n)
        p.hold(isa.MXM_QUEUE + 4 * side + 3, meet, meet + 2 * n)
        p.activate(2 * side, value, meet, n, dc)
        out = Stream(inward(side, 0), 4, p.schedule.tag())
        pieces.append(
            (
                p.accumulate(
                    2 * side, meet + spec.mxm_multiply_cycles, AccMode.SET_EMIT, n, dc, out=out
                ),
                out,
            )
        )
    return pieces


def _join_heads(p: PlanePass, t: int, value: Alu, group: QueryGroup, places: PlanePlaces) -> None:
    """Results of the heads, two cycles apart and dispatched from ``t`` on, to their query tiles."""
    shift, keep = p.pick(8), p.pick()
    head = 0
    done: list[tuple[int, int, list[tuple[int, Alu]]]] = []
    for tile, count in zip(group.tiles, group.heads, strict=True):
        at = t + 3 + 2 * head
        lanes = p.load(places.head_masks, 8, at - 3, n=count, dc=2, da=1)
        mark, _ = p.op(Op.ASR, at - 3, lanes, imm=16, n=count, dc=2, alu=shift)
        own, _ = p.op(Op.MASK, at, value, mark, n=count, dc=2, alu=keep)
        parts: list[tuple[int, Alu]] = []
        begun = at + 3
        for first in range(min(2, count)):
            own_count = (count - first + 1) // 2
            alu = Alu(p.pick())
            when = at + 3 + 2 * first
            p.op(Op.MOV, when, own, alu=alu.number)
            p.op(Op.OR, when + 4, own, Self(), alu=alu.number, n=own_count - 1, dc=4)
            parts.append((when + 4 * (own_count - 1), alu))
        done.append((tile, begun, parts))
        head += count
    for tile, begun, parts in done:
        when, alu = p.join(Op.OR, parts)
        for _, part in parts:
            p.hold_alu(part.number, begun, when + 3)
        _, out = p.again(alu, when + 3, out=4 * isa.alu_stream_groups(alu.number)[0])
        p.keep(places.outputs.at(tile), out, when + 3)
