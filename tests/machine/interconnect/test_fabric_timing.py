"""The played fabric: digests, faults and counts against plain Python."""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip.faults import LockstepViolation
from interconnect.wires import FabricRun, WireSchedule, simulate
from interconnect.wiring import Topology, topology_of
from tests.stands.wires import SPEC, random_schedule, rows_of

NODE, PAIR, RACK = topology_of(8), topology_of(16), topology_of(72)


def _mix(code: int, place: int, cycle: int) -> int:
    m = 2**64 - 1
    x = code * 0x9E3779B97F4A7C15 & m
    x ^= (cycle * 0xD6E8FEB86659FD93 + place) & m
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & m
    x = (x ^ x >> 27) * 0x94D049BB133111EB & m
    return x ^ x >> 31


def _digest(schedule: WireSchedule) -> int:
    """The sum over every Send and Receive, one by one."""
    total = 0
    for chip, link, cycle, vectors, message, hop in zip(
        *(
            getattr(schedule, n).tolist()
            for n in ("chip", "link", "cycle", "vectors", "message", "hop")
        ),
        strict=True,
    ):
        for i in range(vectors):
            code = (message << 5 | hop) << 26 | i
            place, sent = 2 * (16 * chip + link), cycle + 24 * i
            total += _mix(code, place, sent) + _mix(code, place + 1, sent + 637)
    return total % 2**64


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 80),
    st.sampled_from([NODE, PAIR, RACK]),
    st.integers(1, 637),
)
def test_one_digest_for_all_windows_and_orders_of_rows(
    seed: int, messages: int, where: Topology, window: int
) -> None:
    schedule = random_schedule(where, seed, messages)
    ahead = simulate(schedule, where, SPEC)
    assert ahead.window == 637 and ahead.digest == _digest(schedule)
    shuffled = rows_of(schedule, np.random.default_rng(seed).permutation(len(schedule.chip)))
    for other in (
        simulate(schedule, where, SPEC, window=window),
        simulate(shuffled, where, SPEC),
    ):
        assert (other.digest, other.vector_hops, other.cycles) == (
            ahead.digest,
            ahead.vector_hops,
            ahead.cycles,
        )
    assert ahead.vector_hops == schedule.vector_hops
    assert ahead.cycles == int(schedule.last_send().max()) + SPEC.hop_cycles
    counts = np.bincount(schedule.directed_link, schedule.vectors)
    assert dict(zip(ahead.links.tolist(), ahead.link_vectors.tolist(), strict=True)) == {
        link: int(n) for link, n in enumerate(counts) if n
    }


def test_busy_ratios_are_exact() -> None:
    schedule = random_schedule(NODE, 4, 1)
    run = simulate(schedule, NODE, SPEC)
    link = int(schedule.directed_link[0])
    exact = Fraction(2952, 125) * int(schedule.vectors[0]) / run.cycles
    assert run.busy_ratio(link) == exact and run.busiest() == (link, exact)
    assert run.busy_ratio(link + 1) == 0


def _fault(schedule: WireSchedule, where: Topology = RACK, **how: object) -> LockstepViolation:
    with pytest.raises(LockstepViolation) as caught:
        simulate(schedule, where, SPEC, **how)  # type: ignore[arg-type]
    return caught.value


def test_a_longer_cable_is_found_where_it_ends() -> None:
    """One link a cycle slower: the first vector over it, both chips, both cycles."""
    schedule = random_schedule(RACK, 2, 50)
    slow = int(schedule.directed_link[7])
    link_cycles = np.full(72 * 16, 637)
    link_cycles[slow] += 1
    fault = _fault(schedule, link_cycles=link_cycles)
    sent = int(schedule.cycle[schedule.directed_link == slow].min())
    assert (fault.chip, fault.peer) == (int(RACK.peer[slow // 16, slow % 16]), slow // 16)
    assert "expects vector 0 of message" in str(fault) and str(sent + 637) in str(fault)
    assert f"at cycle {sent + 638}" in str(fault)


def test_two_vectors_at_once_on_a_link() -> None:
    one = random_schedule(NODE, 8, 1)
    names = ("source", "destination", "message_vectors", "ready")
    twice = replace(
        rows_of(one, np.array([0, 0])),
        message=np.array([0, 1]),
        **{n: np.repeat(getattr(one, n), 2) for n in names},
    )
    fault = _fault(twice, NODE)
    assert "is taken by" in str(fault)
    assert (fault.cycle, fault.send_cycle) == (int(one.cycle[0]), int(one.last_send()[0]))
    assert (fault.chip, fault.peer) == (int(one.source[0]), int(one.destination[0]))


def test_a_hop_before_its_vector_is_stored() -> None:
    schedule = random_schedule(RACK, 5, 1)
    assert schedule.hop.tolist() == [0, 1, 2]
    cycle = schedule.cycle.copy()
    cycle[1:] -= 48
    fault = _fault(replace(schedule, cycle=cycle))
    assert fault.chip == schedule.chip[1] and fault.cycle == cycle[1]
    assert f"not before cycle {schedule.cycle[0] + 661}" in str(fault)
    assert "never" in str(_fault(rows_of(schedule, np.array([1, 2]))))


def test_a_vector_for_somebody_else_and_one_that_never_comes() -> None:
    meant = random_schedule(NODE, 3, 20)
    silent = rows_of(meant, np.arange(1, len(meant.chip)))
    assert "what arrives is nothing, never" in str(_fault(silent, NODE, expected=meant))
    alone = random_schedule(NODE, 3, 1)
    nobody = rows_of(alone, np.zeros(0, np.int64))
    assert "expects nothing never" in str(_fault(alone, NODE, expected=nobody))
    astray = (alone.destination + 1) % 8
    fault = _fault(replace(alone, destination=astray), NODE)
    assert f"it is chip {astray[0]} that expects it" in str(fault)
    assert (fault.chip, fault.peer) == (int(alone.destination[0]), int(alone.source[0]))
    assert (fault.cycle, fault.send_cycle) == (int(alone.cycle[0]) + 637, int(alone.cycle[0]))


@pytest.mark.parametrize("window", [0, 638])
def test_windows_are_at_most_the_latency(window: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.637"):
        simulate(random_schedule(NODE, 1, 3), NODE, SPEC, window=window)


def test_numbers_that_do_not_fit_a_vector_name() -> None:
    schedule = random_schedule(NODE, 1, 1)
    with pytest.raises(ValueError, match="a run has"):
        simulate(replace(schedule, vectors=np.array([1 << 26])), NODE, SPEC)


@pytest.mark.long
def test_ten_million_vector_hops_a_second() -> None:
    """On one core; 20 to 100 million measured."""
    schedule = random_schedule(RACK, 1, 400, most=20_000)
    run: FabricRun = simulate(schedule, RACK, SPEC)
    run = min(
        (simulate(schedule, RACK, SPEC, clock=time.perf_counter) for _ in range(3)),
        key=lambda r: r.wall_seconds,
    )
    assert run.vector_hops > 5_000_000
    assert run.vector_hops / run.wall_seconds > 10_000_000
