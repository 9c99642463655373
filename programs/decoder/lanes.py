"""Where the elements of a model lie: chips, tiles and lanes.

The layout of vectors and heads is that of ``docs/numerics.md``; `Layout` computes it from a
`ModelConfig` and the number of chips, without any weights.  An axis is a table of element numbers
per (tile, lane), and every matrix has one for its inputs and one for its outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from chip.errors import LpuError
from programs.models import PLAIN_LAYER, LatentAttention, LayerKind, ModelConfig

__all__ = ["LANES", "Axis", "Layout", "PartitionError"]

Axis = NDArray[np.int64]
"""[tiles, 320]: the element on each lane, -1 where the lane is padding."""

LANES = 320
#: Models made for more positions attend on the planes, whatever the context.
SHORT_POSITIONS = 512
#: Heads that one run of attention through the planes serves, and so a tile has there.
MOST_HEADS = 8
#: Column blocks of a round of a product in int8, a plane each.
PRODUCTS = 4
#: Experts that share a word of weights at most: three versions of a word meet in the VXM.
MOST_TURNS = 3


class PartitionError(LpuError, ValueError):
    """A model that cannot be laid out as asked: what, and what would mend it, in one line."""


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _tiles(elements: int) -> tuple[int, int]:
    """Return (tiles, lanes used per tile, a multiple of 16) of a vector of `elements`."""
    tiles = _ceil(elements, LANES)
    return tiles, 16 * _ceil(elements, 16 * tiles)


def _straight_axis(first: int, last: int, tiles: int, width: int) -> Axis:
    """Return the axis of elements first..last-1 laid in order on `tiles` of `width` lanes."""
    axis = np.full((tiles, LANES), -1, dtype=np.int64)
    numbers = first + np.arange(tiles * width, dtype=np.int64)
    axis[:, :width] = np.where(numbers < last, numbers, -1).reshape(tiles, width)
    return axis


@dataclass(frozen=True)
class Layout:
    """How a model lies on the lanes of `tp` chips; counts are per chip unless said otherwise."""

    tp: int
    hidden_size: int
    layers: int
    head_dim: int
    heads_total: int
    """Query heads of the model."""
    kv_heads_total: int
    """Key/value heads of the model."""
    ffn: int
    """Feed-forward elements of the model, or of each expert."""
    vocab: int
    """Tokens of the model's vocabulary."""
    x_tiles: int
    """T: tiles of a hidden vector."""
    x_width: int
    """wx: lanes used of each."""
    query_heads: int
    """hq: query head slots."""
    head_lanes: int
    """dp: lanes of a head, a multiple of 16."""
    q_tiles: int
    """qt"""
    heads_per_tile: int
    """hpt: query head slots per q tile."""
    kv_heads: int
    """nkv: key/value head slots."""
    kv_tiles: int
    """kt"""
    kv_heads_per_tile: int
    """kpt: key/value head slots per kv tile."""
    replicate: bool
    """K and V are spread to the lanes of their query heads by one-hot matrices."""
    ffn_per_chip: int
    """F, of each expert"""
    ffn_tiles: int
    """nf, of each expert"""
    ffn_width: int
    """wf"""
    vocab_per_chip: int
    """V"""
    vocab_blocks: int
    """nv"""
    vocab_width: int
    """wv"""
    head_norms: bool = False
    """Every query and key head is normed."""
    pre_norms: bool = True
    """Attention and FFN take x normed, else x itself."""
    post_norms: bool = False
    """What attention and FFN give is normed."""
    wide_norms: bool = False
    """All query heads are normed together, and all key heads."""
    experts: int = 1
    """FFNs of a layer, the shared ones last."""
    turns: int = 1
    """Experts that share the words of their last product: side by side if small."""
    chosen: int = 1
    """Slots: FFNs that a token takes, one after the other."""
    shared: int = 0
    """FFNs, and slots, that every token has: the last ones."""
    shared_gate: bool = False
    """Shared experts are multiplied by the sigmoid of a product of their own."""
    input_shares: bool = False
    """What goes into chosen experts is multiplied by their shares, not what comes out."""
    shares_of_all: bool = False
    """Shares are those of the softmax over all experts."""
    expert_bias: bool = False
    """The router and the experts have biases, and the gated product of experts is clamped."""
    sinks: bool = False
    """Every query head has a logit of its own."""
    qkv_bias: bool = False
    """Queries, keys and values have biases."""
    o_bias: bool = False
    """The attention's output has a bias."""
    rope_tables: int = 1
    """Rotary tables: 1, or 2 of which every layer has one."""
    window: int = 0
    """Positions that a layer with a sliding window attends to; 0: there is no such layer."""
    layer_kinds: tuple[LayerKind, ...] = ()
    """Of each layer; empty where all are alike."""
    on_planes: bool = False
    """Attention runs on the planes, positions on lanes; else on the VXM, one after another."""
    dense_ffn: int = 0
    """Feed-forward elements of layers that have one FFN where others have experts."""
    expert_groups: int = 1
    """Groups of experts of which ``chosen_groups`` are chosen first."""
    chosen_groups: int = 1
    sigmoid_scores: bool = False
    """Experts are chosen by sigmoids and a bias."""
    latent: LatentAttention | None = None
    """Keys and values are made from a latent that every chip computes."""

    @classmethod
    def of(cls, config: ModelConfig, tp: int) -> Layout:
        """Lay `config` out on `tp` chips."""
        if tp not in (1, 2, 4, 8):
            raise PartitionError(f"tp is {tp}; tensor parallelism must be 1, 2, 4 or 8")
        if config.head_dim > LANES:
            raise PartitionError(
                f"head_dim is {config.head_dim}; a head must fit the {LANES} lanes of a tile"
            )
        on_planes = config.max_position > SHORT_POSITIONS or config.sinks
        head_lanes = 16 * _ceil(config.head_dim, 16)
        lanes = LANES - 16 if on_planes else LANES
        if head_lanes > lanes:
            raise PartitionError(
                f"head_dim is {config.head_dim}; a model for more than {SHORT_POSITIONS} positions "
                f"has heads of at most {lanes}, {LANES - lanes} lanes of a tile count its positions"
            )
        x_tiles, x_width = _tiles(config.hidden_size)
        query_heads = _ceil(config.heads, tp)
        room = lanes // head_lanes
        if on_planes:
            room = min(room, MOST_HEADS)
        q_tiles = _ceil(query_heads, room)
        slots = [_kv_heads_of(config.heads, config.kv_heads, query_heads, c) for c in range(tp)]
        kv_heads = max(len(set(used)) for used in slots)
        kv_tiles = _ceil(kv_heads, room)
        aligned = kv_heads == query_heads and all(len(set(used)) == len(used) for used in slots)
        ffn_per_chip = _ceil(config.ffn, tp)
        ffn_tiles, ffn_width = _tiles(ffn_per_chip)
        vocab_per_chip = _ceil(config.vocab, tp)
        vocab_blocks, vocab_width = _tiles(vocab_per_chip)
        return cls(
            tp=tp,
            hidden_size=config.hidden_size,
            layers=config.layers,
            head_dim=config.head_dim,
            heads_total=config.heads,
            kv_heads_total=config.kv_heads,
            ffn=config.ffn,
            vocab=config.vocab,
            x_tiles=x_tiles,
            x_width=x_width,
            query_heads=query_heads,
            head_lanes=head_lanes,
            q_tiles=q_tiles,
            heads_per_tile=_ceil(query_heads, q_tiles),
            kv_heads=kv_heads,
            kv_tiles=kv_tiles,
            kv_heads_per_tile=_ceil(kv_heads, kv_tiles),
            replicate=not aligned,
            ffn_per_chip=ffn_per_chip,
            ffn_tiles=ffn_tiles,
            ffn_width=ffn_width,
            vocab_per_chip=vocab_per_chip,
            vocab_blocks=vocab_blocks,
            vocab_width=vocab_width,
            head_norms=config.head_norms,
            pre_norms=config.pre_norms,
            post_norms=config.post_norms,
            wide_norms=config.wide_norms,
            experts=config.experts + config.shared_experts,
            turns=1
            if config.experts == 1 or ffn_tiles > 1
            else min(MOST_TURNS, LANES // ffn_width),
            chosen=config.experts_per_token + config.shared_experts,
            shared=config.shared_experts,
            shared_gate=config.shared_gate,
            shares_of_all=config.shares_of_all,
            input_shares=config.input_shares,
            expert_bias=config.expert_bias,
            sinks=config.sinks,
            qkv_bias=config.qkv_bias,
            o_bias=config.o_bias,
            rope_tables=len(config.ropes),
            window=config.sliding_window,
            layer_kinds=config.layer_kinds,
            on_planes=on_planes,
            dense_ffn=config.dense_ffn,
            expert_groups=config.expert_groups,
            chosen_groups=config.chosen_groups,
            sigmoid_scores=config.sigmoid_scores,
            latent=config.latent,
        )

    def kind_of(self, layer: int) -> LayerKind:
        """What is special about a layer."""
        return self.layer_kinds[layer] if self.layer_kinds else PLAIN_LAYER

    def for_ffn(self, kind: LayerKind) -> Layout:
        """The layout of a model whose FFNs are all as those of layers of ``kind``."""
        if not kind.dense:
            return self
        per_chip = _ceil(self.dense_ffn, self.tp)
        tiles, width = _tiles(per_chip)
        return replace(
            self,
            ffn=self.dense_ffn,
            ffn_per_chip=per_chip,
            ffn_tiles=tiles,
            ffn_width=width,
            experts=1,
            turns=1,
            chosen=1,
            shared=0,
            shared_gate=False,
            input_shares=False,
            shares_of_all=False,
            sigmoid_scores=False,
            expert_groups=1,
            chosen_groups=1,
        )

    @property
    def q_width(self) -> int:
        """Columns of a q block: the lanes used of a q tile."""
        return self.heads_per_tile * self.head_lanes

    @property
    def kv_width(self) -> int:
        """Columns of a k or v block: the lanes used of a kv tile."""
        return self.kv_heads_per_tile * self.head_lanes

    @property
    def latent_tiles(self) -> tuple[int, int]:
        """Tiles of the latents of queries (0: they are made of x) and of keys and values."""
        if self.latent is None:
            return 0, 0
        ranks = self.latent.query, self.latent.key_value
        return _tiles(ranks[0])[0] if ranks[0] else 0, _tiles(ranks[1])[0]

    @property
    def latent_widths(self) -> tuple[int, int]:
        """Lanes used of each tile of the two latents, as ``latent_tiles``."""
        if self.latent is None:
            return 0, 0
        ranks = self.latent.query, self.latent.key_value
        return _tiles(ranks[0])[1] if ranks[0] else 0, _tiles(ranks[1])[1]

    @property
    def qkv_columns(self) -> int:
        """Stored columns of 320 weights of the products before the attention of a layer."""
        t, q = self.x_tiles, self.q_tiles * self.q_width
        keys, values = self.key_tiles * self.key_width, self.value_tiles * self.value_width
        if self.latent is None:
            return t * (q + keys + values)
        (of_q, of_kv), (q_width, kv_width) = self.latent_tiles, self.latent_widths
        down = t * (of_q * q_width + of_kv * kv_width + self.kv_width)
        return down + (of_q or t) * q + of_kv * (keys + values)

    @property
    def wide_keys(self) -> bool:
        """K's product gives a KV head's columns once for each of its query heads, beside those of
        q, from no more words and, in int8, in no more cycles: so nothing is left to spread.  fp16
        takes two blocks for a round of the planes, so a wide K may make one longer.
        """
        free = self.q_tiles < PRODUCTS and self.q_tiles + self.cache_tiles <= PRODUCTS
        narrow, wide = self.kv_tiles * self.kv_width, self.cache_tiles * self.q_width
        may = self.on_planes and self.replicate and not self.wide_norms and self.latent is None
        return may and free and (self._one_for_all or wide <= narrow)

    @property
    def _one_for_all(self) -> bool:
        """All query tiles attend to one cached tile whose heads use the same KV head."""
        one = self.cache_tiles == self.kv_heads == 1
        return one and self.value_lanes == self.head_lanes

    @property
    def wide_values(self) -> bool:
        """The same of V, which needs it unless all heads of a chip use the same values."""
        return self.wide_keys and not self._one_for_all

    @property
    def key_tiles(self) -> int:
        """Tiles of K as its product gives them."""
        return self.cache_tiles if self.wide_keys else self.kv_tiles

    @property
    def value_tiles(self) -> int:
        """Tiles of V as its product gives them."""
        return self.cache_tiles if self.wide_values else self.kv_tiles

    @property
    def key_width(self) -> int:
        """Columns of a block of K that are stored."""
        return self.q_width if self.wide_keys and self.key_copies == 1 else self.kv_width

    @property
    def key_copies(self) -> int:
        """How often an install takes the stored columns of a block of K."""
        return self.heads_per_tile if self.wide_keys and self._one_for_all else 1

    @property
    def value_width(self) -> int:
        """Columns of a block of V."""
        return self.q_width if self.wide_values else self.kv_width

    @property
    def projected_tiles(self) -> int:
        """Tiles of q, K and V together, as their products give them."""
        return self.q_tiles + self.key_tiles + self.value_tiles

    @property
    def slot_tiles(self) -> int:
        """FFN tiles of all slots, or of the FFN of a layer without experts, if those are more."""
        dense = _tiles(_ceil(self.dense_ffn, self.tp))[0] if self.dense_ffn else 0
        return max(self.chosen * self.ffn_tiles, dense)

    @property
    def routed(self) -> int:
        """FFNs of a layer among which the router chooses."""
        return self.experts - self.shared

    @property
    def half_lanes(self) -> NDArray[np.int64]:
        """[head_dim / 2]: the lane, within a head, of each first-half element (partner: + 8)."""
        i = np.arange(self.head_dim // 2, dtype=np.int64)
        return 16 * (i // 8) + i % 8

    @property
    def cache_of_tile(self) -> tuple[int, ...]:
        """[q_tiles]: the cached K and V tile that each q tile attends to.

        Tiles whose query heads use the same KV heads on every chip share one.
        """
        if not self.replicate:
            return tuple(range(self.q_tiles))
        patterns: list[tuple[tuple[int, ...], ...]] = []
        slots = [self.kv_slots(chip) for chip in range(self.tp)]
        for tile in range(self.q_tiles):
            first = tile * self.heads_per_tile
            patterns.append(tuple(tuple(s[first : first + self.heads_per_tile]) for s in slots))
        distinct = list(dict.fromkeys(patterns))
        return tuple(distinct.index(pattern) for pattern in patterns)

    @property
    def cache_tiles(self) -> int:
        """Tiles of K, and of V, that a position occupies in the cache of a layer."""
        return max(self.cache_of_tile) + 1

    @property
    def query_runs(
        self,
    ) -> tuple[tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...], ...]:
        """Query groups that attend together: as many as have up to eight heads."""
        runs: list[list[tuple[int, tuple[int, ...], tuple[int, ...]]]] = [[]]
        heads = 0
        for group in self.query_groups:
            own = sum(group[2])
            if heads + own > MOST_HEADS:
                runs.append([])
                heads = 0
            runs[-1].append(group)
            heads += own
        return tuple(map(tuple, runs))

    @property
    def query_groups(self) -> tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]:
        """(cached tile, q tiles, query heads of each): what runs through the planes together."""
        found: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []
        cached_of = self.cache_of_tile
        for cached in range(self.cache_tiles):
            tiles: list[int] = []
            heads: list[int] = []
            for tile in [n for n, own in enumerate(cached_of) if own == cached]:
                count = min(self.heads_per_tile, self.query_heads - tile * self.heads_per_tile)
                if sum(heads) + count > MOST_HEADS:
                    found.append((cached, tuple(tiles), tuple(heads)))
                    tiles, heads = [], []
                tiles.append(tile)
                heads.append(count)
            found.append((cached, tuple(tiles), tuple(heads)))
        return tuple(found)

    @property
    def run_heads(self) -> tuple[int, ...]:
        """Query head slots in the order in which they go through the planes."""
        return tuple(
            tile * self.heads_per_tile + slot
            for run in self.query_runs
            for _, tiles, heads in run
            for tile, count in zip(tiles, heads, strict=True)
            for slot in range(count)
        )

    @property
    def value_lanes(self) -> int:
        """Lanes of a cached tile whose values attention on the planes keeps: all of its heads, or
        one head's where all heads of a tile are there and use the same values.
        """
        per_tile = self.heads_per_tile
        whole = self.query_heads * self.tp == self.heads_total
        for chip in range(self.tp):
            slots = self.kv_slots(chip)
            tiles = [slots[n : n + per_tile] for n in range(0, len(slots), per_tile)]
            whole = whole and all(len(set(tile)) == 1 for tile in tiles)
        return self.head_lanes if whole else self.q_width

    def kv_slots(self, chip: int) -> list[int]:
        """Return the KV slot each non-null query head of `chip` uses, in head order."""
        used = _kv_heads_of(self.heads_total, self.kv_heads_total, self.query_heads, chip)
        order = sorted(set(used))
        return [order.index(head) for head in used]

    def x_axis(self) -> Axis:
        """Hidden elements 0..hidden_size-1 on [x_tiles, 320]."""
        return _straight_axis(0, self.hidden_size, self.x_tiles, self.x_width)

    def q_axis(self, chip: int) -> Axis:
        """Query outputs (head * head_dim + i, the rows of q_proj) on [q_tiles, 320]."""
        return self._head_axis(self._heads_of(chip), self.q_tiles, self.heads_per_tile)

    def o_axis(self, chip: int) -> Axis:
        """What the attention gives (the columns of o_proj) on [q_tiles, 320]."""
        if self.latent is None:
            return self.q_axis(chip)
        return self._value_axis(self._heads_of(chip), self.latent.value, 0, self.q_tiles)

    def latent_axes(self) -> tuple[Axis, Axis]:
        """The elements of the latents of queries, and of keys and values; those of the first are
        none where queries are made of x.
        """
        assert self.latent is not None
        ranks = self.latent.query, self.latent.key_value
        each = zip(ranks, self.latent_tiles, self.latent_widths, strict=True)
        query, key_value = (_straight_axis(0, rank, *form) for rank, *form in each)
        return query, key_value

    def made_axes(self, chip: int) -> tuple[Axis, Axis, Axis]:
        """Rows of kv_b_proj that are keys and values, on [kv_tiles, 320] each, and those of
        kv_a_proj_with_mqa that are the shared key, on [1, 320] in every slot of a tile.
        """
        assert self.latent is not None
        a, heads = self.latent, self._heads_of(chip)
        plain, each = self.head_dim - a.rope, self.head_dim - a.rope + a.value
        keys = np.full((self.kv_tiles, LANES), -1, dtype=np.int64)
        shared = np.full((1, LANES), -1, dtype=np.int64)
        lanes = self._lanes_of_elements()
        for slot, head in enumerate(heads):
            tile, within = divmod(slot, self.kv_heads_per_tile)
            first = within * self.head_lanes
            keys[tile, first + lanes[:plain]] = head * each + np.arange(plain)
        for first in range(0, self.kv_width, self.head_lanes):
            shared[0, first + lanes[plain:]] = a.key_value + np.arange(a.rope)
        return keys, self._value_axis(heads, each, plain, self.kv_tiles), shared

    def _heads_of(self, chip: int) -> range:
        """Query heads of a chip."""
        first = chip * self.query_heads
        return range(first, min(first + self.query_heads, self.heads_total))

    def _lanes_of_elements(self) -> NDArray[np.int64]:
        """[head_dim]: the lane, within a head, of every element of a key.

        What turns is on the lanes of the first pairs, its even elements against its odd ones.
        """
        assert self.latent is not None
        pairs, turned = self.half_lanes, self.latent.rope // 2
        still = self.head_dim // 2 - turned
        lanes = np.empty(self.head_dim, dtype=np.int64)
        lanes[:still], lanes[still : 2 * still] = pairs[turned:], pairs[turned:] + 8
        lanes[2 * still :: 2], lanes[2 * still + 1 :: 2] = pairs[:turned], pairs[:turned] + 8
        return lanes

    def _value_axis(self, heads: Sequence[int], each: int, first: int, tiles: int) -> Axis:
        """Elements ``head * each + first`` and on of latent attention's values, in order."""
        assert self.latent is not None
        axis = np.full((tiles, LANES), -1, dtype=np.int64)
        elements = np.arange(self.latent.value, dtype=np.int64)
        for slot, head in enumerate(heads):
            tile, within = divmod(slot, self.heads_per_tile)
            axis[tile, within * self.head_lanes + elements] = head * each + first + elements
        return axis

    def kv_axis(self, chip: int) -> Axis:
        """Key (or value) outputs (KV head * head_dim + i) on [kv_tiles, 320]."""
        used = _kv_heads_of(self.heads_total, self.kv_heads_total, self.query_heads, chip)
        return self._head_axis(sorted(set(used)), self.kv_tiles, self.kv_heads_per_tile)

    def ffn_axis(self, chip: int) -> Axis:
        """Feed-forward elements of `chip`, of each expert, on [ffn_tiles, 320]."""
        first = chip * self.ffn_per_chip
        last = min(first + self.ffn_per_chip, self.ffn)
        return _straight_axis(first, last, self.ffn_tiles, self.ffn_width)

    def vocab_axis(self, chip: int) -> Axis:
        """Tokens of `chip` on [vocab_blocks, 320]."""
        first = chip * self.vocab_per_chip
        last = min(first + self.vocab_per_chip, self.vocab)
        return _straight_axis(first, last, self.vocab_blocks, self.vocab_width)

    def _head_axis(self, heads: Sequence[int], tiles: int, per_tile: int) -> Axis:
        axis = np.full((tiles, LANES), -1, dtype=np.int64)
        if self.latent is not None:
            within = self._lanes_of_elements()
            for slot, head in enumerate(heads):
                tile, own = divmod(slot, per_tile)
                elements = head * self.head_dim + np.arange(self.head_dim)
                axis[tile, own * self.head_lanes + within] = elements
            return axis
        half = np.arange(self.head_dim // 2, dtype=np.int64)
        for slot, head in enumerate(heads):
            row = axis[slot // per_tile]
            lanes = (slot % per_tile) * self.head_lanes + self.half_lanes
            row[lanes] = head * self.head_dim + half
            row[lanes + 8] = head * self.head_dim + self.head_dim // 2 + half
        return axis


def _kv_heads_of(heads: int, kv_heads: int, per_chip: int, chip: int) -> list[int]:
    """Return the KV head that each non-null query head of `chip` uses, in head order."""
    owned = range(chip * per_chip, min((chip + 1) * per_chip, heads))
    return [head // (heads // kv_heads) for head in owned]
