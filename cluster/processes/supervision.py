"""Keeping the actors of a run alive: who died is replaced, and all go on from one snapshot.

A run proceeds in *epochs*.  An epoch has shared memory of its own, so rings, mailboxes and marks
begin empty, and a ticket that admits to it.  When an actor dies the epoch is given up: the
survivors stop, the dead one's process is ended for certain, another actor takes its plan, and a
new epoch begins at the latest launch of which every group has a snapshot.  Replaying gives the
same bits, since nothing a chip does depends on anything but its memory and its program.

Ray starts and ends processes and tells who died; it keeps no state of ours.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any

from cluster.errors import RunError, one_line
from cluster.processes.group import GroupPlan, Ticket
from cluster.processes.mapping import MappingLayout, SharedMapping
from cluster.processes.snapshots import forget_before, launches

#: A run that recovers so often without a newer snapshot has a fault that returns.
MOST_FRUITLESS = 10
#: Strangers' vectors and attachments after which a run is given up.
MOST_REFUSED = 100
#: A survivor looks whether its epoch was given up every few milliseconds; one that does not come
#: back in this time hangs, and is replaced like a dead one.
STOP_SECONDS = 60.0
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Recovery:
    """groups: whose actors were replaced; launch: where all went on; seconds: wall time from the
    moment the loss was noticed until every actor was ready again."""

    groups: tuple[int, ...]
    launch: int
    seconds: float


def actors_text(actors: int, chips: int) -> str:
    """So many actors, and how many of the chips each has."""
    if actors == 1:
        return "1 actor"
    each = -(-chips // actors)
    most = "" if actors * each == chips else "up to "
    return f"{actors} actors of {most}{each} {'chip' if each == 1 else 'chips'} each"


class Supervisor:
    """The clock and one actor per plan, within ``with``; ``run`` gets work done by all of them."""

    def __init__(
        self,
        plans: Sequence[GroupPlan],
        layout: MappingLayout,
        where: Any,
        phase: Callable[[str], None] = lambda _: None,
    ) -> None:
        """where: the placement of actors; phase: told what goes on."""
        from cluster.processes.clock import start_clock

        self._plans = list(plans)
        self._layout = layout
        self._where = where
        self._phase = phase
        self.mapping: SharedMapping | None = None
        self._left: SharedMapping | None = None
        self._refused_before = (0, 0)
        self._changing = threading.Lock()  # who watches asks from another thread
        self.clock = start_clock(len(plans), where)
        self.actors: list[Any] = [None] * len(plans)
        self.processes = [0] * len(plans)
        self._handles: list[int | None] = [None] * len(plans)
        self.recoveries: list[Recovery] = []
        self.image_bytes: dict[int, int] = {}  # by chip
        self._run = 0
        self._whole = False  # all groups ended the run before: they agree on what chips were fed

    def __enter__(self) -> Supervisor:
        try:
            self._phase(f"starting {actors_text(len(self._plans), self._layout.chips)}")
            self._recover(list(range(len(self._plans))), "")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        import ray

        self._leave_epoch()
        for actor in [*self.actors, self.clock]:
            with contextlib.suppress(Exception):
                ray.kill(actor)
        for group in range(len(self._plans)):
            self._close(group)

    @property
    def refused(self) -> tuple[int, int]:
        """Attachments and vectors of strangers that were refused, over all epochs."""
        with self._changing:
            before = self._refused_until(self._left)
            here = (0, 0) if self.mapping is None else self.mapping.refused
        return before[0] + here[0], before[1] + here[1]

    def _refused_until(self, epoch: SharedMapping | None) -> tuple[int, int]:
        attachments, vectors = (0, 0) if epoch is None else epoch.refused
        return self._refused_before[0] + attachments, self._refused_before[1] + vectors

    def run(
        self,
        method: str,
        *arguments: object,
        poll: Callable[[], None] = lambda: None,
        keep: bool = False,
    ) -> list[Any]:
        """``method(*arguments)`` of every actor, however many die meanwhile; results by group.

        Each run begins with chips as before the first launch; with ``keep`` as the run before left
        them, unless it failed or a process was lost since.  poll: called while waiting, some times
        a second.  Raises RunError for a failure that is not a lost process, and when losses return
        without end.
        """
        self.recoveries = []
        self._run += 1
        keep, self._whole = keep and self._whole, False
        if self._run > 1:
            for plan in self._plans:
                forget_before(plan.snapshots, plan.group, sys.maxsize)
            lost, cause = self._enter_epoch(0, keep)
            self._recover(lost, cause)
        while True:
            calls = [getattr(actor, method).remote(*arguments) for actor in self.actors]
            before = self.refused
            results, lost, cause = self._await(calls, poll)
            if not lost and not any(result is None for result in results):
                self._whole = True
                return results
            self._leave_epoch()
            if not lost and self.refused == before:
                raise RunError("the run was given up, though no process was lost")
            if not lost:
                cause = "someone else writes into the run's memory"
                if sum(self.refused) > MOST_REFUSED:
                    raise RunError(f"refused again and again ({sum(self.refused)} times): {cause}")
                lost, cause = self._enter_epoch(self._common_launch())
            self._recover(lost, cause)

    def progress(self) -> Any:
        """What the clock knows of the current run: a reference to a ``RunProgress``."""
        return self.clock.progress.remote(self._run)

    def _await(
        self, calls: list[Any], poll: Callable[[], None]
    ) -> tuple[list[Any], list[int], str]:
        """Results by group, the groups lost, and why; all calls have ended then."""
        import ray

        results: list[Any] = [None] * len(calls)
        failures: list[str] = []
        lost: list[int] = []
        cause, deadline = "", 0.0
        waiting = list(calls)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=POLL_SECONDS)
            for call in done:
                group = calls.index(call)
                try:
                    results[group] = ray.get(call)
                except ray.exceptions.RayTaskError as error:
                    failures.append(one_line(error.cause))
                except ray.exceptions.RayError as error:
                    lost.append(group)
                    cause = one_line(error)[:300]
            if (lost or failures) and not deadline:
                deadline = perf_counter() + STOP_SECONDS
                self._leave_epoch()
            if waiting and deadline and perf_counter() > deadline:
                lost += [calls.index(call) for call in waiting]
                break
            poll()
        if failures:
            raise RunError(failures[0])
        return results, sorted(set(lost)), cause

    def _recover(self, lost: list[int], cause: str) -> None:
        """Replace the actors of ``lost`` and bring all into a new epoch."""
        began = perf_counter()
        replaced: set[int] = set()
        while lost:
            self._leave_epoch()
            fruitless = self.recoveries[-MOST_FRUITLESS:]
            if len(fruitless) == MOST_FRUITLESS and fruitless[0].launch == self._common_launch():
                raise RunError(
                    f"an actor died again and again ({MOST_FRUITLESS} times since launch "
                    f"{fruitless[0].launch}): {cause}"
                )
            replaced.update(lost)
            for group in lost:
                self._replace(group)
            launch = self._common_launch()
            lost, cause = self._enter_epoch(launch)
            if self._run or lost:
                again = tuple(sorted(replaced))
                self.recoveries.append(Recovery(again, launch, perf_counter() - began))

    def _replace(self, group: int) -> None:
        """End what is left of a group's actor and start another."""
        import ray

        from cluster.processes.actors import start_chips

        if self.actors[group] is not None:
            with contextlib.suppress(Exception):
                ray.kill(self.actors[group])
            self._end_process(group)
        self.actors[group] = start_chips(self._plans[group], self.clock, self._where)

    def _end_process(self, group: int) -> None:
        """Return when the actor's process is gone: whom Ray calls dead might still be writing."""
        handle = self._handles[group]
        if handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], STOP_SECONDS)
        self._close(group)

    def _close(self, group: int) -> None:
        handle = self._handles[group]
        if handle is not None:
            os.close(handle)
        self._handles[group] = None

    def _common_launch(self) -> int:
        """The latest launch of which every group has a snapshot; 0 when there is none."""
        kept = [launches(plan.snapshots, plan.group) for plan in self._plans]
        return max(set.intersection(*kept), default=0)

    def _leave_epoch(self) -> None:
        if self.mapping is not None:
            self.mapping.abandon()
            self.mapping.unlink()
            # Processes that are about to stop may count more, so it is read when the next is left.
            with self._changing:
                self._refused_before = self._refused_until(self._left)
                self._left, self.mapping = self.mapping, None

    def _enter_epoch(self, launch: int, keep: bool = False) -> tuple[list[int], str]:
        """A new epoch for all actors; the groups lost on the way, and why."""
        import ray

        self._leave_epoch()
        mapping = SharedMapping.create(self._layout)
        if self._left is not None and self._left.watched:
            mapping.watch()
        self.mapping = mapping
        assert mapping.path is not None
        # The epoch that actors start in is already that of their first run: its reports count.
        run = max(self._run, 1)
        ticket = Ticket(mapping.path, mapping.layout, mapping.token, run, launch, keep)
        calls = [actor.ready.remote(ticket) for actor in self.actors]
        lost, cause = [], ""
        for group, call in enumerate(calls):
            try:
                state = ray.get(call)
            except ray.exceptions.RayTaskError as error:
                raise RunError(f"an actor did not start: {one_line(error.cause)}") from None
            except ray.exceptions.RayError as error:
                lost.append(group)
                cause = one_line(error)[:300]
                continue
            if state.failure is not None:
                raise RunError(f"an actor did not start: {state.failure}")
            self.image_bytes |= state.image_bytes
            if self._handles[group] is None:
                self.processes[group] = state.process
                with contextlib.suppress(OSError):  # gone already: the next call will say so
                    self._handles[group] = os.pidfd_open(state.process)
        return lost, cause
