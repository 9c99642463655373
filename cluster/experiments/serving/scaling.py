"""When a pool of GPU groups grows and shrinks: a rule without randomness, in virtual time.

At every instant at which something happens, after the servers have begun what they can:

1. While fewer than ``most`` groups are up (serving or starting) and more than ``queue`` requests
   per group that is up wait, one more group starts.  If none does and none is starting, one starts
   also when the request at the head of the queue has waited ``wait_s``.  The lowest numbers that
   are down start.
2. A group that has had nothing to do for ``idle_s``, while nobody waits, stops; the highest numbers
   first, and ``least`` groups stay up.

A group that starts takes its first request ``start_s`` later, and counts as a node from its start.
``wait_s`` and ``idle_s`` are instants at which something happens, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from cluster.errors import InputError
from cluster.experiments.serving.arrivals import MAX_SECONDS, PS

MAX_GROUPS = 1024


@dataclass(frozen=True)
class Scaling:
    """least, most: groups.  queue: waiting requests per group that is up.  The rest in seconds.

    wait_s: None for a pool that looks at the length of its queue only.
    """

    least: int
    most: int
    queue: int = 4
    wait_s: float | None = None
    idle_s: float = 1.0
    start_s: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most <= MAX_GROUPS:
            raise InputError(
                f"GPU groups {self.least} to {self.most}: use 1 or more, at most {MAX_GROUPS:,}, "
                "and no fewer at most than at least"
            )
        if not 1 <= self.queue <= 1_000_000:
            raise InputError(f"queue {self.queue} per GPU group: use 1 to 1,000,000 requests")
        for name in ("wait_s", "idle_s", "start_s"):
            value = getattr(self, name)
            if value is None:
                continue
            if not (math.isfinite(value) and 1 / PS <= value <= MAX_SECONDS):
                raise InputError(f"{name} {value}: use more than 0 and at most {MAX_SECONDS:,} s")

    @cached_property
    def idle_ps(self) -> int:
        """``idle_s`` in picoseconds."""
        return round(self.idle_s * PS)

    @cached_property
    def start_ps(self) -> int:
        """``start_s`` in picoseconds."""
        return round(self.start_s * PS)

    @cached_property
    def wait_ps(self) -> int | None:
        """``wait_s`` in picoseconds."""
        return None if self.wait_s is None else round(self.wait_s * PS)

    def more(self, up: int, starting: int, waiting: int, head_ps: int | None) -> int:
        """How many groups start now; head_ps: how long the head of the queue has waited, if any."""
        wanted = 0
        while up + wanted < self.most and waiting > self.queue * (up + wanted):
            wanted += 1
        patient = self.wait_ps is None or head_ps is None or head_ps < self.wait_ps
        if not wanted and not patient and not starting and up < self.most:
            wanted = 1
        return wanted


def node_ps(changes: list[tuple[int, int]], until_ps: int) -> int:
    """Node-picoseconds until ``until_ps``; changes: (instant, nodes from then on), ascending."""
    ends = [at for at, _ in changes[1:]] + [until_ps]
    return sum(
        nodes * max(min(end, until_ps) - at, 0)
        for (at, nodes), end in zip(changes, ends, strict=True)
    )
