"""Plans of more sequences than stages: beats of batches are those of compiled programs."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from chip.spec import ChipSpec
from cluster.cli import run
from programs.decoder import compile_belt, partition_model
from programs.models import ModelConfig, random_checkpoint
from programs.plans import (
    BATCHES,
    Plan,
    batch_plan,
    check_plan,
    compile_plan,
    report_plan,
    run_timing,
    timing_programs,
)
from programs.plans.plan import instruction_bytes
from tests.families import FAMILIES, checkpoint_of

SPEC = ChipSpec()
CONFIG = ModelConfig(100, 2, 8, 4, 24, 130, 331)


def planned(batch: int, chips: int = 16) -> Plan:
    return compile_plan("test", CONFIG, SPEC, context=64, batch=batch, chips=chips)


@pytest.mark.parametrize(
    ("batch", "chips", "each"),
    [
        (3, 8, 3),
        pytest.param(5, 16, 3, marks=pytest.mark.long),
        pytest.param(5, 32, 2, marks=pytest.mark.long),
    ],
)
def test_beats_are_those_of_compiled_programs(batch: int, chips: int, each: int) -> None:
    """Three on one stage; of five on two stages, three and two, in groups of three; of five on four
    stages, two, two, one and none: a group for every stage, as a compiled belt has them.
    """
    plan = planned(batch, chips)
    batched, refused = batch_plan(plan)
    assert batched is not None and not refused
    stages, places = chips // 8, batched.pipeline.places
    assert len(plan.starts) == stages
    assert (places.chunk, batched.pipeline.turns, places.sequences) == (each, stages, each * stages)
    assert check_plan(batched) > 0 and batched.checked
    model = partition_model(random_checkpoint(CONFIG, 0), 8)
    made = compile_belt(
        model, SPEC, 64, stages, weights=False, batch=each, sequences=places.sequences
    )
    assert {batched.interval_cycles} == set(made.predicted_cycles.values())
    found = report_plan(plan, batched)
    assert found.mode == BATCHES
    assert found.per_user == pytest.approx(SPEC.clock_hz / stages / batched.interval_cycles)
    assert found.total == pytest.approx(batch * SPEC.clock_hz / stages / batched.interval_cycles)
    full = found.belt  # with all rows of all groups
    assert full.sequences == full.that_fit == each * stages
    assert full.total == pytest.approx(each * SPEC.clock_hz / batched.interval_cycles)
    assert full.total >= found.total and full.per_user == pytest.approx(found.per_user)
    alone = report_plan(plan)
    assert alone.total < found.total and alone.interval_cycles == found.interval_cycles
    done = run_timing(batched, timing_programs(batched, belt=True))
    assert set(np.unique(done.retired)) == {batched.interval_cycles}


def test_as_many_sequences_as_stages_are_no_batch() -> None:
    for batch in (1, 2):
        assert batch_plan(planned(batch)) == (None, "")


@pytest.mark.long
def test_batches_that_cannot_be_leave_the_belt(monkeypatch: pytest.MonkeyPatch) -> None:
    config = checkpoint_of(FAMILIES["mixtral"]).config
    experts = compile_plan("experts", config, SPEC, context=64, batch=4, chips=1)
    found, refused = batch_plan(experts)
    assert found is None
    assert refused.startswith("--batch 4: a batch of 4 sequences: they would choose different exp")
    plan = planned(9, 8)
    words = instruction_bytes(plan)
    monkeypatch.setattr("programs.plans.plan.system_bytes", lambda _: words)
    found, refused = batch_plan(plan)
    assert found is None
    assert re.match(r"--batch 9: a batch of 9 sequences: [0-9,]+ bytes of instruction", refused)


@pytest.mark.long
def test_more_than_a_stage_takes_at_once_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of 33 twice where 66 are too many; half as many where words or places are short."""
    plan = planned(66, 8)
    found, refused = batch_plan(plan)
    assert found is not None and not refused
    assert (found.pipeline.places.chunk, found.pipeline.turns) == (33, 2)
    reported = report_plan(plan, found)
    assert reported.mode == BATCHES
    assert reported.per_user == pytest.approx(SPEC.clock_hz / 2 / found.interval_cycles)
    assert reported.total == pytest.approx(66 * reported.per_user)

    plan = planned(9, 8)
    of_five = plan.pipeline.in_batches(5)
    words = instruction_bytes(replace(plan, pipeline=of_five, starts=of_five.starts(64)))
    monkeypatch.setattr("programs.plans.plan.system_bytes", lambda _: words)
    found, refused = batch_plan(plan)
    assert found is not None
    assert (found.pipeline.places.chunk, found.pipeline.turns) == (5, 2)
    assert re.match(r"--batch 9: a batch of 9 sequences: [0-9,]+ bytes of instruction", refused)


@pytest.mark.long
def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "--model", "target", "--chips", "16", "--context", "64", "--no-advice"]
    assert run([*asked, "--batch", "7", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    found = row["batches"]
    assert (row["mode"], found["sequences_per_stage"], found["groups"]) == (BATCHES, 4, 2)
    each = 900e6 / 2 / found["interval_cycles"]
    assert row["tokens_per_second_per_user"] == pytest.approx(each)
    assert row["tokens_per_second_total"] == pytest.approx(7 * each)
    assert row["tokens_per_second_total"] > 1.5 * 900e6 / row["initiation_interval_cycles"]
    assert row["sram_used_ratio"] <= found["sram_used_ratio"] < 1
    assert row["batch_refused"] is None
    assert run([*asked, "--batch", "7", "--no-run"]) == 0
    assert "4 sequences a stage" in capsys.readouterr().out
