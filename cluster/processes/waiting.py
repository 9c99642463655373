"""How a process waits for its peers in wall time: spin briefly, give way, then sleep.

Waiting never touches the model: it decides when a chip continues, not what it computes.  Spinning
alone ruins a machine with fewer cores than processes, sleeping alone costs its latency at every
exchange, so the wait climbs through the three.

Barriers and logits are waited for like this, and vectors where ``chip.engine`` cannot sleep until
somebody wakes it.
"""

from __future__ import annotations

import os
import time

SPINS = 4
YIELDS = 4
#: Sleeps grow over the first thirty, both ends in proportion to the processes per core: a poll
#: costs some 20 us of a core, which is then taken from the very peers that are waited for.
FIRST_SLEEP_SECONDS = 30e-6
LONGEST_SLEEP_SECONDS = 100e-6
SLEEPS_TO_LONGEST = 30
#: A wait is long after this many pauses; callers then look whether the run was abandoned.
POLLS_PER_LOOK = 64


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Wait:
    """One climbing wait; ``pause`` after every fruitless poll, ``reset`` after progress."""

    def __init__(self, processes: int = 1) -> None:
        """``processes``: how many wait for each other on this machine's cores."""
        self.crowding = max(1.0, processes / cores())
        self.spins = SPINS if self.crowding == 1.0 else 0
        self.pauses = 0

    def reset(self) -> None:
        """Start again at the bottom."""
        self.pauses = 0

    def pause(self) -> bool:
        """Wait a moment; True now and then, when the caller should look for an abandoned run."""
        self.pauses += 1
        if self.pauses <= self.spins:
            return False
        if self.pauses <= self.spins + YIELDS:
            os.sched_yield()
        else:
            step = min((self.pauses - self.spins - YIELDS) / SLEEPS_TO_LONGEST, 1.0)
            span = LONGEST_SLEEP_SECONDS - FIRST_SLEEP_SECONDS
            time.sleep(self.crowding * (FIRST_SLEEP_SECONDS + span * step))
        return self.pauses % POLLS_PER_LOOK == 0
