"""What a token of a plan costs at its own length."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from chip.faults import ProgramFault
from chip.program import Program
from chip.scheduling import CompileError
from chip.spec import PRESETS, ChipSpec
from cluster.cli import run
from cluster.experiments.serving.belt import belt_of, belt_of_plan
from interconnect.wiring import topology_of
from programs.decoder import Layout, Numbers, Stage, build_pipeline, compile_model, token_entry
from programs.decoder.places import StagePlaces
from programs.decoder.stages import model_blocks
from programs.models import ModelConfig, config_of, open_model
from programs.plans import Plan, bucket_costs, compile_plan, plan_buckets
from programs.plans.plan import check_bodies

SPEC = PRESETS["groq-lpu-1"]


@pytest.fixture(scope="module")
def plan() -> Plan:
    name, config = config_of("draft")
    return compile_plan(name, config, SPEC, context=512, chips=16)


def test_buckets_double_up_to_the_context() -> None:
    assert plan_buckets(2048) == [128, 256, 512, 1024, 2048]
    assert plan_buckets(700) == [128, 256, 512, 700]
    assert plan_buckets(129) == [128, 129]
    assert plan_buckets(128) == [128]
    assert plan_buckets(5) == [5]


def test_a_bucket_costs_what_a_compiled_model_costs_there(plan: Plan) -> None:
    """Compiled with the same caches, bucket by bucket, with the logits and without."""
    artifact = compile_model(
        open_model("draft"), tp=8, dtype="int8", context=512, chip="groq-lpu-1", pp=2
    )
    costs = bucket_costs(plan, [64, 128, 256, 512])
    assert [cost.positions for cost in costs] == [64, 128, 256, 512]
    cycles = artifact.predicted_cycles
    assert [cost.cycles for cost in costs] == [
        cycles[token_entry(cost.positions, False)] for cost in costs
    ]
    assert [cost.prefill_cycles for cost in costs] == [
        cycles[token_entry(cost.positions, True)] for cost in costs
    ]
    compiled, planned = belt_of(artifact), belt_of_plan(plan, costs)
    assert planned.buckets == compiled.buckets
    assert planned.decode_cycles == compiled.decode_cycles
    assert planned.prefill_cycles == compiled.prefill_cycles


def test_the_last_bucket_is_the_plan_itself(plan: Plan) -> None:
    costs = bucket_costs(plan)
    assert costs[-1][:2] == (512, plan.cycles)
    assert costs[-1].interval_cycles == plan.interval_cycles
    intervals = [cost.interval_cycles for cost in costs]
    assert intervals == sorted(intervals) and intervals[0] < intervals[-1]


@pytest.mark.parametrize("positions", [0, 513])
def test_a_bucket_beyond_the_caches_is_refused(plan: Plan, positions: int) -> None:
    with pytest.raises(CompileError, match=r"the plan has caches for 512; use 1 up to so many"):
        bucket_costs(plan, [positions])


def test_every_bucket_is_checked(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies of the shorter buckets reach the checkers, chip by chip and between chips."""
    seen: list[int] = []
    fabrics: list[int] = []

    def look(program: Program, spec: ChipSpec) -> list[object]:
        seen.append(len(program.blocks))
        return []

    def meet(
        programs: list[Program], of: object, cables: np.ndarray, spec: ChipSpec
    ) -> list[object]:
        fabrics.append(len(cables))
        return []

    monkeypatch.setattr("programs.plans.plan.check", look)
    monkeypatch.setattr("programs.plans.plan.check_fabric", meet)
    bucket_costs(plan)
    shapes = len({stage.shape for stage in plan.pipeline.stages})
    assert len(seen) == len(fabrics) == 2 * shapes  # 128 and 256; 512 is check_plan's
    assert set(fabrics) == {28}
    bucket_costs(plan, check=False)
    assert len(seen) == 2 * shapes


@pytest.mark.parametrize("late", [0, 1])
def test_vectors_between_stages_meet_in_every_bucket(
    late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words of x leave the middle of an attention, so they leave sooner in a shorter bucket."""
    config = ModelConfig(100, 1, 8, 8, 24, 130, 61, max_position=512)
    places = StagePlaces(SPEC, Layout.of(config, 2), "int8", 300)
    attention, ffn = model_blocks(1, 1)
    stages = [Stage((attention,), False), Stage((ffn,), True)]
    pipeline = build_pipeline(stages, places, Numbers.of(config), topology_of(4))
    plan = Plan("two", config, places.layout, "int8", 300, 1, pipeline, pipeline.starts(300))
    found, own = pipeline.crossing(0, 128), pipeline.crossing(0, 300)
    assert found is not own and found.begins != own.begins
    spoiled = replace(found, begins=found.begins + late)
    monkeypatch.setattr(pipeline, "crossing", lambda stage, of: own if of == 300 else spoiled)
    if late:
        with pytest.raises(ProgramFault, match="dispatch the RECEIVE"):
            check_bodies(plan, 128)
    else:
        check_bodies(plan, 128)


@pytest.mark.long
def test_the_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "--model", "draft", "--chips", "8", "--context", "256", "--no-run"]
    assert run([*asked, "--buckets", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    short, whole = row["buckets"]
    assert (short["positions"], whole["positions"]) == (128, 256)
    assert short["cycles"] < whole["cycles"] == row["cycles_per_token"]
    assert whole["interval_cycles"] == row["initiation_interval_cycles"]
    assert run([*asked, "--buckets"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"below 128 {short['cycles']:,} cycles, {short['prefill_cycles']:,} without" in text
    assert run([*asked, "--json"]) == 0
    assert "buckets" not in json.loads(capsys.readouterr().out)
