"""Ray actors: a shell around a ``ChipGroup``, and the virtual global clock.

Ray places, starts and ends the processes; vectors and logits go through the shared mapping.  One
actor call covers a whole generation.  An actor loads an artifact file that the driver wrote for it,
with the memory images of its own chips only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import ray

from cluster.clock import Progress, VirtualClock
from cluster.errors import RunError, one_line
from cluster.mapping import SharedMapping
from cluster.node import ChipGroup, GroupPlan, GroupResult, LaunchPart
from programs.artifact import load
from programs.runner import Generation

T = TypeVar("T")

#: One thread per chip process; more would only fight over the cores.
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def _in_one_line(work: Callable[[], T]) -> T:
    try:
        return work()
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"{type(error).__name__}: {one_line(error)}") from None


class ClockActor:
    """``VirtualClock`` as an actor."""

    def __init__(self, groups: int) -> None:
        self._clock = VirtualClock(groups)

    def report(self, group: int, cycle: int, tokens: list[int]) -> None:
        """See ``VirtualClock.report``."""
        self._clock.report(group, cycle, tokens)

    def progress(self) -> Progress:
        """See ``VirtualClock.progress``."""
        return self._clock.progress()


class ChipActor:
    """A ``ChipGroup`` as an actor.

    Errors leave it as ``RunError`` with one line, so that the driver needs no class of an
    actor's own failure to read it.
    """

    def __init__(self, plan: GroupPlan, clock: Any) -> None:
        try:
            artifact = load(plan.artifact)
            mapping = SharedMapping.attach(plan.mapping, plan.layout, plan.token)
            self._group = ChipGroup(
                artifact, plan.chips, plan.group, mapping, plan.model, self._report
            )
        except Exception as error:
            self._failure: str | None = one_line(error)
        else:
            self._failure = None
        self._clock = clock

    def ready(self) -> str | None:
        """What kept the actor from starting; None when it is ready."""
        return self._failure

    def process(self) -> int:
        """The process id, for tests and for people who look at their machine."""
        return os.getpid()

    def generate(self, job: Generation) -> GroupResult:
        """Run the whole generation."""
        return _in_one_line(lambda: self._group.generate(job))

    def launch(self, entry: str, sync: str) -> LaunchPart:
        """Run one entry point once."""
        return _in_one_line(lambda: self._group.launch(entry, sync))

    def _report(self, group: int, cycle: int, tokens: list[int]) -> None:
        # Fire and forget: the reference is dropped, nobody waits for the clock.
        self._clock.report.remote(group, cycle, tokens)


def start_clock(groups: int, placement: Any) -> Any:
    """A clock actor on the driver's host."""
    remote: Any = ray.remote(num_cpus=0, max_restarts=0)(ClockActor)
    return remote.options(scheduling_strategy=placement).remote(groups)


def start_chips(plan: GroupPlan, clock: Any, placement: Any) -> Any:
    """An actor for one group on the driver's host."""
    remote: Any = ray.remote(num_cpus=0, max_restarts=0)(ChipActor)
    options = remote.options(
        scheduling_strategy=placement, runtime_env={"env_vars": THREADS}, max_task_retries=0
    )
    return options.remote(plan, clock)
