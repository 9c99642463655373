"""How a model is dealt to chips: tensor parallelism, stages and wiring, by SRAM and by cycles.

Whether a stage fits is found by placing every word of it; what it costs is estimated from its
weights and its context, only to deal blocks evenly.  Nothing is scheduled here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from chip.scheduling import CompileError
from chip.spec import ChipSpec
from interconnect.collectives import all_reduce_cycles, share_of
from interconnect.wiring import Topology, chain_of, chain_sizes, topology_of, usual_sizes
from programs.decoder.expert_weights import router_columns
from programs.decoder.lanes import Layout
from programs.decoder.places import StagePlaces, blocks_of, cached_words
from programs.decoder.stages import (
    Fits,
    Stage,
    cut_less,
    deal,
    ffn_part,
    model_blocks,
    pack,
    whole_again,
)
from programs.models import ModelConfig

NODE = 8
#: Chips that may share every matrix.
WIDTHS = (1, 2, 4, 8)
#: Slices that feed a plane pair.
_PAIR_SLICES = 32
#: Parts an FFN is cut into at most, to fit chips that are too small for a whole one.
MOST_PARTS = 8
#: Chips of the largest wiring.
MOST_CHIPS = 10_440


@dataclass(frozen=True)
class Dealt:
    """A model on a machine: its stages, where they lie, and the cables between them."""

    stages: list[Stage]
    places: StagePlaces
    wiring: Topology

    @property
    def layout(self) -> Layout:
        """How the model lies on the chips of a group."""
        return self.places.layout


@dataclass(frozen=True)
class _Asked:
    """A model to be dealt: what of it does not hang on the number of chips."""

    name: str
    config: ModelConfig
    spec: ChipSpec
    dtype: str
    context: int
    batch: int
    wiring: str = "usual"
    known: dict[int, StagePlaces] = field(default_factory=dict, compare=False)

    def places(self, tp: int) -> StagePlaces:
        """The places of its stages on groups of ``tp`` chips."""
        if tp not in self.known:
            layout = Layout.of(self.config, tp)
            self.known[tp] = StagePlaces(self.spec, layout, self.dtype, self.context, self.batch)
        return self.known[tp]

    def memory(self, tp: int) -> dict[str, int]:
        """See ``memory_bytes``."""
        return memory_bytes(Layout.of(self.config, tp), self.dtype, self.context, self.batch)


def _fits(places: StagePlaces, split: bool) -> Fits:
    """Whether a stage fits, parts of an FFN being joined where that fits too."""
    return lambda stage: not places.problem(_joined(places, stage, split), split)


def _joined(places: StagePlaces, stage: Stage, split: bool) -> Stage:
    """A stage with neighbouring parts of an FFN as one; where that does not fit, because fewer
    blocks lie less evenly on the planes' slices, the first ones stay apart.
    """
    joined = whole_again([stage])[0]
    for apart, block in enumerate(stage.blocks):
        if not block.part or not places.problem(joined, split):
            break
        rest = whole_again([replace(stage, blocks=stage.blocks[apart + 1 :])])[0]
        joined = replace(stage, blocks=stage.blocks[: apart + 1] + rest.blocks)
    return joined


def _most_parts(layout: Layout) -> int:
    """Parts an FFN may be cut into: one where its whole sum is normed before it is added to x."""
    if layout.post_norms:
        return 1
    # a part of experts has two at least, one of another FFN a tile
    most = min(MOST_PARTS, max(layout.ffn_tiles, layout.experts // 2))
    dense = (layout.for_ffn(kind).ffn_tiles for kind in set(layout.layer_kinds) if kind.dense)
    return min(most, *dense, MOST_PARTS)


def _head_parts(fits: Fits) -> int:
    """The fewest parts of the vocabulary of which one fits a group alone."""
    for parts in range(1, MOST_PARTS + 1):
        if fits(Stage((), True, 0, parts)):
            return parts
    return 1


def _cost(places: StagePlaces, stage: Stage) -> float:
    """Cycles of a stage, estimated for dealing: weights by bandwidth, the rest by counts."""
    layout, context, spec = places.layout, places.context, places.spec
    rate = 4 * spec.mxm_reload_gap_cycles / 27 + 4  # planes' columns of sixteen words
    t, width = layout.x_tiles, layout.x_width
    attention = (layout.qkv_columns + layout.q_tiles * t * width) / 16
    share = share_of(spec, layout.tp, t)
    exchange = all_reduce_cycles(spec, layout.tp, t, share) if layout.tp > 1 else 0
    if layout.on_planes:
        blocks = len(layout.query_groups) * blocks_of(context)
        scores = 2 * spec.mxm_reload_gap_cycles * blocks + 20 * blocks + 1200
    else:
        scores = 3 * context * layout.q_tiles + 1500
    total = 0.0
    for block in stage.blocks:
        if block.kind == "attention":
            total += attention / rate * 1.4 + scores + exchange + 500
        else:
            of = layout.for_ffn(block.of)
            ffn = 3 * t * of.chosen * of.ffn_tiles * of.ffn_width / 16
            router = 2 * t * of.experts / 16 if of.experts > 1 else 0
            tiles, _ = ffn_part(of.ffn_tiles, of.experts, block.own, block.parts)
            own = ffn * len(tiles) / of.ffn_tiles
            total += (own + router) / rate * 1.4 + exchange + 800
    if stage.head:
        head = t * layout.vocab_blocks * layout.vocab_width / 16 / stage.head_parts
        total += head / rate * 1.4 + 300
    return total


#: Wirings of machines by name: the numbers of chips there is one for, and the cables of a number.
WIRINGS: dict[str, tuple[Callable[[], list[int]], Callable[[int], Topology]]] = {
    "usual": (usual_sizes, topology_of),
    "chain": (chain_sizes, chain_of),
}


def machine_sizes(wiring: str = "usual") -> list[int]:
    """Numbers of chips that a wiring of ``WIRINGS`` has, ascending."""
    return WIRINGS[wiring][0]()


def _tp_of(chips: int) -> int:
    return next(tp for tp in reversed(WIDTHS) if chips % tp == 0)


def check_parallelism(
    chips: int | None, tp: int | None = None, pp: int | None = None
) -> tuple[int, int]:
    """(tensor parallelism, pipeline stages) that the options of these names ask for.

    Raises CompileError with one line for numbers that do not go together.
    """
    for option, value in (("--chips", chips), ("--tp", tp), ("--pp", pp)):
        if value is not None and value < 1:
            raise CompileError(f"{option} {value}: use 1 or more")
    if chips is None:
        chips = (tp or (8 if pp is None else 0)) * (pp or 1) or 8 * (pp or 1)
    if tp is None:
        tp = chips // pp if pp else min(chips, 8)
    if tp not in WIDTHS:
        raise CompileError(
            f"--chips {chips} in {pp or 1} stages (--pp): {tp} chips (--tp) would share every "
            "matrix; use 1, 2, 4 or 8"
        )
    stages = pp or chips // tp
    if tp * stages != chips:
        raise CompileError(
            f"--chips {chips} with --tp {tp} and {stages} pipeline stages: {tp} x {stages} are "
            f"{tp * stages}; use --chips {tp * stages}"
        )
    return tp, stages


def deal_model(
    name: str,
    config: ModelConfig,
    spec: ChipSpec,
    dtype: str,
    context: int,
    batch: int,
    chips: int | None = None,
    tp: int | None = None,
    wiring: str = "usual",
) -> Dealt:
    """Tensor parallelism, stages and wiring; the fewest chips that fit unless ``chips`` is given.

    wiring: of ``WIRINGS``.  Raises CompileError with one line when it does not fit: by how much,
    and what would.
    """
    asked = _Asked(name, config, spec, dtype, context, batch, wiring)
    cables = WIRINGS[wiring][1]
    if chips is not None:
        topology = cables(chips)  # refuses sizes without a wiring
        width = tp or _tp_of(chips)
        if chips % width:
            raise CompileError(f"{chips} chips in groups of {width}: use a multiple of {width}")
        places = asked.places(width)
        stages = _deal(places, chips // width)
        if stages is None:
            fewest = _fewest(asked, tp)
            if fewest is None and tp:
                fewest = _fewest(asked, None)
            raise CompileError(_too_big(asked, fewest, chips, tp))
        return Dealt(stages, places, topology)
    found = _fewest(asked, tp)
    if found is None:
        fewest = _fewest(asked, None) if tp else None
        raise CompileError(_too_big(asked, fewest, None, tp))
    width, stages = found
    need = width * len(stages)
    size = next(s for s in machine_sizes(wiring) if s >= need and s % width == 0)
    return Dealt(stages, asked.places(width), cables(size))


def deal_stages(places: StagePlaces, stages: int) -> list[Stage]:
    """The blocks on exactly ``stages`` groups of chips, no FFN in parts, the slowest as fast as
    it can be.

    Raises CompileError with one line for too many stages, or too few to hold the model.
    """
    layout = places.layout
    blocks = model_blocks(layout.layers, 1, layout.layer_kinds)
    if not 1 <= stages <= len(blocks) + 1:
        raise CompileError(
            f"{stages} pipeline stages for {layout.layers} layers: use 1 to {len(blocks) + 1}, a "
            "stage holds an attention, an FFN or the head at least"
        )
    if stages == 1:
        return [Stage(blocks, True)]
    fits = _fits(places, split=False)
    dealt = deal(blocks, stages, partial(_cost, places), fits)
    if dealt is not None:
        return dealt
    fewest = pack(blocks, fits)
    if fewest is None:
        alone = [Stage((block,), False) for block in blocks[:2]] + [Stage((), True)]
        raise CompileError(next(p for stage in alone if (p := places.problem(stage, False))))
    raise CompileError(
        f"the model does not fit {stages} pipeline stages of {layout.tp} chips; use "
        f"{len(fewest)} stages or more"
    )


def sequences_that_fit(
    stages: list[Stage], layout: Layout, spec: ChipSpec, dtype: str, context: int, most: int
) -> int:
    """Sequences of ``context`` positions, ``most`` or fewer, that dealt stages have caches for."""
    split = any(block.parts > 1 for stage in stages for block in stage.blocks)
    shapes = {stage.shape: stage for stage in stages}

    def held(sequences: int) -> bool:
        places = StagePlaces(spec, layout, dtype, context, sequences)
        return not any(places.problem(stage, split) for stage in shapes.values())

    fits, beyond = 0, 1
    while beyond <= most and held(beyond):
        fits, beyond = beyond, 2 * beyond
    beyond = min(beyond, most + 1)
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        if held(middle):
            fits = middle
        else:
            beyond = middle
    return fits


def _fewest(asked: _Asked, tp: int | None) -> tuple[int, list[Stage]] | None:
    """(chips of a group, stages): the smallest group that holds the model, else the fewest groups
    of eight.
    """
    if sum(asked.memory(tp or NODE).values()) > MOST_CHIPS * asked.spec.sram_bytes:
        return None  # dealing thousands of layers out would take long to say the same
    for width in (tp,) if tp else WIDTHS:
        stages = _deal(asked.places(width), 1)
        if stages is not None:
            return width, stages
    places = asked.places(tp or NODE)
    best: tuple[int, list[Stage]] | None = None
    for parts in range(1, MOST_PARTS + 1):
        stages = _pack(places, parts)
        if stages is None:
            continue
        if best is None or len(stages) < len(best[1]):
            best = (parts, stages)
    if best is None:
        return None
    even = _deal(places, len(best[1]), best[0])
    return tp or NODE, even or [_joined(places, stage, best[0] > 1) for stage in best[1]]


def _pack(places: StagePlaces, parts: int) -> list[Stage] | None:
    """As few stages as hold the model, each filled to the brim; None when a block does not fit."""
    layout = places.layout
    if parts > _most_parts(layout):
        return None
    fits = _fits(places, split=parts > 1)
    blocks, most = model_blocks(layout.layers, parts, layout.layer_kinds), MOST_CHIPS // layout.tp
    return pack(blocks, fits, _head_parts(fits), most)


def _deal(places: StagePlaces, groups: int, parts: int | None = None) -> list[Stage] | None:
    """Stages on at most ``groups`` groups, the slowest as fast as it can be."""
    layout = places.layout

    def cost(stage: Stage) -> float:
        return _cost(places, whole_again([stage])[0])

    for each in (parts,) if parts else range(1, MOST_PARTS + 1):
        if each > _most_parts(layout):
            return None
        fits = _fits(places, split=each > 1)
        blocks = model_blocks(layout.layers, each, layout.layer_kinds)
        stages = deal(blocks, min(groups, len(blocks) + 1), cost, fits, _head_parts(fits), True)
        if stages is not None:
            better = cut_less(blocks, stages, cost, fits) if each > 1 else None
            return [_joined(places, stage, each > 1) for stage in better or stages]
        if groups == 1:
            return None
    return None


def _too_big(
    asked: _Asked, fewest: tuple[int, list[Stage]] | None, chips: int | None, tp: int | None
) -> str:
    """One line: what does not fit, by how much, and what would; fewest: the fewest that do."""
    need, spec = asked.memory(NODE), asked.spec
    model = f"{asked.name} with context {asked.context:,} and batch {asked.batch}"
    sizes = f"{_size(need['weights'])} of weights and {_size(need['cache'])} of cache"
    if fewest is None:
        reason = _alone_problem(asked) or "no wiring is so large"
        longest = _longest_context(asked)
        mends = [f"--context {longest} or less"] if longest else []
        mends += ["a smaller batch"] * (asked.batch > 1) + ["int8"] * (asked.dtype != "int8")
        return (
            f"{model}: {sizes} fit no number of {spec.name} chips ({reason.split(';')[0]}); use "
            + (" or ".join(mends) or "a narrower model")
        )
    width, stages = fewest
    fits = next(
        s for s in machine_sizes(asked.wiring) if s >= width * len(stages) and s % width == 0
    )
    if tp and width != tp:
        return (
            f"{model}: {sizes} fit no number of groups of {tp} chips; {fits} chips in groups of "
            f"{width} fit: leave out --tp"
        )
    have = (chips or 0) * spec.sram_bytes
    short = fits * spec.sram_bytes - have
    more = f", {_size(short)} more" if short > 0 else f" in groups of {width}"
    return (
        f"{model} does not fit {chips} chips: {sizes} in {_size(have)} of SRAM, of which planes' "
        f"slices hold the weights; {fits} chips fit{more}: use --chips {fits}"
    )


def _alone_problem(asked: _Asked) -> str:
    """Why a group of eight chips does not hold one block or the smallest part of an FFN."""
    places = asked.places(NODE)
    kinds = dict.fromkeys(places.layout.layer_kinds)
    blocks = model_blocks(max(1, len(kinds)), _most_parts(places.layout), tuple(kinds))
    return next(filter(None, (places.problem(Stage((b,), False), True) for b in blocks)), "")


def _longest_context(asked: _Asked) -> int:
    """Positions below those asked for, nearly the most, that some number of chips holds, or 0."""

    def of(context: int) -> _Asked:
        return replace(asked, context=context, known={})

    fits, less = 0, asked.context
    while less - fits > 1:
        middle = (fits + less) // 2
        if _alone_problem(of(middle)):
            less = middle
        else:
            fits = middle
    if not fits or _fewest(of(1), None) is None:
        return 0
    while _fewest(of(fits), None) is None:
        fits //= 2
    return fits


def _size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def ffn_columns(layout: Layout, tiles: int, experts: int) -> int:
    """Stored columns of 320 weights of ``tiles`` tiles of each of ``experts`` FFNs."""
    words = -(-experts // layout.turns) * layout.x_width
    return tiles * layout.x_tiles * (experts * 2 * layout.ffn_width + words)


def memory_bytes(layout: Layout, dtype: str, context: int, batch: int) -> dict[str, int]:
    """Bytes of a model on one group of chips for all its chips: weights, cache (padding too)."""
    item = 1 if dtype == "int8" else 2
    t, x = layout.x_tiles, layout.x_width
    o = layout.q_tiles * t * x
    head = t * layout.vocab_blocks * layout.vocab_width
    words = layout.layers * (layout.qkv_columns + o) + head
    for kind, layers in Counter(map(layout.kind_of, range(layout.layers))).items():
        own = layout.for_ffn(kind)
        words += layers * ffn_columns(own, own.ffn_tiles, own.experts)
        words += layers * router_columns(own, dtype)
    tile = 4 * context
    if layout.on_planes:
        tile = _PAIR_SLICES * sum(map(sum, cached_words(layout, context)))
    cache = layout.layers * layout.cache_tiles * batch * tile
    return {"weights": 320 * item * words * layout.tp, "cache": 320 * cache * layout.tp}
