"""What the same collective would take on GPUs: an alpha-beta model of NCCL's ring and tree.

An estimate, to stand beside the fabric's exact cycles.  One step of a ring or tree costs a latency
(alpha) and its bytes over the slowest link it crosses; the kernel starts when the last GPU of the
group arrives, so the seeded lateness of the slowest of n GPUs is added: that is the tail that a
compiled schedule does not have.  Bandwidths are published; latencies and lateness are assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cluster.errors import InputError


@dataclass(frozen=True)
class GpuFabric:
    """A GPU and its links, per direction.

    nvlink_bytes_per_s and internode_bytes_per_s: published, as collected by the aiconfigurator
    system files (2026-08-21).  achieved_ratio of the link and the latencies in seconds: assumed
    (the order of NCCL's own tuning tables).  lateness_s: mean of the exponential lateness of one
    GPU's kernel start, assumed.
    """

    name: str
    nvlink_bytes_per_s: float
    internode_bytes_per_s: float
    gpus_per_node: int = 8
    achieved_ratio: float = 0.8
    launch_s: float = 3e-6
    nvlink_step_s: float = 1.0e-6
    internode_step_s: float = 5.0e-6
    lateness_s: float = 1.0e-6


GPUS: dict[str, GpuFabric] = {
    "a100": GpuFabric("A100 SXM", 300e9, 25e9),
    "h100": GpuFabric("H100 SXM", 450e9, 50e9),
    "b200": GpuFabric("B200 SXM", 900e9, 100e9),
}

#: Bytes that pass each GPU's link in a ring, as a multiple of the tensor, for n GPUs; and whether
#: the operation needs one pass round the ring (1) or two (2).
_RING_PASSES = {
    "all-reduce": 2, "reduce-scatter": 1, "all-gather": 1, "broadcast": 1, "all-to-all": 1,
    "point-to-point": 0,
}  # fmt: skip


@dataclass(frozen=True)
class GpuTime:
    """Seconds of one collective: the best case, and quantiles over ``samples`` seeded runs."""

    gpu: str
    algorithm: str
    best_s: float
    p50_s: float
    p99_s: float


def collective_seconds(
    fabric: GpuFabric, operation: str, gpus: int, nbytes: int
) -> dict[str, float]:
    """Seconds without lateness by algorithm: ``ring``, and ``tree`` where NCCL has one.

    nbytes: the tensor of one GPU.  Raises InputError for an operation this model does not know.
    """
    if operation not in _RING_PASSES:
        raise InputError(f"--op {operation}: known are {', '.join(_RING_PASSES)}")
    nodes = -(-gpus // fabric.gpus_per_node)
    bandwidth = fabric.achieved_ratio * (
        fabric.nvlink_bytes_per_s if nodes == 1 else fabric.internode_bytes_per_s
    )
    if gpus == 1:
        return {"ring": 0.0}
    if operation == "point-to-point":
        step = fabric.nvlink_step_s if nodes == 1 else fabric.internode_step_s
        return {"direct": fabric.launch_s + step + nbytes / bandwidth}
    passes = _RING_PASSES[operation]
    inside = gpus - nodes if nodes > 1 else gpus - 1
    across = nodes if nodes > 1 else 0
    round_s = inside * fabric.nvlink_step_s + across * fabric.internode_step_s
    share = 1.0 if operation == "broadcast" else (gpus - 1) / gpus
    seconds = {"ring": fabric.launch_s + passes * (round_s + share * nbytes / bandwidth)}
    if operation in ("all-reduce", "broadcast"):
        depth_inside = math.log2(min(gpus, fabric.gpus_per_node))
        depth_across = math.log2(nodes)
        climb = depth_inside * fabric.nvlink_step_s + depth_across * fabric.internode_step_s
        seconds["tree"] = fabric.launch_s + passes * (climb + nbytes / bandwidth)
    return seconds


def gpu_time(
    gpu: str, operation: str, gpus: int, nbytes: int, *, seed: int = 0, samples: int = 10_000
) -> GpuTime:
    """The faster algorithm's time with seeded lateness; ``gpu`` is a key of ``GPUS``."""
    if gpu not in GPUS:
        raise InputError(f"--gpu {gpu}: known are {', '.join(GPUS)}")
    fabric = GPUS[gpu]
    times = collective_seconds(fabric, operation, gpus, nbytes)
    algorithm = min(times, key=lambda name: times[name])
    best = times[algorithm]
    # The greatest of n exponential latenesses, by its inverse distribution function.
    random = np.random.Generator(np.random.PCG64(seed))
    uniform = random.random(samples)
    late = -fabric.lateness_s * np.log1p(-(uniform ** (1.0 / max(gpus, 1))))
    p50, p99 = (float(x) for x in np.quantile(best + late, (0.5, 0.99)))
    return GpuTime(fabric.name, algorithm, best, p50, p99)
