"""Every layer split: attention on GPUs, the feed-forward network on LPUs.

In each layer the activations of a batch cross the link twice, once each way, and nothing of the
layer overlaps with anything else of it.  The LPU pipelines of a group share its batch: each has all
networks, and works on its part of the tokens beside the others.  GPU times are the roofline's for
what stays there (attention, its projections, the norms, the output head); LPU times are cycles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.experiments.serving.arrivals import PS
from cluster.gpu import (
    ACTIVATION_BYTES,
    DTYPE_BYTES,
    OUTER_KERNELS,
    GpuGroup,
    WorldLink,
    check_pass,
    collective_seconds,
)
from programs.models import Architecture

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

FFN_KERNELS = 3
"""Of a layer's kernels those that go: two products and the activation (assumed)."""


@dataclass(frozen=True)
class SplitCost:
    """A ``BatchCost``: GPUs of ``group`` and LPUs across ``link`` share every layer.

    ffn_cycles: one token's network of one layer on the LPUs, at ``clock_hz``; further tokens of a
    batch follow every ``interval_cycles``.  pipelines: of this group.  prefilled: prompts come
    with their KV cache from elsewhere, so that a prefill here takes no time; else the GPUs prefill
    with all weights.
    """

    group: GpuGroup
    arch: Architecture
    link: WorldLink
    ffn_cycles: int
    clock_hz: int
    interval_cycles: int
    max_batch: int = 64
    prefilled: bool = False
    pipelines: int = 1

    @property
    def kv_tokens(self) -> int:
        """Positions that fit beside all weights, which the GPUs keep."""
        return self.group.max_sequences(self.arch, 1)

    def prefill_ps(self, tokens: int) -> int:
        """See ``BatchCost``."""
        if self.prefilled:
            return 0
        host = self.group.host_seconds(tokens) + self.group.host_seconds(1)
        return round((self.group.prefill_seconds(self.arch, tokens) + host) * PS)

    def crossing_bytes(self, batch: int) -> int:
        """Activations of a batch, one way: batch x hidden_size x 2 bytes."""
        return batch * self.arch.hidden_size * ACTIVATION_BYTES

    def ffn_seconds(self, batch: int) -> float:
        """Seconds of one layer's networks of a batch on the LPUs: of the largest part."""
        part = -(-batch // self.pipelines)
        return (self.ffn_cycles + (part - 1) * self.interval_cycles) / self.clock_hz

    def ffn_busy_cycles(self, batch: int) -> int:
        """Cycles that the pipelines work, together, on all layers' networks of a batch."""
        parts = min(batch, self.pipelines)
        one = parts * self.ffn_cycles + (batch - parts) * self.interval_cycles
        return self.arch.layers * one

    def attention_seconds(self, batch: int, seen: I64) -> F64:
        """Seconds of one layer's attention on the GPUs; seen: int64 [steps], as the result.

        The greater of memory (projections and KV cache) and arithmetic, kernels one after
        another, and one all-reduce.
        """
        arch, group, spec = self.arch, self.group, self.group.spec
        gpus = group.tensor_parallel
        weights = arch.attention_parameters * DTYPE_BYTES[group.dtype]
        nbytes = weights + seen.astype(np.float64) * (group.kv_bytes_per_token(arch) / arch.layers)
        attend: F64 = np.asarray(arch.attention_flops(1.0)) * seen / arch.layers
        operations = 2 * arch.attention_parameters * batch + attend
        memory = nbytes / (gpus * spec.hbm_bytes_per_s * spec.achieved_hbm_ratio)
        compute = operations / (gpus * spec.flops(group.dtype) * spec.achieved_flops_ratio)
        kernels = max(spec.kernels_per_layer - FFN_KERNELS, 1)
        exchange = collective_seconds(spec, "all-reduce", gpus, self.crossing_bytes(batch))
        bound: F64 = np.maximum(memory, compute)
        return bound + kernels * spec.kernel_overhead_s + min(exchange.values())

    def outer_seconds(self, batch: int) -> float:
        """Seconds of the embedding, the last norm and the output head on the GPUs."""
        arch, group, spec = self.arch, self.group, self.group.spec
        memory = arch.embedding_parameters * DTYPE_BYTES[group.dtype] / spec.hbm_bytes_per_s
        compute = arch.head_flops * batch / spec.flops(group.dtype)
        bound = max(memory / spec.achieved_hbm_ratio, compute / spec.achieved_flops_ratio)
        return bound / group.tensor_parallel + OUTER_KERNELS * spec.kernel_overhead_s

    def decode_ps(self, batch: int, context: int, steps: int) -> I64:
        """See ``BatchCost``: layers x (attention + there + network + back) + outside + host."""
        seen = context + batch * np.arange(steps, dtype=np.int64)
        crossing = 2 * self.link.seconds(self.crossing_bytes(batch))
        layer = self.attention_seconds(batch, seen) + crossing + self.ffn_seconds(batch)
        outside = self.outer_seconds(batch) + 2 * self.group.host_seconds(batch)
        seconds: F64 = self.arch.layers * layer + outside
        check_pass(float(seconds.max()), self.group.spec)
        rounded: I64 = np.rint(seconds * PS).astype(np.int64)
        return rounded
