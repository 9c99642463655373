"""Real text for the steps of an agent: greedy, from compiled programs on LPUs or a GPU's forward.

A writer's text depends on its prompt only, so what has been written once is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.gpu import GpuModel
from programs.artifact import Artifact
from programs.models import Checkpoint
from programs.running import LpuSession

Ids = tuple[int, ...]


class Writer(Protocol):
    """Continues a prompt."""

    def write(self, prompt: Sequence[int], new_tokens: int) -> Ids:
        """``new_tokens`` token ids after ``prompt`` (one id or more)."""


def _greedy(logits: NDArray[np.float32]) -> int:
    return int(logits.argmax())


class LpuWriter:
    """A compiled decoder on emulated LPUs; cycles: exact, of each text by (prompt, new tokens)."""

    def __init__(self, artifact: Artifact) -> None:
        self._session = LpuSession(artifact)
        self._kept: dict[tuple[Ids, int], Ids] = {}
        self.cycles: dict[tuple[Ids, int], int] = {}

    def write(self, prompt: Sequence[int], new_tokens: int) -> Ids:
        """See ``Writer``; raises RunError if a chip retires at another cycle than predicted."""
        key = (tuple(prompt), new_tokens)
        if key not in self._kept:
            before = self._session.cycles
            written = [_greedy(self._session.read(list(prompt)))]
            while len(written) < new_tokens:
                position = len(prompt) + len(written) - 1
                written.append(_greedy(self._session.logits(written[-1], position)))
            self._kept[key] = tuple(written)
            self.cycles[key] = self._session.cycles - before
        return self._kept[key]


class GpuWriter:
    """The float32 forward pass of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model = GpuModel(checkpoint)
        self._kept: dict[tuple[Ids, int], Ids] = {}

    def write(self, prompt: Sequence[int], new_tokens: int) -> Ids:
        """See ``Writer``."""
        key = (tuple(prompt), new_tokens)
        if key not in self._kept:
            cache = self._model.new_cache()
            written = [_greedy(self._model.forward(prompt, cache)[-1])]
            while len(written) < new_tokens:
                written.append(_greedy(self._model.forward(written[-1:], cache)[-1]))
            self._kept[key] = tuple(written)
        return self._kept[key]
