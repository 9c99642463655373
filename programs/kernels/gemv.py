"""Matrix-vector products: weights stream through the planes, activations meet them in the gaps.

One *round* runs up to four column blocks, one per plane (int8), or two, one per plane pair
(fp16).  For every K tile a plane takes LW for m cycles on its sixteen streams, one IW, and the
tile's activation vectors in the seven-cycle gap before the next LW: two int8 digits (hi, lo)
three cycles apart, or one fp16 vector or two (what is large, and the rest).  ACC adds the tiles;
the last one emits.  The planes of a round run one cycle apart, so that one VXM chain serves all:
(hi << 7) + lo, to fp32, times scale; or large 2^12 + rest.

The activations of a *chunk* of tokens meet a tile's weights one after another, so all share one
install: close together, but in the last tile as far apart as the VXM chain can take them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chip import isa
from chip.isa import Op
from chip.scheduling import Alu, Operand, Pass, Place, Repeat, Schedule, Stream
from chip.spec import ChipSpec
from programs.kernels.planes import (
    Steering,
    Weights,
    accumulate,
    drive_sums,
    install_weights,
)

#: Planes in the order in which a round fills them, and the plane pairs (named by the even plane).
PLANE_ORDER = (2, 3, 0, 1)
PAIR_ORDER = (2, 0)

#: Power of two of the first part of an fp16 activation in two.
PART_BITS = 12

#: Stream codes of a round, by hemisphere (0 west, 1 east).
_RESULT = (16, 48)  # accumulators to VXM: SG4 4, eastward from the west, westward from the east
_SCALE = 20  # WEST_QUAD to VXM, eastward
_DYNAMIC = 56  # a quad in the east to VXM, westward
_OUT = 28
_MAPS = (24, 60)  # two pairs each, inward past the weights
_ADDED = 52  # targets to VXM, westward


@dataclass(frozen=True)
class ColumnBlock:
    """A column block and the plane that it is for; of a pair (fp16) the even one."""

    weights: Weights
    plane: int

    @property
    def groups(self) -> int:
        """Its columns, in sixteens."""
        return self.weights.groups


@dataclass(frozen=True)
class Chunk:
    """``tokens`` activations that share a round, and the words from those of each to the next's.

    activation: of a K tile; dynamic: of the scale; target: of the results.
    """

    tokens: int
    activation: int
    dynamic: int
    target: int


#: A round of one activation.
ONE_TOKEN = Chunk(1, 0, 0, 0)


@dataclass(frozen=True)
class Activations:
    """K tiles as int8 digits or fp16 bytes, once for each hemisphere.

    ``first`` and ``second`` are (west, east) places: digits hi and lo, or bytes low and high, of
    the first token of ``chunk``.
    """

    first: tuple[Place, Place]
    second: tuple[Place, Place]
    chunk: Chunk = ONE_TOKEN

    def at(self, words: int) -> Activations:
        """Those ``words`` words further on."""
        (a, b), (c, d) = self.first, self.second
        return Activations((a.at(words), b.at(words)), (c.at(words), d.at(words)), self.chunk)


#: Cycles from token to token in the last tile, by parts of an activation.  Two parts of two planes
#: of a hemisphere arrive 0, 1, 3 and 4 cycles after the first, all on one stream group.
_TOKEN_CYCLES = {1: 2, 2: 5}


@dataclass(frozen=True)
class _Vectors:
    """The activation vectors of a round: ``parts`` of each token of ``chunk``.

    least: cycles that a plane takes from one vector to the next.
    """

    chunk: Chunk
    parts: int
    least: int

    @property
    def count(self) -> int:
        """Vectors of a K tile."""
        return self.parts * self.chunk.tokens

    @property
    def spacing(self) -> int:
        """Cycles between two of a tile but the last one."""
        return 3 if self.chunk.tokens == 1 else self.least

    @property
    def last_span(self) -> int:
        """Cycles from the first vector of the last tile to its last one."""
        return _TOKEN_CYCLES[self.parts] * (self.chunk.tokens - 1) + 3 * (self.parts - 1)

    def period(self, spec: ChipSpec, groups: int) -> int:
        """Cycles from tile to tile: vectors fill the gap between two tiles' weights, or more."""
        streaming = spec.mxm_install_cycles + self.spacing * (self.count - 1) + 1
        return groups + max(spec.mxm_reload_gap_cycles, streaming)

    def repeats(self, n: int, dc: int = 1) -> tuple[Repeat, Repeat]:
        """``n`` blocks' results, ``dc`` apart, of every token as the last tile gives them."""
        if self.chunk.tokens == 1:
            return n, dc
        return (n, self.chunk.tokens), (dc, _TOKEN_CYCLES[self.parts])

    def of_block(self) -> tuple[int, int, int]:
        """How often, how many cycles and how many words apart one block has results."""
        if self.chunk.tokens == 1:
            return 1, 1, 1
        return self.chunk.tokens, _TOKEN_CYCLES[self.parts], self.chunk.target

    def multiply(
        self, p: Pass, queue: int, first: int, steps: int, period: int, stream: Stream
    ) -> None:
        """ABC of every tile's vectors from ``first`` on."""
        columns: dict[str, Any] = {"s0": stream.code, "w0": stream.width, "want0": stream.tag}
        if self.chunk.tokens == 1:
            p.emit(Op.ABC, queue, first, n=(self.parts, steps), dc=(3, period), **columns)
            return
        apart = (self.spacing, period)
        p.emit(Op.ABC, queue, first, n=(self.count, steps - 1), dc=apart, **columns)
        n, dc = self.repeats(self.parts, 3)
        p.emit(Op.ABC, queue, first + (steps - 1) * period, n=n, dc=dc, **columns)

    def read(
        self,
        p: Pass,
        place: Place,
        parts: range,
        when: tuple[int, int],
        to: tuple[int, int, int],
        steps: int,
    ) -> Stream:
        """Read ``parts`` of every tile's vectors, which lie side by side.

        when: the first vector meets its tile, and the period; to: code, queue and tag.
        """
        (first, period), (code, queue, tag) = when, to
        tile, chunk = len(parts), self.chunk
        if chunk.tokens == 1:
            n: Repeat = steps if tile < self.parts else (tile, steps)
            dc: Repeat = period if tile < self.parts else (3, period)
            da: Repeat = 1 if tile < self.parts else (1, tile)
            return p.load(place, code, first + 3 * parts[0], queue, n=n, dc=dc, da=da, tag=tag)
        for word, part in enumerate(parts):
            if steps > 1:
                p.load(
                    place.at(word),
                    code,
                    first + self.spacing * part,
                    queue,
                    n=(chunk.tokens, steps - 1),
                    dc=(self.spacing * self.parts, period),
                    da=(chunk.activation, tile),
                    tag=tag,
                )
            value = p.load(
                place.at(word + (steps - 1) * tile),
                code,
                first + (steps - 1) * period + 3 * part,
                queue,
                n=chunk.tokens,
                dc=_TOKEN_CYCLES[self.parts],
                da=chunk.activation,
                tag=tag,
            )
        return value

    def accumulate(
        self, p: Pass, queue: int, first: int, steps: int, period: int, out: Stream
    ) -> None:
        """ACC of every tile's products; the sums leave for ``out``."""
        if self.chunk.tokens == 1:
            at = accumulate(p, queue, first, self.parts, 3, steps, period, out)
            drive_sums(p, out, at, self.parts, 3)
            return
        repeats = self.repeats(self.parts, 3)
        at = accumulate(p, queue, first, self.count, self.spacing, steps, period, out, repeats)
        drive_sums(p, out, at, *repeats)


@dataclass(frozen=True)
class Slot:
    """An expert of a choice, whose weights a round takes: the maps that say where they lie.

    maps: low and high bytes, west and east, readable from ``ready`` on.  which: one of two pairs of
    streams; rounds that follow each other take different pairs, so that neither waits for the
    other's last words.  added: where given, results are added to what their targets hold from then
    on (int8: with a dynamic scale; fp16: of two parts).  scaled: from when on the scales are there.
    """

    maps: tuple[Place, Place]
    ready: int
    which: int = 0
    added: int | None = None
    scaled: int = 0

    def steering(self, schedule: Schedule) -> list[Steering]:
        """For the two hemispheres."""
        return [
            Steering(place, code + 2 * self.which, schedule.tag())
            for place, code in zip(self.maps, _MAPS, strict=True)
        ]

    def flow(
        self, p: Pass, blocks: list[ColumnBlock], steering: list[Steering], others: list[Stream]
    ) -> int:
        """Let the maps flow past the planes of ``blocks``; when the pass may begin at the earliest.

        others: what results are added to.
        """
        maps = [steering[side].flow(p) for side in sorted({b.plane // 2 for b in blocks})]
        start = self.ready - min(maps)
        if self.added is None:
            return start
        return max(start, self.added - p.first_read(*others))


def matmul_round(
    schedule: Schedule,
    spec: ChipSpec,
    blocks: list[ColumnBlock],
    k_tiles: int,
    activations: Activations,
    activations_ready: int,
    scale: Place,
    dynamic: Place | None,
    targets: list[Place],
    slot: Slot | None = None,
) -> int:
    """Schedule one int8 round; returns the cycle at which all results are readable.

    scale: fp32 words in the order of ``blocks`` on WEST_QUAD; dynamic: one fp32 word in the east;
    targets: one fp32 word in the east per block; slot: of several experts' weights, those meant.
    Of a chunk of activations, dynamic and targets are the first token's; with a slot it has one.
    """
    p = Pass(schedule, spec)
    steering = None if slot is None else slot.steering(schedule)
    widest = max(block.groups for block in blocks)
    chunk = activations.chunk
    vectors = _Vectors(chunk, 2, 1)
    period = vectors.period(spec, widest)
    install = spec.mxm_install_cycles
    through = spec.mxm_multiply_cycles + spec.mxm_accumulate_cycles
    hops = 21
    result_tags = (schedule.tag(), schedule.tag())
    taken: list[Stream] = []
    others: list[Stream] = []
    for i, block in enumerate(blocks):
        side = block.plane // 2
        outward = 32 if side == 0 else 0
        code = outward + 16 * (block.plane % 2)
        queue = isa.MXM_QUEUE + 2 * block.plane
        end = i + widest
        loaded = end - block.groups
        install_weights(
            p,
            block.weights,
            0,
            code,
            queue,
            (loaded, end),
            k_tiles,
            period,
            None if steering is None else steering[side],
        )
        last = end + (k_tiles - 1) * period
        p.hold_buffer(block.plane, loaded, last + spec.mxm_reload_gap_cycles - 1)
        p.hold_plane(block.plane, end, last + install + vectors.last_span)
        tag = schedule.tag()
        meet = end + install
        for digit, place in enumerate((activations.first[side], activations.second[side])):
            part = range(digit, digit + 1)
            to = (code, queue, tag)
            taken.append(vectors.read(p, place, part, (meet, period), to, k_tiles))
        vectors.multiply(p, queue + 1, meet, k_tiles, period, Stream(code, 1, tag))
        out = Stream(_RESULT[side], 4, result_tags[side])
        acc = meet + spec.mxm_multiply_cycles
        vectors.accumulate(p, queue + 1, acc, k_tiles, period, out)
    at = widest + install + (k_tiles - 1) * period + through + hops
    value = _combine_digits(p, blocks, at, result_tags, vectors)
    n, dc = vectors.repeats(len(blocks))
    a, _ = p.op(Op.CVT_I32_F32, at + 6, value, n=n, dc=dc)
    factor = p.load(scale, _SCALE, at + 9, n=n, dc=dc, da=_strides(chunk, 1, 0))
    adding = slot is not None and slot.added is not None
    assert not adding or dynamic is not None
    if dynamic is None:
        a, out = p.op(Op.MUL_F32, at + 9, a, factor, n=n, dc=dc, out=_OUT)
        when = at + 9
    else:
        a, _ = p.op(Op.MUL_F32, at + 9, a, factor, n=n, dc=dc)
        s = p.load(dynamic, _DYNAMIC, at + 12, n=n, dc=dc, da=_strides(chunk, 0, chunk.dynamic))
        when = at + 12
        if not adding:
            a, out = p.op(Op.MUL_F32, when, a, s, n=n, dc=dc, out=_OUT)
        else:
            a, _ = p.op(Op.MUL_F32, when, a, s, n=n, dc=dc)
            when += 3
            others.append(_load_words(p, targets, when))
            a, out = p.op(Op.ADD_F32, when, others[0], a, n=n, dc=dc, out=_OUT)
    _store_words(p, targets, out, when, vectors)
    earliest = activations_ready - p.first_read(*taken)
    if slot is not None and steering is not None:
        earliest = max(earliest, slot.flow(p, blocks, steering, others))
        earliest = max(earliest, slot.scaled - p.first_read(factor))
    return schedule.place(p, earliest, "matmul round") + p.ready


def _strides(chunk: Chunk, block: int, token: int) -> Repeat:
    """Words from block to block, and from token to token where there are several."""
    return block if chunk.tokens == 1 else (block, token)


def _combine_digits(
    p: Pass, blocks: list[ColumnBlock], at: int, tags: tuple[int, int], vectors: _Vectors
) -> Operand:
    """(hi << 7) + lo for all planes of a round on one ALU pair, dispatched at ``at`` + 3 + i."""
    shift, add = p.pick(16), p.pick(16)
    for side in (1, 0):
        slots = [i for i, block in enumerate(blocks) if block.plane // 2 == side]
        if slots:
            digit = Stream(_RESULT[side], 4, tags[side])
            n, dc = vectors.repeats(len(slots))
            p.op(Op.SHL, at + slots[0], digit, imm=7, alu=shift, n=n, dc=dc)
            p.op(Op.ADD_I32, at + 3 + slots[0], digit, Alu(shift), alu=add, n=n, dc=dc)
    return Alu(add)


def _load_words(p: Pass, places: list[Place], when: int) -> Stream:
    """One of ``places`` a cycle from ``when`` on; neighbours are read together."""
    tag = p.schedule.tag()
    i = 0
    while i < len(places):
        n = 1
        while i + n < len(places) and places[i + n] == places[i].at(n):
            n += 1
        stream = p.load(places[i], _ADDED, when + i, n=n, da=1, tag=tag)
        i += n
    return stream


def _store_words(p: Pass, targets: list[Place], out: Stream, when: int, vectors: _Vectors) -> None:
    """Write result i, driven i later, to targets[i], in as few blocks as possible."""
    i = 0
    while i < len(targets):
        n = 1
        while i + n < len(targets) and targets[i + n] == targets[i].at(n):
            n += 1
        count, dc = vectors.repeats(n)
        da = _strides(vectors.chunk, 1, vectors.chunk.target)
        p.keep(targets[i], out, when + i, n=count, dc=dc, da=da)
        i += n


def matmul16_round(
    schedule: Schedule,
    spec: ChipSpec,
    blocks: list[ColumnBlock],
    k_tiles: int,
    activations: Activations,
    activations_ready: int,
    targets: list[Place],
    parts: int = 1,
    slot: Slot | None = None,
) -> int:
    """Schedule one fp16 round on up to two plane pairs; returns when the results are readable.

    parts: vectors a K tile has in ``activations``, one behind the other: 1, or 2 (of an element,
    what counts 2^PART_BITS, and the rest).  targets: one fp32 word per block in the east.  slot:
    of several experts' weights, those meant.  Of a chunk targets are as in ``matmul_round``.
    """
    p = Pass(schedule, spec)
    steering = None if slot is None else slot.steering(schedule)
    widest = max(block.groups for block in blocks)
    vectors = _Vectors(activations.chunk, parts, 2)
    period = vectors.period(spec, widest)
    install = spec.mxm_install_cycles
    result_tags = (schedule.tag(), schedule.tag())
    taken: list[Stream] = []
    others: list[Stream] = []
    for i, block in enumerate(blocks):
        side = block.plane // 2
        outward = 32 if side == 0 else 0
        queue = isa.MXM_QUEUE + 2 * block.plane
        end = i + widest
        loaded = end - block.groups
        for half in range(2):
            code, lw_queue = outward + 16 * half, queue + 2 * half
            install_weights(
                p,
                block.weights,
                half,
                code,
                lw_queue,
                (loaded, end),
                k_tiles,
                period,
                None if steering is None else steering[side],
            )
            last = end + (k_tiles - 1) * period
            plane = block.plane + half
            p.hold_buffer(plane, loaded, last + spec.mxm_reload_gap_cycles - 1)
            p.hold_plane(plane, end, last + install + vectors.last_span + 1)
        tag = schedule.tag()
        meet = end + install
        for byte, place in enumerate((activations.first[side], activations.second[side])):
            to = (outward + byte, queue, tag)
            taken.append(vectors.read(p, place, range(parts), (meet, period), to, k_tiles))
        vectors.multiply(p, queue + 1, meet, k_tiles, period, Stream(outward, 2, tag))
        last_part = meet + (k_tiles - 1) * period + vectors.last_span
        p.hold(queue + 3, meet, last_part + 1)
        acc = meet + spec.mxm_multiply_cycles
        out = Stream(_RESULT[side], 4, result_tags[side])
        vectors.accumulate(p, queue + 1, acc, k_tiles, period, out)
    through = spec.mxm_multiply_cycles + spec.mxm_accumulate_cycles
    at = widest + install + (k_tiles - 1) * period + through + 21
    shift, alu = p.pick(16), p.pick(16, _OUT)
    adding = slot is not None and slot.added is not None
    assert not adding or parts == 2
    last_alu = p.pick(_ADDED, _OUT) if adding else alu
    for i, block in enumerate(blocks):
        side = block.plane // 2
        value = Stream(_RESULT[side], 4, result_tags[side])
        n, dc, da = vectors.of_block()
        if parts == 1:
            done = at + i
            _, out = p.op(Op.MOV, done, value, alu=alu, n=n, dc=dc, out=_OUT)
        else:
            done = at + 3 + i
            p.op(Op.MUL_F32, at + i, value, imm=2.0**PART_BITS, alu=shift, n=n, dc=dc)
            if adding:
                p.op(Op.ADD_F32, done, value, Alu(shift), alu=alu)
                done += 3
                others.append(_load_words(p, targets[i : i + 1], done))
                _, out = p.op(Op.ADD_F32, done, others[-1], Alu(alu), alu=last_alu, out=_OUT)
            else:
                _, out = p.op(Op.ADD_F32, done, value, Alu(shift), alu=alu, n=n, dc=dc, out=_OUT)
        p.keep(targets[i], out, done, n=n, dc=dc, da=da)
    earliest = activations_ready - p.first_read(*taken)
    if slot is not None and steering is not None:
        earliest = max(earliest, slot.flow(p, blocks, steering, others))
    return schedule.place(p, earliest, "matmul16 round") + p.ready
