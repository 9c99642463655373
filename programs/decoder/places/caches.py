"""Where the keys and values of a stage's attention blocks lie.

A cached tile lies in one bank, or is cut into segments, each within a bank and with one word more
than positions: a new key is scattered to every segment, and those that do not hold its position
take it in that word.  Longer tiles than a bank are always cut, others where that wastes less.
"""

from __future__ import annotations

from dataclasses import dataclass

from chip.scheduling import CompileError, Place, Symbol
from programs.decoder import ATTENTION, Layout, Stage
from programs.kernels import CachedTile, Segment, Segments
from programs.sram import EAST_QUAD, KV_QUAD, SramPlacement, Symbols

#: Layers differ in which plane takes which block, so that the planes' slices fill evenly.
LAYER_VARIANTS = 4
#: Full segments of a bank, for one sequence and for each of several (whose copies of a segment
#: lie on the same slices): more waste less of banks that hold other words too.
_SEGMENTS_OF_BANK, _COPIES_OF_BANK = 4, 2
#: The part of a bank that segments leave for temporaries, so that those cost no whole segment.
_LEFT_OF_BANK = 64

Quad = tuple[int, ...]


@dataclass
class CacheForm:
    """Attention blocks whose caches lie on the same slices: by tile, with symbolic addresses.

    keys, values: on the VXM; cached: both on the planes.
    """

    members: list[int]
    keys: tuple[Segments, ...] = ()
    values: tuple[Segments, ...] = ()
    cached: tuple[CachedTile, ...] = ()


@dataclass(frozen=True)
class CacheCuts:
    """The ways a model's cached tiles may lie: (first position, positions) of each segment.

    The map has a word for the whole tile, if there may be one, and then for each segment.
    """

    whole: list[tuple[int, int]]
    cut: list[tuple[int, int]]

    @property
    def maps(self) -> list[tuple[int, int]]:
        """What each word of the map is for."""
        return self.whole + self.cut


def cache_cuts(context: int, words_per_bank: int, sequences: int) -> CacheCuts:
    """Whole if a bank holds a tile and a slice those of all sequences; cut if it is long."""
    whole = context <= words_per_bank and context * sequences <= 2 * words_per_bank
    if whole and context <= words_per_bank // _SEGMENTS_OF_BANK:
        return CacheCuts([(0, context)], [])
    count = max(_SEGMENTS_OF_BANK, _COPIES_OF_BANK * sequences)
    each = max(1, (words_per_bank - words_per_bank // _LEFT_OF_BANK) // count - 1)
    cut = [(first, min(each, context - first)) for first in range(0, context, each)]
    return CacheCuts([(0, context)] if whole else [], cut)


def place_caches(
    pm: SramPlacement,
    symbols: Symbols,
    layout: Layout,
    stage: Stage,
    cuts: CacheCuts,
    sequences: int,
) -> list[CacheForm]:
    """Keys and values of the stage's attention blocks; two slices of a quad take each.

    Whole tiles on KV_QUAD if it holds all, else on it and EAST_QUAD; segments, or what is too
    short to be cut, on these and the weight slices of the east planes.  Raises CompileError when
    they do not fit.
    """
    own = [i for i, block in enumerate(stage.blocks) if block.kind == ATTENTION]
    if not own:
        return []
    planes = [pm.weight_slices(2), pm.weight_slices(3)]
    weights: list[Quad] = [tuple(s[i : i + 4]) for i in range(0, 16, 4) for s in planes]
    nearest = pm.map_slices(1) if pm.maps else KV_QUAD
    quads: list[Quad] = [nearest, EAST_QUAD, *weights]
    if cuts.whole:
        ((_, context),) = cuts.whole
        for used in (1, 2) if cuts.cut else (1, 2, len(quads)):
            each = -(-len(own) // used) * layout.cache_tiles * sequences
            if all(_runs_held(pm, quad, context) >= each for quad in quads[:used]):
                return _whole_layers(pm, symbols, layout, own, context, sequences, quads[:used])
    return _spread_segments(pm, symbols, layout, own, cuts, sequences, quads)


def _whole_layers(
    pm: SramPlacement,
    symbols: Symbols,
    layout: Layout,
    own: list[int],
    context: int,
    sequences: int,
    quads: list[Quad],
) -> list[CacheForm]:
    """Every tile of a block whole and on one quad; the blocks take turns on ``quads``."""
    count = min(len(own), max(LAYER_VARIANTS, len(quads)))
    forms = []
    for variant in range(count):
        quad, members = quads[variant % len(quads)], own[variant::count]
        pairs: list[tuple[Segments, ...]] = []
        for name, queues in (("keys", quad[:2]), ("values", quad[2:])):
            tiles: list[Segments] = []
            for tile in range(layout.cache_tiles):
                each = [
                    {n: pm.bottom(queues, context, one_bank=True) for n in members}
                    for _ in range(sequences)
                ]
                banks = pm.banks((p for places in each for p in places.values()), context)
                for q, places in enumerate(each):
                    place = symbols.place_of(q, f"{name}{tile}", places, banks)
                tiles.append((Segment(place, context),))
            pairs.append(tuple(tiles))
        forms.append(CacheForm(members, pairs[0], pairs[1]))
    return forms


def _spread_segments(
    pm: SramPlacement,
    symbols: Symbols,
    layout: Layout,
    own: list[int],
    cuts: CacheCuts,
    sequences: int,
    quads: list[Quad],
) -> list[CacheForm]:
    """Segments go to KV_QUAD while it has room, then EAST_QUAD, then the emptiest weight quad."""
    spare = bool(cuts.cut)
    words = range(len(cuts.whole) if spare else 0, len(cuts.maps))
    cut = [(tile, i, cuts.maps[i][1]) for tile in range(layout.cache_tiles) for i in words]
    need = len(own) * sequences * sum(n + spare for _, _, n in cut)
    room = sum(min(pm.high[q] for q in quad) for quad in quads)
    if need > room:
        raise CompileError(
            f"the model does not fit: {(need - room) * 4 * 320:,} bytes too many of caches on a "
            "chip; use more chips, fewer sequences or a shorter context"
        )
    placed: dict[tuple[Quad, ...], list[int]] = {}
    for block in own:
        chosen: list[Quad] = []
        for tile, i, n in cut:
            roomy = [q for q in quads if _runs_held(pm, q, n + spare) >= sequences] or quads
            quad = roomy[0]
            if quad not in quads[:2]:
                quad = min(roomy, key=lambda q: pm.low[q[0]] // (n + spare))
            for name, queues in (("keys", quad[:2]), ("values", quad[2:])):
                for sequence in range(sequences):
                    place = pm.bottom(queues, n + spare, one_bank=True)
                    symbols.place_of(sequence, f"{name}{tile}.{i}", {block: place})
            chosen.append(quad)
        placed.setdefault(tuple(chosen), []).append(block)
    most = -(-len(own) // LAYER_VARIANTS)
    forms = []
    for lie_on, blocks in placed.items():
        for first in range(0, len(blocks), most):
            members = blocks[first : first + most]
            pairs: list[tuple[Segments, ...]] = []
            for name, half in (("keys", 0), ("values", 2)):
                tiles: list[list[Segment]] = [[] for _ in range(layout.cache_tiles)]
                for (tile, i, n), quad in zip(cut, lie_on, strict=True):
                    queues, label = quad[half : half + 2], f"{name}{tile}.{i}"
                    bases = (by[b][Symbol(label)] for by in symbols.bases for b in members)
                    banks = pm.banks((Place(queues, base) for base in bases), n + spare)
                    place = Place(queues, 0, Symbol(label, banks))
                    tiles[tile].append(Segment(place, n, i))
                pairs.append(tuple(map(tuple, tiles)))
            forms.append(CacheForm(members, pairs[0], pairs[1]))
    return forms


def _runs_held(pm: SramPlacement, quad: Quad, words: int) -> int:
    """Runs of ``words`` words that a quad has room for, each within one bank."""
    bank = pm.spec.words_per_bank
    low, high = max(pm.low[q] for q in quad), min(pm.high[q] for q in quad)
    return max(0, bank - low) // words + max(0, high - max(low, bank)) // words
