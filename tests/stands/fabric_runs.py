"""Runs compiled collectives on the engine, in one process, and says what they should give."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from chip.engine import Chip
from chip.linking import LinkedProgram
from interconnect.collectives import FabricCollective
from programs.artifact import ENTRY_POINT, collective_artifact
from programs.artifact.collective import read_result
from programs.running import Alone, Runner, step_lookahead

PR_SET_THP_DISABLE = 41


@contextmanager
def small_pages() -> Iterator[None]:
    """Without huge pages: hundreds of chips touch a few words of many slices each."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    yield
    libc.prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0)


class Machine:
    """All chips of a collective, loaded; ``launch`` begins anew every time."""

    def __init__(self, collective: FabricCollective, data: np.ndarray) -> None:
        self.artifact = collective_artifact(collective, data)
        self.runner = Runner.alone(self.artifact)
        self.rings = self.runner.rings

    @property
    def chips(self) -> list[Chip]:
        return self.runner.chips

    def launch(self, sync: str = "lookahead") -> dict[int, int]:
        self.rings.clear()
        self.runner.peers = Alone()
        return self.runner.launch(ENTRY_POINT, 0, sync)

    def run(self, changed: dict[int, LinkedProgram]) -> None:
        """One launch in which some chips run other linked programs."""
        self.rings.clear()
        for chip in self.chips:
            own = changed.get(chip.chip_id)
            chip.begin(own or self.runner.linked(ENTRY_POINT, chip.chip_id), 0)
        step_lookahead(self.chips, self.rings, Alone())

    def result(self, chip: int, dtype: type) -> np.ndarray:
        return read_result(self.artifact, self.chips[chip], dtype)

    def results(self, dtype: type) -> list[np.ndarray]:
        return [self.result(chip, dtype) for chip in range(len(self.chips))]

    def digest(self) -> list[tuple[int, int]]:
        return [(int(c.digest_sums[0]), int(c.digest_sums[1])) for c in self.chips]


def values(rng: np.random.Generator, collective: FabricCollective, dtype: type) -> np.ndarray:
    """Full-range int32, or fp32 of very different sizes: [chips, source words, 320]."""
    shape = (collective.topology.chips, collective.source_words, 320)
    if dtype is np.int32:
        return rng.integers(-(2**31), 2**31, shape).astype(np.int32)
    return (rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 7, shape)).astype(np.float32)


def total(collective: FabricCollective, data: np.ndarray) -> np.ndarray:
    """Sums over chips in the fixed order: members of a node one after another, then nodes."""
    members = collective.topology.chips_per_node
    if members == 1:
        members = len(data)
    with np.errstate(over="ignore"):
        nodes = []
        for first in range(0, len(data), members):
            part = data[first].copy()
            for chip in range(first + 1, first + members):
                part = part + data[chip]
            nodes.append(part)
        whole = nodes[0]
        for part in nodes[1:]:
            whole = whole + part
    return whole


def expected(collective: FabricCollective, data: np.ndarray, root: int = 0) -> list[np.ndarray]:
    """What every chip's result must hold."""
    operation, chips = collective.operation, len(data)
    if operation == "all-reduce":
        return [total(collective, data)] * chips
    if operation == "reduce-scatter":
        return list(total(collective, data).reshape(chips, -1, 320))
    if operation == "all-gather":
        return [data.reshape(-1, 320)] * chips
    if operation == "broadcast":
        return [data[root]] * chips
    blocks = data.reshape(chips, chips, -1, 320)  # all-to-all: [from, to]
    return [blocks[:, chip].reshape(-1, 320) for chip in range(chips)]
