"""Where a decoder lies in a chip's SRAM, and the memory image of each chip.

The same places hold on every chip; only the contents differ.  Everything that repeats from layer
to layer (weights, scales, KV cache) is addressed by a symbol whose base differs per layer, so one
scheduled layer serves all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chip.passes import CompileError
from chip.reservation import Place, Symbol
from chip.spec import ChipSpec
from interconnect.collectives import ReducePlaces
from programs.attention import AttentionPlaces
from programs.matmul import PAIR_ORDER, PLANE_ORDER, Activations, ColumnBlock
from programs.norm import Constants
from programs.partition import ChipWeights, Layout, Matrix
from programs.placement import EAST_QUAD, KV_QUAD, MAP_PAIR, WEST_QUAD, Placement

Rows = NDArray[np.uint8]
Image = list[tuple[int, int, Rows]]

_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
_WEST_2, _WEST_3, _WEST_4 = (8, 9, 10, 11), (12, 13, 14, 15), (17, 18, 19, 21)
_EAST_2, _EAST_3 = (52, 53, 54, 55), (56, 57, 58, 59)
_EAST_4, _EAST_5, _EAST_6 = (61, 62, 63, 65), (66, 67, 69, 70), (71, 73, 74, 75)
_DIGITS = ((5, 6), (50, 51))  # activation slices: west, east


@dataclass
class MatrixPlaces:
    """Rounds of column blocks of one or more matrices, and the scale words of each round."""

    rounds: list[list[ColumnBlock]]
    scales: list[Place]
    columns: list[tuple[str, int]]  # (matrix, block) of each slot, round after round


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
    qkv: MatrixPlaces
    o: MatrixPlaces
    gate_up: MatrixPlaces
    down: MatrixPlaces
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

    def place(self, name: str, places: list[Place]) -> Place:
        """The symbol for the places that ``name`` has in each layer."""
        symbol = Symbol(name)
        for bases, place in zip(self.bases, places, strict=True):
            bases[symbol] = place.address
        return Place(places[0].queues, 0, symbol)


def place_decoder(spec: ChipSpec, layout: Layout, dtype: str, context: int) -> DecoderPlaces:
    """Allocate every word of a decoder; raises CompileError when it does not fit."""
    pm = Placement(spec)
    symbols = _Symbols(layout.layers)
    t, qt, kt = layout.x_tiles, layout.q_tiles, layout.kv_tiles
    if 2 * context > 4096:
        raise CompileError(f"context {context}: a program's mask table holds at most 2,048 positions")
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
    received = dict(
        zip(range(1, 8), (_WEST_2, _WEST_3, _WEST_4, _EAST_3, _EAST_4, _EAST_5, _EAST_6),
            strict=True)
    )  # fmt: skip
    partial = pm.top(_EAST_2, t)
    x = pm.top(EAST_QUAD, t)
    reduce = ReducePlaces(
        partial, x, {k: pm.top(received[k], t) for k in range(1, layout.tp)}
    )
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
        k = [pm.bottom(KV_QUAD[:2], context, one_bank=True) for _ in range(layout.layers)]
        v = [pm.bottom(KV_QUAD[2:], context, one_bank=True) for _ in range(layout.layers)]
        keys.append(symbols.place(f"keys{tile}", k))
        values.append(symbols.place(f"values{tile}", v))
    shapes = matrix_shapes(layout)
    of = _matrix_placer(pm, symbols, layout.layers, dtype, shapes)
    qkv, o = of("qkv", ["q", "k", "v"]), of("o", ["o"])
    gate_up, down = of("gate_up", ["gate", "up"]), of("down", ["down"])
    head = _matrix_placer(pm, None, 1, dtype, shapes)("head", ["head"])
    replicate = _replicate_rounds(pm, layout)
    attention = AttentionPlaces(
        mask_words=2 * context, context_words=context, keys=tuple(keys), values=tuple(values),
        **attention_temporaries, **west_constants,
    )  # fmt: skip
    return DecoderPlaces(
        layout, dtype, context, pm, constants, x, factor, dynamic, act, qkv, o, gate_up, down,
        head, replicate, results, up, hidden, narrow, _pairs([digits[0], narrow]), logits,
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


def _matrix_placer(pm, symbols, layers, dtype, shapes):  # type: ignore[no-untyped-def]
    """A function placing the blocks of some matrices plane after plane, for all layers."""
    order = PLANE_ORDER if dtype == "int8" else PAIR_ORDER

    def place(name: str, matrices: list[str]) -> MatrixPlaces:
        slots = [(m, b) for m in matrices for b in range(shapes[m][1])]
        rounds: list[list[ColumnBlock]] = []
        scales: list[Place] = []
        for first in range(0, len(slots), len(order)):
            blocks = []
            for slot, plane in zip(slots[first : first + len(order)], order, strict=False):
                k_tiles, _, groups = shapes[slot[0]]
                halves = []
                for half in range(1 if dtype == "int8" else 2):
                    queues = pm.weight_slices(plane + half)
                    each = [pm.bottom(queues, k_tiles * groups) for _ in range(layers)]
                    label = f"{name}{first}.{plane}.{half}"
                    halves.append(each[0] if symbols is None else symbols.place(label, each))
                blocks.append(
                    ColumnBlock(halves[0], groups, plane, halves[1] if len(halves) > 1 else None)
                )
            rounds.append(blocks)
            if dtype == "int8":
                each = [pm.bottom(WEST_QUAD, len(blocks)) for _ in range(layers)]
                scales.append(
                    each[0] if symbols is None else symbols.place(f"{name}{first}.scale", each)
                )
        return MatrixPlaces(rounds, scales, slots)

    return place


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
    for layer, bases in zip(weights.layers, places.bases, strict=True):
        matrices = {name: getattr(layer, name) for name in _MATRICES}
        for each in (places.qkv, places.o, places.gate_up, places.down):
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
