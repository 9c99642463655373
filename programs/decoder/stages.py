"""Which part of a decoder lies on which group of chips: pipeline stages of consecutive blocks.

A *block* is the attention or the FFN of a layer, or one of several parts of an FFN; a *stage* is
a run of blocks on one group of ``tp`` chips, the last one with the output head.  This module
deals blocks to stages by weights that somebody else measured; it knows no memory and no cycles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import accumulate

import numpy as np

from programs.models import PLAIN_LAYER, LayerKind

ATTENTION, FFN = "attention", "ffn"


@dataclass(frozen=True)
class Block:
    """The attention or the FFN of layer ``layer``; of an FFN in ``parts`` parts ``span`` of them,
    computed as one, from ``part`` on.

    of: what is special about its layer, of what such a block knows.
    """

    kind: str
    layer: int
    part: int = 0
    parts: int = 1
    of: LayerKind = PLAIN_LAYER
    span: int = 1

    @property
    def own(self) -> range:
        """The parts that it is of."""
        return range(self.part, self.part + self.span)

    @property
    def ends(self) -> bool:
        """True when nothing of its attention or FFN comes after it."""
        return self.part + self.span == self.parts


@dataclass(frozen=True)
class Stage:
    """Consecutive blocks; ``head``: the final norm and the logits follow them, or those of part
    ``head_part`` of ``head_parts`` of the vocabulary.
    """

    blocks: tuple[Block, ...]
    head: bool
    head_part: int = 0
    head_parts: int = 1

    @property
    def shape(self) -> tuple[object, ...]:
        """Equal for stages that run one program: their blocks without the layers' numbers."""
        head = (self.head, self.head_part, self.head_parts)
        return (head, *((b.kind, b.own, b.parts, b.of) for b in self.blocks))

    @property
    def split_before(self) -> bool:
        """True when the stage begins inside an FFN, so that two vectors come in."""
        return bool(self.blocks) and self.blocks[0].part > 0

    @property
    def split_after(self) -> bool:
        """True when the stage ends inside an FFN, so that two vectors go out."""
        return bool(self.blocks) and not self.blocks[-1].ends


def belt_groups(stages: int, sequences: int, batch: int) -> int:
    """Groups of ``batch`` sequences on a belt that has ``sequences`` of them: one for each stage at
    least, which would idle otherwise; more take turns.
    """
    return max(stages, -(-sequences // batch))


def split_layers(stages: Sequence[Stage]) -> dict[int, tuple[int, ...]]:
    """The layers whose FFN is computed in parts, and how many equal pieces each part has."""
    found: dict[int, tuple[int, ...]] = {}
    for stage in stages:
        for block in stage.blocks:
            if block.parts > 1:
                found[block.layer] = (*found.get(block.layer, ()), block.span)
    return found


def parts_apart(stages: Sequence[Stage]) -> set[int]:
    """The boundaries (0: after the first stage) on whose sides parts of an FFN can be computed at
    the same time: x, which is the input of both, goes on alone before.

    A stage keeps the sum of its own part where x was, so it has no other part of that FFN, and
    x has gone on before if it goes on at all.
    """
    found: set[int] = set()
    for boundary in reversed(range(len(stages) - 1)):
        after = stages[boundary + 1]
        if not after.split_before:
            continue
        first, *others = after.blocks
        alone = not others or others[0].layer != first.layer
        if alone and (first.ends or boundary + 1 in found):
            found.add(boundary)
    return found


def part_tiles(tiles: int, part: int, parts: int) -> range:
    """The tiles of an FFN's ``tiles`` that part ``part`` of ``parts`` computes."""
    return range(tiles * part // parts, tiles * (part + 1) // parts)


def ffn_part(tiles: int, experts: int, own: range, parts: int) -> tuple[range, range]:
    """The tiles of every FFN and the experts that parts ``own`` of ``parts`` compute.

    tiles: of an FFN, or of each expert's.  Parts are cut between tiles where there are as many,
    else between experts.
    """
    if experts == 1 or parts <= tiles:
        return range(tiles * own.start // parts, tiles * own.stop // parts), range(experts)
    return range(tiles), range(experts * own.start // parts, experts * own.stop // parts)


def model_blocks(layers: int, parts: int, kinds: Sequence[LayerKind] = ()) -> tuple[Block, ...]:
    """Every block of a model in order, every FFN in ``parts`` parts; kinds: of its layers."""
    found: list[Block] = []
    for n in range(layers):
        kind = kinds[n] if kinds else PLAIN_LAYER
        found.append(Block(ATTENTION, n, of=kind.of_attention))
        found += [Block(FFN, n, part, parts, kind.of_ffn) for part in range(parts)]
    return tuple(found)


def whole_again(stages: Sequence[Stage]) -> list[Stage]:
    """The stages with neighbouring parts of an FFN that lie on one of them as one, or whole."""
    joined = []
    for stage in stages:
        blocks: list[Block] = []
        for block in stage.blocks:
            last = blocks[-1] if blocks else block
            if block.part and last.layer == block.layer and last.own.stop == block.part:
                blocks[-1] = block = replace(last, span=last.span + block.span)
            else:
                blocks.append(block)
            if block.parts > 1 and block.span == block.parts:
                blocks[-1] = Block(FFN, block.layer, of=block.of)
        joined.append(replace(stage, blocks=tuple(blocks)))
    return joined


def single_stage(layers: int, kinds: Sequence[LayerKind] = ()) -> list[Stage]:
    """A whole model on one group of chips."""
    return [Stage(model_blocks(layers, 1, kinds), True)]


def of_layers(stages: Sequence[Stage], kinds: Sequence[LayerKind]) -> list[Stage]:
    """The stages with their blocks of the kinds that their layers have."""
    if not kinds:
        return list(stages)

    def known(block: Block) -> Block:
        kind = kinds[block.layer]
        return replace(block, of=kind.of_attention if block.kind == ATTENTION else kind.of_ffn)

    return [replace(stage, blocks=tuple(map(known, stage.blocks))) for stage in stages]


Cost = Callable[[Stage], float]
Fits = Callable[[Stage], bool]


def pack(
    blocks: Sequence[Block], fits: Fits, heads: int = 1, most: int = 1 << 30
) -> list[Stage] | None:
    """``blocks`` on few stages, each filled before the next; None when one does not fit alone or
    it takes more than ``most``.
    """
    return _fill(blocks, most, 0.0, lambda stage: 0.0, fits, heads)


def deal(
    blocks: Sequence[Block],
    stages: int,
    cost: Cost,
    fits: Fits,
    heads: int = 1,
    fewer: bool = False,
) -> list[Stage] | None:
    """``blocks`` on exactly ``stages`` stages that all fit, the dearest as cheap as it can be.

    fewer: on fewer, where more would make the dearest no cheaper: each has one more hand-over.
    cost: of a stage, by its shape, growing with its blocks; so does what ``fits`` measures.  heads:
    parts of the head, on as many stages.  None when they do not fit.  Stages without blocks are not
    made; the head may be alone on the last.  By bisection on the dearest stage's cost and greedy
    filling.
    """
    whole = Stage(tuple(blocks), True, 0, heads)
    low, high = 0.0, cost(whole)
    best = _fill(blocks, stages, high, cost, fits, heads)
    if best is None:
        return None
    for _ in range(24):
        if high - low <= 1e-3 * high:
            break
        middle = (low + high) / 2
        found = _fill(blocks, stages, middle, cost, fits, heads)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best if fewer else _spread(best, stages, cost)


def _fill(
    blocks: Sequence[Block], stages: int, limit: float, cost: Cost, fits: Fits, heads: int
) -> list[Stage] | None:
    """Stages filled one after another up to ``limit``; None when there are too few."""

    def good(first: int, end: int, *head: int) -> bool:
        stage = Stage(tuple(blocks[first:end]), bool(head), *head)
        return cost(stage) <= limit and fits(stage)

    def filling(at: int) -> int:
        return _most(end - at, lambda n: good(at, at + n))

    found: list[Stage] = []
    # blocks of a full stage, by where in a layer it begins; up to the last layer without experts
    # by the layer too
    known: dict[tuple[str, int, int], int] = {}
    at, end = 0, len(blocks)
    unlike = max((block.layer for block in blocks if block.of.dense), default=-1)
    while True:
        layer = blocks[at].layer
        begin = blocks[at].kind, blocks[at].part, layer if layer <= unlike else -1
        if begin not in known or at + known[begin] >= end:
            n = filling(at)
            if at + n == end:
                break
            known[begin] = n
        n = known[begin]
        if n == 0 or len(found) >= stages:
            return None
        found.append(Stage(tuple(blocks[at : at + n]), False))
        at += n
    # The head takes the place of the first blocks of the last stage.
    kept = _most(end - at, lambda n: good(end - n, end, 0, heads))
    if kept == 0 and not good(end, end, 0, heads):
        return None
    if end - kept > at:
        found.append(Stage(tuple(blocks[at : end - kept]), False))
    head = Stage(tuple(blocks[end - kept :]), True, 0, heads)
    found += [head, *(Stage((), True, part, heads) for part in range(1, heads))]
    if any(cost(stage) > limit for stage in found[-heads:]):
        return None
    return found if len(found) <= stages else None


def cut_less(
    blocks: Sequence[Block], dealt: Sequence[Stage], cost: Cost, fits: Fits
) -> list[Stage] | None:
    """``blocks`` on as many stages as ``dealt``, none dearer than the dearest of those, so that the
    fewest stages end inside an FFN; None where there are no others.

    The head is on the last stages, in as many parts as there.  By dynamic programming.
    """
    limit, heads = max(map(cost, dealt)), dealt[-1].head_parts
    end, stages = len(blocks), len(dealt) - heads
    never = end + 1
    # by blocks so far and stages that have them: the fewest cuts, and where the last one begins
    cuts = np.full((end + 1, stages + 1), never)
    begins = np.zeros((end + 1, stages + 1), np.int64)
    cuts[0, 0] = 0
    known: dict[object, bool] = {}

    def good(own: Sequence[Block]) -> bool:
        key = own[0].kind, own[0].part, tuple(block.of for block in own)
        if key not in known:
            stage = Stage(tuple(own), False)
            known[key] = cost(stage) <= limit and fits(stage)
        return known[key]

    for at in range(end):
        n = 1
        while cuts[at].min() < never and at + n <= end and good(blocks[at : at + n]):
            here = cuts[at, :-1] + (not blocks[at + n - 1].ends)
            fewer = here < cuts[at + n, 1:]
            cuts[at + n, 1:][fewer] = here[fewer]
            begins[at + n, 1:][fewer] = at
            n += 1
    best, found = never, []
    for kept in range(end + 1):
        last = Stage(tuple(blocks[end - kept :]), True, 0, heads)
        if not (cost(last) <= limit and fits(last)):
            break
        if cuts[end - kept, stages] < best:
            best, found = cuts[end - kept, stages], [last]
    if not found:
        return None
    at = end - len(found[0].blocks)
    for number in range(stages, 0, -1):
        first = int(begins[at, number])
        found.insert(0, Stage(tuple(blocks[first:at]), False))
        at = first
    return [*found, *(Stage((), True, part, heads) for part in range(1, heads))]


def _most(most: int, good: Callable[[int], bool]) -> int:
    """The largest number up to ``most`` that is good, 0 being so: what is too many stays it."""
    low, step = 0, 1
    while low + step <= most and good(low + step):
        low, step = low + step, 2 * step
    high = min(low + step, most + 1)  # not good, or beyond
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def _spread(found: list[Stage], stages: int, cost: Cost) -> list[Stage] | None:
    """Divide the dearest stages until there are ``stages``; None when blocks run out."""
    # Each with the number of its first block, by which they are put in order again.
    first = [0, *accumulate(len(stage.blocks) for stage in found)]
    dearest: list[tuple[float, int, Stage]] = []
    whole: list[tuple[int, Stage]] = []

    def keep(at: int, stage: Stage) -> None:
        if len(stage.blocks) > (0 if stage.head else 1):
            heappush(dearest, (-cost(stage), at, stage))
        else:
            whole.append((at, stage))

    for at, stage in zip(first, found, strict=False):
        keep(at, stage)
    while len(dearest) + len(whole) < stages:
        if not dearest:
            return None
        _, at, stage = heappop(dearest)
        cut = max(1, len(stage.blocks) // 2)
        keep(at, Stage(stage.blocks[:cut], False))
        keep(at + cut, replace(stage, blocks=stage.blocks[cut:]))
    every = whole + [(at, stage) for _, at, stage in dearest]
    return [s for _, s in sorted(every, key=lambda one: (one[0], one[1].head, one[1].head_part))]
