"""The rows of ``lpu bench`` about lost processes: the cost of snapshots, the time to recover."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import perf_counter, sleep
from typing import Any

from chip.spec import ChipSpec
from cluster.bench.row import Row
from cluster.errors import RunError
from cluster.processes import (
    SNAPSHOT_LAUNCHES,
    ChipGroup,
    GroupPlan,
    GroupResult,
    Placement,
    SharedMapping,
    chip_actors,
    layout_of,
    open_ray,
    snapshot_directory,
)
from programs.artifact import Artifact
from programs.decoder import compile_decoder, partition_model
from programs.models import load_checkpoint, shipped_model
from programs.running import Generation

CHIPS = 8
JOB = Generation((1, 2), 192)
ROUNDS = 5


def _shipped() -> Artifact:
    return compile_decoder(
        partition_model(load_checkpoint(shipped_model()), CHIPS, "int8"), ChipSpec()
    )


def snapshot_overhead() -> list[Row]:
    """Decoding with and without snapshots, in turns, in one process that keeps all eight chips."""
    artifact = _shipped()
    seconds: dict[int, list[float]] = {0: [], SNAPSHOT_LAUNCHES: []}
    with snapshot_directory() as directory:
        for number in range(ROUNDS + 1):
            for launches, times in seconds.items():
                mapping = SharedMapping.private(layout_of(artifact, 1))
                group = ChipGroup(artifact, range(CHIPS), 0, mapping)
                plan = GroupPlan(directory / "none", tuple(range(CHIPS)), 0, directory, launches)
                result = group.generate(JOB, plan)
                if number:  # the first round compiles, links and touches memory
                    times.append(sum(result.launch_seconds[1:]))
    return [
        Row(
            "snapshot_overhead",
            median(seconds[SNAPSHOT_LAUNCHES]),
            "s",
            median(seconds[0]),
            f"{JOB.max_new_tokens} tokens of the shipped model without snapshots; the value is "
            f"with one every {SNAPSHOT_LAUNCHES} launches (eight chips, one process)",
        )
    ]


class _Idle:
    """An actor that does nothing: what Ray itself needs to bring one back."""

    def process(self) -> int:
        return os.getpid()


def ray_restart_seconds() -> float:
    """From the end of a plain actor's process until Ray has it running again."""
    import ray

    remote: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Idle)
    actor = remote.remote()
    times = []
    for _ in range(3):
        process = ray.get(actor.process.remote())
        began = perf_counter()
        os.kill(process, signal.SIGKILL)
        while ray.get(actor.process.remote()) == process:
            sleep(0.001)
        times.append(perf_counter() - began)
    ray.kill(actor)
    return median(times)


def recovery_seconds() -> list[Row]:
    """One of eight chip actors is killed in the middle; how much later does the text end?"""
    import ray

    artifact = _shipped()
    job = replace(JOB, max_new_tokens=128)
    with open_ray(None, CHIPS + 2):
        restart = ray_restart_seconds()
        with chip_actors(artifact, Placement(1), lambda _: None) as supervisor:

            def generate(poll: Callable[[], None]) -> tuple[float, list[GroupResult]]:
                began = perf_counter()
                results: list[GroupResult] = supervisor.run("generate", job, poll=poll)
                return perf_counter() - began, results

            def kill_in_the_middle() -> None:
                half = len(ray.get(supervisor.progress()).tokens) >= job.max_new_tokens // 2
                if half and not supervisor.recoveries and not struck:
                    struck.append(supervisor.processes[3])
                    os.kill(struck[0], signal.SIGKILL)

            struck: list[int] = []
            generate(lambda: None)  # links programs
            calm, expected = generate(lambda: ray.get(supervisor.progress()))
            disturbed, results = generate(kill_in_the_middle)
            if results[0].run.tokens != expected[0].run.tokens or not supervisor.recoveries:
                raise RunError("recovery_seconds: the kill was not survived as it should be")
    return [
        Row(
            "recovery_seconds",
            disturbed - calm,
            "s",
            restart,
            "the time in which Ray restarts an actor that does nothing; the value is how much "
            "longer a text takes when one of eight chip actors is killed in the middle of it",
        )
    ]
