"""Seeded kills of a run's processes at random virtual times.

Virtual time is read where it can be seen without asking the processes: a group's vectors on the
links of the shared memory.  Their number is a function of the cycle a group has reached, so the
victim is killed in the middle of a launch as soon as it has sent a given number of them.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

import cluster.processes.session
import cluster.runs.generation
from cluster.listening import Listener
from cluster.processes import (
    ChipGroup,
    Placement,
    SharedMapping,
    Supervisor,
    chip_actors,
    layout_of,
)
from cluster.runs import GenerationResult, run_generation
from programs.artifact import Artifact
from programs.running import Generation

PROMPT = (70, 221, 304)
JOB = Generation(PROMPT, 36)


@dataclass(frozen=True)
class Calm:
    """An undisturbed run and the vectors it moved."""

    result: GenerationResult
    vectors: int


def generate(artifact: Artifact, placement: Placement, job: Generation = JOB) -> GenerationResult:
    return run_generation(artifact, job, placement, Listener(), perf_counter())


def calm_generation(artifact: Artifact) -> Calm:
    mapping = SharedMapping.private(layout_of(artifact, 1))
    ChipGroup(artifact, range(artifact.chips), 0, mapping).generate(JOB)
    vectors = int(mapping.rings().counts[:, 0].sum())
    return Calm(generate(artifact, Placement(8, in_process=True)), vectors)


@dataclass(frozen=True)
class Kill:
    """Kill the process of ``group`` once the epoch's vectors number ``vectors``.

    by_ray: through ``ray.kill`` instead of SIGKILL.
    """

    group: int
    vectors: int
    by_ray: bool


class Killer(threading.Thread):
    """Carries out kills, one an epoch, while a supervisor works."""

    def __init__(self, supervisor: Supervisor, kills: list[Kill]) -> None:
        super().__init__(daemon=True)
        self._supervisor = supervisor
        self._kills = list(kills)
        self._over = threading.Event()
        self.done = 0
        self._before = supervisor.mapping

    def run(self) -> None:
        last: Any = self._before if self._supervisor._run else None
        for kill in self._kills:
            while not self._over.is_set():
                mapping = self._supervisor.mapping
                if mapping is not None and mapping is not last:
                    vectors = int(mapping.rings().counts[:, 0].sum())
                    if vectors >= kill.vectors and self._strike(kill):
                        last = mapping
                        break
                time.sleep(0.0005)

    def _strike(self, kill: Kill) -> bool:
        process = self._supervisor.processes[kill.group]
        if process == 0:
            return False
        if kill.by_ray:
            import ray

            ray.kill(self._supervisor.actors[kill.group])
        else:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                return False
        self.done += 1
        return True

    def stop(self) -> None:
        self._over.set()
        self.join()


class Disturbed(Supervisor):
    """A supervisor whose next run works under ``kills``; ``done`` of them were carried out."""

    kills: list[Kill] = []  # noqa: RUF012 (replaced, never changed)
    done = 0

    def run(
        self,
        method: str,
        *arguments: object,
        poll: Callable[[], None] = lambda: None,
        keep: bool = False,
    ) -> list[Any]:
        killer = Killer(self, self.kills)
        killer.start()
        try:
            return super().run(method, *arguments, poll=poll, keep=keep)
        finally:
            killer.stop()
            Disturbed.done = killer.done


@contextmanager
def crew(artifact: Artifact, placement: Placement) -> Iterator[None]:
    """One set of actors for all generations inside, under a supervisor that is ``Disturbed``."""
    with disturbed(), chip_actors(artifact, placement, lambda _: None) as supervisor:
        original = cluster.runs.generation.chip_actors
        cluster.runs.generation.chip_actors = lambda *_: nullcontext(supervisor)  # type: ignore
        try:
            yield
        finally:
            cluster.runs.generation.chip_actors = original


@contextmanager
def disturbed() -> Iterator[None]:
    """Every supervisor made inside is a ``Disturbed`` one."""
    original = cluster.processes.session.Supervisor
    cluster.processes.session.Supervisor = Disturbed  # type: ignore[misc]
    try:
        yield
    finally:
        cluster.processes.session.Supervisor = original  # type: ignore[misc]


def draw_kills(seed: int, count: int, groups: int, vectors: int) -> list[Kill]:
    """``count`` kills at random virtual times of a run of ``vectors`` vectors.

    The last tenth is left out: a victim that has finished cannot be killed in its work.  A later
    kill of several strikes in a later epoch, which has fewer vectors to go; so it comes early.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, 0]))
    return [
        Kill(
            int(random.integers(groups)),
            int(random.random() * vectors * (0.9 if count == 1 or number == 0 else 0.1)),
            bool(random.random() < 0.3),
        )
        for number in range(count)
    ]
