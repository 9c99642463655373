"""The experiments in serving as functions of one settings object: ``load`` and ``disaggregated``.

Both give a result whose ``report`` is plain data, times in seconds: what ``lpu experiment --json``
prints.  The same settings give the same report to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cluster.experiments.serving.arrivals import Trace, bursts, poisson, read_trace
from cluster.experiments.serving.belt import Belt
from cluster.experiments.serving.figures import Latencies, Served, latencies
from cluster.experiments.serving.machines import ffn_cycles_per_layer, lpu_belt
from cluster.experiments.serving.platforms import PLATFORMS, Site, run_disaggregated
from cluster.experiments.serving.pools import (
    GpuServers,
    LpuServers,
    RooflineCost,
    run_load,
    serve_load,
)
from cluster.experiments.serving.publish import publish_disaggregated, publish_load
from cluster.experiments.serving.settings import (
    DisaggregatedSettings,
    LoadSettings,
    Serving,
    lengths_of,
    lpu_choice_of,
    slo_of,
)
from cluster.experiments.serving.slots import longest_of
from cluster.gpu import GpuGroup, load_gpu_spec, load_link
from programs.models import Architecture, Need, architecture, find_model

if TYPE_CHECKING:
    from cluster.metrics import Board


@dataclass(frozen=True, eq=False)
class LoadResult:
    """What ``load`` found.

    report: plain data, times in seconds.  trace: the requests.  served: by pool, the times of every
    request.  arch: the model of the GPU pool.  group: one of its groups.  belt: one LPU pipeline,
    None where no LPU served.
    """

    settings: LoadSettings
    report: dict[str, Any]
    trace: Trace
    served: dict[str, Served]
    arch: Architecture
    group: GpuGroup
    belt: Belt | None

    @cached_property
    def latencies(self) -> dict[str, Latencies]:
        """By pool, those of the requests that were served, in picoseconds."""
        return {name: latencies(self.trace, times) for name, times in self.served.items()}


@dataclass(frozen=True, eq=False)
class DisaggregatedResult:
    """What ``disaggregated`` found.

    report: plain data, times in seconds.  trace: the requests under load.  served: by platform, the
    times of every one of them.  site: the machines.
    """

    settings: DisaggregatedSettings
    report: dict[str, Any]
    trace: Trace
    served: dict[str, Served]
    site: Site

    @cached_property
    def latencies(self) -> dict[str, Latencies]:
        """By platform, those of the requests that were served under load, in picoseconds."""
        return {name: latencies(self.trace, times) for name, times in self.served.items()}


def load(
    settings: LoadSettings,
    tell: Callable[[str], None] = lambda _: None,
    open_board: Callable[[], Board | None] = lambda: None,
) -> LoadResult:
    """Serve an open-loop load on GPUs, on LPUs, or on each.

    tell: what goes on, in words.  open_board: called when the settings are known to make sense;
    on the board that it gives, if any, the figures are published.
    Raises InputError for settings, files and models that cannot be.
    """
    given = settings.lpu_cycles_per_token is not None
    # What an LPU pool compiles needs kernels, whether or not there are weights.
    need: Need = "shape" if settings.pool == "gpu" or given else "kernels"
    served_by_lpus = find_model(settings.lpu_model or settings.model, need).name
    arch = architecture(settings.model)
    trace = _requests(settings)
    group = _group(settings, settings.gpu)
    board = open_board()
    pools: dict[str, GpuServers | LpuServers] = {}
    belt = None
    if settings.pool != "lpu":
        cost = RooflineCost(group, arch, settings.max_batch)
        pools["gpu"] = GpuServers(cost, settings.gpu_groups, settings.scaling)
    if settings.pool != "gpu":
        choice = lpu_choice_of(settings, longest_of(trace.prompt_tokens, trace.output_tokens))
        belt = lpu_belt(settings.lpu_model or settings.model, choice)
        known = () if given else (settings.chips, settings.dtype)
        pools["lpu"] = LpuServers(belt, served_by_lpus, settings.pipelines, *known)
    tell(f"serving {len(trace):,} requests ...")
    served = serve_load(trace, pools)
    report = run_load(trace, pools, slo_of(settings), served)
    report["seed"] = settings.seed
    result = LoadResult(settings, report, trace, served, arch, group, belt)
    if board is not None:
        publish_load(board, report, result.latencies)
    return result


def disaggregated(
    settings: DisaggregatedSettings,
    tell: Callable[[str], None] = lambda _: None,
    open_board: Callable[[], Board | None] = lambda: None,
) -> DisaggregatedResult:
    """Prefill here, decode there, against GPU-only and LPU-only: one request, then a load.

    tell: what goes on, in words.  open_board: called when the settings are known to make sense;
    on the board that it gives, if any, the figures are published.
    Raises InputError for settings, files and models that cannot be.
    """
    given = settings.lpu_cycles_per_token is not None
    arch = find_model(settings.model, "shape" if given else "kernels").architecture
    trace = _requests(settings)
    board = open_board()
    lone = settings.prompt_tokens + settings.output_tokens - 1
    longest = max(lone, longest_of(trace.prompt_tokens, trace.output_tokens))
    site = _site(settings, arch, longest)
    tell("serving ...")
    served: dict[str, Served] = {}
    alone = (settings.prompt_tokens, settings.output_tokens)
    platforms = settings.platform or list(PLATFORMS)
    report = run_disaggregated(trace, alone, site, slo_of(settings), platforms, served)
    report["seed"] = settings.seed
    result = DisaggregatedResult(settings, report, trace, served, site)
    if board is not None:
        publish_disaggregated(board, report, result.latencies)
    return result


def _requests(settings: Serving) -> Trace:
    """The requests that the settings ask for."""
    s = settings
    if s.trace is not None:
        return read_trace(s.trace, s.limit)
    if s.arrivals == "bursts":
        return bursts(s.rate, s.requests, lengths_of(s), s.seed, s.burst)
    return poisson(s.rate, s.requests, lengths_of(s), s.seed)


def _group(settings: Serving, gpu: str) -> GpuGroup:
    return GpuGroup(load_gpu_spec(gpu), settings.gpu_tp, settings.gpu_dtype)


def _site(settings: DisaggregatedSettings, arch: Architecture, longest: int) -> Site:
    """The machines that the settings name; longest: positions of the longest request."""
    s = settings
    belt = lpu_belt(s.model, lpu_choice_of(s, longest))
    return Site(
        arch,
        _group(s, s.gpu),
        _group(s, s.cpx),
        belt,
        load_link(s.link),
        s.lpu_ffn_cycles or ffn_cycles_per_layer(belt, arch),
        "given" if s.lpu_ffn_cycles else "estimated: the network's share of the weights",
        s.handover,
        s.gpu_groups,
        s.gpu_groups if s.pipelines is None else s.pipelines,
        s.max_batch,
    )
