"""The golden model: what a compiled decoder must compute, bit for bit, in plain NumPy.

It interprets the partitioned model (``programs/decoder/partition.py``) by the rules of
``docs/numerics.md``, chip by chip and tile by tile: each elementwise float32 NumPy operation is one
rounding, integer sums are exact, fp16 dot products are exact and rounded once.  Where a matrix
library is used its operands make every partial sum exact, so the order of its sums, its threads
and its instruction set cannot show.

It knows numbers and their order only: no cycles, no memory, no instructions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip import numerics
from chip.saturation import Tally
from programs.decoder.lanes import Layout
from programs.decoder.partition import ChipWeights, Matrix, PartitionedModel
from programs.decoder.stages import part_tiles
from programs.models import CHOSEN, GELU_TANH

__all__ = ["GoldenDecoder", "expert_shares"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bits = NDArray[np.uint16]

LANES = 320
#: A chip makes activations for both of its hemispheres, each by conversions of its own.
SIDES = 2
RANGE = np.float32(16256.0)
INVERSE_RANGE = np.float32(1.0 / 16256.0)
SLACK = np.float32(1.0 + 2.0**-7)
TINY = np.float32(1e-30)
UP, DOWN = np.float32(2.0**12), np.float32(2.0**-12)
HALF = np.float32(0.5)
GELU_LINEAR = np.float32(math.sqrt(2 / math.pi))
GELU_CUBIC = np.float32(0.044715 * math.sqrt(2 / math.pi))
ONES = numerics.split_f16(np.full((1, LANES), 0x3C00, dtype=np.uint16))


@dataclass
class _Activation:
    """A vector [k_tiles, 320] as a matmul takes it."""

    hi: F32 | None = None
    """int8 mode: the high digits as whole float32 numbers."""
    lo: F32 | None = None
    scale: np.float32 | None = None
    """int8 mode: what the result is multiplied by at last, None for normed activations."""
    bits: Bits | None = None
    """fp16 mode."""
    rest: Bits | None = None
    """fp16 mode: what ``bits``, in units of 2^12, leaves of activations without a norm."""


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
        """Return float32 [n_blocks, 320]; ``x`` has the K tiles ``tiles``."""
        width = self._k_width  # at most 320, so each int8 sum below is exact in float32
        y = np.zeros((self._blocks, LANES), dtype=np.float32)
        if x.bits is not None:
            parts = [x.bits] if x.rest is None else [x.bits, x.rest]
            sums = self._f16_sums(np.stack(parts), tiles)
            total = sums[0] if x.rest is None else sums[0] * UP + sums[1]
            y[:, : self._columns] = total.reshape(self._blocks, self._columns)
            return y
        assert x.hi is not None and x.lo is not None and self._scale is not None
        sums = np.zeros((2, self._blocks * self._columns), dtype=np.int64)
        for tile, weights in enumerate(self._int8[tiles]):
            sums[0] += (weights @ x.hi[tile, :width]).astype(np.int64)
            sums[1] += (weights @ x.lo[tile, :width]).astype(np.int64)
        value = ((sums[0] << 7) + sums[1]).astype(np.int32)  # 32 bits, as the chip's
        y[:, : self._columns] = value.astype(np.float32).reshape(self._blocks, self._columns)
        y = y * self._scale
        return y if x.scale is None else y * x.scale

    def _f16_sums(self, parts: Bits, tiles: slice) -> F32:
        """Return float32 [parts, columns of all blocks]: dot products of uint16 [parts, K tiles,
        320], K tiles added in ascending order.
        """
        total: F32 | None = None
        for tile, split in enumerate(self._fp16[tiles]):
            rows = numerics.split_f16(parts[:, tile, : self._k_width])
            part = numerics.dot_f16_split(split, rows)
            total = part if total is None else total + part
        assert total is not None
        return total


@dataclass
class _Cache:
    """One layer's keys and values on one chip, in the order of query lanes."""

    capacity: int
    tiles: int
    key_h: F64 = field(init=False)
    """The keys [q_tiles, capacity, 320], split for exact dot products."""
    key_l: F64 = field(init=False)
    value: F32 = field(init=False)
    """The values [q_tiles, capacity, 320]: fp16 numbers held as float32."""

    def __post_init__(self) -> None:
        shape = (self.tiles, self.capacity, LANES)
        self.key_h, self.key_l = np.zeros(shape), np.zeros(shape)
        self.value = np.zeros(shape, dtype=np.float32)

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` positions; new ones read as zero."""
        if capacity > self.capacity:
            extra = ((0, 0), (0, capacity - self.capacity), (0, 0))
            self.key_h, self.key_l = np.pad(self.key_h, extra), np.pad(self.key_l, extra)
            self.value = np.pad(self.value, extra)
            self.capacity = capacity


class _Chip:
    """One chip: its decoded weights and its keys and values."""

    def __init__(self, weights: ChipWeights, layout: Layout) -> None:
        x, f = layout.x_width, layout.ffn_width
        self.layers = [
            {
                "q": _Multiplier(layer.q, x),
                "k": _Multiplier(layer.k, x),
                "v": _Multiplier(layer.v, x),
                "o": _Multiplier(layer.o, layout.q_width),
                "gate": _Multiplier(layer.gate, x),
                "up": _Multiplier(layer.up, x),
                "down": _Multiplier(layer.down, f),
            }
            | ({} if layer.router is None else {"router": _Multiplier(layer.router, x)})
            for layer in weights.layers
        ]
        self.head_gains = [layer.head_gains for layer in weights.layers]
        self.head = _Multiplier(weights.head, x)
        self.replicate = None
        if weights.replicate is not None:
            self.replicate = [
                [numerics.split_f16(matrix[:, : layout.kv_width]) for matrix in row]
                for row in weights.replicate
            ]
        self.caches = [_Cache(0, layout.q_tiles) for _ in weights.layers]


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
        slots = np.arange(layout.heads_per_tile)
        self._head_of_lane = np.minimum(lanes // layout.head_lanes, layout.heads_per_tile - 1)
        self._head_lanes = lanes[None, :] // layout.head_lanes == slots[:, None]
        """[heads_per_tile, 320]: the lanes of each head slot."""
        self._swap = lanes ^ 8
        same = lanes[:, None] // layout.head_lanes == lanes // layout.head_lanes
        whole = lanes < LANES // layout.head_lanes * layout.head_lanes
        ones = np.where(same & whole & whole[:, None], np.uint16(0x3C00), np.uint16(0))
        self._ones = numerics.split_f16(ones)
        """[320, 320]: one where two lanes are of one head slot."""

    def reset(self) -> None:
        """Forget every position."""
        for chip in self._chips:
            chip.caches = [_Cache(0, self._layout.q_tiles) for _ in chip.caches]

    def logits_for(self, tokens: Sequence[int], context_bucket: int | None = None) -> F32:
        """Return float32 [tokens, vocab]: the logits after each token of a new sequence."""
        bucket = context_bucket or max(64, 1 << (len(tokens) - 1).bit_length())
        self.reset()
        return np.stack([self.step(token, at, bucket) for at, token in enumerate(tokens)])

    def step(self, token: int, position: int, context_bucket: int) -> F32:
        """Decode `token` at `position` and return the next token's logits, float32 [vocab].

        Keys and values are stored at `position`; those of earlier positions must be there.
        """
        if not 0 <= position < context_bucket or context_bucket < 3:
            raise ValueError(f"position {position} is outside a context of {context_bucket}")
        ignored = np.errstate(over="ignore", under="ignore", invalid="ignore")
        with ignored, self.tally.counting():
            return self._step(token, position, context_bucket)

    def _step(self, token: int, position: int, bucket: int) -> F32:
        rope = self._model.rope_rows(position)
        x = self._model.embedding(token)
        chips = self._layout.tp
        for number in range(self._layout.layers):
            self.tally.at(str(number), chips)
            normed = self._norm(x)
            self.tally.at(str(number))
            x = x + _tree(
                [self._attend(chip, number, normed, position, bucket, rope) for chip in self._chips]
            )
            parts = self._model.split.get(number, 1)
            self.tally.at(str(number), chips * parts)
            normed = self._norm(x)
            self.tally.at(str(number))
            for part in range(parts):  # all of the same normed x
                tiles = part_tiles(self._layout.ffn_tiles, part, parts)
                own = slice(tiles.start, tiles.stop)
                x = x + _tree([self._feed_forward(c, number, normed, own) for c in self._chips])
        self.tally.at("head", chips)
        normed = self._norm(x)
        width = self._layout.vocab_width
        logits = [
            chip.head(normed)[:, :width].reshape(-1)[: self._layout.vocab_per_chip]
            for chip in self._chips
        ]
        return np.concatenate(logits)[: self._layout.vocab]

    def _norm(self, x: F32) -> _Activation:
        """Normalise tiles [T, 320] into what a normed matrix takes; every chip does the same."""
        mean = _square_sum(x) * self._model.inv_h
        r = _rsqrt(mean + self._model.eps)
        if not self._int8:
            return _Activation(bits=numerics.to_f16_bits(x * r, SIDES))
        return _quantise(x, r * self._model.quant_gain, None)

    def _dynamic(self, x: F32) -> _Activation:
        """Make tiles without a norm ready for a matmul."""
        if not self._int8:
            large = numerics.to_f16_bits(x * DOWN, SIDES)
            rest = x - numerics.from_f16_bits(large) * UP
            return _Activation(bits=large, rest=numerics.to_f16_bits(rest, SIDES))
        total = _square_sum(x) * SLACK + TINY
        r = _rsqrt(total)
        return _quantise(x, r * RANGE, (total * r) * INVERSE_RANGE)

    def _attend(
        self,
        chip: _Chip,
        layer: int,
        normed: _Activation,
        position: int,
        bucket: int,
        rope: tuple[F32, F32],
    ) -> F32:
        """Return the chip's partial sum [T, 320] of the attention output."""
        matrices, cache = chip.layers[layer], chip.caches[layer]
        q32, k32 = matrices["q"](normed), matrices["k"](normed)
        gains = chip.head_gains[layer]
        if gains is not None:
            q32, k32 = self._norm_heads(q32, gains[0]), self._norm_heads(k32, gains[1])
        q = numerics.to_f16_bits(self._rotate(q32, rope))
        k = numerics.to_f16_bits(self._rotate(k32, rope))
        v = numerics.to_f16_bits(matrices["v"](normed))
        if chip.replicate is not None:
            k, v = self._spread(chip.replicate, k, v)
        cache.grow(bucket)
        split = numerics.split_f16(k)
        cache.key_h[:, position], cache.key_l[:, position] = split.h, split.l
        cache.value[:, position] = numerics.from_f16_bits(v)
        mask = np.where(np.arange(bucket) <= position, np.float32(0), np.float32(-np.inf))
        out = np.zeros((self._layout.q_tiles, LANES), dtype=np.float32)
        for tile in range(self._layout.q_tiles):
            keys = numerics.SplitF16(
                cache.key_h[tile, :bucket], cache.key_l[tile, :bucket], np.zeros(bucket, dtype=bool)
            )
            heads = np.where(self._head_lanes, q[tile], np.uint16(0))  # one head per row
            scores = numerics.dot_f16_split(keys, numerics.split_f16(heads)) + mask
            shares = numerics.exp(scores - scores.max(axis=1, keepdims=True))  # [heads, C]
            out[tile] = self._mix(shares, cache.value[tile, :bucket])
        return matrices["o"](self._dynamic(out))

    def _mix(self, shares: F32, values: F32) -> F32:
        """Return [320]: the mean of `values` [C, 320] weighted by each lane's head's shares."""
        terms = shares.T[:, self._head_of_lane] * values
        o = [np.add.accumulate(terms[c::3], axis=0)[-1] for c in range(3)]
        n = [np.add.accumulate(shares.T[c::3], axis=0)[-1] for c in range(3)]
        r = numerics.rsqrt((n[0] + n[1]) + n[2])
        out: F32 = ((o[0] + o[1]) + o[2]) * (r * r)[self._head_of_lane]
        return out

    def _norm_heads(self, x: F32, gain: F32) -> F32:
        """Norm every head of tiles [*, 320], each over its own lanes."""
        normed = np.empty_like(x)
        for tile, row in enumerate(x):
            mean = _lane_sums(row * row, self._ones) * self._model.inv_d
            normed[tile] = (row * numerics.rsqrt(mean + self._model.eps)) * gain
        return normed

    def _rotate(self, x: F32, rope: tuple[F32, F32]) -> F32:
        """Apply the rotary rows to tiles [*, 320]."""
        cos, sin = rope
        rotated: F32 = x * cos + x[:, self._swap] * sin
        return rotated

    def _spread(
        self, matrices: list[list[numerics.SplitF16]], k: Bits, v: Bits
    ) -> tuple[Bits, Bits]:
        """Move k and v bits [kv_tiles, 320] to the lanes of their query heads [q_tiles, 320]."""
        out = np.zeros((2, self._layout.q_tiles, LANES), dtype=np.uint16)
        width, columns = self._layout.kv_width, self._layout.q_width
        for q_tile, row in enumerate(matrices):
            total: F32 | None = None
            for kv_tile, one_hot in enumerate(row):
                both = numerics.split_f16(np.stack([k[kv_tile, :width], v[kv_tile, :width]]))
                part = numerics.dot_f16_split(one_hot, both)
                total = part if total is None else total + part
            assert total is not None
            out[:, q_tile, :columns] = numerics.to_f16_bits(total)
        return out[0], out[1]

    def _inner(self, gate: F32) -> F32:
        """What the gate's activation takes the tanh of."""
        if self._model.config.activation == GELU_TANH:
            polynomial: F32 = gate * gate * GELU_CUBIC + GELU_LINEAR
            return polynomial * gate
        return gate * HALF

    def _feed_forward(self, chip: _Chip, layer: int, normed: _Activation, tiles: slice) -> F32:
        """Return the chip's partial sum [T, 320] of ``tiles`` of the gated feed-forward block."""
        matrices = chip.layers[layer]
        gate, up = matrices["gate"](normed)[tiles], matrices["up"](normed)[tiles]
        t = numerics.tanh(self._inner(gate))
        hidden: F32 = (((t * HALF) + HALF) * gate) * up
        if "router" in matrices:
            results = matrices["router"](normed)[:, 0]
            count = self._layout.experts  # int8: coarse parts, then fine ones
            shares = expert_shares(results[:count] + results[count:] if self._int8 else results)
            hidden = hidden * np.repeat(shares, self._layout.expert_tiles)[tiles, None]
        return matrices["down"](self._dynamic(hidden), tiles)


def expert_shares(logits: F32) -> F32:
    """Return float32 [experts]: the shares of the two best experts, zero for the others."""
    chosen = sorted(range(len(logits)), key=lambda e: (-logits[e], e))[:CHOSEN]
    weights = np.zeros(len(logits), np.float32)
    weights[chosen] = numerics.exp(logits[chosen] - logits.max())
    r = _rsqrt(np.add.accumulate(weights)[-1])
    shares: F32 = weights * (r * r)
    return shares


def _rsqrt(x: np.float32) -> np.float32:
    """Return the correctly rounded 1 / sqrt(x)."""
    result: np.float32 = numerics.rsqrt(np.array([x], dtype=np.float32))[0]
    return result


def _square_sum(x: F32) -> np.float32:
    """Return the sum of squares of tiles [*, 320] as the chip computes it."""
    s = x[0] * x[0]
    for tile in x[1:]:
        s = s + tile * tile
    total: np.float32 = _lane_sums(s, ONES)[0]
    return total


def _lane_sums(s: F32, ones: numerics.SplitF16) -> F32:
    """Return the sums of lanes [320] over the rows of fp16 ``ones`` [*, 320], in five pieces."""
    rest = s * np.float32(2.0**-30)
    total: F32 = np.zeros(len(ones.h), np.float32)
    for _ in range(5):
        piece = numerics.to_f16_bits(rest)
        rest = (rest - numerics.from_f16_bits(piece)) * UP
        total = total * UP + numerics.dot_f16_split(ones, numerics.split_f16(piece))
    return total * np.float32(2.0**-18)


def _quantise(x: F32, inv: np.float32, scale: np.float32 | None) -> _Activation:
    """Return the two int8 digits of `x` inv, a number of up to 15 bits."""
    q = numerics.to_i32(x * inv)
    high = (q + np.int32(64)) >> 7
    hi = numerics.to_i8(high, SIDES).astype(np.float32)
    return _Activation(hi=hi, lo=(q - (high << 7)).astype(np.float32), scale=scale)


def _tree(parts: list[Any]) -> F32:
    """Add the chips' partial sums pairwise: ((0+1)+(2+3))+((4+5)+(6+7))."""
    while len(parts) > 1:
        parts = [parts[i] + parts[i + 1] for i in range(0, len(parts), 2)]
    total: F32 = parts[0]
    return total
