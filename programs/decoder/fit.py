"""How a model is dealt to chips: tensor parallelism, stages and wiring, by SRAM and by cycles.

Whether a stage fits is found by placing every word of it; what it costs is estimated from its
weights and its context, only to deal blocks evenly.  Nothing is scheduled here.
"""

from __future__ import annotations

from functools import partial

from chip.scheduling import CompileError
from chip.spec import ChipSpec
from interconnect.wiring import Topology, topology_of
from programs.decoder.expert_weights import router_columns
from programs.decoder.lanes import Layout
from programs.decoder.places import place_decoder
from programs.decoder.stages import Stage, deal, model_blocks, pack, whole_again
from programs.models import ModelConfig

NODE = 8
#: Chips that may share every matrix.
WIDTHS = (1, 2, 4, 8)
#: Parts an FFN is cut into at most, to fit chips that are too small for a whole one.
MOST_PARTS = 8
#: Chips of the largest wiring.
MOST_CHIPS = 10_440


class _Sizes:
    """Which stages fit a group of chips, found by placing every word of each shape once."""

    def __init__(self, spec: ChipSpec, layout: Layout, dtype: str, context: int, batch: int):
        self._fixed = (spec, layout, dtype, context)
        self._batch = batch
        self._known: dict[tuple[object, ...], str] = {}

    def problem(self, stage: Stage, split: bool) -> str:
        """Why a stage does not fit, or nothing."""
        key = (split, *stage.shape)
        if key not in self._known:
            try:
                place_decoder(*self._fixed, stage, self._batch, split)
                self._known[key] = ""
            except CompileError as error:
                self._known[key] = str(error)
        return self._known[key]

    def head_parts(self, split: bool) -> int:
        """The fewest parts of the vocabulary of which one fits a group alone."""
        for parts in range(1, MOST_PARTS + 1):
            if self.fits(Stage((), True, 0, parts), split):
                return parts
        return 1

    def fits(self, stage: Stage, split: bool) -> bool:
        """True when a stage fits, an FFN whose parts are all here taken as whole."""
        return not self.problem(whole_again([stage])[0], split)


def _cost(layout: Layout, context: int, spec: ChipSpec, stage: Stage) -> float:
    """Cycles of a stage, estimated for dealing: weights by bandwidth, the rest by counts."""
    rate = 4 * spec.mxm_reload_gap_cycles / 27 + 4  # planes' columns of sixteen words
    t, width = layout.x_tiles, layout.x_width
    qkv = t * (layout.q_tiles * layout.q_width + 2 * layout.kv_tiles * layout.kv_width)
    attention = (qkv + layout.q_tiles * t * width) / 16
    ffn = 3 * t * layout.ffn_tiles * layout.ffn_width / 16
    router = 2 * t * layout.experts * width / 16 if layout.experts > 1 else 0
    exchange = 4 * t * spec.send_spacing_cycles + spec.hop_cycles if layout.tp > 1 else 0
    scores = 3 * context * layout.q_tiles + 1500
    total = 0.0
    for block in stage.blocks:
        if block.kind == "attention":
            total += attention / rate * 1.4 + scores + exchange + 500
        else:
            total += (ffn / block.parts + router) / rate * 1.4 + exchange + 800
    if stage.head:
        head = t * layout.vocab_blocks * layout.vocab_width / 16 / stage.head_parts
        total += head / rate * 1.4 + 300
    return total


def machine_sizes() -> list[int]:
    """Numbers of chips there is a wiring for, ascending."""
    sizes = [1, 2, 4, 8, *range(16, 265, 8), *range(288, MOST_CHIPS + 1, 72)]
    return sizes


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
    name: str, config: ModelConfig, spec: ChipSpec, dtype: str, context: int, batch: int,
    chips: int | None = None, tp: int | None = None,
) -> tuple[Layout, list[Stage], Topology]:  # fmt: skip
    """Tensor parallelism, stages and wiring; the fewest chips that fit unless ``chips`` is given.

    Raises CompileError with one line when it does not fit: by how much, and what would.
    """
    if chips is not None:
        wiring = topology_of(chips)  # refuses sizes without a wiring
        width = tp or _tp_of(chips)
        if chips % width:
            raise CompileError(f"{chips} chips in groups of {width}: use a multiple of {width}")
        layout = Layout.of(config, width)
        stages = _deal(layout, spec, dtype, context, batch, chips // width)
        if stages is None:
            fewest = _fewest(config, spec, dtype, context, batch, tp)
            if fewest is None and tp:
                fewest = _fewest(config, spec, dtype, context, batch, None)
            said = _too_big(name, config, spec, dtype, context, batch, fewest, chips, tp)
            raise CompileError(said)
        return layout, stages, wiring
    found = _fewest(config, spec, dtype, context, batch, tp)
    if found is None:
        fewest = _fewest(config, spec, dtype, context, batch, None) if tp else None
        raise CompileError(_too_big(name, config, spec, dtype, context, batch, fewest, None, tp))
    layout, stages = found
    need = layout.tp * len(stages)
    size = next(s for s in machine_sizes() if s >= need and s % layout.tp == 0)
    return layout, stages, topology_of(size)


def deal_stages(
    layout: Layout, spec: ChipSpec, dtype: str, context: int, stages: int, batch: int = 1
) -> list[Stage]:
    """The blocks on exactly ``stages`` groups of chips, no FFN in parts, the slowest as fast as
    it can be.

    Raises CompileError with one line for too many stages, or too few to hold the model.
    """
    blocks = model_blocks(layout.layers, 1)
    if not 1 <= stages <= len(blocks) + 1:
        raise CompileError(
            f"{stages} pipeline stages for {layout.layers} layers: use 1 to {len(blocks) + 1}, a "
            "stage holds an attention, an FFN or the head at least"
        )
    if stages == 1:
        return [Stage(blocks, True)]
    sizes = _Sizes(spec, layout, dtype, context, batch)
    cost, fits = partial(_cost, layout, context, spec), partial(sizes.fits, split=False)
    dealt = deal(blocks, stages, cost, fits)
    if dealt is not None:
        return dealt
    fewest = pack(blocks, fits)
    if fewest is None:
        alone = [Stage((block,), False) for block in blocks[:2]] + [Stage((), True)]
        raise CompileError(next(p for stage in alone if (p := sizes.problem(stage, False))))
    raise CompileError(
        f"the model does not fit {stages} pipeline stages of {layout.tp} chips; use "
        f"{len(fewest)} stages or more"
    )


def _fewest(
    config: ModelConfig, spec: ChipSpec, dtype: str, context: int, batch: int, tp: int | None
) -> tuple[Layout, list[Stage]] | None:
    """The smallest group that holds the model, else the fewest groups of eight."""
    need = memory_bytes(Layout.of(config, tp or NODE), dtype, context, batch)
    if sum(need.values()) > MOST_CHIPS * spec.sram_bytes:
        return None  # dealing thousands of layers out would take long to say the same
    for width in (tp,) if tp else WIDTHS:
        layout = Layout.of(config, width)
        stages = _deal(layout, spec, dtype, context, batch, 1)
        if stages is not None:
            return layout, stages
    layout = Layout.of(config, tp or NODE)
    best: tuple[int, list[Stage]] | None = None
    for parts in range(1, MOST_PARTS + 1):
        stages = _pack(layout, spec, dtype, context, batch, parts)
        if stages is None:
            continue
        if best is None or len(stages) < len(best[1]):
            best = (parts, stages)
    if best is None:
        return None
    even = _deal(layout, spec, dtype, context, batch, len(best[1]), best[0])
    return layout, even or whole_again(best[1])


def _pack(
    layout: Layout, spec: ChipSpec, dtype: str, context: int, batch: int, parts: int
) -> list[Stage] | None:
    """As few stages as hold the model, each filled to the brim; None when a block does not fit."""
    if parts > layout.ffn_tiles:
        return None
    sizes, split = _Sizes(spec, layout, dtype, context, batch), parts > 1
    heads = sizes.head_parts(split)
    fits, most = partial(sizes.fits, split=split), MOST_CHIPS // layout.tp
    return pack(model_blocks(layout.layers, parts), fits, heads, most)


def _deal(
    layout: Layout, spec: ChipSpec, dtype: str, context: int, batch: int, groups: int,
    parts: int | None = None,
) -> list[Stage] | None:  # fmt: skip
    """Stages on at most ``groups`` groups, the slowest as fast as it can be."""
    for each in (parts,) if parts else range(1, MOST_PARTS + 1):
        if each > layout.ffn_tiles:
            return None
        sizes, split = _Sizes(spec, layout, dtype, context, batch), each > 1
        blocks = model_blocks(layout.layers, each)
        stages = deal(
            blocks, min(groups, len(blocks) + 1),
            partial(_cost, layout, context, spec),
            partial(sizes.fits, split=split),
            sizes.head_parts(split),
        )  # fmt: skip
        if stages is not None:
            return whole_again(stages)
        if groups == 1:
            return None
    return None


def _too_big(
    name: str, config: ModelConfig, spec: ChipSpec, dtype: str, context: int, batch: int,
    fewest: tuple[Layout, list[Stage]] | None, chips: int | None, tp: int | None = None,
) -> str:  # fmt: skip
    """One line: what does not fit, by how much, and what would; fewest: the fewest that do."""
    need = memory_bytes(Layout.of(config, NODE), dtype, context, batch)
    asked = f"{name} with context {context:,} and batch {batch}"
    sizes = f"{_size(need['weights'])} of weights and {_size(need['cache'])} of cache"
    if fewest is None:
        reason = _alone_problem(config, spec, dtype, context, batch) or "no wiring is so large"
        longest = _longest_context(config, spec, dtype, context, batch)
        mends = [f"--context {longest} or less"] if longest else []
        mends += ["a smaller batch"] * (batch > 1) + ["int8"] * (dtype != "int8")
        return (
            f"{asked}: {sizes} fit no number of {spec.name} chips ({reason.split(';')[0]}); use "
            + (" or ".join(mends) or "a narrower model")
        )
    layout, stages = fewest
    fits = next(
        s for s in machine_sizes() if s >= layout.tp * len(stages) and s % layout.tp == 0
    )
    if tp and layout.tp != tp:
        return (
            f"{asked}: {sizes} fit no number of groups of {tp} chips; {fits} chips in groups of "
            f"{layout.tp} fit: leave out --tp"
        )
    have = (chips or 0) * spec.sram_bytes
    short = fits * spec.sram_bytes - have
    more = f", {_size(short)} more" if short > 0 else f" in groups of {layout.tp}"
    return (
        f"{asked} does not fit {chips} chips: {sizes} in {_size(have)} of SRAM, of which planes' "
        f"slices hold the weights; {fits} chips fit{more}: use --chips {fits}"
    )


def _alone_problem(
    config: ModelConfig, spec: ChipSpec, dtype: str, context: int, batch: int
) -> str:
    """Why a group of eight chips does not hold one block or the smallest part of an FFN."""
    layout = Layout.of(config, NODE)
    sizes = _Sizes(spec, layout, dtype, context, batch)
    blocks = model_blocks(1, min(MOST_PARTS, layout.ffn_tiles))
    return next(filter(None, (sizes.problem(Stage((b,), False), True) for b in blocks)), "")


def _longest_context(
    config: ModelConfig, spec: ChipSpec, dtype: str, context: int, batch: int
) -> int:
    """Positions below ``context``, nearly the most, that some number of chips holds; 0 if none."""
    fits, less = 0, context
    while less - fits > 1:
        middle = (fits + less) // 2
        if _alone_problem(config, spec, dtype, middle, batch):
            less = middle
        else:
            fits = middle
    if not fits or _fewest(config, spec, dtype, 1, batch, None) is None:
        return 0
    while _fewest(config, spec, dtype, fits, batch, None) is None:
        fits //= 2
    return fits


def _size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def memory_bytes(layout: Layout, dtype: str, context: int, batch: int) -> dict[str, int]:
    """Bytes of a model on one group of chips for all its chips: weights, cache (padding too)."""
    item = 1 if dtype == "int8" else 2
    t, x = layout.x_tiles, layout.x_width
    qkv = t * (layout.q_tiles * layout.q_width + 2 * layout.kv_tiles * layout.kv_width)
    o = layout.q_tiles * t * x
    ffn = 2 * t * layout.ffn_tiles * layout.ffn_width + layout.ffn_tiles * t * x
    head = t * layout.vocab_blocks * layout.vocab_width
    words = layout.layers * (qkv + o + ffn + router_columns(layout, dtype)) + head
    cache = layout.layers * layout.cache_tiles * context * batch * 4
    return {"weights": 320 * item * words * layout.tp, "cache": 320 * cache * layout.tp}
