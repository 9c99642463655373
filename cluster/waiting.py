"""How a process waits for its peers in wall time: spin briefly, give way, then sleep.

Waiting never touches the model: it decides when a chip continues, not what it computes.  Spinning
alone ruins a machine with fewer cores than processes, sleeping alone costs its latency at every
exchange, so the wait climbs through the three.
"""

from __future__ import annotations

import os
import time

SPINS = 4
YIELDS = 4
FIRST_SLEEP_SECONDS = 30e-6
LONGEST_SLEEP_SECONDS = 400e-6
#: A wait is long after this many pauses; callers then look whether the run was abandoned.
POLLS_PER_LOOK = 64


class Wait:
    """One climbing wait; ``pause`` after every fruitless poll, ``reset`` after progress."""

    def __init__(self) -> None:
        self.pauses = 0

    def reset(self) -> None:
        """Start again at the bottom."""
        self.pauses = 0

    def pause(self) -> bool:
        """Wait a moment; True now and then, when the caller should look for an abandoned run."""
        self.pauses += 1
        if self.pauses <= SPINS:
            return False
        if self.pauses <= SPINS + YIELDS:
            os.sched_yield()
        else:
            step = min(self.pauses - SPINS - YIELDS, 30)
            time.sleep(
                FIRST_SLEEP_SECONDS + (LONGEST_SLEEP_SECONDS - FIRST_SLEEP_SECONDS) * step / 30
            )
        return self.pauses % POLLS_PER_LOOK == 0
