"""What serving a trace came to: times of every request, percentiles, goodput, queues, utilisation.

All times are integers of picoseconds since the start of the trace.  Percentiles are by nearest
rank, so each is a time that some request really took.

Every platform is described by the same four stages, of which it may lack some:

- *prefill*: the prompt, up to the first token.  A request waits from its arrival.
- *handover*: its KV cache on the link.  It waits while its last piece could go and does not.
- *decode*: all further tokens.  It waits from when its cache is there (at once where the prefill
  was on the same machine) until a machine takes it.
- *ffn*: feed-forward networks on LPUs of their own, during the decode, whose time contains them.

A stage's queue is how many requests wait for it; its utilisation is the share of its servers' time
that they work for it.  Where the same servers prefill and decode, the two shares add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InputError
from cluster.experiments.serving.arrivals import PS, Trace
from cluster.experiments.serving.scaling import node_ps

I64 = NDArray[np.int64]

PERCENTILES = (50, 90, 99)
STAGES = ("prefill", "handover", "decode", "ffn")
HOST_KINDS = ("gpu_tokens_in", "gpu_tokens_out", "lpu_inputs_in", "lpu_logits_out")
"""What crosses between machines and their hosts."""


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
class ServiceStage:
    """A stage of service.

    machine: what serves; servers: how many.  busy_ps: their time at work for it, together.
    ready_ps, start_ps: per request that came to the stage, when it could begin and when it did;
    int64 [requests], in any order.  capacity_ps: time the servers could have worked, together;
    None: all of them, from the beginning to the end of the run.
    """

    machine: str
    servers: int
    busy_ps: int
    ready_ps: I64
    start_ps: I64
    capacity_ps: int | None = None


NOBODY = np.empty(0, np.int64)
"""Requests of a stage for which nobody waits."""


@dataclass(frozen=True, eq=False)
class Served:
    """When each request of a trace was served; int64 [requests] each, -1 for a refused one.

    start_ps: it leaves the queue.  first_ps: its first token is there.  second_ps: its second, -1
    where there is none.  done_ps: its last.
    busy_ps: per server of any kind (slot of a belt, GPU group), the time it worked; int64
    [servers].  steps, tokens: decode steps of all servers and the tokens those gave, for the mean
    batch.  stages: by name of ``STAGES``, those there are.  host_bytes: by ``HOST_KINDS``, what
    crossed between machines and hosts; None for what is not known, none for what there is not.
    nodes: (instant, GPU groups that are up from then on), where the platform could scale.
    """

    start_ps: I64
    first_ps: I64
    second_ps: I64
    done_ps: I64
    busy_ps: I64
    steps: int
    tokens: int
    stages: dict[str, ServiceStage]
    host_bytes: dict[str, int | None]
    nodes: list[tuple[int, int]] | None = None


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
    arrived, started = np.sort(arrival_ps[waits]), np.sort(start_ps[waits])
    if not len(arrived):
        return 0.0, 0
    # At each arrival: those that came up to it, less those that had started by then.
    ahead = np.arange(1, len(arrived) + 1) - np.searchsorted(started, arrived, side="right")
    waited = int((started.astype(object) - arrived.astype(object)).sum())
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


def _shares(
    servers: int, busy_ps: int, capacity_ps: int | None, waits: tuple[I64, I64], horizon_ps: int
) -> dict[str, Any]:
    mean, peak = queue_lengths(*waits, horizon_ps)
    capacity = servers * horizon_ps if capacity_ps is None else capacity_ps
    return {
        "servers": servers,
        "utilisation": busy_ps / capacity if capacity else 0.0,
        "queue_mean": mean,
        "queue_peak": peak,
    }


def stage_report(stages: dict[str, ServiceStage], horizon_ps: int) -> dict[str, dict[str, Any]]:
    """Of each of ``STAGES`` machine, servers, utilisation, queue_mean and queue_peak.

    A stage that the platform lacks has no machine, 0 servers, and None for the rest.
    """
    report: dict[str, dict[str, Any]] = {}
    for name in STAGES:
        stage = stages.get(name)
        if stage is None:
            lacking = dict.fromkeys(("utilisation", "queue_mean", "queue_peak"))
            report[name] = {"machine": None, "servers": 0, **lacking}
            continue
        waits = (stage.ready_ps, stage.start_ps)
        report[name] = {
            "machine": stage.machine,
            **_shares(stage.servers, stage.busy_ps, stage.capacity_ps, waits, horizon_ps),
        }
    return report


def _nodes(nodes: list[tuple[int, int]] | None, horizon_ps: int) -> dict[str, Any]:
    if nodes is None:
        return {}
    return {
        "nodes": [[at / PS, count] for at, count in nodes],
        "nodes_peak": max(count for _, count in nodes),
        "node_seconds": node_ps(nodes, horizon_ps) / PS,
    }


def service_report(trace: Trace, served: Served, slo: Slo) -> dict[str, Any]:
    """The figures of a run as plain data; times in seconds, rates per second.

    goodput_per_s: requests that kept the SLO, per second until the last token; a refused request
    keeps none.  Time per output token is that of the tokens after the first; requests of one token
    have none and need to keep only the time to first token.
    queue_mean, queue_peak: requests that wait for any stage.  servers, utilisation: of all machines
    of all stages, each counted once, the link not.  nodes: [seconds, GPU groups up from then on],
    their peak, and node_seconds; of GPU pools only.  Until the last token is the end of the run.
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
    seconds = horizon / PS
    tokens = int(trace.output_tokens[fine].sum())

    def per_second(count: int) -> float:
        return count / seconds if horizon else 0.0

    stages = list(served.stages.values())
    waits = (
        np.concatenate([NOBODY, *(stage.ready_ps for stage in stages)]),
        np.concatenate([NOBODY, *(stage.start_ps for stage in stages)]),
    )
    busy = int(served.busy_ps.astype(object).sum())
    # Only a pool that scales has a capacity of its own, and all its stages share it.
    capacity = next((stage.capacity_ps for stage in stages if stage.capacity_ps is not None), None)
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
        **_shares(len(served.busy_ps), busy, capacity, waits, horizon),
        "stages": stage_report(served.stages, horizon),
        "mean_batch": served.tokens / served.steps if served.steps else 0.0,
        "host_bytes": dict.fromkeys(HOST_KINDS, 0) | served.host_bytes,
        **_nodes(served.nodes, horizon),
    }
