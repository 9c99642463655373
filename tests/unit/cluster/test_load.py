"""Serving in virtual time against a slow oracle, and what the figures mean."""

from __future__ import annotations

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
from cluster.experiments.serving.belt import given_belt, serve_on_belts
from cluster.experiments.serving.figures import queue_lengths, service_report
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


@settings(max_examples=examples(100), deadline=None)
@given(requests, st.integers(1, 3), st.sampled_from([None, 3, 5, 11]))
def test_belt_is_what_the_oracle_says(
    rows: list[tuple[int, int, int]], pipelines: int, interval: int | None
) -> None:
    trace = trace_of(rows, gap=3)
    belt = Belt(
        BELT.clock_hz,
        BELT.buckets,
        BELT.prefill_cycles,
        BELT.decode_cycles,
        BELT.host_cycles,
        BELT.source,
        interval,
    )

    def cycles(position: int, logits: bool) -> int:
        bucket = next(i for i, limit in enumerate(belt.buckets) if position < limit)
        return belt.decode_cycles[bucket] + 2 if logits else belt.prefill_cycles[bucket] + 1

    served = serve_on_belts(trace, belt, pipelines)
    expected = belted(
        trace.arrival_ps.tolist(),
        trace.prompt_tokens.tolist(),
        trace.output_tokens.tolist(),
        cycles,
        belt.context,
        pipelines,
        None if interval == 11 else interval,
        11,
    )
    assert times_of(served) == expected


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
