"""Where attention on the planes lies: keys and values as weights, and the words of its passes.

Keys and transposed values lie on the slices that feed the planes, beside the weights: keys from
word 0 up, values below the temporaries.  Even blocks of 320 positions are in the east, odd ones in
the west.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from chip.scheduling import CompileError, Place
from programs.decoder import ATTENTION, Layout, Stage
from programs.decoder.places.caches import LAYER_VARIANTS, CacheForm
from programs.kernels import BLOCK, CachedTile, PlanePlaces
from programs.sram import EAST_QUAD, WEST_QUAD, SramPlacement, Symbols

#: Heads that a run serves, and words of every head of a block of positions.
_HEADS = 8
_KEYS = BLOCK // 16
_PIECES, _LANE_MAPS, _CONSTANTS = 20, 136, 4
#: Words of the maps of keys, values (of each side) and recent values, on a pair of slices.
KEY_MAPS, VALUE_MAPS, RECENT_MAPS = 32, 1, 16
_WEST_PAIR, _EAST_PAIR = (4, 5), (48, 49)
_EAST_OTHER = (50, 51)
_RECENT_PAIRS, _SPREAD_PAIRS = ((48, 49), (46, 47)), ((50, 51), (44, 45))
_MASKS = (51,)
_LANE_QUADS = ((8, 9, 10, 11), (52, 53, 54, 55))


@dataclass(frozen=True)
class OnPlanes:
    """What a stage's attention on the planes uses besides its caches.

    words: those of the kernels, ``masks`` for layers that see every position.  sliding: masks of
    layers with a window.  keys: fp16 words of a position's new keys, a tile each.  blocks: of 320
    positions that the caches hold.
    """

    words: PlanePlaces
    sliding: Place | None
    keys: Place
    blocks: int

    def token(self, number: int, layout: Layout) -> OnPlanes:
        """What token ``number`` of a chunk uses: its own inputs, keys and tiles."""

        def own(place: Place, words: int) -> Place:
            return place.at(number * words)

        (west, east), (one, other) = self.words.value_maps, self.words.recent_maps
        words = replace(
            self.words,
            rotated=own(self.words.rotated, layout.q_tiles),
            outputs=own(self.words.outputs, layout.q_tiles),
            masks=own(self.words.masks, self.blocks),
            key_maps=own(self.words.key_maps, KEY_MAPS),
            value_maps=(own(west, VALUE_MAPS), own(east, VALUE_MAPS)),
            recent_maps=(own(one, RECENT_MAPS), own(other, RECENT_MAPS)),
        )
        sliding = None if self.sliding is None else own(self.sliding, self.blocks)
        return OnPlanes(words, sliding, own(self.keys, layout.cache_tiles), self.blocks)


def blocks_of(context: int) -> int:
    """Blocks of 320 positions that hold ``context``."""
    return -(-context // BLOCK)


def cached_words(layout: Layout, context: int) -> tuple[tuple[int, int, int], ...]:
    """(keys, values, recent) words of a cached tile on every slice of the (west, east) planes."""
    blocks, width = blocks_of(context), layout.value_lanes // 16
    west, east = blocks // 2, blocks - blocks // 2
    return (
        (_KEYS * west + 1, width * (west + 1), 0),
        (_KEYS * east + 1, width * (east + 1), 2 * width),
    )


def place_on_planes(
    pm: SramPlacement, layout: Layout, context: int, turned: tuple[Place, Place], tokens: int
) -> OnPlanes:
    """The words of attention among up to ``context`` positions; turned: query tiles, rotated and
    as they come out, of every token of a launch.
    """
    blocks, width = blocks_of(context), layout.value_lanes // 16
    sides = blocks // 2, blocks - blocks // 2
    windows = 0 < layout.window < context
    values = min(_HEADS, tokens * layout.cache_tiles)
    near = (_WEST_PAIR, _EAST_PAIR)
    words = PlanePlaces(
        rotated=turned[0],
        head_masks=pm.top(WEST_QUAD, layout.heads_per_tile),
        masks=pm.top(_MASKS, tokens * blocks),
        key_maps=pm.top(_EAST_PAIR, tokens * KEY_MAPS),
        value_maps=_two(
            [pm.top(queues, tokens * VALUE_MAPS) for queues in (_EAST_PAIR, _EAST_OTHER)]
        ),
        recent_maps=_two([pm.top(queues, tokens * RECENT_MAPS) for queues in _RECENT_PAIRS]),
        constants=_four([pm.top(pm.cached_slices(plane), _CONSTANTS) for plane in range(4)]),
        lane_maps=_two([pm.top(queues, _LANE_MAPS) for queues in _LANE_QUADS]),
        offsets=_two([pm.top(queues, 1) for queues in near]),
        queries=_two([pm.top(queues, _HEADS) for queues in near]),
        weights=_two([pm.top(q, max(1, _HEADS * n)) for q, n in zip(near, sides, strict=True)]),
        scores=_two(
            [
                pm.top(q, max(1, _HEADS * n))
                for q, n in zip((WEST_QUAD, EAST_QUAD), sides, strict=True)
            ]
        ),
        pieces=_two([pm.top(queues, _PIECES, one_bank=True) for queues in near]),
        maximum=pm.top(WEST_QUAD, _HEADS),
        sums=pm.top(EAST_QUAD, _HEADS),
        row=pm.top(_EAST_OTHER, _PIECES * values, one_bank=True),
        spread=_two([pm.top(queues, width * values) for queues in _SPREAD_PAIRS]),
        outputs=turned[1],
        sink_weights=pm.top(WEST_QUAD, _HEADS) if layout.sinks else None,
    )
    sliding = pm.top(_MASKS, tokens * blocks) if windows else None
    return OnPlanes(words, sliding, pm.top(_EAST_OTHER, tokens * layout.cache_tiles), blocks)


def place_plane_caches(
    pm: SramPlacement,
    symbols: Symbols,
    layout: Layout,
    stage: Stage,
    context: int,
    sequences: int,
) -> list[CacheForm]:
    """Keys and values of the stage's attention blocks, for every sequence and cached tile."""
    own = [i for i, block in enumerate(stage.blocks) if block.kind == ATTENTION]
    if not own:
        return []
    words = cached_words(layout, context)
    over = max(map(max, words)) - pm.spec.words_per_bank
    if over > 0:
        raise CompileError(
            f"the model does not fit: {over * 320:,} bytes too many of a tile's keys or values for "
            "a bank; use a shorter context"
        )

    def lie(name: str, plane: int, words: int, bottom: bool) -> Place:
        """``words`` words of every block and sequence on the slices of a plane."""
        queues = pm.cached_slices(plane)
        each = [
            {n: pm.bottom(queues, words, True) if bottom else pm.keep(queues, words) for n in own}
            for _ in range(sequences)
        ]
        banks = pm.banks((place for places in each for place in places.values()), words)
        for sequence, places in enumerate(each):
            place = symbols.place_of(sequence, f"{name}.{plane}", places, banks)
        return place

    tiles = []
    for tile in range(layout.cache_tiles):
        keys: list[Place] = []
        values: list[Place] = []
        recent: list[Place] = []
        for plane in range(4):
            of_keys, of_values, of_recent = words[plane // 2]
            keys.append(lie(f"keys{tile}", plane, of_keys, True))
            values.append(lie(f"values{tile}", plane, of_values, False))
            if of_recent:
                recent.append(lie(f"recent{tile}", plane, of_recent, False))
        tiles.append(
            CachedTile(
                width=layout.q_width,
                columns=layout.value_lanes,
                blocks=blocks_of(context),
                keys=(_two(keys[:2]), _two(keys[2:])),
                values=(_two(values[:2]), _two(values[2:])),
                recent=_two(recent),
            )
        )
    count = min(len(own), LAYER_VARIANTS)
    return [CacheForm(own[n::count], cached=tuple(tiles)) for n in range(count)]


def _two(places: list[Place]) -> tuple[Place, Place]:
    first, second = places
    return first, second


def _four(places: list[Place]) -> tuple[Place, Place, Place, Place]:
    first, second, third, fourth = places
    return first, second, third, fourth
