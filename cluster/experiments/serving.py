"""What serving a trace came to: times of every request, percentiles, goodput, queues, utilisation.

All times are integers of picoseconds since the start of the trace.  Percentiles are by nearest
rank, so each is a time that some request really took.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InputError
from cluster.experiments.arrivals import PS, Trace

I64 = NDArray[np.int64]

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Slo:
    """What a request must keep to count as good: seconds to the first token and per further one."""

    ttft_s: float = 1.0
    tpot_s: float = 0.05

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} {value}: use a finite number of seconds above 0")


@dataclass(frozen=True, eq=False)
class Served:
    """When each request of a trace was served; int64 [requests] each, -1 for a refused one.

    start_ps: it leaves the queue.  first_ps: its first token is there.  second_ps: its second, -1
    where there is none.  done_ps: its last.
    busy_ps: per server (slot of a belt, GPU group), the time it worked; int64 [servers].
    steps, tokens: decode steps of all servers and the tokens those gave, for the mean batch.
    """

    start_ps: I64
    first_ps: I64
    second_ps: I64
    done_ps: I64
    busy_ps: I64
    steps: int
    tokens: int


def percentiles(values: I64 | NDArray[np.float64]) -> dict[str, float | None]:
    """p50, p90, p99 by nearest rank, and the mean, in seconds; picoseconds in; None if empty."""
    names = [f"p{rank}" for rank in PERCENTILES]
    if not len(values):
        return dict.fromkeys([*names, "mean"])
    ordered = np.sort(values)
    found = {
        name: float(ordered[max(math.ceil(rank / 100 * len(ordered)), 1) - 1]) / PS
        for name, rank in zip(names, PERCENTILES, strict=True)
    }
    return {**found, "mean": float(values.mean()) / PS}


def queue_lengths(arrival_ps: I64, start_ps: I64, horizon_ps: int) -> tuple[float, int]:
    """Mean over time and greatest number of waiting requests; a request served at once is none."""
    waits = start_ps > arrival_ps
    arrived, started = arrival_ps[waits], np.sort(start_ps[waits])
    if not len(arrived):
        return 0.0, 0
    # At each arrival: those that came up to it, less those that had started by then.
    ahead = np.arange(1, len(arrived) + 1) - np.searchsorted(started, arrived, side="right")
    waited = int((started.astype(object) - np.sort(arrived).astype(object)).sum())
    return waited / max(horizon_ps, 1), int(ahead.max())


@dataclass(frozen=True, eq=False)
class Latencies:
    """Of the requests that were served, in picoseconds: to the first token, and per further one.

    ttft_ps: int64 [served].  tpot_ps: float64, only of requests with more than one token.
    """

    ttft_ps: I64
    tpot_ps: NDArray[np.float64]


def latencies(trace: Trace, served: Served) -> Latencies:
    """The two latencies of each request that was served."""
    fine = served.done_ps >= 0
    further = trace.output_tokens[fine] - 1
    first, several = served.first_ps[fine], further > 0
    tpot = (served.done_ps[fine] - first)[several] / further[several]
    return Latencies(first - trace.arrival_ps[fine], tpot)


def service_report(trace: Trace, served: Served, slo: Slo) -> dict[str, Any]:
    """The figures of a run as plain data; times in seconds, rates per second.

    goodput_per_s: requests that kept the SLO, per second until the last token; a refused request
    keeps none.  Time per output token is that of the tokens after the first; requests of one token
    have none and need to keep only the time to first token.
    """
    fine = served.done_ps >= 0
    arrival, first, done = trace.arrival_ps[fine], served.first_ps[fine], served.done_ps[fine]
    horizon = int(done.max()) if len(done) else 0
    took = latencies(trace, served)
    ttft, tpot, total = took.ttft_ps, took.tpot_ps, done - arrival
    several = trace.output_tokens[fine] > 1
    good = ttft <= slo.ttft_s * PS
    good[several] &= tpot <= slo.tpot_s * PS
    second = (served.second_ps[fine] - first)[several]
    mean_queue, peak_queue = queue_lengths(arrival, served.start_ps[fine], horizon)
    seconds = horizon / PS
    tokens = int(trace.output_tokens[fine].sum())

    def per_second(count: int) -> float:
        return count / seconds if horizon else 0.0

    servers = len(served.busy_ps)
    return {
        "requests": len(trace),
        "refused": int(len(trace) - fine.sum()),
        "prompt_tokens": int(trace.prompt_tokens[fine].sum()),
        "output_tokens": tokens,
        "virtual_seconds": seconds,
        "ttft_s": percentiles(ttft),
        "second_token_s": percentiles(second),
        "tpot_s": percentiles(tpot),
        "end_to_end_s": percentiles(total),
        "requests_per_s": per_second(int(fine.sum())),
        "tokens_per_s": per_second(tokens),
        "goodput_per_s": per_second(int(good.sum())),
        "good_ratio": int(good.sum()) / len(trace) if len(trace) else 0.0,
        "slo": {"ttft_s": slo.ttft_s, "tpot_s": slo.tpot_s},
        "queue_mean": mean_queue,
        "queue_peak": peak_queue,
        "servers": servers,
        "utilisation": int(served.busy_ps.astype(object).sum()) / (servers * horizon)
        if horizon
        else 0.0,
        "mean_batch": served.tokens / served.steps if served.steps else 0.0,
    }
