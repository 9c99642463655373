"""Serving in virtual time against a slow oracle, and what the figures mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.experiments.serving import (
    PS,
    Belt,
    Lengths,
    Served,
    Slo,
    Trace,
    bursts,
    percentiles,
    poisson,
)
from cluster.experiments.serving.batching import I64, serve_batched
from cluster.experiments.serving.belt import given_belt
from cluster.experiments.serving.figures import queue_lengths, service_report
from cluster.experiments.serving.slots import BeltPlaces, serve_on_belts
from tests import examples
from tests.oracles.load_oracle import batched, belted


class Tens:
    """Coarse costs in round numbers, so that many events fall on one instant."""

    max_batch = 3
    kv_tokens = 40

    def prefill_ps(self, tokens: int) -> int:
        return 10 * (1 + tokens // 4)

    def decode_ps(self, batch: int, context: int, steps: int) -> I64:
        return 10 + 10 * ((context + batch * np.arange(steps, dtype=np.int64)) // 16)

    def step_ps(self, contexts: list[int]) -> int:
        return 10 + 10 * (sum(contexts) // 16)


requests = st.lists(
    st.tuples(st.integers(0, 12), st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=40
)


def trace_of(rows: list[tuple[int, int, int]], gap: int = 10) -> Trace:
    gaps, prompt, output = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    return Trace(np.cumsum(gap * gaps), prompt, output, "test")


def times_of(served: Served) -> tuple[list[int], ...]:
    columns = (served.start_ps, served.first_ps, served.second_ps, served.done_ps)
    return tuple(column.tolist() for column in columns)


@settings(max_examples=examples(200), deadline=None)
@given(requests, st.integers(1, 4))
def test_batching_is_what_the_oracle_says(rows: list[tuple[int, int, int]], servers: int) -> None:
    trace, cost = trace_of(rows), Tens()
    served = serve_batched(trace, cost, servers)
    expected = batched(
        trace.arrival_ps.tolist(),
        trace.prompt_tokens.tolist(),
        trace.output_tokens.tolist(),
        cost.prefill_ps,
        cost.step_ps,
        cost.max_batch,
        cost.kv_tokens,
        servers,
    )
    assert times_of(served) == expected
    fine = served.done_ps >= 0
    assert served.tokens == int((trace.output_tokens[fine] - 1).sum())


BELT = Belt(PS, (4, 16, 32), (3, 4, 6), (5, 7, 9), (1, 2), "compiled: in a test")


@settings(max_examples=examples(150), deadline=None)
@given(
    requests,
    st.integers(1, 3),
    st.sampled_from([None, 2, 3, 5, 11]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([(1, 2), (4, 5)]),
)
def test_belt_is_what_the_oracle_says(
    rows: list[tuple[int, int, int]],
    pipelines: int,
    interval: int | None,
    room: int,
    stages: int,
    host: tuple[int, int],
) -> None:
    """An interval given for one stage, else the belt of the stages, each as long."""
    trace = trace_of(rows, gap=3)
    belt = replace(BELT, host_cycles=host, most_places=room, stages=stages)
    compiled = interval is not None and stages > 1
    if compiled:
        belt = replace(belt, intervals=(interval,) * 3)
    else:
        belt = replace(belt, interval_cycles=interval)
    longest = max((p + n - 1 for _, p, n in rows if p + n - 1 <= belt.context), default=1)
    # The schedule of the bucket that holds the longest: its slowest token is the turn.
    slowest = 5 if longest <= 4 else 7 if longest <= 16 else 9
    lockstep = stages * interval if compiled and interval else 0
    turn = max(slowest, lockstep) + host[1]

    def cycles(position: int, logits: bool) -> int:
        bucket = next(i for i, limit in enumerate(belt.buckets) if position < limit)
        if logits:
            return max(belt.decode_cycles[bucket], lockstep) + host[1]
        return belt.prefill_cycles[bucket] + host[0]

    served = serve_on_belts(trace, belt, pipelines)
    expected = belted(
        trace.arrival_ps.tolist(),
        trace.prompt_tokens.tolist(),
        trace.output_tokens.tolist(),
        cycles,
        belt.context,
        pipelines,
        interval if interval is None or compiled else min(interval, turn),
        turn,
        room,
        stages if compiled else None,
        max(interval or 1, host[0]),
    )
    assert times_of(served) == expected


def test_a_belt_by_hand() -> None:
    """Three requests on three stages, a beat of 3 cycles: a token takes 9 and 2 for the host.

    Its schedule alone takes 10 before a transfer of 1, so a turn is 11: slots 0, 3, 6, 11, 14, ...
    The first request's four tokens enter at 0, 3, 6 and 11, the token is there at 22, and its slot
    is 0, of every turn: 22, 33, 44.  The second, ready at 5, reads after it: 14 and 17, there at
    28; its one further token enters then, in slot 6.  The third asks for one token: at 22 the first
    has the slot, so 25.
    """
    belt = Belt(10**9, (32,), (10,), (5,), (1, 2), "compiled: in a test", intervals=(3,), stages=3)
    assert (belt.turn, belt.places, belt.interval_source) == (11, 3, "compiled")
    places = BeltPlaces(belt, 1)
    assert places.enter(0, 4, 4) == (0, 22, 33, 55, 44)
    assert places.enter(5, 2, 2) == (14, 28, 39, 39, 22)
    assert places.enter(6, 1, 1) == (25, 36, -1, 36, 11)
    # Slots taken: the first at 0, 11, 22, 33, 44; the second at 3, 14, 25; the third at 6, 17, 28.
    assert places.busy.tolist() == [55, 33, 33]


def test_a_slow_host_makes_no_slots_and_feeds_no_faster() -> None:
    """Three stages of 3 cycles and 5 or 6 for the host: a turn of 9 + 6, slots 0, 3, 6, 15, ...

    5 intervals would fit into the turn, but no more than three tokens are on the belt.  A token of
    a prompt takes the host 5: they enter at 0, 6 and 15, and the next request's at 21, after 20.
    """
    belt = Belt(10**9, (32,), (8,), (8,), (5, 6), "compiled: in a test", intervals=(3,), stages=3)
    assert (belt.turn, belt.slots, belt.feeding_cycles) == (15, 3, 5)
    places = BeltPlaces(belt, 1)
    assert places.enter(0, 3, 1) == (0, 30, -1, 30, 45)
    assert places.enter(0, 1, 1) == (21, 36, -1, 36, 15)
    given = replace(belt, intervals=(), interval_cycles=3)
    assert (given.turn, given.slots) == (14, 4)


def test_a_prompt_follows_itself_through_stages() -> None:
    """Alone on three stages: beats as the compiler has them, or one by one where that is sooner."""
    belt = Belt(
        10**9,
        (4, 16),
        (30, 60),
        (33, 66),
        (1, 2),
        "compiled",
        stages=3,
        prompt_cycles=((11, 9), (22, 18)),
    )
    assert belt.places == 1
    # Five tokens: beats of positions 0 to 3, then 4 in it, behind it and at the end; transfers.
    assert belt.reading(5) == 4 * (11 + 1) + 2 * (22 + 1) + 18 + 2
    assert belt.reading(1) == 2 * (11 + 1) + 9 + 2
    slow = replace(belt, prompt_cycles=((20, 40), (22, 18)))
    assert slow.reading(1) == 33 + 2
    went = BeltPlaces(belt, 1).enter(7, 5, 3)
    assert went.first == 7 + belt.reading(5)
    assert (went.second, went.done) == (went.first + 68, went.first + 2 * 68)


@settings(max_examples=examples(50), deadline=None)
@given(st.integers(1, 32))
def test_a_belt_for_short_requests_is_that_of_their_bucket(positions: int) -> None:
    belt = replace(BELT, intervals=(2, 3, 4), stages=3).up_to(positions)
    count = 1 + (positions > 4) + (positions > 16)
    assert belt.buckets == BELT.buckets[:count] and belt.interval == count + 1
    # Three beats of 2, 3 or 4 cycles are longer than 5, 7 or 9 of the schedule; 2 for the host.
    assert belt.turn == (8, 11, 14)[count - 1]
    assert belt.places == 3
    assert replace(belt, most_places=2).places == 2


def test_percentiles_are_by_nearest_rank() -> None:
    values = np.arange(1, 101, dtype=np.int64)[::-1] * PS
    assert percentiles(values) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "mean": 50.5}
    assert percentiles(values[:1]) == {"p50": 100.0, "p90": 100.0, "p99": 100.0, "mean": 100.0}
    assert percentiles(values[:0])["p50"] is None


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=30))
def test_queue_lengths_are_those_counted_instant_by_instant(rows: list[tuple[int, int]]) -> None:
    arrival = np.cumsum([gap for gap, _ in rows]).astype(np.int64)
    start = arrival + np.array([wait for _, wait in rows], np.int64)
    horizon = int(start.max()) + 1 if rows else 0
    counts = [
        sum(a <= now < s for a, s in zip(arrival, start, strict=True)) for now in range(horizon)
    ]
    mean, peak = queue_lengths(arrival, start, horizon)
    assert mean == pytest.approx(sum(counts) / horizon if horizon else 0)
    assert peak == max(counts, default=0)


def test_report_of_a_run_worked_out_by_hand() -> None:
    """Two requests of 3 and 2 answer tokens, 1 s per prompt and answer token, one at a time."""
    trace = Trace(*(np.array(v, np.int64) for v in ([0, PS], [1, 2], [3, 2])), "by hand")
    report = service_report(trace, serve_on_belts(trace, given_belt(1, 1, 8), 1), Slo(2.0, 1.0))
    assert report["ttft_s"]["p50"] == 1 and report["ttft_s"]["p99"] == 4
    assert report["tpot_s"]["p50"] == report["tpot_s"]["p99"] == 1
    assert report["end_to_end_s"]["p99"] == 5
    assert report["virtual_seconds"] == 6 and report["utilisation"] == 1
    assert report["goodput_per_s"] == 1 / 6 and report["good_ratio"] == 0.5
    assert report["queue_peak"] == 1 and report["queue_mean"] == pytest.approx(2 / 6)


def test_requests_that_can_never_fit_are_refused_and_counted() -> None:
    trace = Trace(*(np.array(v, np.int64) for v in ([0, 0, 0], [9, 2, 5], [1, 2, 4])), "long")
    report = service_report(trace, serve_on_belts(trace, given_belt(1, 1, 8), 1), Slo())
    assert (report["requests"], report["refused"], report["output_tokens"]) == (3, 1, 6)


def test_same_seed_same_arrivals_and_rates_are_kept() -> None:
    for make in (poisson, bursts):
        one, same, other = (make(20.0, 20_000, Lengths(), seed) for seed in (3, 3, 4))
        for name in ("arrival_ps", "prompt_tokens", "output_tokens"):
            assert np.array_equal(getattr(one, name), getattr(same, name))
            assert not np.array_equal(getattr(one, name), getattr(other, name))
        assert np.all(np.diff(one.arrival_ps) >= 0)
        assert one.arrival_ps[-1] / PS == pytest.approx(1000, rel=0.1)
        assert np.median(one.prompt_tokens) == pytest.approx(64, rel=0.05)
    gaps = np.diff(poisson(20.0, 20_000, Lengths(), 0).arrival_ps) / PS
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


@pytest.mark.parametrize(
    "make",
    [
        lambda: poisson(0, 5, Lengths(), 0),
        lambda: poisson(float("nan"), 5, Lengths(), 0),
        lambda: poisson(1.0, 0, Lengths(), 0),
        lambda: poisson(1.0, 10**9, Lengths(), 0),
        lambda: poisson(1e-9, 5, Lengths(), 0),
        lambda: poisson(1.0, 5, Lengths(), -1),
        lambda: bursts(1.0, 5, Lengths(), 0, burst=0),
        lambda: Lengths(prompt_median=0),
        lambda: Lengths(spread=-1),
        lambda: Slo(ttft_s=0),
        lambda: given_belt(0, 1, 8),
        lambda: given_belt(10, 1, 8, interval_cycles=11),
        lambda: given_belt(10, 1, 8, interval_cycles=0),
        lambda: given_belt(10, 1, 1 << 40),
    ],
)
def test_senseless_settings_are_refused(make: object) -> None:
    with pytest.raises(InputError) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
