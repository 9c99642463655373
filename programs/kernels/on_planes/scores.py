"""Scores of a group's heads at every cached position, and their maxima over the blocks.

Keys are installed block by block, one pair of planes a side; the queries of up to eight heads
follow two cycles apart, each alone on its head's lanes.  The west runs three cycles behind the
east, so that one chain of ALUs serves both sides, and an ALU for each head keeps its maximum.
"""

from __future__ import annotations

from chip import isa
from chip.isa import AccMode, Op
from chip.scheduling import Alu, Operand, Schedule, Self, Stream
from chip.spec import ChipSpec
from programs.kernels.on_planes.maximum import bring_to_all_lanes, sender
from programs.kernels.on_planes.passes import (
    ACTIVATIONS,
    BEHIND,
    EAST,
    PERIOD,
    RESULT,
    WEST,
    InstalledColumns,
    PlanePass,
    inward,
    outward,
    stream_blocks,
)
from programs.kernels.on_planes.places import CachedTile, PlanePlaces, QueryGroup

#: ALUs that add the mask, widen it, and cap the scores: those that take up turned maxima later.
_MASK_ALUS = (2, 3, 14, 6, 7)


def copy_queries(
    schedule: Schedule, spec: ChipSpec, group: QueryGroup, ready: int, places: PlanePlaces
) -> int:
    """Each head's rotated query, alone on its lanes, as fp16 beside each pair; when readable."""
    p = PlanePass(schedule, spec)
    t, done, first = 40, 0, 1 << 30
    rows = [(tile, n) for tile, n in zip(group.tiles, group.heads, strict=True)]
    heads = sum(group.heads)
    tags = (schedule.tag(), schedule.tag())
    at = t
    for tile, n in rows:
        value = p.load(places.rotated.at(tile), 36, at, n=n, da=0, tag=tags[0])
        mask = p.load(places.head_masks, 8, at, n=n, da=1, tag=tags[1])
        at += n
    first = p.first_read()
    a, _ = p.op(Op.MUL_F32, t, value, mask, n=heads)
    for side, code in ((WEST, 48), (EAST, 16)):
        _, out = p.op(Op.CVT_F32_F16, t + 3, a, n=heads, out=code, width=2)
        done = max(done, p.keep(places.queries[side], out, t + 3, n=heads))
    return schedule.place(p, ready - first) + done


def score(
    schedule: Schedule,
    spec: ChipSpec,
    group: QueryGroup,
    blocks: tuple[int, int],
    ready: tuple[int, int],
    tile: CachedTile,
    places: PlanePlaces,
    cap: float,
) -> int:
    """Masked scores of (west, east) ``blocks``, and each head's maximum on all lanes.

    ready: when the copied queries and the keys are.  Returns the cycle at which the first head's
    maximum is readable; the others follow two cycles apart.
    """
    p = PlanePass(schedule, spec)
    heads = sum(group.heads)
    starts = {EAST: 60, WEST: 60 + BEHIND}
    queries_read = keys_read = 1 << 30
    results: dict[int, Stream] = {}
    for side in (EAST, WEST):
        count = blocks[side]
        if count == 0:
            continue
        when = starts[side]
        halves = tuple([InstalledColumns(0, 20, place, 20)] for place in tile.keys[side])
        since = len(p.blocks)
        values = []
        for first, code, after in ACTIVATIONS:
            n = min(4, heads - first)
            if n > 0:
                place, stream = places.queries[side].at(first), outward(side, code)
                unit = isa.MXM_QUEUE + 4 * side
                repeat = ((n, count), (2, PERIOD))
                values.append(
                    p.load(place, stream, when + after, unit, n=repeat[0], dc=repeat[1], da=(1, 0))
                )
        queries_read = min(queries_read, p.first_read(since))
        since = len(p.blocks)
        stream_blocks(p, side, (halves[0], halves[1]), tuple(values), when, heads, count)
        keys_read = min(keys_read, p.first_read(since))
        out = Stream(inward(side, 0), 4, schedule.tag())
        p.accumulate(2 * side, when + 16, AccMode.SET_EMIT, (heads, count), (2, PERIOD), out=out)
        results[side] = out
    at = _mask(p, results, starts[EAST] + RESULT, heads, blocks, places, cap)
    when, greatest = _keep_maxima(p, at, heads, blocks)
    known = bring_to_all_lanes(p, when, greatest, places)
    start = schedule.place(p, max(ready[0] - queries_read, ready[1] - keys_read))
    return start + known


def _mask(
    p: PlanePass,
    results: dict[int, Stream],
    at: int,
    heads: int,
    blocks: tuple[int, int],
    places: PlanePlaces,
    cap: float,
) -> tuple[int, Alu]:
    """Cap and mask the scores and keep them; (cycle of the east's first, ALU of the result)."""
    dc = (2, PERIOD)
    add, shift, scale, bend, widen = _MASK_ALUS
    late = 9 if cap else 0
    for side, value in results.items():
        n = (heads, blocks[side])
        t = at + (BEHIND if side == WEST else 0)
        x: Operand = value
        if cap:
            a, _ = p.op(Op.MUL_F32, t, value, imm=1.0 / cap, n=n, dc=dc, alu=scale)
            a, _ = p.op(Op.TANH, t + 3, a, n=n, dc=dc, alu=bend)
            x, _ = p.op(Op.MUL_F32, t + 6, a, imm=cap, n=n, dc=dc, alu=widen)
        t += late
        words = places.masks.at(0 if side == EAST else 1)
        mask = p.load(words, 40, t - 3, n=n, dc=dc, da=(0, 2))
        p.op(Op.SHL, t - 3, mask, imm=24, n=n, dc=dc, alu=shift)
        place = places.scores[side]
        _, out = p.op(
            Op.ADD_F32,
            t,
            x,
            Alu(shift),
            n=n,
            dc=dc,
            alu=add,
            out=outward(side, 4),
        )
        p.keep(place, out, t, n=n, dc=dc, da=(1, heads))
    return at + late, Alu(add)


def _keep_maxima(
    p: PlanePass, scored: tuple[int, Alu], heads: int, blocks: tuple[int, int]
) -> tuple[int, list[Alu]]:
    """The maximum over all blocks of each head and lane: (first cycle at which it can be taken up
    by its own ALU, the ALUs).
    """
    t0, value = scored[0] + 3, scored[1]
    last = t0 + (blocks[EAST] - 1) * PERIOD + (BEHIND if blocks[WEST] == blocks[EAST] else 0)
    found = []
    for head in range(heads):
        alu, t = sender(head, heads), t0 + 2 * head
        p.op(Op.MOV, t, value, alu=alu)
        p.op(Op.MAX_F32, t + PERIOD, value, Self(), alu=alu, n=blocks[EAST] - 1, dc=PERIOD)
        p.op(Op.MAX_F32, t + BEHIND, value, Self(), alu=alu, n=blocks[WEST], dc=PERIOD)
        p.hold_alu(alu, t, last + 2 * heads + 1)
        found.append(Alu(alu))
    return last + 2 * (heads - 1) + 3, found
