"""The Chrome trace event format: JSON for chrome://tracing and ui.perfetto.dev.

A process is a chip, a thread a row.  ``ts`` and ``dur`` are microseconds by the format; here one
*nanosecond* of them is one *virtual cycle*, so that a viewer shows whole cycles and nothing is
rounded; ``otherData`` says so and gives the clock.

Every chip that runs a program has the same events but for three numbers.  So the records of a
program are formatted once, with blanks of fixed width, and the digits are put in by array
arithmetic for each chip and launch.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from chip.encoding import Rendered, TextColumns, write_instructions
from chip.isa import Op
from chip.jit import jit
from chip.timeline import SEND_UNIT, unit_name
from cluster.tracing.plan import MACHINE_ROWS, ProgramRows, TracedLaunch, TracePlan
from interconnect.vectors import Flights

I64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]

#: Process of the whole machine, and of chip 0; 0 is the idle process to viewers.
MACHINE_PID, FIRST_CHIP_PID = 1, 100


#: By number of the operation.
_OP_NAMES = tuple(Op(n).name if n in list(Op) else "" for n in range(max(Op) + 1))


def chip_pid(chip: int) -> int:
    """The process number of a chip."""
    return FIRST_CHIP_PID + chip


@dataclass(frozen=True)
class _Widths:
    """Characters of each blank: the longest number that can stand there."""

    pid: int
    tid: int
    micros: int
    flow: int


@dataclass(frozen=True, eq=False)
class _Records:
    """Records one after another, with blanks."""

    rendered: Rendered

    def put(self, name: str, digits: Bytes, which: I64 | None = None) -> None:
        """Fill the blanks called ``name`` with rows of ``digits``, uint8 [numbers, width].

        which: the row that each record takes, int64 [records]; without it row after row.
        """
        places = self.rendered.places[name]
        which = np.arange(len(places)) if which is None else which
        _put(self.rendered.text, places, digits, which)

    def put_time(self, cycles: I64, widths: _Widths) -> None:
        """Write cycles as microseconds with three decimals."""
        micros, nanos = np.divmod(cycles, 1000)
        self.put("micros", _digits(micros, widths.micros))
        self.put("nanos", _digits(nanos, 3, "0"))

    def only(self, seen: NDArray[np.bool_]) -> memoryview:
        """The text of some records; it lasts until digits are put in again."""
        if seen.all():
            return self.rendered.text.data
        return self.rendered.text[np.repeat(seen, self.rendered.lengths)].data


@jit
def _put(text: Bytes, places: I64, digits: Bytes, which: I64) -> None:
    """Copy to the place of each record its row of digits."""
    for record in range(len(places)):
        at, row = places[record], which[record]
        for i in range(digits.shape[1]):
            text[at + i] = digits[row, i]


def _digits(values: I64, width: int, fill: str = " ") -> Bytes:
    """Right-aligned numbers as characters, uint8 [values, width]."""
    powers = 10 ** np.arange(width - 1, -1, -1, dtype=np.int64)
    digits = (values[:, None] // powers % 10 + ord("0")).astype(np.uint8)
    digits[:, :-1][values[:, None] < powers[:-1]] = ord(fill)
    return digits


def instruction_texts(program: ProgramRows) -> list[str]:
    """Every block as its line of assembler text, without the cycle."""
    columns = TextColumns(len(program))
    write_instructions(program.program, columns)
    columns.text("\n")
    return columns.render().text.tobytes().decode("ascii").splitlines()


def _write_row_and_time(columns: TextColumns, widths: _Widths) -> None:
    for before, name, width in (
        (',"pid":', "pid", widths.pid),
        (',"tid":', "tid", widths.tid),
        (',"ts":', "micros", widths.micros),
        (".", "nanos", 3),
    ):
        columns.text(before)
        columns.blank(name, width)


def _block_records(program: ProgramRows, widths: _Widths) -> _Records:
    lines, op = program.lines, program.program.blocks["op"].astype(np.int64)
    columns = TextColumns(len(program))
    columns.text('{"ph":"X"')
    _write_row_and_time(columns, widths)
    micros, nanos = np.divmod(lines.end - lines.first, 1000)
    columns.text(',"dur":')
    columns.integer(micros)
    columns.text(".")
    columns.thousandths(nanos)
    columns.text(',"name":"')
    columns.choice(_OP_NAMES, op)
    columns.text('","args":{"block":')
    columns.integer(np.arange(len(program)))
    columns.text(',"instructions":')
    columns.integer(lines.instructions)
    # Assembler text has no character that JSON would escape.
    columns.text(',"instruction":"')
    write_instructions(program.program, columns)
    columns.text('"}},\n')
    return _Records(columns.render())


def _flow_records(flights: Flights, widths: _Widths, phase: str) -> _Records:
    columns = TextColumns(len(flights))
    bind = ',"bp":"e"' if phase == "f" else ""
    columns.text(f'{{"ph":"{phase}"{bind},"cat":"link","name":"vectors","id":')
    columns.blank("id", widths.flow)
    _write_row_and_time(columns, widths)
    columns.text(',"args":{"vectors":')
    columns.integer(flights.vectors)
    columns.text("}},\n")
    return _Records(columns.render())


class _Writer:
    """Writes one plan."""

    def __init__(self, plan: TracePlan) -> None:
        self.plan = plan
        self.rows = len(plan.rows)
        chips = plan.artifact.chips
        flights = sum(len(plan.entries[launch.launched.entry].flights) for launch in plan.launches)
        self.widths = _Widths(
            pid=len(str(chip_pid(chips))),
            tid=len(str((chips + 1) * max(self.rows, 1))),
            micros=len(str(plan.horizon // 1000)),
            flow=len(str(flights)),
        )
        self.records: dict[tuple[str, int], tuple[_Records, I64]] = {}
        self.flow_records: dict[str, tuple[_Records, _Records]] = {}

    def tid(self, chip: I64 | int, row: I64) -> I64:
        """Numbers of threads: one for every row of every chip, none of them twice."""
        return np.asarray((chip + 1) * self.rows + row, np.int64)

    @cached_property
    def _tids(self) -> Bytes:
        """Characters of the thread of every chip and row, uint8 [chips, rows, width]."""
        chips = np.arange(self.plan.artifact.chips)[:, None]
        tids = self.tid(chips, np.arange(self.rows)).reshape(-1)
        return _digits(tids, self.widths.tid).reshape(len(chips), self.rows, self.widths.tid)

    def write(self, file: BinaryIO) -> None:
        """The whole trace."""
        file.write(b'{"displayTimeUnit":"ns","otherData":')
        file.write(json.dumps(about(self.plan)).encode())
        file.write(b',"traceEvents":[\n')
        for launch in self.plan.launches:
            for piece in self._launch(launch):
                file.write(piece)
        for event in self.plan.machine_events():
            whole = {
                "ph": "X",
                "pid": MACHINE_PID,
                "tid": event.row,
                "ts": event.first / 1000,
                "dur": (event.end - event.first) / 1000,
                "name": event.name,
                "args": event.details,
            }
            file.write(json.dumps(whole).encode() + b",\n")
        file.write(",\n".join(self._names()).encode())
        file.write(b"\n]}\n")

    def _launch(self, launch: TracedLaunch) -> Iterator[memoryview]:
        plan, name = self.plan, launch.launched.entry
        for number, program in enumerate(plan.entries[name].programs):
            chips = plan.chips_of_program[number] if number < len(plan.chips_of_program) else []
            if not len(program) or not chips:
                continue
            if (name, number) not in self.records:
                made = _block_records(program, self.widths)
                self.records[name, number] = made, plan.row_of(program)
            records, row = self.records[name, number]
            records.put_time(program.lines.first + launch.start, self.widths)
            seen = plan.seen(launch, program)
            for chip in chips:
                own = _digits(np.array([chip_pid(chip)]), self.widths.pid)
                records.put("pid", own, np.zeros(len(program), np.int64))
                records.put("tid", self._tids[chip], row)
                yield records.only(seen)
        yield from self._flows(launch)

    def _flows(self, launch: TracedLaunch) -> Iterator[memoryview]:
        plan, entry = self.plan, self.plan.entries[launch.launched.entry]
        flights = entry.flights
        seen = plan.seen_flights(launch)
        if not seen.any():
            return
        key = launch.launched.entry
        if key not in self.flow_records:
            starts, ends = (_flow_records(flights, self.widths, phase) for phase in "sf")
            self.flow_records[key] = starts, ends
        earlier = (traced for traced in plan.launches if traced.number < launch.number)
        base = sum(len(plan.entries[traced.launched.entry].flights) for traced in earlier)
        rows = [
            self.records[key, number][1] if (key, number) in self.records else np.zeros(0)
            for number in range(len(entry.programs))
        ]
        of = np.array(plan.artifact.program_of_chip, np.int64)
        sides = (
            (flights.chip, flights.block, flights.sent),
            (flights.to_chip, flights.to_block, flights.received),
        )
        for records, (chip, block, cycle) in zip(self.flow_records[key], sides, strict=True):
            row = np.zeros(len(flights), np.int64)
            for number, of_block in enumerate(rows):
                mine = of[chip] == number
                row[mine] = of_block[block[mine]]
            records.put_time(cycle + launch.start, self.widths)
            records.put("id", _digits(base + np.arange(len(flights)), self.widths.flow))
            records.put("pid", _digits(np.asarray(FIRST_CHIP_PID + chip), self.widths.pid))
            records.put("tid", self._tids[chip, row])
            yield records.only(seen)

    def _names(self) -> Iterator[str]:
        """Names and order of processes and rows."""
        yield from _named("process", MACHINE_PID, 0, "machine", 0)
        for number, name in enumerate(MACHINE_ROWS):
            yield from _named("thread", MACHINE_PID, number, name, number)
        for chip in range(self.plan.artifact.chips):
            pid = chip_pid(chip)
            yield from _named("process", pid, 0, f"chip[{chip}]", chip + 1)
            rows = self.plan.rows_of_chip(chip)
            tids = self.tid(chip, np.array(rows, np.int64)).tolist()
            for row, tid in zip(rows, tids, strict=True):
                yield from _named("thread", pid, tid, row_name(self.plan, chip, row), row)


def _named(kind: str, pid: int, tid: int, name: str, order: int) -> tuple[str, str]:
    """Two records; names have no character that JSON would escape."""
    who = f'{{"ph": "M", "pid": {pid}, "tid": {tid}, "ts": 0, "name": "{kind}'
    return (
        f'{who}_name", "args": {{"name": "{name}"}}}}',
        f'{who}_sort_index", "args": {{"sort_index": {order}}}}}',
    )


def row_name(plan: TracePlan, chip: int, row: int, lane: bool = True) -> str:
    """Name of a row; a link's says whom it reaches, an overlapping unit's the lane."""
    unit, number = plan.rows[row]
    name = unit_name(unit)
    peer = plan.peers.get((chip, unit))
    if peer is not None:
        name += f" {'to' if unit >= SEND_UNIT else 'from'} chip[{peer}]"
    return f"{name} +{number}" if number and lane else name


def about(plan: TracePlan) -> dict[str, Any]:
    """What a reader must know beside the events."""
    spec = plan.artifact.spec
    return {
        "time_unit": "1 ns of ts and dur is 1 virtual cycle of the chips",
        "clock_hz": spec.clock_hz,
        "chip": spec.name,
        "chips": plan.artifact.chips,
        "topology": plan.artifact.topology,
        "cycles": plan.horizon,
        "window_cycles": [plan.window.first, min(plan.window.last, plan.horizon)],
        "launches": [launch.number for launch in plan.launches],
        "blocks": plan.block_events(),
        "send_to_receive_cycles": spec.send_to_receive_cycles,
        "not_shown": "host transfers between launches: they take no cycles of the chips",
    }


def write_chrome(plan: TracePlan, path: Path) -> None:
    """Write ``plan`` to ``path``; compressed where its name ends in .gz, with equal bytes."""
    with path.open("wb") as raw:
        if path.suffix != ".gz":
            _Writer(plan).write(raw)
            return
        # Neither a name nor the time of day in the file: the same trace, the same bytes.
        with gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed:
            _Writer(plan).write(cast(BinaryIO, packed))
