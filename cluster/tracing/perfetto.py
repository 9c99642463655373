"""The same trace as Perfetto's own protobuf (``.pftrace``), for ui.perfetto.dev and its queries.

A chip is a process, a row a track under it; lanes of one unit share a name and are merged by the
viewer.  Timestamps are nanoseconds by the format: one of them is one virtual cycle.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
    TracePacket,
    TrackDescriptor,
    TrackEvent,
)
from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder

from chip.isa import Op
from cluster.tracing.chrome import MACHINE_PID, about, chip_pid, instruction_texts, row_name
from cluster.tracing.plan import MACHINE_ROWS, ProgramRows, TracedLaunch, TracePlan

#: Tracks and sequences are numbered from these on: the machine's first, then the chips'.
_MACHINE_TRACK, _SEQUENCE = 1, 1


class _Writer:
    """Writes one plan."""

    def __init__(self, plan: TracePlan, out: StreamingTraceProtoBuilder) -> None:
        self.plan = plan
        self.out = out
        self.blocks: dict[tuple[str, int], list[TrackEvent]] = {}

    def track(self, chip: int, row: int) -> int:
        """The track of a row of a chip; row -1 is the chip itself."""
        first = _MACHINE_TRACK + 1 + len(MACHINE_ROWS)
        return first + chip * (len(self.plan.rows) + 1) + row + 1

    def write(self) -> None:
        """The whole trace."""
        self._tracks()
        self._machine()
        flows = 0
        for launch in self.plan.launches:
            name = launch.launched.entry
            arriving, leaving = self._flows(launch, flows)
            for number, program in enumerate(self.plan.entries[name].programs):
                for chip in self.plan.chips_of_program[number]:
                    self._chip(launch, number, program, chip, arriving, leaving)
            flows += len(self.plan.entries[name].flights)

    def _track(self, uuid: int, parent: int, name: str, rank: int, pid: int | None = None) -> None:
        """Name a track; one with a pid is a process."""
        packet: Any = self.out.create_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        track = packet.track_descriptor
        track.uuid, track.name, track.sibling_order_rank = uuid, name, rank
        track.child_ordering = TrackDescriptor.EXPLICIT
        if pid is None:
            track.parent_uuid = parent
        else:
            track.process.pid, track.process.process_name = pid, name
        self.out.write_packet(packet)

    def _tracks(self) -> None:
        self._track(_MACHINE_TRACK, 0, "machine", 0, MACHINE_PID)
        for number, name in enumerate(MACHINE_ROWS):
            self._track(_MACHINE_TRACK + 1 + number, _MACHINE_TRACK, name, number)
        for chip in range(self.plan.artifact.chips):
            own = self.track(chip, -1)
            self._track(own, 0, f"chip[{chip}]", chip + 1, chip_pid(chip))
            for row in self.plan.rows_of_chip(chip):
                name = row_name(self.plan, chip, row, lane=False)
                self._track(self.track(chip, row), own, name, row)

    def _machine(self) -> None:
        ends: list[tuple[int, int, TracePacket]] = []
        for number, event in enumerate(self.plan.machine_events()):
            packet = self._packet(0, event.first, TrackEvent.TYPE_SLICE_BEGIN)
            packet.track_event.name = event.name
            for key, value in event.details.items():
                _annotate(packet.track_event, key, value)
            last = self._packet(0, event.end, TrackEvent.TYPE_SLICE_END)
            for one in (packet, last):
                one.track_event.track_uuid = _MACHINE_TRACK + 1 + event.row
            ends += [(event.first, number + 1, packet), (event.end, -number, last)]
        first = True
        for _, _, packet in sorted(ends, key=lambda one: one[:2]):
            if first:
                _annotate(packet.track_event, "about", json.dumps(about(self.plan)))
                first = False
            self.out.write_packet(packet)

    def _packet(self, sequence: int, cycle: int, kind: int) -> Any:
        packet: Any = self.out.create_packet()
        packet.timestamp = cycle
        packet.trusted_packet_sequence_id = _SEQUENCE + sequence
        packet.track_event.type = kind
        return packet

    def _flows(
        self, launch: TracedLaunch, base: int
    ) -> tuple[dict[tuple[int, int], list[int]], dict[tuple[int, int], list[int]]]:
        """Numbers of the flows by (chip, block): those that arrive there, those that leave."""
        flights = self.plan.entries[launch.launched.entry].flights
        arriving: dict[tuple[int, int], list[int]] = {}
        leaving: dict[tuple[int, int], list[int]] = {}
        for i in np.flatnonzero(self.plan.seen_flights(launch)).tolist():
            start = int(flights.chip[i]), int(flights.block[i])
            end = int(flights.to_chip[i]), int(flights.to_block[i])
            leaving.setdefault(start, []).append(base + i + 1)
            arriving.setdefault(end, []).append(base + i + 1)
        return arriving, leaving

    def _chip(
        self,
        launch: TracedLaunch,
        number: int,
        program: ProgramRows,
        chip: int,
        arriving: dict[tuple[int, int], list[int]],
        leaving: dict[tuple[int, int], list[int]],
    ) -> None:
        key = launch.launched.entry, number
        if key not in self.blocks:
            self.blocks[key] = _block_events(program)
        events, lines = self.blocks[key], program.lines
        row = self.plan.row_of(program)
        seen = np.flatnonzero(self.plan.seen(launch, program))
        # Ends before beginnings where both are in one cycle: rows touch, they do not nest.
        times = np.concatenate([lines.first[seen], lines.end[seen]]) + launch.start
        begins = np.arange(2 * len(seen)) < len(seen)
        end = self._packet(chip + 1, 0, TrackEvent.TYPE_SLICE_END)
        begin = self._packet(chip + 1, 0, TrackEvent.TYPE_SLICE_BEGIN)
        for i in np.lexsort((begins, times)).tolist():
            block = int(seen[i % len(seen)])
            packet = end
            if begins[i]:
                packet = begin
                packet.track_event.CopyFrom(events[block])
                packet.track_event.flow_ids.extend(leaving.get((chip, block), ()))
                packet.track_event.terminating_flow_ids.extend(arriving.get((chip, block), ()))
            packet.timestamp = int(times[i])
            packet.track_event.track_uuid = self.track(chip, int(row[block]))
            self.out.write_packet(packet)


def _annotate(event: Any, name: str, value: int | str) -> None:
    note = event.debug_annotations.add()
    note.name = name
    if isinstance(value, int):
        note.int_value = value
    else:
        note.string_value = value


def _block_events(program: ProgramRows) -> list[TrackEvent]:
    """The beginning of every block, without its track."""
    lines = program.lines
    events: list[TrackEvent] = []
    texts = instruction_texts(program)
    for block, (op, text) in enumerate(zip(program.program.blocks["op"], texts, strict=True)):
        event: Any = TrackEvent()
        event.type = TrackEvent.TYPE_SLICE_BEGIN
        event.name = Op(int(op)).name
        _annotate(event, "block", block)
        _annotate(event, "instructions", int(lines.instructions[block]))
        _annotate(event, "instruction", text)
        events.append(event)
    return events


def write_perfetto(plan: TracePlan, path: Path) -> None:
    """Write ``plan`` to ``path``."""
    with path.open("wb") as file:
        _Writer(plan, StreamingTraceProtoBuilder(file)).write()
