"""Stages on groups of chips: their blocks, what they hand over, and when everything happens.

A ``Pipeline`` puts stages (``programs.decoder.stage_code``) on groups of a topology, one after
another in time, and makes the programs of its chips: what comes in over cables, the stage's blocks,
what goes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from chip.program import BlockTable, Program, new_blocks
from chip.scheduling import (
    CompileError,
    Gangs,
    Schedule,
    program_of,
    rename_tags,
    shifted,
    translate_gangs,
)
from chip.spec import ChipSpec
from interconnect.collectives import (
    Handover,
    HandoverPlaces,
    deal_words,
    group_path,
    handover_blocks,
    plan_handover,
    send_onward,
    take_onward,
)
from interconnect.wiring import Topology
from programs.decoder.blocks import Numbers
from programs.decoder.places import StagePlaces, launch_of
from programs.decoder.stage_code import LEAD_CYCLES, Body, Scheduled, StageCode
from programs.decoder.stages import Stage, belt_groups, parts_apart, split_layers

#: Cycles of an install at most: a slower one makes a block read before the block before it is done.
MOST_INSTALL_CYCLES = 20


@dataclass(frozen=True)
class Piece:
    """Blocks from cycle 0 that several chips may run; numbered within a pipeline.

    run: some blocks of a stage, x being readable at cycle 0; None: of a handover.  beside: the
    block of a stage that is under way meanwhile, if any is.
    """

    number: int
    table: BlockTable
    cycles: int
    run: Body | None = None
    beside: BlockTable | None = None

    def whole(self) -> BlockTable:
        """The blocks, those of an output head included."""
        return self.table if self.run is None else self.run.whole()


#: What a handover brings: all that goes on; x alone; the sum of an FFN's parts so far.
WHOLE, ONLY_X, SUM = "whole", "x", "sum"


@dataclass(frozen=True)
class Passing:
    """What a chip does at a boundary between stages: it sends words, or takes them (``into``)."""

    boundary: int
    what: str
    into: bool


@dataclass(frozen=True)
class Crossing:
    """How x goes on word by word, from when it is readable at the last block of a stage.

    sent: what chips send, by their numbers, in the midst of that block.  taken: what each chip of
    the next stage does, beginning at ``begins``.  cycles: to when x is readable there.
    """

    sent: dict[int, Piece]
    taken: tuple[Piece, ...]
    begins: int
    cycles: int


@dataclass(frozen=True)
class Crossed:
    """What a stage does of a crossing: it sends words, or takes them (``into``)."""

    crossing: Crossing
    into: bool


#: A step of a stage: some of its blocks (None: all of them), or words at a boundary.
Step = Piece | Passing | Crossed | None


@dataclass
class Course:
    """A launch of one token: the steps of each stage in order, and the cycle that each begins at.

    starts: when x is first readable at each stage.  ends: when its steps are done but for the head
    of the last stage; those of a stage with another part of it include that part.
    """

    steps: list[list[tuple[Step, int]]]
    starts: list[int]
    ends: list[int] = field(default_factory=list)


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
    apart: dict[int, Handover] = field(default_factory=dict)
    """By boundary: the way of x before a part of an FFN is computed, and of the sum after it."""
    _pieces: dict[object, Piece] = field(default_factory=dict)
    _courses: dict[int, Course] = field(default_factory=dict)
    _crossings: dict[object, Crossing] = field(default_factory=dict)

    def in_chunks(self, chunk: int) -> Pipeline:
        """The same stages with places for ``chunk`` tokens each, which they work on at once.

        Raises CompileError where they do not fit.
        """
        old = self.places
        places = StagePlaces(old.spec, old.layout, old.dtype, old.context, old.sequences, chunk)
        return build_pipeline(self.stages, places, self.numbers, self.topology, chunk)

    def in_batches(self, batch: int) -> Pipeline:
        """The same stages with places for a token of each of ``batch`` sequences at once.

        There are caches for as many sequences as before, and those that fill the groups of a belt.
        Raises CompileError where they do not fit.
        """
        old = self.places
        count = belt_groups(len(self.stages), old.sequences, batch) * batch
        places = StagePlaces(old.spec, old.layout, old.dtype, old.context, count, batch, True)
        return build_pipeline(self.stages, places, self.numbers, self.topology, batch)

    @property
    def turns(self) -> int:
        """Sequences, or groups of a batch of them, that take turns in the stages."""
        return self.places.sequences // (self.places.chunk if self.places.batch else 1)

    @property
    def split(self) -> dict[int, tuple[int, ...]]:
        """Layers whose FFN is computed in parts; see ``split_layers``."""
        return split_layers(self.stages)

    def places_between(self, stage: int, what: str = WHOLE) -> HandoverPlaces:
        """Where what comes into a stage lies."""
        own, places = self.stages[stage], self.code[stage].places
        there = HandoverPlaces(places.x, places.inbox, places.reduce.received)
        if what == SUM:
            words = places.x if own.blocks[0].ends else places.between
            return replace(there, words=words, added=places.x)
        return replace(there, words=places.between) if own.split_before and what == WHOLE else there

    def handover(self, chip: int, out: int | None, into: int | None, what: str = WHOLE) -> Piece:
        """What chip ``chip`` of a group sends after stage ``out`` and takes after stage ``into``.

        From cycle 0, the words taken being readable at its end.  Equal ones are made once.
        """
        ways = dict(enumerate(self.handovers)) if what == WHOLE else self.apart
        leaving = None if out is None else ways[out]
        arriving = None if into is None else ways[into]
        source = None
        if out is not None:
            places = self.code[out].places
            split = self.stages[out].split_after and what != ONLY_X
            source = places.between if split else places.x
        there = self.places_between(0) if into is None else self.places_between(into + 1, what)
        key = (
            chip,
            source,
            None if leaving is None else leaving.leaving(chip),
            arriving,
            None if into is None else (there.words, there.added),
        )
        if key not in self._pieces:
            table, own, end = handover_blocks(
                self.spec, self.tp, chip, leaving, arriving, there, source
            )
            translate_gangs(table, own, self.gangs)
            self._pieces[key] = Piece(len(self._pieces), table, end)
        return self._pieces[key]

    def starts(self, context: int) -> list[int]:
        """The cycle x is readable at each stage, the first dispatch of all being at cycle 0."""
        return self.course(context).starts

    def end(self, context: int, head: bool = True) -> int:
        """Cycles of the launch of one token, until the last of its stages is done.

        head: the last stage gives logits as well.  A stage with another part of the head may be at
        it for longer than the last stage, which has x before.
        """
        ends = self.course(context).ends
        return max(*ends, ends[-1] + (self.code[-1].body(context).head_cycles if head else 0))

    def course(self, context: int) -> Course:
        """When the stages do what for one token: one after another, but for parts of an FFN.

        A stage hands words of x on while its last block makes others.  Where the next one can
        compute a part of the same FFN meanwhile (``parts_apart``), it hands x on before it computes
        its own, and the sum of the parts so far after it; before such a handover and after
        any lies a pause in which nothing is dispatched, longer than any unit takes to drive its
        streams: what is legal alone is legal one after the other.
        """
        if context not in self._courses:
            first = self.code[0].body(context)
            course = Course([[] for _ in self.stages], [-int(first.all_cycles().min())])
            pause = pause_cycles(self.spec)
            for number in range(len(self.stages)):
                course.ends.append(self._follow(course, context, number))
                if number == len(self.handovers) or number in self.apart:
                    continue
                if self._ends_with_block(number):
                    course.starts.append(self._hand_on(course, context, number))
                else:
                    after = course.ends[number] + pause
                    course.starts.append(self._pass(course, number, WHOLE, after))
            self._courses[context] = course
        return self._courses[context]

    def _follow(self, course: Course, context: int, number: int) -> int:
        """Add the steps of a stage to a course; when they are done."""
        pause, stage = pause_cycles(self.spec), self.stages[number]
        count, out, ready = len(stage.blocks), number in self.apart, course.starts[number]

        def run(numbers: range, apart: bool = False) -> int:
            if numbers == range(count) and not apart:
                course.steps[number].append((None, ready))
                return ready + self.code[number].body(context).cycles
            piece = self._run(number, context, numbers, apart)
            course.steps[number].append((piece, ready))
            return ready + piece.cycles

        def send_x() -> int:
            course.starts.append(self._pass(course, number, ONLY_X, ready))
            sent = max(self.handover(c, number, None, ONLY_X).cycles for c in range(self.tp))
            return ready + sent + pause

        first = 0
        if number - 1 in self.apart:
            if out and count == 1:
                ready = send_x()
            done = run(range(1), apart=True)
            tables = [self.handover(c, None, number - 1, SUM).table for c in range(self.tp)]
            taken = min(int(table["cycle"].min()) for table in tables if len(table))
            at = max(course.ends[number - 1], done - taken) + pause
            ready, first = self._pass(course, number - 1, SUM, at), 1
        if out and first < count:
            if first < count - 1:
                ready = run(range(first, count - 1)) + pause
            ready, first = send_x(), count - 1
        if first < count or stage.head:
            return run(range(first, count))
        return ready - pause

    def _ends_with_block(self, number: int) -> bool:
        """Whether a stage's last block, or its head, is what its x comes from."""
        stage = self.stages[number]
        return number - 1 not in self.apart or len(stage.blocks) > 1 or stage.head

    def _hand_on(self, course: Course, context: int, number: int) -> int:
        """Add a crossing to a course; when x may be used at the next stage."""
        crossing = self.crossing(number, context)
        at = course.ends[number] - self.code[number].body(context).parts[-1].cycles
        course.steps[number].append((Crossed(crossing, False), at))
        course.steps[number + 1].append((Crossed(crossing, True), at + crossing.begins))
        return at + crossing.cycles

    def crossing(self, stage: int, context: int) -> Crossing:
        """How x gets from a stage to the next, each word as soon as it is there."""
        plan, places = self.handovers[stage], self.places_between(stage + 1)
        known = self.code[stage].last_context(context)
        key = (self.stages[stage].shape, known, plan, repr(places))
        if key not in self._crossings:
            self._crossings[key] = self._cross(stage, context, plan, places)
        return self._crossings[key]

    def _cross(self, stage: int, context: int, plan: Handover, places: HandoverPlaces) -> Crossing:
        here = self.code[stage].places
        source = here.between if self.stages[stage].split_after else here.x
        last, beside = self.code[stage].last_block(context)
        sent, departures = {}, []
        for carrier, words in zip(plan.carriers, deal_words(plan, last.words), strict=True):
            fork = last.schedule.fork()
            leaving = send_onward(fork, self.spec, carrier, source, last.words, words, last.pace)
            departures.append([one.after(-LEAD_CYCLES) for one in leaving])
            of = (self.stages[stage].shape, self.code[stage].last_context(context))
            key = ("sent", *of, carrier, repr(leaving))
            piece = self._piece(key, fork, len(last.schedule), -LEAD_CYCLES, beside)
            sent[carrier.sender] = piece
        begins = min(one.cycle for each in departures for one in each)
        since = [[one.after(-begins) for one in each] for each in departures]
        schedules, end = take_onward(self.spec, self.tp, plan, since, places)
        taken = tuple(
            self._piece(("taken", chip, plan, repr(since), repr(places)), schedule)
            for chip, schedule in enumerate(schedules)
        )
        return Crossing(sent, taken, begins, begins + end + pause_cycles(self.spec))

    def _piece(
        self,
        key: object,
        schedule: Schedule,
        since: int = 0,
        shift: int = 0,
        beside: BlockTable | None = None,
    ) -> Piece:
        """The piece known by ``key``, or a new one of a schedule's blocks from ``since`` on."""
        if key not in self._pieces:
            table, _, own = schedule.blocks(since)
            translate_gangs(table, own, self.gangs)
            moved = shifted(table, shift)
            self._pieces[key] = Piece(len(self._pieces), moved, 0, beside=beside)
        return self._pieces[key]

    def _pass(self, course: Course, boundary: int, what: str, at: int) -> int:
        """Add a handover to a course; when what comes may be used."""
        for into in (False, True):
            course.steps[boundary + into].append((Passing(boundary, what, into), at))
        come = max(self.handover(chip, None, boundary, what).cycles for chip in range(self.tp))
        return at + come + pause_cycles(self.spec)

    def _run(self, stage: int, context: int, numbers: range, apart: bool) -> Piece:
        """Some blocks of a stage."""
        key = (self.stages[stage].shape, context, numbers, apart)
        if key not in self._pieces:
            own = self.code[stage].run(context, numbers, apart)
            self._pieces[key] = Piece(len(self._pieces), own.table, own.cycles, own)
        return self._pieces[key]

    def timeline(self, context: int, stage: int, chip: int) -> list[tuple[Piece | None, int]]:
        """What a chip of a stage does, in order: pieces (None: its body) and their starts."""
        found: list[tuple[Piece | None, int]] = []
        for step, start in self.course(context).steps[stage]:
            if isinstance(step, Crossed):
                crossing = step.crossing
                if step.into or chip in crossing.sent:
                    found.append(
                        (crossing.taken[chip] if step.into else crossing.sent[chip], start)
                    )
                continue
            piece = step if not isinstance(step, Passing) else self._passed(chip, step)
            found.append((piece, start))
        return found

    def _passed(self, chip: int, step: Passing) -> Piece:
        out, into = (None, step.boundary) if step.into else (step.boundary, None)
        return self.handover(chip, out, into, step.what)

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
        return self._join(
            context,
            head,
            only,
            self.end(context, head),
            lambda stage, chip: self.timeline(context, stage, chip),
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
            known: dict[int, int] = {}
            for chip in range(self.tp):
                line = timeline(stage, chip)
                key = chip if self.handovers else 0  # the same in all launches
                if key not in known:
                    tables = [new_blocks(0)]
                    for number, (piece, start) in enumerate(line):
                        table = own
                        if piece is not None:
                            table = kept(piece.whole() if head else piece.table)
                        table = shifted(table, start)
                        if piece is not None and piece.run is None:
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

    def way(boundary: int, words: int) -> Handover:
        here, there = groups[boundary : boundary + 2]
        return plan_handover(wiring, layout.tp, here, there, words, spec)

    words = chunk * layout.x_tiles
    handovers = [
        way(number, words * (2 if stage.split_after else 1))
        for number, stage in enumerate(stages[:-1])
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
        {boundary: way(boundary, words) for boundary in parts_apart(stages)},
    )
