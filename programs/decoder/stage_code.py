"""The code of one shape of stage: its blocks scheduled alone, then copied in time and memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from chip.program import BlockTable, new_blocks
from chip.scheduling import (
    CompileError,
    Gangs,
    PlacedPass,
    Schedule,
    Symbol,
    relocate,
    rename_tags,
    translate_gangs,
)
from chip.spec import ChipSpec
from programs.decoder.blocks import BlockScheduler, Numbers
from programs.decoder.places import (
    AttentionMatrices,
    DecoderPlaces,
    FfnMatrices,
    Matrices,
    MatrixPlaces,
)

#: Room before x is read in which a block's first weights may be loaded.
LEAD_CYCLES = 400


@dataclass(frozen=True)
class Body:
    """A stage's blocks from the cycle x is readable (0): ``table`` up to ``cycles``, then the head.

    A part of the head that is not the last one is in ``table``, and x goes on when it begins.
    parts: of each block, and of such a part.  Shared by all stages of one shape; tables are not
    changed.
    """

    table: BlockTable
    cycles: int
    head: BlockTable
    head_cycles: int
    parts: tuple[Scheduled, ...]

    def whole(self) -> BlockTable:
        """The blocks' table and the head's."""
        return np.concatenate([self.table, self.head])

    def all_cycles(self) -> NDArray[np.int64]:
        """int64 [n]: the cycle of every row of ``whole``."""
        cycles: NDArray[np.int64] = self.whole()["cycle"]
        return cycles


@dataclass
class StageCode:
    """One shape of stage: its places and, by (context, sequence), its blocks.

    Of a batch, instead of a sequence, the number of a group of them.
    """

    spec: ChipSpec
    places: DecoderPlaces
    numbers: Numbers
    gangs: Gangs
    known: dict[str, Scheduled]  # shared by all shapes of a pipeline
    chunk: int = 1  # tokens of a launch
    bodies: dict[tuple[int, int], Body] = field(default_factory=dict)

    def body(self, context: int, sequence: int = 0) -> Body:
        """The stage's blocks for one bucket and one sequence's caches."""
        key = (context, sequence)
        if key not in self.bodies:
            self.bodies[key] = self._join(context, sequence)
        return self.bodies[key]

    def scheduled(self, context: int, matrices: Matrices | None) -> Scheduled:
        """A variant of a block (None: the head) scheduled alone; equal ones are scheduled once."""
        p = self.places
        key = repr(
            (
                self._context_of(context, matrices),
                matrices or p.head,
                p.constants,
                p.x,
                p.factor,
                p.dynamic,
                p.norm_factor,
                p.head_factors,
                p.latents,
                p.act,
                p.results,
                p.up,
                p.hidden,
                p.narrow,
                p.logits,
                p.rope,
                p.attention,
                p.planes,
                p.reduce,
                p.between,
                p.replicate,
                p.head_norm,
                p.choice,
                p.second_rope,
                p.sliding,
                p.wide_norm,
                p.post,
                p.shares,
                self.chunk,
                p.batch,
                p.logit_rows,
            )
        )
        if key not in self.known:
            block = BlockScheduler(self.spec, p, self.numbers, context, self.chunk)
            try:
                if matrices is None:
                    end = block.head(LEAD_CYCLES)
                else:
                    end = block.block(matrices, LEAD_CYCLES)
            except ValueError as error:
                raise CompileError(
                    f"no schedule for this shape on {p.layout.tp} {self.spec.name} ({error}); use "
                    "other --tp or chip fields"
                ) from None
            words = self._handed_on(block, matrices)
            pace = block.period(_last_product(matrices or p.head))
            table, symbols, own = block.schedule.blocks()
            translate_gangs(table, own, self.gangs)
            ends = [LEAD_CYCLES, *(at for _, at in block.phases)]
            spent: dict[str, int] = {}
            for (phase, at), before in zip(block.phases, np.maximum.accumulate(ends), strict=False):
                spent[phase] = spent.get(phase, 0) + max(0, at - int(before))
            self.known[key] = Scheduled(
                table, symbols, end - LEAD_CYCLES, spent, block.schedule.fork(), words, pace
            )
        return self.known[key]

    def _handed_on(self, block: BlockScheduler, matrices: Matrices | None) -> tuple[int, ...]:
        """When each word that a stage hands on is readable, its last block being this one."""
        before = (LEAD_CYCLES,) * (self.chunk * self.places.layout.x_tiles)
        if matrices is None:
            return before
        inside = isinstance(matrices, FfnMatrices) and not matrices.ends
        return (*block.each, *(before if inside else ()))

    def explained(self, context: int, matrices: Matrices | None) -> list[PlacedPass]:
        """The passes of a block (None: the head) that was scheduled, and what they waited for.

        x is readable at cycle 0.
        """
        block = BlockScheduler(self.spec, self.places, self.numbers, context, self.chunk, True)
        if matrices is None:
            block.head(LEAD_CYCLES)
        else:
            block.block(matrices, LEAD_CYCLES)
        return [
            replace(
                p,
                wanted=p.wanted - LEAD_CYCLES,
                start=p.start - LEAD_CYCLES,
                end=p.end - LEAD_CYCLES,
            )
            for p in block.schedule.passes
        ]

    @staticmethod
    def _context_of(context: int, matrices: Matrices | None) -> int:
        """What of the context a block's schedule hangs on: nothing but an attention looks back."""
        return context if isinstance(matrices, AttentionMatrices) else 0

    def last_context(self, context: int) -> int:
        """What of the context the last block's schedule hangs on."""
        p = self.places
        with_head = len(self.body(context).parts) > len(p.variant_of)
        return self._context_of(context, None if with_head else p.variants[p.variant_of[-1]])

    def last_block(self, context: int) -> tuple[Scheduled, BlockTable]:
        """The last block before x goes on, and its table for one sequence, x readable at 0."""
        parts = self.body(context).parts
        number = len(parts) - 1
        of_head = number == len(self.places.stage.blocks)
        own = {} if of_head else self.places.bases_of(0, number)
        return parts[number], parts[number].at(-LEAD_CYCLES, own, number)

    def run(self, context: int, numbers: range, apart: bool) -> Body:
        """Some of the stage's blocks that follow each other, with the head if they are its last.

        apart: a part of an FFN, without a head, whose sum stays alone, in the place of x.
        """
        return self._join(context, 0, numbers, apart)

    def _join(
        self, context: int, sequence: int, numbers: range | None = None, apart: bool = False
    ) -> Body:
        p = self.places
        own = range(len(p.variant_of)) if numbers is None else numbers
        ends = own.stop == len(p.variant_of) and not apart
        tables: list[BlockTable] = []
        parts: list[Scheduled] = []
        elapsed = 0
        for number in own:
            matrices = p.variants[p.variant_of[number]]
            if apart and isinstance(matrices, FfnMatrices):
                matrices = replace(matrices, apart=True)
            part = self.scheduled(context, matrices)
            tables.append(part.at(elapsed - LEAD_CYCLES, p.bases_of(sequence, number), number))
            elapsed += part.cycles
            parts.append(part)
        head, head_cycles = new_blocks(0), 0
        if p.head is not None and ends and p.stage.head_part < p.stage.head_parts - 1:
            first = self.scheduled(context, None)  # x goes on before these logits are made
            tables.append(first.at(elapsed - LEAD_CYCLES, {}, len(p.variant_of)))
            elapsed += first.cycles
            parts.append(first)
        elif p.head is not None and ends:
            last = self.scheduled(context, None)
            head = last.at(elapsed - LEAD_CYCLES, {}, len(p.variant_of))
            head_cycles = last.cycles
        joined = np.concatenate(tables) if tables else new_blocks(0)
        return Body(joined, elapsed, head, head_cycles, tuple(parts))


@dataclass(frozen=True)
class Scheduled:
    """A block's table with symbolic addresses, x readable at LEAD_CYCLES; and how long it takes.

    phases: cycles of the critical path by what it was at; they add up to ``cycles``.  schedule: all
    of it, for whoever puts more into it.  words: when each that is handed on is readable there.
    """

    table: BlockTable
    symbols: list[Symbol | None]
    cycles: int
    phases: dict[str, int]
    schedule: Schedule = field(repr=False, compare=False)
    words: tuple[int, ...]
    pace: int

    def at(self, shift: int, bases: dict[Symbol, int], number: int) -> BlockTable:
        """A copy moved in time and memory, with tags of its own."""
        copy = relocate(self.table, self.symbols, bases, shift)
        rename_tags(copy, number * (1 << 16))
        return copy


def _last_product(matrices: Matrices | MatrixPlaces | None) -> MatrixPlaces:
    """The matrix of a block that is multiplied last, or the head's."""
    assert matrices is not None
    if isinstance(matrices, AttentionMatrices):
        return matrices.o
    return matrices.down if isinstance(matrices, FfnMatrices) else matrices
