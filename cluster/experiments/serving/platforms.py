"""Prefill here, decode there: platforms of GPUs, prefill GPUs (Rubin CPX) and LPUs side by side.

- ``gpu-only``: continuous batching; ``lpu-only``: prompts and answers on LPU pipelines.
- ``gpu+lpu``, ``cpx+lpu``: prompts on GPUs, one after another; the KV cache crosses the link, whole
  (*serial*) or each layer when it is done (*layers*); the answer on LPU pipelines.
- ``gpu+lpu-ffn``: the same GPUs prefill and do the attention of every decode step, LPUs the
  feed-forward networks (``split_layers``).
- ``cpx+lpu+gpu``: prompts on CPX, KV cache to GPUs, decode split as above.

All KV caches cross one link, first come, first served.  Where layers are split every GPU group has
a link of its own, and an equal share of the LPU pipelines.  Stages feed forward only, so each is
computed for all requests before the next; the first token is there when the prefill ends and the
host has it.  A GPU takes in a prompt's tokens before its prefill and gives out every token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InputError
from cluster.experiments.serving.arrivals import PS, Trace, check_time
from cluster.experiments.serving.batching import MAX_SERVERS, run_batched, serve_batched, served_by
from cluster.experiments.serving.belt import MAX_CYCLES, Belt, cycles_to_ps
from cluster.experiments.serving.figures import NOBODY, Served, ServiceStage, Slo, service_report
from cluster.experiments.serving.kv_handover import exposed_by_formula, hand_over, kv_bytes
from cluster.experiments.serving.pools import MAX_BATCH, RooflineCost
from cluster.experiments.serving.settings import HANDOVERS
from cluster.experiments.serving.slots import (
    LPU_SERVERS,
    MOST_PLACES,
    longest_of,
    ride,
    serve_on_belts,
    to_ps,
)
from cluster.experiments.serving.split_layers import SplitCost
from cluster.gpu import TOKEN_BYTES, GpuGroup, LinkLedger, WorldLink
from programs.models import ARCHITECTURES, Architecture

I64 = NDArray[np.int64]

SPLIT = ("gpu+lpu-ffn", "cpx+lpu+gpu")
"""Platforms that split every layer."""
KV_MODELS = (
    "llama-2-70b",
    "llama-3-70b",
    "opt-66b",
    "llama-3-405b",
    "deepseek-v3",
    "qwen3-8b",
    "qwen3-235b",
)
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
            ("groups", MAX_SERVERS),
            ("pipelines", MOST_PLACES // self.belt.places),
            ("ffn_cycles", MAX_CYCLES),
            ("max_batch", MAX_BATCH),
        ):
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"{name} {getattr(self, name)}: use 1 to {most:,}")

    def split(self, prefilled: bool) -> SplitCost:
        """Attention on the GPUs, networks on the LPUs."""
        self.check_split()
        return SplitCost(
            self.gpu,
            self.arch,
            self.link,
            self.ffn_cycles,
            self.belt.clock_hz,
            min(self.belt.interval or self.ffn_cycles, self.ffn_cycles),
            self.max_batch,
            prefilled,
            self.pipelines // self.groups,
        )

    def check_split(self) -> None:
        """Refuse pipelines that the GPU groups cannot share equally."""
        if self.pipelines % self.groups:
            raise InputError(
                f"{self.pipelines} LPU pipelines with {self.groups} GPU groups: "
                f"{' and '.join(SPLIT)} give every group as many pipelines; use a multiple of "
                f"{self.groups}, or name other platforms"
            )


@dataclass(frozen=True, eq=False)
class Outcome:
    """A trace on a platform: bytes over the link by kind.

    exposed_ps: from the end of a prefill's pass to the arrival of its last KV byte, int64, -1 where
    nothing was handed over; None where the platform hands nothing over.
    """

    served: Served
    nbytes: dict[str, int]
    exposed_ps: I64 | None = None


def one_by_one(
    ready_ps: Sequence[int], span_ps: Sequence[int], servers: int
) -> tuple[I64, I64, I64]:
    """Begin and end of jobs on equal servers, first come, first served; ps, int64 [jobs].

    Begins ascend if ready_ps does.  Third: the time each server worked, ps, int64 [servers].
    """
    free = [0] * servers
    busy = [0] * servers
    begin = []
    for ready, span in zip(ready_ps, span_ps, strict=True):
        server = free.index(min(free))
        begin.append(max(ready, free[server]))
        free[server] = begin[-1] + span
        busy[server] += span
        check_time(free[server] / PS)
    started = np.array(begin, np.int64)
    return started, started + np.array(span_ps, np.int64), np.array(busy, np.int64)


@dataclass(frozen=True, eq=False)
class _Prefilled:
    """Requests ``fine`` of a trace after their prefill; ps, int64.

    begin, end: the group has the request, [fine].  more: which of them have a second token, and of
    those, [more], computed: end of the pass; left, arrived: of the last KV piece.
    """

    begin: I64
    end: I64
    more: I64
    computed: I64
    left: I64
    arrived: I64
    busy: I64
    ledger: LinkLedger


def _prefill(trace: Trace, site: Site, group: GpuGroup, fine: I64) -> _Prefilled:
    prompts = trace.prompt_tokens[fine].tolist()
    into, passes = (
        {tokens: round(seconds(tokens) * PS) for tokens in set(prompts)}
        for seconds in (group.host_seconds, lambda n: group.prefill_seconds(site.arch, n))
    )
    out = round(group.host_seconds(1) * PS)
    begin, end, busy = one_by_one(
        trace.arrival_ps[fine].tolist(), [into[n] + passes[n] + out for n in prompts], site.groups
    )
    more = np.flatnonzero(trace.output_tokens[fine] > 1)
    ledger = LinkLedger(site.link)
    nbytes = [kv_bytes(site.arch, prompts[row]) for row in more.tolist()]
    computing = begin[more] + np.array([into[prompts[row]] for row in more.tolist()], np.int64)
    order = np.argsort(computing, kind="stable")
    left, arrived = (np.zeros(len(more), np.int64) for _ in range(2))
    left[order], arrived[order] = hand_over(
        computing[order],
        end[more][order] - out,
        [nbytes[row] for row in order.tolist()],
        site.arch.layers,
        ledger,
        site.handover,
    )
    return _Prefilled(begin, end, more, end[more] - out, left, arrived, busy, ledger)


def _two_stages(trace: Trace, site: Site, group: GpuGroup, split: bool) -> Outcome:
    """Prefill on ``group``, then decode on LPU pipelines or, ``split``, on GPUs with LPUs."""
    fits = group.max_sequences(site.arch, 1) >= trace.prompt_tokens
    if split:
        total = trace.prompt_tokens + trace.output_tokens
        fits &= total <= site.split(True).kv_tokens
    else:
        fits &= site.belt.fits(trace.prompt_tokens, trace.output_tokens)
    fine = np.flatnonzero(fits)
    went = _prefill(trace, site, group, fine)
    start, first, second, done, exposed = (np.full(len(trace), -1, np.int64) for _ in range(5))
    start[fine], first[fine], done[fine] = went.begin, went.end, went.end
    later = fine[went.more]
    exposed[later] = went.arrived - went.computed
    order = np.argsort(went.arrived, kind="stable")
    rows, ready = later[order], went.arrived[order]
    prompt, output = trace.prompt_tokens[rows], trace.output_tokens[rows]
    nbytes = dict(went.ledger.bytes_by_kind)
    into, out = int(trace.prompt_tokens[fine].sum()), len(fine)
    steps = tokens = int((output - 1).sum())
    if split:
        # The first token is here already: a request joins with it, as after a prefill.
        job = Trace(ready, prompt, output, trace.source)
        decoded, stages, crossed = _decode_split(job, site, prefilled=True)
        second[rows], done[rows] = decoded.second_ps, decoded.done_ps
        busy, steps = decoded.busy_ps, decoded.steps
        nbytes["activations"] = crossed
        into, out = into + tokens, out + tokens
        host: dict[str, int | None] = {}
    else:
        clock = site.belt.clock_hz
        belt = site.belt.up_to(longest_of(prompt, output))
        rode = ride(ready, prompt, output, belt, site.pipelines, cached=True)
        for times, cycles in ((second, rode.second), (done, rode.done)):
            times[rows] = to_ps(cycles, clock)
        busy = rode.busy_ps
        entered = [cycles_to_ps(cycle, clock) for cycle in rode.entry.tolist()]
        began = np.where(rode.entry == rode.ready, ready, np.array(entered, np.int64))
        stages = {"decode": ServiceStage(LPU_SERVERS, len(busy), sum(busy.tolist()), ready, began)}
        host = site.belt.crossing(tokens, tokens)
    stages |= {
        "prefill": ServiceStage(
            "prefill GPU groups",
            site.groups,
            sum(went.busy.tolist()),
            trace.arrival_ps[fine],
            went.begin,
        ),
        "handover": ServiceStage(
            "link",
            1,
            round(went.ledger.busy_s * PS),
            went.computed,
            went.left,
        ),
    }
    host |= {"gpu_tokens_in": TOKEN_BYTES * into, "gpu_tokens_out": TOKEN_BYTES * out}
    everyone = np.concatenate([went.busy, busy])
    return Outcome(
        Served(start, first, second, done, everyone, steps, tokens, stages, host), nbytes, exposed
    )


def _decode_split(
    trace: Trace, site: Site, prefilled: bool
) -> tuple[Served, dict[str, ServiceStage], int]:
    """Layers split between GPUs and LPUs: all stages, and bytes of activations over the links."""
    cost = site.split(prefilled)
    batching = run_batched(trace, cost, site.groups)
    served = served_by(batching, trace)
    cycles = sum(cost.ffn_busy_cycles(batch) * n for batch, n in batching.steps_of.items())
    worked = cycles_to_ps(cycles, cost.clock_hz)
    stages = dict(served.stages)
    if prefilled:
        fine = served.done_ps >= 0
        groups = stages.pop("prefill").servers
        busy = sum(served.busy_ps.tolist())
        stages["decode"] = ServiceStage(
            "GPU groups", groups, busy, trace.arrival_ps[fine], served.start_ps[fine]
        )
    stages["ffn"] = ServiceStage("LPU pipelines", site.pipelines, worked, NOBODY, NOBODY)
    each = np.full(site.pipelines, worked // site.pipelines, np.int64)
    everyone = replace(served, busy_ps=np.concatenate([served.busy_ps, each]), stages=stages)
    return everyone, stages, 2 * site.arch.layers * cost.crossing_bytes(served.tokens)


def _gpu_only(trace: Trace, site: Site) -> Outcome:
    cost = RooflineCost(site.gpu, site.arch, site.max_batch)
    return Outcome(serve_batched(trace, cost, site.groups), {})


def _lpu_only(trace: Trace, site: Site) -> Outcome:
    return Outcome(serve_on_belts(trace, site.belt, site.pipelines), {})


def _gpu_with_networks(trace: Trace, site: Site) -> Outcome:
    served, _, crossed = _decode_split(trace, site, prefilled=False)
    return Outcome(served, {"activations": crossed})


PLATFORMS: dict[str, Callable[[Trace, Site], Outcome]] = {
    "gpu-only": _gpu_only,
    "lpu-only": _lpu_only,
    "gpu+lpu": lambda trace, site: _two_stages(trace, site, site.gpu, split=False),
    "cpx+lpu": lambda trace, site: _two_stages(trace, site, site.cpx, split=False),
    "gpu+lpu-ffn": _gpu_with_networks,
    "cpx+lpu+gpu": lambda trace, site: _two_stages(trace, site, site.cpx, split=True),
}


def run_disaggregated(
    trace: Trace,
    single: tuple[int, int],
    site: Site,
    slo: Slo,
    platforms: Sequence[str],
    served: dict[str, Served] | None = None,
) -> dict[str, Any]:
    """Each platform with one request alone (``single``: prompt and answer tokens), then ``trace``.

    Plain data, times in seconds.  ``ttft_s``, ``second_token_s`` and ``tpot_s`` at the top are
    those of the request alone.  served: filled with the times of every request by platform.
    """
    zero, prompt, output = (np.array([value], np.int64) for value in (0, *single))
    alone = Trace(zero, prompt, output, "one request")
    if not set(SPLIT).isdisjoint(platforms):
        site.check_split()
    reports: dict[str, dict[str, Any]] = {}
    for name in platforms:
        if name not in PLATFORMS:
            raise InputError(f"platform {name}: known are {', '.join(PLATFORMS)}")
        loaded = PLATFORMS[name](trace, site)
        if served is not None:
            served[name] = loaded.served
        reports[name] = {
            "alone": _alone(alone, PLATFORMS[name](alone, site), site, name),
            "load": _under_load(trace, loaded, slo),
        }
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
        "lpu_initiation_interval": belt.interval_source,
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
        prompt = int(alone.prompt_tokens[0])
        group = site.cpx if name.startswith("cpx") else site.gpu
        layers = site.arch.layers if site.handover == "layers" else 1
        took = group.prefill_seconds(site.arch, prompt)
        report["kv_exposed_formula_s"] = (
            exposed_by_formula(kv_bytes(site.arch, prompt), site.link, took, layers)
            if several
            else None
        )
    return report


def _carried(nbytes: dict[str, int]) -> dict[str, int]:
    return {kind: count for kind, count in nbytes.items() if count}


def _under_load(trace: Trace, outcome: Outcome, slo: Slo) -> dict[str, Any]:
    return {
        **service_report(trace, outcome.served, slo),
        "bytes": _carried(outcome.nbytes),
    }
