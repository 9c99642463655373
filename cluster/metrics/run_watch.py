"""Publishes a run of chips: a thread of the driver looks at the shared mapping now and then.

Chips note their clocks there in passing and processes their finished launches; nobody is asked
anything and nobody waits.  What a launch does is known from its program (``activity``), and what
befell it from the fault plan (``fault_counts``), so the watch multiplies and publishes once a
second, and once more at the end.

A run that lost processes goes on in other memory, from an earlier launch; what was seen of it
stays the furthest that it ever was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from chip.faults import LockstepViolation
from cluster.errors import one_line
from cluster.metrics.activity import Done, RunActivity
from cluster.metrics.board import Board, Totals
from cluster.metrics.fault_counts import FaultCounts
from cluster.metrics.places import MetricPlaces, places_of
from cluster.metrics.table import UNITS
from cluster.processes import SharedMapping
from programs.artifact import Artifact
from programs.faults import FaultSetting, LostNode

LOOK_SECONDS = 0.2
PUBLISH_SECONDS = 1.0

Ints = NDArray[np.int64]


class Epochs(Protocol):
    """A run that may go on in other memory: a ``Supervisor``, or ``OneEpoch``."""

    @property
    def mapping(self) -> SharedMapping | None:
        """The memory of the moment; None between two."""

    @property
    def image_bytes(self) -> Mapping[int, int]:
        """Bytes of the memory image of every chip."""

    @property
    def recoveries(self) -> Sequence[object]:
        """One per time that processes were replaced."""

    @property
    def refused(self) -> tuple[int, int]:
        """Attachments and vectors of strangers."""


@dataclass(frozen=True)
class OneEpoch:
    """A run in this process, which cannot lose another."""

    mapping: SharedMapping
    image_bytes: Mapping[int, int]
    recoveries: Sequence[object] = ()

    @property
    def refused(self) -> tuple[int, int]:
        """Attachments and vectors of strangers."""
        return self.mapping.refused


class RunWatch:
    """Watches the runs of one command, one after another, on ``board``.

    experiment, platform: the labels of the tokens; None for runs without tokens.
    """

    def __init__(self, board: Board, verb: str, served: tuple[str, str] | None = None) -> None:
        self._board, self._verb, self._served = board, verb, served
        self._tokens = 0
        self._totals = Totals(board)

    @contextmanager
    def watching(
        self,
        artifact: Artifact,
        epochs: Epochs,
        entry_of: Callable[[int], str],
        faults: FaultSetting | None = None,
    ) -> Iterator[None]:
        """Inside, the chips of ``artifact`` run in ``epochs``; entry_of: of launch n, from 0.

        faults: what befalls the modelled machine.
        """
        mapping = epochs.mapping
        if mapping is None:
            raise ValueError("a run can be watched only once it has its memory")
        mapping.watch()
        counts = None if faults is None else FaultCounts(faults, artifact)
        run = _Run(self._board, artifact, epochs, entry_of, counts)
        spec, board = artifact.spec, self._board
        board.set("lpu_run_info", 1, self._verb, artifact.topology, _known(spec.name))
        board.set("lpu_chips", artifact.chips)
        board.set("lpu_processes", mapping.layout.processes)
        run.show_memory()
        self._publish(run)
        stop = threading.Event()
        looker = threading.Thread(
            target=self._look, args=(run, stop), name="lpu-metrics", daemon=True
        )
        looker.start()
        try:
            yield
        except BaseException as error:
            if is_lockstep_violation(error):
                board.add("lpu_lockstep_violations", 1, "arrival")
            raise
        finally:
            stop.set()
            looker.join()
            self._publish(run)

    def replaced_nodes(self, lost: Sequence[LostNode]) -> None:
        """Spares took these nodes' places before the programs began."""
        for one in lost:
            self._board.add("lpu_fault_cost_cycles", one.counts["cost_cycles"])
            self._board.add("lpu_recoveries", one.counts["spare_used"], "spare_node")
            self._board.add("lpu_replays", one.counts["replays"])

    def token(self) -> None:
        """One more token is there."""
        self._tokens += 1

    def retired_unexpectedly(self, launches: int) -> None:
        """So many launches of chips ended at another cycle than predicted."""
        self._board.add("lpu_lockstep_violations", launches, "retirement")

    def saturated(self, kind: str, values: int) -> None:
        """So many values of a run were lost in conversions to ``kind``."""
        self._board.add("lpu_saturated_values", values, kind)

    def _look(self, run: _Run, stop: threading.Event) -> None:
        due = perf_counter() + PUBLISH_SECONDS
        while not stop.wait(LOOK_SECONDS):
            run.look()
            if perf_counter() >= due:
                self._publish(run)
                due = perf_counter() + PUBLISH_SECONDS

    def _publish(self, run: _Run) -> None:
        run.publish()
        if self._served is not None:
            board = self._board
            self._totals.raise_to("lpu_tokens", self._tokens, *self._served)
            for name, seconds in (("virtual", run.virtual_seconds), ("wall", run.wall_seconds)):
                rate = self._tokens / seconds if seconds else 0.0
                board.set(f"lpu_{name}_tokens_per_second", rate, *self._served)


def watched(
    watch: RunWatch | None,
    artifact: Artifact,
    epochs: Epochs,
    entry_of: Callable[[int], str],
    faults: FaultSetting | None,
) -> AbstractContextManager[None]:
    """``watch.watching``, or nothing without a watch."""
    return nullcontext() if watch is None else watch.watching(artifact, epochs, entry_of, faults)


def is_lockstep_violation(error: BaseException) -> bool:
    """Whether a LockstepViolation ended a run, here or in an actor (which tells it in text)."""
    return isinstance(error, LockstepViolation) or one_line(error).startswith("LockstepViolation")


def _known(chip_type: str) -> str:
    from chip.spec import PRESETS

    return chip_type if chip_type in PRESETS else "custom"


class _Run:
    """One run: what was seen of it, and how that is published."""

    def __init__(
        self,
        board: Board,
        artifact: Artifact,
        epochs: Epochs,
        entry_of: Callable[[int], str],
        faults: FaultCounts | None,
    ) -> None:
        self.board, self.artifact, self.epochs, self.entry_of = board, artifact, epochs, entry_of
        self.faults = faults
        self.places: MetricPlaces = places_of(artifact)
        self.activity = RunActivity(artifact)
        self.began = perf_counter()
        self.skew_cycles = 0
        self.virtual_seconds = self.wall_seconds = 0.0
        self._entries: list[str] = []
        self._clocks = np.zeros(artifact.chips, np.int64)
        self._launches = np.zeros(artifact.chips, np.int64)
        self._io_seconds = 0.0
        rings = {(a, link): 2 * n for n, (a, link, _, _) in enumerate(artifact.cables)}
        rings |= {(b, link): 2 * n + 1 for n, (_, _, b, link) in enumerate(artifact.cables)}
        self._ring_of_link = [rings[a, link] for a, link in self.places.link_ends.tolist()]
        self.totals = Totals(board)

    def look(self) -> None:
        """Notice how far chips are apart now."""
        mapping = self.epochs.mapping
        if mapping is None:
            return
        clocks, launches = mapping.progress()
        np.maximum(self._clocks, clocks, out=self._clocks)
        np.maximum(self._launches, launches, out=self._launches)
        self._io_seconds = max(self._io_seconds, mapping.io_seconds)
        self.skew_cycles = max(self.skew_cycles, int(self._clocks.max() - self._clocks.min()))

    def show_memory(self) -> None:
        """Used and existing SRAM, which a run does not change."""
        sizes = self.epochs.image_bytes
        used = np.array([sizes.get(chip, 0) for chip in range(self.artifact.chips)], np.int64)
        capacity = np.full(self.artifact.chips, self.artifact.spec.sram_bytes, np.int64)
        for name, nbytes in (("used", used), ("capacity", capacity)):
            sums = self._by_chip_series(nbytes)
            for labels, value in zip(self.places.chips, sums.tolist(), strict=True):
                self.board.set(f"lpu_sram_{name}_bytes", value, *labels)

    def publish(self) -> None:
        """Everything as it is now."""
        board, totals = self.board, self.totals
        self.look()
        clocks, launches = self._clocks, self._launches
        cycles = int(clocks.min())
        by_entry = self._launches_by_entry(launches)
        lost_cycles = self._publish_faults(int(launches.min()))
        clock_hz = self.artifact.spec.clock_hz
        self.virtual_seconds = (cycles + lost_cycles) / clock_hz + self._io_seconds
        self.wall_seconds = perf_counter() - self.began
        totals.raise_to("lpu_virtual_cycles", cycles)
        totals.raise_to("lpu_virtual_seconds", self.virtual_seconds)
        totals.raise_to("lpu_wall_seconds", self.wall_seconds)
        if self.virtual_seconds:
            board.set("lpu_wall_slowdown_ratio", self.wall_seconds / self.virtual_seconds)
        board.set("lpu_lockstep_skew_cycles", self.skew_cycles)
        self.skew_cycles = 0
        totals.raise_to("lpu_launches", int(launches.min()))
        totals.raise_to("lpu_replayed_positions", 0)
        totals.raise_to("lpu_recoveries", len(self.epochs.recoveries), "chip_process")
        for kind, count in zip(("attachment", "vector"), self.epochs.refused, strict=True):
            totals.raise_to("lpu_refused_accesses", count, kind)
        slowest = np.full(len(self.places.chips), np.iinfo(np.int64).max)
        np.minimum.at(slowest, self.places.chip_series, clocks)
        for labels, cycle in zip(self.places.chips, slowest.tolist(), strict=True):
            totals.raise_to("lpu_chip_virtual_cycles", cycle, *labels)
        done = self.activity.after(by_entry)
        self._publish_units(done)
        self._publish_links(done)

    def _launches_by_entry(self, launches: Ints) -> dict[str, Ints]:
        """Per entry point, how often each chip has run it, int64 [chips]."""
        while len(self._entries) < int(launches.max()):
            self._entries.append(self.entry_of(len(self._entries)))
        return {
            entry: np.searchsorted(
                np.flatnonzero([name == entry for name in self._entries]), launches
            ).astype(np.int64)
            for entry in dict.fromkeys(self._entries)
        }

    def _publish_faults(self, launches: int) -> int:
        """Those of the first ``launches``, but for links; the cycles they cost."""
        counts: dict[str, int] = {}
        if self.faults is not None:
            self.faults.go_on(self._entries[:launches])
            counts = self.faults.totals
        totals = self.totals
        totals.raise_to("lpu_replays", counts.get("replays", 0))
        totals.raise_to("lpu_recoveries", counts.get("spare_used", 0), "spare_node")
        totals.raise_to("lpu_fault_cost_cycles", counts.get("cost_cycles", 0))
        for verdict in ("corrected", "detected"):
            totals.raise_to("lpu_sram_upset_words", counts.get(f"sram_{verdict}", 0), verdict)
        return counts.get("cost_cycles", 0)

    def _by_chip_series(self, values: Ints) -> Ints:
        sums = np.zeros((len(self.places.chips), *values.shape[1:]), np.int64)
        np.add.at(sums, self.places.chip_series, values)
        return sums

    def _publish_units(self, done: Done) -> None:
        for name, values in (("blocks", done.blocks), ("instructions", done.instructions)):
            for labels, row in zip(
                self.places.chips, self._by_chip_series(values).tolist(), strict=True
            ):
                for unit, count in zip(UNITS, row, strict=True):
                    self.totals.raise_to(f"lpu_retired_{name}", count, *labels, unit)

    def _publish_links(self, done: Done) -> None:
        spec, ends = self.artifact.spec, self.places.link_ends
        vectors = done.vectors[ends[:, 0], ends[:, 1]]
        busy = vectors * float(spec.cycles_per_vector)
        ratio = busy / np.maximum(done.cycles[ends[:, 0]], 1)
        count = len(self.places.links)
        sums, busy_sums, greatest = np.zeros(count, np.int64), np.zeros(count), np.zeros(count)
        np.add.at(sums, self.places.link_series, vectors)
        np.add.at(busy_sums, self.places.link_series, busy)
        np.maximum.at(greatest, self.places.link_series, ratio)
        errors = np.zeros((count, 2), np.int64)
        if self.faults is not None:
            by_link = self.faults.by_ring[self._ring_of_link]
            np.add.at(errors, self.places.link_series, by_link)
        for series, labels in enumerate(self.places.links):
            totals, sent = self.totals, int(sums[series])
            totals.raise_to("lpu_link_vectors", sent, *labels)
            totals.raise_to("lpu_link_bytes", sent * spec.packet_bytes, *labels)
            totals.raise_to("lpu_link_busy_cycles", float(busy_sums[series]), *labels)
            self.board.set("lpu_link_busy_ratio", float(greatest[series]), *labels)
            totals.raise_to("lpu_fec_corrected_vectors", int(errors[series, 0]), *labels)
            totals.raise_to("lpu_fec_uncorrectable_vectors", int(errors[series, 1]), *labels)
