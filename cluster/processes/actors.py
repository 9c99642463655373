"""Ray actors of chips: a shell around a ``ChipGroup``.

Ray places, starts and ends the processes; vectors and logits go through the shared mapping.  One
actor call covers a whole generation.  An actor loads an artifact file that the driver wrote for it,
with the memory images of its own chips only, or makes these from its slices of the checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import ray

from chip.engine import use_interpreter
from cluster.errors import RunError, one_line
from cluster.processes.group import (
    AbandonedError,
    ChipGroup,
    GroupPlan,
    GroupResult,
    LaunchPart,
    Ticket,
)
from cluster.processes.mapping import SharedMapping
from programs.artifact import load
from programs.running import Generation

T = TypeVar("T")


def _in_one_line(work: Callable[[], T]) -> T:
    try:
        return work()
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"{type(error).__name__}: {one_line(error)}") from None


@dataclass(frozen=True)
class Readiness:
    """An actor's process id, what kept it from getting ready if anything did, and the bytes of its
    chips' memory images."""

    process: int
    failure: str | None
    image_bytes: dict[int, int]


class ChipActor:
    """A ``ChipGroup`` as an actor.

    Errors leave it as ``RunError`` with one line, so that the driver needs no class of an
    actor's own failure to read it.  An epoch that was given up is no error: None comes back.
    """

    def __init__(self, plan: GroupPlan, clock: Any) -> None:
        self._plan = plan
        self._clock = clock
        self._group: ChipGroup | None = None
        self._launch = self._run = 0
        try:
            if plan.interpreter is not None:
                use_interpreter(plan.interpreter)
            self._artifact = load(plan.artifact)
            if plan.images is not None:
                self._artifact.memory = plan.images.of(plan.chips)
        except Exception as error:
            self._failure: str | None = one_line(error)
        else:
            self._failure = None

    def ready(self, ticket: Ticket) -> Readiness:
        """Enter the epoch of ``ticket``, with chips as before the first launch.

        With ``keep`` in it the chips are as they are.
        """
        failure = self._failure
        if failure is None:
            try:
                self._enter(ticket)
            except Exception as error:
                failure = one_line(error)
        group = self._group
        return Readiness(os.getpid(), failure, {} if group is None else group.runner.image_bytes)

    def _enter(self, ticket: Ticket) -> None:
        plan = self._plan
        mapping = SharedMapping.attach(ticket.mapping, ticket.layout, ticket.token)
        self._launch, self._run = ticket.launch, ticket.run
        if self._group is None:
            model = plan.model
            if model is None and plan.images is not None:
                model = plan.images.model  # whose checkpoint has been opened already
            self._group = ChipGroup(
                self._artifact,
                plan.chips,
                plan.group,
                mapping,
                model,
                self._report,
                faults=plan.faults,
            )
            self._group.runner.stored = plan.linked.read
        else:
            self._group.enter(mapping, ticket.keep)

    def _in_epoch(self, work: Callable[[ChipGroup], T]) -> T | None:
        group = self._group
        if group is None:
            raise RunError("the actor was told to work before it was ready")
        try:
            return _in_one_line(lambda: work(group))
        except AbandonedError:
            return None

    def process(self) -> int:
        """The process id, for tests and for people who look at their machine."""
        return os.getpid()

    def generate(self, job: Generation) -> GroupResult | None:
        """Run the whole generation, from the ticket's launch on."""
        return self._in_epoch(lambda group: group.generate(job, self._plan, self._launch))

    def launch(self, entry: str, sync: str) -> LaunchPart | None:
        """Run one entry point once."""
        return self._in_epoch(lambda group: group.launch(entry, sync))

    def _report(self, group: int, cycle: int, tokens: list[int]) -> None:
        # Fire and forget: the reference is dropped, nobody waits for the clock.
        self._clock.report.remote(self._run, group, cycle, tokens)


@cache
def _remote() -> Any:
    """The class as Ray has it, made once: Ray disassembles it to tell it from others."""
    return ray.remote(num_cpus=0, max_restarts=0)(ChipActor)


def start_chips(plan: GroupPlan, clock: Any, placement: Any) -> Any:
    """An actor for one group on the driver's host.

    Ray does not start it again when it dies: ``cluster.processes.supervision`` starts another,
    which works for an actor that was ended on purpose as well.
    """
    # Without an environment of its own it takes one of the processes that Ray has started already.
    options = _remote().options(scheduling_strategy=placement, max_task_retries=0)
    return options.remote(plan, clock)
