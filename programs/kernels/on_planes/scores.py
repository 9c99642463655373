"""Scores of a group's heads at every cached position, and their maxima over the blocks.

Keys are installed block by block, one pair of planes a side; the queries of up to eight heads
follow two cycles apart, each alone on its head's lanes.  The west runs three cycles behind the
east, so that one chain of ALUs serves both sides, and an ALU for each head keeps its maximum.
"""

from __future__ import annotations

from chip.isa import AccMode, Op
from chip.scheduling import Alu, Operand, Schedule, Self, Stream
from chip.spec import ChipSpec
from programs.kernels.on_planes.maximum import bring_to_all_lanes, sender
from programs.kernels.on_planes.passes import (
    BEHIND,
    EAST,
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

#: ALUs that add the mask, widen it, and cap the scores: those that take up turned maxima later.
_MASK_ALUS = (2, 3, 14, 6, 7)
#: Cycles from the last score's maximum to the first sink's.
_SINKS_AFTER = 8


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
    return schedule.place(p, ready - first, "queries") + done


def score(
    schedule: Schedule,
    spec: ChipSpec,
    runs: list[HeadRun],
    blocks: tuple[int, int],
    ready: tuple[int, int],
    places: PlanePlaces,
    cap: float,
) -> int:
    """Masked scores of (west, east) ``blocks``, and each head's maximum on all lanes.

    ready: when the copied queries and the keys are.  Returns the cycle at which the first head's
    maximum is readable; the others follow two cycles apart.
    """
    p = PlanePass(schedule, spec)
    starts = {EAST: 60, WEST: 60 + BEHIND}
    queries_read = keys_read = 1 << 30
    apart = p.period * len(runs)
    results: dict[int, Stream] = {}
    for side in (EAST, WEST):
        count, when = blocks[side], starts[side]
        if count == 0:
            continue
        since = len(p.blocks)
        out = Stream(inward(side, 0), 4, schedule.tag())
        for turn, run in enumerate(runs):
            own, queries = when + turn * p.period, places.queries[side].at(run.first)
            run_activations(p, side, queries, run.heads, own, (count, apart), 0)
            n, dc = (run.heads, count), (2, apart)
            p.accumulate(2 * side, own + p.first_sum, AccMode.SET_EMIT, n, dc, out=out)
        queries_read = min(queries_read, p.first_read(since=since))
        since = len(p.blocks)
        columns = [_columns(run.tile, side) for run in runs]
        stream_blocks(p, side, columns, [run.heads for run in runs], when, count)
        keys_read = min(keys_read, p.first_read(since=since))
        results[side] = out
    at, value = starts[EAST] + p.result, Alu(_MASK_ALUS[0])
    scored = at + (9 if cap else 0) + 3
    for turn, run in enumerate(runs):
        _mask(p, results, at + turn * p.period, run, blocks, places, cap, runs)
    when, greatest = _keep_maxima(p, scored, value, runs, blocks, places)
    known = bring_to_all_lanes(p, when, greatest, places)
    earliest = max(ready[0] - queries_read, ready[1] - keys_read)
    start = schedule.place(p, earliest, "scores")
    return start + known


def _columns(tile: CachedTile, side: int) -> tuple[list[InstalledColumns], list[InstalledColumns]]:
    """The low and the high bytes of a tile's keys on one side."""
    low, high = tile.keys[side]
    return (
        [InstalledColumns(0, GROUPS, low, GROUPS)],
        [InstalledColumns(0, GROUPS, high, GROUPS)],
    )


def _mask(
    p: PlanePass,
    results: dict[int, Stream],
    at: int,
    run: HeadRun,
    blocks: tuple[int, int],
    places: PlanePlaces,
    cap: float,
    runs: list[HeadRun],
) -> None:
    """Cap and mask a run's scores, the east's first at the VXM at ``at``, and keep them."""
    dc, heads = (2, p.period * len(runs)), sum(r.heads for r in runs)
    add, shift, scale, bend, widen = _MASK_ALUS
    late = 9 if cap else 0
    for side, value in results.items():
        n = (run.heads, blocks[side])
        t = at + (BEHIND if side == WEST else 0)
        x: Operand = value
        if cap:
            a, _ = p.op(Op.MUL_F32, t, value, imm=1.0 / cap, n=n, dc=dc, alu=scale)
            a, _ = p.op(Op.TANH, t + 3, a, n=n, dc=dc, alu=bend)
            x, _ = p.op(Op.MUL_F32, t + 6, a, imm=cap, n=n, dc=dc, alu=widen)
        t += late
        words, own = places.masks.at(0 if side == EAST else 1), run.heads // run.tokens
        tag = p.schedule.tag()
        for token in range(run.tokens):
            place, at_vxm = words.at(token * run.tile.blocks), t - 3 + 2 * own * token
            each = own, blocks[side]
            mask = p.load(place, 40, at_vxm, n=each, dc=dc, da=(0, 2), tag=tag)
        p.op(Op.SHL, t - 3, mask, imm=24, n=n, dc=dc, alu=shift)
        code, place = outward(side, 4), places.scores[side].at(run.first)
        _, out = p.op(Op.ADD_F32, t, x, Alu(shift), n=n, dc=dc, alu=add, out=code)
        p.keep(place, out, t, n=n, dc=dc, da=(1, heads))


def _keep_maxima(
    p: PlanePass,
    scored: int,
    value: Alu,
    runs: list[HeadRun],
    blocks: tuple[int, int],
    places: PlanePlaces,
) -> tuple[int, list[Alu]]:
    """The maximum over all blocks of each head and lane, its sink's included: (first cycle at which
    all can be taken up by their own ALUs, the ALUs).
    """
    apart, heads = p.period * len(runs), sum(run.heads for run in runs)
    found, ends = [], []
    for turn, run in enumerate(runs):
        for number in range(run.heads):
            alu = sender(run.first + number, heads)
            t = scored + 2 * number + turn * p.period
            p.op(Op.MOV, t, value, alu=alu)
            p.op(Op.MAX_F32, t + apart, value, Self(), alu=alu, n=blocks[EAST] - 1, dc=apart)
            p.op(Op.MAX_F32, t + BEHIND, value, Self(), alu=alu, n=blocks[WEST], dc=apart)
            level = BEHIND if blocks[WEST] == blocks[EAST] else 0
            ends.append(t + (blocks[EAST] - 1) * apart + level + 3)
            found.append((t, Alu(alu)))
    when = max(ends)
    if places.sinks is not None:
        # no score is written any more when these words are read
        at = when + _SINKS_AFTER
        sinks = p.load(places.sinks, 8, at, n=heads, da=1)
        sink, _ = p.op(Op.MOV, at, sinks, n=heads, alu=_MASK_ALUS[1])
        for number, (_, own) in enumerate(found):
            p.op(Op.MAX_F32, at + 3 + number, sink, Self(), alu=own.number)
        when = at + heads + 5
    for t, own in found:
        p.hold_alu(own.number, t, when)
    return when, [own for _, own in found]
