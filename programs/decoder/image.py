"""What lies in each chip's SRAM before the first launch: weights, scales, tables, constants."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from chip.isa import LANES
from chip.scheduling import Place, Symbol
from interconnect.collectives import scatter_offsets, word_order
from programs.decoder.lanes import Layout
from programs.decoder.partition import (
    NO_LOGIT,
    ChipWeights,
    LayerWeights,
    Matrix,
    PartitionedModel,
    chip_weights,
)
from programs.decoder.places import (
    AttentionMatrices,
    DecoderPlaces,
    FfnMatrices,
    Matrices,
    MatrixPlaces,
    SlidingMask,
)
from programs.decoder.stages import ATTENTION, FFN, Block, Stage
from programs.kernels import (
    ChoicePlaces,
    ColumnBlock,
    GroupPlaces,
    HeadNormPlaces,
    PlanePlaces,
    constant_words,
    lane_map_words,
    offset_words,
    put_weights,
)
from programs.sram import Image, put_fp32

Rows = NDArray[np.uint8]


def _put_block(image: Image, block: ColumnBlock, bases: dict[Symbol, int], values: Rows) -> None:
    """Add one column block [K tiles, columns, 320] (int8, or uint16 for a plane pair)."""
    halves = range(len(block.weights.halves))
    if values.dtype == np.uint16:
        planes = [((values >> (8 * half)) & 0xFF).astype(np.uint8) for half in halves]
    else:
        planes = [np.ascontiguousarray(values).view(np.uint8)]
    put_weights(image, block.weights, planes, bases)


def _side_by_side(blocks: list[Rows], turns: int, lanes: int) -> list[Rows]:
    """Blocks [.., 320] of experts that use the first ``lanes``, so many of them in each."""
    found = []
    for first in range(0, len(blocks), turns):
        joined = np.zeros_like(blocks[0])
        for turn, block in enumerate(blocks[first : first + turns]):
            joined[..., turn * lanes : (turn + 1) * lanes] = block[..., :lanes]
        found.append(joined)
    return found


def _put_matrices(
    image: Image,
    places: MatrixPlaces,
    bases: dict[Symbol, int],
    matrices: dict[str, Matrix],
    order: list[int],
    shared: tuple[int, int, int] = (1, 1, LANES),
) -> None:
    """order: the tile of x that each column block of ``o`` and ``down`` is of, on this chip.

    shared: experts of a block, how many of them share a word of ``down``, and on how many lanes.
    """
    experts, turns, lanes = shared
    slots: Iterator[tuple[str, int]] = iter(places.columns)
    for number, blocks in enumerate(places.rounds):
        scale_rows = []
        for block in blocks:
            name, index = next(slots)
            matrix = matrices[name]
            index = order[index] if name in ("o", "down") else index
            blocks = matrix.values.shape[1] // experts
            own = [matrix.values[:, e * blocks + index] for e in range(experts)]
            if name == "down" and turns > 1:
                own = _side_by_side(own, turns, lanes)
            _put_block(image, block, bases, np.concatenate(own))
            if matrix.scale is not None and experts == 1:
                scale_rows.append(matrix.scale[index])
        if scale_rows:
            place = places.scales[number]
            base = 0 if place.symbol is None else bases[place.symbol]
            put_fp32(image, place, base, np.stack(scale_rows))


@dataclass(frozen=True, eq=False)
class _Spread:
    """The columns of narrow tiles that those of wide ones are copies of.

    tile, lane: of each column of a cached tile, int64 [cache_tiles, q_width]; used: whether it is
    of any, bool of the same shape.
    """

    tile: NDArray[np.int64]
    lane: NDArray[np.int64]
    used: NDArray[np.bool_]

    @classmethod
    def of(cls, layout: Layout, one_hot: NDArray[np.uint16]) -> _Spread:
        """one_hot: those of a chip's ``ChipWeights.replicate``."""
        q_tiles = [layout.cache_of_tile.index(tile) for tile in range(layout.cache_tiles)]
        hot = one_hot[q_tiles].transpose(0, 2, 1, 3).reshape(len(q_tiles), layout.q_width, -1)
        tile, lane = np.divmod(hot.argmax(axis=2), LANES)
        return cls(tile, lane, hot.max(axis=2) > 0)

    def rows(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Words [kv_tiles, 320] of lanes that are columns, [cache_tiles, 320]."""
        found = np.zeros((len(self.tile), LANES), np.float32)
        found[:, : self.tile.shape[1]] = np.where(self.used, rows[self.tile, self.lane], 0)
        return found

    def matrix(self, matrix: Matrix, stored: bool = True) -> Matrix:
        """A matrix with wide tiles for columns; stored: all of them, else installs repeat them."""
        values = matrix.values
        if stored:
            values = values[:, self.tile, self.lane]
            values[:, ~self.used] = 0
        return Matrix(values, None if matrix.scale is None else self.rows(matrix.scale))


def _wide(layout: Layout, layer: LayerWeights, one_hot: NDArray[np.uint16] | None) -> LayerWeights:
    """A layer with K, and V where it needs to be, as wide as ``layout`` has them."""
    if not layout.wide_keys or one_hot is None or not layer.k.values.shape[1]:
        return layer
    spread, bias, q = _Spread.of(layout, one_hot), layer.bias, layout.q_tiles
    k = spread.matrix(layer.k, layout.key_copies == 1)
    v = spread.matrix(layer.v) if layout.wide_values else layer.v
    if bias is not None:
        k_bias, v_bias = bias[q : q + layout.kv_tiles], bias[q + layout.kv_tiles :]
        v_bias = spread.rows(v_bias) if layout.wide_values else v_bias
        bias = np.concatenate([bias[:q], spread.rows(k_bias), v_bias])
    return replace(layer, k=k, v=v, bias=bias)


def _block_matrices(block: Block, m: Matrices, layer: LayerWeights) -> dict[str, Matrix]:
    """The matrices of one block, cut to its part."""
    if block.kind == ATTENTION:
        heads = {name: getattr(layer, name) for name in ("q", "k", "v", "o")}
        if layer.latent is not None:
            heads |= {"kv_down": layer.latent.kv_down, "k_rope": layer.latent.k_rope}
            heads |= {} if layer.latent.q_down is None else {"q_down": layer.latent.q_down}
        return heads
    assert isinstance(m, FfnMatrices)
    own, held = slice(m.first_tile, m.first_tile + m.tiles), m.experts
    every = layer.down.values.shape[1] // len(m.down.columns)  # experts of the layer
    found = {}
    for name, w in (("gate", layer.gate), ("up", layer.up), ("down", layer.down)):
        numbers = np.arange(w.values.shape[1]).reshape(every, -1)[held.start : held.stop]
        blocks = numbers[:, slice(None) if name == "down" else own].reshape(-1)
        values = w.values[own] if name == "down" else w.values
        found[name] = Matrix(values[:, blocks], None if w.scale is None else w.scale[blocks])
    router = layer.router
    for part, name in enumerate(() if router is None else ("router", "fine")):
        if router is not None and part < router.values.shape[1]:
            scale = None if router.scale is None else router.scale[part : part + 1]
            found[name] = Matrix(router.values[:, part : part + 1], scale)
    gate = layer.share_gate
    for part, name in enumerate(() if gate is None else ("share", "share_fine")):
        if gate is not None and part < gate.values.shape[1]:
            scale = None if gate.scale is None else gate.scale[part : part + 1]
            found[name] = Matrix(gate.values[:, part : part + 1], scale)
    return found


def _put_expert_scales(
    image: Image,
    m: FfnMatrices,
    bases: dict[Symbol, int],
    matrices: dict[str, Matrix],
    order: list[int],
) -> None:
    """The scales of all blocks of an expert, in the order of its rounds; then the next expert's.

    order: as for ``_put_matrices``.
    """
    if m.scales is None:
        return
    assert m.scales.symbol is not None
    experts = len(m.experts)
    rows = []
    for expert in range(experts):
        for name, index in m.gate_up.columns + m.down.columns:
            scale = matrices[name].scale
            assert scale is not None
            index = order[index] if name == "down" else index
            rows.append(scale[expert * (len(scale) // experts) + index])
    put_fp32(image, m.scales, bases[m.scales.symbol], np.stack(rows))


def _put_expert_biases(
    image: Image, m: FfnMatrices, bases: dict[Symbol, int], layer: LayerWeights, order: list[int]
) -> None:
    """The biases of every expert that is here, in the order of its rounds, and the router's.

    order: as for ``_put_matrices``.
    """
    if m.router_bias is not None:
        assert layer.router_bias is not None and m.router_bias.symbol is not None
        put_fp32(image, m.router_bias, bases[m.router_bias.symbol], layer.router_bias)
    if m.biases is None:
        return
    assert layer.expert_biases is not None and m.biases.symbol is not None
    every = len(layer.expert_biases[2]) // len(order)
    gate, up, down = (of.reshape(every, -1, 320) for of in layer.expert_biases)
    own = slice(m.first_tile, m.first_tile + m.tiles)
    if m.first_tile:  # parts that are cut between tiles all take every expert: one adds its bias
        down = np.zeros_like(down)
    held = slice(m.experts.start, m.experts.stop)
    rows = np.concatenate([gate[held, own], up[held, own], down[held][:, order]], axis=1)
    put_fp32(image, m.biases, bases[m.biases.symbol], rows.reshape(-1, 320))


def _put_choice(image: Image, places: ChoicePlaces) -> None:
    """What a choice of experts looks up: lanes by number, those behind them, numbers by lane."""
    lane, number = np.arange(320), np.arange(places.experts)[:, None]
    for place, rows in ((places.one_hot, lane == number), (places.later, lane > number)):
        image.append((place.queues[0], place.address, rows.astype(np.uint8)))
    index = np.where(lane < places.experts, lane, 0).astype(np.float16).view(np.uint16)
    put_fp32(image, places.pieces, 0, index.astype(np.uint32).view(np.float32)[None])
    if places.shared:
        numbers = places.experts + np.arange(places.shared, dtype=np.float32)
        put_fp32(image, places.indices.at(places.routed), 0, np.tile(numbers[:, None], (1, 320)))
    if places.scores is not None:
        present = places.scores.present
        image.append(
            (present.queues[0], present.address, (lane < places.experts).astype(np.uint8)[None])
        )
    if places.groups is not None:
        _put_groups(image, places.groups)
    if places.absent is not None:
        row = np.full((1, 320), NO_LOGIT, np.float32)
        row[0, : places.experts] = 0
        put_fp32(image, places.absent, 0, row)


def _put_groups(image: Image, places: GroupPlaces) -> None:
    """What a choice of groups looks up, and ones where column and lane are of one group."""
    lane = np.arange(320)
    used = lane < places.count * places.size
    group, within = np.where(used, lane // places.size, -1), lane % places.size
    member, number = np.arange(places.size)[:, None], np.arange(places.count)[:, None]
    for place, rows in (
        (places.members, used & (within == member)),
        (places.behind, used & (within > member)),
        (places.firsts, used & (lane == number * places.size)),
        (places.later, group > number),
    ):
        image.append((place.queues[0], place.address, rows.astype(np.uint8)))
    ones = np.where(used & used[:, None] & (group == group[:, None]), 0x3C, 0).astype(np.uint8)
    columns = ones.reshape(20, 16, 320)  # column 16 w + s is word w of slice s
    for s, queue in enumerate(places.ones.queues):
        image.append((queue, places.ones.address, np.ascontiguousarray(columns[:, s])))


def _put_shares(image: Image, places: DecoderPlaces, chip: int) -> list[int]:
    """The chip's map of whose sums belong where; the tile of x of each of its partial sums."""
    tp, tiles, shares = places.layout.tp, places.layout.x_tiles, places.shares
    if shares is None:
        return list(range(tiles))
    offsets = np.array(scatter_offsets(tp, chip))
    for byte, queue in enumerate(shares.map.queues):
        rows = np.repeat((offsets[:, None] >> 8 * byte & 0xFF).astype(np.uint8), 320, axis=1)
        image.append((queue, shares.map.address, rows))
    return word_order(tp, chip, shares.words, tiles)


def _put_head_ones(image: Image, places: HeadNormPlaces) -> None:
    """High bytes of fp16 ones on the lanes of each head slot, on every slice."""
    head = np.arange(320) // places.head_lanes
    rows = np.where(head == np.arange(places.slots)[:, None], 0x3C, 0).astype(np.uint8)
    image.extend((queue, places.ones.address, rows) for queue in places.ones.queues)


def sliding_table(mask: SlidingMask) -> NDArray[np.float32]:
    """float32 [words, 320]: zeros where a window is, minus infinities before and behind it."""
    table = np.full((mask.words, 320), -np.inf, np.float32)
    table[mask.positions : mask.positions + mask.zeros] = 0
    return table


def _put_plane_constants(image: Image, places: PlanePlaces, masks: NDArray[np.float32]) -> None:
    """What attention on the planes multiplies, routes and masks by; masks: of a tile's heads."""
    put_fp32(image, places.head_masks, 0, masks)
    words = constant_words()
    for place in places.constants:
        for queue, rows in zip(place.queues, words, strict=True):
            image.append((queue, place.address, rows))
    for place in places.lane_maps:
        image.extend((queue, place.address, lane_map_words()) for queue in place.queues)
    for place in places.offsets:
        for queue, rows in zip(place.queues, offset_words(), strict=True):
            image.append((queue, place.address, rows))


def memory_image(places: DecoderPlaces, stage: Stage, weights: ChipWeights, chip: int) -> Image:
    """What chip ``chip`` of the group of ``stage``, of the shape of ``places``, holds before the
    first launch.
    """
    image: Image = []
    layout, a = places.layout, places.attention
    order = _put_shares(image, places, chip)
    for number, block in enumerate(stage.blocks):
        m = places.variants[places.variant_of[number]]
        layer = weights.layer(block.layer)
        if block.kind == ATTENTION:
            layer = _wide(layout, layer, weights.replicate)
        matrices = _block_matrices(block, m, layer)
        own = [m.qkv, m.o] if isinstance(m, AttentionMatrices) else [m.gate_up, m.down]
        if isinstance(m, FfnMatrices) and m.router is not None:
            own.append(m.router)
        if isinstance(m, AttentionMatrices) and m.latent is not None:
            own += [m.latent.kv] if m.latent.q is None else [m.latent.q, m.latent.kv]
        bases = places.bases[0][number]
        if isinstance(m, FfnMatrices):
            _put_expert_scales(image, m, bases, matrices, order)
            _put_expert_biases(image, m, bases, layer, order)
        for each in own:
            shared = (1, 1, LANES)
            if isinstance(m, FfnMatrices) and each is not m.router:
                of_ffn = layout.for_ffn(block.of)
                shared = (len(m.experts), of_ffn.turns, of_ffn.ffn_width)
            _put_matrices(image, each, bases, matrices, order, shared)
        put: list[tuple[Place | None, NDArray[np.float32] | None]] = [
            (m.post, layer.post_gains[isinstance(m, FfnMatrices)]),
            (m.factors, layer.factors[isinstance(m, FfnMatrices)]),
        ]
        if isinstance(m, AttentionMatrices):
            put.append((m.gains, layer.head_gains))
            put += [(m.bias, layer.bias), (m.sinks, layer.sinks)]
            put += [(m.o_bias, None if layer.o_bias is None else layer.o_bias[order])]
            if m.latent is not None and layer.latent is not None:
                put += zip(
                    (m.latent.q_factors, m.latent.kv_factors), layer.latent.factors, strict=True
                )
            if places.wide_norm is not None and layer.key_shares is not None:
                put_fp32(image, places.wide_norm.shares, 0, layer.key_shares)
        for place, words in put:
            if place is not None and words is not None:
                assert place.symbol is not None
                put_fp32(image, place, bases[place.symbol], words)
    if places.head is not None:
        _put_matrices(image, places.head, {}, {"head": weights.head}, order)
        if places.head_factors is not None:
            assert weights.factors is not None
            put_fp32(image, places.head_factors, 0, weights.factors)
    if weights.replicate is not None:
        for tile, blocks in enumerate(places.replicate):
            q_tile = layout.cache_of_tile.index(tile)
            _put_block(image, blocks[0], {}, weights.replicate[q_tile])
    for place, byte in ((places.constants.zero, 0), (places.constants.one_high, 0x3C)):
        row = np.full((1, 320), byte, np.uint8)
        image.extend((queue, place.address, row) for queue in place.queues)
    lane = np.arange(320)
    if places.choice is not None:
        _put_choice(image, places.choice)
    if places.head_norm is not None:
        _put_head_ones(image, places.head_norm)
    masks = np.stack(
        [(lane // layout.head_lanes == h).astype(np.float32) for h in range(layout.heads_per_tile)]
    )
    if places.planes is not None:
        _put_plane_constants(image, places.planes.words, masks)
    if a is not None:
        put_fp32(image, a.head_masks, 0, masks)
        table = np.zeros((a.mask_words, 320), np.float32)
        table[a.mask_positions :] = -np.inf
        put_fp32(image, a.mask_table, 0, table)
    if places.sliding is not None:
        put_fp32(image, places.sliding.table, 0, sliding_table(places.sliding))
    swap = ((lane % 16) ^ 8).astype(np.uint8)[None]
    swap_map = places.rope.swap_map
    image.append((swap_map.queues[0], swap_map.address, swap))
    return image


@dataclass(frozen=True, eq=False)
class ChipImages:
    """How to make the image of every chip of a compiled decoder, from the checkpoint itself.

    Small, so it can be sent to the process that has the chip: of a checkpoint of any size that one
    then reads only the rows and columns which its own chips hold.  codes: the places and the stage
    of each group of ``tp`` chips, None where a group is idle.
    """

    model: PartitionedModel
    codes: tuple[tuple[DecoderPlaces, Stage] | None, ...]

    def image(self, chip: int) -> Image:
        """What ``chip`` holds before the first launch."""
        group, local = divmod(chip, self.model.layout.tp)
        code = self.codes[group]
        if code is None:
            return []
        places, stage = code
        return memory_image(places, stage, self._weights(stage, local), local)

    def _weights(self, stage: Stage, local: int) -> ChipWeights:
        model = self.model
        attention, ffn = (
            {block.layer for block in stage.blocks if block.kind == kind}
            for kind in (ATTENTION, FFN)
        )
        everything = stage.head and len(attention) == len(ffn) == model.layout.layers
        if model.is_built(local) or everything:
            return model.chip(local)
        return chip_weights(
            model.checkpoint, model.layout, model.dtype, local, attention, ffn, stage.head
        )

    def of(self, chips: Collection[int]) -> list[Image]:
        """The images of some chips; those of all others are empty."""
        count = len(self.codes) * self.model.layout.tp
        return [self.image(chip) if chip in chips else [] for chip in range(count)]

    def unread(self) -> ChipImages:
        """The same without any weights that were read already."""
        return replace(self, model=replace(self.model, _built={}))
