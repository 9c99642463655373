"""An open-loop request load on a pool of GPU groups, of LPU pipelines, or on both alike.

GPU times are the roofline's estimate.  LPU times are exact cycles of a compiled program, or of a
constant that the user gives; the report says which.  All in virtual time and without randomness
beyond the seeded arrivals, so the same settings give the same report to the last digit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InputError
from cluster.experiments.serving.arrivals import PS, Trace
from cluster.experiments.serving.batching import serve_batched
from cluster.experiments.serving.belt import Belt
from cluster.experiments.serving.figures import Served, Slo, service_report
from cluster.experiments.serving.scaling import Scaling
from cluster.experiments.serving.slots import serve_on_belts
from cluster.gpu import (
    ACTIVATION_BYTES,
    DTYPE_BYTES,
    OUTER_KERNELS,
    GpuGroup,
    check_pass,
    collective_seconds,
)
from programs.models import Architecture

I64 = NDArray[np.int64]

MAX_BATCH = 4096


@dataclass(frozen=True)
class RooflineCost:
    """The roofline of ``group`` for ``arch`` as the cost of continuous batching.

    The same sums in the same order as ``GpuGroup.decode_seconds``, for many steps at once (tests
    compare them bit for bit), and each pass's transfers with the host.
    """

    group: GpuGroup
    arch: Architecture
    max_batch: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= MAX_BATCH:
            raise InputError(f"batch {self.max_batch}: use 1 to {MAX_BATCH:,} requests")
        self.group.check_fits(self.arch, 1, 1)

    @property
    def kv_tokens(self) -> int:
        """Positions that fit beside the weights."""
        return self.group.max_sequences(self.arch, 1)

    def prefill_ps(self, tokens: int) -> int:
        """See ``BatchCost``."""
        host = self.group.host_seconds(tokens) + self.group.host_seconds(1)
        return round((self.group.prefill_seconds(self.arch, tokens) + host) * PS)

    def decode_ps(self, batch: int, context: int, steps: int) -> I64:
        """See ``BatchCost``."""
        group, arch, spec = self.group, self.arch, self.group.spec
        gpus = group.tensor_parallel
        seen = context + batch * np.arange(steps, dtype=np.int64)
        nbytes = arch.parameters_read(batch) * DTYPE_BYTES[group.dtype]
        memory = (nbytes + seen * group.kv_bytes_per_token(arch)) / (
            gpus * spec.hbm_bytes_per_s * spec.achieved_hbm_ratio
        )
        # attention_flops is linear in the context: one call for all steps.
        attention: NDArray[np.float64] = arch.attention_flops(seen)  # type: ignore[arg-type, assignment]
        compute = (arch.linear_flops_per_token * batch + attention + arch.head_flops * batch) / (
            gpus * spec.flops(group.dtype) * spec.achieved_flops_ratio
        )
        overhead = (arch.layers * spec.kernels_per_layer + OUTER_KERNELS) * spec.kernel_overhead_s
        exchange = collective_seconds(
            spec, "all-reduce", gpus, batch * arch.hidden_size * ACTIVATION_BYTES
        )
        seconds = np.maximum(memory, compute) + overhead
        seconds += 2 * arch.layers * min(exchange.values())
        seconds += 2 * group.host_seconds(batch)
        check_pass(float(seconds.max()), spec)
        steps_ps: I64 = np.rint(seconds * PS).astype(np.int64)
        return steps_ps


@dataclass(frozen=True)
class GpuServers:
    """``groups`` equal GPU groups behind one queue, or as many as ``scaling`` says."""

    cost: RooflineCost
    groups: int = 1
    scaling: Scaling | None = None

    def serve(self, trace: Trace) -> Served:
        """Serve a trace; see ``cluster.experiments.serving.batching``."""
        return serve_batched(trace, self.cost, self.groups, self.scaling)

    def describe(self) -> dict[str, Any]:
        """What was simulated, as plain data."""
        group = self.cost.group
        return {
            "kind": "gpu",
            "model": self.cost.arch.name,
            "gpu": group.spec.name,
            "tensor_parallel": group.tensor_parallel,
            "groups": self.groups,
            "dtype": group.dtype,
            "max_batch": self.cost.max_batch,
            "kv_tokens": self.cost.kv_tokens,
            "costs": "estimated: roofline",
            "scaling": None if self.scaling is None else asdict(self.scaling),
        }


@dataclass(frozen=True)
class LpuServers:
    """``pipelines`` equal LPU pipelines behind one queue.

    chips: of each, and dtype of the weights, where known.
    """

    belt: Belt
    model: str
    pipelines: int = 1
    chips: int | None = None
    dtype: str | None = None

    def serve(self, trace: Trace) -> Served:
        """Serve a trace; see ``cluster.experiments.serving.slots``."""
        return serve_on_belts(trace, self.belt, self.pipelines)

    def describe(self) -> dict[str, Any]:
        """What was simulated, as plain data; ``cycles_exact`` is false where a figure was given."""
        belt = self.belt
        return {
            "kind": "lpu",
            "model": self.model,
            "chips_per_pipeline": self.chips,
            "dtype": self.dtype,
            "pipelines": self.pipelines,
            "places_per_pipeline": belt.places,
            "context": belt.context,
            "chunk": belt.chunk,
            "decode_cycles": list(belt.decode_cycles),
            "host_cycles": list(belt.host_cycles),
            "clock_hz": belt.clock_hz,
            "costs": belt.source,
            "initiation_interval_cycles": belt.interval,
            "initiation_interval": belt.interval_source,
            "cycles_exact": belt.exact,
        }


def serve_load(trace: Trace, pools: dict[str, GpuServers | LpuServers]) -> dict[str, Served]:
    """``trace`` on each of ``pools``, with the times of every request."""
    return {name: pool.serve(trace) for name, pool in pools.items()}


def run_load(
    trace: Trace,
    pools: dict[str, GpuServers | LpuServers],
    slo: Slo,
    served: dict[str, Served] | None = None,
) -> dict[str, Any]:
    """Serve ``trace`` on each of ``pools``; the report as plain data, times in seconds.

    served: what ``serve_load`` gave for the same, where it has been called already.  ``ttft_s`` and
    ``tpot_s`` at the top are the medians of each pool.
    """
    times = served or serve_load(trace, pools)
    reports = {
        name: {**pool.describe(), **service_report(trace, times[name], slo)}
        for name, pool in pools.items()
    }
    return {
        "experiment": "load",
        "arrivals": trace.source,
        "requests": len(trace),
        "ttft_s": {name: report["ttft_s"]["p50"] for name, report in reports.items()},
        "tpot_s": {name: report["tpot_s"]["p50"] for name, report in reports.items()},
        "pools": reports,
    }
