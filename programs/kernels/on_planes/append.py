"""New keys and values to where the planes read them.

A key is a column: its word goes to one of sixteen slices of each strip, by a Scatter that writes a
spare word of the others.  A value is a lane of as many words as it has dimensions: sixteen tokens'
vectors, every superlane with the same sixteen dimensions, go through the transposer, and a Scatter
writes the one superlane of each word that these tokens have.
"""

from __future__ import annotations

import numpy as np

from chip import isa
from chip.isa import LANES_PER_SUPERLANE, SUPERLANES, AccMode, Op
from chip.scheduling import Place, ScatterWindow, Schedule, Stream
from chip.spec import ChipSpec
from programs.kernels.on_planes.passes import EAST, GROUPS, WEST, PlanePass, farthest, outward
from programs.kernels.on_planes.places import CachedTile, PlanePlaces, side_blocks

#: Words that ``spread_values`` makes at most: later ones would be read where the first are written.
SPREAD_WORDS = 80
_SLICES = 16
#: Words of a value that are staged at a time: few find room between other streams.
_STAGED = 1
#: Words that are turned at a time.
_TURN = 10
_TURNED = 32  # first of the streams that the transposer drives


def append_key(
    schedule: Schedule,
    spec: ChipSpec,
    key: Place,
    ready: int,
    tile: CachedTile,
    places: PlanePlaces,
    sides: tuple[int, ...] = (WEST, EAST),
) -> int:
    """The fp16 word ``key`` (near pair in the east) to its column; returns when it is readable.

    sides: those of which the words, or the spare ones, are written; it has one column of all.
    """
    p = PlanePass(schedule, spec)
    copies = []
    for number, side in enumerate(sides):
        last = GROUPS * side_blocks(tile.blocks)[side]
        start = 20 + _SLICES * number
        maps = places.key_maps.at(_SLICES * side)
        targets, code = tile.keys[side], outward(side, 0)
        copies.append(_scatter_copies(p, key, targets, code, start, maps, 1, last))
    return schedule.place(p, ready - p.first_read(*copies), "new key") + p.ready


def _scatter_copies(
    p: PlanePass,
    source: Place,
    targets: tuple[Place, Place],
    code: int,
    start: int,
    maps: Place,
    words: int,
    last: int,
) -> Stream:
    """Each word of a pair to the slices of ``targets``, once each, by as many words of a map.

    The copies, which are returned, leave ``source`` from ``start`` on, streams ``code`` and the
    next.
    """
    copies = len(targets[0].queues)
    n, dc = (copies, words), (1, copies)
    driven = start + p.spec.read_cycles
    far, distance = farthest(targets, source.position)
    at, unit = driven + distance, far
    value = p.load(source, code, at, unit, n=n, dc=dc, da=(0, 1))
    offsets = p.load(maps, code + 8, at, unit, n=n, dc=dc, da=(1, 0))
    for half, target in enumerate(targets):
        p.store(
            target,
            Stream(code + half, 1, value.tag),
            driven,
            source.position,
            n=words,
            dc=copies,
            dcg=1,
            window=ScatterWindow(offsets, last),
        )
    return value


def stage_value(
    schedule: Schedule,
    spec: ChipSpec,
    number: int,
    ready: int,
    tile: CachedTile,
    places: PlanePlaces,
) -> int:
    """Value ``number`` of those spread beside the last tokens'; returns when it is readable.

    Half of the sixteen slices take copies of one of two places, as words of one of two maps say.
    """
    words = tile.columns // LANES_PER_SUPERLANE
    staged = ready
    for word in range(0, words, _STAGED):
        p = PlanePass(schedule, spec)
        n, last = min(_STAGED, words - word), 2 * words - 1 - word
        for part in (0, 1):
            source = places.spread[part].at(words * number + word)
            maps = places.recent_maps[part].at(_SLICES // 2 * part)
            first = _SLICES // 2 * part
            low, high = (t.part(first, first + _SLICES // 2).at(word) for t in tile.recent)
            _scatter_copies(p, source, (low, high), 16 * part + 6, 20, maps, n, last)
        earliest = ready - p.first_read()
        staged = max(staged, schedule.place(p, earliest, "new value") + p.ready)
    return staged


def spread_values(
    schedule: Schedule,
    spec: ChipSpec,
    values: tuple[Place, ...],
    ready: int,
    columns: int,
    places: PlanePlaces,
) -> int:
    """Words of sixteen dimensions of each value, the same in every superlane, to
    ``places.spread``; when readable.
    """
    p = PlanePass(schedule, spec)
    t, count, words = 60, len(values), columns // LANES_PER_SUPERLANE
    tag, row = schedule.tag(), places.row
    for number, value in enumerate(values):
        x = p.load(value, 36, t + number, tag=tag)
    first = p.first_read()
    _, narrow = p.op(Op.CVT_F32_F16, t, x, n=count, out=8, width=2)
    border = isa.drive_position(isa.VXM_QUEUE, narrow.code)
    at = p.driven(t)
    far, distance = farthest((row,), border)
    apart = p.load(places.offsets[WEST], 16, at + distance, far, n=count)
    window = ScatterWindow(apart, SUPERLANES * count - 1)
    readable = p.store(row, narrow, at, border, n=count, da=SUPERLANES, window=window)
    n, dc = (words, count), (1, words)
    for half in (0, 1):
        plane = 2 + half
        travel = isa.EAST_EDGE - isa.slice_position(row.queues[half])
        meet = readable + spec.read_cycles + travel
        install = meet - spec.mxm_install_cycles
        p.install_same(plane, places.constants[plane].at(3), install)
        p.hold_plane(plane, install, meet + words * count)
        byte = Place((row.queues[half],), row.address, row.symbol)
        queue, da = isa.MXM_QUEUE + 2 * plane, (1, SUPERLANES)
        part = p.load(byte, 16 * half, meet, queue, n=n, dc=dc, da=da)
        p.activate(plane, part, meet, n, dc)
        out = Stream(32 + 4 * half, 4, schedule.tag())
        multiplied = meet + spec.mxm_multiply_cycles
        p.accumulate(plane, multiplied, AccMode.SET_EMIT, n, dc, out=out)
        leave = multiplied + spec.mxm_accumulate_cycles
        for spread in places.spread:
            target = Place((spread.queues[half],), spread.address, spread.symbol)
            byte_out = Stream(out.code, 1, out.tag)
            p.store(target, byte_out, leave, isa.EAST_EDGE, n=words * count)
    return schedule.place(p, ready - first, "new values") + p.ready


def turn_values(
    schedule: Schedule, spec: ChipSpec, ready: int, tile: CachedTile, places: PlanePlaces
) -> int:
    """The last sixteen tokens' vectors to their lanes of V^T on both sides; when readable.

    A few words a pass, which find room between other words on their streams.
    """
    words, done = tile.columns // LANES_PER_SUPERLANE, ready
    for word in range(0, words, _TURN):
        for half in (0, 1):
            part = half, word, min(_TURN, words - word)
            done = max(done, _turn(schedule, spec, ready, tile, places, part))
    return done


def _turn(
    schedule: Schedule,
    spec: ChipSpec,
    ready: int,
    tile: CachedTile,
    places: PlanePlaces,
    part: tuple[int, int, int],
) -> int:
    """Words of ``turn_values``; part: which bytes, the first word and how many."""
    p, t, (half, word, n) = PlanePass(schedule, spec), 60, part
    words = tile.columns // LANES_PER_SUPERLANE
    queue = isa.SXM_QUEUE + 8 + 4
    start = isa.drive_position(queue, _TURNED)
    at = t + spec.transpose_cycles
    value = p.load(tile.recent[half].at(word), 0, t, queue, n=n, da=1)
    out = Stream(_TURNED, _SLICES, schedule.tag())
    p.emit(
        Op.TRANSPOSE,
        queue,
        t,
        n=n,
        s0=0,
        w0=_SLICES,
        want0=value.tag,
        out=out.code,
        wo=_SLICES,
        tag=out.tag,
    )
    turned = isa.diagonal(out.code, start, at) + np.arange(n)
    p.drive(out.code, _SLICES, turned, start, tag=out.tag)
    for side in (EAST, WEST):
        target = tile.values[side][half]
        offsets = _hold_map(p, places.value_maps[side], target, at, start, n)
        last = words * (side_blocks(tile.blocks)[side] + 1) - 1 - word
        window = ScatterWindow(offsets, last)
        p.store(target.at(word), out, at, start, n=n, window=window)
    return schedule.place(p, ready - p.first_read(value), "values to lanes") + p.ready


def _hold_map(
    p: PlanePass, source: Place, target: Place, driven: int, start: int, words: int
) -> Stream:
    """The word of a map on its streams while ``words`` words, driven at ``start``, pass by."""
    side = EAST if target.queues[0] >= isa.SLICES_PER_HEMISPHERE else WEST
    positions = [isa.slice_position(q) for q in target.queues]
    reads = [driven + abs(at - start) - abs(at - source.position) for at in positions]
    far, travel = farthest((target,), source.position)
    n = max(reads) + words - min(reads)
    return p.load(source, outward(side, 16), min(reads) + travel, far, n=n)
