"""The kernels of a decoder's blocks, put into a reservation table one after another.

A block is scheduled alone, by symbolic addresses; the compiler moves copies of it in time and
memory.  Knows kernels and places; knows no stages, programs or files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from chip.scheduling import Place, Schedule
from chip.spec import ChipSpec
from interconnect.collectives import (
    all_reduce_in_shares,
    exchange,
    exchange_as_made,
    reduce,
    runs_of,
)
from programs.decoder.lanes import MOST_HEADS, Layout
from programs.decoder.partition import QUANT_RANGE, SLACK
from programs.decoder.places import (
    AttentionMatrices,
    DecoderPlaces,
    FfnMatrices,
    LatentMatrices,
    Matrices,
    MatrixPlaces,
)
from programs.kernels import (
    EAST,
    WEST,
    Activations,
    AttentionPlaces,
    ChoicePlaces,
    Chunk,
    ColumnBlock,
    HeadTile,
    MapPlaces,
    NewValue,
    QueryGroup,
    Slot,
    add_bias,
    append_key,
    append_values,
    attend,
    attend_tiles,
    cap_words,
    choose_experts,
    clamp_gates,
    copy_chosen,
    dynamic_factor,
    factor_of_sum,
    gated_product,
    halve,
    in_two,
    lane_squares,
    matmul16_round,
    matmul_round,
    norm_factor,
    norm_heads,
    quantise,
    rope,
    scale_slots,
    scale_words,
    shared_biases,
    spread_first,
    take_turns,
)
from programs.models import LATENT_EPS, ModelConfig

#: What the critical path of a block is at: norms, gates, quantisation and sums; products with
#: weights; rope, cache, scores and softmax; vectors between chips.
VXM, MATMUL, SOFTMAX, C2C = "vxm", "matmul", "attention", "c2c"

#: Words of a token's heads and values as attention takes them, and when queries, keys and values
#: are readable.
_Projected = tuple[Place, Place, tuple[int, int, int]]


def _of_tokens(
    tiles: tuple[int, ...], heads: tuple[int, ...], layout: Layout, tokens: int
) -> QueryGroup:
    """A token's query tiles, and as many of those after it."""
    every = tuple(n * layout.q_tiles + tile for n in range(tokens) for tile in tiles)
    return QueryGroup(every, heads * tokens, layout.head_lanes, tokens)


@dataclass
class Numbers:
    """Model constants the kernels need as immediates."""

    inv_h: float
    eps: float
    gain: float
    inv_d: float
    activation: str
    inv_widths: tuple[float, float] = (1.0, 1.0)
    """1 / elements of all query heads and of all key heads."""
    caps: tuple[float, float] = (0.0, 0.0)
    """Of scores and of logits; 0: none."""
    limit: float = 0.0
    """Of experts' gates, where they are cut."""

    @classmethod
    def of(cls, config: ModelConfig) -> Numbers:
        """Those of a model; as immediates they are rounded to fp32."""
        widths = config.heads * config.head_dim, config.kv_heads * config.head_dim
        return cls(
            1.0 / config.hidden_size,
            config.eps,
            QUANT_RANGE / math.sqrt(config.hidden_size * SLACK),
            1.0 / config.head_dim,
            config.activation,
            (1.0 / widths[0], 1.0 / widths[1]),
            (config.score_cap, config.logit_cap),
            config.swiglu_limit,
        )


class BlockScheduler:
    """Kernels of one block or the head, placed as early as their data and the machine allow."""

    def __init__(
        self,
        spec: ChipSpec,
        places: DecoderPlaces,
        numbers: Numbers,
        context: int,
        chunk: int = 1,
        watched: bool = False,
    ) -> None:
        """chunk: tokens of a launch, at most those that the places are for."""
        self.context = context
        self.spec = spec
        self.places = places
        self.tokens = [places] if chunk == 1 else [places.token(i) for i in range(chunk)]
        self.numbers = numbers
        self.schedule = Schedule(watched)
        self.each: list[int] = []
        """When each word of the last sum is readable, token by token."""
        self.phases: list[tuple[str, int]] = []
        """What the critical path did, and the cycle by which it was done."""

    def _did(self, phase: str, ready: int) -> int:
        self.phases.append((phase, ready))
        return ready

    def _normed(self, s: DecoderPlaces, ready: int, factors: Place | None) -> int:
        """A token's x normed into the activation words; factors: of int8 ones."""
        d, layout = self.schedule, s.layout
        int8 = s.dtype == "int8"
        ready = norm_factor(
            d,
            self.spec,
            s.x,
            layout.x_tiles,
            ready,
            s.constants,
            self.numbers.inv_h,
            self.numbers.eps,
            self.numbers.gain if int8 else None,
            s.norm_factor,
        )
        tiles = layout.x_tiles
        if int8:
            ready = quantise(d, self.spec, s.x, tiles, ready, s.norm_factor, s.act, factors)
        else:
            ready = halve(d, self.spec, s.x, tiles, ready, s.norm_factor, s.act)
        return self._did(VXM, ready)

    def _input(self, ready: int, factors: Place | None) -> tuple[int, Place | None, int]:
        """x as a block takes it: when, the first token's dynamic scale, and the parts in fp16.

        factors: of x normed for int8.
        """
        s = self.places
        if s.layout.pre_norms:
            return max([self._normed(token, ready, factors) for token in self.tokens]), None, 1
        words = [token.x for token in self.tokens]
        return *self._all_activated(words, s.layout.x_tiles, [ready] * len(words)), 2

    def _all_activated(
        self, x: Sequence[Place], tiles: int, ready: Sequence[int]
    ) -> tuple[int, Place | None]:
        """As ``_activated``, of every token: when all are, and the first one's scale."""
        found = [
            self._activated(token, words, tiles, known)
            for token, words, known in zip(self.tokens, x, ready, strict=True)
        ]
        return max(at for at, _ in found), found[0][1]

    def _activated(
        self, s: DecoderPlaces, x: Place, tiles: int, ready: int
    ) -> tuple[int, Place | None]:
        """Other inputs of a matmul into a token's activation words, with their dynamic scale."""
        d = self.schedule
        if s.dtype == "int8":
            ready = dynamic_factor(d, self.spec, x, tiles, ready, s.constants, s.factor, s.dynamic)
            ready = quantise(d, self.spec, x, tiles, ready, s.factor, s.act)
            return self._did(VXM, ready), s.dynamic
        return self._did(VXM, in_two(d, self.spec, x, tiles, ready, s.act)), None

    def _matmul(
        self,
        m: MatrixPlaces,
        k_tiles: int,
        ready: int,
        dynamic: Place | None,
        targets: Sequence[list[Place]],
        parts: int = 1,
        first: int = 0,
    ) -> list[int]:
        """All rounds of a product; when each column block's result is readable.

        targets: of every token of a launch; of one, the last.  parts: of an activation in fp16.
        first: word of the activations.
        """
        done: list[int] = []
        act = self.tokens[-len(targets)].act
        if len(targets) > 1:
            tile = self.tokens[1].act.first[0].address - act.first[0].address
            after = targets[1][0].address - targets[0][0].address
            act = replace(act, chunk=Chunk(len(targets), tile, 1, after))
        act = act.at(first)
        for number, blocks in enumerate(m.rounds):
            here = targets[0][len(done) : len(done) + len(blocks)]
            scale = m.scales[number] if m.scales else None
            at = self._round(blocks, k_tiles, act, ready, scale, dynamic, here, parts, None)
            done += [at] * len(blocks)
        self._did(MATMUL, max(done))
        return done

    def _replicated(self, s: DecoderPlaces, half: int, ready: int) -> tuple[list[Place], int]:
        """Narrow fp16 tiles of keys (half 0) or values (1) to the lanes of their query heads.

        Returns the fp32 words, which are the first results', and when they are readable.
        """
        kt = s.layout.kv_tiles
        act = Activations(
            (s.narrow_act.first[0], s.narrow_act.first[1].at(kt * half)),
            (s.narrow_act.second[0], s.narrow_act.second[1].at(kt * half)),
        )
        spread = [s.results.at(i) for i in range(s.layout.cache_tiles)]
        for blocks, word in zip(s.replicate, spread, strict=True):
            ready = matmul16_round(self.schedule, self.spec, blocks, kt, act, ready, [word])
        return spread, ready

    def _round(
        self,
        blocks: list[ColumnBlock],
        k_tiles: int,
        act: Activations,
        ready: int,
        scale: Place | None,
        dynamic: Place | None,
        targets: list[Place],
        parts: int,
        slot: Slot | None,
    ) -> int:
        """One round of a product; when its results are readable."""
        d, spec = self.schedule, self.spec
        if scale is None:
            return matmul16_round(d, spec, blocks, k_tiles, act, ready, targets, parts, slot)
        return matmul_round(d, spec, blocks, k_tiles, act, ready, scale, dynamic, targets, slot)

    def _chosen(
        self,
        m: MatrixPlaces,
        k_tiles: int,
        ready: int,
        dynamic: Place | None,
        slots: list[tuple[Activations, list[Place]]],
        parts: int,
        maps: tuple[MapPlaces, int],
        scales: tuple[int, int],
    ) -> list[int]:
        """A product of every slot with the weights of the expert it has; when each column block of
        all slots is readable.

        slots: activations and targets of each, one slot after the other; where the targets are the
        same, results are added there, round after round, so that the first blocks are whole soon.
        maps: and when they are readable.  scales: words from a slot's to the next's, and when they
        are.
        """
        shared = slots[0][1] == slots[-1][1]
        rounds, every = range(len(m.rounds)), range(len(slots))
        firsts = [sum(map(len, m.rounds[:number])) for number in rounds]
        order = [(slot, number) for slot in every for number in rounds]
        if shared:
            order.sort(key=lambda both: both[1])
        done = [0] * len(slots[0][1])
        for count, (number, of_round) in enumerate(order):
            (act, targets), blocks = slots[number], m.rounds[of_round]
            own = slice(firsts[of_round], firsts[of_round] + len(blocks))
            scale = m.scales[of_round].at(number * scales[0]) if m.scales else None
            which = count % 2
            pair = (maps[0].pair(0, which, number), maps[0].pair(1, which, number))
            added = done[own.start] if shared and number else None
            slot = Slot(pair, maps[1], which, added, scales[1])
            args = blocks, k_tiles, act, ready, scale, dynamic, targets[own], parts, slot
            known = self._round(*args)
            # a later slot's planes may be free sooner
            done[own] = [max(known, *done[own])] * len(blocks)
        self._did(MATMUL, max(done))
        return done

    def _append(
        self, s: DecoderPlaces, ready_k: int, ready_v: int, v: Place, a: AttentionPlaces
    ) -> tuple[int, int]:
        """Replicated K and V to the lanes of their query heads, then to the cache."""
        d, kt = self.schedule, s.layout.kv_tiles
        narrow = Place(s.narrow.queues, s.narrow.address)
        values = [narrow.at(kt + i) for i in range(kt)]
        ready_v = append_values(d, self.spec, v, ready_v, a, values)
        done: list[int] = []
        for half, ready, targets in ((0, ready_k, a.keys), (1, ready_v, a.values)):
            # values take the words that keys have left
            spread, ready = self._replicated(s, half, max([ready, *done]))
            done.append(append_values(d, self.spec, spread[0], ready, a, targets))
        return done[0], done[1]

    def _on_vxm(
        self, m: AttentionMatrices, projected: Sequence[_Projected]
    ) -> tuple[list[int], list[Place]]:
        """Attention on the VXM: when, and where, of every token."""
        d, layout = self.schedule, self.places.layout
        qt, kt = layout.q_tiles, layout.kv_tiles
        known = (0, 0)
        turned = []
        every = zip(self.tokens, self._rows(m), projected, strict=True)
        for s, row, (heads, v_words, (of_queries, of_keys, of_values)) in every:
            of_heads = max(of_queries, of_keys)
            a = s.attention_of(row, self.context)
            if layout.replicate:
                narrow = [Place(s.narrow.queues, s.narrow.address + i) for i in range(kt)]
                queries, keys = rope(d, self.spec, heads, qt, of_heads, a, narrow)
                keys, values = self._append(
                    s, max(keys, of_heads, of_values), of_values, v_words, a
                )
            else:
                queries, keys = rope(d, self.spec, heads, qt, of_heads, a, a.keys)
                values = append_values(d, self.spec, v_words, of_values, a, a.values)
            known = max(known[0], keys), max(known[1], values)
            turned.append((a, queries))
        attended, done = 0, []
        keys, values = known  # nothing is read from a cache while it is written
        for a, queries in turned:
            for number, cached in enumerate(layout.cache_of_tile):
                tile = HeadTile(number, cached, layout.heads_per_tile, layout.head_lanes)
                attended = attend(
                    d,
                    self.spec,
                    tile,
                    self.context,
                    max(queries, attended),
                    max(keys, attended),
                    max(values, attended),
                    a,
                    self.numbers.caps[0],
                )
            done.append(attended)
        return done, [a.outputs.at(3) for a, _ in turned]

    def _on_planes(
        self, m: AttentionMatrices, projected: Sequence[_Projected]
    ) -> tuple[list[int], list[Place]]:
        """As ``_on_vxm``, with positions on lanes."""
        d, layout = self.schedule, self.places.layout
        qt, kt, cached = layout.q_tiles, layout.kv_tiles, range(layout.cache_tiles)
        spread = layout.replicate and not layout.wide_keys
        early: int | None = None
        sides: list[tuple[int, ...]]
        attended = known = 0
        turned = []
        every = zip(self.tokens, self._rows(m), projected, strict=True)
        for s, row, (heads, v_words, (of_queries, of_keys, of_values)) in every:
            of_heads = max(of_queries, of_keys)
            assert s.planes is not None
            turns, places = s.planes_of(m, self.context)
            new_keys = [s.planes.keys.at(i) for i in cached]
            values = [v_words.at(i) for i in cached]
            values_ready, sides = of_values, [(WEST, EAST)]
            if spread:
                narrow = [s.narrow.at(i) for i in range(2 * kt)]
                queries, keys_ready = rope(d, self.spec, heads, qt, of_heads, turns, narrow[:kt])
                narrowed = append_values(d, self.spec, v_words, of_values, turns, narrow[kt:])
                wide, there = self._replicated(s, 0, max(keys_ready, of_heads, of_values))
                keys_ready = append_values(d, self.spec, wide[0], there, turns, new_keys)
                # values take the words that keys have left
                values, values_ready = self._replicated(s, 1, max(narrowed, keys_ready))
            elif of_keys < of_queries:
                # queries are still made, in the west
                sides, k_words = [(EAST,), (WEST,)], heads.at(qt)
                if len(self.tokens) == 1:
                    at_once = [
                        NewValue(values[tile], row.cached[tile], places)
                        for tile in dict.fromkeys(tile for tile, _, _ in layout.query_runs[0])
                    ]
                    early = spread_first(d, self.spec, at_once, of_values, places)
                _, keys_ready = rope(d, self.spec, k_words, 0, of_keys, turns, new_keys)
                queries, _ = rope(d, self.spec, heads, qt, of_queries, turns, ())
            else:
                queries, keys_ready = rope(d, self.spec, heads, qt, of_heads, turns, new_keys)
            known = max(known, keys_ready)
            for tile, key in zip(row.cached, new_keys, strict=True):
                for side in sides:
                    at = append_key(d, self.spec, key, keys_ready, tile, places, side)
                    known = max(known, at)
            turned.append((places, queries, values, values_ready, row.cached))
        done = [0] * len(turned)
        values_ready, appended, heads_before = max(at for *_, at, _ in turned), set[int](), 0
        for run in layout.query_runs:
            count = sum(sum(counts) for _, _, counts in run)
            alone = s.batch or turned[0][0].sinks is not None
            together = 1 if alone else max(1, MOST_HEADS // count)
            for first in range(0, len(turned), together):
                tokens = turned[first : first + together]
                places, *_, caches = tokens[0]
                # all before the first looks back; those of a batch nobody else sees
                fresh = tokens if s.batch else turned if first == 0 else []
                new = [
                    NewValue(values[tile], own[tile], maps)
                    for maps, _, values, _, own in fresh
                    for tile in dict.fromkeys(tile for tile, _, _ in run)
                    if tile not in appended
                ]
                if places.sinks is not None:
                    places = replace(places, sinks=places.sinks.at(heads_before))
                queries = max(at for _, at, *_ in tokens)
                attended = attend_tiles(
                    d,
                    self.spec,
                    tuple(
                        (_of_tokens(t, n, layout, len(tokens)), caches[tile]) for tile, t, n in run
                    ),
                    self.context,
                    (max(queries, attended), max(known, attended), max(values_ready, attended)),
                    places,
                    self.numbers.caps[0],
                    new,
                    None if first or heads_before else early,
                )
                done[first : first + together] = [attended] * len(tokens)
            appended |= {tile for tile, _, _ in run}
            heads_before += count
        return done, [places.outputs for places, *_ in turned]

    def _rows(self, m: AttentionMatrices) -> list[AttentionMatrices]:
        """What each token of a launch attends to: of a batch, its own sequence's caches."""
        return [m.row(n) if self.places.batch else m for n in range(len(self.tokens))]

    def block(self, m: Matrices, ready: int) -> int:
        """One block; x is readable from ``ready``; returns when the new x is."""
        end = self._attention(m, ready) if isinstance(m, AttentionMatrices) else self._ffn(m, ready)
        if m.post is not None:
            self.each = [end] * (len(self.tokens) * self.places.layout.x_tiles)
        return end

    def _attention(self, m: AttentionMatrices, ready: int) -> int:
        s, layout = self.places, self.places.layout
        qt, tiles = layout.q_tiles, range(layout.projected_tiles)
        ready, dynamic, parts = self._input(ready, m.factors)
        if m.latent is not None:
            done = self._from_latents(m.qkv, m.latent, ready)
        else:
            first = {"q": 0, "k": qt, "v": qt + layout.key_tiles}
            order = [first[name] + block for name, block in m.qkv.columns]
            words = [[token.results.at(i) for i in order] for token in self.tokens]
            known = self._matmul(m.qkv, layout.x_tiles, ready, dynamic, words, parts)
            done = [known[order.index(tile)] for tile in tiles]
        projected = [self._projected(token, m, done) for token in self.tokens]
        kernel = self._on_vxm if s.planes is None else self._on_planes
        attended, outputs = kernel(m, projected)
        self._did(SOFTMAX, max(attended))
        ready, dynamic = self._all_activated(outputs, qt, attended)
        done = self._matmul(m.o, qt, ready, dynamic, self._partial(m.post), 2)
        pace = self.period(m.o)
        if m.post is not None:
            return self._post_norm(done, m.post, pace, m.o_bias)
        x = [token.x for token in self.tokens]
        return self._residual(done, x, x, pace, m.o_bias)

    def _from_latents(self, x: MatrixPlaces, m: LatentMatrices, ready: int) -> list[int]:
        """Queries, keys and values made of latents; when each of their tiles is readable.

        x: products of the normed x.
        """
        layout = self.places.layout
        assert layout.latent is not None
        qt, kt, (of_q, of_kv) = layout.q_tiles, layout.kv_tiles, layout.latent_tiles
        behind, ranks = qt + 2 * kt, (layout.latent.query, layout.latent.key_value)
        keys_of = [token.latents.key for token in self.tokens if token.latents is not None]
        words = [
            [
                *(token.results.at(behind + i if of_q else i) for i in range(of_q or qt)),
                *(token.results.at(behind + of_q + i) for i in range(of_kv)),
                key,
            ]
            for token, key in zip(self.tokens, keys_of, strict=True)
        ]
        done = self._matmul(x, layout.x_tiles, ready, None, words)
        queries, shared = done[:qt], done[-1]
        if m.q is not None:
            known = self._normed_latents(0, (behind, of_q), ranks[0], done, m.q_factors)
            targets = [[token.results.at(i) for i in range(qt)] for token in self.tokens]
            queries = self._matmul(m.q, of_q, known, None, targets, 1, layout.x_tiles)
        else:
            done = done[qt - of_q :]
        known = self._normed_latents(1, (behind + of_q, of_kv), ranks[1], done[of_q:], m.kv_factors)
        targets = [[token.results.at(qt + i) for i in range(2 * kt)] for token in self.tokens]
        made = self._matmul(m.kv, of_kv, known, None, targets, 1, layout.x_tiles + of_q)
        keys = max(shared, *made[:kt])
        keys = max(
            add_bias(self.schedule, self.spec, token.results.at(qt), kt, keys, key, 0)
            for token, key in zip(self.tokens, keys_of, strict=True)
        )
        return [*queries, *[self._did(VXM, keys)] * kt, *made[kt:]]

    def _normed_latents(
        self, which: int, words: tuple[int, int], rank: int, done: list[int], factors: Place | None
    ) -> int:
        """Latents of every token normed into activation words behind those of x; when readable.

        which: 0 of queries, 1 of keys and values; words: the first of the results, and how many;
        done: when each is readable; rank: their elements.
        """
        d, spec, (first, tiles) = self.schedule, self.spec, words
        ready = at = max(done[:tiles])
        for s in self.tokens:
            assert s.latents is not None
            x, factor = s.results.at(first), s.latents.factors.at(which)
            to = s.act.at(s.layout.x_tiles + which * s.layout.latent_tiles[0])
            int8 = s.dtype == "int8"
            gain = QUANT_RANGE / math.sqrt(rank * SLACK) if int8 else None
            known = norm_factor(
                d, spec, x, tiles, ready, s.constants, 1.0 / rank, LATENT_EPS, gain, factor
            )
            if int8:
                known = quantise(d, spec, x, tiles, known, factor, to, factors)
            else:
                known = halve(d, spec, x, tiles, known, factor, to)
            at = max(at, known)
        return self._did(VXM, at)

    def _projected(self, s: DecoderPlaces, m: AttentionMatrices, done: list[int]) -> _Projected:
        """A token's projections with bias and norms; done: when the product's are readable."""
        d, layout = self.schedule, s.layout
        qt, kt, every = layout.q_tiles, layout.key_tiles, layout.projected_tiles
        heads, v_words = s.results, s.results.at(qt + kt)
        if m.bias is not None:
            biased = add_bias(d, self.spec, heads, every, max(done), m.bias)
            done = [self._did(VXM, biased)] * every
        of_queries, of_keys = max(done[:qt]), max(done[qt : qt + kt])
        of_heads, of_values = max(of_queries, of_keys), max(done[qt + kt :])
        if s.head_norm is not None and m.gains is not None and not m.of.plain_heads:
            of_heads = norm_heads(
                d,
                self.spec,
                heads,
                (qt, kt),
                of_heads,
                self.numbers.inv_d,
                self.numbers.eps,
                m.gains,
                s.constants,
                s.head_norm,
            )
            self._did(VXM, of_heads)
            heads, of_queries, of_keys = s.head_norm.normed, of_heads, of_heads
        if s.wide_norm is not None and m.gains is not None:
            of_heads = self._norm_wide(s, s.results, m.gains, of_heads)
            heads, of_queries, of_keys = s.wide_norm.normed, of_heads, of_heads
        return heads, v_words, (of_queries, of_keys, of_values)

    def _norm_wide(self, s: DecoderPlaces, x: Place, gains: Place, ready: int) -> int:
        """Query and key tiles from ``x`` on, each normed over all heads of all chips."""
        d, layout = self.schedule, s.layout
        w, counts = s.wide_norm, (layout.q_tiles, layout.kv_tiles)
        assert w is not None
        sums = w.sums
        own = s.reduce.partial if layout.tp > 1 else sums
        ready = self._did(VXM, lane_squares(d, self.spec, x, counts, ready, w.shares, own))
        if layout.tp > 1:
            ready = exchange(d, self.spec, layout.tp, 2, ready, s.reduce)
            self._did(C2C, ready)
            ready = reduce(d, self.spec, layout.tp, 2, ready, s.reduce, target=sums, alone=True)
        done = ready
        for word, (first, tiles) in enumerate(((0, counts[0]), counts)):
            factor = w.factors.at(word)
            inv, eps = self.numbers.inv_widths[word], self.numbers.eps
            known = factor_of_sum(d, self.spec, sums.at(word), ready, s.constants, inv, eps, factor)
            to = w.normed.at(first)
            done = max(
                done,
                scale_words(d, self.spec, x.at(first), tiles, known, factor, gains.at(first), to),
            )
        return self._did(VXM, done)

    def _partial(self, post: Place | None) -> list[list[Place]]:
        """Where a chip's part of a block's sums goes; post: gains of a norm of the sum."""
        found = []
        for s in self.tokens:
            alone = post is not None and s.layout.tp == 1 and s.post is not None
            own = s.post.sums if alone and s.post is not None else s.reduce.partial
            found.append([own.at(i) for i in range(s.layout.x_tiles)])
        return found

    def period(self, m: MatrixPlaces) -> int:
        """Cycles from one K tile of a product to the next."""
        groups = max(block.groups for blocks in m.rounds for block in blocks)
        return groups + self.spec.mxm_reload_gap_cycles

    def _post_norm(
        self, done: list[int], gains: Place, pace: int, bias: Place | None = None
    ) -> int:
        """The all-reduce of a row-split product, the norm of the sum, and x with that added."""
        layout, ready = self.places.layout, max(done)
        sums = []
        for s in self.tokens:
            assert s.post is not None
            sums.append(s.post.sums)
            if bias is not None:
                own = s.reduce.partial if layout.tp > 1 else s.post.sums
                added = add_bias(self.schedule, self.spec, own, layout.x_tiles, max(done), bias)
                ready = max(ready, self._did(VXM, added))
        if bias is not None:
            done = [ready] * layout.x_tiles
        if layout.tp > 1:
            ready = self._summed(done, sums, None, pace)
        return max([self._normed_sum(s, ready, gains) for s in self.tokens])

    def _normed_sum(self, s: DecoderPlaces, ready: int, gains: Place) -> int:
        """A token's x with the norm of a block's sum added."""
        d, layout = self.schedule, s.layout
        assert s.post is not None
        known = norm_factor(
            d,
            self.spec,
            s.post.sums,
            layout.x_tiles,
            ready,
            s.constants,
            self.numbers.inv_h,
            self.numbers.eps,
            None,
            s.post.factor,
        )
        ready = scale_words(
            d, self.spec, s.post.sums, layout.x_tiles, known, s.post.factor, gains, s.x, s.x
        )
        return self._did(VXM, ready)

    def _ffn(self, m: FfnMatrices, ready: int) -> int:
        """A whole FFN, or a part: parts norm the same x, and their sums meet in ``between``."""
        s, d, layout = self.places, self.schedule, self.places.layout
        ready, dynamic, split = self._input(ready, m.factors)
        if s.choice is not None and m.router is not None:
            return self._experts(m, ready)
        targets = []
        for token in self.tokens:
            gates = [token.results.at(i) for i in range(m.tiles)]
            targets.append(gates + [token.up.at(i) for i in range(m.tiles)])
        done = max(self._matmul(m.gate_up, layout.x_tiles, ready, dynamic, targets, split))
        known = []
        for token in self.tokens:
            gate, up, hidden = token.results, token.up, token.hidden
            kind = self.numbers.activation
            at = gated_product(d, self.spec, kind, gate, up, m.tiles, done, hidden)
            known.append(self._did(VXM, at))
        words = [token.hidden for token in self.tokens]
        ready, dynamic = self._all_activated(words, m.tiles, known)
        return self._down(m, [s.act], m.tiles, ready, dynamic, None)

    def _experts(self, m: FfnMatrices, ready: int) -> int:
        """The FFNs of the experts that the router chooses, x being normed by ``ready``."""
        s, d, layout, spec = self.places, self.schedule, self.places.layout, self.spec
        assert s.choice is not None and m.router is not None
        held = None if len(m.experts) == layout.experts else m.experts
        choice = replace(s.choice, maps=m.maps, held=held, bias=m.router_bias)
        logits = self._matmul(m.router, layout.x_tiles, ready, None, [choice.targets()])
        readable, shared = choose_experts(d, spec, max(logits), choice, s.constants)
        mapped = max(readable)
        self._did(VXM, mapped)
        k, words = layout.chosen, 2 * m.tiles + layout.x_tiles
        copied = mapped
        if m.scales is not None and choice.scales is not None:
            copied = copy_chosen(
                d, spec, readable[2], m.scales, len(m.experts), k, m.maps[2], choice.scales
            )
        known, given = mapped, None
        if choice.biases is not None:
            known, given = self._expert_biases(m, choice, mapped, shared)
        tiles = [range(i * m.tiles, (i + 1) * m.tiles) for i in range(k)]
        slots = [(s.act, [p.at(t) for p in (s.results, s.up) for t in own]) for own in tiles]
        made = self._chosen(
            m.gate_up,
            layout.x_tiles,
            ready,
            None,
            slots,
            1,
            (m.maps[0], readable[0]),
            (words, copied),
        )
        done = max(made)
        if choice.biases is not None:
            done = self._clamped(m, choice.biases, max(done, known))
        factors = [choice.shares.at(i) for i, own in enumerate(tiles) for _ in own]
        if layout.input_shares:
            own_tiles = (m.tiles, k)
            done = max(
                scale_slots(d, spec, x, own_tiles, max(done, shared), choice.shares)
                for x in (s.results, s.up)
            )
        ready = gated_product(
            d,
            spec,
            self.numbers.activation,
            s.results,
            s.up,
            k * m.tiles,
            max(shared, done),
            s.hidden,
            None if layout.input_shares else factors,
        )
        self._did(VXM, ready)
        ready, dynamic = self._activated(s, s.hidden, k * m.tiles, ready)
        each = m.tiles * (1 if s.dtype == "int8" else 2)
        if choice.turns is not None:
            lanes, counts = layout.ffn_width, (k, each)
            ready = take_turns(d, spec, max(ready, mapped), s.act, counts, choice.turns, lanes)
            self._did(VXM, ready)
        acts = [s.act.at(i * each) for i in range(k)]
        return self._down(m, acts, m.tiles, ready, dynamic, mapped, given)

    def _expert_biases(
        self, m: FfnMatrices, choice: ChoicePlaces, mapped: int, shared: int
    ) -> tuple[int, tuple[int, Place]]:
        """The chosen ones' biases: when they are copied; when and where those of down are, each
        times its share, added up.

        mapped, shared: when the maps and the shares are readable.
        """
        d, layout = self.schedule, self.places.layout
        k, words = layout.chosen, 2 * m.tiles + layout.x_tiles
        assert m.biases is not None and choice.biases is not None and choice.bias_sums is not None
        copied = copy_chosen(
            d, self.spec, mapped, m.biases, len(m.experts), k, m.maps[2], choice.biases
        )
        own = choice.biases.at(2 * m.tiles), words
        ready, counts = max(copied, shared), (layout.x_tiles, k)
        summed = shared_biases(d, self.spec, own, choice.shares, counts, ready, choice.bias_sums)
        return copied, (summed, choice.bias_sums)

    def _clamped(self, m: FfnMatrices, biases: Place, ready: int) -> int:
        """Gates and ups of all slots with their biases added, and cut; when readable."""
        s, tiles = self.places, (m.tiles, self.places.layout.chosen)
        words = 2 * m.tiles + s.layout.x_tiles
        done = ready
        for x, first in ((s.results, 0), (s.up, m.tiles)):
            own, gate = (biases.at(first), words), first == 0
            at = clamp_gates(
                self.schedule, self.spec, x, tiles, ready, own, self.numbers.limit, gate
            )
            done = max(done, at)
        return self._did(VXM, done)

    def _down(
        self,
        m: FfnMatrices,
        acts: list[Activations],
        k_tiles: int,
        ready: int,
        dynamic: Place | None,
        mapped: int | None,
        given: tuple[int, Place] | None = None,
    ) -> int:
        """Down, and what becomes of its sum.

        acts: of every slot; mapped: when the maps of experts are readable, where there are any;
        given: when and where what is added to the chip's sum is, if there is anything.
        """
        layout = self.places.layout
        targets = self._partial(m.post)
        if mapped is None:
            done = self._matmul(m.down, k_tiles, ready, dynamic, targets, 2)
        else:
            slots = [(act, targets[0]) for act in acts]
            words = 2 * m.tiles + layout.x_tiles
            maps = m.maps[1], mapped
            done = self._chosen(m.down, k_tiles, ready, dynamic, slots, 2, maps, (words, 0))
        pace = self.period(m.down)
        if m.post is not None:
            return self._post_norm(done, m.post, pace)
        residuals = [s.x if m.begins or m.apart else s.between for s in self.tokens]
        sums = None if m.apart else [s.x if m.ends else s.between for s in self.tokens]
        if given is None:
            return self._residual(done, residuals, sums, pace)
        done = [max(at, given[0]) for at in done]
        return self._residual(done, residuals, sums, pace, given[1])

    def _residual(
        self,
        done: list[int],
        residuals: list[Place],
        targets: list[Place] | None,
        pace: int,
        bias: Place | None = None,
    ) -> int:
        """The all-reduce of a row-split product, and its sum with ``residuals`` to ``targets``;
        without targets in place of the residuals, alone.

        done: when each of its tiles is readable; pace: its period; bias: of it, on one chip.
        """
        if bias is not None:
            biased = [self._biased(s.reduce.partial, done, bias) for s in self.tokens]
            done = [max(own) for own in zip(*biased, strict=True)]
        return self._did(VXM, self._summed(done, residuals, targets, pace))

    def _biased(self, words: Place, done: list[int], bias: Place) -> list[int]:
        """Add ``bias`` to words, those that are done together at once; when each is readable."""
        found = list(done)
        for at, own in runs_of(done):
            n, first = len(own), own[0]
            known = add_bias(self.schedule, self.spec, words.at(first), n, at, bias.at(first))
            found[first : first + n] = [known] * n
        self._did(VXM, max(found))
        return found

    def _summed(
        self, done: list[int], residuals: list[Place], targets: list[Place] | None, pace: int
    ) -> int:
        """Partial sums added over the chips; with the residuals, to ``targets`` if there are any.

        residuals: of every token, or where sums without a residual go.  pace: of the product that
        is under way while the first sums leave.
        """
        s, d, tp = self.places, self.schedule, self.places.layout.tp
        each = [replace(t.reduce, residual=x) for t, x in zip(self.tokens, residuals, strict=True)]
        goals = [None] * len(each) if targets is None else targets
        self.each = []
        if s.shares is not None:
            ready = 0
            for token, places, target in zip(self.tokens, each, goals, strict=True):
                assert token.shares is not None
                known, at, words_at = all_reduce_in_shares(
                    d, self.spec, tp, done, places, token.shares, target, pace
                )
                self._did(C2C, known)
                self.each += words_at
                ready = max(ready, at)
            return ready
        known = max(done)
        words, ready = s.layout.x_tiles, known
        if len(each) > 1 and each[1].partial == each[0].partial.at(words):
            words, each = words * len(each), each[:1]  # one behind the other
        for places, target in zip(each, goals, strict=False):
            at = known
            if tp > 1:
                if len(self.tokens) == 1:
                    at = exchange_as_made(d, self.spec, tp, done, places, pace)
                else:
                    at = exchange(d, self.spec, tp, words, at, places)
                self._did(C2C, at)
            alone = target is None
            at = reduce(d, self.spec, tp, words, at, places, target=target, alone=alone)
            self.each += [at] * words
            ready = max(ready, at)
        return ready

    def head(self, ready: int) -> int:
        """Final norm and logits, of the last token or of every one."""
        s, d, layout = self.places, self.schedule, self.places.layout
        assert s.head is not None
        own = self.tokens[-s.logit_rows :]
        ready = max([self._normed(token, ready, s.head_factors) for token in own])
        blocks = sum(map(len, s.head.rounds))
        words = [[s.logits.at(row * blocks + i) for i in range(blocks)] for row in range(len(own))]
        ready = max(self._matmul(s.head, layout.x_tiles, ready, None, words))
        if self.numbers.caps[1]:
            cap = self.numbers.caps[1]
            ready = cap_words(d, self.spec, s.logits, len(own) * blocks, ready, cap)
        return self._did(VXM, ready)
