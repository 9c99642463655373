"""Which part of a decoder lies on which group of chips: pipeline stages of consecutive blocks.

A *block* is the attention or the FFN of a layer, or one of several parts of an FFN; a *stage* is
a run of blocks on one group of ``tp`` chips, the last one with the output head.  This module
deals blocks to stages by weights that somebody else measured; it knows no memory and no cycles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from chip.passes import CompileError

ATTENTION, FFN = "attention", "ffn"


@dataclass(frozen=True)
class Block:
    """The attention or the FFN of layer ``layer``; part ``part`` of ``parts`` of an FFN."""

    kind: str
    layer: int
    part: int = 0
    parts: int = 1


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
        return (head, *((b.kind, b.part, b.parts) for b in self.blocks))

    @property
    def split_before(self) -> bool:
        """True when the stage begins inside an FFN, so that two vectors come in."""
        return bool(self.blocks) and self.blocks[0].part > 0

    @property
    def split_after(self) -> bool:
        """True when the stage ends inside an FFN, so that two vectors go out."""
        return bool(self.blocks) and self.blocks[-1].part < self.blocks[-1].parts - 1


def split_layers(stages: Sequence[Stage]) -> dict[int, int]:
    """The layers whose FFN is computed in parts, and in how many."""
    return {b.layer: b.parts for stage in stages for b in stage.blocks if b.parts > 1}


def part_tiles(tiles: int, part: int, parts: int) -> range:
    """The tiles of an FFN's ``tiles`` that part ``part`` of ``parts`` computes."""
    return range(tiles * part // parts, tiles * (part + 1) // parts)


def model_blocks(layers: int, parts: int) -> tuple[Block, ...]:
    """Every block of a model in order, every FFN in ``parts`` parts."""
    found: list[Block] = []
    for n in range(layers):
        found.append(Block(ATTENTION, n))
        found += [Block(FFN, n, part, parts) for part in range(parts)]
    return tuple(found)


def whole_again(stages: Sequence[Stage]) -> list[Stage]:
    """The stages with every FFN whole whose parts all lie on one of them."""
    joined = []
    for stage in stages:
        blocks: list[Block] = []
        for block in stage.blocks:
            blocks.append(block)
            own = blocks[-block.parts :]
            if block.parts > 1 and [b.part for b in own if b.layer == block.layer] == list(
                range(block.parts)
            ):
                blocks[-block.parts :] = [Block(FFN, block.layer)]
        joined.append(replace(stage, blocks=tuple(blocks)))
    return joined


def single_stage(layers: int) -> list[Stage]:
    """A whole model on one group of chips."""
    return [Stage(model_blocks(layers, 1), True)]


Cost = Callable[[Stage], float]
Fits = Callable[[Stage], bool]


def pack(blocks: Sequence[Block], fits: Fits, heads: int = 1) -> list[Stage] | None:
    """``blocks`` on few stages, each filled before the next; None when one does not fit alone."""
    return _fill(blocks, 1 << 30, 0.0, lambda stage: 0.0, fits, heads)


def deal(
    blocks: Sequence[Block], stages: int, cost: Cost, fits: Fits, heads: int = 1
) -> list[Stage] | None:
    """``blocks`` on exactly ``stages`` stages that all fit, the dearest as cheap as it can be.

    cost: of a stage, growing with its blocks.  heads: parts of the head, on as many stages.  None
    when they do not fit.  Stages without blocks are not made; the head may be alone on the last.
    By bisection on the dearest stage's cost and greedy filling.
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
    return _spread(best, stages, cost, fits)


def _fill(
    blocks: Sequence[Block], stages: int, limit: float, cost: Cost, fits: Fits, heads: int
) -> list[Stage] | None:
    """Stages filled one after another up to ``limit``; None when there are too few."""
    found: list[Stage] = []
    own: list[Block] = []
    for block in blocks:
        more = Stage((*own, block), False)
        if own and (cost(more) > limit or not fits(more)):
            found.append(Stage(tuple(own), False))
            own, more = [], Stage((block,), False)
        if cost(more) > limit or not fits(more) or len(found) >= stages:
            return None
        own.append(block)
    last = Stage(tuple(own), True, 0, heads)
    while cost(last) > limit or not fits(last):  # the head takes the place of blocks
        if len(last.blocks) == 0:
            return None
        if len(last.blocks) == len(own):
            found.append(Stage((), False))
        last = Stage(last.blocks[1:], True, 0, heads)
        found[-1] = Stage(tuple(own[: len(own) - len(last.blocks)]), False)
    found.append(last)
    found += [Stage((), True, part, heads) for part in range(1, heads)]
    if any(cost(stage) > limit for stage in found[-heads:]):
        return None
    return found if len(found) <= stages else None


def _spread(found: list[Stage], stages: int, cost: Cost, fits: Fits) -> list[Stage] | None:
    """Divide the dearest stages until there are ``stages``; None when blocks run out."""
    while len(found) < stages:
        divisible = [i for i, s in enumerate(found) if len(s.blocks) > (0 if s.head else 1)]
        if not divisible:
            return None
        i = max(divisible, key=lambda i: cost(found[i]))
        stage = found[i]
        cut = max(1, len(stage.blocks) // 2)
        found[i : i + 1] = [
            Stage(stage.blocks[:cut], False), replace(stage, blocks=stage.blocks[cut:])
        ]  # fmt: skip
    return found


def even_stages(layers: int, stages: int) -> list[Stage]:
    """Whole layers dealt as evenly as their number allows, the first stages taking one more."""
    if not 1 <= stages <= layers:
        raise CompileError(
            f"{stages} pipeline stages for {layers} layers: use 1 to {layers}, a stage holds "
            "one layer at least"
        )
    dealt: list[Stage] = []
    at = 0
    for number in range(stages):
        n = layers // stages + (number >= stages - layers % stages)
        blocks = tuple(Block(kind, at + i) for i in range(n) for kind in (ATTENTION, FFN))
        dealt.append(Stage(blocks, number == stages - 1))
        at += n
    return dealt
