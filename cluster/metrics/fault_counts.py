"""What befell the launches that are done on the modelled machine, worked out beside the run.

Faults follow from (plan, launch, attempt) alone, so the driver counts them without asking a chip.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from programs.artifact import Artifact
from programs.faults import FaultSetting, ModelledFaults


class FaultCounts:
    """totals: counts by ``programs.faults.modelled.COUNTS``; by_ring int64 [directed links, 2]:
    packets corrected and not; cable i has rings 2i and 2i + 1."""

    def __init__(self, setting: FaultSetting, artifact: Artifact) -> None:
        self._faults = ModelledFaults(setting, artifact)
        self._cycles_of = artifact.predicted_cycles
        self._launches = self._cycles = 0
        self.totals = ModelledFaults.new_counts()
        self.by_ring: NDArray[np.int64] = np.zeros((2 * len(artifact.cables), 2), np.int64)

    def go_on(self, entries: list[str]) -> None:
        """Count up to the end of the launches ``entries``, all from the first."""
        for entry in entries[self._launches :]:
            self._faults.launch(
                [],
                self._launches,
                entry,
                self.totals,
                dict,
                lambda _: np.zeros(0, np.int64),
                lambda: self._cycles,
                self.by_ring,
            )
            self._cycles += self._cycles_of[entry]
            self._launches += 1
