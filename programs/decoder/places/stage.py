"""Where a stage of a decoder lies in a chip's SRAM.

The same places hold on every chip; only the contents differ.  Everything that repeats from layer
to layer (weights, scales, KV cache) is addressed by a symbol whose base differs per layer, so one
scheduled layer serves all.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from chip.isa import LANES
from chip.scheduling import CompileError, Place, Symbol
from chip.spec import ChipSpec
from interconnect.collectives import RECEIVED_QUADS, ReducePlaces, SharePlaces, share_of
from programs.artifact import MOST_CHUNK
from programs.decoder import (
    ATTENTION,
    FFN,
    Layout,
    Stage,
    ffn_part,
    part_tiles,
    router_parts,
    single_stage,
)
from programs.decoder.places.caches import LAYER_VARIANTS, CacheForm, cache_cuts, place_caches
from programs.decoder.places.matrices import MatrixPlacer, MatrixPlaces, matrix_shapes, part_shapes
from programs.decoder.places.planes import (
    KEY_MAPS,
    RECENT_MAPS,
    VALUE_MAPS,
    OnPlanes,
    place_on_planes,
    place_plane_caches,
)
from programs.kernels import (
    Activations,
    AttentionPlaces,
    CachedTile,
    ChoicePlaces,
    ColumnBlock,
    Constants,
    GroupPlaces,
    HeadNormPlaces,
    MapPlaces,
    PlanePlaces,
    RopePlaces,
    ScorePlaces,
    Segment,
    Segments,
    Weights,
    WideNormPlaces,
    clear_of_digits,
)
from programs.models import PLAIN_LAYER, LayerKind
from programs.sram import EAST_QUAD, KV_QUAD, MAP_PAIR, WEST_QUAD, SramPlacement, Symbols

#: Positions up to which scores lie on weight slices.
_SHORT = 1024
#: Contexts up to which one window of the mask table serves, and the window of longer ones: the
#: checker bounds the words in reach of a program's Gathers.
_ONE_WINDOW, _WINDOW = 512, 64
#: Experts of a token in fp16: with more, the choice's groups would take a resource twice.
MOST_FP16_SLOTS = 12
#: Places that a block of experts is cut to; more leave less of a bank unused.
_EXPERT_PARTS = (1, 2, 8)
_WEST_2, _WEST_3 = (8, 9, 10, 11), (12, 13, 14, 15)
_EAST_2 = (52, 53, 54, 55)
_DIGITS = ((5, 6), (50, 51))  # activation slices: west, east


@dataclass
class LatentMatrices:
    """Of latent attention: products of the latents, and what these are multiplied by as int8."""

    q: MatrixPlaces | None  # None: queries are among the products of x
    kv: MatrixPlaces
    q_factors: Place | None
    kv_factors: Place | None


@dataclass
class AttentionMatrices:
    """What attention blocks share that have one assignment to planes and slices."""

    qkv: MatrixPlaces
    o: MatrixPlaces
    keys: tuple[Segments, ...]  # of each cached tile, on the VXM
    values: tuple[Segments, ...]
    cached: tuple[CachedTile, ...]  # the same on the planes
    gains: Place | None = None  # of query and key heads
    bias: Place | None = None  # of queries, keys and values
    o_bias: Place | None = None
    sinks: Place | None = None  # of the heads in the order in which they go through the planes
    of: LayerKind = PLAIN_LAYER
    post: Place | None = None  # gains of the norm after the block
    factors: Place | None = None  # of normed int8 activations
    latent: LatentMatrices | None = None  # qkv are then the latents, the shared key, and queries

    def row(self, number: int) -> AttentionMatrices:
        """The same with the caches of row ``number`` of a batch, by symbols of their own."""

        def own(place: Place) -> Place:
            assert place.symbol is not None
            return Place(place.queues, place.address, row_symbol(place.symbol, number))

        def run(segments: Segments) -> Segments:
            return tuple(replace(segment, place=own(segment.place)) for segment in segments)

        def both(pair: tuple[Place, Place]) -> tuple[Place, Place]:
            return own(pair[0]), own(pair[1])

        return replace(
            self,
            keys=tuple(map(run, self.keys)),
            values=tuple(map(run, self.values)),
            cached=tuple(
                replace(
                    tile,
                    keys=(both(tile.keys[0]), both(tile.keys[1])),
                    values=(both(tile.values[0]), both(tile.values[1])),
                    recent=both(tile.recent),
                )
                for tile in self.cached
            ),
        )


@dataclass
class FfnMatrices:
    """What FFN blocks share: the matrices of ``tiles`` tiles from ``first_tile`` on."""

    gate_up: MatrixPlaces
    down: MatrixPlaces
    first_tile: int
    tiles: int
    begins: bool = True  # no part of the FFN comes before
    ends: bool = True
    apart: bool = False  # its sum goes to the place of x, where it meets that of the parts before
    experts: range = range(1)  # of the layer's, those that are here
    router: MatrixPlaces | None = None  # with every part
    maps: tuple[MapPlaces, ...] = ()  # of gate and up, of down, of the scales
    scales: Place | None = None  # of all experts, one after the other
    biases: Place | None = None  # the same
    router_bias: Place | None = None
    post: Place | None = None
    factors: Place | None = None


Matrices = AttentionMatrices | FfnMatrices


def row_symbol(symbol: Symbol, number: int) -> Symbol:
    """What ``symbol`` is for the sequence in row ``number`` of a batch."""
    return Symbol(f"{symbol.name}@{number}", symbol.banks)


@dataclass(frozen=True)
class SlidingMask:
    """The mask of layers with a sliding window: ``words`` of a table (minus infinities, zeros,
    minus infinities), and the map that names where each run of ``positions`` begins in it.
    """

    table: Place
    words: int
    map: Place
    positions: int

    @property
    def zeros(self) -> int:
        """Zeros of the table, between as many minus infinities as a run is long."""
        return self.words - 2 * self.positions


@dataclass
class DecoderPlaces:
    """Every place of a stage on a chip; ``bases[sequence][block]``: the symbols' addresses."""

    layout: Layout
    dtype: str
    context: int
    cache_maps: list[tuple[int, int]]  # (first position, positions) of each word of kv_map
    placement: SramPlacement
    constants: Constants
    x: Place
    factor: Place
    dynamic: Place
    norm_factor: Place  # of normed activations: int8 in the east, fp16 in the west
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
    rope: RopePlaces
    attention: AttentionPlaces | None  # on the VXM
    planes: OnPlanes | None
    reduce: ReducePlaces
    between: Place  # x with a part of an FFN added, beside x
    inbox: Place  # what another stage sent, before it is spread over the group
    bases: list[list[dict[Symbol, int]]] = field(default_factory=list)
    chunk: int = 1  # tokens of a launch at most: what is a token's own is there so many times
    head_norm: HeadNormPlaces | None = None
    choice: ChoicePlaces | None = None
    wide_norm: WideNormPlaces | None = None
    post: PostPlaces | None = None
    second_rope: tuple[Place, Place] | None = None  # cosines and sines of the other table
    sliding: SlidingMask | None = None  # where the context is longer than the window
    shares: SharePlaces | None = None  # where sums over the chips are made in two steps
    head_factors: Place | None = None
    latents: LatentPlaces | None = None
    batch: bool = False  # the tokens of a launch are of a sequence each
    logit_rows: int = 1  # tokens of a launch that have logits, the last or all

    def bases_of(self, number: int, block: int) -> dict[Symbol, int]:
        """The addresses of a block for sequence ``number``; of a batch, for group ``number``."""
        if not self.batch:
            return self.bases[number][block]
        first = number * self.chunk
        found = dict(self.bases[first][block])
        for row in range(self.chunk):
            own = self.bases[first + row][block]
            found |= {row_symbol(symbol, row): base for symbol, base in own.items()}
        return found

    def token(self, number: int) -> DecoderPlaces:
        """The places of token ``number`` of a chunk: its own words, and what all share."""
        layout, at = self.layout, number
        t, qt, kt = layout.x_tiles, layout.q_tiles, layout.kv_tiles
        heads, share = qt + layout.key_tiles, 0 if self.shares is None else self.shares.words
        act = self.act.at(at * act_words(layout, self.dtype))
        narrow = self.narrow.at(at * 2 * kt)
        attention, planes, sliding = self.attention, self.planes, self.sliding
        norm, wide, post, second = self.head_norm, self.wide_norm, self.post, self.second_rope
        rope = RopePlaces(
            self.rope.cos.at(at),
            self.rope.sin.at(at),
            self.rope.swap_map,
            self.rope.rotated.at(at * qt),
        )
        if attention is not None:
            attention = replace(
                attention,
                cos=rope.cos,
                sin=rope.sin,
                rotated=rope.rotated,
                outputs=attention.outputs.at(at * (3 + qt)),
                kv_map=attention.kv_map.at(at * len(self.cache_maps)),
                mask_map=attention.mask_map.at(at * -(-self.context // attention.mask_positions)),
            )
        if sliding is not None:
            words = -(-self.context // sliding.positions)
            sliding = replace(sliding, map=sliding.map.at(at * words))
        if planes is not None:
            planes = planes.token(at, layout)
        if norm is not None:
            norm = replace(norm, normed=norm.normed.at(at * heads))
        if wide is not None:
            wide = replace(
                wide,
                sums=wide.sums.at(at * 2),
                factors=wide.factors.at(at * 2),
                normed=wide.normed.at(at * heads),
            )
        if post is not None:
            post = PostPlaces(post.sums.at(at * t), post.factor.at(at))
        exchanged = partial_words(layout)
        received = {k: place.at(at * exchanged) for k, place in self.reduce.received.items()}
        partial = self.reduce.partial.at(at * partial_words(layout))
        shares = self.shares
        return replace(
            self,
            x=self.x.at(at * t),
            factor=self.factor.at(at),
            dynamic=self.dynamic.at(at),
            norm_factor=self.norm_factor.at(at),
            latents=None if self.latents is None else self.latents.token(at, layout),
            act=act,
            results=self.results.at(at * result_words(layout)),
            up=self.up.at(at * result_words(layout)),
            hidden=self.hidden.at(at * layout.slot_tiles),
            narrow=narrow,
            narrow_act=self.narrow_act.at(at * 2 * kt),
            rope=rope,
            attention=attention,
            planes=planes,
            reduce=ReducePlaces(partial, self.x.at(at * t), received),
            between=self.between.at(at * t),
            head_norm=norm,
            wide_norm=wide,
            post=post,
            second_rope=None if second is None else (second[0].at(at), second[1].at(at)),
            sliding=sliding,
            shares=None if shares is None else replace(shares, own=shares.own.at(at * share)),
        )

    @property
    def map_words(self) -> int:
        """Words of all slices that the host writes for a position: maps, and masks."""
        if self.planes is not None:
            words, sliding, blocks = self.planes.words, self.planes.sliding, self.planes.blocks
            written = [(words.masks, blocks), (words.key_maps, KEY_MAPS)]
            written += [(place, VALUE_MAPS) for place in words.value_maps]
            written += [(place, RECENT_MAPS) for place in words.recent_maps]
            written += [(sliding, blocks)] if sliding is not None else []
            return sum(len(place.queues) * each for place, each in written)
        assert self.attention is not None
        maps = len(self.cache_maps) - (-self.context // self.attention.mask_positions)
        if self.sliding is not None:
            maps -= -self.context // self.sliding.positions
        return 2 * maps

    def attention_of(self, m: AttentionMatrices, context: int) -> AttentionPlaces:
        """The places of one attention block on the VXM among ``context`` positions."""
        assert self.attention is not None
        places = replace(self.attention, keys=m.keys, values=m.values)
        if m.of.second_rope and self.second_rope is not None:
            places = replace(places, cos=self.second_rope[0], sin=self.second_rope[1])
        mask = self.sliding
        if m.of.sliding and mask is not None and context > self.layout.window:
            places = replace(
                places,
                mask_table=mask.table,
                mask_words=mask.words,
                mask_map=mask.map,
                mask_positions=mask.positions,
            )
        return places

    def planes_of(self, m: AttentionMatrices, context: int) -> tuple[RopePlaces, PlanePlaces]:
        """The same on the planes: those of the rotary embedding, and those of the attention."""
        assert self.planes is not None
        turns, words = self.rope, self.planes.words
        if m.of.second_rope and self.second_rope is not None:
            turns = replace(turns, cos=self.second_rope[0], sin=self.second_rope[1])
        if m.of.sliding and self.planes.sliding is not None and context > self.layout.window:
            words = replace(words, masks=self.planes.sliding)
        if m.sinks is not None:
            words = replace(words, sinks=m.sinks)
        return turns, words


@dataclass(frozen=True)
class PostPlaces:
    """What a norm after a block needs: the block's sum over the chips (east) and its factor."""

    sums: Place
    factor: Place


@dataclass(frozen=True)
class LatentPlaces:
    """factors: two words, as ``norm_factor``, of the latents; key: the shared one, not where
    results are, and a token's as far from the next one's as those.
    """

    factors: Place
    key: Place

    def token(self, number: int, layout: Layout) -> LatentPlaces:
        """Those of a token of a launch."""
        return LatentPlaces(self.factors.at(2 * number), self.key.at(number * result_words(layout)))


def place_decoder(
    spec: ChipSpec,
    layout: Layout,
    dtype: str,
    context: int,
    stage: Stage | None = None,
    sequences: int = 1,
    split: bool = False,
    tokens: int = 1,
    batch: bool = False,
    every_logit: bool = False,
) -> DecoderPlaces:
    """Allocate every word of a stage (default: the whole decoder) with caches for ``sequences``.

    split: some stage of the model computes a part of an FFN.  tokens: of a launch at most, see
    ``DecoderPlaces.token``; batch: of a sequence each, in groups of so many; every_logit: all of a
    chunk have logits, as those of a batch have.  Inputs and outputs have the same places in every
    stage.  Experts are cut to as few places a block as fit.  Raises CompileError when it does not
    fit.
    """
    _check_chunk(layout, tokens, batch)
    stage = stage or single_stage(layout.layers, layout.layer_kinds)[0]
    launch = tokens, batch, tokens if batch or every_logit else 1
    parts = _EXPERT_PARTS if layout.experts > 1 else _EXPERT_PARTS[:1]
    for cut in parts[:-1]:
        try:
            return _place(spec, layout, dtype, context, stage, sequences, split, launch, cut)
        except CompileError:
            continue
    return _place(spec, layout, dtype, context, stage, sequences, split, launch, parts[-1])


def _place(
    spec: ChipSpec,
    layout: Layout,
    dtype: str,
    context: int,
    stage: Stage,
    sequences: int,
    split: bool,
    launch: tuple[int, bool, int],
    parts: int,
) -> DecoderPlaces:
    """``place_decoder`` with the words of a block of experts cut to ``parts`` places.

    launch: its tokens, whether they are a batch, and how many have logits.
    """
    tokens, batch, logit_rows = launch
    pm = SramPlacement(spec, maps=layout.experts > 1)
    symbols = Symbols(sequences, len(stage.blocks))
    t, kt = layout.x_tiles, layout.kv_tiles
    window = mask_positions(context, spec)
    cuts = cache_cuts(context, spec.words_per_bank, sequences)
    constants = Constants(pm.top(pm.weight_slices(2), 1), pm.top(pm.weight_slices(3), 1))
    tiles = act_words(layout, dtype)
    digits = [pm.top(_DIGITS[0], tokens * tiles), pm.top(_DIGITS[1], tokens * tiles)]
    act = _pairs(digits)
    short = () if layout.on_planes else _short_scores(pm, context)
    words = _attention_temporaries(pm, layout, tokens)
    share = share_of(spec, layout.tp, t)
    # sums leave while weights are read from _EAST_2, and experts' come; ``dynamic`` is elsewhere
    quad = EAST_QUAD if layout.experts > 1 else KV_QUAD if share else _EAST_2
    partial = pm.top(quad, tokens * partial_words(layout))
    x = pm.top(EAST_QUAD, tokens * t)
    between = pm.top(EAST_QUAD, tokens * t) if split else x
    most = tokens * max(partial_words(layout), t * (1 + split))
    received = {k: pm.top(RECEIVED_QUADS[k], most) for k in range(1, layout.tp)}
    reduce = ReducePlaces(partial, x, received)
    shares = _place_shares(pm, layout, share, tokens)
    results = pm.top(EAST_QUAD, tokens * result_words(layout))
    # a token's words of ``up`` are as far from the next one's as those of ``results``
    # results of experts, which come while others' weights are read, lie where no weights do
    beside = EAST_QUAD if layout.experts > 1 else _EAST_2
    up = pm.top(beside, (tokens - 1) * result_words(layout) + layout.slot_tiles)
    hidden = pm.top(EAST_QUAD, tokens * layout.slot_tiles)
    logits = pm.top(EAST_QUAD, logit_rows * layout.vocab_blocks)
    spread = layout.replicate and not layout.wide_keys
    narrow = pm.top((_DIGITS[1]), tokens * 2 * kt) if spread else act.first[1]
    words |= _attention_constants(pm, layout, context, (window, len(cuts.maps)), tokens)
    factor = pm.top(WEST_QUAD, tokens)
    dynamic = pm.top(KV_QUAD if layout.experts == 1 else _EAST_2, tokens)
    norm_factor = dynamic if dtype == "int8" else factor
    if not clear_of_digits(spec, norm_factor, t, act):
        norm_factor = pm.top(_EAST_2, tokens)
    inbox = partial  # free while no product is under way
    if split or share or partial.queues == x.queues:
        inbox = pm.top(_EAST_2, tokens * t * (1 + split))
    replicate = _replicate_rounds(pm, layout)
    head_norm, wide_norm, post, latents = _place_norms(pm, layout, dtype, tokens)
    choice = place_choice(pm, layout, dtype)
    second_rope = _place_second_rope(pm, layout, tokens)
    planes, sliding = None, None
    if layout.on_planes:
        turned = words["rotated"], words["outputs"]
        planes = place_on_planes(pm, layout, context, turned, tokens)
    else:
        sliding = place_sliding_mask(pm, layout, context, window, tokens)
    # the same places for most stages, so that they share the code of their blocks
    scales = max(_scale_words(layout, stage, dtype), pm.words // 8)
    caches: list[CacheForm]
    if layout.on_planes:
        caches = place_plane_caches(pm, symbols, layout, stage, context, sequences)
    else:
        scores = short or _long_scores(pm, context, scales)
        caches = place_caches(pm, symbols, layout, stage, cuts, sequences)
    variants, variant_of = _place_blocks(pm, symbols, layout, dtype, stage, caches, choice, parts)
    head, head_factors = _place_head(pm, layout, stage, dtype) if stage.head else (None, None)
    rope = RopePlaces(words["cos"], words["sin"], words["swap_map"], words["rotated"])
    attention = None if layout.on_planes else _on_vxm(window, scores, words)
    return DecoderPlaces(
        layout,
        dtype,
        context,
        [] if layout.on_planes else cuts.maps,
        pm,
        constants,
        x,
        factor,
        dynamic,
        norm_factor,
        act,
        stage,
        variants,
        variant_of,
        head,
        replicate,
        results,
        up,
        hidden,
        narrow,
        _pairs([digits[0], narrow]),
        logits,
        rope,
        attention,
        planes,
        reduce,
        between,
        inbox,
        symbols.bases,
        tokens,
        head_norm,
        choice,
        wide_norm,
        post,
        second_rope,
        sliding,
        shares,
        head_factors,
        latents,
        batch,
        logit_rows,
    )


def _on_vxm(window: int, scores: Segments, words: dict[str, Place]) -> AttentionPlaces:
    """Places of attention on the VXM, without caches; window: positions of one of its masks."""
    return AttentionPlaces(
        mask_words=2 * window,
        mask_positions=window,
        scores=scores,
        keys=(),
        values=(),
        **words,
    )


def act_words(layout: Layout, dtype: str) -> int:
    """Words of a token's activations on each of their slices."""
    tiles = max(layout.x_tiles, layout.q_tiles, layout.slot_tiles)
    words = tiles * (1 if dtype == "int8" else 2)  # fp16 vectors in two parts
    return max(words, layout.x_tiles + sum(layout.latent_tiles))  # x while latents are made of it


def result_words(layout: Layout) -> int:
    """Words of a token's projections, latents behind them, and later of its gate."""
    return max(layout.projected_tiles + sum(layout.latent_tiles), layout.slot_tiles)


def partial_words(layout: Layout) -> int:
    """Words of a token's partial sums."""
    return max(layout.x_tiles, 2) if layout.wide_norms else layout.x_tiles


def _check_chunk(layout: Layout, tokens: int, batch: bool) -> None:
    """Raise CompileError for a chunk or a batch that no launch can have."""
    what, kind = launch_of(tokens, batch)
    if not 1 <= tokens <= MOST_CHUNK:
        raise CompileError(f"{what}: must be 1 to {MOST_CHUNK}")
    if tokens > 1 and layout.experts > 1:
        raise CompileError(f"{what}: they would choose different experts; use a {kind} of 1")


def launch_of(tokens: int, batch: bool) -> tuple[str, str]:
    """What goes through a stage together, in words, and what it is called."""
    if batch:
        return f"a batch of {tokens} sequences", "batch"
    return f"a chunk of {tokens} tokens", "chunk"


def _attention_temporaries(pm: SramPlacement, layout: Layout, tokens: int) -> dict[str, Place]:
    """Words of attention, by their names; on the planes most are apart."""
    qt = tokens * layout.q_tiles
    if layout.on_planes:
        return {"rotated": pm.top(EAST_QUAD, qt), "outputs": pm.top(EAST_QUAD, qt)}
    return {
        "maxima": pm.top(_WEST_3, 2),
        "maximum": pm.top(_WEST_3, 1),
        "sums": pm.top(WEST_QUAD, 3),
        "rotated": pm.top(EAST_QUAD, qt),
        "outputs": pm.top(EAST_QUAD, 3 * tokens + qt),
        "query_low": pm.top(pm.weight_slices(2), layout.heads_per_tile),
        "query_high": pm.top(pm.weight_slices(3), layout.heads_per_tile),
    }


def _attention_constants(
    pm: SramPlacement, layout: Layout, context: int, of_maps: tuple[int, int], tokens: int
) -> dict[str, Place]:
    """Constants and inputs of attention, by their names; on the planes those of rope alone.

    of_maps: positions of a window of the mask, and words of a map of the cache.
    """
    found = {"cos": pm.top(WEST_QUAD, tokens), "sin": pm.top(_WEST_2, tokens)}
    window, maps = of_maps
    if not layout.on_planes:
        found |= {
            "head_masks": pm.top(WEST_QUAD, layout.heads_per_tile),
            "mask_table": pm.bottom(WEST_QUAD, 2 * window, one_bank=True),
            "kv_map": pm.top(MAP_PAIR, tokens * maps),
            "mask_map": pm.top(MAP_PAIR, tokens * -(-context // window)),
        }
    return found | {"swap_map": pm.top(KV_QUAD[:1], 1)}


class StagePlaces:
    """The places of a model's stages on groups of chips; every shape of stage is placed once."""

    def __init__(
        self,
        spec: ChipSpec,
        layout: Layout,
        dtype: str,
        context: int,
        sequences: int = 1,
        chunk: int = 1,
        batch: bool = False,
        every_logit: bool = False,
    ) -> None:
        """context, sequences: of the caches; chunk: tokens of a launch at most; batch: they are
        of a sequence each, ``sequences`` being a multiple of ``chunk``; every_logit: all of them
        have logits, as those of a batch have.  Raises CompileError for more experts of a token
        than ``MOST_FP16_SLOTS`` in fp16.
        """
        if dtype != "int8" and layout.experts > 1 and layout.chosen > MOST_FP16_SLOTS:
            raise CompileError(
                f"{layout.chosen} experts of a token, shared ones counted: fp16 has schedules for "
                f"{MOST_FP16_SLOTS} at most; use --dtype int8"
            )
        self.spec, self.layout, self.dtype = spec, layout, dtype
        self.context, self.sequences, self.chunk = context, sequences, chunk
        self.batch, self.every_logit = batch, every_logit
        self._known: dict[tuple[object, ...], DecoderPlaces | str] = {}

    def of(self, stage: Stage, split: bool) -> DecoderPlaces:
        """As ``place_decoder``; ``split``: some stage of the model computes a part of an FFN."""
        found = self._find(stage, split)
        if isinstance(found, str):
            raise CompileError(found)
        return found

    def problem(self, stage: Stage, split: bool) -> str:
        """Why a stage does not fit, or nothing."""
        found = self._find(stage, split)
        return found if isinstance(found, str) else ""

    def _find(self, stage: Stage, split: bool) -> DecoderPlaces | str:
        key = (split, *stage.shape)
        if key not in self._known:
            try:
                self._known[key] = place_decoder(
                    self.spec,
                    self.layout,
                    self.dtype,
                    self.context,
                    stage,
                    self.sequences,
                    split,
                    self.chunk,
                    self.batch,
                    self.every_logit,
                )
            except CompileError as error:
                self._known[key] = str(error)
        return self._known[key]


def place_choice(pm: SramPlacement, layout: Layout, dtype: str) -> ChoicePlaces | None:
    """Places of a choice of experts, where there is any; the maps' strides differ from FFN to FFN.

    The maps lie further out than the experts' weights.
    """
    n, k, int8 = layout.routed, layout.chosen, dtype == "int8"
    if n == 1:
        return None
    r, every = k - layout.shared, layout.shares_of_all
    gates = (EAST_QUAD, _EAST_2)[: (1 + int8) * layout.shared_gate]
    biased = layout.expert_bias
    scores = layout.sigmoid_scores
    count = 2 + (int8 or biased)
    sides = [(pm.top(pm.map_slices(0), k), pm.top(pm.map_slices(1), k)) for _ in range(count)]
    words = k * expert_blocks(layout, layout.ffn_tiles)
    return ChoicePlaces(
        experts=n,
        chosen=k,
        coarse=pm.top(EAST_QUAD, 1),
        fine=pm.top(_EAST_2, 1) if int8 else None,
        pieces=pm.top(EAST_QUAD, 3),
        exact=pm.top(WEST_QUAD, 1),
        one_hot=pm.top(_WEST_2[:1], n),
        later=pm.top(_WEST_2[1:2], n),
        ranks=pm.top(_WEST_3, 1),
        indices=pm.top(EAST_QUAD, k),
        logits=pm.top(_EAST_2, r),
        best=pm.top(KV_QUAD, 1),
        weights=pm.top(EAST_QUAD, r),
        inverse=pm.top(_EAST_2, 1),
        shares=pm.top(KV_QUAD, k),
        maps=tuple(MapPlaces(west, east, 0) for west, east in sides),
        scales=pm.top(WEST_QUAD, words) if int8 else None,
        biases=pm.top(WEST_QUAD, words) if biased else None,
        bias_sums=pm.top(WEST_QUAD, layout.x_tiles) if biased else None,
        own=pm.top(EAST_QUAD, k),
        turns=pm.top(_WEST_2[1 : layout.turns + 1], k) if layout.turns > 1 else None,
        shared=layout.shared,
        sigmoid=layout.input_shares,
        gates=tuple(pm.top(quad, 1) for quad in gates),
        absent=pm.top(EAST_QUAD, 1) if every else None,
        every=pm.top(EAST_QUAD, 1) if every else None,
        scores=ScorePlaces(
            raw=pm.top(_EAST_2, 1),
            present=pm.top(_WEST_2[1:2], 1),
            ranked=pm.top(EAST_QUAD, 2),
        )
        if scores
        else None,
        groups=_place_groups(pm, layout),
    )


def _place_groups(pm: SramPlacement, layout: Layout) -> GroupPlaces | None:
    """Places of a choice of groups of experts, where there is any."""
    count, size = layout.expert_groups, layout.routed // layout.expert_groups
    if count == 1:
        return None
    return GroupPlaces(
        count,
        size,
        1 + layout.sigmoid_scores,
        layout.chosen_groups,
        members=pm.top(_WEST_2[:1], size),
        behind=pm.top(_WEST_2[1:2], size),
        firsts=pm.top(_WEST_2[:1], count),
        later=pm.top(_WEST_2[1:2], count),
        ones=pm.top(pm.weight_slices(3), LANES // 16),
        raw=pm.top(_EAST_2, 1),
        pieces=pm.top(EAST_QUAD, 2),
        exact=pm.top(WEST_QUAD, 1),
        ranked=pm.top(EAST_QUAD, 2),
        order=pm.top(WEST_QUAD, 1),
    )


def place_head_norm(
    pm: SramPlacement, layout: Layout, queues: tuple[int, int, int, int], tokens: int = 1
) -> HeadNormPlaces:
    """Places for all tiles of heads of a chip; ``queues``: an east quad for the normed ones."""
    slots = LANES // layout.head_lanes
    ones = pm.top(pm.weight_slices(3), slots)  # the odd plane of the east pair
    normed = pm.top(queues, tokens * (layout.q_tiles + layout.key_tiles))
    return HeadNormPlaces(ones, slots, layout.head_lanes, normed)


def _place_head(
    pm: SramPlacement, layout: Layout, stage: Stage, dtype: str
) -> tuple[MatrixPlaces, Place | None]:
    """The stage's part of the output head, and factors of what it takes."""
    shapes = matrix_shapes(layout)
    k_tiles, blocks, groups = shapes["head"]
    own = part_tiles(blocks, stage.head_part, stage.head_parts)
    shapes["head"] = (k_tiles, len(own), groups)
    of = MatrixPlacer(pm, None, [0], dtype, shapes)
    head = of.place("head", ["head"])
    return head, of.words("factors", WEST_QUAD, layout.x_tiles) if dtype == "int8" else None


def _place_shares(pm: SramPlacement, layout: Layout, share: int, tokens: int) -> SharePlaces | None:
    """Words for sums over the chips in two steps, where those are sooner than one."""
    if not share:
        return None
    return SharePlaces(share, pm.top(EAST_QUAD, tokens * share), pm.top(MAP_PAIR, layout.tp))


def _place_second_rope(
    pm: SramPlacement, layout: Layout, tokens: int
) -> tuple[Place, Place] | None:
    """Words of the second rotary table, where there is one."""
    if layout.rope_tables == 1:
        return None
    return pm.top(WEST_QUAD, tokens), pm.top(_WEST_2, tokens)


def place_sliding_mask(
    pm: SramPlacement, layout: Layout, context: int, most: int, tokens: int
) -> SlidingMask | None:
    """Words of the second mask, where some layer attends to fewer positions than there are.

    most: positions of a run at most.
    """
    if not 0 < layout.window < context:
        return None
    run = min(_WINDOW, most)
    words = 2 * run + min(layout.window, run)
    table = pm.bottom(WEST_QUAD, words, one_bank=True)
    return SlidingMask(table, words, pm.top(MAP_PAIR, tokens * -(-context // run)), run)


def _place_norms(
    pm: SramPlacement, layout: Layout, dtype: str, tokens: int
) -> tuple[HeadNormPlaces | None, WideNormPlaces | None, PostPlaces | None, LatentPlaces | None]:
    """Places for norms of heads, over all heads (shares are constants), after blocks and of
    latents.
    """
    head_norm = place_head_norm(pm, layout, _EAST_2, tokens) if layout.head_norms else None
    wide_norm, post = None, None
    if layout.wide_norms:
        wide_norm = WideNormPlaces(
            sums=pm.top(EAST_QUAD, 2 * tokens),
            factors=pm.top(KV_QUAD, 2 * tokens),
            shares=pm.top(_WEST_2, layout.kv_tiles),
            normed=pm.top(_EAST_2, tokens * (layout.q_tiles + layout.kv_tiles)),
        )
    if layout.post_norms:
        post = PostPlaces(pm.top(EAST_QUAD, tokens * layout.x_tiles), pm.top(KV_QUAD, tokens))
    latent = None
    if layout.latent is not None:
        factors = pm.top(_EAST_2 if dtype == "int8" else WEST_QUAD, 2 * tokens)
        key = pm.top(_EAST_2, (tokens - 1) * result_words(layout) + 1)
        latent = LatentPlaces(factors, key)
    return head_norm, wide_norm, post, latent


def _gain_words(layout: Layout) -> tuple[int, int]:
    """Words of gains that are kept of an attention block: of its heads, and of its output."""
    wide = layout.q_tiles + layout.kv_tiles if layout.wide_norms else 0
    return 2 * layout.head_norms + wide, layout.x_tiles * layout.post_norms


def _factor_words(layout: Layout, dtype: str) -> int:
    """Words of factors of the normed activations of a block."""
    return layout.x_tiles if dtype == "int8" and layout.pre_norms else 0


def mask_positions(context: int, spec: ChipSpec) -> int:
    """Positions one window of the mask table serves; longer contexts take several windows."""
    most = spec.words_per_bank // 4
    return context if context <= min(_ONE_WINDOW, most) else min(_WINDOW, most)


def _short_scores(pm: SramPlacement, context: int) -> Segments:
    """Scores of up to a bank of positions, in one run; none of more."""
    if context > pm.spec.words_per_bank:
        return ()
    nearest = _WEST_2 if context <= _SHORT else WEST_QUAD
    return (Segment(pm.top(pm.map_slices(0) if pm.maps else nearest, context), context),)


def _long_scores(pm: SramPlacement, context: int, scales: int) -> Segments:
    """Scores of more than a bank of positions: WEST_QUAD but for ``scales`` words, and quads of
    the west planes' slices; not _WEST_3, whose maximum is read while scores are.
    """
    room = min(pm.high[q] for q in WEST_QUAD) - max(pm.low[q] for q in WEST_QUAD) - scales
    first = min(context, max(room, 0))
    found = [Segment(pm.top(WEST_QUAD, first), first)] if first else []
    quads = []
    for plane in (0, 1):
        own = [q for q in pm.weight_slices(plane) if q not in _WEST_3]
        quads += [tuple(own[i : i + 4]) for i in range(0, len(own) - 3, 4)]
    each = -(-(context - first) // len(quads))
    over = sum(max(0, each - min(pm.high[q] for q in quad)) for quad in quads)
    if over:
        raise CompileError(
            f"the model does not fit: {over * 4 * 320:,} bytes too many of scores on a chip; use a "
            "shorter context"
        )
    for quad in quads:
        words = min(each, context - sum(s.positions for s in found))
        if words:
            found.append(Segment(pm.top(quad, words), words))
    return tuple(found)


def _scale_words(layout: Layout, stage: Stage, dtype: str) -> int:
    """Words of a stage's scales, one for each column block, and of its gains and biases."""
    heads, post = _gain_words(layout)
    heads += layout.x_tiles * layout.o_bias
    heads += layout.projected_tiles * layout.qkv_bias
    heads += layout.query_heads * layout.sinks
    words = heads * sum(block.kind == ATTENTION for block in stage.blocks)
    words += post * len(stage.blocks)
    for block in stage.blocks if layout.expert_bias else ():
        if block.kind != ATTENTION:
            tiles, held = ffn_part(layout.ffn_tiles, layout.experts, block.own, block.parts)
            words += len(held) * expert_blocks(layout, len(tiles)) + 1
    if dtype != "int8":
        return words
    words += _factor_words(layout, dtype) * len(stage.blocks)
    for block in stage.blocks:
        if block.kind == ATTENTION:
            words += layout.x_tiles + layout.projected_tiles
            if layout.latent is not None:
                words += 2 * sum(layout.latent_tiles) + 1
        else:
            own = layout.for_ffn(block.of)
            tiles, held = ffn_part(own.ffn_tiles, own.experts, block.own, block.parts)
            words += len(held) * expert_blocks(own, len(tiles))
            words += router_parts(dtype) * (1 + own.shared_gate) if own.experts > 1 else 0
            words += own.sigmoid_scores
    if stage.head:
        words += len(part_tiles(layout.vocab_blocks, stage.head_part, stage.head_parts))
        words += layout.x_tiles
    return words


def _place_blocks(
    pm: SramPlacement,
    symbols: Symbols,
    layout: Layout,
    dtype: str,
    stage: Stage,
    caches: list[CacheForm],
    choice: ChoicePlaces | None,
    cut: int,
) -> tuple[list[Matrices], list[int]]:
    """The variants of the stage's blocks, and which of them each block is of.

    cut: places of a block of experts.
    """
    shapes = matrix_shapes(layout)
    heads, post = _gain_words(layout)
    taken = _factor_words(layout, dtype)
    groups: dict[tuple[str, range, int, LayerKind], list[int]] = {}
    for i, block in enumerate(stage.blocks):
        of_group = block.of if block.kind == FFN else PLAIN_LAYER
        groups.setdefault((block.kind, block.own, block.parts, of_group), []).append(i)
    variants: list[Matrices] = []
    variant_of = [0] * len(stage.blocks)
    for variant in range(max(LAYER_VARIANTS, len(caches))):
        for (kind, parts, of_parts, of_group), own in groups.items():
            if kind == ATTENTION:
                members = caches[variant].members if variant < len(caches) else []
            else:
                count = min(LAYER_VARIANTS, len(own))
                members = own[variant::count] if variant < count else []
            if not members:
                continue
            for member in members:
                variant_of[member] = len(variants)
            if kind == ATTENTION:
                of = MatrixPlacer(pm, symbols, members, dtype, shapes)
                qkv = _place_qkv(of, layout)
                latent = _place_latent(of, layout) if layout.latent is not None else None
                gains = of.words("gains", WEST_QUAD, heads) if heads else None
                tiles_of_heads = layout.projected_tiles
                bias = of.words("bias", WEST_QUAD, tiles_of_heads) if layout.qkv_bias else None
                o_bias = of.words("o_bias", WEST_QUAD, layout.x_tiles) if layout.o_bias else None
                sinks = (
                    of.words("sinks", WEST_QUAD, len(layout.run_heads)) if layout.sinks else None
                )
                cache = caches[variant]
                o = of.place("o", ["o"])
                after = of.words("post", WEST_QUAD, post) if post else None
                factors = of.words("factors", WEST_QUAD, taken) if taken else None
                kinds = [stage.blocks[member].of for member in members]
                for own_kind in dict.fromkeys(kinds):  # the same places for all
                    for member, kind_of_member in zip(members, kinds, strict=True):
                        if kind_of_member == own_kind:
                            variant_of[member] = len(variants)
                    variants.append(
                        AttentionMatrices(
                            qkv,
                            o,
                            cache.keys,
                            cache.values,
                            cache.cached,
                            gains,
                            bias,
                            o_bias,
                            sinks,
                            own_kind,
                            after,
                            factors,
                            latent,
                        )
                    )
                continue
            of_ffn = layout.for_ffn(of_group)
            tiles, held = ffn_part(of_ffn.ffn_tiles, of_ffn.experts, parts, of_parts)
            own_shapes = part_shapes(matrix_shapes(of_ffn), len(tiles))
            of = MatrixPlacer(pm, symbols, members, dtype, own_shapes, cut)
            own_ffn = _place_ffn(of, of_ffn, (tiles, held), None if of_group.dense else choice)
            own_ffn.begins, own_ffn.ends = parts.start == 0, parts.stop == of_parts
            own_ffn.post = of.words("post", WEST_QUAD, post) if post else None
            own_ffn.factors = of.words("factors", WEST_QUAD, taken) if taken else None
            variants.append(own_ffn)
    return variants, variant_of


def qkv_names(layout: Layout) -> list[str]:
    """The matrices of the products of x before an attention."""
    if layout.latent is None:
        return ["q", "k", "v"]
    return ["q_down" if layout.latent.query else "q", "kv_down", "k_rope"]


def _place_qkv(of: MatrixPlacer, layout: Layout) -> MatrixPlaces:
    """The products of x before an attention.

    Where they take several rounds and attention is on the planes, K and V come first if that takes
    no cycle more: they go to their caches while the queries are made.
    """
    names, again = qkv_names(layout), layout.key_copies
    narrow = layout.replicate and not layout.wide_keys  # K and V are spread by the planes
    if layout.on_planes and layout.latent is None and not narrow:
        usual, other = of.groups(names, again), of.groups(names[::-1], again)
        if len(usual) > 1 and sum(other) <= sum(usual):
            return of.place("qkv", names[::-1], again=again, beside_keys=True)
    return of.place("qkv", names, again=again)


def _place_latent(of: MatrixPlacer, layout: Layout) -> LatentMatrices:
    """Products of the latents of a layer."""
    assert layout.latent is not None
    queries, int8 = layout.latent.query > 0, of.dtype == "int8"
    of_q, of_kv = layout.latent_tiles
    return LatentMatrices(
        of.place("q", ["q"]) if queries else None,
        of.place("kv", ["k", "v"]),
        of.words("q_factors", WEST_QUAD, of_q) if queries and int8 else None,
        of.words("kv_factors", WEST_QUAD, of_kv) if int8 else None,
    )


def expert_blocks(layout: Layout, tiles: int) -> int:
    """Column blocks of an FFN of ``tiles`` tiles, or of one expert's."""
    return 2 * tiles + layout.x_tiles


def _place_ffn(
    of: MatrixPlacer,
    layout: Layout,
    own_range: tuple[range, range],
    choice: ChoicePlaces | None,
) -> FfnMatrices:
    """An FFN's matrices, or those of its experts, whose scales are copied when they are chosen.

    own_range: its tiles and experts.
    """
    tiles, held = own_range
    n, own = len(held), len(tiles)
    blocks = expert_blocks(layout, own)
    copies = None if choice is None else choice.scales
    words = -(-n // layout.turns)
    for matrix, experts in (("gate", n), ("down", words)):
        of.check_reach(matrix, experts)
    scales, biases = None, None
    if choice is not None and of.dtype == "int8":
        # first: they share a slice with one plane's weights, which are then fewer
        scales = of.words("scales", WEST_QUAD, n * blocks, one_bank=True)
    if choice is not None and layout.expert_bias:
        biases = of.words("biases", WEST_QUAD, n * blocks, one_bank=True)
    gate_up = of.place("gate_up", ["gate", "up"], n, copies)
    down = of.place("down", ["down"], words, None if copies is None else copies.at(2 * own))
    found = FfnMatrices(gate_up, down, tiles.start, own, experts=held, scales=scales, biases=biases)
    if choice is not None:
        strides = (of.reach("gate"), of.reach("down"), blocks)
        turns = (1, layout.turns, 1)
        found.maps = tuple(
            replace(m, stride=s, turns=n)
            for m, s, n in zip(choice.maps, strides, turns, strict=False)
        )
        parts = router_parts(of.dtype)
        columns = ["router", "fine"][:parts]
        columns += ["share", "share_fine"][: parts * layout.shared_gate]
        found.router = of.place("router", columns)
        if layout.expert_bias:
            found.router_bias = of.words("router_bias", WEST_QUAD, 1)
        if layout.sigmoid_scores:
            found.router_bias = of.words("router_bias", WEST_QUAD, 1)
    return found


def _pairs(places: list[Place]) -> Activations:
    """The two slices of a west and an east pair as separate places."""
    west, east = places
    return Activations(
        (west.part(0, 1), east.part(0, 1)),
        (west.part(1), east.part(1)),
    )


def _replicate_rounds(pm: SramPlacement, layout: Layout) -> list[list[ColumnBlock]]:
    """One-hot matrices that spread fp16 K and V to the query heads' lanes, east pair only."""
    if not layout.replicate or layout.wide_keys:
        return []
    groups = layout.q_width // 16
    words = layout.kv_tiles * groups
    rounds = []
    for _ in range(layout.cache_tiles):
        halves = tuple(pm.top(pm.weight_slices(plane), words) for plane in (2, 3))
        rounds.append([ColumnBlock(Weights(halves, groups), 2)])
    return rounds
