"""Where a stage of a decoder lies in a chip's SRAM.

The same places hold on every chip; only the contents differ.  Everything that repeats from layer
to layer (weights, scales, KV cache) is addressed by a symbol whose base differs per layer, so one
scheduled layer serves all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise, permutations

from chip.passes import CompileError
from chip.reservation import Place, Symbol
from chip.spec import ChipSpec
from interconnect.collectives import RECEIVED_QUADS, ReducePlaces
from programs.attention import AttentionPlaces, Segment, Segments
from programs.cache_places import LAYER_VARIANTS, CacheForm, cache_cuts, place_caches
from programs.layout import Layout
from programs.matmul import PAIR_ORDER, PLANE_ORDER, Activations, ColumnBlock
from programs.norm import Constants
from programs.placement import EAST_QUAD, KV_QUAD, MAP_PAIR, WEST_QUAD, Placement, Symbols
from programs.stages import ATTENTION, Stage, part_tiles, single_stage

#: Positions up to which scores lie on weight slices.
_SHORT = 1024
#: Contexts up to which one window of the mask table serves, and the window of longer ones: the
#: checker bounds the words in reach of a program's Gathers.
_ONE_WINDOW, _WINDOW = 512, 64
_WEST_2, _WEST_3 = (8, 9, 10, 11), (12, 13, 14, 15)
_EAST_2 = (52, 53, 54, 55)
_DIGITS = ((5, 6), (50, 51))  # activation slices: west, east


@dataclass
class MatrixPlaces:
    """Rounds of column blocks of one or more matrices, and the scale words of each round."""

    rounds: list[list[ColumnBlock]]
    scales: list[Place]
    columns: list[tuple[str, int]]  # (matrix, block) of each slot, round after round


@dataclass
class AttentionMatrices:
    """What attention blocks share that have one assignment to planes and slices."""

    qkv: MatrixPlaces
    o: MatrixPlaces
    keys: tuple[Segments, ...]  # of each cached tile
    values: tuple[Segments, ...]


@dataclass
class FfnMatrices:
    """What FFN blocks share: the matrices of ``tiles`` tiles from ``first_tile`` on."""

    gate_up: MatrixPlaces
    down: MatrixPlaces
    first_tile: int
    tiles: int
    part: int
    parts: int


Matrices = AttentionMatrices | FfnMatrices


@dataclass
class DecoderPlaces:
    """Every place of a stage on a chip; ``bases[sequence][block]``: the symbols' addresses."""

    layout: Layout
    dtype: str
    context: int
    cache_maps: list[tuple[int, int]]  # (first position, positions) of each word of kv_map
    placement: Placement
    constants: Constants
    x: Place
    factor: Place
    dynamic: Place
    act: Activations
    stage: Stage
    variants: list[Matrices]
    variant_of: list[int]  # of each block
    head: MatrixPlaces | None
    replicate: list[list[ColumnBlock]]
    results: Place  # fp32 words q tiles, k tiles, v tiles; later gate tiles
    up: Place
    hidden: Place
    narrow: Place  # fp16 k and v tiles before replication (one byte per slice)
    narrow_act: Activations
    logits: Place
    attention: AttentionPlaces
    reduce: ReducePlaces
    between: Place  # x with a part of an FFN added, beside x
    inbox: Place  # what another stage sent, before it is spread over the group
    bases: list[list[dict[Symbol, int]]] = field(default_factory=list)


def place_decoder(
    spec: ChipSpec, layout: Layout, dtype: str, context: int, stage: Stage | None = None,
    sequences: int = 1, split: bool = False,
) -> DecoderPlaces:  # fmt: skip
    """Allocate every word of a stage (default: the whole decoder) with caches for ``sequences``.

    split: some stage of the model computes a part of an FFN.  Inputs and outputs have the same
    places in every stage.  Raises CompileError when it does not fit.
    """
    stage = stage or single_stage(layout.layers)[0]
    pm = Placement(spec)
    symbols = Symbols(sequences, len(stage.blocks))
    t, qt, kt = layout.x_tiles, layout.q_tiles, layout.kv_tiles
    chunk = mask_positions(context, spec)
    cuts = cache_cuts(context, spec.words_per_bank, sequences)
    constants = Constants(pm.top(pm.weight_slices(2), 1), pm.top(pm.weight_slices(3), 1))
    tiles = max(t, qt, layout.ffn_tiles)
    digits = [pm.top(_DIGITS[0], tiles), pm.top(_DIGITS[1], tiles)]
    act = _pairs(digits)
    short: Segments = ()
    if context <= spec.words_per_bank:
        short = (Segment(pm.top(_WEST_2 if context <= _SHORT else WEST_QUAD, context), context),)
    attention_temporaries = {
        "maxima": pm.top(_WEST_3, 2),
        "maximum": pm.top(_WEST_3, 1), "sums": pm.top(WEST_QUAD, 3),
        "rotated": pm.top(EAST_QUAD, qt), "outputs": pm.top(EAST_QUAD, 3 + qt),
        "query_low": pm.top(pm.weight_slices(2), layout.heads_per_tile),
        "query_high": pm.top(pm.weight_slices(3), layout.heads_per_tile),
    }  # fmt: skip
    partial = pm.top(_EAST_2, t)
    x = pm.top(EAST_QUAD, t)
    between = pm.top(EAST_QUAD, t) if split else x
    received = {k: pm.top(RECEIVED_QUADS[k], t * (1 + split)) for k in range(1, layout.tp)}
    reduce = ReducePlaces(partial, x, received)
    results = pm.top(EAST_QUAD, max(qt + 2 * kt, layout.ffn_tiles))
    up = pm.top(_EAST_2, layout.ffn_tiles)
    hidden = pm.top(EAST_QUAD, layout.ffn_tiles)
    logits = pm.top(EAST_QUAD, layout.vocab_blocks)
    narrow = pm.top((_DIGITS[1]), 2 * kt) if layout.replicate else act.first[1]
    west_constants = {
        "cos": pm.top(WEST_QUAD, 1), "sin": pm.top(_WEST_2, 1),
        "head_masks": pm.top(WEST_QUAD, layout.heads_per_tile),
        "mask_table": pm.bottom(WEST_QUAD, 2 * chunk, one_bank=True),
        "kv_map": pm.top(MAP_PAIR, len(cuts.maps)),
        "mask_map": pm.top(MAP_PAIR, -(-context // chunk)),
        "swap_map": pm.top(KV_QUAD[:1], 1),
    }  # fmt: skip
    factor = pm.top(WEST_QUAD, 1)
    dynamic = pm.top(KV_QUAD, 1)
    inbox = pm.top(_EAST_2, 2 * t) if split else partial  # free while no product is under way
    replicate = _replicate_rounds(pm, layout)
    # the same places for most stages, so that they share the code of their blocks
    scales = max(_scale_words(layout, stage, dtype), pm.words // 8)
    scores = short or _long_scores(pm, context, scales)
    caches = place_caches(pm, symbols, layout, stage, cuts, sequences)
    variants, variant_of = _place_blocks(pm, symbols, layout, dtype, stage, caches)
    head = None
    if stage.head:
        shapes = matrix_shapes(layout)
        k_tiles, blocks, groups = shapes["head"]
        own = part_tiles(blocks, stage.head_part, stage.head_parts)
        shapes["head"] = (k_tiles, len(own), groups)
        head = _MatrixPlacer(pm, None, [0], dtype, shapes).place("head", ["head"])
    attention = AttentionPlaces(
        mask_words=2 * chunk, scores=scores, keys=(), values=(), **attention_temporaries,
        **west_constants,
    )  # fmt: skip
    return DecoderPlaces(
        layout, dtype, context, cuts.maps, pm, constants, x, factor, dynamic, act, stage, variants,
        variant_of, head, replicate, results, up, hidden, narrow, _pairs([digits[0], narrow]),
        logits, attention, reduce, between, inbox, symbols.bases,
    )  # fmt: skip


def mask_positions(context: int, spec: ChipSpec) -> int:
    """Positions one window of the mask table serves; longer contexts take several windows."""
    most = spec.words_per_bank // 4
    return context if context <= min(_ONE_WINDOW, most) else min(_WINDOW, most)


def _long_scores(pm: Placement, context: int, scales: int) -> Segments:
    """Scores of more than a bank of positions: WEST_QUAD but for ``scales`` words, and quads of
    the west planes' slices; not _WEST_3, whose maximum is read while scores are.
    """
    room = min(pm.high[q] for q in WEST_QUAD) - max(pm.low[q] for q in WEST_QUAD) - scales
    first = min(context, max(room, 0))
    found = [Segment(pm.top(WEST_QUAD, first), first)] if first else []
    quads = []
    for plane in (0, 1):
        own = [q for q in pm.weight_slices(plane) if q not in _WEST_3]
        quads += [tuple(own[i : i + 4]) for i in range(0, len(own) - 3, 4)]
    each = -(-(context - first) // len(quads))
    over = sum(max(0, each - min(pm.high[q] for q in quad)) for quad in quads)
    if over:
        raise CompileError(
            f"the model does not fit: {over * 4 * 320:,} bytes too many of scores on a chip; use a "
            "shorter context"
        )
    for quad in quads:
        words = min(each, context - sum(s.positions for s in found))
        if words:
            found.append(Segment(pm.top(quad, words), words))
    return tuple(found)


def _scale_words(layout: Layout, stage: Stage, dtype: str) -> int:
    """Words of a stage's scales: one for each column block."""
    if dtype != "int8":
        return 0
    words = 0
    for block in stage.blocks:
        words += layout.x_tiles
        if block.kind == ATTENTION:
            words += layout.q_tiles + 2 * layout.kv_tiles
        else:
            words += 2 * len(part_tiles(layout.ffn_tiles, block.part, block.parts))
    if stage.head:
        words += len(part_tiles(layout.vocab_blocks, stage.head_part, stage.head_parts))
    return words


def _place_blocks(
    pm: Placement, symbols: Symbols, layout: Layout, dtype: str, stage: Stage,
    caches: list[CacheForm],
) -> tuple[list[Matrices], list[int]]:
    """The variants of the stage's blocks, and which of them each block is of."""
    shapes = matrix_shapes(layout)
    groups: dict[tuple[str, int, int], list[int]] = {}
    for i, block in enumerate(stage.blocks):
        groups.setdefault((block.kind, block.part, block.parts), []).append(i)
    variants: list[Matrices] = []
    variant_of = [0] * len(stage.blocks)
    for variant in range(max(LAYER_VARIANTS, len(caches))):
        for (kind, part, parts), own in groups.items():
            if kind == ATTENTION:
                members = caches[variant].members if variant < len(caches) else []
            else:
                count = min(LAYER_VARIANTS, len(own))
                members = own[variant::count] if variant < count else []
            if not members:
                continue
            for member in members:
                variant_of[member] = len(variants)
            if kind == ATTENTION:
                of = _MatrixPlacer(pm, symbols, members, dtype, shapes)
                qkv = of.place("qkv", ["q", "k", "v"])
                cache = caches[variant]
                variants.append(
                    AttentionMatrices(qkv, of.place("o", ["o"]), cache.keys, cache.values)
                )
                continue
            tiles = part_tiles(layout.ffn_tiles, part, parts)
            of = _MatrixPlacer(pm, symbols, members, dtype, _part_shapes(shapes, len(tiles)))
            gate_up = of.place("gate_up", ["gate", "up"])
            down = of.place("down", ["down"])
            variants.append(FfnMatrices(gate_up, down, tiles.start, len(tiles), part, parts))
    return variants, variant_of


Shapes = dict[str, tuple[int, int, int]]


def _part_shapes(shapes: Shapes, tiles: int) -> Shapes:
    """The shapes of the matrices of an FFN part of ``tiles`` tiles."""
    (k, _, w), (_, n, v) = shapes["gate"], shapes["down"]
    return {"gate": (k, tiles, w), "up": (k, tiles, w), "down": (tiles, n, v)}


def _pairs(places: list[Place]) -> Activations:
    """The two slices of a west and an east pair as separate places."""
    west, east = places
    return Activations(
        (Place(west.queues[:1], west.address), Place(east.queues[:1], east.address)),
        (Place(west.queues[1:], west.address), Place(east.queues[1:], east.address)),
    )


def matrix_shapes(layout: Layout) -> dict[str, tuple[int, int, int]]:
    """(K tiles, column blocks, column groups of 16 per block) of every matrix."""
    t, q, kv = layout.x_tiles, layout.q_width // 16, layout.kv_width // 16
    x, f, v = layout.x_width // 16, layout.ffn_width // 16, layout.vocab_width // 16
    return {
        "q": (t, layout.q_tiles, q), "k": (t, layout.kv_tiles, kv), "v": (t, layout.kv_tiles, kv),
        "o": (layout.q_tiles, t, x), "gate": (t, layout.ffn_tiles, f),
        "up": (t, layout.ffn_tiles, f), "down": (layout.ffn_tiles, t, x),
        "head": (t, layout.vocab_blocks, v),
    }  # fmt: skip


@dataclass
class _MatrixPlacer:
    """Places the blocks of matrices plane after plane, for some layers at once."""

    placement: Placement
    symbols: Symbols | None  # None: what is there once, at fixed addresses
    layers: list[int]
    dtype: str
    shapes: dict[str, tuple[int, int, int]]

    def place(self, name: str, matrices: list[str]) -> MatrixPlaces:
        """Rounds and scales of ``matrices``, whose column blocks run one after another."""
        order = PLANE_ORDER if self.dtype == "int8" else PAIR_ORDER
        halves = 1 if self.dtype == "int8" else 2
        slots = [(m, b) for m in matrices for b in range(self.shapes[m][1])]
        rounds: list[list[ColumnBlock]] = []
        scales: list[Place] = []
        for first in range(0, len(slots), len(order)):
            chosen = slots[first : first + len(order)]
            sizes = [self.shapes[m][0] * self.shapes[m][2] for m, _ in chosen]
            blocks = []
            planes = _level_planes(self.placement, order, sizes)
            for slot, plane, words in zip(chosen, planes, sizes, strict=True):
                places = [
                    self._words(
                        f"{name}{first}.{plane + half}",
                        self.placement.weight_slices(plane + half), words,
                    )
                    for half in range(halves)
                ]  # fmt: skip
                groups = self.shapes[slot[0]][2]
                blocks.append(ColumnBlock(places[0], groups, plane, *places[1:]))
            rounds.append(blocks)
            if self.dtype == "int8":
                scales.append(self._words(f"{name}{first}.scale", WEST_QUAD, len(blocks)))
        return MatrixPlaces(rounds, scales, slots)

    def _words(self, label: str, queues: tuple[int, ...], words: int) -> Place:
        each = {layer: self.placement.bottom(queues, words) for layer in self.layers}
        return each[self.layers[0]] if self.symbols is None else self.symbols.place(label, each)


def _level_planes(pm: Placement, order: tuple[int, ...], sizes: list[int]) -> tuple[int, ...]:
    """The plane of each block of a round (east ones first) that fills the slices most evenly."""

    def fullest(planes: tuple[int, ...]) -> tuple[int, ...]:
        filled = {plane: pm.low[pm.weight_slices(plane)[0]] for plane in order}
        for plane, size in zip(planes, sizes, strict=True):
            filled[plane] += size
        return tuple(sorted(filled.values(), reverse=True))

    candidates = [
        planes
        for planes in permutations(order, len(sizes))
        if all(a // 2 >= b // 2 for a, b in pairwise(planes))
    ]
    return min(candidates, key=fullest)


def _replicate_rounds(pm: Placement, layout: Layout) -> list[list[ColumnBlock]]:
    """One-hot matrices that spread fp16 K and V to the query heads' lanes, east pair only."""
    if not layout.replicate:
        return []
    groups = layout.q_width // 16
    words = layout.kv_tiles * groups
    return [
        [
            ColumnBlock(
                pm.top(pm.weight_slices(2), words), groups, 2,
                pm.top(pm.weight_slices(3), words),
            )
        ]
        for _ in range(layout.cache_tiles)
    ]  # fmt: skip
