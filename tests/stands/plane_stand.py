"""A chip on which attention on the planes stands alone, and what its results must be.

The definition is written from the numbers of docs/numerics.md, not from the kernel: caches are
arrays of positions, and nothing of slices, blocks of words or schedules is in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from chip import numerics
from chip.checker import check
from chip.engine import Chip, Status
from chip.linking import link
from chip.program import Program
from chip.reference import ReferenceChip
from chip.scheduling import Place, Schedule, program_of
from chip.spec import ChipSpec
from programs.kernels import (
    CachedTile,
    NewValue,
    PlanePlaces,
    QueryGroup,
    append_key,
    attend_tiles,
    constant_words,
    key_map,
    lane_map_words,
    offset_words,
    recent_map,
    value_map,
)
from programs.sram import SramPlacement

SPEC = ChipSpec()
STRIPS = [SramPlacement(SPEC).weight_slices(plane) for plane in range(4)]
_WEST, _EAST = (0, 1, 2, 3), (44, 45, 46, 47)
_WEST_PAIR, _EAST_PAIR, _OTHER_PAIR = (4, 5), (48, 49), (50, 51)
KEY, VALUE = Place(_OTHER_PAIR, 3700), Place(_EAST, 3300)
HIDDEN = np.array([0xFF000000], np.uint32).view(np.float32)[0]

F32 = NDArray[np.float32]
U16 = NDArray[np.uint16]

PLACES = PlanePlaces(
    rotated=Place(_EAST, 3000),
    head_masks=Place(_WEST, 3000),
    masks=Place((51,), 0),
    key_maps=Place(_EAST_PAIR, 3000),
    value_maps=(Place(_EAST_PAIR, 3040), Place(_OTHER_PAIR, 3040)),
    recent_maps=(Place(_EAST_PAIR, 3050), Place((46, 47), 3050)),
    constants=(
        Place(STRIPS[0], 4000),
        Place(STRIPS[1], 4000),
        Place(STRIPS[2], 4000),
        Place(STRIPS[3], 4000),
    ),
    lane_maps=(Place((8, 9, 10, 11), 3500), Place((52, 53, 54, 55), 3500)),
    offsets=(Place(_WEST_PAIR, 3900), Place(_EAST_PAIR, 3900)),
    queries=(Place(_WEST_PAIR, 0), Place(_EAST_PAIR, 0)),
    weights=(Place(_WEST_PAIR, 16), Place(_EAST_PAIR, 16)),
    scores=(Place(_WEST, 0), Place(_EAST, 0)),
    pieces=(Place(_WEST_PAIR, 3800), Place(_EAST_PAIR, 3800)),
    maximum=Place(_WEST, 7000),
    sums=Place(_EAST, 2950),
    row=Place(_OTHER_PAIR, 3750),
    spread=(Place(_OTHER_PAIR, 3900), Place((44, 45), 3900)),
    outputs=Place(_EAST, 3100),
)
WITH_SINKS = replace(PLACES, sinks=Place(_WEST, 6900), sink_weights=Place(_WEST, 6950))
"""The same where heads have sinks."""


@dataclass(frozen=True)
class Shape:
    """``heads`` of each query tile; ``shared``: all heads of a tile have one key and value;
    ``cached``: cached tiles, each with as many query tiles.
    """

    heads: tuple[int, ...]
    head_lanes: int
    blocks: int
    shared: bool = True
    cached: int = 1

    @property
    def slots(self) -> int:
        """Heads a tile has room for."""
        return min(8, 304 // self.head_lanes)

    @property
    def width(self) -> int:
        """Lanes of these."""
        return self.slots * self.head_lanes

    @property
    def tile(self) -> CachedTile:
        """The first cached tile."""
        return self.tile_of(0)

    def tile_of(self, number: int) -> CachedTile:
        """A cached tile: keys in bank 0, values and recent ones in bank 1."""
        columns = self.head_lanes if self.shared else self.width
        places = [
            [(Place(STRIPS[2 * side], at), Place(STRIPS[2 * side + 1], at)) for side in range(2)]
            for at in (900 * number, 4096 + 900 * number, 7000 + 100 * number)
        ]
        keys, values, recent = places
        return CachedTile(
            self.width,
            columns,
            self.blocks,
            (keys[0], keys[1]),
            (values[0], values[1]),
            recent[1],
        )

    @property
    def group(self) -> QueryGroup:
        """The heads on the first cached tile as the kernel takes them."""
        return self.group_of(0)

    def group_of(self, number: int) -> QueryGroup:
        """The heads on a cached tile."""
        n = len(self.heads)
        return QueryGroup(tuple(range(n * number, n * number + n)), self.heads, self.head_lanes)

    @property
    def query_tiles(self) -> int:
        """Query tiles of all cached ones."""
        return len(self.heads) * self.cached


@dataclass
class Cache:
    """fp16 keys [positions, 320] and values [positions, width] of a tile, and who is hidden."""

    shape: Shape
    keys: U16 = field(init=False)
    values: U16 = field(init=False)

    def __post_init__(self) -> None:
        n = 320 * self.shape.blocks
        self.keys = np.zeros((n, 320), np.uint16)
        self.values = np.zeros((n, self.shape.width), np.uint16)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> F32:
        """Standard normal numbers for a row, the same for every head where heads share it."""
        s = self.shape
        rows = rng.standard_normal((*shape, s.head_lanes if s.shared else s.width))
        return np.tile(rows, s.slots if s.shared else 1).astype(np.float32)

    def fill(self, rng: np.random.Generator, positions: int, size: float = 1.0) -> None:
        """Keys of the given size and values for the first ``positions``."""
        rows = self.draw(rng, (positions,)) * np.float32(size)
        self.keys[:positions, : self.shape.width] = numerics.to_f16_bits(rows)
        self.values[:positions] = numerics.to_f16_bits(self.draw(rng, (positions,)))

    def attended(
        self,
        queries: U16,
        visible: NDArray[np.bool_],
        cap: float = 0.0,
        sinks: F32 | None = None,
    ) -> F32:
        """Weighted values [heads, 320] by the definition; queries [heads, 320], sinks [heads]."""
        f = np.float32
        n = len(self.keys) // 320
        blocks = [slice(320 * b, 320 * b + 320) for b in range(n)]
        scores = np.concatenate(
            [numerics.dot_f16_exact(self.keys[own], queries) for own in blocks], axis=1
        )
        if cap:
            scores = numerics.tanh(scores * f(1.0 / cap)) * f(cap)
        scores = scores + np.where(visible, f(0), HIDDEN)
        out = []
        for number, row in enumerate(scores):
            most = row.max() if sinks is None else max(row.max(), sinks[number])
            weights = numerics.to_f16_bits(numerics.exp(row - most) * f(2.0**14))
            sides: list[F32] = []
            for parity in range(min(n, 2)):
                parts = []
                for own in blocks[parity::2]:
                    columns = np.full((320, 320), 0x3C00, np.uint16)
                    columns[: self.shape.width] = self.values[own].T
                    parts.append(numerics.dot_f16_exact(columns, weights[None, own])[0])
                total = parts[0]
                for part in parts[1:]:
                    total = total + part
                sides.append(total)
            total = sides[0] if n == 1 else sides[1] + sides[0]
            amount = total[319]
            if sinks is not None:
                amount += numerics.exp(np.array([sinks[number] - most], f))[0] * f(2.0**14)
            coarse = _f16(amount * f(2.0**-16))
            fine = _f16((amount - coarse * f(2.0**16)) * f(2.0**-5))
            root = numerics.rsqrt(np.array([coarse * f(2.0**16) + fine * f(2.0**5)], f))[0]
            out.append(total * (root * root))
        return np.array(out, f)


def _f16(value: np.float32) -> np.float32:
    return np.float32(
        numerics.from_f16_bits(numerics.to_f16_bits(np.array([value], np.float32)))[0]
    )


def head_masks(shape: Shape) -> F32:
    """Ones on the lanes of each head of a tile, [slots, 320]."""
    lanes = np.arange(320) // shape.head_lanes
    return (lanes == np.arange(shape.slots)[:, None]).astype(np.float32)


def queries_of(shape: Shape, rotated: F32) -> U16:
    """fp16 queries [heads, 320] of rotated tiles [tiles, 320], each on its own lanes."""
    masks = head_masks(shape)
    rows = [rotated[t] * masks[h] for t, n in enumerate(shape.heads) for h in range(n)]
    return numerics.to_f16_bits(np.array(rows))


def tiles_of(shape: Shape, attended: F32) -> F32:
    """Query tiles [tiles, 320] whose heads' lanes come from [heads, 320]."""
    masks, out, head = head_masks(shape), np.zeros((len(shape.heads), 320), np.float32), 0
    for t, n in enumerate(shape.heads):
        for slot in range(n):
            out[t] += np.where(masks[slot] > 0, attended[head], np.float32(0))
            head += 1
    return out


def compiled(
    shape: Shape,
    context: int,
    cap: float = 0.0,
    append: bool = False,
    spec: ChipSpec = SPEC,
    places: PlanePlaces = PLACES,
) -> Program:
    """One token's attention, without findings; ``append``: of its key and value first."""
    schedule = Schedule()
    groups = tuple((shape.group_of(i), shape.tile_of(i)) for i in range(shape.cached))
    key = append_key(schedule, spec, KEY, 0, shape.tile, PLACES) if append else 0
    values = [NewValue(VALUE, shape.tile, places)] if append else []
    end = attend_tiles(schedule, spec, groups, context, (0, key, 0), places, cap, values)
    table, _, gangs = schedule.blocks()
    program = program_of([table], gangs, end)
    assert check(program, spec) == []
    return program


class Stand:
    """A chip with constants in place; rows go in and out as arrays."""

    def __init__(self, shape: Shape, spec: ChipSpec = SPEC) -> None:
        self.shape, self.spec, self.chip = shape, spec, Chip(spec, 0)
        for place in PLACES.constants:
            for queue, words in zip(place.queues, constant_words(), strict=True):
                self.chip.write_words(queue, place.address, words)
        for lanes, pair in zip(PLACES.lane_maps, PLACES.offsets, strict=True):
            self._put(lanes, np.array([lane_map_words()] * 4))
            self._put(pair, offset_words())
        self.put_words(PLACES.head_masks, head_masks(shape))

    def _put(self, place: Place, planes: NDArray[np.uint8]) -> None:
        for queue, words in zip(place.queues, planes, strict=True):
            self.chip.write_words(queue, place.address, np.ascontiguousarray(words))

    def put_words(self, place: Place, rows: NDArray[np.generic]) -> None:
        """Words of as many bytes as the place has slices, [n, 320]."""
        size = len(place.queues)
        planes = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), 320, size)
        self._put(place, np.moveaxis(planes, -1, 0))

    def put_cache(self, cache: Cache, number: int = 0) -> None:
        """Keys and values of all blocks of a cached tile."""
        tile = self.shape.tile_of(number)
        for block in range(self.shape.blocks):
            own, side, number = slice(320 * block, 320 * block + 320), 1 - block % 2, block // 2
            for half in range(2):
                keys = (cache.keys[own] >> 8 * half).astype(np.uint8)
                values = (cache.values[own, : tile.columns].T >> 8 * half).astype(np.uint8)
                for rows, place in ((keys, tile.keys), (values, tile.values)):
                    target = place[side][half]
                    for i, queue in enumerate(target.queues):
                        words = np.ascontiguousarray(rows[i::16])
                        self.chip.write_words(queue, target.address + len(words) * number, words)

    def put_recent(self, cache: Cache, position: int, number: int = 0) -> None:
        """Values of the group of sixteen that ``position`` is in, as far as they are there."""
        tile, group = self.shape.tile_of(number), position // 16 * 16
        for half, place in enumerate(tile.recent):
            for i, queue in enumerate(place.queues):
                row = cache.values[group + i, : tile.columns] * (group + i < position)
                words = np.tile(row.reshape(-1, 1, 16), (1, 20, 1)).reshape(-1, 320)
                words = (words >> 8 * half).astype(np.uint8)
                self.chip.write_words(queue, place.address, words)

    def read_cache(self) -> Cache:
        """The caches as they are; values of heads that share them are those of the first."""
        tile, cache = self.shape.tile, Cache(self.shape)
        for block in range(self.shape.blocks):
            own, side, number = slice(320 * block, 320 * block + 320), 1 - block % 2, block // 2
            for half in range(2):
                keys, values = cache.keys[own], cache.values[own].T
                for rows, place in ((keys, tile.keys), (values[: tile.columns], tile.values)):
                    target, n = place[side][half], len(rows) // 16
                    for i, queue in enumerate(target.queues):
                        words = self.chip.read_words(queue, target.address + n * number, n)
                        rows[i::16] |= words.astype(np.uint16) << np.uint16(8 * half)
        repeats = self.shape.width // tile.columns
        cache.values = np.tile(cache.values[:, : tile.columns], repeats)
        return cache

    def put_token(self, rotated: F32, visible: NDArray[np.bool_]) -> None:
        """Rotated query tiles [tiles, 320], and which positions they may see."""
        self.put_words(PLACES.rotated, rotated)
        hidden = np.where(visible, 0, 255).astype(np.uint8).reshape(-1, 320)
        self._put(PLACES.masks, hidden[None])

    def put_sinks(self, sinks: F32) -> None:
        """Each head's logit [heads], on the lanes that count."""
        lanes = np.arange(320) >= 304
        assert WITH_SINKS.sinks is not None
        self.put_words(WITH_SINKS.sinks, np.where(lanes, sinks[:, None], HIDDEN))

    def put_new(self, key: U16, value: F32, position: int) -> None:
        """The token's key [320] and value [320], and the maps of its position."""
        tile = self.shape.tile
        self.put_words(KEY, key[None])
        self.put_words(VALUE, value[None])
        self._put(PLACES.key_maps, key_map(position, tile.blocks))
        values = value_map(position, tile.blocks, tile.columns)
        for side, place in enumerate(PLACES.value_maps):
            self._put(place, values[:, side : side + 1])
        for place in PLACES.recent_maps:
            self._put(place, recent_map(position, tile.columns))

    def run(self, program: Program) -> F32:
        """The query tiles [tiles, 320] after a launch."""
        self.chip.begin(link(program, self.spec), 0)
        assert self.chip.run() == Status.DONE
        return self.read_outputs(self.chip.sram)

    def run_reference(self, program: Program) -> F32:
        """The same by the reference executor, on a copy of the SRAM."""
        chip = ReferenceChip(self.spec)
        chip.sram[:] = self.chip.sram
        chip.run(program)
        return self.read_outputs(chip.sram)

    def read_outputs(self, sram: NDArray[np.uint8]) -> F32:
        """fp32 words of the query tiles."""
        place, n = PLACES.outputs, self.shape.query_tiles
        planes = [sram[queue, place.address : place.address + n] for queue in place.queues]
        return np.ascontiguousarray(np.stack(planes, -1)).view(np.float32)[..., 0]
