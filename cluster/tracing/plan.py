"""What a trace shows: which blocks of which launches on which rows, counted before it is written.

Execution is static, so the trace of a launch is made from the programs that ran, once every chip
has retired at the cycle predicted for it.  A block is one event on the row of its unit; blocks of a
unit that overlap (the slices of a MEM hemisphere) get rows of their own, *lanes*, the first that is
free.  The time axis is the machine's virtual cycle, from the start of the first launch; transfers
of the host between launches take no cycles on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from chip.jit import jit
from chip.program import Program
from chip.timeline import RECEIVE_UNIT, SEND_UNIT, Timeline, timeline
from cluster.errors import InputError, RunError
from interconnect.vectors import FlightError, Flights, find_flights
from programs.artifact import Artifact

I64 = NDArray[np.int64]

#: Events of one trace at most: what Perfetto's page still opens with ease.
MAX_EVENTS = 2_000_000

#: Rows of the whole machine.
LAUNCHES, STAGES, TOKENS = range(3)
MACHINE_ROWS = ("launches", "stages", "tokens")


@dataclass(frozen=True)
class Window:
    """Cycles ``first`` up to and not including ``last`` of the time axis."""

    first: int
    last: int

    def holds(self, first: I64, end: I64) -> NDArray[np.bool_]:
        """Which of the events from ``first`` to ``end`` can be seen in it."""
        return np.asarray((first < self.last) & (end > self.first))


EVERYTHING = Window(0, 1 << 62)


@dataclass(frozen=True)
class Launched:
    """One launch of a run: its entry point, its length, and the token it gave, if it gave one."""

    entry: str
    cycles: int
    token: str | None = None


@dataclass(frozen=True)
class TracedLaunch:
    """A launch with its number in the run and its place on the time axis."""

    number: int
    start: int
    launched: Launched


@dataclass(frozen=True, eq=False)
class ProgramRows:
    """The blocks of one program: when, and on which lane of which unit, int64 [blocks]."""

    program: Program
    lines: Timeline
    lane: I64

    def __len__(self) -> int:
        return len(self.lane)

    @property
    def row_key(self) -> I64:
        """Unit and lane as one number; int64 [blocks]."""
        return self.lines.unit << 32 | self.lane


@dataclass(frozen=True, eq=False)
class Entry:
    """An entry point: the rows of its programs, its flights, and its stages.

    stages: (name, first cycle, end) of the parts of a launch between which chips exchange vectors.
    """

    programs: list[ProgramRows]
    flights: Flights
    stages: list[tuple[str, int, int]]


@dataclass(frozen=True, eq=False)
class MachineEvent:
    """An event of the whole machine on one of ``MACHINE_ROWS``."""

    row: int
    name: str
    first: int
    end: int
    details: dict[str, int]


@jit
def _lanes_in_order(unit: I64, first: I64, end: I64) -> I64:
    """As ``lanes``, for blocks sorted by unit and first cycle."""
    lane = np.zeros(len(unit), np.int64)
    ends = np.zeros(1, np.int64)  # of the last block on each lane of this unit
    used = 0
    for block in range(len(unit)):
        if block and unit[block] != unit[block - 1]:
            used = 0
        mine = 0
        while mine < used and ends[mine] > first[block]:
            mine += 1
        if mine == used:
            used += 1
            if used > len(ends):
                ends = np.concatenate((ends, np.zeros(len(ends), np.int64)))
        ends[mine] = end[block]
        lane[block] = mine
    return lane


def lanes(unit: I64, first: I64, end: I64) -> I64:
    """The lane of each block: the lowest that is free when it begins; int64 [blocks].

    Blocks of one unit take lanes in the order of their first cycles, then of their numbers.
    """
    order = np.lexsort((first, unit))
    lane = np.empty(len(unit), np.int64)
    lane[order] = _lanes_in_order(unit[order], first[order], end[order])
    return lane


def stages_of(flights: Flights, cycles: int, spacing: int) -> list[tuple[str, int, int]]:
    """A launch of ``cycles`` cut where vectors are under way: compute, exchange, compute ...

    Exchanges that touch are one.  spacing: cycles from one vector of a flight to the next.
    """
    if not len(flights):
        return [("compute 0", 0, cycles)]
    order = np.argsort(flights.sent, kind="stable")
    first = flights.sent[order]
    end = np.maximum.accumulate((flights.received + flights.vectors * spacing)[order])
    begins = np.flatnonzero(np.r_[True, first[1:] > end[:-1]])
    lasts = np.r_[begins[1:] - 1, len(first) - 1]
    stages: list[tuple[str, int, int]] = []
    at = 0
    for number, (a, b) in enumerate(zip(begins.tolist(), lasts.tolist(), strict=True)):
        if first[a] > at:
            stages.append((f"compute {number}", at, int(first[a])))
        at = min(int(end[b]), cycles)
        stages.append((f"exchange {number}", int(first[a]), at))
    if at < cycles:
        stages.append((f"compute {len(begins)}", at, cycles))
    return stages


def make_entry(artifact: Artifact, name: str, cycles: int) -> Entry:
    """The rows, flights and stages of entry point ``name``, whose launches take ``cycles``.

    Raises RunError where the programs cannot have run as they stand.
    """
    rows = []
    for program in artifact.programs[name]:
        lines = timeline(program, artifact.spec)
        if len(lines.end) and int(lines.first.max()) >= cycles:
            raise RunError(
                f"{name}: an instruction of cycle {int(lines.first.max())} lies beyond the cycle "
                f"{cycles} at which the launch retired: no trace can be made of it"
            )
        # A vector may still be on its wire when the launch retires: the next launch has the row.
        lines = Timeline(lines.unit, lines.first, np.minimum(lines.end, cycles), lines.instructions)
        rows.append(ProgramRows(program, lines, lanes(lines.unit, lines.first, lines.end)))
    try:
        flights = find_flights(
            artifact.programs[name], artifact.program_of_chip, artifact.cables, artifact.spec
        )
    except FlightError as error:
        raise RunError(f"{name}: {error}") from None
    stages = stages_of(flights, cycles, artifact.spec.send_spacing_cycles)
    return Entry(rows, flights, stages)


class TracePlan:
    """Everything a writer needs; made after the run, or before it to count the events.

    launches: all of the run in order.  last: only so many of them, from the end, are shown.
    """

    def __init__(
        self,
        artifact: Artifact,
        launches: Sequence[Launched],
        window: Window = EVERYTHING,
        last: int | None = None,
    ) -> None:
        self.artifact = artifact
        self.window = window
        ends = np.cumsum([launch.cycles for launch in launches], dtype=np.int64).tolist()
        self.horizon = ends[-1] if ends else 0
        """Cycles of the whole run."""
        skipped = 0 if last is None else max(0, len(launches) - last)
        self.launches = [
            TracedLaunch(number, end - launch.cycles, launch)
            for number, (launch, end) in enumerate(zip(launches, ends, strict=True))
            if number >= skipped and end - launch.cycles < window.last and end > window.first
        ]
        lengths = {traced.launched.entry: traced.launched.cycles for traced in self.launches}
        self.entries = {
            name: make_entry(artifact, name, cycles) for name, cycles in lengths.items()
        }
        self.chips_of_program = [
            [c for c, number in enumerate(artifact.program_of_chip) if number == p]
            for p in range(max(artifact.program_of_chip, default=-1) + 1)
        ]

    @cached_property
    def rows(self) -> list[tuple[int, int]]:
        """(unit, lane) of every row that any chip has, in the order in which they are shown."""
        keys = np.unique(
            np.concatenate(
                [program.row_key for entry in self.entries.values() for program in entry.programs]
                or [np.zeros(0, np.int64)]
            )
        )
        return list(zip((keys >> 32).tolist(), (keys & 0xFFFFFFFF).tolist(), strict=True))

    @cached_property
    def peers(self) -> dict[tuple[int, int], int]:
        """The chip at the other end, by (chip, unit of a link's direction)."""
        ends = [(a, k, b) for a, k, b, _ in self.artifact.cables]
        ends += [(b, k, a) for a, _, b, k in self.artifact.cables]
        return {
            (chip, first + link): peer
            for chip, link, peer in ends
            for first in (RECEIVE_UNIT, SEND_UNIT)
        }

    def row_of(self, program: ProgramRows) -> I64:
        """The number in ``rows`` of each block's row; int64 [blocks]."""
        keys = np.array([unit << 32 | lane for unit, lane in self.rows], np.int64)
        return np.searchsorted(keys, program.row_key)

    def rows_of_chip(self, chip: int) -> list[int]:
        """The numbers in ``rows`` of the rows that a chip has."""
        return self._rows_of_program[self.artifact.program_of_chip[chip]]

    @cached_property
    def _rows_of_program(self) -> list[list[int]]:
        used = [
            [self.row_of(entry.programs[number]) for entry in self.entries.values()]
            for number in range(len(self.chips_of_program))
        ]
        return [np.unique(np.concatenate(rows)).tolist() if rows else [] for rows in used]

    def seen(self, launch: TracedLaunch, program: ProgramRows) -> NDArray[np.bool_]:
        """Which blocks of a program are seen in the window during a launch."""
        lines = program.lines
        return self.window.holds(lines.first + launch.start, lines.end + launch.start)

    def seen_flights(self, launch: TracedLaunch) -> NDArray[np.bool_]:
        """Which flights of a launch have both their blocks in the window."""
        entry = self.entries[launch.launched.entry]
        flights, of = entry.flights, np.array(self.artifact.program_of_chip, np.int64)
        seen = np.ones(len(flights), bool)
        for chip, block in ((flights.chip, flights.block), (flights.to_chip, flights.to_block)):
            for number, program in enumerate(entry.programs):
                mine = of[chip] == number
                seen[mine] &= self.seen(launch, program)[block[mine]]
        return seen

    def machine_events(self) -> Iterator[MachineEvent]:
        """Launches, their stages, and tokens, as far as the window shows them."""
        for launch in self.launches:
            launched, start = launch.launched, launch.start
            end = start + launched.cycles
            which = {"launch": launch.number, "cycles": launched.cycles}
            yield MachineEvent(LAUNCHES, launched.entry, start, end, which)
            for name, first, last in self.entries[launched.entry].stages:
                if start + first < self.window.last and start + last > self.window.first:
                    yield MachineEvent(STAGES, name, start + first, start + last, {})
            if launched.token is not None:
                yield MachineEvent(TOKENS, launched.token, start, end, which)

    def _weights(self) -> tuple[I64, I64, I64]:
        """First cycle, end and number of all block events and flights' ends, unwindowed."""
        nothing = np.zeros(0, np.int64)
        parts: list[tuple[I64, I64, I64]] = [(nothing, nothing, nothing)]
        for launch in self.launches:
            entry = self.entries[launch.launched.entry]
            for number, program in enumerate(entry.programs):
                lines, chips = program.lines, len(self.chips_of_program[number])
                times = (lines.first + launch.start, lines.end + launch.start)
                parts.append((*times, np.full(len(program), chips, np.int64)))
            flights = entry.flights
            both = (flights.sent + launch.start, flights.received + launch.start + 1)
            parts.append((*both, np.full(len(flights), 2, np.int64)))
        first, end, count = (np.concatenate(column) for column in zip(*parts, strict=True))
        return first, end, count

    def block_events(self) -> int:
        """Events that are blocks."""
        return sum(
            int(self.seen(launch, program).sum()) * len(self.chips_of_program[number])
            for launch in self.launches
            for number, program in enumerate(self.entries[launch.launched.entry].programs)
        )

    def events(self) -> int:
        """All events but the names of rows: blocks, both ends of flights, the machine's own."""
        flights = sum(int(self.seen_flights(launch).sum()) for launch in self.launches)
        return self.block_events() + 2 * flights + sum(1 for _ in self.machine_events())

    def summary(self) -> dict[str, int]:
        """What a command says of a trace that was written."""
        return {
            "events": self.events(),
            "blocks": self.block_events(),
            "launches": len(self.launches),
            "cycles": self.horizon,
        }

    def check_size(self, most: int | None = None) -> None:
        """Refuse a trace of more than ``most`` (``MAX_EVENTS``) events; say which window fits."""
        most = MAX_EVENTS if most is None else most
        events = self.events()
        if events <= most:
            return
        # The machine's own events are few; they are all counted as if at the window's start.
        room = most - sum(1 for _ in self.machine_events())
        first, end, count = self._weights()
        shown = self.window.holds(first, end)
        order = np.argsort(first[shown], kind="stable")
        starts, total = first[shown][order], np.cumsum(count[shown][order])
        over = int(np.searchsorted(total, room, "right"))
        last = int(starts[min(over, len(starts) - 1)])
        begin = max(self.window.first, self.launches[0].start)
        advice = (
            f"--trace-window {begin}:{last} would fit" if last > begin else "trace fewer launches"
        )
        raise InputError(f"--trace: {events:,} events, and {most:,} is the most; {advice}")
