"""``ChipGroup``: the chips of one process, in step with those of the run's other processes.

A plain class: no Ray, no sockets.  One call runs a whole generation.  What chips of different
processes say to each other goes through the shared mapping: vectors through rings, logits through
mailboxes, barrier marks through counters.  Every process reads all logits and picks the next token
itself, so nobody waits for a coordinator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from math import nan
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, TypeVar

from chip.engine import Chip, Rings, ring_vectors
from chip.faults import LockstepViolation
from chip.isa import LANES
from cluster.errors import RunError, one_line
from cluster.processes.conclusion import ChipsPart
from cluster.processes.linked_files import LinkedFiles
from cluster.processes.mapping import MappingLayout, SharedMapping
from cluster.processes.outputs import describe_outputs
from cluster.processes.snapshots import forget_before, restore, take
from cluster.processes.waiting import Wait
from programs.artifact import Artifact, Bindings
from programs.decoder import ChipImages, Host, PartitionedModel
from programs.faults import FaultSetting, ModelledFaults
from programs.running import Generation, Logits, Runner, RunResult

T = TypeVar("T")

#: At most one progress report of a process in this time, besides those of the first token and the
#: last.  The first process tells tokens to whoever reads the text: as often as the driver asks.
REPORT_SECONDS = 0.1
TOKEN_SECONDS = 0.04
#: Chips' clocks are noted no more often than this for each chip of the process, and only for
#: somebody who watches.
NOTE_SECONDS = 0.001
#: Waits for vectors that need not be told of: as many as come.
SLEEPS = 1 << 62
#: A mailbox whose checksum is wrong for so long is not being written: someone else wrote it.
FORGED_SECONDS = 2.0


class AbandonedError(RunError):
    """Another process of the run failed; its own error says why."""


class ProgressReport(Protocol):
    """Where a group tells its progress: group, virtual cycle, all tokens so far.

    All of them each time, so that a report lost, repeated or made again after a rollback is right.
    """

    def __call__(self, group: int, cycle: int, tokens: list[int]) -> None: ...


def layout_of(artifact: Artifact, processes: int) -> MappingLayout:
    """The shared memory that a run of ``artifact`` in ``processes`` processes needs."""
    logits = Bindings.of(artifact).outputs.get("logits", ())
    return MappingLayout(
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

    def __init__(self, group: int, mapping: SharedMapping, report: ProgressReport | None) -> None:
        self.group = group
        self.mapping = mapping
        self.told_to = report
        self._every = REPORT_SECONDS if group else TOKEN_SECONDS
        self._wait = Wait(mapping.layout.processes)
        self.sleeps = SLEEPS
        self._told = 0
        self._told_at = 0.0
        self.launch_times: list[float] = []
        self._chips: Sequence[Chip] = ()
        self._host: Host | None = None
        self._watched = False
        self._launches_before = self._reached = 0
        self._note_at = 0.0

    def begin(
        self, chips: Sequence[Chip], host: Host | None, launches: int = 0, reached: int = 0
    ) -> None:
        """``chips`` of this process start, or go on after ``launches`` at cycle ``reached``."""
        self.launch_times.clear()
        self._chips, self._host = chips, host
        self._watched, self._note_at = self.mapping.watched, 0.0
        self.sleeps = 1 if self._watched else SLEEPS
        self._launches_before, self._reached = launches, reached

    def progressed(self) -> None:
        """The next wait starts with spinning."""
        self._wait.reset()
        if self._watched:
            self._note_clocks()

    def idle(self, chips: Sequence[Chip], rings: Rings) -> None:
        """Nothing came while the compiled loop slept, if it could: wait a moment more.

        Raises AbandonedError when nothing will come.
        """
        if self._watched:
            self._note_clocks()
        self._wait.pause()
        self._look()

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
        looked = 0.0

        def ready() -> Logits | None:
            nonlocal looked
            values = self.mapping.peek(chip, sequence)
            if values is None and self.mapping.is_under(chip, sequence):
                looked = looked or perf_counter()
                if perf_counter() > looked + FORGED_SECONDS:
                    self.mapping.refuse_vector()
                    self.mapping.abandon()
                    raise AbandonedError(f"refused: the mailbox of chip {chip} is not its own")
            return values

        return self._until(ready)

    def report(self, cycle: int, tokens: Sequence[int]) -> None:
        """Note when a launch ended; tell progress, not more often than is useful."""
        now = perf_counter()
        self.launch_times.append(now)
        if self._watched:
            self._reached = cycle
            self._note_at = 0.0
            self.mapping.note_transfers(self.group, self._io_seconds())
            launches = self._launches_before + len(self.launch_times)
            for chip in self._chips:
                self.mapping.note_clock(chip.chip_id, cycle)
                self.mapping.note_launches(chip.chip_id, launches)
        first = self._told == 0 and len(tokens) > 0
        if first or now - self._told_at >= self._every:
            self.flush(cycle, tokens)

    def flush(self, cycle: int, tokens: Sequence[int]) -> None:
        """Tell everything."""
        if self.told_to is not None:
            self.told_to(self.group, cycle, list(tokens))
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
        if self._wait.pause():
            self._look()

    def _look(self) -> None:
        if self.mapping.abandoned:
            raise AbandonedError("the run was given up: another process failed")


@dataclass(frozen=True)
class GroupPlan:
    """Everything a process needs to find its part of a run; small enough to send.

    artifact: a file with the memory images of the group's own chips, or without any where
    ``images`` says how to make them.  snapshots: where the run keeps them.  snapshot_launches:
    launches between two, 0 for none.  faults: as for ``Runner``.  linked: programs
    that the driver links for all groups that share them.  interpreter: one that needs no compiler,
    None for the compiler's.
    """

    artifact: Path
    chips: tuple[int, ...]
    group: int
    snapshots: Path
    snapshot_launches: int
    model: PartitionedModel | None = None
    faults: FaultSetting | None = None
    images: ChipImages | None = None
    linked: LinkedFiles = field(default_factory=LinkedFiles)
    interpreter: Path | None = None


@dataclass(frozen=True)
class Ticket:
    """What admits a group to one epoch of a run: the memory to meet in, and where to go on.

    Every epoch has memory and a token of its own, so a process left over from an earlier one can
    disturb nobody.  run: number of the work among that of these actors.  launch: the snapshot all
    groups go on from; 0 for the beginning.  keep: chips stay as the work before left them.
    """

    mapping: Path
    layout: MappingLayout
    token: bytes
    run: int = 1
    launch: int = 0
    keep: bool = False


@dataclass(frozen=True)
class GroupResult:
    """What a group hands back.

    launch_seconds: wall time from each launch's end to the next's; nan of those before a recovery.
    images: the digest of each chip's memory image.
    """

    run: RunResult
    launch_seconds: list[float]
    images: dict[int, bytes]

    @property
    def part(self) -> ChipsPart:
        """What is concluded from."""
        run = self.run
        return ChipsPart(
            run.entries, run.retired, run.sums, self.images, run.faults, run.saturations
        )


@dataclass(frozen=True)
class LaunchPart:
    """One launch of a group, and what each of its chips holds for the host."""

    part: ChipsPart
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
        report: ProgressReport | None = None,
        threads: int = 1,
        faults: FaultSetting | None = None,
    ) -> None:
        """``model``: as for ``Host``, the partitioned model if it is not in a directory.

        threads, faults: as for ``Runner``.  An artifact of no model has no host side: its entry
        points can be launched, no more.
        """
        self.mapping = mapping
        self.faults = faults
        self.peers = MappedPeers(group, mapping, report)
        facts = Bindings.of(artifact).decoder
        home = "" if facts is None else facts.checkpoint
        self._host = Host(artifact, model) if home or model else None
        self._fed: tuple[list[int], RunResult] | None = None
        self.runner = Runner(
            artifact, numbers, mapping.rings(), self.peers, self._host, threads, faults
        )

    def enter(self, mapping: SharedMapping, keep: bool = False) -> None:
        """Leave the epoch of before for that of ``mapping``; chips as before the first launch.

        keep: they stay as they are instead, and the next generation computes only what its prompt
        does not share with what they were fed.  All groups of a run must agree on it.
        """
        self.mapping = mapping
        self.peers = MappedPeers(self.peers.group, mapping, self.peers.told_to)
        if keep:
            self.runner.rejoin(mapping.rings(), self.peers)
        else:
            self._fed = None
            self.runner.reload(mapping.rings(), self.peers)

    def generate(
        self, job: Generation, plan: GroupPlan | None = None, launch: int = 0
    ) -> GroupResult:
        """Run the whole generation; every group of the run returns the same tokens.

        plan: says how to keep snapshots; None keeps none.  launch: go on from that snapshot, the
        group having just entered its epoch.  The launches of a prompt's beginning that kept chips
        have seen are not made again; the result has them as they were.
        """
        self.peers.begin(self.chips, self._host)

        def between(result: RunResult) -> None:
            number = len(result.entries)
            if self.mapping.abandoned:
                raise AbandonedError("the run was given up: another process failed")
            every = plan.snapshot_launches if plan is not None else 0
            if plan is not None and every and number > launch and number % every == 0:
                self._keep_snapshot(plan, result)

        try:
            resume = self._shared(job)
            if plan is not None and launch:
                resume = restore(plan.snapshots, plan.group, launch, self.runner)
            if resume is not None:
                reached = sum(map(max, zip(*resume.retired.values(), strict=True)))
                self.peers.begin(self.chips, self._host, len(resume.entries), reached)
            result = self.runner.generate(job, resume, between)
        except BaseException as error:
            raise self._give_up(error) from None
        self._fed = ([*job.prompt, *result.tokens[:-1]], result)
        launches = zip(*result.retired.values(), strict=True)
        self.peers.flush(sum(max(cycles) for cycles in launches), result.tokens)
        times = self.peers.launch_times
        unknown = [nan] * (len(result.entries) - len(times))
        seconds = unknown + [b - a for a, b in pairwise(times)]
        return GroupResult(result, seconds, self.runner.images)

    def _shared(self, job: Generation) -> RunResult | None:
        """What earlier work gave for the beginning of ``job``'s prompt; its last token is fed."""
        if self._fed is None:
            return None
        (fed, result), self._fed = self._fed, None
        same = (own == other for own, other in zip(fed, job.prompt[:-1], strict=False))
        return result.cut(sum(takewhile(bool, same)))

    def _give_up(self, error: BaseException) -> BaseException:
        """Tell the others; what to raise.  A forged vector is refused: no fault of the run."""
        if isinstance(error, LockstepViolation) and error.forged and self.mapping.path is not None:
            self.mapping.refuse_vector()
            error = AbandonedError(f"refused: {one_line(error)}")
        self.mapping.abandon()
        return error

    def _keep_snapshot(self, plan: GroupPlan, result: RunResult) -> None:
        number = len(result.entries)
        try:
            take(plan.snapshots, plan.group, self.runner, result)
            kept = self.mapping.keep(plan.group, number)
        except OSError:  # no room: give back what there is; a recovery begins at the beginning
            self.mapping.keep(plan.group, number)
            kept = number
        forget_before(plan.snapshots, plan.group, kept)

    def launch(self, entry: str, sync: str) -> LaunchPart:
        """Run ``entry`` once, with memory as it is."""
        began = perf_counter()
        self.peers.begin(self.chips, None)
        try:
            counts = {} if self.faults is None else ModelledFaults.new_counts()
            retired = self.runner.launch(entry, 0, sync, counts)
            self.peers.report(max(retired.values()), ())
        except BaseException as error:
            raise self._give_up(error) from None
        return LaunchPart(
            ChipsPart(
                entries=[entry],
                retired={chip: [cycle] for chip, cycle in retired.items()},
                sums={
                    c.chip_id: (int(c.digest_sums[0]), int(c.digest_sums[1])) for c in self.chips
                },
                images=self.runner.images,
                faults=counts,
                saturations=self.runner.saturations,
            ),
            outputs=[describe_outputs(self.runner.artifact, chip) for chip in self.chips],
            wall_seconds=perf_counter() - began,
        )

    @property
    def chips(self) -> list[Chip]:
        """The group's chips."""
        return self.runner.chips
