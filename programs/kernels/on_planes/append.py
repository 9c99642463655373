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

_SLICES = 16
#: Words that are turned at a time, and cycles until the next: a slice is read before it is written.
_TURN, _TURN_PERIOD = 10, 36
_TURNED = 32  # first of the streams that the transposer drives


def append_key(
    schedule: Schedule,
    spec: ChipSpec,
    key: Place,
    ready: int,
    tile: CachedTile,
    places: PlanePlaces,
) -> int:
    """The fp16 word ``key`` (near pair in the east) to its column; returns when it is readable."""
    p = PlanePass(schedule, spec)
    for number, side in enumerate((WEST, EAST)):
        last = GROUPS * side_blocks(tile.blocks)[side]
        start = 20 + _SLICES * number
        maps = places.key_maps.at(_SLICES * side)
        _scatter_copies(p, key, tile.keys[side], outward(side, 0), start, maps, 1, last)
    first = min(block["cycle"] for block in p.blocks if block["queue"] == key.queues[0])
    return schedule.place(p, ready - first) + p.ready


def _scatter_copies(
    p: PlanePass,
    source: Place,
    targets: tuple[Place, Place],
    code: int,
    start: int,
    maps: Place,
    words: int,
    last: int,
) -> None:
    """Each word of a pair sixteen times, to the slices of ``targets`` by as many words of a map.

    The copies leave ``source`` from ``start`` on, streams ``code`` and the next.
    """
    n, dc = (_SLICES, words), (1, _SLICES)
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
            dc=_SLICES,
            dcg=1,
            window=ScatterWindow(offsets, last),
        )


def append_value(
    schedule: Schedule,
    spec: ChipSpec,
    value: Place,
    ready: int,
    tile: CachedTile,
    places: PlanePlaces,
) -> int:
    """The fp32 word ``value`` (east quad) to its lane; returns when it is readable."""
    words = tile.columns // LANES_PER_SUPERLANE
    ready = _spread(schedule, spec, value, ready, words, places)
    p = PlanePass(schedule, spec)
    _scatter_copies(p, places.spread, tile.recent, 0, 20, places.recent_maps, words, 2 * words - 1)
    ready = schedule.place(p, ready - p.first_read()) + p.ready
    return _transpose(schedule, spec, ready, tile, places)


def _spread(
    schedule: Schedule, spec: ChipSpec, value: Place, ready: int, words: int, places: PlanePlaces
) -> int:
    """Sixteen dimensions a word, the same in every superlane, to ``places.spread``."""
    p = PlanePass(schedule, spec)
    t = 60
    x = p.load(value, 36, t)
    first = p.first_read()
    row = places.row
    _, narrow = p.op(Op.CVT_F32_F16, t, x, out=8, width=2, reach=row.position)
    border = isa.drive_position(isa.VXM_QUEUE, narrow.code)
    at = p.driven(t)
    far, distance = farthest((row,), border)
    apart = p.load(places.offsets[WEST], 16, at + distance, far)
    readable = p.store(row, narrow, at, border, window=ScatterWindow(apart, SUPERLANES - 1))
    for half in (0, 1):
        plane = 2 + half
        travel = isa.EAST_EDGE - isa.slice_position(row.queues[half])
        meet = readable + spec.read_cycles + travel
        install = meet - spec.mxm_install_cycles
        p.install_same(plane, places.constants[plane].at(3), install)
        p.hold_plane(plane, install, meet + words)
        byte = Place((row.queues[half],), row.address, row.symbol)
        part = p.load(byte, 16 * half, meet, isa.MXM_QUEUE + 2 * plane, n=words, da=1)
        p.activate(plane, part, meet, words, 1)
        out = Stream(32 + 4 * half, 4, schedule.tag())
        multiplied = meet + spec.mxm_multiply_cycles
        p.accumulate(plane, multiplied, AccMode.SET_EMIT, words, 1, out=out)
        leave = multiplied + spec.mxm_accumulate_cycles
        spread = places.spread
        target = Place((spread.queues[half],), spread.address, spread.symbol)
        p.store(target, Stream(out.code, 1, out.tag), leave, isa.EAST_EDGE, n=words)
    return schedule.place(p, ready - first) + p.ready


def _transpose(
    schedule: Schedule, spec: ChipSpec, ready: int, tile: CachedTile, places: PlanePlaces
) -> int:
    """The last sixteen tokens' vectors to their lanes of V^T on both sides; when readable."""
    p = PlanePass(schedule, spec)
    words = tile.columns // LANES_PER_SUPERLANE
    queue, first = isa.SXM_QUEUE + 8 + 4, 1 << 30
    parts = [
        (half, word, min(_TURN, words - word), 60 + _TURN * half + _TURN_PERIOD * (word // _TURN))
        for word in range(0, words, _TURN)
        for half in (0, 1)
    ]
    start = isa.drive_position(queue, _TURNED)
    driven = [t + spec.transpose_cycles for _, _, _, t in parts]
    maps = {
        side: _hold_map(p, places.value_maps[side], tile.values[side], driven, start)
        for side in (EAST, WEST)
    }
    for (half, word, n, t), at in zip(parts, driven, strict=True):
        value = p.load(tile.recent[half].at(word), 0, t, queue, n=n, da=1)
        first = min(first, p.blocks[-1]["cycle"])
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
            last = words * (side_blocks(tile.blocks)[side] + 1) - 1 - word
            window = ScatterWindow(maps[side], last)
            p.store(tile.values[side][half].at(word), out, at, start, n=n, window=window)
    return schedule.place(p, ready - first) + p.ready


def _hold_map(
    p: PlanePass, source: Place, targets: tuple[Place, Place], driven: list[int], start: int
) -> Stream:
    """The word of a map on its streams while turned words, driven at ``start``, pass by."""
    side = EAST if targets[0].queues[0] >= isa.SLICES_PER_HEMISPHERE else WEST
    reads = [
        at + abs(position - start) - abs(position - source.position)
        for at in (driven[0], driven[-1])
        for position in (isa.slice_position(q) for target in targets for q in target.queues)
    ]
    far, travel = farthest(targets, source.position)
    n = max(reads) + _TURN - min(reads)
    return p.load(source, outward(side, 16), min(reads) + travel, far, n=n)
