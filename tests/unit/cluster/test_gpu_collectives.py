"""Collectives of GPUs by hand: the steps' latencies alone at 0 bytes, then few bytes.

An alpha-beta model: of n GPUs a ring takes n - 1 steps for each pass and moves (n - 1) / n of the
tensor over each link; a tree takes log2 n steps each way and moves the whole tensor.  All-reduces
go round, or up and down, twice.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.gpu import collective_samples, collective_seconds, gpu_time
from cluster.gpu.spec import GpuSpec

#: Numbers to count with: a node of 8, steps of 1 us and 5 us, 3 us of a kernel, 1 B/s x 0.5.
SPEC = GpuSpec(
    gpus_per_node=8,
    nvlink_step_s=1e-6,
    internode_step_s=5e-6,
    kernel_overhead_s=3e-6,
    nvlink_bytes_per_s=2e9,
    internode_bytes_per_s=2e8,
    achieved_link_ratio=0.5,
)

#: (operation, GPUs): microseconds of the ring (None: point to point) and of the tree at 0 bytes.
LATENCIES = {
    ("all-reduce", 2): (3 + 2 * 1, 3 + 2 * 1),
    ("all-reduce", 8): (3 + 2 * 7, 3 + 2 * 3),
    # two nodes: 14 steps inside, 2 across; up 3 inside and 1 across
    ("all-reduce", 16): (3 + 2 * (14 + 2 * 5), 3 + 2 * (3 + 5)),
    ("all-reduce", 32): (3 + 2 * (28 + 4 * 5), 3 + 2 * (3 + 2 * 5)),
    ("broadcast", 8): (3 + 7, 3 + 3),
    ("reduce-scatter", 8): (3 + 7, None),
    ("all-gather", 4): (3 + 3, None),
    ("all-to-all", 16): (3 + 14 + 2 * 5, None),
    ("point-to-point", 2): (3 + 1, None),
    ("point-to-point", 16): (3 + 5, None),
}


@pytest.mark.parametrize(("operation", "gpus"), LATENCIES)
def test_without_bytes_only_steps_cost(operation: str, gpus: int) -> None:
    ring, tree = LATENCIES[operation, gpus]
    name = "direct" if operation == "point-to-point" else "ring"
    expected = {name: ring * 1e-6} | ({} if tree is None else {"tree": tree * 1e-6})
    assert collective_seconds(SPEC, operation, gpus, 0) == pytest.approx(expected, rel=1e-12)


#: Microseconds of 8,000 bytes at 1 byte a ns inside a node and 0.1 across, beside the latency.
TRANSFERS = {
    ("all-reduce", 2): (2 * 8 / 2, 2 * 8.0),
    ("all-reduce", 8): (2 * 7.0, 2 * 8.0),
    ("all-reduce", 16): (2 * 75.0, 2 * 80.0),
    ("broadcast", 8): (8.0, 8.0),
    ("reduce-scatter", 8): (7.0, None),
    ("all-gather", 4): (6.0, None),
    ("all-to-all", 16): (75.0, None),
    ("point-to-point", 2): (8.0, None),
    ("point-to-point", 16): (80.0, None),
}


@pytest.mark.parametrize(("operation", "gpus"), TRANSFERS)
def test_few_bytes_add_their_transfer(operation: str, gpus: int) -> None:
    found = collective_seconds(SPEC, operation, gpus, 8000)
    for seconds, transfer, latency in zip(
        found.values(), TRANSFERS[operation, gpus], LATENCIES[operation, gpus], strict=False
    ):
        assert transfer is not None and latency is not None
        assert seconds == pytest.approx((latency + transfer) * 1e-6, rel=1e-12)


def test_the_tree_wins_where_latency_counts_and_the_ring_where_bytes_do() -> None:
    """8 GPUs: a ring costs 8 us more of steps, a tree 2/8 of the tensor more: equal at 32,000 B."""
    assert collective_samples(SPEC, "all-reduce", 8, 31_000)[0] == "tree"
    assert collective_samples(SPEC, "all-reduce", 8, 33_000)[0] == "ring"


def test_lateness_is_that_of_the_slowest_of_n() -> None:
    """The mean of the greatest of n exponential latenesses is the harmonic number's multiple."""
    for gpus in (1, 2, 8):
        harmonic = sum(1 / k for k in range(1, gpus + 1))
        _, seconds = collective_samples(SPEC, "all-reduce", gpus, 0, samples=40_000)
        best = min(collective_seconds(SPEC, "all-reduce", gpus, 0).values())
        late = float(np.mean(seconds)) - best
        assert late == pytest.approx(harmonic * SPEC.lateness_s, rel=0.03)
    exact = replace(SPEC, lateness_s=1e-30)
    assert np.allclose(collective_samples(exact, "all-reduce", 8, 0)[1], 9e-6, rtol=1e-9)


def test_a_preset_s_small_all_reduce_by_hand() -> None:
    """H100: 3 us of a kernel and two climbs of 3 steps of 1 us; 32 KiB at 0.8 of 450 GB/s."""
    found = gpu_time("h100", "all-reduce", 8, 32_768)
    assert found.algorithm == "tree"
    assert found.best_s == pytest.approx(3e-6 + 2 * (3e-6 + 32_768 / 360e9))
    # the median of the slowest of eight is -ln(1 - 2^(-1/8)) mean latenesses later
    assert found.p50_s - found.best_s == pytest.approx(-np.log(1 - 0.5 ** (1 / 8)) * 1e-6, rel=0.03)
