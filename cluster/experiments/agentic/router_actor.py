"""The router of agents' steps as a Ray actor.

The actor is the very desk that works in process, so its decisions are too: the same messages in the
same order give the same pools.  It takes the JSON of a step, refuses and counts what is none, and
never fails over a message; a user's function that fails is an error of one line here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from cluster.errors import InputError, RunError, one_line
from cluster.experiments.agentic.routing import Desk, LocalDesk, View, make_router
from cluster.processes import open_ray

PLACE = "actor"
#: Losses after which a desk is given up: something ends it again and again.
MOST_LOST = 3


def split_name(name: str) -> tuple[str, bool]:
    """The router that ``--router`` names, and whether it is to be an actor.

    ``actor`` is the rule in an actor; ``actor/NAME`` is NAME in one.
    """
    place, slash, policy = name.partition("/")
    if place != PLACE:
        return name, False
    return (policy if slash else "rule"), True


class RouterActor:
    """A desk with its router in a process of its own; directory: see ``Custom``."""

    def __init__(self, name: str, seed: int, directory: str) -> None:
        self._desk = LocalDesk(make_router(name, seed, directory))

    def route(self, raw: bytes, in_flight: dict[str, int]) -> tuple[View, str] | None:
        """See ``Desk``."""
        return self._desk.route(raw, in_flight)

    def observe(self, view: View, pool: str, seconds: float) -> None:
        """See ``Router``."""
        self._desk.observe(view, pool, seconds)

    def counts(self) -> dict[str, Any]:
        """See ``Desk``."""
        return self._desk.counts()


class ActorDesk(Desk):
    """The desk in a Ray actor, seen from here.

    An actor takes one caller's calls in their order, so ``observe`` need not wait.  A desk is what
    its messages made of it: when its process is lost, another hears the same ones again and goes
    on with the same decisions.  ``lost`` counts that.
    """

    def __init__(self, start: Callable[[], Any]) -> None:
        """start: starts a new desk's actor."""
        self._start = start
        self.actor = start()
        self.lost = 0
        self._heard: list[tuple[str, tuple[object, ...]]] = []

    def route(self, raw: bytes, in_flight: dict[str, int]) -> tuple[View, str] | None:
        """See ``Desk``."""
        answer: tuple[View, str] | None = self._call("route", raw, dict(in_flight))
        self._heard.append(("route", (raw, dict(in_flight))))
        return answer

    def observe(self, view: View, pool: str, seconds: float) -> None:
        """See ``Router``."""
        self._heard.append(("observe", (view, pool, seconds)))
        self.actor.observe.remote(view, pool, seconds)

    def counts(self) -> dict[str, Any]:
        """See ``Desk``."""
        found: dict[str, Any] = self._call("counts")
        return found

    def _call(self, method: str, *arguments: object) -> Any:
        import ray

        try:
            while True:
                try:
                    return ray.get(getattr(self.actor, method).remote(*arguments))
                except ray.exceptions.RayActorError as error:
                    if self.lost == MOST_LOST:
                        raise RunError(
                            f"the router's actor is lost again and again: {one_line(error)[:200]}"
                        ) from None
                    self.lost += 1
                    self.actor = self._start()
                    for name, given in self._heard:
                        getattr(self.actor, name).remote(*given)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(one_line(error.cause)) from None
            raise RunError(f"the router's actor failed: {one_line(error.cause)}") from None


@contextlib.contextmanager
def actor_desk(name: str, seed: int, address: str | None = None) -> Iterator[ActorDesk]:
    """A desk before router ``name`` in a Ray actor; the actor is gone afterwards.

    name: as for ``make_router``; a module is looked for in the working directory, as in process.
    address: as for ``open_ray``.
    """
    import ray

    here = os.getcwd()
    with open_ray(address, 1) as where:
        remote: Any = ray.remote(num_cpus=0, max_restarts=0)(RouterActor)
        options = remote.options(scheduling_strategy=where, max_task_retries=0)
        desk = ActorDesk(lambda: options.remote(name, seed, here))
        try:
            yield desk
        finally:
            with contextlib.suppress(Exception):
                ray.kill(desk.actor)
