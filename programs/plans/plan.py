"""A model by its shape alone, compiled for as many chips as it takes: no weight is touched.

``compile_plan`` deals the model (``programs.decoder.fit``), schedules every kind of block, hands x
over real cables and predicts cycles; ``check_plan`` proves every distinct piece of the programs
legal and all chips' vectors matched.  ``programs.plans.timing`` executes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from chip.checker import ERROR, Finding, check
from chip.faults import ProgramFault
from chip.isa import Op
from chip.program import BlockTable, Program
from chip.scheduling import CompileError, shifted
from chip.spec import ChipSpec
from interconnect.vectors import check_fabric
from interconnect.wiring import node_cables
from programs.decoder import (
    Body,
    Crossed,
    Crossing,
    Layout,
    Numbers,
    Piece,
    Pipeline,
    build_pipeline,
    deal_model,
)
from programs.models import ModelConfig


@dataclass
class Plan:
    """A model on chips: its stages, their programs and the cycles they take.

    starts: the cycle x is readable at each stage in the launch of one token.
    checked: ``check_plan`` found nothing.
    """

    name: str
    config: ModelConfig
    layout: Layout
    dtype: str
    context: int
    batch: int
    pipeline: Pipeline
    starts: list[int] = field(default_factory=list)
    checked: bool = False

    @property
    def spec(self) -> ChipSpec:
        """The chips' spec."""
        return self.pipeline.spec

    @property
    def chips(self) -> int:
        """Chips of the machine."""
        return self.pipeline.topology.chips

    def body(self, stage: int) -> Body:
        """The blocks of a stage."""
        return self.pipeline.code[stage].body(self.context)

    @property
    def cycles(self) -> int:
        """Cycles of one token through all stages, head included."""
        return self.pipeline.end(self.context)

    @property
    def stage_cycles(self) -> list[int]:
        """Cycles each stage works on a token, without what is between stages."""
        bodies = [self.body(i) for i in range(len(self.starts))]
        return [body.cycles + body.head_cycles for body in bodies]

    @property
    def interval_cycles(self) -> int:
        """Cycles of a beat of the full conveyor belt: the slowest stage and the handover."""
        return self.pipeline.beat(self.context)[2]

    @property
    def sram_used_bytes(self) -> int:
        """SRAM taken on the fullest chip, the system's slices not counted."""
        return max(code.places.placement.used_bytes() for code in self.pipeline.code)


def compile_plan(
    name: str,
    config: ModelConfig,
    spec: ChipSpec,
    *,
    dtype: str = "int8",
    context: int,
    batch: int = 1,
    chips: int | None = None,
    tp: int | None = None,
    wiring: str = "usual",
) -> Plan:
    """Deal, place and schedule a model of ``config`` for ``context`` positions.

    batch: sequences whose caches the chips hold.  wiring: ``usual``, or ``chain`` for nodes in a
    row (``interconnect.wiring``).  Raises CompileError or FabricError.
    """
    if context > config.max_position:
        raise CompileError(
            f"context {context:,}: {name} was made for {config.max_position:,} positions; use "
            f"--context {config.max_position} or less"
        )
    dealt = deal_model(name, config, spec, dtype, context, batch, chips, tp, wiring)
    layout = dealt.layout
    pipeline = build_pipeline(dealt.stages, dealt.places, Numbers.of(config), dealt.wiring)
    plan = Plan(name, config, layout, dtype, context, batch, pipeline)
    plan.starts = pipeline.starts(context)
    check_words(plan, name)
    return plan


def chunk_plan(plan: Plan, chunk: int) -> Plan:
    """The same stages with room for ``chunk`` tokens of a prompt, which all its programs take.

    Raises CompileError where they do not fit, or their instruction words do not.
    """
    pipeline = plan.pipeline.in_chunks(chunk)
    starts = pipeline.starts(plan.context)
    chunked = replace(plan, pipeline=pipeline, starts=starts, checked=False)
    check_words(chunked, f"a chunk of {chunk} tokens")
    return chunked


def check_words(plan: Plan, name: str) -> None:
    """Raise CompileError where instruction words exceed the system's slices."""
    words, room = instruction_bytes(plan), system_bytes(plan.spec)
    if words > room:
        raise CompileError(
            f"{name}: {words:,} bytes of instruction words in {room:,} bytes of the system's "
            "slices; use more chips, so that a chip has fewer layers"
        )


def system_bytes(spec: ChipSpec) -> int:
    """SRAM of the slices that are the system's; they hold the instruction words."""
    slices = len(spec.reserved_slices_west) + len(spec.reserved_slices_east)
    return slices * spec.words_per_slice * spec.lanes


def instruction_bytes(plan: Plan) -> int:
    """At most so many bytes of instruction words on any chip, by the assumed encoding.

    A word, a Repeat and a NOP for every run of a block on each of its queues.
    """
    most = 0
    seen: set[tuple[object, ...]] = set()
    for number, stage in enumerate(plan.pipeline.stages):
        if stage.shape in seen:
            continue
        seen.add(stage.shape)
        table = plan.body(number).whole()  # may name gangs that no stage before it has
        sizes = np.array([len(g) for g in plan.pipeline.gangs] or [1])
        queues = np.where(table["gang"] >= 0, sizes[table["gang"]], 1)
        words = queues * table["n2"] * np.where(table["n1"] > 1, 3, 2)
        most = max(most, 16 * int(words.sum()))
    return most


def check_plan(plan: Plan) -> int:
    """Prove the plan's programs legal; the number of distinct pieces that were checked.

    A chip's program is what comes in, a stage's blocks, and what goes out, with pauses between
    (see ``Pipeline.course``): each distinct piece is checked once, what goes out of a block with
    that block, and then the vectors of all chips against each other.  Raises ProgramFault for the
    first error.
    """
    pipeline = plan.pipeline
    handovers = _between_stages(plan, plan.context)
    bodies = stage_bodies(plan, plan.context)
    for table in [*bodies, *handovers.values()]:
        _refuse(check(_from_zero(plan, table), plan.spec))
    links = (Op.SEND, Op.RECEIVE)
    launches = [pipeline.programs(plan.context, True, links)]
    if plan.batch > 1:  # beats differ by the caches they use, not by what they send
        launches.append(pipeline.belt_programs(plan.context, pipeline.turns, 0, links))
    for programs, program_of_chip in launches:
        _refuse(check_fabric(programs, program_of_chip, pipeline.topology.cables, plan.spec))
    plan.checked = True
    return len(bodies) + len(handovers)


def _between_stages(plan: Plan, context: int) -> dict[int, BlockTable]:
    """What chips do between the stages' blocks, by number, with the block that it is beside."""
    pipeline = plan.pipeline
    found: dict[int, BlockTable] = {}
    for number in range(len(pipeline.stages)):
        for chip in range(pipeline.tp):
            lines = pipeline.timeline(context, number, chip)
            if plan.batch > 1:
                lines = lines + pipeline.belt_timeline(context, number, chip)
            for piece, _ in lines:
                if piece is not None and piece.run is None and len(piece.table):
                    beside = [] if piece.beside is None else [piece.beside]
                    found[piece.number] = np.concatenate([piece.table, *beside])
    return found


def stage_bodies(plan: Plan, context: int) -> list[BlockTable]:
    """The blocks of every shape of stage, scheduled for ``context`` positions, heads included, and
    those of its runs where parts of an FFN are computed at the same time.
    """
    pipeline = plan.pipeline
    found: dict[object, BlockTable] = {}
    for code, stage in zip(pipeline.code, pipeline.stages, strict=True):
        if stage.shape not in found:
            found[stage.shape] = code.body(context).whole()
    for steps in pipeline.course(context).steps:
        for step, _ in steps:
            if isinstance(step, Piece) and step.run is not None and len(step.whole()):
                found[step.number] = step.whole()
    return list(found.values())


def check_bodies(plan: Plan, context: int) -> None:
    """Prove the stages' blocks for another bucket legal, and what a group's chips send each other.

    Of what lies between stages only what is not that of the plan's own context: where words of x
    leave at other cycles, the vectors of all chips are matched anew.  Raises ProgramFault for the
    first error.
    """
    own, pipeline = _between_stages(plan, plan.context), plan.pipeline
    for number, table in _between_stages(plan, context).items():
        if number not in own:
            _refuse(check(_from_zero(plan, table), plan.spec))
    here, there = (_crossings(plan, each) for each in (plan.context, context))
    if any(one is not other for one, other in zip(here, there, strict=True)):
        programs = pipeline.programs(context, True, (Op.SEND, Op.RECEIVE))
        _refuse(check_fabric(*programs, pipeline.topology.cables, plan.spec))
    tp = pipeline.tp
    cables = np.array(node_cables(tp), np.int32).reshape(-1, 4)
    for table in stage_bodies(plan, context):
        program = _from_zero(plan, table)
        _refuse(check(program, plan.spec))
        _refuse(check_fabric([program], [0] * tp, cables, plan.spec))


def _crossings(plan: Plan, context: int) -> list[Crossing]:
    """How x goes on word by word, at every boundary where it does; equal ones are one object."""
    steps = (step for own in plan.pipeline.course(context).steps for step, _ in own)
    return [step.crossing for step in steps if isinstance(step, Crossed)]


def check_beats(plan: Plan) -> None:
    """Prove legal what the stages hand over in a beat of a prompt's tokens, all at once.

    Their blocks are those of ``check_plan``.  Raises ProgramFault for the first error.
    """
    pipeline = plan.pipeline
    handovers: dict[int, BlockTable] = {}
    for number in range(len(pipeline.stages)):
        for chip in range(pipeline.tp):
            piece = pipeline.exchanged(number, chip)
            if len(piece.table):
                handovers[piece.number] = piece.table
    for table in handovers.values():
        _refuse(check(_from_zero(plan, table), plan.spec))
    programs = pipeline.prompt_programs(plan.context, False, (Op.SEND, Op.RECEIVE))
    _refuse(check_fabric(*programs, pipeline.topology.cables, plan.spec))


def _from_zero(plan: Plan, table: BlockTable) -> Program:
    """Blocks as a program of their own."""
    moved = shifted(table, -int(table["cycle"].min()))
    return Program(moved, plan.pipeline.gangs, [], int(moved["cycle"].max()) + 1)


def _refuse(findings: list[Finding]) -> None:
    """Raise ProgramFault for the first error."""
    for f in findings:
        if f.severity == ERROR:
            text = f"{f.instruction}: {f.other}; {f.mend}"
            chip = -1 if f.chip is None else f.chip
            raise ProgramFault(f.code, f.cycle, f.queue, text, chip=chip)
