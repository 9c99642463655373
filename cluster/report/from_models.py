"""What a model's shape says for a report: rooflines, and how long GPUs would take for a token.

An LPU's figures are its compiled cycles; a GPU's are the estimate of ``cluster.gpu.roofline``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.isa import LANES, PLANES, SLICES
from chip.spec import ChipSpec
from cluster.gpu import DTYPE_BYTES, GpuGroup, KernelJitter, load_gpu_spec
from programs.models import Architecture

Section = dict[str, Any]
F64 = NDArray[np.float64]

GPUS = ("h100", "b200")
"""GPUs that a generation is compared with, one of each."""
SAMPLES = 10_000
SHORTEST_S = 1e-12
"""Shorter times are shown as this: an axis of logarithms has no zero."""
BINS = 120


def lpu_roof(spec: ChipSpec, chips: int, dtype: str) -> Section:
    """Peak arithmetic and SRAM rate of ``chips``: all planes, and a word per slice and cycle.

    fp16 matrices take the planes in pairs for two cycles: a quarter of the int8 rate.
    """
    macs = PLANES * LANES * LANES // (4 if dtype == "fp16" else 1)
    return {
        "name": f"{chips} x {spec.name}, {dtype}",
        "source": "exact",
        "ops_per_s": 2.0 * macs * spec.clock_hz * chips,
        "bytes_per_s": float(SLICES * LANES * spec.clock_hz * chips),
    }


def gpu_roof(group: GpuGroup) -> Section:
    """Peak arithmetic and memory rate of a group, as published."""
    spec, gpus = group.spec, group.tensor_parallel
    return {
        "name": f"{gpus} x {spec.name}, {group.dtype}",
        "source": "estimated",
        "ops_per_s": gpus * spec.flops(group.dtype),
        "bytes_per_s": gpus * spec.hbm_bytes_per_s,
    }


def gpu_point(group: GpuGroup, arch: Architecture, context: int) -> Section:
    """Decoding one sequence on a group, by the roofline with its overheads."""
    nbytes = arch.parameters_read(1) * DTYPE_BYTES[group.dtype]
    nbytes += (context + 1) * group.kv_bytes_per_token(arch)
    operations = arch.flops_per_token(context)
    return {
        "name": f"one token on {group.tensor_parallel} x {group.spec.name}",
        "source": "estimated",
        "ops_per_byte": operations / nbytes,
        "ops_per_s": operations / group.decode_seconds(arch, [context]),
    }


def roofline_section(
    arch: Architecture,
    context: int,
    groups: Sequence[GpuGroup],
    lpu: Section | None,
    lpu_seconds: float,
    lpu_bytes: float,
    bytes_are: str,
    source: str = "exact",
) -> Section:
    """Roofs of GPUs and LPUs and, on them, the decoding of one token of one sequence."""
    machines = [gpu_roof(group) for group in groups]
    points = [gpu_point(group, arch, context) for group in groups]
    if lpu is not None:
        machines.append(lpu)
        operations = arch.flops_per_token(context)
        points.append(
            {
                "name": f"one token on {lpu['name'].partition(',')[0]}",
                "source": source,
                "ops_per_byte": operations / lpu_bytes,
                "ops_per_s": operations / lpu_seconds,
            }
        )
    return {
        "machines": machines,
        "points": points,
        "note": f"{arch.name} after {context} positions, batch 1.  Operations are those the model "
        f"needs; bytes are, on LPUs, {bytes_are}, on GPUs weights and KV cache once.  "
        "Roofs are peaks, points are times: exact cycles on LPUs, on GPUs the "
        "estimate with achieved shares and kernel overheads.",
    }


def gpu_token_seconds(group: GpuGroup, arch: Architecture, context: int, seed: int) -> F64:
    """Seconds of ``SAMPLES`` tokens with the seeded slowness of passes."""
    best = group.decode_seconds(arch, [context])
    jitter = KernelJitter(seed, f"report {group.spec.name}")
    return best * np.array([jitter.factor() for _ in range(SAMPLES)])


def default_groups() -> list[GpuGroup]:
    """One GPU of each of ``GPUS``."""
    return [GpuGroup(load_gpu_spec(name)) for name in GPUS]


def latency_section(title: str, seconds: dict[str, tuple[F64, str]], note: str) -> Section | None:
    """Histograms of (seconds, source) by name in common logarithmic bins; None without any."""
    some = {name: (values, kind) for name, (values, kind) in seconds.items() if len(values)}
    if not some:
        return None
    every = np.concatenate([values for values, _ in some.values()])
    least, most = (max(float(v), SHORTEST_S) for v in (every.min(), every.max()))
    edges = np.geomspace(least / 1.2, most * 1.2, BINS + 1)
    series = []
    for name, (values, kind) in some.items():
        ordered = np.sort(values)
        counts, _ = np.histogram(np.maximum(values, least), edges)
        # Nearest rank: each is a time that really occurred.
        ranks = (max(-(-rank * len(ordered) // 100), 1) - 1 for rank in (50, 99))
        p50, p99 = (max(float(ordered[rank]), SHORTEST_S) for rank in ranks)
        series.append(
            {
                "name": name,
                "source": kind,
                "count": len(values),
                "share": (counts / len(values)).tolist(),
                "least_s": float(ordered[0]),
                "p50_s": p50,
                "p99_s": p99,
                "most_s": float(ordered[-1]),
            }
        )
    return {"title": title, "edges_s": edges.tolist(), "series": series, "note": note}
