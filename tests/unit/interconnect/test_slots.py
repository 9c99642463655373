"""Link slots against a greedy search over sets of (link, frame), and spreading in a node."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip.spec import PRESETS
from interconnect.wires import concatenate, first_frames, phases, schedule_messages, spread
from interconnect.wires.frames import forward_frames
from interconnect.wires.slots import send_lead
from interconnect.wires.spreading import first_arrivals, paths
from interconnect.wiring import minimal_routes, topology_of
from tests import examples
from tests.stands.wires import SPEC, faults_of, random_schedule

NODE, PAIR, RACK = topology_of(8), topology_of(16), topology_of(72)


def _greedy(
    links: np.ndarray,
    hops: np.ndarray,
    peer_link: np.ndarray,
    vectors: np.ndarray,
    ready: np.ndarray,
) -> list[list[int]]:
    """Start frame of every hop of every message, frame by frame."""
    forward = forward_frames(SPEC)
    taken: set[tuple[int, int]] = set()
    starts = []
    for m in range(len(hops)):
        route = links[m, : hops[m]].tolist()
        offsets = [0]
        for before, here in pairwise(route):
            entry = peer_link[before // 16, before % 16]
            offsets.append(offsets[-1] + int(forward[before % 16, entry, here % 16]))
        start = int(ready[m])

        def frames(start: int, route=route, offsets=offsets, n=int(vectors[m])) -> set:  # type: ignore[no-untyped-def]
            return {
                (link, start + offset + i)
                for link, offset in zip(route, offsets, strict=True)
                for i in range(n)
            }

        while frames(start) & taken:
            start += 1
        taken |= frames(start)
        starts.append([start + offset for offset in offsets])
    return starts


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([NODE, PAIR, RACK]))
def test_every_run_starts_at_the_earliest_frame(seed: int, messages: int, where: object) -> None:
    rng = np.random.default_rng(seed)
    chips = where.chips
    source = rng.integers(0, chips, messages)
    destination = (source + rng.integers(1, chips, messages)) % chips
    vectors, ready = rng.integers(0, 30, messages), rng.integers(0, 50, messages)
    hops, links = minimal_routes(where, source, destination, np.arange(messages))
    free = np.zeros(chips * 16, np.int64)
    done = schedule_messages(
        links,
        hops,
        where.peer_link,
        vectors,
        ready,
        SPEC,
        free,
        sources=source,
        destinations=destination,
    )
    expected = _greedy(links, hops, where.peer_link, vectors, ready)
    starts = [own for own, n in zip(expected, vectors, strict=True) if n]
    flat = np.array([frame for own in starts for frame in own], np.int64)
    assert np.array_equal((done.cycle - phases(SPEC)[done.link]) // 24, flat)
    assert np.array_equal((done.cycle - phases(SPEC)[done.link]) % 24, np.zeros(len(flat)))
    assert faults_of(done, where) == set()
    ends = np.zeros_like(free)
    np.maximum.at(ends, done.directed_link, flat + done.vectors)
    assert np.array_equal(free, ends)


def test_later_calls_start_after_the_frames_given_out_before() -> None:
    hops, links = np.array([1]), np.array([[0]], np.int32)
    free = np.zeros(8 * 16, np.int64)
    vectors, ready, ends = np.array([10]), np.array([5]), np.array([1])
    calls = [
        schedule_messages(
            links,
            hops,
            NODE.peer_link,
            vectors,
            ready,
            SPEC,
            free,
            sources=ends - 1,
            destinations=ends,
        )
        for _ in range(3)
    ]
    assert [int(c.cycle[0]) // 24 for c in calls] == [5, 15, 25]
    assert free[0] == 35 and not free[1:].any()
    whole = concatenate(calls)
    assert whole.message.tolist() == [0, 1, 2] and faults_of(whole, NODE) == set()


def test_messages_without_vectors_or_hops_have_no_rows() -> None:
    hops, links = minimal_routes(NODE, [0, 3, 1], [1, 3, 2], [0, 0, 0])
    done = schedule_messages(
        links,
        hops,
        NODE.peer_link,
        np.array([0, 4, 2]),
        np.zeros(3, np.int64),
        SPEC,
        np.zeros(128, np.int64),
        sources=np.array([0, 3, 1]),
        destinations=np.array([1, 3, 2]),
    )
    assert done.message.tolist() == [2] and done.vector_hops == 2


def test_a_message_without_vectors_changes_nothing_for_the_others() -> None:
    """Beside, before and after it on the same link: the same cycles, and no link is taken on."""
    hops, links = minimal_routes(NODE, [0, 0, 5, 0, 6], [1, 1, 4, 1, 7], [0] * 5)
    ready = np.array([7, 3, 900, 2, 800])
    free, alone = np.zeros(128, np.int64), np.zeros(128, np.int64)

    def scheduled(of: np.ndarray, vectors: list[int], free: np.ndarray) -> np.ndarray:
        ends = np.array([0, 0, 5, 0, 6])[of], np.array([1, 1, 4, 1, 7])[of]
        return schedule_messages(
            links[of],
            hops[of],
            NODE.peer_link,
            np.array(vectors),
            ready[of],
            SPEC,
            free,
            sources=ends[0],
            destinations=ends[1],
        ).cycle

    with_empty = scheduled(np.arange(5), [4, 0, 0, 6, 0], free)
    without = scheduled(np.array([0, 3]), [4, 6], alone)
    assert np.array_equal(with_empty, without) and np.array_equal(free, alone)
    # Four vectors from frame 7; six from frame 2 would reach frame 8, so they follow the four.
    assert ((without - phases(SPEC)[links[0, 0] % 16]) // 24).tolist() == [7, 11]
    assert alone.nonzero()[0].tolist() == [links[0, 0]] and alone[links[0, 0]] == 17


@given(st.integers(0, 10_000), st.sampled_from([0, 3, 10, 13]))
def test_first_frame_is_the_first_that_can_carry_the_word(ready: int, link: int) -> None:
    frame = int(first_frames(np.array([ready]), np.array([link]), SPEC)[0])
    send = 24 * frame + int(phases(SPEC)[link])
    assert send >= ready + send_lead(SPEC)
    assert frame == 0 or send - 24 < ready + send_lead(SPEC)


def test_short_frames_of_the_newer_chip() -> None:
    spec = PRESETS["groq-3-lp30"]
    assert random_schedule(RACK, 1, 200, spec=spec).spacing == 6


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(1, 400), st.integers(0, 7), st.integers(1, 7))
def test_spread_vectors_arrive_as_early_as_possible(n: int, source: int, distance: int) -> None:
    """Against giving each vector in turn to the path on which it arrives first."""
    destination = source ^ distance
    done = spread(NODE, source, destination, n, SPEC)
    hops, links = paths(NODE, source, destination)
    assert len(hops) == 7  # one minimal route and six detours (the paper says seven)
    coming = first_arrivals(NODE, hops, links, SPEC).tolist()
    last = 0
    for _ in range(n):
        path = coming.index(min(coming))
        last = coming[path]
        coming[path] += 24
    assert int(done.vectors.sum()) == n and (done.vectors > 0).all()
    assert int(done.arrival.max()) == last
    assert int(done.arrival.max() - done.arrival.min()) < 2 * 24 or len(done.hops) == 1


def test_spread_between_nodes_takes_the_minimal_route() -> None:
    done = spread(RACK, 0, 71, 5000, SPEC)
    assert done.vectors.tolist() == [5000] and done.hops[0] <= 3


def test_nothing_to_spread_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to send"):
        spread(NODE, 3, 3, 10, SPEC)


def _cut_over(destination: int) -> int:
    """The fewest vectors from chip 0 of which a detour takes some."""
    return next(n for n in range(1, 1000) if len(spread(NODE, 0, destination, n, SPEC).hops) > 1)


def test_calibration_row_20_non_minimal_cut_over() -> None:
    """ISCA'22: no benefit from non-minimal routes below 8 kB.  Emulated: 9,280 to 9,600 B.

    The alpha-beta model with 722 ns a hop gives 10.3 kB.  Here a detour costs the 28 or 29 frames
    of a forward and a cable carries a vector a frame, so the 29th or 30th vector gains; which, the
    phases of the links decide.  Direct is never slower below that size, and slower from it on.
    """
    found = {distance: _cut_over(distance) for distance in range(1, 8)}
    assert {n * 320 for n in found.values()} == {9280, 9600}
    for distance, vectors in found.items():
        hops, links = paths(NODE, 0, distance)
        direct = int(first_arrivals(NODE, hops, links, SPEC)[0])
        for n in (1, vectors - 1, vectors, 2 * vectors):
            together = int(spread(NODE, 0, distance, n, SPEC).arrival.max())
            assert (together < direct + 24 * (n - 1)) == (n >= vectors)


def test_no_schedules_are_none() -> None:
    with pytest.raises(ValueError, match="no schedules: at least one is needed to know latency"):
        concatenate([])
