"""Who runs a step: by rule, by a policy that learns from latencies, or by a user's own function.

A router sees a plain dict: kind, request, step, prompt_characters, max_new_tokens, and in_flight
(steps now at each pool).  It answers "lpu" or "gpu".  A desk stands before it: it takes the JSON
message of a step, refuses what is none, and makes the dict.
"""

from __future__ import annotations

import importlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from cluster.errors import InputError, one_line
from cluster.experiments.agentic.graph import LIGHT
from cluster.experiments.agentic.messages import Inbox

LPU, GPU = "lpu", "gpu"
POOLS = (LPU, GPU)
View = dict[str, Any]


class Router(Protocol):
    """Chooses a pool for each step, and hears how long the step took."""

    def choose(self, view: View) -> str:
        """One of `POOLS`."""

    def observe(self, view: View, pool: str, seconds: float) -> None:
        """The step of ``view`` came back from ``pool`` after ``seconds``."""


class Rule:
    """Light kinds to the LPUs, heavy ones to the GPUs."""

    def choose(self, view: View) -> str:
        """See ``Router``."""
        return LPU if view["kind"] in LIGHT else GPU

    def observe(self, view: View, pool: str, seconds: float) -> None:
        """Nothing to learn."""


class Always:
    """Everything to one pool."""

    def __init__(self, pool: str) -> None:
        self._pool = pool

    def choose(self, view: View) -> str:
        """See ``Router``."""
        return self._pool

    def observe(self, view: View, pool: str, seconds: float) -> None:
        """Nothing to learn."""


class Learned:
    """The pool with the least mean latency so far for the kind of step.

    Tries each pool ``TRIES`` times per kind first, and later one step in ``1 / EXPLORE`` at random
    (seeded).
    """

    TRIES = 2
    EXPLORE = 0.05

    def __init__(self, seed: int) -> None:
        self._random = np.random.Generator(np.random.Philox(key=np.array([seed, 3], np.uint64)))
        self._sums: dict[tuple[str, str], tuple[int, float]] = {}
        self._sent: dict[tuple[str, str], int] = {}

    def choose(self, view: View) -> str:
        """See ``Router``."""
        kind = view["kind"]
        sent = {pool: self._sent.get((kind, pool), 0) for pool in POOLS}
        least = min(POOLS, key=lambda pool: sent[pool])
        explore, which = self._random.random(2)
        if sent[least] < self.TRIES:
            pool = least
        elif explore < self.EXPLORE:
            pool = POOLS[int(which * len(POOLS))]
        else:
            pool = min(POOLS, key=lambda name: self._mean(kind, name))
        self._sent[kind, pool] = sent[pool] + 1
        return pool

    def observe(self, view: View, pool: str, seconds: float) -> None:
        """Take the latency into the mean of its kind and pool."""
        count, total = self._sums.get((view["kind"], pool), (0, 0.0))
        self._sums[view["kind"], pool] = (count + 1, total + seconds)

    def _mean(self, kind: str, pool: str) -> float:
        count, total = self._sums.get((kind, pool), (0, 0.0))
        return total / count if count else 0.0


class Custom:
    """A user's function from a view to a pool.

    directory: where its module is looked for, besides Python's path; None is the working directory.
    """

    def __init__(self, name: str, directory: str | None = None) -> None:
        self._name = name
        self._call = _load(name, directory)

    def choose(self, view: View) -> str:
        """See ``Router``; whatever the function does wrong is an InputError."""
        try:
            pool = self._call(dict(view))
        except (Exception, SystemExit) as error:
            raise InputError(
                f"--router {self._name}: the function failed with {type(error).__name__}: "
                f"{one_line(error)[:120]}"
            ) from None
        if not isinstance(pool, str) or pool not in POOLS:
            raise InputError(f"--router {self._name}: it returned {pool!r:.40}; use lpu or gpu")
        return pool

    def observe(self, view: View, pool: str, seconds: float) -> None:
        """The function is not told."""


def _load(name: str, directory: str | None) -> Callable[[View], object]:
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"--router {name}: use rule, learned or module:function")
    here = directory or os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"--router {name}: cannot be imported: {one_line(error)[:160]}; name a function of a "
            "module in this directory or on the path"
        ) from None
    finally:
        if added:
            sys.path.remove(here)
    if not callable(found):
        raise InputError(f"--router {name}: is no function")
    call: Callable[[View], object] = found
    return call


def make_router(name: str, seed: int, directory: str | None = None) -> Router:
    """``rule``, ``learned``, or ``module:function``; directory: see ``Custom``."""
    if name == "rule":
        return Rule()
    return Learned(seed) if name == "learned" else Custom(name, directory)


class Desk(ABC):
    """Where step messages are handed in to be routed."""

    @abstractmethod
    def route(self, raw: bytes, in_flight: dict[str, int]) -> tuple[View, str] | None:
        """What the router saw of the message ``raw``, and its pool; None if it asks no model."""

    @abstractmethod
    def observe(self, view: View, pool: str, seconds: float) -> None:
        """See ``Router``."""

    @abstractmethod
    def counts(self) -> dict[str, Any]:
        """Messages accepted and rejected so far, and why."""


class LocalDesk(Desk):
    """A desk before ``router`` in this process.  No message makes it fail."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._inbox = Inbox()

    def route(self, raw: bytes, in_flight: dict[str, int]) -> tuple[View, str] | None:
        """See ``Desk``; raises InputError where a user's own function fails."""
        message = self._inbox.receive(raw, for_models=True)
        if message is None:
            return None
        view: View = {
            "kind": message.kind,
            "request": message.request,
            "step": message.step,
            "prompt_characters": len(message.prompt or ""),
            "max_new_tokens": message.max_new_tokens,
            "in_flight": dict(in_flight),
        }
        return view, self._router.choose(view)

    def observe(self, view: View, pool: str, seconds: float) -> None:
        """See ``Router``."""
        self._router.observe(view, pool, seconds)

    def counts(self) -> dict[str, Any]:
        """See ``Desk``."""
        return self._inbox.counts()
