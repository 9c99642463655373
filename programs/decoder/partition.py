"""Partition and quantise: a checkpoint becomes the numbers each chip holds.

Matrices are folded, quantised and placed on the lanes of `programs.decoder.lanes.Layout` by the
rules of ``docs/numerics.md``, block by block, at most 320 columns at a time, so that building a
chip needs little more memory than the chip's weights.

This module knows where a number lies on a chip's lanes and what it is after folding and
quantising.  It does not know memory slices, cycles or instructions, and it never runs the model.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.errors import LpuWarning
from programs.decoder.expert_weights import (
    expert_biases,
    finite,
    fp16_weights,
    on_axis,
    router_bias,
    router_values,
)
from programs.decoder.lanes import LANES, Axis, Layout, PartitionError
from programs.models import (
    Checkpoint,
    ModelConfig,
    ffn_names,
    inverse_frequencies,
    latent_names,
    norm_names,
    router_name,
    shared_gate_name,
    sin_cos,
)

__all__ = [
    "ChipWeights",
    "LayerWeights",
    "Matrix",
    "PartitionError",
    "PartitionedModel",
    "RopeRows",
    "chip_weights",
    "partition_model",
    "random_chip_weights",
]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
RopeRows = tuple[F32, F32]
"""Cosines and sines of a position, float32 [320] each."""

QUANT_RANGE = 16256
"""A quantised activation is 128 hi + lo with |hi| <= 127: 128 * 127."""
SLACK = 1.0 + 2.0**-7
"""Room for the rounding of a sum of squares."""
F16_ONE = np.uint16(0x3C00)
NO_LOGIT = np.float32(-(2.0**127))
"""Takes no share beside any score: bits FF000000."""
ONES_LANE = LANES - 16
"""The first lane that counts positions where attention runs on the planes."""
GAIN_REACH = 4.0
"""Of a norm's gains, in medians: how much greater a factor of normed activations may be at most."""


@dataclass
class Matrix:
    """One weight matrix of one chip, as the chip multiplies by it."""

    values: NDArray[Any]
    """int8, or uint16 fp16 bits: [k_tiles, n_blocks, columns, 320]; zero on padding."""
    scale: F32 | None
    """float32 [n_blocks, 320], zero on padding; None in fp16."""


@dataclass
class LatentWeights:
    """The matrices of one layer on every chip that make the latents of x, and the shared key."""

    q_down: Matrix | None
    """x_tiles -> the tiles of the queries' latent; None where queries are made of x."""
    kv_down: Matrix
    """x_tiles -> the tiles of the latent of keys and values."""
    k_rope: Matrix
    """x_tiles -> one block of kv_width columns: the shared key in every head slot."""
    factors: tuple[F32 | None, F32 | None]
    """float32 [tiles, 320] (int8): what normed latents are multiplied by, the queries' first."""


@dataclass
class LayerWeights:
    """The matrices and other numbers of one layer on one chip."""

    q: Matrix
    """x_tiles -> q_tiles blocks of q_width columns."""
    k: Matrix
    """x_tiles -> kv_tiles blocks of kv_width columns."""
    v: Matrix
    """As `k`."""
    o: Matrix
    """q_tiles -> x_tiles blocks of x_width columns."""
    gate: Matrix
    """x_tiles -> ffn_tiles blocks of ffn_width columns; of several experts, one after the other."""
    up: Matrix
    """As `gate`."""
    down: Matrix
    """ffn_tiles -> x_tiles blocks of x_width columns, as many of each expert."""
    head_gains: F32 | None = None
    """float32 [2, 320] in lane order: of query heads (what scores are multiplied by in it), of key
    heads; where heads are normed all together [q_tiles + kv_tiles, 320].
    """
    key_shares: F32 | None = None
    """float32 [kv_tiles, 320]: 1 on lanes whose squares this chip counts, of heads that several
    chips hold the first one; only where heads are normed all together.
    """
    post_gains: tuple[F32 | None, F32 | None] = (None, None)
    """float32 [x_tiles, 320], of the norms after the attention and after the FFN."""
    bias: F32 | None = None
    """float32 [q_tiles + 2 kv_tiles, 320]: of queries (what scores are multiplied by in it), keys,
    values.
    """
    o_bias: F32 | None = None
    """float32 [x_tiles, 320]: of the attention's output; zero on all chips but the first."""
    router: Matrix | None = None
    """x_tiles -> one block (int8: a coarse and a fine one) of a column for each expert."""
    share_gate: Matrix | None = None
    """x_tiles -> one block (int8: a coarse and a fine one) of 320 columns that are all the same."""
    router_bias: F32 | None = None
    """float32 [1, 320]: expert e's on lane e."""
    expert_biases: tuple[F32, F32, F32] | None = None
    """float32 [experts * tiles, 320] each: of gate, up and down; the last is zero on all chips but
    the first.
    """
    sinks: F32 | None = None
    """float32 [query heads, 320]: of each head that goes through the planes, in that order, its
    sink's logit on the lanes that count positions; `NO_LOGIT` on the others.
    """
    latent: LatentWeights | None = None
    """What makes the latents, of which `q` (where they have one), `k` and `v` are products then."""
    factors: tuple[F32 | None, F32 | None] = (None, None)
    """float32 [x_tiles, 320] (int8): what normed activations are multiplied by, for q, k and v,
    and for gate and up; from 0 to 1, zero on padding.  None where those take no normed x.
    """


@dataclass
class ChipWeights:
    """All that one chip holds of a model, or of the layers of its pipeline stage."""

    layers: list[LayerWeights]
    head: Matrix
    """x_tiles -> vocab_blocks blocks of vocab_width columns."""
    replicate: NDArray[np.uint16] | None
    """One-hot fp16 bits [q_tiles, kv_tiles, q_width, 320] (column: q lane, lane: kv lane)."""
    factors: F32 | None = None
    """float32 [x_tiles, 320]: as a layer's, for the head."""
    numbers: tuple[int, ...] = ()
    """Numbers of the model's layers that these are; empty: of all of them."""

    def layer(self, number: int) -> LayerWeights:
        """The weights of layer ``number`` of the model."""
        return self.layers[self.numbers.index(number) if self.numbers else number]


@dataclass
class PartitionedModel:
    """A model laid out on chips, with what the host contributes to every step."""

    checkpoint: Checkpoint
    layout: Layout
    dtype: str
    """``int8`` or ``fp16``."""
    split: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Layers whose FFN is computed in parts, each quantised and summed alone, and how many of so
    many equal pieces each part has."""
    _built: dict[int, ChipWeights] = field(default_factory=dict, repr=False)

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.checkpoint.config

    @property
    def chips(self) -> list[ChipWeights]:
        """The weights of every chip, built at first use and kept."""
        return [self.chip(number) for number in range(self.layout.tp)]

    def chip(self, number: int) -> ChipWeights:
        """Return the weights of one chip, built at first use and kept."""
        if number not in self._built:
            self._built[number] = chip_weights(self.checkpoint, self.layout, self.dtype, number)
        return self._built[number]

    def is_built(self, number: int) -> bool:
        """Whether the weights of a chip are kept already."""
        return number in self._built

    @property
    def inv_h(self) -> np.float32:
        """fp32(1 / H)."""
        return np.float32(1.0 / self.layout.hidden_size)

    @property
    def eps(self) -> np.float32:
        """The norms' epsilon."""
        return np.float32(self.config.eps)

    @property
    def inv_d(self) -> np.float32:
        """fp32(1 / head_dim)."""
        return np.float32(1.0 / self.layout.head_dim)

    @property
    def inv_widths(self) -> tuple[np.float32, np.float32]:
        """fp32(1 / elements) of all query heads and of all key heads."""
        c = self.config
        return (
            np.float32(1.0 / (c.heads * c.head_dim)),
            np.float32(1.0 / (c.kv_heads * c.head_dim)),
        )

    @property
    def quant_gain(self) -> np.float32:
        """fp32(16256 / sqrt(H (1 + 2^-7)))."""
        return self.quant_gain_of(self.layout.hidden_size)

    @staticmethod
    def quant_gain_of(elements: int) -> np.float32:
        """As ``quant_gain``, of normed vectors of so many elements."""
        return np.float32(QUANT_RANGE / math.sqrt(elements * SLACK))

    def embedding(self, token: int) -> F32:
        """Return the embedding of `token` on its lanes, float32 [x_tiles, 320]."""
        row = self.checkpoint.embedding_row(token)
        finite(row, "model.embed_tokens.weight")
        if self.config.scaled_embedding:
            row = row * np.float32(math.sqrt(self.config.hidden_size))
        if self.config.embedding_factor != 1:
            row = row * np.float32(self.config.embedding_factor)
        axis = self.layout.x_axis()
        return np.where(axis >= 0, row[np.maximum(axis, 0)], np.float32(0))

    def rope_rows(self, position: int) -> tuple[RopeRows, ...]:
        """Return (cos, sin) of each rotary table of the model for a token at `position`.

        float32 [320] in lane order, repeated for every head slot that fits a tile, zero on padding;
        the sine is negated on the lanes of first halves.  Elements that do not turn have 1 and 0.
        """
        layout = self.layout
        tables = []
        for frequencies, rope in zip(self._frequencies, self.config.ropes, strict=True):
            sin, cos = sin_cos(np.float64(position) * frequencies)
            sin, cos = sin * rope.size, cos * rope.size
            cos_row, sin_row = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
            for slot in range(LANES // layout.head_lanes):
                every = slot * layout.head_lanes + layout.half_lanes
                lanes, still = every[: len(cos)], every[len(cos) :]
                cos_row[still] = cos_row[still + 8] = 1.0
                cos_row[lanes] = cos_row[lanes + 8] = cos.astype(np.float32)
                sin_row[lanes + 8] = sin.astype(np.float32)
                sin_row[lanes] = -sin_row[lanes + 8]
            tables.append((cos_row, sin_row))
        return tuple(tables)

    @cached_property
    def _frequencies(self) -> list[F64]:
        return [inverse_frequencies(self.config, n) for n in range(len(self.config.ropes))]


def partition_model(checkpoint: Checkpoint, tp: int, dtype: str = "int8") -> PartitionedModel:
    """Lay `checkpoint` out on `tp` chips in number type `dtype` (int8 or fp16).

    Warns with an LpuWarning of one line where its int8 weights were chosen for other slices.
    """
    _check_dtype(dtype)
    made = checkpoint.rounded_for
    if dtype == "int8" and made is not None and made != tp:
        warnings.warn(
            LpuWarning(
                f"{checkpoint.path}: its weights were rounded for {made} chips that share every "
                f"matrix; on {tp}, those behind attention and down are rounded anew, and lose more"
            ),
            stacklevel=2,
        )
    return PartitionedModel(checkpoint, Layout.of(checkpoint.config, tp), dtype)


def chip_weights(
    checkpoint: Checkpoint,
    layout: Layout,
    dtype: str,
    chip: int,
    attention: Collection[int] | None = None,
    ffn: Collection[int] | None = None,
    head: bool = True,
) -> ChipWeights:
    """Build the weights of one chip, reading only its slices of the checkpoint.

    attention, ffn: of these layers only.  What is left out of a layer, and without ``head`` the
    output head, is built as if it had no columns.
    """
    _check_dtype(dtype)
    _check_chip(layout, chip)
    x, q, kv = layout.x_axis(), layout.q_axis(chip), layout.kv_axis(chip)
    o, vocab = layout.o_axis(chip), layout.vocab_axis(chip)
    every = range(layout.layers)
    attention, ffn = (set(every if of is None else of) for of in (attention, ffn))
    numbers = sorted(attention | ffn)
    inner = checkpoint.config.query_scale or 1.0 / math.sqrt(layout.head_dim)
    given = checkpoint.config.residual_factor

    def build(
        name: str | list[str],
        k_axis: Axis,
        n_axis: Axis,
        width: int,
        gain: F64 | None = None,
        factor: float | Sequence[float] = 1.0,
    ) -> Matrix:
        names = [name] if isinstance(name, str) else name
        return _build(checkpoint, names, k_axis, n_axis, width, gain, factor, dtype)

    layers = []
    for number in numbers:
        prefix = f"model.layers.{number}"
        scores = f"{prefix}.self_attn"
        gates, ups, downs = map(list, zip(*ffn_names(checkpoint.config, number), strict=True))
        norms = norm_names(checkpoint.config, number)
        (before, after), (second, last_norm) = norms.attention, norms.ffn
        has, also = number in attention, number in ffn
        first, taken = _folded(checkpoint, before if has else None, dtype, x)
        inside, taken_inside = _folded(checkpoint, second if also else None, dtype, x)
        kind = checkpoint.config.kind_of(number)
        bare, of_ffn = kind.plain_heads, layout.for_ffn(kind)
        hidden = of_ffn.ffn_axis(chip)
        normed = layout.wide_norms or (layout.head_norms and not bare)
        query_factor = 1.0 if normed else inner
        own_q, own_kv, own_o = (axis if has else axis[:0] for axis in (q, kv, x))
        routed = given * checkpoint.config.routed_factor
        chosen = len(downs) - of_ffn.shared if of_ffn.experts > 1 else 0
        downs_given = [routed] * chosen + [given] * (len(downs) - chosen)
        if layout.latent is None:
            heads = _Heads(
                build(f"{scores}.q_proj.weight", x, own_q, layout.q_width, first, query_factor),
                build(f"{scores}.k_proj.weight", x, own_kv, layout.kv_width, first),
                build(f"{scores}.v_proj.weight", x, own_kv, layout.kv_width, first),
            )
        else:
            heads = _from_latents(
                checkpoint, layout, dtype, chip, number, inner, first if has else None
            )
        own_hidden, own_down = (axis if also else axis[:0] for axis in (hidden, x))
        layers.append(
            LayerWeights(
                q=heads.q,
                k=heads.k,
                v=heads.v,
                latent=heads.latent,
                o=build(f"{scores}.o_proj.weight", o, own_o, layout.x_width, None, given),
                gate=build(gates, x, own_hidden, of_ffn.ffn_width, inside),
                up=build(ups, x, own_hidden, of_ffn.ffn_width, inside),
                down=build(downs, hidden, own_down, layout.x_width, None, downs_given),
                head_gains=_head_gains(checkpoint, layout, scores, inner, chip) if has else None,
                key_shares=_key_shares(layout, chip) if has else None,
                post_gains=(
                    _post_gain(checkpoint, layout, after) if has else None,
                    _post_gain(checkpoint, layout, last_norm) if also else None,
                ),
                bias=_bias(checkpoint, scores, (q, kv), query_factor, layout) if has else None,
                o_bias=_o_bias(checkpoint, scores, x, given * (chip == 0)) if has else None,
                router=_router(checkpoint, of_ffn, number, inside, dtype) if also else None,
                share_gate=_share_gate(checkpoint, of_ffn, number, inside, dtype) if also else None,
                router_bias=router_bias(checkpoint, number) if also else None,
                expert_biases=(
                    expert_biases(checkpoint, (hidden, x), number, chip) if also else None
                ),
                sinks=_sinks(checkpoint, layout, scores, chip) if has else None,
                factors=(taken, taken_inside),
            )
        )
    own = vocab if head else vocab[:0]
    factor = checkpoint.config.logit_factor
    gain, taken = _folded(checkpoint, "model.norm.weight" if head else None, dtype, x)
    last = build(checkpoint.head_name, x, own, layout.vocab_width, gain, factor)
    return ChipWeights(layers, last, _one_hot(layout, chip), taken, tuple(numbers))


@dataclass
class _Heads:
    """What makes queries, keys and values, as in `LayerWeights`."""

    q: Matrix
    k: Matrix
    v: Matrix
    latent: LatentWeights | None = None


def _from_latents(
    checkpoint: Checkpoint,
    layout: Layout,
    dtype: str,
    chip: int,
    number: int,
    inner: float,
    gain: F64 | None,
) -> _Heads:
    """What makes the latents of a layer of x, whose norm has ``gain``, and heads of these.

    inner: what scores are multiplied by.  Without a gain all is built as if it had no columns.
    """
    assert layout.latent is not None
    names, x, width = latent_names(number), layout.x_axis(), layout.kv_width
    query, key_value = layout.latent_axes()
    keys, values, shared = layout.made_axes(chip)
    (q_width, kv_width), has = layout.latent_widths, gain is not None

    def build(
        name: str, k_axis: Axis, n_axis: Axis, columns: int, of: F64 | None, factor: float = 1.0
    ) -> Matrix:
        own = n_axis if has else n_axis[:0]
        return _build(checkpoint, [name], k_axis, own, columns, of, factor, dtype)

    of_q, of_kv = (
        _folded(checkpoint, name if has and used else None, dtype, axis)
        for name, used, axis in (
            (names.query_norm, layout.latent.query, query),
            (names.norm, True, key_value),
        )
    )
    q_down, q = None, layout.q_axis(chip)
    if layout.latent.query:
        q_down = build(names.query_down, x, query, q_width, gain)
        heads = build(names.query_up, query, q, layout.q_width, of_q[0], inner)
    else:
        heads = build(names.queries, x, q, layout.q_width, gain, inner)
    latent = LatentWeights(
        q_down,
        build(names.down, x, key_value, kv_width, gain),
        build(names.down, x, shared, width, gain),
        (of_q[1], of_kv[1]),
    )
    k, v = (build(names.up, key_value, axis, width, of_kv[0]) for axis in (keys, values))
    return _Heads(heads, k, v, latent)


def _gain(checkpoint: Checkpoint, name: str) -> F64:
    """Return a norm's gain, float64."""
    stored = checkpoint.tensor(name).astype(np.float64)
    return stored + 1.0 if checkpoint.config.unit_gain else stored


def _folded(
    checkpoint: Checkpoint, name: str | None, dtype: str, axis: Axis
) -> tuple[F64 | None, F32 | None]:
    """What the K rows behind a norm are multiplied by, float64 [hidden], and what x then is.

    Columns of int8 weights have one scale each, so gains that differ would spend its steps on the
    rows that have the greatest: there x takes them, on the lanes of ``axis``.
    """
    if name is None:
        return None, None
    gain = _gain(checkpoint, name)
    if dtype != "int8":
        return gain, None
    finite(gain, name)
    factors = activation_factors(gain)
    return gain / factors, _on_lanes(factors.astype(np.float64), axis, name)


def activation_factors(gain: F64) -> F32:
    """What normed activations are multiplied by instead of a norm's ``gain``; above 0, at most 1.

    A vector of them has 15 bits for sqrt(hidden) times its greatest factor, so no factor is more
    than ``GAIN_REACH`` medians: what a gain has beyond, its row of weights keeps.
    """
    size = np.abs(gain)
    most, median = float(size.max()), float(np.median(size))
    if median > 0:
        most = min(most, GAIN_REACH * median)
    if most == 0:
        return np.ones(len(gain), np.float32)
    factors = (np.minimum(size, most) / most).astype(np.float32)
    return np.where(factors > 0, factors, np.float32(1))


def _post_gain(checkpoint: Checkpoint, layout: Layout, name: str | None) -> F32 | None:
    """Return the gain of a norm after a block on the lanes of x, float32; zero on padding."""
    return None if name is None else _on_lanes(_gain(checkpoint, name), layout.x_axis(), name)


def _on_lanes(values: F64, axis: Axis, name: str) -> F32:
    """Return float64 ``values`` rounded to fp32 on the lanes of ``axis``; zero on padding."""
    rounded = values.astype(np.float32)
    finite(rounded, name)
    return np.where(axis >= 0, rounded[np.maximum(axis, 0)], np.float32(0))


def _key_shares(layout: Layout, chip: int) -> F32 | None:
    """Return 1 on the lanes of the key heads that no chip before this one holds, else 0."""
    if not layout.wide_norms:
        return None
    own = layout.kv_axis(chip)
    before = [layout.kv_axis(other).reshape(-1) for other in range(chip)]
    known = np.concatenate([np.full(1, -1), *before])
    return np.where(np.isin(own, known), np.float32(0), np.float32(1))


def _head_gains(
    checkpoint: Checkpoint, layout: Layout, prefix: str, inner: float, chip: int
) -> F32 | None:
    """Return the head norms' gains on the lanes of every head slot; zero on padding."""
    if layout.wide_norms:
        axes = (("q_norm", layout.q_axis(chip), inner), ("k_norm", layout.kv_axis(chip), 1.0))
        tiles = []
        for name, axis, factor in axes:
            tensor = f"{prefix}.{name}.weight"
            tiles.append(_on_lanes(_gain(checkpoint, tensor) * factor, axis, tensor))
        return np.concatenate(tiles)
    if not layout.head_norms:
        return None
    rows = np.zeros((2, LANES), np.float32)
    half, lanes = layout.head_dim // 2, layout.half_lanes
    for row, (name, factor) in zip(rows, (("q_norm", inner), ("k_norm", 1.0)), strict=True):
        tensor = f"{prefix}.{name}.weight"
        own = np.ones(layout.head_dim)
        if checkpoint.config.head_gains:
            own = _gain(checkpoint, tensor)
        gain = (own * factor).astype(np.float32)
        finite(gain, tensor)
        for first in range(0, LANES - layout.head_lanes + 1, layout.head_lanes):
            row[first + lanes], row[first + lanes + 8] = gain[:half], gain[half:]
    return rows


def _bias(
    checkpoint: Checkpoint, prefix: str, axes: tuple[Axis, Axis], factor: float, layout: Layout
) -> F32 | None:
    """Return the biases of queries, keys and values on their lanes, zero on padding.

    axes: of queries; of keys and values.
    """
    if not layout.qkv_bias:
        return None
    rows = []
    for name, axis, of in (("q", axes[0], factor), ("k", axes[1], 1.0), ("v", axes[1], 1.0)):
        rows.append(on_axis(checkpoint, f"{prefix}.{name}_proj.bias", axis, of))
    return np.concatenate(rows)


def _o_bias(checkpoint: Checkpoint, prefix: str, axis: Axis, factor: float) -> F32 | None:
    """Return the bias of the attention's output times ``factor``, 0 on all chips but the first."""
    if not checkpoint.config.o_bias:
        return None
    return on_axis(checkpoint, f"{prefix}.o_proj.bias", axis, factor)


def _router(
    checkpoint: Checkpoint, layout: Layout, number: int, gain: F64 | None, dtype: str
) -> Matrix | None:
    """Return the router of a layer's experts, if there are several."""
    if layout.experts == 1 or gain is None:
        return None
    name = router_name(checkpoint.config, number)
    weights = checkpoint.tensor(name).astype(np.float64)
    weights *= gain
    constant = math.sqrt(layout.hidden_size * SLACK) / QUANT_RANGE
    return Matrix(*router_values(weights, layout.x_axis(), dtype, constant, name))


def _sinks(checkpoint: Checkpoint, layout: Layout, prefix: str, chip: int) -> F32 | None:
    """Return the logits of a chip's sinks where the planes' kernel takes them."""
    if not layout.sinks:
        return None
    name = f"{prefix}.sinks"
    stored = checkpoint.tensor(name)
    finite(stored, name)
    return _sink_rows(stored, layout, chip)


def _sink_rows(stored: F32, layout: Layout, chip: int) -> F32:
    """Return the logits of a chip's heads, of all heads' ``stored``, on the lanes that count."""
    heads = np.array(layout.run_heads) + chip * layout.query_heads
    own = np.where(heads < len(stored), stored[np.minimum(heads, len(stored) - 1)], np.float32(0))
    rows = np.full((len(heads), LANES), NO_LOGIT)
    rows[:, ONES_LANE:] = own[:, None]
    return rows


def _share_gate(
    checkpoint: Checkpoint, layout: Layout, number: int, gain: F64 | None, dtype: str
) -> Matrix | None:
    """Return the gate of a layer's shared experts, its result on all lanes, if there is one."""
    if not layout.shared_gate or gain is None:
        return None
    name = shared_gate_name(number)
    weights = checkpoint.tensor(name).astype(np.float64) * gain
    constant = math.sqrt(layout.hidden_size * SLACK) / QUANT_RANGE
    every = np.repeat(weights, LANES, axis=0)
    return Matrix(*router_values(every, layout.x_axis(), dtype, constant, name))


def _build(
    checkpoint: Checkpoint,
    names: list[str],
    k_axis: Axis,
    n_axis: Axis,
    width: int,
    gain: F64 | None,
    factor: float | Sequence[float],
    dtype: str,
) -> Matrix:
    """Fold, quantise and place a tensor [N, K], one block of columns at a time.

    Several `names` are those of experts, whose blocks follow each other.  `gain` [K] multiplies the
    K rows, `factor` everything, or each tensor its own; a normed matrix (one with a gain) also gets
    the constant of its activations' quantisation in its scale.
    """
    k_tiles, n_blocks = len(k_axis), len(names) * len(n_axis)
    int8 = dtype == "int8"
    values: NDArray[Any] = np.zeros(
        (k_tiles, n_blocks, width, LANES), dtype=np.int8 if int8 else np.uint16
    )
    scales = np.zeros((n_blocks, LANES), dtype=np.float32)
    tile, lane = np.nonzero(k_axis >= 0)
    rows = k_axis[tile, lane]
    constant = 1.0
    if gain is not None:
        constant = math.sqrt(len(gain) * SLACK) / QUANT_RANGE
    for block in range(n_blocks):
        expert, of_axis = divmod(block, len(n_axis))
        name, outputs = names[expert], n_axis[of_axis]
        of_name = factor if isinstance(factor, int | float) else factor[expert]
        column = np.flatnonzero(outputs >= 0)
        if not len(column) or not len(rows):
            continue
        weights = checkpoint.block(name, outputs[column], rows).astype(np.float64)
        if gain is not None:
            weights *= gain[rows]
        if of_name != 1.0:
            weights *= of_name
        peak = np.abs(weights).max(axis=1)
        finite(peak, name)
        if int8:
            scale = peak / 127.0
            divisor = np.where(scale > 0.0, scale, 1.0)
            placed: NDArray[Any] = np.rint(weights / divisor[:, None]).astype(np.int8)
            scales[block, column] = scale * constant
        else:
            placed = fp16_weights(weights, name)
        # separate index arrays put the lane axis first: [lanes used, columns used]
        values[tile[:, None], block, column[None, :], lane[:, None]] = placed.T
    return Matrix(values, scales if int8 else None)


def _one_hot(layout: Layout, chip: int) -> NDArray[np.uint16] | None:
    """Return the matrices that spread kv lanes to the lanes of their query heads, or None."""
    if not layout.replicate:
        return None
    one_hot = np.zeros((layout.q_tiles, layout.kv_tiles, layout.q_width, LANES), dtype=np.uint16)
    lanes = np.arange(layout.head_lanes)
    for head, slot in enumerate(layout.kv_slots(chip)):
        q_tile, q_slot = divmod(head, layout.heads_per_tile)
        kv_tile, kv_slot = divmod(slot, layout.kv_heads_per_tile)
        column, row = q_slot * layout.head_lanes + lanes, kv_slot * layout.head_lanes + lanes
        one_hot[q_tile, kv_tile, column, row] = F16_ONE
    return one_hot


def _head_axes(layout: Layout, chip: int) -> tuple[tuple[Axis, Axis], ...]:
    """Inputs and outputs of the matrices that make queries, keys and values."""
    x, q, kv = layout.x_axis(), layout.q_axis(chip), layout.kv_axis(chip)
    if layout.latent is None:
        return (x, q), (x, kv), (x, kv)
    query, key_value = layout.latent_axes()
    keys, values, _ = layout.made_axes(chip)
    return (query if layout.latent.query else x, q), (key_value, keys), (key_value, values)


def _random_latent(
    layout: Layout,
    chip: int,
    draw: Callable[[Axis, Axis, int], Matrix],
    factors: Callable[[bool, Axis], F32 | None],
) -> LatentWeights | None:
    """Drawn matrices of latents, where there are any."""
    if layout.latent is None:
        return None
    x, (query, key_value) = layout.x_axis(), layout.latent_axes()
    of_q, of_kv = layout.latent_widths
    return LatentWeights(
        draw(x, query, of_q) if layout.latent.query else None,
        draw(x, key_value, of_kv),
        draw(x, layout.made_axes(chip)[2], layout.kv_width),
        (factors(layout.latent.query > 0, query), factors(True, key_value)),
    )


def random_chip_weights(layout: Layout, dtype: str, seed: int, chip: int) -> ChipWeights:
    """Return seeded random weights for one chip, made as integers: for benchmarks.

    Magnitudes are those of a random model whose activations stay near 1; padding is zero.
    """
    _check_dtype(dtype)
    _check_chip(layout, chip)
    key = np.array([seed, chip], dtype=np.uint64)
    random = np.random.Generator(np.random.Philox(key=key))
    x, q, kv = layout.x_axis(), layout.q_axis(chip), layout.kv_axis(chip)
    vocab, ffns = layout.vocab_axis(chip), [layout.for_ffn(kind) for kind in layout.layer_kinds]
    ffns = ffns or [layout] * layout.layers

    def draw(k_axis: Axis, n_axis: Axis, width: int, normed: bool = True) -> Matrix:
        shape = (len(k_axis), len(n_axis), width, LANES)
        used = (k_axis >= 0)[:, None, None, :] & (n_axis[:, :width] >= 0)[None, :, :, None]
        raw = random.bytes(math.prod(shape) * (1 if dtype == "int8" else 2))
        if dtype == "fp16":  # +-[2^-7, 2^-6): any sign and mantissa
            bits = np.frombuffer(raw, np.uint16).reshape(shape) & np.uint16(0x83FF)
            return Matrix(np.where(used, bits | np.uint16(0x2000), np.uint16(0)), None)
        values = np.frombuffer(raw, np.int8).reshape(shape).copy()
        np.maximum(values, np.int8(-127), out=values)
        values *= used
        scale = 1.0 / (74.0 * math.sqrt(max(1, int((k_axis >= 0).sum()))))
        if normed:
            scale *= math.sqrt(layout.hidden_size * SLACK) / QUANT_RANGE
        return Matrix(values, np.where(n_axis >= 0, np.float32(scale), np.float32(0)))

    def gains() -> F32 | None:
        if layout.wide_norms:
            spread = random.random((layout.q_tiles + layout.kv_tiles, LANES), dtype=np.float32)
            used = np.concatenate([q, kv]) >= 0
            return (spread + np.float32(0.5)) * used / np.float32(layout.head_dim**0.25)
        if not layout.head_norms:
            return None
        spread = random.random((2, LANES), dtype=np.float32) + np.float32(0.5)
        return spread * (q >= 0).any(axis=0) / np.float32(layout.head_dim**0.25)

    def post_gain() -> F32 | None:
        if not layout.post_norms:
            return None
        spread: F32 = random.random(x.shape, dtype=np.float32) + np.float32(0.5)
        return spread * (x >= 0)

    def biases(axis: Axis, present: bool) -> F32 | None:
        if not present:
            return None
        drawn: F32 = random.random(axis.shape, dtype=np.float32) - np.float32(0.5)
        return drawn * (axis >= 0)

    def of_experts() -> tuple[F32, F32, F32] | None:
        if not layout.expert_bias:
            return None
        down = x if chip == 0 else np.full_like(x, -1)
        ffn = layout.ffn_axis(chip)
        axes = (np.tile(axis, (layout.experts, 1)) for axis in (ffn, ffn, down))
        gate, up, last = (biases(axis, True) for axis in axes)
        assert gate is not None and up is not None and last is not None
        return gate, up, last

    def factors(present: bool, axis: Axis = x) -> F32 | None:
        if dtype != "int8" or not present:
            return None
        spread: F32 = random.random(axis.shape, dtype=np.float32) * np.float32(0.5)
        return (spread + np.float32(0.5)) * (axis >= 0)

    def router(columns: int, repeats: int = 1) -> Matrix | None:
        if columns < 2 - (repeats > 1):
            return None
        deviation = layout.hidden_size**-0.5
        rows = (random.random((columns, layout.hidden_size)) - 0.5) * deviation
        rows = np.repeat(rows, repeats, axis=0)
        constant = math.sqrt(layout.hidden_size * SLACK) / QUANT_RANGE
        return Matrix(*router_values(rows, x, dtype, constant, "router"))

    lane = np.where(np.arange(LANES) < layout.routed, np.arange(LANES), -1)[None]

    of_q, of_k, of_v = _head_axes(layout, chip)
    layers = [
        LayerWeights(
            q=draw(*of_q, layout.q_width),
            k=draw(*of_k, layout.kv_width),
            v=draw(*of_v, layout.kv_width),
            latent=_random_latent(layout, chip, draw, factors),
            o=draw(layout.o_axis(chip), x, layout.x_width, normed=False),
            gate=draw(x, np.tile(own.ffn_axis(chip), (own.experts, 1)), own.ffn_width),
            up=draw(x, np.tile(own.ffn_axis(chip), (own.experts, 1)), own.ffn_width),
            down=draw(own.ffn_axis(chip), np.tile(x, (own.experts, 1)), own.x_width, normed=False),
            head_gains=gains(),
            key_shares=_key_shares(layout, chip),
            post_gains=(post_gain(), post_gain()),
            router=router(own.routed),
            share_gate=router(int(own.shared_gate), LANES),
            bias=biases(np.concatenate([q, kv, kv]), layout.qkv_bias),
            o_bias=biases(x if chip == 0 else np.full_like(x, -1), layout.o_bias),
            router_bias=biases(lane, layout.expert_bias or own.sigmoid_scores),
            expert_biases=of_experts(),
            sinks=_sink_rows(random.random(layout.heads_total, np.float32), layout, chip)
            if layout.sinks
            else None,
            factors=(factors(layout.pre_norms), factors(layout.pre_norms)),
        )
        for own in ffns
    ]
    head = draw(x, vocab, layout.vocab_width)
    return ChipWeights(layers, head, _one_hot(layout, chip), factors(True))


def _check_dtype(dtype: str) -> None:
    if dtype not in ("int8", "fp16"):
        raise PartitionError(f"number type is {dtype!r}; it must be int8 or fp16")


def _check_chip(layout: Layout, chip: int) -> None:
    if not 0 <= chip < layout.tp:
        raise PartitionError(f"chip is {chip}; this layout has chips 0..{layout.tp - 1}")
