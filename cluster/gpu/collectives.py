"""What the same collective would take on GPUs: an alpha-beta model of NCCL's ring and tree.

An estimate, to stand beside the fabric's exact cycles.  One step of a ring or tree costs a latency
(alpha) and its bytes over the slowest link it crosses; the kernel starts when the last GPU of the
group arrives, so the seeded lateness of the slowest of n GPUs is added: that is the tail that a
compiled schedule does not have.  Bandwidths, latencies and lateness are ``cluster.gpu.spec``'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InputError
from cluster.gpu.spec import GpuSpec, load_gpu_spec

#: Bytes that pass each GPU's link in a ring, as a multiple of the tensor, for n GPUs; and whether
#: the operation needs one pass round the ring (1) or two (2).
_RING_PASSES = {
    "all-reduce": 2,
    "reduce-scatter": 1,
    "all-gather": 1,
    "broadcast": 1,
    "all-to-all": 1,
    "point-to-point": 0,
}


@dataclass(frozen=True)
class GpuTime:
    """Seconds of one collective: the best case, and quantiles over ``samples`` seeded runs."""

    gpu: str
    algorithm: str
    best_s: float
    p50_s: float
    p99_s: float


def collective_seconds(spec: GpuSpec, operation: str, gpus: int, nbytes: float) -> dict[str, float]:
    """Seconds without lateness by algorithm: ``ring``, and ``tree`` where NCCL has one.

    nbytes: the tensor of one GPU.  Raises InputError for an operation this model does not know.
    """
    if operation not in _RING_PASSES:
        raise InputError(f"--op {operation}: known are {', '.join(_RING_PASSES)}")
    nodes = -(-gpus // spec.gpus_per_node)
    bandwidth = spec.achieved_link_ratio * (
        spec.scale_up_bytes_per_s if nodes == 1 else spec.internode_bytes_per_s
    )
    if gpus == 1:
        return {"ring": 0.0}
    if operation == "point-to-point":
        step = spec.nvlink_step_s if nodes == 1 else spec.internode_step_s
        return {"direct": spec.kernel_overhead_s + step + nbytes / bandwidth}
    passes = _RING_PASSES[operation]
    inside = gpus - nodes if nodes > 1 else gpus - 1
    across = nodes if nodes > 1 else 0
    round_s = inside * spec.nvlink_step_s + across * spec.internode_step_s
    share = 1.0 if operation == "broadcast" else (gpus - 1) / gpus
    seconds = {"ring": spec.kernel_overhead_s + passes * (round_s + share * nbytes / bandwidth)}
    if operation in ("all-reduce", "broadcast"):
        depth_inside = math.log2(min(gpus, spec.gpus_per_node))
        depth_across = math.log2(nodes)
        climb = depth_inside * spec.nvlink_step_s + depth_across * spec.internode_step_s
        seconds["tree"] = spec.kernel_overhead_s + passes * (climb + nbytes / bandwidth)
    return seconds


def collective_samples(
    spec: GpuSpec, operation: str, gpus: int, nbytes: int, *, seed: int = 0, samples: int = 10_000
) -> tuple[str, NDArray[np.float64]]:
    """The faster algorithm, and its seconds with seeded lateness, float64 [samples]."""
    times = collective_seconds(spec, operation, gpus, nbytes)
    algorithm = min(times, key=lambda name: times[name])
    best = times[algorithm]
    # The greatest of n exponential latenesses, by its inverse distribution function.
    random = np.random.Generator(np.random.PCG64(seed))
    uniform = random.random(samples)
    late = -spec.lateness_s * np.log1p(-(uniform ** (1.0 / max(gpus, 1))))
    return algorithm, best + late


def gpu_time(
    gpu: str, operation: str, gpus: int, nbytes: int, *, seed: int = 0, samples: int = 10_000
) -> GpuTime:
    """The faster algorithm's time with seeded lateness; ``gpu`` is a preset or a TOML file."""
    spec = load_gpu_spec(gpu)
    algorithm, seconds = collective_samples(
        spec, operation, gpus, nbytes, seed=seed, samples=samples
    )
    best = collective_seconds(spec, operation, gpus, nbytes)[algorithm]
    p50, p99 = (float(x) for x in np.quantile(seconds, (0.5, 0.99)))
    return GpuTime(spec.name, algorithm, best, p50, p99)
