"""Traces: every block retired is one event, every flow has both ends, windows and limits hold."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from chip.isa import Op
from chip.spec import ChipSpec
from cluster.cli import run
from cluster.errors import InputError, RunError
from cluster.runs import compile_functional, random_words
from cluster.tracing import Launched, TraceRequest, trace_request
from cluster.tracing.chrome import FIRST_CHIP_PID, write_chrome
from cluster.tracing.perfetto import write_perfetto
from cluster.tracing.plan import EVERYTHING, TracePlan, Window, lanes
from interconnect.wiring import named_topology
from programs.artifact import ENTRY_POINT, Artifact, collective_artifact
from tests import examples

HOP = ChipSpec().send_to_receive_cycles
NUMBER, COUNT = {"type": "number", "minimum": 0}, {"type": "integer", "minimum": 0}
WHO = {"pid": {"type": "integer", "minimum": 1}, "tid": COUNT, "ts": NUMBER}


def _kind(phase: str, **more: Any) -> dict[str, Any]:
    properties = {"ph": {"const": phase}, "name": {"type": "string"}, **WHO, **more}
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }


#: The part of the Chrome trace event format that is used.
SCHEMA = {
    "type": "object",
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"type": "object"},
        "traceEvents": {
            "type": "array",
            "items": {
                "oneOf": [
                    _kind("X", dur={**NUMBER, "exclusiveMinimum": 0}, args={"type": "object"}),
                    _kind("M", args={"type": "object"}),
                    _kind("s", id=COUNT, cat={"type": "string"}, args={"type": "object"}),
                    _kind(
                        "f",
                        id=COUNT,
                        cat={"type": "string"},
                        bp={"const": "e"},
                        args={"type": "object"},
                    ),
                ]
            },
        },
    },
    "required": ["traceEvents"],
}

Event = dict[str, Any]


def cycle(time: float) -> int:
    """A time of a trace in whole cycles; nothing is between them."""
    whole = round(time * 1000)
    assert abs(time * 1000 - whole) < 1e-3
    return whole


def read(path: Path) -> tuple[list[Event], dict[str, Any]]:
    data = path.read_bytes()
    trace = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    return trace["traceEvents"], trace["otherData"]


def blocks_of(events: list[Event]) -> list[Event]:
    return [e for e in events if e["ph"] == "X" and e["pid"] >= FIRST_CHIP_PID]


def check_rows(spans: dict[Any, list[tuple[int, int]]]) -> None:
    for row in spans.values():
        row.sort()
        assert all(end <= begin for (_, end), (begin, _) in pairwise(row))


def check_events(events: list[Event]) -> None:
    """Rows have names and no two events at once; flows bind to a Send and a Receive."""
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    spans: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    held: dict[Any, dict[int, Event]] = defaultdict(dict)
    for event in events:
        if event["ph"] == "X":
            first = cycle(event["ts"])
            spans[event["pid"], event["tid"]].append((first, first + cycle(event["dur"])))
            held[event["pid"], event["tid"]][first] = event
    assert set(spans) <= named
    check_rows({row: spans for row, spans in spans.items() if row[0] >= FIRST_CHIP_PID})
    ends: dict[str, dict[int, Event]] = {"s": {}, "f": {}}
    for event in events:
        if event["ph"] in ends:
            assert event["id"] not in ends[event["ph"]]
            ends[event["ph"]][event["id"]] = event
    assert set(ends["s"]) == set(ends["f"])
    for number, start in ends["s"].items():
        finish = ends["f"][number]
        assert cycle(finish["ts"]) - cycle(start["ts"]) == HOP
        assert start["pid"] != finish["pid"]
        for event, name in ((start, "SEND"), (finish, "RECEIVE")):
            row = held[event["pid"], event["tid"]]
            at = cycle(event["ts"])
            begin = max(first for first in row if first <= at)
            assert row[begin]["name"] == name and at < begin + cycle(row[begin]["dur"])


@pytest.fixture(scope="module")
def launches(artifact: Artifact) -> list[Launched]:
    cycles = artifact.predicted_cycles
    entries = ("prefill-64", "decode-64", "decode-64")
    tokens = (None, "a", '</script>"\\')
    return [Launched(e, cycles[e], t) for e, t in zip(entries, tokens, strict=True)]


@pytest.fixture(scope="module")
def many() -> Artifact:
    """A collective whose chips run programs of their own."""
    made = compile_functional(named_topology("16"), "all-reduce", 5000, ChipSpec(), "int32")
    return collective_artifact(made, random_words(16, made.source_words, "int32", 0))


def expected_blocks(artifact: Artifact, launches: list[Launched]) -> Counter[tuple[int, str]]:
    """Events by (chip, opcode), counted in the block tables."""
    found: Counter[tuple[int, str]] = Counter()
    for launch in launches:
        for chip in range(artifact.chips):
            for op in artifact.program(launch.entry, chip).blocks["op"]:
                found[chip, Op(int(op)).name] += 1
    return found


def check_whole(artifact: Artifact, launches: list[Launched], path: Path, every: int = 1) -> None:
    """every: the schema is checked of each so many-th event; the rest is of all."""
    plan = TracePlan(artifact, launches)
    write_chrome(plan, path)
    events, about = read(path)
    some = events[::every]
    Draft202012Validator(SCHEMA).validate({"traceEvents": some, "otherData": about})
    check_events(events)
    blocks = blocks_of(events)
    expected = expected_blocks(artifact, launches)
    assert Counter((e["pid"] - FIRST_CHIP_PID, e["name"]) for e in blocks) == expected
    assert len(blocks) == plan.block_events() == about["blocks"] == sum(expected.values())
    assert sum(1 for e in events if e["ph"] != "M") == plan.events()
    sends = sum(e["args"]["instructions"] for e in blocks if e["name"] == "SEND")
    assert sends == sum(e["args"]["vectors"] for e in events if e["ph"] == "s")
    assert about["cycles"] == sum(launch.cycles for launch in launches)


def test_a_generation_is_traced_whole(
    artifact: Artifact, launches: list[Launched], tmp_path: Path
) -> None:
    check_whole(artifact, launches, tmp_path / "trace.json", 17)
    events, _ = read(tmp_path / "trace.json")
    machine = [e for e in events if e["ph"] == "X" and e["pid"] < FIRST_CHIP_PID]
    assert [e["name"] for e in machine if e["tid"] == 0] == [launch.entry for launch in launches]
    assert [e["name"] for e in machine if e["tid"] == 2] == ["a", '</script>"\\']
    stages = sum(cycle(e["dur"]) for e in machine if e["tid"] == 1)
    assert stages == sum(launch.cycles for launch in launches)


def test_chips_of_different_programs_are_traced_whole(many: Artifact, tmp_path: Path) -> None:
    launched = [Launched(ENTRY_POINT, many.predicted_cycles[ENTRY_POINT])]
    assert len(many.programs[ENTRY_POINT]) > 1
    check_whole(many, launched, tmp_path / "trace.json")


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(first=st.integers(0, 9000), length=st.integers(1, 4000), last=st.integers(1, 2))
def test_a_window_shows_what_overlaps_it(
    many: Artifact, tmp_path: Path, first: int, length: int, last: int
) -> None:
    cycles = many.predicted_cycles[ENTRY_POINT]
    launched = [Launched(ENTRY_POINT, cycles)] * 3
    window = Window(first, first + length)
    plan = TracePlan(many, launched, window, last)
    write_chrome(plan, tmp_path / "part.json")
    part, _ = read(tmp_path / "part.json")
    write_chrome(TracePlan(many, launched, EVERYTHING, last), tmp_path / "whole.json")
    whole, _ = read(tmp_path / "whole.json")

    def keys(events: list[Event]) -> Counter[tuple[int, str, int, int]]:
        return Counter(
            (e["pid"], e["name"], cycle(e["ts"]), e["args"]["block"]) for e in blocks_of(events)
        )

    seen = [
        e
        for e in whole
        if e["ph"] == "X"
        and cycle(e["ts"]) < window.last
        and cycle(e["ts"]) + cycle(e["dur"]) > window.first
    ]
    assert keys(part) == keys(seen)
    assert min((cycle(e["ts"]) for e in blocks_of(whole)), default=0) >= (3 - last) * cycles
    assert sum(1 for e in part if e["ph"] != "M") == plan.events()
    check_events(part)


@pytest.fixture(scope="module")
def whole(artifact: Artifact, launches: list[Launched]) -> TracePlan:
    """All of the launches; a strategy's failure prints it short."""
    return TracePlan(artifact, launches)


@settings(max_examples=40, deadline=None)
@given(most=st.integers(60, 40_000))
def test_too_many_events_are_refused_with_a_window_that_fits(whole: TracePlan, most: int) -> None:
    with pytest.raises(InputError, match=r"50,\d\d\d events, and") as refused:
        whole.check_size(most)
    match = re.search(r"--trace-window (\d+):(\d+) would fit", str(refused.value))
    if match is None:
        assert "fewer launches" in str(refused.value) and most < 200
        return
    window = Window(int(match[1]), int(match[2]))
    launches = [traced.launched for traced in whole.launches]
    fits = TracePlan(whole.artifact, launches, window)
    fits.check_size(most)
    assert fits.block_events() > 0


@pytest.mark.long
def test_both_formats_say_the_same(
    artifact: Artifact, launches: list[Launched], tmp_path: Path
) -> None:
    plan = TracePlan(artifact, launches, Window(13_000, 20_000))
    write_chrome(plan, tmp_path / "a.json.gz")
    write_perfetto(plan, tmp_path / "a.pftrace")
    events, _ = read(tmp_path / "a.json.gz")
    trace = Trace()
    trace.ParseFromString((tmp_path / "a.pftrace").read_bytes())
    process: dict[int, int] = {}
    rows: dict[int, str] = {}
    for packet in trace.packet:
        track = packet.track_descriptor
        if track.HasField("process"):
            process[track.uuid] = track.process.pid
        elif packet.HasField("track_descriptor"):
            process[track.uuid], rows[track.uuid] = process[track.parent_uuid], track.name
    spans: dict[int, list[tuple[int, int]]] = defaultdict(list)
    begun: dict[int, Any] = {}
    found: Counter[Any] = Counter()
    flows: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for packet in trace.packet:
        if not packet.HasField("track_event"):
            continue
        event, track = packet.track_event, packet.track_event.track_uuid
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            assert track not in begun
            begun[track] = packet
            flows[0].update(event.flow_ids)
            flows[1].update(event.terminating_flow_ids)
            assert event.name == "SEND" or not event.flow_ids
            assert event.name == "RECEIVE" or not event.terminating_flow_ids
        else:
            first = begun.pop(track)
            spans[track].append((first.timestamp, packet.timestamp))
            found[
                process[track],
                first.track_event.name,
                first.timestamp,
                packet.timestamp - first.timestamp,
            ] += 1
    assert not begun
    check_rows({track: row for track, row in spans.items() if process[track] >= FIRST_CHIP_PID})
    assert found == Counter(
        (e["pid"], e["name"], cycle(e["ts"]), cycle(e["dur"])) for e in events if e["ph"] == "X"
    )
    assert flows[0] == flows[1] and set(flows[0].values()) == {1}
    assert len(flows[0]) == sum(1 for e in events if e["ph"] == "s")
    assert "link[0] send to chip[1]" in rows.values() and "MEM west" in rows.values()
    # tracks that overlap are shown as one, whose lanes need no numbers
    named = [e for e in events if e["ph"] == "M" and e["name"] == "thread_name"]
    lanes = Counter((e["pid"], re.sub(r" \+[0-9]+$", "", e["args"]["name"])) for e in named)
    assert Counter((process[track], name) for track, name in rows.items()) == lanes
    assert max(lanes.values()) > 1


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(1, 12)), max_size=30))
def test_lanes_are_free_and_no_more_than_needed(blocks: list[tuple[int, int, int]]) -> None:
    unit, first, span = (np.array([b[i] for b in blocks], np.int64) for i in range(3))
    lane = lanes(unit, first, first + span)
    rows: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    for i, (u, begin, length) in enumerate(blocks):
        rows[u, int(lane[i])].append((begin, begin + length))
    check_rows(rows)
    for u in set(unit.tolist()):
        mine = [(b, b + n) for v, b, n in blocks if v == u]
        together = max(sum(b <= at < e for b, e in mine) for at, _ in mine)
        assert len({key for key in rows if key[0] == u}) == together


def test_the_same_run_gives_the_same_bytes(many: Artifact, tmp_path: Path) -> None:
    launched = [Launched(ENTRY_POINT, many.predicted_cycles[ENTRY_POINT])]
    for suffix in ("json", "json.gz", "pftrace"):
        one, two = tmp_path / f"one.{suffix}", tmp_path / f"two.{suffix}"
        for path in (one, two):
            TraceRequest(path).write(many, launched)
        assert one.read_bytes() == two.read_bytes() and one.stat().st_size > 1000


def test_a_launch_that_cannot_have_run_has_no_trace(many: Artifact) -> None:
    with pytest.raises(RunError, match="beyond the cycle"):
        TracePlan(many, [Launched(ENTRY_POINT, 100)])


@pytest.mark.parametrize(
    ("path", "window", "launches", "says"),
    [
        ("trace.txt", None, None, r"\.pftrace"),
        ("trace.gz", None, None, r"\.pftrace"),
        ("no/where.json", None, None, "not written"),
        ("trace.json", "5", None, "FIRST:LAST"),
        ("trace.json", "9:5", None, "in order"),
        ("trace.json", "-1:5", None, "FIRST:LAST"),
        ("trace.json", None, 0, "1 or more"),
        (None, "1:2", None, "only with --trace"),
        (None, None, 1, "only with --trace"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, path: str | None, window: str | None, launches: int | None, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        trace_request(None if path is None else tmp_path / path, window, launches)
    assert not list(tmp_path.iterdir())


def test_generate_writes_a_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    base = ["generate", "--in-process", "--max-new-tokens", "2", "--json", "--trace", str(path)]
    assert run([*base, "--trace-launches", "1"]) == 0
    told = json.loads(capsys.readouterr().out)["trace"]
    events, about = read(path)
    assert told["launches"] == 1 and told["blocks"] == len(blocks_of(events)) > 0
    assert about["launches"] == [2]
    path.unlink()
    assert run([*base, "--trace-window", "900000:900001"]) == 2
    said = capsys.readouterr().err
    assert "the run ends at cycle" in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_too_large_a_trace_is_refused_before_the_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.tracing.plan.MAX_EVENTS", 20_000)
    path = tmp_path / "out.json"
    assert run(["generate", "--in-process", "--max-new-tokens", "8", "--trace", str(path)]) == 2
    captured = capsys.readouterr()
    assert "20,000 is the most; --trace-window 0:" in captured.err and not captured.out
    assert not list(tmp_path.iterdir())
