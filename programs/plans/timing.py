"""A plan's programs on chips without data: the engine's own clock, chip by chip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chip.engine import Chip, Rings, ring_vectors
from chip.linking import LinkedProgram, TimingPart, join, timing_part
from chip.program import BlockTable, Program
from interconnect.wiring import wire
from programs.plans.plan import Plan
from programs.running import Alone, step_lookahead


@dataclass(frozen=True)
class PlanRun:
    """A launch of a plan's programs on chips without data.

    retired: int64 [chips], the cycle each chip's launch ended, 0 for chips without a stage;
    digest_sums: uint64 [chips with a stage, 2]; instructions: of all chips.
    """

    retired: NDArray[np.int64]
    digest_sums: NDArray[np.uint64]
    instructions: int


def timing_programs(plan: Plan, belt: bool = False) -> list[LinkedProgram | None]:
    """The executable launch of one token for every chip; None for chips without a stage.

    belt: one beat of the conveyor belt instead.
    """
    pipeline = plan.pipeline
    end = plan.interval_cycles if belt else plan.cycles
    parts: dict[object, TimingPart] = {}

    def part(key: object, table: BlockTable) -> TimingPart:
        if key not in parts:
            parts[key] = timing_part(Program(table, pipeline.gangs, [], 0), plan.spec)
        return parts[key]

    programs: list[LinkedProgram | None] = [None] * plan.chips
    for number, (stage, group) in enumerate(zip(pipeline.stages, pipeline.groups, strict=True)):
        whole = part(stage.shape, plan.body(number).whole())
        joined: dict[tuple[int, ...], LinkedProgram] = {}
        for chip in range(pipeline.tp):
            if belt:
                line = pipeline.belt_timeline(plan.context, number, chip)
            else:
                line = pipeline.timeline(plan.context, number, chip)
            key = tuple(-1 if piece is None else piece.number for piece, _ in line)
            if key not in joined:
                moved = [
                    (whole if piece is None else part(piece.number, piece.whole()), start)
                    for piece, start in line
                ]
                joined[key] = join(moved, end)
            programs[group * pipeline.tp + chip] = joined[key]
    return programs


def run_timing(plan: Plan, programs: Sequence[LinkedProgram | None], threads: int = 1) -> PlanRun:
    """Run linked programs of ``timing_programs`` once."""
    cables = [(a, x, b, y) for a, x, b, y in plan.pipeline.topology.cables.tolist()]
    rings = Rings.allocate(max(1, 2 * len(cables)), ring_vectors(plan.spec))
    chips = []
    for number, program in enumerate(programs):
        if program is not None:
            chip = Chip(plan.spec, number, data=False)
            wire(chip, cables)
            chip.begin(program, 0)
            chips.append(chip)
    step_lookahead(chips, rings, Alone(), threads)
    retired = np.zeros(plan.chips, np.int64)
    for chip in chips:
        retired[chip.chip_id] = chip.retired_cycles
    sums = np.array([chip.digest_sums for chip in chips])
    total = sum(p.elements for p in programs if p is not None)
    return PlanRun(retired, sums, total)
