"""Stages on groups of chips: their blocks, what they hand over, and when everything happens.

A ``Pipeline`` puts stages (``programs.decoder.stage_code``) on groups of a topology, one after
another in time, and makes the programs of its chips: what comes in over cables, the stage's blocks,
what goes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from chip.program import BlockTable, Program, new_blocks
from chip.scheduling import (
    CompileError,
    Gangs,
    program_of,
    rename_tags,
    shifted,
    translate_gangs,
)
from chip.spec import ChipSpec
from interconnect.collectives import (
    Handover,
    HandoverPlaces,
    group_path,
    handover_blocks,
    plan_handover,
)
from interconnect.wiring import Topology
from programs.decoder.blocks import Numbers
from programs.decoder.places import StagePlaces, launch_of
from programs.decoder.stage_code import Scheduled, StageCode
from programs.decoder.stages import Stage, split_layers

#: Cycles of an install at most: a slower one makes a block read before the block before it is done.
MOST_INSTALL_CYCLES = 20


@dataclass(frozen=True)
class Piece:
    """Blocks from cycle 0 that several chips may run; numbered within a pipeline."""

    number: int
    table: BlockTable
    cycles: int


def pause_cycles(spec: ChipSpec) -> int:
    """More cycles than lie between any instruction's dispatch and its effect at its own place."""
    return 8 + max(
        spec.mxm_accumulate_cycles,
        spec.mxm_multiply_cycles + spec.mxm_install_cycles,
        spec.alu_entry_cycles + spec.alu_cycles,
        spec.distribute_cycles,
        spec.write_cycles,
    )


@dataclass
class Pipeline:
    """Stages on groups of chips, their code, and how x gets from each to the next."""

    spec: ChipSpec
    tp: int
    topology: Topology
    stages: list[Stage]
    groups: list[int]  # of each stage
    code: list[StageCode]  # of each stage; stages of one shape share theirs
    handovers: list[Handover]  # after each stage but the last
    gangs: Gangs
    places: StagePlaces
    numbers: Numbers
    _pieces: dict[object, Piece] = field(default_factory=dict)

    def in_chunks(self, chunk: int) -> Pipeline:
        """The same stages with places for ``chunk`` tokens each, which they work on at once.

        Raises CompileError where they do not fit.
        """
        old = self.places
        places = StagePlaces(old.spec, old.layout, old.dtype, old.context, old.sequences, chunk)
        return build_pipeline(self.stages, places, self.numbers, self.topology, chunk)

    def in_batches(self, batch: int) -> Pipeline:
        """The same stages with places for a token of each of ``batch`` sequences at once.

        There are caches for as many sequences as before, and those that fill the last group.
        Raises CompileError where they do not fit.
        """
        old = self.places
        count = -(-old.sequences // batch) * batch
        places = StagePlaces(old.spec, old.layout, old.dtype, old.context, count, batch, True)
        return build_pipeline(self.stages, places, self.numbers, self.topology, batch)

    @property
    def split(self) -> dict[int, tuple[int, ...]]:
        """Layers whose FFN is computed in parts; see ``split_layers``."""
        return split_layers(self.stages)

    def places_between(self, stage: int) -> HandoverPlaces:
        """Where what comes into a stage lies."""
        places = self.code[stage].places
        words = places.between if self.stages[stage].split_before else places.x
        return HandoverPlaces(words, places.inbox, places.reduce.received)

    def handover(self, chip: int, out: int | None, into: int | None) -> Piece:
        """What chip ``chip`` of a group sends after stage ``out`` and takes after stage ``into``.

        From cycle 0, the words taken being readable at its end.  Equal ones are made once.
        """
        leaving = None if out is None else self.handovers[out]
        arriving = None if into is None else self.handovers[into]
        source = None
        if out is not None:
            places = self.code[out].places
            source = places.between if self.stages[out].split_after else places.x
        there = 0 if into is None else into + 1
        key = (
            chip,
            source,
            None if leaving is None else leaving.leaving(chip),
            arriving,
            None if into is None else self.places_between(there).words,
        )
        if key not in self._pieces:
            table, own, end = handover_blocks(
                self.spec, self.tp, chip, leaving, arriving, self.places_between(there), source
            )
            translate_gangs(table, own, self.gangs)
            self._pieces[key] = Piece(len(self._pieces), table, end)
        return self._pieces[key]

    def handover_cycles(self, boundary: int) -> int:
        """Cycles from the end of a stage's blocks to the beginning of the next one's.

        Before and after the handover lies a pause in which nothing is dispatched, longer than any
        unit takes to drive its streams: what is legal alone is legal one after the other.
        """
        arrived = max(self.handover(chip, None, boundary).cycles for chip in range(self.tp))
        return arrived + 2 * pause_cycles(self.spec)

    def starts(self, context: int) -> list[int]:
        """The cycle x is readable at each stage, the first dispatch of all being at cycle 0."""
        first = self.code[0].body(context)
        starts = [-int(first.all_cycles().min())]
        for boundary in range(len(self.handovers)):
            length = self.code[boundary].body(context).cycles + self.handover_cycles(boundary)
            starts.append(starts[-1] + length)
        return starts

    def timeline(
        self, stage: int, chip: int, starts: Sequence[int]
    ) -> list[tuple[Piece | None, int]]:
        """What a chip of a stage does, in order: pieces (None: its body) and their starts."""
        pause = pause_cycles(self.spec)
        found: list[tuple[Piece | None, int]] = [(None, starts[stage])]
        if stage > 0:
            begins = starts[stage] - self.handover_cycles(stage - 1) + pause
            found.insert(0, (self.handover(chip, None, stage - 1), begins))
        if stage < len(self.handovers):
            after = starts[stage + 1] - self.handover_cycles(stage) + pause
            found.append((self.handover(chip, stage, None), after))
        return found

    def beat(self, context: int, head: bool = True) -> tuple[int, int, int]:
        """One beat of the conveyor belt: when x is readable, when handing over begins, the end.

        In a beat every stage works on another token; then all hand over at once.  head: the last
        stage gives logits as well.
        """
        bodies = [code.body(context) for code in self.code]
        firsts = [b.all_cycles().min(initial=0) for b in bodies]
        start = int(max(-first for first in firsts))
        work = start + max(b.cycles + (b.head_cycles if head else 0) for b in bodies)
        if not self.handovers:
            return start, work, work
        pause = pause_cycles(self.spec)
        arrived = max(
            self.exchanged(stage, chip).cycles
            for stage in range(len(self.groups))
            for chip in range(self.tp)
        )
        return start, work + pause, work + arrived + 2 * pause

    def exchanged(self, stage: int, chip: int) -> Piece:
        """What a chip of a stage sends on and takes in at the end of a beat."""
        out = stage if stage < len(self.handovers) else None
        return self.handover(chip, out, stage - 1 if stage > 0 else None)

    def belt_timeline(
        self, context: int, stage: int, chip: int, head: bool = True
    ) -> list[tuple[Piece | None, int]]:
        """As ``timeline``, for one beat."""
        start, after, _ = self.beat(context, head)
        if not self.handovers:
            return [(None, start)]
        return [(None, start), (self.exchanged(stage, chip), after)]

    def programs(
        self, context: int, head: bool, only: Sequence[int] = ()
    ) -> tuple[list[Program], list[int]]:
        """Programs of one launch, equal ones once, and which of them each chip runs.

        only: the operations to keep, all if none are named.
        """
        starts = self.starts(context)
        last = self.code[-1].body(context)
        end = starts[-1] + last.cycles + (last.head_cycles if head else 0)
        return self._join(
            context,
            head,
            only,
            end,
            lambda stage, chip: self.timeline(stage, chip, starts),
            [0] * len(self.groups),
        )

    def prompt_end(self, context: int) -> tuple[int, int]:
        """When x is readable at the last stage that works alone, and when its logits are there."""
        last = self.code[-1].body(context)
        start = max(0, -int(last.all_cycles().min(initial=0)))
        return start, start + last.cycles + last.head_cycles

    def prompt_cycles(self, context: int) -> tuple[int, int]:
        """Cycles of a beat of one prompt's tokens, and of the last stage alone with the head."""
        return self.beat(context, head=False)[2], self.prompt_end(context)[1]

    def prompt_programs(
        self, context: int, end: bool, only: Sequence[int] = ()
    ) -> tuple[list[Program], list[int]]:
        """As ``programs``, for a beat of one prompt's tokens, one in each stage, without logits.

        end: the last stage alone, with the logits of the prompt's last token; the others rest.
        """
        cycles = self.prompt_cycles(context)[1 if end else 0]

        def line(stage: int, chip: int) -> list[tuple[Piece | None, int]]:
            if not end:
                return self.belt_timeline(context, stage, chip, head=False)
            return [(None, self.prompt_end(context)[0])] if stage == len(self.groups) - 1 else []

        return self._join(context, end, only, cycles, line, [0] * len(self.groups))

    def belt_programs(
        self, context: int, sequences: int, number: int, only: Sequence[int] = ()
    ) -> tuple[list[Program], list[int]]:
        """As ``programs``, for beat ``number`` modulo ``sequences``: stage s works on sequence
        (number - s) modulo ``sequences``.  Of a batch, for sequences read groups of them.
        """
        _, _, end = self.beat(context)
        turns = [(number - stage) % sequences for stage in range(len(self.groups))]
        return self._join(
            context,
            True,
            only,
            end,
            lambda stage, chip: self.belt_timeline(context, stage, chip),
            turns,
        )

    def _kind(self, stage: int, chip: int) -> tuple[int, ...]:
        """Equal for chips of a stage that run one program, whatever the launch."""
        into = None if stage == 0 else self.handover(chip, None, stage - 1)
        out = None if stage == len(self.handovers) else self.handover(chip, stage, None)
        both = self.exchanged(stage, chip) if self.handovers else None
        return tuple(-1 if piece is None else piece.number for piece in (into, out, both))

    def _join(
        self,
        context: int,
        head: bool,
        only: Sequence[int],
        end: int,
        timeline: Callable[[int, int], list[tuple[Piece | None, int]]],
        turns: Sequence[int],
    ) -> tuple[list[Program], list[int]]:
        programs = [Program(new_blocks(0), self.gangs, [], end)]  # of chips without a stage
        program_of_chip = [0] * self.topology.chips

        def kept(table: BlockTable) -> BlockTable:
            return table[np.isin(table["op"], only)] if only else table

        for stage, group in enumerate(self.groups):
            body = self.code[stage].body(context, turns[stage])
            own = kept(body.whole() if head else body.table)
            known: dict[tuple[int, ...], int] = {}
            for chip in range(self.tp):
                line = timeline(stage, chip)
                key = self._kind(stage, chip)
                if key not in known:
                    tables = [new_blocks(0)]
                    for number, (piece, start) in enumerate(line):
                        table = shifted(own if piece is None else kept(piece.table), start)
                        if piece is not None:
                            rename_tags(table, (len(body.parts) + 1 + number) << 16)
                        tables.append(table)
                    known[key] = len(programs)
                    programs.append(program_of(tables, self.gangs, end))
                program_of_chip[group * self.tp + chip] = known[key]
        if self.tp * len(self.groups) == self.topology.chips:
            return programs[1:], [number - 1 for number in program_of_chip]
        return programs, program_of_chip


def _check_spec(spec: ChipSpec) -> None:
    """The kernels' chains are written for one ALU time and two activations per reload gap."""
    if spec.alu_cycles != 3:
        raise CompileError(
            f"chip.alu_cycles is {spec.alu_cycles}: the decoder's kernels are written for 3"
        )
    if spec.alu_entry_cycles < 4:
        raise CompileError(
            f"chip.alu_entry_cycles is {spec.alu_entry_cycles}: the decoder's kernels are written "
            "for 4 or more"
        )
    if spec.mxm_install_cycles > MOST_INSTALL_CYCLES:
        raise CompileError(
            f"chip.mxm_install_cycles is {spec.mxm_install_cycles}: the decoder's kernels are "
            f"written for {MOST_INSTALL_CYCLES} or fewer"
        )
    least = spec.mxm_install_cycles + 4
    if spec.mxm_reload_gap_cycles < least:
        raise CompileError(
            f"chip.mxm_reload_gap_cycles is {spec.mxm_reload_gap_cycles}: two activations need "
            f"{least} with mxm_install_cycles {spec.mxm_install_cycles}"
        )


def build_pipeline(
    stages: Sequence[Stage],
    places: StagePlaces,
    numbers: Numbers,
    wiring: Topology,
    chunk: int = 1,
) -> Pipeline:
    """Places for every shape of stage and cables between them; nothing is scheduled yet.

    chunk: tokens that a stage works on in a launch, those of ``places`` or one.
    Raises CompileError for what does not fit.
    """
    spec, layout = places.spec, places.layout
    _check_spec(spec)
    split = any(block.parts > 1 for stage in stages for block in stage.blocks)
    if split and places.chunk > 1:
        what, _ = launch_of(places.chunk, places.batch)
        raise CompileError(
            f"{what}: stages that compute a part of an FFN take one; use stages of whole FFNs"
        )
    if split and layout.post_norms:
        raise CompileError(
            "the model norms what a whole FFN gives, so no stage can compute a part of one; use "
            "stages of whole FFNs"
        )
    gangs: Gangs = []
    shapes: dict[tuple[object, ...], StageCode] = {}
    known: dict[str, Scheduled] = {}
    for stage in stages:
        if stage.shape not in shapes:
            own = places.of(stage, split)
            shapes[stage.shape] = StageCode(spec, own, numbers, gangs, known, chunk)
    groups = group_path(wiring, layout.tp, len(stages))
    handovers = [
        plan_handover(
            wiring,
            layout.tp,
            groups[i],
            groups[i + 1],
            chunk * layout.x_tiles * (2 if stages[i].split_after else 1),
            spec,
        )
        for i in range(len(stages) - 1)
    ]
    return Pipeline(
        spec,
        layout.tp,
        wiring,
        list(stages),
        groups,
        [shapes[s.shape] for s in stages],
        handovers,
        gangs,
        places,
        numbers,
    )
