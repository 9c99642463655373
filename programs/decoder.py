"""Where a decoder lies in a chip's SRAM, and the memory image of each chip.

The same places hold on every chip; only the contents differ.  Everything that repeats from layer
to layer (weights, scales, KV cache) is addressed by a symbol whose base differs per layer, so one
scheduled layer serves all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise, permutations

import numpy as np
from numpy.typing import NDArray

from chip.passes import CompileError
from chip.reservation import Place, Symbol
from chip.spec import ChipSpec
from interconnect.collectives import RECEIVED_QUADS, ReducePlaces
from programs.attention import AttentionPlaces
from programs.matmul import PAIR_ORDER, PLANE_ORDER, Activations, ColumnBlock
from programs.norm import Constants
from programs.partition import ChipWeights, Layout, Matrix
from programs.placement import EAST_QUAD, KV_QUAD, MAP_PAIR, WEST_QUAD, Placement

Rows = NDArray[np.uint8]
Image = list[tuple[int, int, Rows]]

_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
#: Layers differ in which plane takes which block, so that the planes' slices fill evenly.
LAYER_VARIANTS = 4
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
class LayerMatrices:
    """The matrices of the layers that share one assignment of blocks to planes."""

    qkv: MatrixPlaces
    o: MatrixPlaces
    gate_up: MatrixPlaces
    down: MatrixPlaces


@dataclass
class DecoderPlaces:
    """Every place of a decoder on a chip; ``bases[layer]`` gives the symbols' addresses."""

    layout: Layout
    dtype: str
    context: int
    placement: Placement
    constants: Constants
    x: Place
    factor: Place
    dynamic: Place
    act: Activations
    variants: list[LayerMatrices]  # layer n is of variant n mod their number
    head: MatrixPlaces
    replicate: list[list[ColumnBlock]]
    results: Place  # fp32 words q tiles, k tiles, v tiles; later gate tiles
    up: Place
    hidden: Place
    narrow: Place  # fp16 k and v tiles before replication (one byte per slice)
    narrow_act: Activations
    logits: Place
    attention: AttentionPlaces
    reduce: ReducePlaces
    bases: list[dict[Symbol, int]] = field(default_factory=list)


class _Symbols:
    """Allocates what every layer has once: first layer by layer, then known by symbol."""

    def __init__(self, layers: int) -> None:
        self.bases: list[dict[Symbol, int]] = [{} for _ in range(layers)]

    def place(self, name: str, places: dict[int, Place]) -> Place:
        """The symbol for the places that ``name`` has in some layers."""
        symbol = Symbol(name)
        for layer, place in places.items():
            self.bases[layer][symbol] = place.address
        return Place(next(iter(places.values())).queues, 0, symbol)


def place_decoder(spec: ChipSpec, layout: Layout, dtype: str, context: int) -> DecoderPlaces:
    """Allocate every word of a decoder; raises CompileError when it does not fit."""
    pm = Placement(spec)
    symbols = _Symbols(layout.layers)
    t, qt, kt = layout.x_tiles, layout.q_tiles, layout.kv_tiles
    if 2 * context > spec.words_per_bank:
        most = spec.words_per_bank // 2
        raise CompileError(f"context {context}: the mask table holds at most {most:,} positions")
    constants = Constants(pm.top(pm.weight_slices(2), 1), pm.top(pm.weight_slices(3), 1))
    tiles = max(t, qt, layout.ffn_tiles)
    digits = [pm.top(_DIGITS[0], tiles), pm.top(_DIGITS[1], tiles)]
    act = _pairs(digits)
    attention_temporaries = {
        "scores": pm.top(_WEST_2, context), "maxima": pm.top(_WEST_3, 2),
        "maximum": pm.top(_WEST_3, 1), "sums": pm.top(WEST_QUAD, 3),
        "rotated": pm.top(EAST_QUAD, qt), "outputs": pm.top(EAST_QUAD, 3 + qt),
        "query_low": pm.top(pm.weight_slices(2), layout.heads_per_tile),
        "query_high": pm.top(pm.weight_slices(3), layout.heads_per_tile),
    }  # fmt: skip
    partial = pm.top(_EAST_2, t)
    x = pm.top(EAST_QUAD, t)
    received = {k: pm.top(RECEIVED_QUADS[k], t) for k in range(1, layout.tp)}
    reduce = ReducePlaces(partial, x, received)
    results = pm.top(EAST_QUAD, max(qt + 2 * kt, layout.ffn_tiles))
    up = pm.top(_EAST_2, layout.ffn_tiles)
    hidden = pm.top(EAST_QUAD, layout.ffn_tiles)
    logits = pm.top(EAST_QUAD, layout.vocab_blocks)
    narrow = pm.top((_DIGITS[1]), 2 * kt) if layout.replicate else act.first[1]
    west_constants = {
        "cos": pm.top(WEST_QUAD, 1), "sin": pm.top(_WEST_2, 1),
        "head_masks": pm.top(WEST_QUAD, layout.heads_per_tile),
        "mask_table": pm.bottom(WEST_QUAD, 2 * context, one_bank=True),
        "kv_map": pm.top(MAP_PAIR, 1), "mask_map": pm.top(MAP_PAIR, 1),
        "swap_map": pm.top(KV_QUAD[:1], 1),
    }  # fmt: skip
    factor = pm.top(WEST_QUAD, 1)
    dynamic = pm.top(KV_QUAD, 1)
    keys, values = [], []
    for tile in range(qt):
        every = range(layout.layers)
        k = {n: pm.bottom(KV_QUAD[:2], context, one_bank=True) for n in every}
        v = {n: pm.bottom(KV_QUAD[2:], context, one_bank=True) for n in every}
        keys.append(symbols.place(f"keys{tile}", k))
        values.append(symbols.place(f"values{tile}", v))
    shapes = matrix_shapes(layout)
    count = min(LAYER_VARIANTS, layout.layers)
    variants = []
    for variant in range(count):
        of = _MatrixPlacer(pm, symbols, list(range(variant, layout.layers, count)), dtype, shapes)
        variants.append(
            LayerMatrices(
                of.place(f"{variant}.qkv", ["q", "k", "v"]), of.place(f"{variant}.o", ["o"]),
                of.place(f"{variant}.gate_up", ["gate", "up"]),
                of.place(f"{variant}.down", ["down"]),
            )
        )  # fmt: skip
    head = _MatrixPlacer(pm, None, [0], dtype, shapes).place("head", ["head"])
    replicate = _replicate_rounds(pm, layout)
    attention = AttentionPlaces(
        mask_words=2 * context, context_words=context, keys=tuple(keys), values=tuple(values),
        **attention_temporaries, **west_constants,
    )  # fmt: skip
    return DecoderPlaces(
        layout, dtype, context, pm, constants, x, factor, dynamic, act, variants, head,
        replicate, results, up, hidden, narrow, _pairs([digits[0], narrow]), logits,
        attention, reduce, symbols.bases,
    )  # fmt: skip


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
    symbols: _Symbols | None  # None: what is there once, at fixed addresses
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
        return each[0] if self.symbols is None else self.symbols.place(label, each)


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
                pm.bottom(pm.weight_slices(2), words), groups, 2,
                pm.bottom(pm.weight_slices(3), words),
            )
        ]
        for _ in range(layout.q_tiles)
    ]  # fmt: skip


def fp32_rows(values: NDArray[np.float32]) -> Rows:
    """fp32 words [n, 320] as byte planes uint8 [4, n, 320]."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint8).reshape(*values.shape, 4)
    return np.ascontiguousarray(np.moveaxis(bits, -1, 0))


def put_fp32(image: Image, place: Place, base: int, values: NDArray[np.float32]) -> None:
    """Add fp32 words [n, 320] at ``place`` to an image."""
    for queue, plane in zip(place.queues, fp32_rows(values), strict=True):
        image.append((queue, base + place.address, plane))


def _put_columns(image: Image, place: Place, base: int, words: Rows) -> None:
    """Add weight words [words * 16, 320], column 16c+s in word c of slice s."""
    by_slice = words.reshape(-1, 16, 320)
    for s, queue in enumerate(place.queues):
        rows = np.ascontiguousarray(by_slice[:, s])
        image.append((queue, base + place.address, rows))


def _put_block(image: Image, block: ColumnBlock, bases: dict[Symbol, int], values: Rows) -> None:
    """Add one column block [K tiles, columns, 320] (int8, or uint16 for a plane pair)."""
    flat = values.reshape(-1, 320)
    for half, place in enumerate((block.weights, block.high)):
        if place is None:
            continue
        base = 0 if place.symbol is None else bases[place.symbol]
        if flat.dtype == np.uint16:
            _put_columns(image, place, base, ((flat >> (8 * half)) & 0xFF).astype(np.uint8))
        else:
            _put_columns(image, place, base, flat.view(np.uint8))


def _put_matrices(
    image: Image, places: MatrixPlaces, bases: dict[Symbol, int], matrices: dict[str, Matrix]
) -> None:
    slots: Iterator[tuple[str, int]] = iter(places.columns)
    for number, blocks in enumerate(places.rounds):
        scale_rows = []
        for block in blocks:
            name, index = next(slots)
            matrix = matrices[name]
            _put_block(image, block, bases, matrix.values[:, index])
            if matrix.scale is not None:
                scale_rows.append(matrix.scale[index])
        if scale_rows:
            place = places.scales[number]
            base = 0 if place.symbol is None else bases[place.symbol]
            put_fp32(image, place, base, np.stack(scale_rows))


def memory_image(places: DecoderPlaces, weights: ChipWeights) -> Image:
    """Everything that lies in one chip's SRAM before the first launch."""
    image: Image = []
    layout, a = places.layout, places.attention
    for number, (layer, bases) in enumerate(zip(weights.layers, places.bases, strict=True)):
        matrices = {name: getattr(layer, name) for name in _MATRICES}
        m = places.variants[number % len(places.variants)]
        for each in (m.qkv, m.o, m.gate_up, m.down):
            _put_matrices(image, each, bases, matrices)
    _put_matrices(image, places.head, {}, {"head": weights.head})
    if weights.replicate is not None:
        for tile, blocks in enumerate(places.replicate):
            _put_block(image, blocks[0], {}, weights.replicate[tile])
    for place, byte in ((places.constants.zero, 0), (places.constants.one_high, 0x3C)):
        row = np.full((1, 320), byte, np.uint8)
        image.extend((queue, place.address, row) for queue in place.queues)
    lane = np.arange(320)
    masks = np.stack(
        [(lane // layout.head_lanes == h).astype(np.float32) for h in range(layout.heads_per_tile)]
    )
    put_fp32(image, a.head_masks, 0, masks)
    table = np.zeros((2 * places.context, 320), np.float32)
    table[places.context :] = -np.inf
    put_fp32(image, a.mask_table, 0, table)
    swap = ((lane % 16) ^ 8).astype(np.uint8)[None]
    image.append((a.swap_map.queues[0], a.swap_map.address, swap))
    return image
