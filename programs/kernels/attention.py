"""Attention of one token: rope, append, scores, softmax and the weighted sum of values.

Heads lie side by side on the lanes (docs/numerics.md).  The queries are installed as weights (one
head's lanes in each column, so a score arrives broadcast on its head's lanes), the cached keys
stream past as activations, and maximum, exponentials and sums run over time on the VXM.
Positions are data: the append is a Scatter, the mask a Gather from a sliding table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from chip import isa
from chip.isa import AccMode, Op
from chip.scheduling import Alu, Operand, Pass, Place, ScatterWindow, Schedule, Self, Stream
from chip.spec import ChipSpec

#: Tiles of a pass: a longer one would write a slice while it still reads it.
_TILES_PER_PASS = 10
_PAIR = 2  # scores run on the east plane pair
_DISTRIBUTOR = isa.SXM_QUEUE + 8


@dataclass(frozen=True)
class Segment:
    """``positions`` adjacent words of a run that may go on elsewhere; ``number``: of its word of
    the cache's map.
    """

    place: Place
    positions: int
    number: int = 0


Segments = tuple[Segment, ...]
"""A word for each position of the context, in order."""


@dataclass(frozen=True)
class HeadTile:
    """Tile ``number`` of query heads, and which tile of the cache (``cached``) they attend to.

    ``heads`` heads of ``head_lanes`` lanes each lie side by side on it.
    """

    number: int
    cached: int
    heads: int
    head_lanes: int


@dataclass(frozen=True)
class RopePlaces:
    """Words the rotary embedding uses: cos, sin (west quads), swap_map (one east slice), and where
    rotated queries go, fp32 in the east.
    """

    cos: Place
    sin: Place
    swap_map: Place
    rotated: Place


@dataclass(frozen=True)
class AttentionPlaces(RopePlaces):
    """Words attention uses; fp32 places are quads, fp16 places pairs of slices.

    head_masks, mask_table: west constants and inputs; kv_map, mask_map: MAP_PAIR words
    with Scatter offsets for each segment and Gather offsets for each window of ``mask_positions``;
    query_low/high: sixteen slices each; scores, maxima, maximum, sums: west temporaries; outputs:
    east ones; keys, values: (east pair) of each cached tile.
    In a tile of several segments each has a word more than positions.
    """

    head_masks: Place
    mask_table: Place
    mask_words: int
    mask_positions: int
    kv_map: Place
    mask_map: Place
    query_low: Place
    query_high: Place
    scores: Segments
    maxima: Place
    maximum: Place
    sums: Place
    outputs: Place
    keys: tuple[Segments, ...]
    values: tuple[Segments, ...]


Targets = Sequence[Place | Segments]
"""Where tiles go: to a Place by a plain Write, to segments by a Scatter to each."""


@dataclass(frozen=True)
class _Append:
    """One tile to one place: a Write, or a Scatter by word ``number`` of the map."""

    place: Place
    number: int | None = None
    last: int = 0  # word of the place that the map may name


def _passes(others: int, targets: Targets) -> Iterator[tuple[int, int, range, list[_Append]]]:
    """(first tile, step to the next, which of them are of ``others``, what to append) of passes.

    Tiles follow each other.  Where they go to several segments each, one is taken again and
    again: what is driven in one cycle is written once in a slice.
    """
    rows: list[list[_Append]] = []
    for target in targets:
        if isinstance(target, Place):
            rows.append([_Append(target)])
        else:
            spare = len(target) > 1
            rows.append([_Append(s.place, s.number, s.positions - 1 + spare) for s in target])
    cut = [(others + i, row) for i, row in enumerate(rows) if len(row) > 1]
    whole = [] if cut else [row[0] for row in rows]
    tiles = others + len(whole)
    for first in range(0, tiles, _TILES_PER_PASS):
        last = min(first + _TILES_PER_PASS, tiles)
        own = whole[max(first - others, 0) : max(last - others, 0)]
        yield first, 1, range(min(first, others), min(last, others)), own
    for tile, row in cut:
        for first in range(0, len(row), _TILES_PER_PASS):
            yield tile, 0, range(0), row[first : first + _TILES_PER_PASS]


def _load_run(
    p: Pass, run: Segments, code: int, when: int, unit: int, context: int, dc: int = 1
) -> Stream:
    """The first ``context`` words of a run, one every ``dc`` cycles from ``when`` at ``unit``."""
    tag = p.schedule.tag()
    for segment, first, n in _within(run, context):
        value = p.load(segment.place, code, when + first * dc, unit, n=n, dc=dc, da=1, tag=tag)
    return value


def _within(run: Segments, context: int) -> Iterator[tuple[Segment, int, int]]:
    """The segments that hold the first ``context`` words: (segment, its first word, words)."""
    first = 0
    for segment in run:
        n = min(segment.positions, context - first)
        if n > 0:
            yield segment, first, n
        first += segment.positions


def _swapped(
    p: Pass, spec: ChipSpec, x: Place, tiles: int, step: int, t: int, swap_map: Place
) -> Stream:
    """x with its half-head partners exchanged, arriving at the VXM from ``t`` on (SG4 W0)."""
    sxm = t - 12 - spec.distribute_cycles
    value = p.load(x, 0, sxm, _DISTRIBUTOR, n=tiles, da=step)
    lanes = p.load(swap_map, 8, sxm, _DISTRIBUTOR, n=tiles, da=0)
    tag = p.schedule.tag()
    p.emit(
        Op.DISTRIBUTE,
        _DISTRIBUTOR,
        sxm,
        n=tiles,
        s0=0,
        w0=4,
        want0=value.tag,
        s1=8,
        w1=1,
        want1=lanes.tag,
        out=32,
        wo=4,
        tag=tag,
    )
    p.drive(32, 4, sxm + spec.distribute_cycles + 36 + np.arange(tiles), 36, 24)
    return Stream(32, 4, tag)


def rope(
    schedule: Schedule,
    spec: ChipSpec,
    x: Place,
    query_tiles: int,
    ready: int,
    places: RopePlaces,
    keys: Targets,
) -> tuple[int, int]:
    """Rotate query tiles (to places.rotated, fp32) and then key tiles (fp16, to ``keys``).

    ``x``: adjacent fp32 words in the east, queries first.  Returns when (rotated queries, keys)
    are readable.
    """
    rotated = done = ready
    for first, step, queries, own in _passes(query_tiles, keys):
        ends = _rope_pass(schedule, spec, x.at(first), step, queries, own, ready, places)
        rotated, done = max(rotated, ends[0]), max(done, ends[1])
    return rotated, done


def _rope_pass(
    schedule: Schedule,
    spec: ChipSpec,
    x: Place,
    step: int,
    queries: range,
    keys: list[_Append],
    ready: int,
    places: RopePlaces,
) -> tuple[int, int]:
    """As ``rope``, of the query tiles ``queries`` and then of keys, ``step`` words apart."""
    p = Pass(schedule, spec)
    t = 70
    n = len(queries)
    tiles = n + len(keys)
    swapped = _swapped(p, spec, x, tiles, step, t, places.swap_map)
    first_read = p.first_read()
    value = p.load(x, 36, t, n=tiles, da=step)
    cos = p.load(places.cos, 8, t, n=tiles, da=0)
    sin = p.load(places.sin, 12, t, n=tiles, da=0)
    a, _ = p.op(Op.MUL_F32, t, value, cos, n=tiles)
    b, _ = p.op(Op.MUL_F32, t, swapped, sin, n=tiles)
    add = p.pick(16)
    rotated = done = 0
    if n:
        _, out = p.op(Op.ADD_F32, t + 3, a, b, alu=add, n=n, out=16, reach=33)
        rotated = p.keep(places.rotated.at(queries.start), out, t + 3, n=n)
    if keys:
        p.op(Op.ADD_F32, t + 3 + n, a, b, alu=add, n=len(keys))
        done = _append(p, Alu(add), t + 6 + n, keys, places)
    start = schedule.place(p, ready - first_read)
    return start + rotated, start + done


def _append(
    p: Pass, value: Alu | Stream, t: int, targets: list[_Append], places: RopePlaces
) -> int:
    """fp32 tiles, one per cycle from ``t``, as fp16 to the targets."""
    n = len(targets)
    _, out = p.op(Op.CVT_F32_F16, t, value, n=n, out=20, width=2, reach=33)
    done = 0
    for i, target in enumerate(targets):
        at = p.driven(t + i)
        place = target.place
        if target.number is None:
            done = max(done, p.store(place, out, at, 24))
            continue
        assert isinstance(places, AttentionPlaces)  # it has the map
        arrive = at + place.position - 24
        offsets = p.load(places.kv_map.at(target.number), 24, arrive, place.queues[0])
        done = max(done, p.store(place, out, at, 24, window=ScatterWindow(offsets, target.last)))
    return done


def append_values(
    schedule: Schedule,
    spec: ChipSpec,
    x: Place,
    ready: int,
    places: RopePlaces,
    targets: Targets,
) -> int:
    """fp32 tiles from adjacent words ``x`` to the fp16 ``targets``."""
    done = ready
    for first, step, _, own in _passes(0, targets):
        p = Pass(schedule, spec)
        value = p.load(x.at(first), 40, 40, n=len(own), da=step)
        first_read = p.first_read(value)
        ends = _append(p, value, 40, own, places)
        done = max(done, schedule.place(p, ready - first_read) + ends)
    return done


def attend(
    schedule: Schedule,
    spec: ChipSpec,
    tile: HeadTile,
    context: int,
    queries_ready: int,
    keys_ready: int,
    values_ready: int,
    places: AttentionPlaces,
    cap: float = 0.0,
) -> int:
    """Scores, softmax and weighted values of one tile of heads; returns when they are readable.

    cap: what scores are capped at, 0: at nothing.
    """
    copied = _copy_queries(schedule, spec, tile, queries_ready, places)
    scored = _score(schedule, spec, tile, context, copied, keys_ready, places, cap)
    p = Pass(schedule, spec)
    t = 40
    pair = p.load(places.maxima, 8, t, n=2, dc=3, da=1)
    largest = p.pick(8, 40)
    p.op(Op.MOV, t, pair, alu=largest)
    _, out = p.op(Op.MAX_F32, t + 3, pair, Self(), alu=largest, out=40, reach=0)
    p.hold_alu(largest, t + 1, t + 2)
    p.keep(places.maximum, out, t + 3)
    maximum_ready = schedule.place(p, scored - p.first_read(pair)) + p.ready
    summed = _weigh(schedule, spec, tile.cached, context, max(maximum_ready, values_ready), places)
    p = Pass(schedule, spec)
    value = p.load(places.outputs, 44, t, n=3, dc=3, da=1)
    weight = p.load(places.sums, 8, t, n=3, dc=3, da=1)
    first_read = p.first_read(value, weight)
    total, norm = p.pick(44, 16), p.pick(8)
    for stream, alu in ((value, total), (weight, norm)):
        p.op(Op.MOV, t, stream, alu=alu)
        p.op(Op.ADD_F32, t + 3, stream, Self(), alu=alu, n=2, dc=3)
    root, _ = p.op(Op.RSQRT, t + 9, Alu(norm))
    inverse, _ = p.op(Op.MUL_F32, t + 12, root, root)
    _, out = p.op(Op.MUL_F32, t + 15, Self(), inverse, alu=total, out=16, reach=33)
    p.hold_alu(total, t + 1, t + 14)
    p.hold_alu(norm, t + 1, t + 5)
    p.keep(places.outputs.at(3 + tile.number), out, t + 15)
    return schedule.place(p, summed - first_read) + p.ready


def _copy_queries(
    schedule: Schedule, spec: ChipSpec, tile: HeadTile, ready: int, places: AttentionPlaces
) -> int:
    """Each head's rotated query, alone on its lanes, as fp16 bytes on sixteen slices per byte."""
    p = Pass(schedule, spec)
    t, heads = 40, tile.heads
    value = p.load(places.rotated.at(tile.number), 36, t, n=heads, da=0)
    mask = p.load(places.head_masks, 8, t, n=heads, da=1)
    first_read = p.first_read(value)
    a, _ = p.op(Op.MUL_F32, t, value, mask, n=heads)
    _, out = p.op(Op.CVT_F32_F16, t + 3, a, n=heads, out=16, width=2)
    p.keep(places.query_low, out, t + 3, n=heads, copies=True)
    p.keep(places.query_high, Stream(17, 1, out.tag), t + 3, n=heads, copies=True)
    return schedule.place(p, ready - first_read) + p.ready


def _score(
    schedule: Schedule,
    spec: ChipSpec,
    tile: HeadTile,
    context: int,
    queries_ready: int,
    keys_ready: int,
    places: AttentionPlaces,
    cap: float,
) -> int:
    """Masked scores of all positions to ``scores``, their two running maxima to ``maxima``."""
    p = Pass(schedule, spec)
    heads, per_head = tile.heads, tile.head_lanes // 16
    groups = heads * per_head
    end = 40 + groups
    for half, place in enumerate((places.query_low, places.query_high)):
        plane = _PAIR + half
        queue = isa.MXM_QUEUE + 2 * plane
        query = p.load(
            place, 16 * half, 40, queue, n=(per_head, heads), dc=(1, per_head), da=(0, 1)
        )
        p.emit(Op.LW, queue, 40, n=groups, da=1, a=0, s0=16 * half, w0=16, want0=query.tag)
        p.emit(Op.IW, queue, end, a=groups)
        p.hold_buffer(plane, 40, end + spec.mxm_reload_gap_cycles - 1)
        p.hold_plane(plane, end, end + spec.mxm_install_cycles + 2 * context)
    queue = isa.MXM_QUEUE + 2 * _PAIR + 1
    meet = end + spec.mxm_install_cycles
    first_query = p.first_read()
    key = _load_run(p, places.keys[tile.cached], 0, meet, queue, context, dc=2)
    first_key = p.first_read(key)
    p.emit(Op.ABC, queue, meet, n=context, dc=2, s0=0, w0=2, want0=key.tag)
    p.hold(queue + 2, meet, meet + 2 * context - 1)
    tag = schedule.tag()
    p.emit(
        Op.ACC,
        queue,
        meet + spec.mxm_multiply_cycles,
        n=context,
        dc=2,
        mode=int(AccMode.SET_EMIT),
        out=32,
        wo=4,
        tag=tag,
    )
    leave = meet + spec.mxm_multiply_cycles + spec.mxm_accumulate_cycles
    p.drive(32, 4, leave + 45 + 2 * np.arange(context), 45, 24)
    t = leave + 21
    score: Operand = Stream(32, 4, tag)
    if cap:
        a, _ = p.op(Op.MUL_F32, t, score, imm=1.0 / cap, n=context, dc=2)
        a, _ = p.op(Op.TANH, t + 3, a, n=context, dc=2)
        score, _ = p.op(Op.MUL_F32, t + 6, a, imm=cap, n=context, dc=2)
        t += 9
    mask = _mask(p, spec, t, context, places)
    a, out = p.op(Op.ADD_F32, t, score, mask, n=context, dc=2, out=36, reach=0)
    kept = t
    if any(s.place.queues[0] == places.mask_table.queues[0] for s in places.scores):
        # three cycles later the slices' Writes fall between the Gathers of the mask
        kept = t + 3
        _, out = p.op(Op.MOV, kept, a, n=context, dc=2, out=44, reach=0)
    for segment, first, n in _within(places.scores, context):
        p.keep(segment.place, out, kept + 2 * first, n=n, dc=2)
    _running(p, Op.MAX_F32, t + 3, a, context, 2, 2, places.maxima, 40, 0)
    return schedule.place(p, max(queries_ready - first_query, keys_ready - first_key)) + p.ready


def _mask(p: Pass, spec: ChipSpec, t: int, context: int, places: AttentionPlaces) -> Stream:
    """The sliding mask table from the words the map names, one row per score, on E8..E11.

    Each window of ``mask_positions`` words takes its own offset from the map.
    """
    table, each = places.mask_table, places.mask_positions
    tag, map_tag = p.schedule.tag(), p.schedule.tag()
    gathered = p.gathered(table, 8, t)
    for number, first in enumerate(range(0, context, each)):
        n, late = min(each, context - first), 2 * first
        maps, unit = places.mask_map.at(number), table.queues[0]
        offset = p.load(maps, 20, gathered + late, unit, n=n, dc=2, da=0, tag=map_tag)
        window = ScatterWindow(offset, places.mask_words - 1)
        p.gather(table, 8, t + late, window, n=n, dc=2, da=1, tag=tag)
    return Stream(8, 4, tag)


def _running(
    p: Pass,
    op: Op,
    t: int,
    x: Alu,
    n: int,
    dc: int,
    classes: int,
    target: Place,
    code: int,
    reach: int,
) -> None:
    """Running ``op`` over n results of ``x``: ``classes`` interleaved totals go to ``target``."""
    alu = p.pick(code)
    p.op(Op.MOV, t, x, alu=alu, n=classes, dc=dc)
    p.op(op, t + classes * dc, x, Self(), alu=alu, n=n - 2 * classes, dc=dc)
    last = t + (n - classes) * dc
    _, out = p.op(op, last, x, Self(), alu=alu, n=classes, dc=dc, out=code, reach=reach)
    for i in range(classes):  # the word of a total is its class, whatever the context length
        p.keep(target.at((n - classes + i) % classes), out, last + i * dc)
    p.hold_alu(alu, t, last + (classes - 1) * dc)


def _weigh(
    schedule: Schedule,
    spec: ChipSpec,
    cached: int,
    context: int,
    ready: int,
    places: AttentionPlaces,
) -> int:
    """exp(score - maximum), its three running sums, and those of its products with the values."""
    p = Pass(schedule, spec)
    t = 40
    score = _load_run(p, places.scores, 8, t, isa.VXM_QUEUE, context)
    maximum = p.load(places.maximum, 12, t, n=context, da=0)
    value = _load_run(p, places.values[cached], 40, t + 3, isa.VXM_QUEUE, context)
    first_read = p.first_read()
    a, _ = p.op(Op.SUB_F32, t, score, maximum, n=context)
    weight, _ = p.op(Op.EXP, t + 3, a, n=context)
    wide, _ = p.op(Op.CVT_F16_F32, t + 3, value, n=context)
    product, _ = p.op(Op.MUL_F32, t + 6, weight, wide, n=context)
    _running(p, Op.ADD_F32, t + 6, weight, context, 1, 3, places.sums, 52, 0)
    _running(p, Op.ADD_F32, t + 9, product, context, 1, 3, places.outputs, 16, 45)
    return schedule.place(p, ready - first_read) + p.ready
