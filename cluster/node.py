"""``ChipGroup``: the chips of one process, in step with those of the run's other processes.

A plain class: no Ray, no sockets.  One call runs a whole generation.  What chips of different
processes say to each other goes through the shared mapping: vectors through rings, logits through
mailboxes, barrier marks through counters.  Every process reads all logits and picks the next token
itself, so nobody waits for a coordinator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, TypeVar

from chip.engine import Chip
from chip.isa import LANES
from chip.ring import Rings, ring_vectors
from cluster.chip_outputs import describe_outputs
from cluster.errors import RunError
from cluster.mapping import Layout, SharedMapping
from cluster.waiting import Wait
from programs.artifact import Artifact
from programs.host import Host
from programs.partition import PartitionedModel
from programs.runner import Generation, Logits, Runner, RunResult

T = TypeVar("T")

#: At most one progress report in this time, besides those of the first token and the last.
REPORT_SECONDS = 0.1
#: Chips' clocks are noted no more often than this for each chip of the process, and only for
#: somebody who watches.
NOTE_SECONDS = 0.001


class AbandonedError(RunError):
    """Another process of the run failed; its own error says why."""


class Report(Protocol):
    """Where a group tells its progress: group, virtual cycle, the tokens not told yet."""

    def __call__(self, group: int, cycle: int, tokens: list[int]) -> None: ...


def layout_of(artifact: Artifact, processes: int) -> Layout:
    """The shared memory that a run of ``artifact`` in ``processes`` processes needs."""
    logits = artifact.bindings.get("outputs", {}).get("logits", [])
    return Layout(
        processes=processes,
        chips=artifact.chips,
        values=LANES * max((words for _, _, words in logits), default=0),
        rings=2 * len(artifact.cables),
        capacity=ring_vectors(artifact.spec),
    )


def split_chips(chips: int, per_group: int) -> list[range]:
    """Consecutive chips in groups of ``per_group``, the last one perhaps smaller."""
    return [range(first, min(first + per_group, chips)) for first in range(0, chips, per_group)]


class MappedPeers:
    """The run's other processes, met in the shared mapping."""

    def __init__(self, group: int, mapping: SharedMapping, report: Report | None) -> None:
        self.group = group
        self.mapping = mapping
        self._report = report
        self._wait = Wait(mapping.layout.processes)
        self._told = 0
        self._told_at = 0.0
        self.launch_times: list[float] = []
        self._chips: Sequence[Chip] = ()
        self._host: Host | None = None
        self._watched = False
        self._reached = 0
        self._note_at = 0.0

    def begin(self, chips: Sequence[Chip], host: Host | None) -> None:
        """``chips`` of this process start a run, their clocks at 0."""
        self.launch_times.clear()
        self._chips, self._host = chips, host
        self._watched, self._reached, self._note_at = self.mapping.watched, 0, 0.0

    def progressed(self) -> None:
        """The next wait starts with spinning."""
        self._wait.reset()
        if self._watched:
            self._note_clocks()

    def idle(self, chips: Sequence[Chip], rings: Rings) -> None:
        """Wait a moment for vectors of another process."""
        if self._watched:
            self._note_clocks()
        self._pause()

    def gate(self, mark: int) -> None:
        """Wait until every process has reached ``mark``."""
        if self._watched:
            self._note_clocks()
        self.mapping.arrive(self.group, mark)
        self._until(lambda: self.mapping.everyone_reached(mark) or None)

    def exchange(self, sequence: int, own: dict[int, Logits]) -> list[Logits]:
        """Post the own chips' logits, then read everybody's."""
        for chip, values in own.items():
            self.mapping.post(chip, sequence, values)
        chips = range(self.mapping.layout.chips)
        return [own[chip] if chip in own else self._read(chip, sequence) for chip in chips]

    def _read(self, chip: int, sequence: int) -> Logits:
        return self._until(lambda: self.mapping.peek(chip, sequence))

    def report(self, cycle: int, tokens: Sequence[int]) -> None:
        """Note when a launch ended; tell progress, not more often than is useful."""
        now = perf_counter()
        self.launch_times.append(now)
        if self._watched:
            self._reached = cycle
            self._note_at = 0.0
            self.mapping.note_transfers(self.group, self._io_seconds())
            for chip in self._chips:
                self.mapping.note_clock(chip.chip_id, cycle)
                self.mapping.note_launches(chip.chip_id, len(self.launch_times))
        first = self._told == 0 and len(tokens) > 0
        if first or now - self._told_at >= REPORT_SECONDS:
            self.flush(cycle, tokens)

    def flush(self, cycle: int, tokens: Sequence[int]) -> None:
        """Tell everything not told yet."""
        if self._report is not None:
            self._report(self.group, cycle, list(tokens[self._told :]))
            self._told = len(tokens)
            self._told_at = perf_counter()

    def _note_clocks(self) -> None:
        """Where the own chips are inside the current launch, not more often than is useful."""
        now = perf_counter()
        if now >= self._note_at:
            self._note_at = now + NOTE_SECONDS * len(self._chips)
            for chip in self._chips:
                self.mapping.note_clock(chip.chip_id, self._reached + chip.clock)

    def _io_seconds(self) -> float:
        return 0.0 if self._host is None else self._host.virtual_io_seconds

    def _until(self, ready: Callable[[], T | None]) -> T:
        self._wait.reset()
        while (value := ready()) is None:
            self._pause()
        return value

    def _pause(self) -> None:
        if self._wait.pause() and self.mapping.abandoned:
            raise AbandonedError("the run was given up: another process failed")


@dataclass(frozen=True)
class GroupPlan:
    """Everything a process needs to find its part of a run; small enough to send.

    artifact: a file with the memory images of the group's own chips.
    """

    artifact: Path
    chips: tuple[int, ...]
    group: int
    mapping: Path
    layout: Layout
    token: bytes
    model: PartitionedModel | None = None


@dataclass(frozen=True)
class GroupResult:
    """What a group hands back; launch_seconds: wall time from each launch's end to the next's."""

    run: RunResult
    launch_seconds: list[float]


@dataclass(frozen=True)
class LaunchPart:
    """One launch of a group: per chip its retire cycle, digest sums, and outputs in words."""

    retired: dict[int, int]
    sums: dict[int, tuple[int, int]]
    outputs: list[dict[str, Any]]
    wall_seconds: float


class ChipGroup:
    """Chips ``numbers`` of an artifact in this process, as group ``group`` of the run."""

    def __init__(
        self,
        artifact: Artifact,
        numbers: Sequence[int],
        group: int,
        mapping: SharedMapping,
        model: PartitionedModel | None = None,
        report: Report | None = None,
        threads: int = 1,
    ) -> None:
        """``model``: as for ``Host``, the partitioned model if it is not in a directory.

        threads: as for ``Runner``.  An artifact of no model has no host side: its entry points
        can be launched, no more.
        """
        self.mapping = mapping
        self.peers = MappedPeers(group, mapping, report)
        self._host = Host(artifact, model) if artifact.model.get("checkpoint") or model else None
        self.runner = Runner(artifact, numbers, mapping.rings(), self.peers, self._host, threads)

    def generate(self, job: Generation) -> GroupResult:
        """Run the whole generation; every group of the run returns the same tokens."""
        self.peers.begin(self.chips, self._host)
        try:
            result = self.runner.generate(job)
        except BaseException:
            self.mapping.abandon()
            raise
        launches = zip(*result.retired.values(), strict=True)
        self.peers.flush(sum(max(cycles) for cycles in launches), result.tokens)
        times = self.peers.launch_times
        return GroupResult(result, [b - a for a, b in pairwise(times)])

    def launch(self, entry: str, sync: str) -> LaunchPart:
        """Run ``entry`` once, with memory as it is."""
        began = perf_counter()
        self.peers.begin(self.chips, None)
        try:
            retired = self.runner.launch(entry, 0, sync)
            self.peers.report(max(retired.values()), ())
        except BaseException:
            self.mapping.abandon()
            raise
        return LaunchPart(
            retired=retired,
            sums={c.chip_id: (int(c.digest_sums[0]), int(c.digest_sums[1])) for c in self.chips},
            outputs=[describe_outputs(self.runner.artifact, chip) for chip in self.chips],
            wall_seconds=perf_counter() - began,
        )

    @property
    def chips(self) -> list[Chip]:
        """The group's chips."""
        return self.runner.chips
