"""The wire check against one dictionary entry per vector, and damaged schedules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip.faults import LockstepViolation
from chip.spec import ChipSpec
from interconnect.wires import WireSchedule, check_wires, count_conflicts, simulate
from interconnect.wires.check import CODES
from interconnect.wiring import topology_of
from tests import examples
from tests.stands.wires import SPEC, faults_of, random_schedule, rows_of

NODE, PAIR, RACK = topology_of(8), topology_of(16), topology_of(72)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 80), st.sampled_from([NODE, PAIR, RACK]))
def test_schedules_are_legal(seed: int, messages: int, where: object) -> None:
    schedule = random_schedule(where, seed, messages)
    assert [str(f) for f in check_wires(schedule, where, SPEC)] == []
    assert faults_of(schedule, where) == set()


def _set(schedule: WireSchedule, name: str, row: int, value: int) -> WireSchedule:
    column = getattr(schedule, name).copy()
    column[row] = value
    return replace(schedule, **{name: column})


def _one_vector_apart(schedule: WireSchedule, row: int, vector: int) -> tuple[WireSchedule, int]:
    """The run of ``row`` as up to three rows, one of them the single vector: its number."""
    total = int(schedule.vectors[row])
    parts = [(0, vector), (vector, vector + 1), (vector + 1, total)]
    parts = [(a, b) for a, b in parts if b > a]
    rows = np.arange(len(schedule.chip))
    apart = rows_of(schedule, np.repeat(rows, np.where(rows == row, len(parts), 1)))
    cycle, vectors = apart.cycle.copy(), apart.vectors.copy()
    for i, (a, b) in enumerate(parts):
        cycle[row + i] += a * schedule.spacing
        vectors[row + i] = b - a
    return replace(apart, cycle=cycle, vectors=vectors), row + parts.index((vector, vector + 1))


@settings(max_examples=examples(300), deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([NODE, PAIR, RACK]),
    st.booleans(),
    st.sampled_from(["sooner", "later", "link"]),
    st.data(),
)
def test_one_send_moved_is_rejected(
    seed: int, where: object, single: bool, move: str, data: st.DataObject
) -> None:
    """300 schedules with a Send (a whole run or one vector of it) a cycle off or on another link.

    The check finds it, the vector-by-vector check finds it, and receivers that go by the schedule
    as it was meant fall out of step.
    """
    meant = random_schedule(where, seed, 30)
    row = data.draw(st.integers(0, len(meant.chip) - 1))
    schedule = meant
    if single:
        vector = data.draw(st.integers(0, int(meant.vectors[row]) - 1))
        schedule, row = _one_vector_apart(meant, row, vector)
    if move == "link":
        others = [link for link in range(16) if link != int(schedule.link[row])]
        moved = _set(schedule, "link", row, data.draw(st.sampled_from(others)))
    else:
        step = 1 if move == "later" else -1
        moved = _set(schedule, "cycle", row, int(schedule.cycle[row]) + step)
    findings = check_wires(moved, where, SPEC)
    assert findings and all(f.code in CODES for f in findings)
    assert single or faults_of(moved, where)
    wired = where.peer[moved.chip[row], moved.link[row]] >= 0
    if not single and wired:
        with pytest.raises(LockstepViolation):
            simulate(moved, where, SPEC, expected=meant)


def _codes(schedule: WireSchedule, where: object = RACK, spec: ChipSpec = SPEC) -> set[str]:
    return {f.code for f in check_wires(schedule, where, spec)}


def test_every_rule_has_a_schedule_that_breaks_it() -> None:
    legal = random_schedule(RACK, 5, 60)
    row = int(np.flatnonzero(legal.hop == 1)[0])
    before = int(np.flatnonzero((legal.message == legal.message[row]) & (legal.hop == 0))[0])
    assert _codes(_set(legal, "chip", row, 99)) == {"bounds"}
    assert _codes(_set(legal, "link", row, 7)) == {"unwired"}
    assert "phase" in _codes(_set(legal, "cycle", row, int(legal.cycle[row]) + 1))
    assert "late" in _codes(_set(legal, "cycle", row, int(legal.cycle[row]) + 24))
    assert "early" in _codes(_set(legal, "cycle", row, int(legal.cycle[before])))
    assert "early" in _codes(_set(legal, "ready", int(legal.message[row]), 10**6))
    assert "vectors" in _codes(_set(legal, "vectors", row, int(legal.vectors[row]) + 1))
    assert "route" in _codes(_set(legal, "destination", int(legal.message[row]), 0))
    rows = np.arange(len(legal.chip))
    assert "route" in _codes(rows_of(legal, rows[rows != before]))
    assert "route" in _codes(rows_of(legal, np.append(rows, row)))
    lost = rows[legal.message != legal.message[row]]
    assert _codes(rows_of(legal, lost)) == {"vectors"}


def test_capacity_is_the_exact_fraction() -> None:
    """23 cycles a vector are fewer than 2952/125, 24 are not."""
    legal = random_schedule(NODE, 3, 40)
    slower = ChipSpec(packet_bytes=334)  # 24.048 cycles a vector
    assert _codes(legal, NODE) == set()
    assert _codes(legal, NODE, slower) == {"capacity"}


def test_a_conflict_names_chips_link_and_cycles() -> None:
    both = random_schedule(NODE, 8, 1)
    twice = replace(
        rows_of(both, np.array([0, 0])),
        message=np.array([0, 1]),
        **{
            n: np.repeat(getattr(both, n), 2)
            for n in ("source", "destination", "message_vectors", "ready")
        },
    )
    (finding,) = [f for f in check_wires(twice, NODE, SPEC) if f.code == "overlap"]
    assert finding.chips == (int(both.chip[0]), int(both.destination[0]))
    assert finding.link == both.link[0] and finding.cycles == (int(both.cycle[0]),) * 2
    assert "message 0" in str(finding) and "message 1" in str(finding)


@settings(max_examples=examples(100), deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_conflicts_behind_a_long_run_are_counted(seed: int) -> None:
    """Runs at random cycles, not in the order of slots: against all pairs."""
    rng = np.random.default_rng(seed)
    schedule = random_schedule(NODE, seed, 12)
    cycle = rng.integers(0, 600, len(schedule.chip))
    link = rng.integers(0, 2, len(schedule.chip))
    mixed = replace(schedule, cycle=cycle, link=link, chip=np.zeros_like(link))
    order = sorted(range(len(cycle)), key=lambda r: (cycle[r], schedule.message[r]))
    count = sum(
        any(link[a] == link[b] and cycle[b] < mixed.last_send()[a] + 24 for a in order[:i])
        for i, b in enumerate(order)
    )
    assert count_conflicts(mixed) == count


def test_an_empty_schedule_is_legal() -> None:
    empty = rows_of(random_schedule(NODE, 1, 1), np.zeros(0, np.int64))
    none = np.zeros(0, np.int64)
    empty = replace(empty, source=none, destination=none, message_vectors=none, ready=none)
    assert check_wires(empty, NODE, SPEC) == [] and count_conflicts(empty) == 0
