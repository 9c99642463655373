"""The golden model: what a compiled decoder must compute, bit for bit, in plain NumPy.

It interprets the partitioned model (``programs/decoder/partition.py``) by the rules of
``docs/numerics.md``, chip by chip and tile by tile: each elementwise float32 NumPy operation is one
rounding, integer sums are exact, fp16 dot products are exact and rounded once.  Where a matrix
library is used its operands make every partial sum exact, so the order of its sums, its threads
and its instruction set cannot show.

A text that is known is computed in blocks of positions, layer by layer: arrays have a leading axis
of positions (P), and no number of one position depends on how many others there are.

It knows numbers and their order only: no cycles, no memory, no instructions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip import numerics
from chip.saturation import Tally
from programs.decoder.lanes import Layout
from programs.decoder.partition import (
    ChipWeights,
    LatentWeights,
    Matrix,
    PartitionedModel,
    RopeRows,
)
from programs.decoder.stages import ffn_part
from programs.decoder.weighted_values import capped, mean_on_planes
from programs.models import GELU_TANH, LATENT_EPS

__all__ = ["GoldenDecoder"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bits = NDArray[np.uint16]
Index = NDArray[np.int64]

LANES = 320
#: Positions that are computed at once at most, so that memory stays bounded.
MOST_POSITIONS = 256
#: Is told the layer, "attention" or "ffn", and the residual stream [P, T, 320] after it.
Watch = Callable[[int, str, F32], None]
#: A chip makes activations for both of its hemispheres, each by conversions of its own.
SIDES = 2
RANGE = np.float32(16256.0)
INVERSE_RANGE = np.float32(1.0 / 16256.0)
SLACK = np.float32(1.0 + 2.0**-7)
TINY = np.float32(1e-30)
UP, DOWN = np.float32(2.0**12), np.float32(2.0**-12)
HALF, ONE = np.float32(0.5), np.float32(1)
CLAMPED_SLOPE = np.float32(1.702 / 2)
GELU_LINEAR = np.float32(math.sqrt(2 / math.pi))
GELU_CUBIC = np.float32(0.044715 * math.sqrt(2 / math.pi))
#: What an expert of a group that is not chosen is chosen by.
FARTHEST = np.float32(-65504)
ONES = numerics.split_f16(np.full((1, LANES), 0x3C00, dtype=np.uint16))


@dataclass
class _Activation:
    """Vectors [positions, k_tiles, 320] as a matmul takes them."""

    hi: F32 | None = None
    """int8 mode: the high digits as whole float32 numbers."""
    lo: F32 | None = None
    scale: F32 | None = None
    """int8 mode: what the results are multiplied by at last [positions, 1, 1], None for normed
    activations.
    """
    bits: Bits | None = None
    """fp16 mode."""
    rest: Bits | None = None
    """fp16 mode: what ``bits``, in units of 2^12, leaves of activations without a norm."""

    def of(self, rows: Index, slots: Index, count: int) -> _Activation:
        """Of each of some positions the tiles of one of ``count`` slots."""

        def own(tiles: Any) -> Any:
            if tiles is None:
                return None
            return tiles.reshape(len(tiles), count, -1, LANES)[rows, slots]

        scale = None if self.scale is None else self.scale[rows]
        return _Activation(own(self.hi), own(self.lo), scale, own(self.bits), own(self.rest))


class _Multiplier:
    """A `Matrix` decoded for repeated use: int8 as float32, fp16 as exact float64 halves."""

    def __init__(self, matrix: Matrix, k_width: int) -> None:
        # Lanes from k_width on are padding: zero weights, left out.
        tiles, self._blocks, self._columns, _ = matrix.values.shape
        self._k_width = k_width
        self._scale = matrix.scale
        self._int8: list[F32] = []
        self._fp16: list[numerics.SplitF16] = []
        for tile in range(tiles):
            weights = matrix.values[tile].reshape(-1, LANES)[:, :k_width]
            if matrix.scale is None:
                self._fp16.append(numerics.split_f16(weights))
            else:
                self._int8.append(weights.astype(np.float32))

    def __call__(self, x: _Activation, tiles: slice = slice(None)) -> F32:
        """Return float32 [positions, n_blocks, 320]; ``x`` has the K tiles ``tiles``."""
        width = self._k_width  # at most 320, so each int8 sum below is exact in float32
        if x.bits is not None:
            parts = [x.bits] if x.rest is None else [x.bits, x.rest]
            sums = self._f16_sums(np.stack(parts), tiles)
            return self._placed(sums[0] if x.rest is None else sums[0] * UP + sums[1])
        assert x.hi is not None and x.lo is not None and self._scale is not None
        value = np.zeros((len(x.hi), self._blocks * self._columns))  # whole numbers below 2^53
        for tile, weights in enumerate(self._int8[tiles]):
            value += (x.hi[:, tile, :width] @ weights.T) * np.float64(128)
            value += x.lo[:, tile, :width] @ weights.T
        wrapped = value.astype(np.int64).astype(np.int32)  # 32 bits, as the chip's
        y = self._placed(wrapped.astype(np.float32)) * self._scale
        return y if x.scale is None else y * x.scale

    def _placed(self, values: F32) -> F32:
        """Return results [positions, columns of all blocks] on their lanes, padding zero."""
        y = np.zeros((len(values), self._blocks, LANES), dtype=np.float32)
        y[..., : self._columns] = values.reshape(-1, self._blocks, self._columns)
        return y

    def _f16_sums(self, parts: Bits, tiles: slice) -> F32:
        """Return float32 [parts, positions, columns of all blocks]: dot products of uint16
        [parts, positions, K tiles, 320], K tiles added in ascending order.
        """
        total: F32 | None = None
        for tile, split in enumerate(self._fp16[tiles]):
            rows = numerics.split_f16(parts[:, :, tile, : self._k_width])
            part = numerics.dot_f16_split(split, rows)
            total = part if total is None else total + part
        assert total is not None
        return total


@dataclass
class _Cache:
    """One layer's keys and values on one chip, in the order of query lanes."""

    capacity: int
    tiles: int
    on_planes: bool
    key_h: F64 = field(init=False)
    """The keys [q_tiles, capacity, 320], split for exact dot products."""
    key_l: F64 = field(init=False)
    value: F32 = field(init=False)
    """The values [q_tiles, capacity, 320]: fp16 numbers held as float32; none on planes."""
    value_h: F64 = field(init=False)
    """On planes, the values as the keys are."""
    value_l: F64 = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.tiles, self.capacity, LANES)
        self.key_h, self.key_l = np.zeros(shape), np.zeros(shape)
        split, whole = (LANES, 0) if self.on_planes else (0, LANES)
        self.value = np.zeros((*shape[:2], whole), dtype=np.float32)
        self.value_h, self.value_l = np.zeros((*shape[:2], split)), np.zeros((*shape[:2], split))

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` positions; new ones read as zero."""
        if capacity > self.capacity:
            extra = ((0, 0), (0, capacity - self.capacity), (0, 0))
            for name in ("key_h", "key_l", "value", "value_h", "value_l"):
                setattr(self, name, np.pad(getattr(self, name), extra))
            self.capacity = capacity

    def put(self, position: int, k: Bits, v: Bits) -> None:
        """Keep keys and values [P, q_tiles, 320] of ``position`` and those that follow."""
        new = slice(position, position + len(k))
        split = numerics.split_f16(k)
        self.key_h[:, new], self.key_l[:, new] = split.h.swapaxes(0, 1), split.l.swapaxes(0, 1)
        if self.on_planes:
            split = numerics.split_f16(v)
            self.value_h[:, new] = split.h.swapaxes(0, 1)
            self.value_l[:, new] = split.l.swapaxes(0, 1)
        else:
            self.value[:, new] = numerics.from_f16_bits(v).swapaxes(0, 1)


class _Chip:
    """One chip: its decoded weights and its keys and values."""

    def __init__(self, weights: ChipWeights, layout: Layout) -> None:
        x, (of_q, of_kv) = layout.x_width, layout.latent_widths
        self.layers = [
            {
                "q": _Multiplier(layer.q, of_q or x),
                "k": _Multiplier(layer.k, of_kv or x),
                "v": _Multiplier(layer.v, of_kv or x),
                "o": _Multiplier(layer.o, layout.q_width),
            }
            | _latent_multipliers(layer.latent, x)
            | ({} if layer.router is None else {"router": _Multiplier(layer.router, x)})
            | ({} if layer.share_gate is None else {"share": _Multiplier(layer.share_gate, x)})
            for layer in weights.layers
        ]
        of_layers = [layout.for_ffn(layout.kind_of(n)) for n in range(layout.layers)]
        self.ffns = [
            [
                {
                    "gate": _Multiplier(_of_expert(layer.gate, e, of.experts), x),
                    "up": _Multiplier(_of_expert(layer.up, e, of.experts), x),
                    "down": _Multiplier(_of_expert(layer.down, e, of.experts), of.ffn_width),
                }
                for e in range(of.experts)
            ]
            for layer, of in zip(weights.layers, of_layers, strict=True)
        ]
        self.head_gains = [layer.head_gains for layer in weights.layers]
        self.factors = [layer.factors for layer in weights.layers]
        self.head_factors = weights.factors
        self.latent_factors = [
            (None, None) if layer.latent is None else layer.latent.factors
            for layer in weights.layers
        ]
        self.key_shares = [layer.key_shares for layer in weights.layers]
        self.post_gains = [layer.post_gains for layer in weights.layers]
        self.biases = [(layer.bias, layer.o_bias) for layer in weights.layers]
        self.router_biases = [layer.router_bias for layer in weights.layers]
        self.expert_biases = [layer.expert_biases for layer in weights.layers]
        self.sinks = [_sinks_of(layer.sinks, layout) for layer in weights.layers]
        self.head = _Multiplier(weights.head, x)
        self.replicate = self.sources = None
        if weights.replicate is not None:
            self.sources = _sources(weights.replicate, layout, weights.head.scale is not None)
            self.replicate = [
                [numerics.split_f16(matrix[:, : layout.kv_width]) for matrix in row]
                for row in weights.replicate
            ]
        self.caches = [_Cache(0, layout.q_tiles, layout.on_planes) for _ in weights.layers]


class GoldenDecoder:
    """A decoder of one sequence that carries its keys and values from step to step."""

    def __init__(self, model: PartitionedModel) -> None:
        self._model = model
        self._layout = layout = model.layout
        self.tally = Tally()
        """What conversions saturated, by layer, as often as the chips do them."""
        self._int8 = model.dtype == "int8"
        self._chips = [_Chip(model.chip(number), layout) for number in range(layout.tp)]
        lanes = np.arange(LANES)
        self._swap = lanes ^ 8
        same = lanes[:, None] // layout.head_lanes == lanes // layout.head_lanes
        whole = lanes < LANES // layout.head_lanes * layout.head_lanes
        ones = np.where(same & whole & whole[:, None], np.uint16(0x3C00), np.uint16(0))
        self._ones = numerics.split_f16(ones)
        """[320, 320]: one where two lanes are of one head slot."""

    def reset(self) -> None:
        """Forget every position."""
        for chip in self._chips:
            chip.caches = [
                _Cache(0, self._layout.q_tiles, self._layout.on_planes) for _ in chip.caches
            ]

    def logits_for(self, tokens: Sequence[int], context_bucket: int | None = None) -> F32:
        """Return float32 [tokens, vocab]: the logits after each token of a new sequence."""
        bucket = context_bucket or max(64, 1 << (len(tokens) - 1).bit_length())
        self.reset()
        return self.block(tokens, 0, bucket)

    def step(self, token: int, position: int, context_bucket: int) -> F32:
        """Decode `token` at `position` and return the next token's logits, float32 [vocab].

        Keys and values are stored at `position`; those of earlier positions must be there.
        """
        logits: F32 = self.block([token], position, context_bucket)[0]
        return logits

    def block(
        self,
        tokens: Sequence[int],
        position: int,
        context_bucket: int,
        watch: Watch | None = None,
    ) -> F32:
        """Decode `tokens` from `position` on; return float32 [tokens, vocab], as steps would.

        watch: sees the residual stream of every layer, `MOST_POSITIONS` at a time.
        """
        last = position + len(tokens) - 1
        if not 0 <= position <= last < context_bucket or context_bucket < 3:
            raise ValueError(f"position {last} is outside a context of {context_bucket}")
        ignored = np.errstate(over="ignore", under="ignore", invalid="ignore")
        with ignored, self.tally.counting():
            blocks = [
                self._block(tokens[at : at + MOST_POSITIONS], position + at, context_bucket, watch)
                for at in range(0, len(tokens), MOST_POSITIONS)
            ]
        logits: F32 = np.concatenate(blocks)
        return logits

    def _block(self, tokens: Sequence[int], position: int, bucket: int, watch: Watch | None) -> F32:
        rows = [self._model.rope_rows(position + at) for at in range(len(tokens))]
        ropes = [
            (
                np.stack([cos for cos, _ in table])[:, None],
                np.stack([sin for _, sin in table])[:, None],
            )
            for table in zip(*rows, strict=True)
        ]
        x = np.stack([self._model.embedding(token) for token in tokens])
        chips = self._layout.tp
        for number in range(self._layout.layers):
            self.tally.at(str(number), chips)
            taken = self._input(x, number, 0)
            self.tally.at(str(number))
            rope = ropes[self._model.config.kind_of(number).second_rope]
            heads = self._project(number, taken)
            mixed = [
                self._attend(chip, number, own, position, bucket, rope)
                for chip, own in zip(self._chips, heads, strict=True)
            ]
            x = x + self._given(_tree(mixed), number, 0)
            if watch is not None:
                watch(number, "attention", x)
            spans = self._model.split.get(number, (1,))
            self.tally.at(str(number), chips * len(spans))
            taken = self._input(x, number, 1)
            self.tally.at(str(number))
            for end, span in zip(accumulate(spans), spans, strict=True):  # all of one normed x
                layout = self._layout.for_ffn(self._layout.kind_of(number))
                part = range(end - span, end)
                tiles, held = ffn_part(layout.ffn_tiles, layout.experts, part, sum(spans))
                own = slice(tiles.start, tiles.stop)
                sums = [self._feed_forward(c, number, taken, own, held) for c in self._chips]
                x = x + self._given(_tree(sums), number, 1)
            if watch is not None:
                watch(number, "ffn", x)
        self.tally.at("head", chips)
        normed = self._norm(x, self._chips[0].head_factors)
        width = self._layout.vocab_width
        logits = [
            chip.head(normed)[..., :width].reshape(len(tokens), -1)[
                :, : self._layout.vocab_per_chip
            ]
            for chip in self._chips
        ]
        joined: F32 = np.concatenate(logits, axis=1)[:, : self._layout.vocab]
        return capped(joined, self._model.config.logit_cap)

    def _input(self, x: F32, layer: int, which: int) -> _Activation:
        """What the attention (0) or the FFN (1) of a layer takes of x, tiles [P, T, 320]."""
        if not self._layout.pre_norms:
            return self._dynamic(x)
        return self._norm(x, self._chips[0].factors[layer][which])

    def _given(self, y: F32, layer: int, which: int) -> F32:
        """What is added to x of a block's sum over the chips, tiles [P, T, 320].

        which: 0 after the attention, 1 after the FFN.
        """
        gain = self._chips[0].post_gains[layer][which]
        if gain is None:
            return y
        self.tally.at(str(layer), self._layout.tp)
        r = numerics.rsqrt(_square_sum(y) * self._model.inv_h + self._model.eps)
        self.tally.at(str(layer))
        given: F32 = (y * r) * gain
        return given

    def _norm(self, x: F32, factors: F32 | None) -> _Activation:
        """Normalise tiles [P, T, 320] into what a normed matrix takes; every chip does the same.

        factors: [T, 320], of int8 activations.
        """
        mean = _square_sum(x) * self._model.inv_h
        r = numerics.rsqrt(mean + self._model.eps)
        if not self._int8:
            return _Activation(bits=numerics.to_f16_bits(x * r, SIDES))
        assert factors is not None
        return _quantise(x, r * self._model.quant_gain, None, factors)

    def _dynamic(self, x: F32) -> _Activation:
        """Make tiles without a norm ready for a matmul."""
        if not self._int8:
            large = numerics.to_f16_bits(x * DOWN, SIDES)
            rest = x - numerics.from_f16_bits(large) * UP
            return _Activation(bits=large, rest=numerics.to_f16_bits(rest, SIDES))
        total = _square_sum(x) * SLACK + TINY
        r = numerics.rsqrt(total)
        return _quantise(x, r * RANGE, (total * r) * INVERSE_RANGE)

    def _project(self, layer: int, x: _Activation) -> list[tuple[F32, F32, F32]]:
        """Return query, key and value tiles [P, *, 320] of every chip, normed where they are."""
        heads = []
        for chip in self._chips:
            matrices, gains = chip.layers[layer], chip.head_gains[layer]
            if self._layout.latent is not None:
                heads.append(self._from_latents(chip, layer, x))
                continue
            q, k, v = (matrices[name](x) for name in "qkv")
            bias, _ = chip.biases[layer]
            if bias is not None:
                at, end = q.shape[1], q.shape[1] + k.shape[1]
                q, k, v = q + bias[:at], k + bias[at:end], v + bias[end:]
            bare = self._model.config.kind_of(layer).plain_heads
            if gains is not None and not self._layout.wide_norms and not bare:
                q, k = self._norm_heads(q, gains[0]), self._norm_heads(k, gains[1])
            heads.append((q, k, v))
        return self._norm_together(layer, heads) if self._layout.wide_norms else heads

    def _from_latents(self, chip: _Chip, layer: int, x: _Activation) -> tuple[F32, F32, F32]:
        """Return query, key and value tiles [P, *, 320] of a chip, made of normed latents."""
        matrices, sizes = chip.layers[layer], self._layout.latent
        assert sizes is not None
        of_q, of_kv = chip.latent_factors[layer]
        taken = x
        if sizes.query:
            taken = self._norm_latent(matrices["q_down"](x), of_q, sizes.query)
        latent = self._norm_latent(matrices["kv_down"](x), of_kv, sizes.key_value)
        return (
            matrices["q"](taken),
            matrices["k"](latent) + matrices["k_rope"](x),
            matrices["v"](latent),
        )

    def _norm_latent(self, x: F32, factors: F32 | None, elements: int) -> _Activation:
        """Normalise tiles [P, *, 320] of a latent of so many elements as ``_norm`` does x."""
        mean = _square_sum(x) * np.float32(1.0 / elements)
        r = numerics.rsqrt(mean + np.float32(LATENT_EPS))
        if not self._int8:
            return _Activation(bits=numerics.to_f16_bits(x * r, SIDES))
        assert factors is not None
        return _quantise(x, r * self._model.quant_gain_of(elements), None, factors)

    def _norm_together(
        self, layer: int, heads: list[tuple[F32, F32, F32]]
    ) -> list[tuple[F32, F32, F32]]:
        """Norm the queries of all chips as one vector, and so the keys."""
        squares = [_squares(q) for q, _, _ in heads]
        key_squares = [
            _squares(k, chip.key_shares[layer])
            for chip, (_, k, _) in zip(self._chips, heads, strict=True)
        ]
        self.tally.at(str(layer), self._layout.tp)
        r_q, r_k = (
            numerics.rsqrt(_lane_sums(_tree(each), ONES)[:, None] * inv + self._model.eps)
            for each, inv in zip((squares, key_squares), self._model.inv_widths, strict=True)
        )
        self.tally.at(str(layer))
        normed = []
        for chip, (q, k, v) in zip(self._chips, heads, strict=True):
            gains, tiles = chip.head_gains[layer], q.shape[1]
            assert gains is not None
            normed.append(((q * r_q) * gains[:tiles], (k * r_k) * gains[tiles:], v))
        return normed

    def _attend(
        self,
        chip: _Chip,
        layer: int,
        heads: tuple[F32, F32, F32],
        position: int,
        bucket: int,
        rope: RopeRows,
    ) -> F32:
        """Return the chip's partial sums [P, T, 320] of the attention output."""
        matrices, cache = chip.layers[layer], chip.caches[layer]
        q32, k32, v32 = heads
        q = numerics.to_f16_bits(self._rotate(q32, rope), SIDES if self._layout.on_planes else 1)
        k, v = self._cached(chip, self._rotate(k32, rope), v32)
        cache.grow(bucket)
        cache.put(position, k, v)
        config = self._model.config
        window = config.sliding_window if config.kind_of(layer).sliding else bucket
        out = np.zeros((len(q), self._layout.q_tiles, LANES), dtype=np.float32)
        for tile in range(self._layout.q_tiles):
            for head in range(self._layout.heads_per_tile):
                first = head * self._layout.head_lanes
                lanes = slice(first, first + self._layout.head_lanes)
                sinks = chip.sinks[layer]
                sink = None if sinks is None else sinks[tile * self._layout.heads_per_tile + head]
                seen = _seen(position, len(q), window)
                out[:, tile, lanes] = _mean_of_values(
                    q[:, tile, lanes], cache, (tile, lanes), seen, config.score_cap, sink
                )
        given, (_, o_bias) = matrices["o"](self._dynamic(out)), chip.biases[layer]
        return given if o_bias is None else given + o_bias

    def _norm_heads(self, x: F32, gain: F32) -> F32:
        """Norm every head of tiles [P, *, 320], each over its own lanes."""
        mean = _lane_sums(x * x, self._ones) * self._model.inv_d
        normed: F32 = (x * numerics.rsqrt(mean + self._model.eps)) * gain
        return normed

    def _rotate(self, x: F32, rope: RopeRows) -> F32:
        """Apply the rotary rows [P, 1, 320] to tiles [P, *, 320]."""
        cos, sin = rope
        rotated: F32 = x * cos + x[..., self._swap] * sin
        return rotated

    def _cached(self, chip: _Chip, k32: F32, v32: F32) -> tuple[Bits, Bits]:
        """K and V tiles [P, q_tiles, 320] of fp16 bits, of fp32 tiles as their products give them.

        Each is converted once for every lane that has it then.
        """
        if chip.replicate is None or chip.sources is None:
            return numerics.to_f16_bits(k32), numerics.to_f16_bits(v32)
        wide = self._layout.wide_keys, self._layout.wide_values
        cached_of, of_q = self._layout.cache_of_tile, chip.sources
        first = [cached_of.index(tile) for tile in range(self._layout.cache_tiles)]
        found = []
        for x, already in zip((k32, v32), wide, strict=True):
            if already:
                at = of_q[first]
                spread = np.where(at < 0, np.float32(0), x.reshape(len(x), -1)[:, at])
                found.append(numerics.to_f16_bits(spread)[:, cached_of])
            else:
                found.append(numerics.to_f16_bits(x))
        if not any(wide):
            return self._spread(chip.replicate, *found)
        if not wide[1]:
            found[1] = self._spread(chip.replicate, found[1], found[1])[1]
        return found[0], found[1]

    def _spread(
        self, matrices: list[list[numerics.SplitF16]], k: Bits, v: Bits
    ) -> tuple[Bits, Bits]:
        """Move k and v bits [P, kv_tiles, 320] to the lanes of their query heads, [P, q_tiles, 320]
        each.
        """
        out = np.zeros((2, len(k), self._layout.q_tiles, LANES), dtype=np.uint16)
        width, columns = self._layout.kv_width, self._layout.q_width
        for q_tile, row in enumerate(matrices):
            total: F32 | None = None
            for kv_tile, one_hot in enumerate(row):
                both = numerics.split_f16(np.stack([k[:, kv_tile, :width], v[:, kv_tile, :width]]))
                part = numerics.dot_f16_split(one_hot, both)
                total = part if total is None else total + part
            assert total is not None
            out[:, :, q_tile, :columns] = numerics.to_f16_bits(total)
        return out[0], out[1]

    def _inner(self, gate: F32) -> F32:
        """What the gate's activation takes the tanh of."""
        if self._model.config.activation == GELU_TANH:
            polynomial: F32 = gate * gate * GELU_CUBIC + GELU_LINEAR
            return polynomial * gate
        return gate * (CLAMPED_SLOPE if self._layout.expert_bias else HALF)

    def _feed_forward(
        self, chip: _Chip, layer: int, normed: _Activation, tiles: slice, held: range
    ) -> F32:
        """Return the chip's partial sums [P, T, 320] of ``tiles`` of the gated FFN.

        held: experts of the part; a slot of another one takes the first of them, with a share of 0.
        """
        ffns = chip.ffns[layer]
        if len(ffns) == 1:
            return ffns[0]["down"](self._dynamic(self._gated(ffns[0], normed, tiles)), tiles)
        routed = self._layout.routed
        results = chip.layers[layer]["router"](normed)[..., :routed]
        logits = results[:, 0] + results[:, 1] if self._int8 else results[:, 0]
        router_bias, biases = chip.router_biases[layer], chip.expert_biases[layer]
        count = self._layout.chosen - self._layout.shared
        if self._layout.sigmoid_scores:
            assert router_bias is not None
            logits = numerics.tanh(logits * HALF) * HALF + HALF
            by = self._within_groups(*_two_pieces(logits + router_bias[0, :routed]))
            chosen, shares = self._scored(logits, by, count)
        else:
            if router_bias is not None:
                logits = logits + router_bias[0, :routed]
            large, small = _two_pieces(logits)
            by = self._within_groups(large, small)
            chosen, shares, best = _choice_of(large + small, by, count, self._layout.shares_of_all)
        if self._layout.input_shares:
            shares = numerics.tanh(best * HALF) * HALF + HALF
        if self._layout.shared:
            numbers = np.tile(np.arange(routed, len(ffns)), (len(chosen), 1))
            chosen = np.concatenate([chosen, numbers], axis=1)
            own = np.repeat(self._shared_share(chip, layer, normed), numbers.shape[1], axis=1)
            shares = np.concatenate([shares, own], axis=1)
        missing = (chosen < held.start) | (chosen >= held.stop)
        chosen = np.where(missing, held.start, chosen)
        shares = np.where(missing, np.float32(0), shares)
        count = chosen.shape[1]
        hidden = np.zeros((*chosen.shape, tiles.stop - tiles.start, LANES), np.float32)
        of_expert = [np.nonzero(chosen == e) for e in range(len(ffns))]
        for expert, (ffn, (rows, slots)) in enumerate(zip(ffns, of_expert, strict=True)):
            if len(rows):
                bias = None if biases is None else (biases[0], biases[1], expert)
                scale = shares[rows, slots, None, None] if self._layout.input_shares else None
                taken = normed.of(rows, np.zeros_like(slots), 1)
                own = self._gated(ffn, taken, tiles, bias, scale)
                if scale is None:
                    own = own * shares[rows, slots, None, None]
                hidden[rows, slots] = own
        taken = self._dynamic(hidden.reshape(len(hidden), -1, LANES))
        sums = np.zeros((*chosen.shape, self._layout.x_tiles, LANES), np.float32)
        for ffn, (rows, slots) in zip(ffns, of_expert, strict=True):
            if len(rows):
                sums[rows, slots] = ffn["down"](taken.of(rows, slots, count), tiles)
        total: F32 = sums[:, 0]
        for slot in range(1, count):
            total = total + sums[:, slot]
        if biases is None:
            return total
        # parts that are cut between tiles all take every expert: one of them adds its bias
        own = biases[2].reshape(len(ffns), -1, LANES) * np.float32(tiles.start == 0)
        given: F32 = own[chosen[:, 0]] * shares[:, 0, None, None]
        for slot in range(1, count):
            given = given + own[chosen[:, slot]] * shares[:, slot, None, None]
        return total + given

    def _within_groups(self, large: F32, small: F32) -> F32:
        """What experts are chosen by [P, experts], the least of all outside of the best groups.

        large, small: two fp16 pieces of it.
        """
        groups, by = self._layout.expert_groups, large + small
        if groups == 1:
            return by
        of_groups = by.reshape(len(by), groups, -1)
        best = np.argsort(-of_groups, axis=2, kind="stable")[..., : 1 + self._layout.sigmoid_scores]
        of_best = (
            np.take_along_axis(piece.reshape(of_groups.shape), best, 2).astype(np.float64)
            for piece in (large, small)
        )
        one, other = (piece.sum(axis=2).astype(np.float32) for piece in of_best)  # as dot products
        every = np.repeat(one + other, of_groups.shape[2], axis=1)  # on all lanes of a group
        scores = _in_two_pieces(every)[:, :: of_groups.shape[2]]
        order = np.argsort(-scores, axis=1, kind="stable")
        kept = np.zeros((len(by), groups), bool)
        np.put_along_axis(kept, order[:, : self._layout.chosen_groups], True, 1)
        found: F32 = np.where(np.repeat(kept, of_groups.shape[2], axis=1), by, FARTHEST)
        return _in_two_pieces(found)

    @staticmethod
    def _scored(sigmoids: F32, by: F32, count: int) -> tuple[Index, F32]:
        """The experts with the greatest ``by`` and their shares, [P, count] each."""
        chosen = np.argsort(-by, axis=1, kind="stable")[:, :count]
        weights = np.take_along_axis(_in_two_pieces(sigmoids), chosen, 1)
        r = numerics.rsqrt(np.add.accumulate(weights, axis=1)[:, -1:])
        shares: F32 = weights * (r * r)
        return chosen, shares

    def _shared_share(self, chip: _Chip, layer: int, normed: _Activation) -> F32:
        """Return [P, 1]: what the shared experts of a layer are multiplied by."""
        gate = chip.layers[layer].get("share")
        if gate is None:
            taken = normed.bits if normed.hi is None else normed.hi
            assert taken is not None
            return np.ones((taken.shape[0], 1), np.float32)
        results = gate(normed)[..., :1]
        value = results[:, 0] + results[:, 1] if self._int8 else results[:, 0]
        share: F32 = numerics.tanh(value * HALF) * HALF + HALF
        return share

    def _gated(
        self,
        ffn: dict[str, _Multiplier],
        normed: _Activation,
        tiles: slice,
        biases: tuple[F32, F32, int] | None = None,
        scale: F32 | None = None,
    ) -> F32:
        """Return ``tiles`` [P, *, 320] of what an FFN's down takes.

        biases: of all experts' gate and up, and whose are meant.  scale: of what goes in.
        """
        gate, up = ffn["gate"](normed)[:, tiles], ffn["up"](normed)[:, tiles]
        if scale is not None:
            gate, up = gate * scale, up * scale
        if biases is not None:
            limit = np.float32(self._model.config.swiglu_limit)
            first = biases[2] * self._layout.ffn_tiles
            own = slice(first + tiles.start, first + tiles.stop)
            gate = np.minimum(gate + biases[0][own], limit)
            up = np.maximum(np.minimum(up + biases[1][own], limit), -limit) + ONE
        t = numerics.tanh(self._inner(gate))
        hidden: F32 = (((t * HALF) + HALF) * gate) * up
        return hidden


def _sources(one_hot: NDArray[np.uint16], layout: Layout, int8: bool) -> Index:
    """Return [q_tiles, 320]: the element of kv tiles laid end to end on every lane of a query head.

    one_hot: [q_tiles, kv_tiles, columns, 320].  -1 where there is none; where installs repeat the
    stored columns of the one KV head, heads that do not exist have it too, but for int8's scales.
    """
    q_tiles, _, columns, _ = one_hot.shape
    hot = one_hot.transpose(0, 2, 1, 3).reshape(q_tiles, columns, -1)
    repeated = layout.key_copies > 1 and not int8
    absent = np.arange(columns) % layout.head_lanes if repeated else np.full(columns, -1)
    found = np.full((q_tiles, LANES), -1)
    found[:, :columns] = np.where(hot.any(axis=2), hot.argmax(axis=2), absent)
    return found


def _latent_multipliers(latent: LatentWeights | None, width: int) -> dict[str, _Multiplier]:
    """What makes latents of x, whose tiles use ``width`` lanes, by its name."""
    if latent is None:
        return {}
    found = {"kv_down": _Multiplier(latent.kv_down, width)}
    found["k_rope"] = _Multiplier(latent.k_rope, width)
    if latent.q_down is not None:
        found["q_down"] = _Multiplier(latent.q_down, width)
    return found


def _of_expert(matrix: Matrix, expert: int, experts: int) -> Matrix:
    """The matrix of one of several experts, whose blocks follow each other."""
    blocks = matrix.values.shape[1] // experts
    own = slice(expert * blocks, (expert + 1) * blocks)
    return Matrix(matrix.values[:, own], None if matrix.scale is None else matrix.scale[own])


def _mean_of_values(
    q: Bits,
    cache: _Cache,
    where: tuple[int, slice],
    seen: NDArray[np.bool_],
    cap: float,
    sink: np.float32 | None = None,
) -> F32:
    """Return [P, lanes]: the mean of what queries ``q`` [P, lanes] of one head attend to.

    where: their tile and lanes.  seen: [P, positions], see ``_seen``.  sink: the head's own logit.
    Positions beyond a query's own have a share of +0, which adds nothing: they are left out.
    """
    end, (tile, lanes) = seen.shape[1], where
    position = end - len(q)
    key_h, key_l = cache.key_h[tile, :end, lanes], cache.key_l[tile, :end, lanes]
    finite = np.zeros(end, dtype=bool)
    keys = numerics.SplitF16(key_h, key_l, finite)
    if cache.on_planes:
        value_h, value_l = cache.value_h[tile, :end, lanes], cache.value_l[tile, :end, lanes]
        return mean_on_planes(q, keys, numerics.SplitF16(value_h, value_l, finite), seen, cap, sink)
    scores = capped(numerics.dot_f16_split(keys, numerics.split_f16(q)), cap)
    scores = np.where(seen, scores, np.float32(-np.inf))
    shares = numerics.exp(scores - scores.max(axis=1, keepdims=True))
    values, columns = cache.value[tile, :end, lanes], np.ascontiguousarray(shares.T)[..., None]
    o = [columns[c] * values[c] for c in range(3)]
    for j in range(3, end):
        own = slice(max(0, j - position), None)  # queries that see position j
        o[j % 3][own] += columns[j, own] * values[j]
    n = [np.add.accumulate(shares[:, c::3], axis=1)[:, -1:] for c in range(3)]
    r = numerics.rsqrt((n[0] + n[1]) + n[2])
    mean: F32 = ((o[0] + o[1]) + o[2]) * (r * r)
    return mean


def _seen(position: int, queries: int, window: int) -> NDArray[np.bool_]:
    """Return [queries, positions]: what each of some queries from ``position`` on sees.

    At most ``window`` positions; three are there at least.
    """
    end = max(3, position + queries)
    ages = position + np.arange(queries)[:, None] - np.arange(end)
    return (ages >= 0) & (ages < window)


def _sinks_of(rows: F32 | None, layout: Layout) -> F32 | None:
    """Return the sinks' logits by query head slot, 0 where there is no head."""
    if rows is None:
        return None
    found = np.zeros(layout.q_tiles * layout.heads_per_tile, np.float32)
    found[list(layout.run_heads)] = rows[:, -1]
    return found


def _two_pieces(logits: F32) -> tuple[F32, F32]:
    """Return the two fp16 numbers whose sum stands for logits."""
    large = numerics.from_f16_bits(numerics.to_f16_bits(logits))
    return large, numerics.from_f16_bits(numerics.to_f16_bits(logits - large))


def _in_two_pieces(logits: F32) -> F32:
    """Return logits as the sum of two fp16 numbers."""
    large, small = _two_pieces(logits)
    exact: F32 = large + small
    return exact


def _choice_of(logits: F32, by: F32, count: int, of_all: bool) -> tuple[Index, F32, F32]:
    """Return the chosen experts, their shares and their logits, [P, count] each.

    logits: sums of two fp16 pieces [P, experts].  by: what experts are chosen by [P, experts].
    of_all: shares of the softmax over all experts, not over the chosen ones.
    """
    chosen = np.argsort(-by, axis=1, kind="stable")[:, :count]
    best = np.take_along_axis(logits, chosen, 1)
    weights = numerics.exp(best - best[:, :1])
    if of_all:
        terms = np.zeros((len(logits), LANES), np.float32)
        terms[:, : logits.shape[1]] = numerics.exp(logits - best[:, :1])
        r = numerics.rsqrt(_lane_sums(terms, ONES))
    else:
        r = numerics.rsqrt(np.add.accumulate(weights, axis=1)[:, -1:])
    shares: F32 = weights * (r * r)
    return chosen, shares, best


def _square_sum(x: F32) -> F32:
    """Return the sums of squares [P, 1, 1] of tiles [P, *, 320] as the chip computes them."""
    return _lane_sums(_squares(x), ONES)[:, None]


def _squares(x: F32, shares: F32 | None = None) -> F32:
    """Return the sums of squares [P, 320] over tiles [P, *, 320], each times its ``shares``."""
    terms = x * x if shares is None else (x * x) * shares
    s: F32 = terms[:, 0]
    for tile in range(1, x.shape[1]):
        s = s + terms[:, tile]
    return s


def _lane_sums(s: F32, ones: numerics.SplitF16) -> F32:
    """Return sums of lanes [..., 320] over the rows of fp16 ``ones`` [*, 320], in five pieces."""
    rest = s * np.float32(2.0**-30)
    total: F32 = np.zeros((*s.shape[:-1], len(ones.h)), np.float32)
    for _ in range(5):
        piece = numerics.to_f16_bits(rest)
        rest = (rest - numerics.from_f16_bits(piece)) * UP
        total = total * UP + numerics.dot_f16_split(ones, numerics.split_f16(piece))
    return total * np.float32(2.0**-18)


def _quantise(x: F32, inv: F32, scale: F32 | None, factors: F32 | None = None) -> _Activation:
    """Return the two int8 digits of `x` inv, a number of up to 15 bits; of that times `factors`."""
    value = x * inv
    q = numerics.to_i32(value if factors is None else value * factors)
    high = (q + np.int32(64)) >> 7
    hi = numerics.to_i8(high, SIDES).astype(np.float32)
    return _Activation(hi=hi, lo=(q - (high << 7)).astype(np.float32), scale=scale)


def _tree(parts: list[Any]) -> F32:
    """Add the chips' partial sums pairwise: ((0+1)+(2+3))+((4+5)+(6+7))."""
    while len(parts) > 1:
        parts = [parts[i] + parts[i + 1] for i in range(0, len(parts), 2)]
    total: F32 = parts[0]
    return total
