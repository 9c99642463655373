"""Saturations are those of the run, however chips are dealt to processes and whoever dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from time import perf_counter

import pytest

from chip.spec import ChipSpec
from cluster.listening import Listener
from cluster.metrics import Board, RunWatch
from cluster.processes import Placement
from cluster.runs import GenerationResult, run_generation
from programs.artifact import Artifact
from programs.decoder import compile_decoder, partition_model
from programs.faults import FaultPlan
from programs.faults.plan import Upset
from programs.models import load_checkpoint
from programs.running import BARRIER, LOOKAHEAD, Generation, saturation_totals
from tests.cluster.test_generation import chip_processes
from tests.cluster.test_metrics import total
from tests.stands.loud_model import LAYER, write_loud_model

JOB = Generation((70, 221, 304), 40)


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    directory = write_loud_model(tmp_path_factory.mktemp("model") / "loud")
    return compile_decoder(partition_model(load_checkpoint(directory), 2), ChipSpec(), 64)


def generated(
    artifact: Artifact,
    placement: Placement,
    sync: str = LOOKAHEAD,
    listener: Listener | None = None,
    watch: RunWatch | None = None,
) -> GenerationResult:
    job = Generation(JOB.prompt, JOB.max_new_tokens, sync=sync)
    heard = Listener() if listener is None else listener
    return run_generation(artifact, job, placement, heard, perf_counter(), watch=watch)


@pytest.fixture(scope="module")
def calm(loud: Artifact) -> GenerationResult:
    result = generated(loud, Placement(2, in_process=True))
    assert saturation_totals(result.saturations)["fp16"] > 0
    assert next(iter(result.saturations)) == str(LAYER)
    return result


def test_barriers_and_metrics(loud: Artifact, calm: GenerationResult) -> None:
    board = Board()
    watch = RunWatch(board, "generate", ("generate", "lpu"))
    result = generated(loud, Placement(2, in_process=True), BARRIER, watch=watch)
    assert (result.saturations, result.digest) == (calm.saturations, calm.digest)
    for kind, count in saturation_totals(calm.saturations).items():
        assert total(board, "lpu_saturated_values_total", kind=kind) == count


def test_launches_that_fail_on_the_modelled_machine_count_once(
    loud: Artifact, calm: GenerationResult
) -> None:
    plan = FaultPlan(upsets=(Upset(chip=0, launch=9, bits=2),))
    result = generated(loud, Placement(2, in_process=True, faults=plan))
    assert result.faults["replays"] > 0
    assert result.saturations == calm.saturations


@pytest.mark.long
@pytest.mark.ray
def test_actors_and_a_lost_one(
    loud: Artifact, calm: GenerationResult, local_ray: None, tmp_path: Path
) -> None:
    """What the dead actor had counted up to the snapshot comes back with it, the rest anew."""

    class Killer(Listener):
        def __init__(self) -> None:
            self.tokens = 0

        def token(self, token: int) -> None:
            self.tokens += 1
            if self.tokens == 1:
                os.kill(chip_processes()[0], signal.SIGKILL)

    result = generated(loud, Placement(1), listener=Killer())
    assert (result.saturations, result.digest) == (calm.saturations, calm.digest)
