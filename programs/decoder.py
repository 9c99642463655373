"""Where a stage of a decoder lies in a chip's SRAM.

The same places hold on every chip; only the contents differ.  Everything that repeats from layer
to layer (weights, scales, KV cache) is addressed by a symbol whose base differs per layer, so one
scheduled layer serves all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chip.passes import CompileError
from chip.reservation import Place, Symbol
from chip.spec import ChipSpec
from interconnect.collectives import RECEIVED_QUADS, ReducePlaces
from programs.attention import AttentionPlaces
from programs.expert_weights import router_parts
from programs.experts import RoutingPlaces, place_routing
from programs.head_norm import HeadNormPlaces, place_head_norm
from programs.layout import Layout
from programs.matmul import Activations, ColumnBlock
from programs.matrix_places import (
    MatrixPlacer,
    MatrixPlaces,
    Symbols,
    matrix_shapes,
    part_shapes,
)
from programs.norm import Constants
from programs.placement import EAST_QUAD, KV_QUAD, MAP_PAIR, WEST_QUAD, Placement
from programs.stages import ATTENTION, Stage, part_tiles, single_stage

#: Layers differ in which plane takes which block, so that the planes' slices fill evenly.
LAYER_VARIANTS = 4
#: Positions up to which scores lie on weight slices; the mask table's window as well.
_SHORT = 1024
_WEST_2, _WEST_3 = (8, 9, 10, 11), (12, 13, 14, 15)
_EAST_2 = (52, 53, 54, 55)
_DIGITS = ((5, 6), (50, 51))  # activation slices: west, east


@dataclass
class AttentionMatrices:
    """What attention blocks share that have one assignment to planes and slices."""

    qkv: MatrixPlaces
    o: MatrixPlaces
    keys: tuple[Place, ...]  # of each cached tile
    values: tuple[Place, ...]
    gains: Place | None = None  # of query and key heads


@dataclass
class FfnMatrices:
    """What FFN blocks share: the matrices of ``tiles`` tiles from ``first_tile`` on."""

    gate_up: MatrixPlaces
    down: MatrixPlaces
    first_tile: int
    tiles: int
    part: int
    parts: int
    router: MatrixPlaces | None = None  # of all experts, with every part


Matrices = AttentionMatrices | FfnMatrices


@dataclass
class DecoderPlaces:
    """Every place of a stage on a chip; ``bases[sequence][block]``: the symbols' addresses."""

    layout: Layout
    dtype: str
    context: int
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
    head_norm: HeadNormPlaces | None = None
    routing: RoutingPlaces | None = None


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
    if context > spec.words_per_bank:
        raise CompileError(
            f"context {context}: a cached tile lies in one bank of {spec.words_per_bank:,} words; "
            f"use --context {spec.words_per_bank} or less"
        )
    chunk = mask_positions(context)
    constants = Constants(pm.top(pm.weight_slices(2), 1), pm.top(pm.weight_slices(3), 1))
    tiles = max(t, qt, layout.ffn_tiles)
    digits = [pm.top(_DIGITS[0], tiles), pm.top(_DIGITS[1], tiles)]
    act = _pairs(digits)
    attention_temporaries = {
        "scores": pm.top(_WEST_2 if context <= _SHORT else WEST_QUAD, context),
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
        "kv_map": pm.top(MAP_PAIR, 1), "mask_map": pm.top(MAP_PAIR, -(-context // chunk)),
        "swap_map": pm.top(KV_QUAD[:1], 1),
    }  # fmt: skip
    factor = pm.top(WEST_QUAD, 1)
    dynamic = pm.top(KV_QUAD, 1)
    inbox = pm.top(_EAST_2, 2 * t) if split else partial  # free while no product is under way
    replicate = _replicate_rounds(pm, layout)
    caches = _place_caches(pm, symbols, layout, stage, context, sequences)
    head_norm = place_head_norm(pm, layout, _EAST_2) if layout.head_norms else None
    routing = None
    if layout.experts > 1:
        routing = place_routing(pm, layout, dtype, (_WEST_2, _WEST_3), _EAST_2)
    variants, variant_of = _place_blocks(pm, symbols, layout, dtype, stage, caches)
    head = None
    if stage.head:
        shapes = matrix_shapes(layout)
        k_tiles, blocks, groups = shapes["head"]
        own = part_tiles(blocks, stage.head_part, stage.head_parts)
        shapes["head"] = (k_tiles, len(own), groups)
        head = MatrixPlacer(pm, None, [0], dtype, shapes).place("head", ["head"])
    attention = AttentionPlaces(
        mask_words=2 * chunk, context_words=context, keys=(), values=(),
        **attention_temporaries, **west_constants,
    )  # fmt: skip
    return DecoderPlaces(
        layout, dtype, context, pm, constants, x, factor, dynamic, act, stage, variants,
        variant_of, head, replicate, results, up, hidden, narrow, _pairs([digits[0], narrow]),
        logits, attention, reduce, between, inbox, symbols.bases, head_norm,
        routing,
    )  # fmt: skip


def mask_positions(context: int) -> int:
    """Positions one window of the mask table serves; longer contexts take several windows."""
    return min(context, _SHORT)


Caches = dict[int, tuple[tuple[Place, ...], tuple[Place, ...]]]


def _place_caches(
    pm: Placement, symbols: Symbols, layout: Layout, stage: Stage, context: int, sequences: int
) -> Caches:
    """Keys and values of the stage's attention blocks: by variant, symbolic places.

    Two slices of a quad take keys, two values.  What fits lies on KV_QUAD; otherwise the variants
    take turns on it and EAST_QUAD, or on these and the weight slices of the east planes.
    """
    own = [i for i, block in enumerate(stage.blocks) if block.kind == ATTENTION]
    if not own:
        return {}
    planes = [pm.weight_slices(2), pm.weight_slices(3)]
    quads = [KV_QUAD, EAST_QUAD]
    quads += [(s[i], s[i + 1], s[i + 2], s[i + 3]) for i in range(0, 16, 4) for s in planes]
    for used in (1, 2, len(quads)):
        each = -(-len(own) // used) * layout.cache_tiles * sequences
        if all(_tiles_held(pm, quad, context) >= each for quad in quads[:used]):
            break
    quads = quads[:used]
    count = min(len(own), max(LAYER_VARIANTS, used))
    caches: Caches = {}
    for variant in range(count):
        quad, members = quads[variant % len(quads)], own[variant::count]
        pairs: list[tuple[Place, ...]] = []
        for name, queues in (("keys", quad[:2]), ("values", quad[2:])):
            tiles = []
            for tile in range(layout.cache_tiles):
                for q in range(sequences):
                    places = {n: pm.bottom(queues, context, one_bank=True) for n in members}
                    place = symbols.place_of(q, f"{name}{tile}", places)
                tiles.append(place)
            pairs.append(tuple(tiles))
        caches[variant] = (pairs[0], pairs[1])
    return caches


def _tiles_held(pm: Placement, quad: tuple[int, ...], context: int) -> int:
    """Cached tiles of ``context`` positions that a quad has room for, each within one bank."""
    bank = pm.words // 2
    low, high = max(pm.low[q] for q in quad), min(pm.high[q] for q in quad)
    return max(0, bank - low) // context + max(0, high - max(low, bank)) // context


def _place_blocks(
    pm: Placement, symbols: Symbols, layout: Layout, dtype: str, stage: Stage, caches: Caches
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
            count = len(caches) if kind == ATTENTION else min(LAYER_VARIANTS, len(own))
            members = own[variant::count] if variant < count else []
            if not members:
                continue
            for member in members:
                variant_of[member] = len(variants)
            if kind == ATTENTION:
                of = MatrixPlacer(pm, symbols, members, dtype, shapes)
                qkv = of.place("qkv", ["q", "k", "v"])
                gains = of.words("gains", WEST_QUAD, 2) if layout.head_norms else None
                variants.append(
                    AttentionMatrices(qkv, of.place("o", ["o"]), *caches[variant], gains)
                )
                continue
            tiles = part_tiles(layout.ffn_tiles, part, parts)
            own_shapes = part_shapes(shapes, len(tiles))
            blocks = layout.experts * router_parts(dtype)
            own_shapes["router"] = (layout.x_tiles, blocks, layout.ffn_width // 16)
            of = MatrixPlacer(pm, symbols, members, dtype, own_shapes)
            gate_up = of.place("gate_up", ["gate", "up"])
            down = of.place("down", ["down"])
            router = of.place("router", ["router"], same=True) if layout.experts > 1 else None
            variants.append(
                FfnMatrices(gate_up, down, tiles.start, len(tiles), part, parts, router)
            )
    return variants, variant_of


def _pairs(places: list[Place]) -> Activations:
    """The two slices of a west and an east pair as separate places."""
    west, east = places
    return Activations(
        (Place(west.queues[:1], west.address), Place(east.queues[:1], east.address)),
        (Place(west.queues[1:], west.address), Place(east.queues[1:], east.address)),
    )


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
