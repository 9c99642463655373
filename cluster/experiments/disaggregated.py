"""Prefill here, decode there: platforms of GPUs, prefill GPUs (Rubin CPX) and LPUs side by side.

- ``gpu-only``: continuous batching; ``lpu-only``: the prompt token by token on the pipeline.
- ``gpu+lpu``, ``cpx+lpu``: prompts on GPUs, one after another; the KV cache crosses the link, whole
  (*serial*) or each layer when it is done (*layers*); the answer on LPU pipelines.
- ``gpu+lpu-ffn``: the same GPUs prefill and do the attention of every decode step, LPUs the
  feed-forward networks (``split_layers``).
- ``cpx+lpu+gpu``: prompts on CPX, KV cache to GPUs, decode split as above.

All KV caches cross one link, first come, first served.  Where layers are split every GPU group has
a link and LPUs of its own, whatever the number of pipelines.  Stages
feed forward only, so each is computed for all requests before the next; the first token is there
when the prefill ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InputError
from cluster.experiments.arrivals import PS, Trace, check_time
from cluster.experiments.batching import MAX_SERVERS, serve_batched
from cluster.experiments.belt import (
    MAX_CYCLES,
    MOST_PLACES,
    Belt,
    cycles_to_ps,
    ride,
    serve_on_belts,
)
from cluster.experiments.load import MAX_BATCH, RooflineCost
from cluster.experiments.serving import Latencies, Served, Slo, latencies, service_report
from cluster.experiments.split_layers import SplitCost
from cluster.gpu.link import LinkLedger, WorldLink
from cluster.gpu.roofline import GpuGroup
from programs.architectures import ARCHITECTURES, Architecture

I64 = NDArray[np.int64]

HANDOVERS = ("serial", "layers")
TOKEN_BYTES = 4
KV_MODELS = (
    "llama-2-70b", "llama-3-70b", "opt-66b", "llama-3-405b", "deepseek-v3", "qwen3-8b",
    "qwen3-235b",
)  # fmt: skip
"""Models whose KV bytes per token are published or easily checked; all in 16 bits."""


@dataclass(frozen=True)
class Site:
    """The machines of all platforms.

    gpu, cpx: one group each, ``groups`` of them; belt: one LPU pipeline, ``pipelines`` of them.
    ffn_cycles: one layer's feed-forward network of one token on LPUs; ffn_source says from where.
    """

    arch: Architecture
    gpu: GpuGroup
    cpx: GpuGroup
    belt: Belt
    link: WorldLink
    ffn_cycles: int
    ffn_source: str
    handover: str = "layers"
    groups: int = 1
    pipelines: int = 1
    max_batch: int = 64

    def __post_init__(self) -> None:
        if self.handover not in HANDOVERS:
            raise InputError(f"handover {self.handover}: use {' or '.join(HANDOVERS)}")
        for name, most in (
            ("groups", MAX_SERVERS), ("pipelines", MOST_PLACES // self.belt.places),
            ("ffn_cycles", MAX_CYCLES), ("max_batch", MAX_BATCH),
        ):  # fmt: skip
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"{name} {getattr(self, name)}: use 1 to {most:,}")

    def split(self, prefilled: bool) -> SplitCost:
        """Attention on the GPUs, networks on the LPUs."""
        return SplitCost(
            self.gpu, self.arch, self.link, self.ffn_cycles, self.belt.clock_hz,
            min(self.belt.interval_cycles or self.ffn_cycles, self.ffn_cycles),
            self.max_batch, prefilled,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Outcome:
    """A trace on a platform: bytes over the link by kind, and figures of stages before the last.

    exposed_ps: from the end of a prefill to the arrival of its last KV byte, int64, -1 where
    nothing was handed over; None where the platform hands nothing over.
    """

    served: Served
    nbytes: dict[str, int]
    exposed_ps: I64 | None = None
    prefill_utilisation: float | None = None
    link_utilisation: float | None = None


def kv_bytes(arch: Architecture, prompt_tokens: int) -> int:
    """Bytes of a prompt's KV cache, 16-bit values."""
    return arch.kv_bytes_per_token() * prompt_tokens


def exposed_by_formula(nbytes: int, link: WorldLink, prefill_s: float, layers: int) -> float:
    """Seconds a layer-by-layer handover shows on an idle link, by the published kind of formula.

    max(0, S/B - t_prefill (1 - 1/layers)) + last layer + latency; one layer stands for a serial
    handover, S/B + latency.  An upper bound: where the link
    is slower than the prefill it counts the last layer twice, at most one layer's S/(B layers).
    """
    whole, last = link.occupied_seconds(nbytes), link.occupied_seconds(-(-nbytes // layers))
    if layers == 1:
        return whole + link.latency_s
    return max(0.0, whole - prefill_s * (1 - 1 / layers)) + last + link.latency_s


def one_by_one(ready_ps: Sequence[int], span_ps: Sequence[int], servers: int) -> tuple[I64, I64]:
    """Begin and end of jobs on equal servers, first come, first served; ps, int64 [jobs]."""
    free = [0] * servers
    begin = []
    for ready, span in zip(ready_ps, span_ps, strict=True):
        server = free.index(min(free))
        begin.append(max(ready, free[server]))
        free[server] = begin[-1] + span
        check_time(free[server] / PS)
    started = np.array(begin, np.int64)
    return started, started + np.array(span_ps, np.int64)


def hand_over(
    begin: I64, end: I64, nbytes: Sequence[int], layers: int, ledger: LinkLedger, handover: str
) -> I64:
    """When each request's KV cache and first token have crossed; ps, int64 [requests].

    begin, end: of the prefills, ps; layers are done at equal intervals.  The token travels in
    front of the last piece.
    """
    sends: list[tuple[int, int, int, int]] = []
    for request, (first, last, whole) in enumerate(
        zip(begin.tolist(), end.tolist(), nbytes, strict=True)
    ):
        pieces = layers if handover == "layers" else 1
        for piece in range(pieces):
            at = first + (last - first) * (piece + 1) // pieces
            part = whole * (piece + 1) // pieces - whole * piece // pieces
            sends.append((at, request, piece, part))
    sends.sort()
    arrived = np.zeros(len(begin), np.int64)
    for at, request, piece, part in sends:
        if piece == (layers if handover == "layers" else 1) - 1:
            ledger.send("tokens", TOKEN_BYTES, at / PS)
        arrival = ledger.send("kv", part, at / PS)
        check_time(arrival)
        arrived[request] = round(arrival * PS)
    return arrived


def _select(trace: Trace, rows: I64) -> Trace:
    return Trace(
        trace.arrival_ps[rows], trace.prompt_tokens[rows], trace.output_tokens[rows], trace.source
    )


def _prefilled(
    trace: Trace, site: Site, group: GpuGroup, fine: I64
) -> tuple[I64, I64, I64, I64, LinkLedger]:
    """Begin and end of the prefill of requests ``fine``, those with more to come, their arrival."""
    spans = {
        tokens: round(group.prefill_seconds(site.arch, tokens) * PS)
        for tokens in set(trace.prompt_tokens[fine].tolist())
    }
    begin, end = one_by_one(
        trace.arrival_ps[fine].tolist(),
        [spans[tokens] for tokens in trace.prompt_tokens[fine].tolist()],
        site.groups,
    )
    more = np.flatnonzero(trace.output_tokens[fine] > 1)
    ledger = LinkLedger(site.link)
    nbytes = [kv_bytes(site.arch, n) for n in trace.prompt_tokens[fine[more]].tolist()]
    arrived = hand_over(begin[more], end[more], nbytes, site.arch.layers, ledger, site.handover)
    return begin, end, more, arrived, ledger


def _two_stages(trace: Trace, site: Site, group: GpuGroup, split: bool) -> Outcome:
    """Prefill on ``group``, then decode on LPU pipelines or, ``split``, on GPUs with LPUs."""
    fits = group.max_sequences(site.arch, 1) >= trace.prompt_tokens
    if split:
        total = trace.prompt_tokens + trace.output_tokens
        fits &= total <= site.split(True).kv_tokens
    else:
        fits &= site.belt.fits(trace.prompt_tokens, trace.output_tokens)
    fine = np.flatnonzero(fits)
    begin, end, more, arrived, ledger = _prefilled(trace, site, group, fine)
    start, first, second, done, exposed = (np.full(len(trace), -1, np.int64) for _ in range(5))
    start[fine], first[fine], done[fine] = begin, end, end
    later = fine[more]
    exposed[later] = arrived - end[more]
    order = np.argsort(arrived, kind="stable")
    rows = later[order]
    nbytes = dict(ledger.bytes_by_kind)
    if split:
        cost = site.split(True)
        # The first token is here already: a request joins with it, as after a prefill.
        job = replace(_select(trace, rows), arrival_ps=arrived[order])
        went = serve_batched(job, cost, site.groups)
        second[rows], done[rows] = went.second_ps, went.done_ps
        busy, steps, tokens = went.busy_ps, went.steps, went.tokens
        nbytes["activations"] = 2 * site.arch.layers * cost.crossing_bytes(tokens)
    else:
        clock = site.belt.clock_hz
        spans = site.belt.spans(trace.prompt_tokens[rows], trace.output_tokens[rows], cached=True)
        rode = ride(arrived[order], spans, site.belt, site.pipelines)
        for times, span in ((second, spans.second), (done, spans.done)):
            times[rows] = [cycles_to_ps(cycle, clock) for cycle in (rode.entry + span).tolist()]
        busy = rode.busy_ps
        steps = tokens = int((trace.output_tokens[rows] - 1).sum())
    horizon = int(done.max(initial=0))
    return Outcome(
        Served(start, first, second, done, busy, steps, tokens),
        nbytes,
        exposed,
        int((end - begin).sum()) / (site.groups * horizon) if horizon else 0.0,
        ledger.utilisation(horizon / PS) if horizon else 0.0,
    )


def _gpu_only(trace: Trace, site: Site) -> Outcome:
    cost = RooflineCost(site.gpu, site.arch, site.max_batch)
    return Outcome(serve_batched(trace, cost, site.groups), {})


def _lpu_only(trace: Trace, site: Site) -> Outcome:
    return Outcome(serve_on_belts(trace, site.belt, site.pipelines), {})


def _gpu_with_networks(trace: Trace, site: Site) -> Outcome:
    cost = site.split(False)
    served = serve_batched(trace, cost, site.groups)
    return Outcome(
        served, {"activations": 2 * site.arch.layers * cost.crossing_bytes(served.tokens)}
    )


PLATFORMS: dict[str, Callable[[Trace, Site], Outcome]] = {
    "gpu-only": _gpu_only,
    "lpu-only": _lpu_only,
    "gpu+lpu": lambda trace, site: _two_stages(trace, site, site.gpu, split=False),
    "cpx+lpu": lambda trace, site: _two_stages(trace, site, site.cpx, split=False),
    "gpu+lpu-ffn": _gpu_with_networks,
    "cpx+lpu+gpu": lambda trace, site: _two_stages(trace, site, site.cpx, split=True),
}


def run_disaggregated(
    trace: Trace, single: tuple[int, int], site: Site, slo: Slo, platforms: Sequence[str],
    took: dict[str, Latencies] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Each platform with one request alone (``single``: prompt and answer tokens), then ``trace``.

    took: is given the latencies of each platform's requests of ``trace``.
    Plain data, times in seconds.  ``ttft_s``, ``second_token_s`` and ``tpot_s`` at the top are
    those of the request alone.
    """
    zero, prompt, output = (np.array([value], np.int64) for value in (0, *single))
    alone = Trace(zero, prompt, output, "one request")
    reports: dict[str, dict[str, Any]] = {}
    for name in platforms:
        if name not in PLATFORMS:
            raise InputError(f"platform {name}: known are {', '.join(PLATFORMS)}")
        outcome = PLATFORMS[name](trace, site)
        reports[name] = {
            "alone": _alone(alone, PLATFORMS[name](alone, site), site, name),
            "load": _under_load(trace, outcome, slo),
        }
        if took is not None:
            took[name] = latencies(trace, outcome.served)
    belt = site.belt
    return {
        "experiment": "disaggregated",
        "model": site.arch.name,
        "gpu": site.gpu.spec.name,
        "cpx": site.cpx.spec.name,
        "tensor_parallel": site.gpu.tensor_parallel,
        "groups": site.groups,
        "pipelines": site.pipelines,
        "link": site.link.name,
        "handover": site.handover,
        "lpu_costs": belt.source,
        "lpu_decode_cycles": list(belt.decode_cycles),
        "lpu_cycles_exact": belt.exact,
        "lpu_initiation_interval": "none" if belt.interval_cycles is None else "given",
        "lpu_ffn_cycles_per_layer": site.ffn_cycles,
        "lpu_ffn_costs": site.ffn_source,
        "arrivals": trace.source,
        "prompt_tokens": single[0],
        "output_tokens": single[1],
        "kv_bytes_per_token": {name: ARCHITECTURES[name].kv_bytes_per_token() for name in KV_MODELS}
        | {site.arch.name: site.arch.kv_bytes_per_token()},
        **{
            key: {name: report["alone"][key] for name, report in reports.items()}
            for key in ("ttft_s", "second_token_s", "tpot_s", "end_to_end_s")
        },
        "platforms": reports,
    }


def _alone(alone: Trace, outcome: Outcome, site: Site, name: str) -> dict[str, Any]:
    """The figures of one request without company; None where it has none or is refused."""
    served, output = outcome.served, int(alone.output_tokens[0])
    first, second, done = (
        int(times[0]) for times in (served.first_ps, served.second_ps, served.done_ps)
    )
    fine, several = done >= 0, done >= 0 and output > 1
    report: dict[str, Any] = {
        "refused": not fine,
        "ttft_s": first / PS if fine else None,
        "second_token_s": (second - first) / PS if several else None,
        "tpot_s": (done - first) / (output - 1) / PS if several else None,
        "end_to_end_s": done / PS if fine else None,
        "bytes": _carried(outcome.nbytes),
    }
    if outcome.exposed_ps is not None:
        report["kv_exposed_s"] = int(outcome.exposed_ps[0]) / PS if several else None
        whole = kv_bytes(site.arch, int(alone.prompt_tokens[0]))
        layers = site.arch.layers if site.handover == "layers" else 1
        report["kv_exposed_formula_s"] = (
            exposed_by_formula(whole, site.link, first / PS, layers) if several else None
        )
    return report


def _carried(nbytes: dict[str, int]) -> dict[str, int]:
    return {kind: count for kind, count in nbytes.items() if count}


def _under_load(trace: Trace, outcome: Outcome, slo: Slo) -> dict[str, Any]:
    return {
        **service_report(trace, outcome.served, slo),
        "bytes": _carried(outcome.nbytes),
        "prefill_utilisation": outcome.prefill_utilisation,
        "link_utilisation": outcome.link_utilisation,
    }
