"""The machine's floor of a token: what no schedule of this chip and wiring could beat.

Five terms per layer, each of a resource that a better compiler cannot widen: weights at the
planes' reload rate, the cache through the planes, vectors over the links, dependent trips through
the planes.  ``cycles / floor`` is what the schedule leaves on the table.  Sizes are the model's
own, without padding; the terms are sums, as if none hid another, so a schedule that overlaps
them all could come below.  docs/plans.md says what each assumes.

Knows sizes and the chip's figures; knows no schedule.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from chip.isa import LANES
from chip.spec import ChipSpec
from programs.models import ModelConfig

#: Columns that one LW brings, and so the columns of a group; a plane has 20 groups.
_GROUP = 16
_GROUPS = LANES // _GROUP
#: A trip MEM -> MXM -> VXM besides the multiplication and the accumulation: hops and the read
#: (76 in all, a calibration row), and operations of the VXM before the next trip (assumed: 4).
_HOPS_CYCLES, _OPERATIONS = 32, 4
#: Of an exchange besides hops, links and additions (assumed, as the schedules of collectives have
#: it): around its sum; of one in two steps, between the two.
_SUM_CYCLES, _BETWEEN_CYCLES = 42, 50
#: Dependent trips of a layer: the sums of the norms before its blocks (2), the products (4: q k v;
#: O; gate and up; down), scores, their reference, values, denominators; and in int8 the scales of
#: O's and down's inputs.
_TRIPS, _DYNAMIC_TRIPS = 10, 2
_SUM_BYTES = 4
"""Bytes of a value that chips exchange: fp32 partial sums."""


#: What each term of a floor's sum is.
FLOOR_TERMS = {
    "weights": "planes taking weights, reloads included",
    "attention": "keys and values through the planes",
    "exchange": "sums between the chips of a stage",
    "latency": "trips through the planes, each after the last",
    "boundaries": "hops between stages",
    "head": "the head's weights and its two trips",
}


class Product(NamedTuple):
    """A product's cycles, and those by the planes' ports alone."""

    cycles: int
    stream_cycles: float


@dataclass(frozen=True)
class Floor:
    """Cycles of one token, over all layers: ``cycles`` is the sum of all but ``stream``.

    weights: planes taking weights, reloads included.  attention: keys and values through the
    planes.  exchange: sums between the chips of a stage.  latency: dependent trips through the
    planes that nothing hides.  boundaries: hops between stages.  head: the last product and its
    two trips.  stream: weights by the planes' ports alone, part of weights and head.
    """

    stream: int
    weights: int
    attention: int
    exchange: int
    latency: int
    boundaries: int
    head: int

    @property
    def cycles(self) -> int:
        """The floor."""
        parts = (self.weights, self.attention, self.exchange, self.latency)
        return sum(parts) + self.boundaries + self.head


def product_floor(spec: ChipSpec, dtype: str, inputs: int, columns: int, parts: int = 1) -> Product:
    """Matrices that share an input, ``columns`` in all on a chip, of ``inputs`` rows there.

    parts: vectors that each install serves.  As few rounds as can be of four blocks (int8) or two
    (fp16, a plane pair each), of any widths.
    """
    units = 4 if dtype == "int8" else 2
    tiles, groups = -(-inputs // LANES), -(-columns // _GROUP)
    rounds = max(1, -(-groups // (units * _GROUPS)))
    wide = -(-groups // units) + rounds * spec.mxm_reload_gap_cycles
    each = max(wide, rounds * (2 * parts + spec.mxm_install_cycles))
    return Product(tiles * each, tiles * columns / (units * _GROUP))


def tiles_made(
    spec: ChipSpec, dtype: str, inputs: int, columns: int, parts: int, terms: int = 1
) -> list[int]:
    """From when on 1, 2, ... tiles of a product can be whole: its cycles were it as narrow.

    terms: products of these sizes that each tile is the sum of.  First is the one that is not full.
    """
    others = (-(-columns // LANES) - 1) * LANES
    narrow = range(columns - others, columns + 1, LANES)
    return [terms * product_floor(spec, dtype, inputs, n, parts).cycles for n in narrow]


def attention_floor(spec: ChipSpec, tiles: int, heads: int, positions: int) -> int:
    """One token over ``tiles`` tiles of keys and values, ``heads`` query heads on each.

    Blocks of 320 positions are installed once for the scores and once for the values, on two
    plane pairs.
    """
    blocks = -(-positions // LANES)
    each = max(_GROUPS + spec.mxm_reload_gap_cycles, 2 * heads + spec.mxm_install_cycles)
    return 2 * -(-tiles * blocks // 2) * each


def latent_floor(spec: ChipSpec, config: ModelConfig, heads: int, positions: int) -> int:
    """As ``attention_floor``, of latent attention of ``heads`` on a chip, the shorter of two ways.

    Heads attend to keys and values of their own; or all to the latents and the shared keys, queries
    and results being turned into those and back by the same number of weights.
    """
    a = config.latent
    assert a is not None

    def both(keys: int, values: int, on_tile: int) -> int:
        """Of an element's tiles half the cycles are the scores', half the values'."""
        each = (attention_floor(spec, tiles, on_tile, positions) for tiles in (keys, values))
        return sum(each) // 2

    keys, values = (-(-heads // max(1, LANES // size)) for size in (config.head_dim, a.value))
    latents, shared = -(-a.key_value // LANES), -(-(a.key_value + a.rope) // LANES)
    return min(both(keys, values, 1), both(shared, latents, heads))


def _attention_products(
    config: ModelConfig, spec: ChipSpec, dtype: str, heads: tuple[int, int]
) -> tuple[list[Product], int]:
    """The products before a layer's attention on a chip, and the elements that this gives.

    heads: of queries, and of keys and values, on a chip.
    """
    queries, kv = heads
    a = config.latent
    if a is None:
        columns = (queries + 2 * kv) * config.head_dim
        return [product_floor(spec, dtype, config.hidden_size, columns)], queries * config.head_dim
    shared, of_q = a.key_value + a.rope, queries * config.head_dim
    made = queries * (config.head_dim - a.rope + a.value)
    products = [product_floor(spec, dtype, a.key_value, made)]
    products.append(product_floor(spec, dtype, config.hidden_size, shared + (a.query or of_q)))
    if a.query:
        products.append(product_floor(spec, dtype, a.query, of_q))
    return products, queries * a.value


def exchange_floor(spec: ChipSpec, tp: int, made: Sequence[int]) -> int:
    """An all-reduce of tiles, after the last of them: at once, or scattered, summed and gathered.

    made: cycles until 1, 2, ... tiles are there, at the earliest.  Tiles leave while later ones are
    still made, and so do sums of the second kind.  Of that, what hops have time for may go at once
    beside the shares, made before or after.  Shares of whole tiles, or as even as vectors are.
    Each chip may make all tiles of its own share last, which take no link.
    """
    if tp == 1:
        return 0
    tiles, end = len(made), made[-1]
    vector, hop, adds = spec.send_spacing_cycles, spec.hop_cycles, tp.bit_length() - 1
    tile = _SUM_BYTES * vector
    between = _BETWEEN_CYCLES + adds * spec.alu_cycles
    total = _SUM_CYCLES + (adds + 1) * spec.alu_cycles  # the residual is one more

    def sent(first: int, vectors: int) -> int:
        """When the last of as many leaves by a link that takes tiles from ``first`` on once."""
        tails = range(-(-vectors // _SUM_BYTES))
        return max(made[first + n] - tile * n for n in tails) + vector * (vectors - 1)

    def in_shares(share: int, dealt: int, last: int) -> int:
        """Each chip owns ``share`` vectors of ``dealt`` tiles, of which tile ``last`` is last."""
        unit = (1 if share % _SUM_BYTES else _SUM_BYTES) - 1  # the vectors behind its first
        others = made[last - max(1, share // _SUM_BYTES)]  # the last tile of another chip's share
        there = max(others + unit * vector, made[0] + (share - 1) * vector) + hop
        summed = max(there, made[last]) + between + unit * vector
        ended = sent(0, 2 * share + _SUM_BYTES * (tiles - dealt))
        if last + 1 < tiles:
            ended = max(ended, sent(last + 1, _SUM_BYTES * (tiles - last - 1)))
        return max(summed + _SUM_CYCLES + spec.alu_cycles, ended + total) + hop - end

    ways = [sent(0, _SUM_BYTES * tiles) + total + hop - end]
    if tiles > 1:
        ways.append(in_shares(-(-_SUM_BYTES * tiles // tp), tiles, tiles - 1))
    for share in range(1, tiles // tp + 1):
        ways += [in_shares(_SUM_BYTES * share, tp * share, n) for n in range(tp * share - 1, tiles)]
    return min(ways)


def floor_of(
    config: ModelConfig,
    spec: ChipSpec,
    *,
    tp: int,
    stages: int,
    dtype: str,
    context: int,
    head_parts: int = 1,
    part_columns: Mapping[int, int] | None = None,
) -> Floor:
    """The floor of one token at ``context`` positions, on ``stages`` stages of ``tp`` chips.

    head_parts: stages that share the vocabulary and compute the head at the same time.
    part_columns: of layers whose FFN several stages may compute at the same time, the columns of
    its gate, or of each expert's, that a chip of the busiest one has.
    """

    def own(elements: int) -> int:
        return -(-elements // tp)

    hidden, layers = config.hidden_size, config.layers
    heads, kv_heads = own(config.heads), max(1, own(config.kv_heads))
    room = LANES // (_GROUP * -(-config.head_dim // _GROUP))
    alone = config.kv_heads == config.heads  # each query head has keys of its own
    tiles = -(-heads // room) if alone else kv_heads
    on_tile = -(-heads // tiles)
    parts = 1 if dtype == "int8" else 2
    of_attention, values = _attention_products(config, spec, dtype, (heads, kv_heads))
    of_attention.append(product_floor(spec, dtype, values, hidden, parts))
    made = tiles_made(spec, dtype, values, hidden, parts)
    exchange = exchange_floor(spec, tp, made)
    if config.wide_norms:
        exchange += exchange_floor(spec, tp, [0])  # a sum over all chips' heads
    stream, weights, exchanges = 0.0, 0, layers * exchange
    shared = part_columns or {}
    # layers without experts, or with FFNs in parts, are counted apart
    kinds = Counter((config.kind_of(n).dense, shared.get(n, 0)) for n in range(layers))
    for (dense, columns), count in kinds.items():
        ffn, chosen, experts = config.dense_ffn, 1, 1
        if not dense:
            ffn, experts = config.ffn, config.experts
            chosen = config.experts_per_token + config.shared_experts
        columns = columns or own(ffn)
        gate_up = product_floor(spec, dtype, hidden, 2 * columns)
        down = product_floor(spec, dtype, columns, hidden, parts)
        products = [*of_attention, *[gate_up, down] * chosen]
        if experts > 1:
            products.append(product_floor(spec, dtype, hidden, experts))
        stream += count * sum(p.stream_cycles for p in products)
        weights += count * sum(p.cycles for p in products)
        made = tiles_made(spec, dtype, columns, hidden, parts, chosen)
        exchanges += count * exchange_floor(spec, tp, made)
    trip = (
        spec.mxm_multiply_cycles
        + spec.mxm_accumulate_cycles
        + _HOPS_CYCLES
        + _OPERATIONS * spec.alu_cycles
    )
    trips = _TRIPS + (_DYNAMIC_TRIPS if dtype == "int8" else 0)
    trips += config.wide_norms + 2 * config.post_norms
    trips += 2 * (config.latent is not None)  # a latent's sum of squares, and its product
    if not config.pre_norms and dtype != "int8":
        trips -= 2  # fp16 takes x as it is
    vocab = -(-own(config.vocab) // head_parts)
    last = product_floor(spec, dtype, hidden, vocab)
    routers = sum(count for (dense, _), count in kinds.items() if not dense) * (config.experts > 1)
    attention, head_norms = 0, 0
    for layer in range(layers):
        head_norms += config.head_norms and not config.kind_of(layer).plain_heads
        window = config.sliding_window if config.kind_of(layer).sliding else context
        if config.latent is not None:
            attention += latent_floor(spec, config, heads, min(context, window))
        else:
            attention += attention_floor(spec, tiles, on_tile, min(context, window))
    return Floor(
        math.ceil(stream + last.stream_cycles),
        weights,
        attention,
        exchanges,
        (layers * trips + routers + head_norms) * trip,
        (stages - 1) * spec.hop_cycles,
        last.cycles + 2 * trip,
    )
