"""Stages that share the vocabulary: each computes its own part of the logits at the same time."""

from __future__ import annotations

import pytest

from chip.checker import check
from chip.isa import Op
from chip.program import expand
from chip.spec import ChipSpec
from interconnect.vectors import check_fabric
from interconnect.wiring import topology_of
from programs.decoder import Layout, Numbers, Stage, build_pipeline
from programs.decoder.places import StagePlaces
from programs.decoder.stages import model_blocks
from programs.models import ModelConfig
from programs.plans import Plan, bucket_costs
from programs.plans.report import report_plan

pytestmark = pytest.mark.long
SPEC = ChipSpec()
#: A part of the head takes longer than x takes from one stage to the next.
WORDY = ModelConfig(640, 1, 4, 2, 64, 640, 64000)


@pytest.fixture(scope="module")
def plan() -> Plan:
    places = StagePlaces(SPEC, Layout.of(WORDY, 2), "int8", 64)
    stages = [Stage(model_blocks(1, 1), True, 0, 2), Stage((), True, 1, 2)]
    pipeline = build_pipeline(stages, places, Numbers.of(WORDY), topology_of(4))
    return Plan("wordy", WORDY, places.layout, "int8", 64, 1, pipeline, pipeline.starts(64))


@pytest.mark.parametrize("head", [True, False])
def test_a_launch_ends_with_the_last_word_of_any_stage(plan: Plan, head: bool) -> None:
    """Without the last stage's logits it is the stage before that is still at its own."""
    programs, program_of_chip = plan.pipeline.programs(64, head)
    last = []
    for program in programs:
        assert check(program, SPEC) == []
        table = expand(program)
        last.append(int(table["cycle"][table["op"] == Op.WRITE].max()) + SPEC.write_cycles)
    assert check_fabric(programs, program_of_chip, plan.pipeline.topology.cables, SPEC) == []
    of_stage = [max(last[program_of_chip[chip]] for chip in group) for group in ((0, 1), (2, 3))]
    assert (of_stage[1] > of_stage[0]) == head
    assert {program.cycles for program in programs} == {max(of_stage)}
    (cost,) = bucket_costs(plan, [64])
    assert max(of_stage) == (cost.cycles if head else cost.prefill_cycles)
    if head:
        assert plan.cycles == cost.cycles


def test_phases_have_the_longest_part_of_the_head_once(plan: Plan) -> None:
    """What is between the stages is what the blocks, one head and the start leave."""
    attention, ffn, first = plan.body(0).parts
    longest = max(first.cycles, plan.body(1).head_cycles)
    phases = report_plan(plan).phases
    rest = attention.cycles + ffn.cycles + longest + plan.starts[0]
    assert phases["pipeline"] == plan.cycles - rest > SPEC.hop_cycles
    assert sum(phases.values()) == plan.cycles
