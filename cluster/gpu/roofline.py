"""How long GPUs take for a pass over a model: the greater of memory and arithmetic, plus overheads.

An estimate by formula.  A *pass* computes new positions of one or several sequences at once, after
positions that lie in the KV cache: a prefill, a decode step, a verification of drafted tokens.  Its
time is the greatest that this machine's memory and its arithmetic need, each at the share of the
peak that programs achieve, plus kernels that start one after another, plus the group's exchanges:

    seconds = max(memory_s, compute_s) + overhead_s + all_reduce_s

Not modelled: expert parallelism (experts are split like every other matrix), pipelines, and the
memory of activations.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cluster.errors import InputError
from cluster.gpu.collectives import collective_seconds
from cluster.gpu.link import TOKEN_BYTES
from cluster.gpu.spec import DTYPE_BYTES, GpuSpec, check_dtype, check_number
from programs.models import Architecture

#: Bytes of one activation in an all-reduce: 16-bit, whatever the weights are.
ACTIVATION_BYTES = 2
#: Kernels of a pass outside the layers: embedding, last norm, output head (assumed).
OUTER_KERNELS = 3
MAX_GROUP = 1024
"""GPUs of a group at most."""
LONGEST_PASS_S = 10_000.0
"""No pass may take longer: a spec that leads here is a slip of units."""


class KernelJitter:
    """Seeded slowness of passes: factors exp(sigma |z|) >= 1, z standard normal.

    The roofline is a best case, so a factor only slows down.  The n-th factor depends on seed,
    stream and n alone; give every group its own stream.
    """

    def __init__(self, seed: int, stream: str = "", sigma: float = 0.05) -> None:
        check_number("jitter sigma", sigma, 0)
        key = np.array([seed % (1 << 64), zlib.crc32(stream.encode())], dtype=np.uint64)
        self._random = np.random.Generator(np.random.Philox(key=key))
        self._sigma = sigma

    def factor(self) -> float:
        """The next factor; dimensionless."""
        return float(np.exp(self._sigma * abs(self._random.standard_normal())))


@dataclass(frozen=True)
class PassTime:
    """Where the time of one pass goes, in seconds.

    memory_s: bytes / (gpus x hbm_bytes_per_s x achieved_hbm_ratio).  compute_s: operations /
    (gpus x flops x achieved_flops_ratio).  overhead_s: kernels x kernel_overhead_s.  all_reduce_s:
    two all-reduces per layer.  slowdown: the jitter's factor on the sum.
    """

    memory_s: float
    compute_s: float
    overhead_s: float
    all_reduce_s: float
    slowdown: float = 1.0

    @property
    def seconds(self) -> float:
        """slowdown x (max(memory_s, compute_s) + overhead_s + all_reduce_s)."""
        bound = max(self.memory_s, self.compute_s)
        return self.slowdown * (bound + self.overhead_s + self.all_reduce_s)


@dataclass(frozen=True)
class GpuGroup:
    """``tensor_parallel`` GPUs of one type that hold a model together, every matrix split.

    dtype: number type of the weights and of the arithmetic.  kv_bytes_per_value: of the KV cache,
    2 for 16-bit.
    """

    spec: GpuSpec
    tensor_parallel: int = 1
    dtype: str = "fp16"
    kv_bytes_per_value: float = 2.0
    jitter: KernelJitter | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        self.spec.flops(self.dtype)
        if not 1 <= self.tensor_parallel <= MAX_GROUP:
            raise InputError(f"tensor parallel {self.tensor_parallel}: use 1 to {MAX_GROUP:,}")
        check_number("bytes per KV value", self.kv_bytes_per_value)

    @property
    def hbm_bytes(self) -> int:
        """Memory of the group in bytes: tensor_parallel x hbm_bytes."""
        return self.tensor_parallel * self.spec.hbm_bytes

    @property
    def watts(self) -> float:
        """Power of the group: tensor_parallel x watts; 0 where it is not published."""
        return self.tensor_parallel * self.spec.watts

    def weight_bytes(self, arch: Architecture) -> int:
        """Bytes of the weights over the whole group: parameters x bytes of ``dtype``."""
        return round(arch.parameters * DTYPE_BYTES[self.dtype])

    def kv_bytes_per_token(self, arch: Architecture) -> int:
        """Bytes of one position's keys and values over the whole group, copies included.

        With more GPUs than KV heads a head is stored tensor_parallel / kv_heads times (rounded up
        to whole heads per GPU); latents of latent attention are stored by every GPU.
        """
        once = arch.kv_bytes_per_token(self.kv_bytes_per_value)
        if arch.latent is not None:
            return once * self.tensor_parallel
        per_gpu = -(-arch.kv_heads // self.tensor_parallel)
        return once * per_gpu * self.tensor_parallel // arch.kv_heads

    def max_sequences(self, arch: Architecture, context: int) -> int:
        """Sequences of ``context`` positions that fit beside the weights.

        floor((hbm_bytes - weight_bytes) / (context x kv_bytes_per_token)), at least 0.
        """
        _check_count("context", context, 1)
        free = self.hbm_bytes - self.weight_bytes(arch)
        return max(free // (context * self.kv_bytes_per_token(arch)), 0)

    def check_fits(
        self, arch: Architecture, sequences: int, context: int, *others: Architecture
    ) -> None:
        """Raise InputError unless weights and the KV cache of all sequences fit the HBM.

        weight_bytes + sequences x context x kv_bytes_per_token <= hbm_bytes.  others: models that
        lie beside ``arch`` and keep a cache of the same sequences; all together must fit.
        """
        _check_count("sequences", sequences, 0)
        _check_count("context", context, 0)
        models = (arch, *others)
        weights = sum(map(self.weight_bytes, models))
        cache = sequences * context * sum(map(self.kv_bytes_per_token, models))
        excess = weights + cache - self.hbm_bytes
        if excess > 0:
            raise InputError(
                f"{' beside '.join(model.name for model in models)} in {self.dtype} with "
                f"{sequences:,} sequences of {context:,} tokens "
                f"exceeds {self.tensor_parallel} x {self.spec.name} by {excess:,} bytes: "
                f"{weights:,} of weights and {cache:,} of KV cache; use more GPUs, "
                "smaller numbers, or fewer or shorter sequences"
            )

    def host_seconds(self, tokens: int) -> float:
        """Seconds of one transfer of token ids between the host and the group, over PCIe.

        host_latency_s + tokens x 4 bytes / (pcie_bytes_per_s x achieved_link_ratio).  A pass takes
        its tokens in before it and gives tokens out after it, and waits for both, as the LPUs' host
        transfers do not overlap with their programs either; no time of a pass includes them.
        """
        _check_count("tokens", tokens, 0)
        rate = self.spec.pcie_bytes_per_s * self.spec.achieved_link_ratio
        seconds = self.spec.host_latency_s + tokens * TOKEN_BYTES / rate
        check_pass(seconds, self.spec)
        return seconds

    def prefill_seconds(self, arch: Architecture, tokens: int, cached: int = 0) -> float:
        """Seconds to compute ``tokens`` positions after ``cached`` ones and the last one's logits.

        One pass (``pass_time``) of one sequence; for long prompts the arithmetic,
        2 x active weights x tokens + attention, is the bound.
        """
        return self.pass_time(arch, [cached], tokens, outputs=1, expanded=True).seconds

    def decode_seconds(self, arch: Architecture, contexts: Sequence[int]) -> float:
        """Seconds of one more token for each of a batch with these numbers of cached positions.

        One pass (``pass_time``); at small batches the bound is memory, (weights + KV) / bandwidth.
        """
        return self.pass_time(arch, contexts, 1).seconds

    def verify_seconds(
        self, arch: Architecture, context: int, tokens: int, sequences: int = 1
    ) -> float:
        """Seconds of a pass over ``tokens`` positions after ``context`` cached ones, with logits
        at every position, for each of ``sequences`` alike; one token is ``decode_seconds``.
        """
        _check_count("sequences", sequences, 1)
        return self.pass_time(arch, [context] * sequences, tokens).seconds

    def pass_time(
        self,
        arch: Architecture,
        contexts: Sequence[int],
        tokens: int,
        *,
        outputs: int | None = None,
        expanded: bool = False,
    ) -> PassTime:
        """One pass: ``tokens`` new positions for each sequence with ``contexts`` cached ones.

        With n = len(contexts) x tokens, and the sums over all new positions:
        bytes = parameters_read(n) x dtype bytes + kv_bytes_per_token x sum(context + tokens);
        operations = linear_flops x n + attention_flops(sum of positions seen) + head_flops x
        outputs, where the i-th new position (from 1) sees context + i positions;
        all-reduce: 2 x layers x collective_seconds(n x hidden_size x 2 bytes).
        Weights, of experts those that n tokens are expected to choose, are read once per pass;
        fractions are as in PassTime.  outputs: positions with logits, None for all n.
        expanded: keys and values are made from latents first (``Architecture.attention_flops``).
        """
        _check_count("tokens", tokens, 1)
        _check_count("sequences", len(contexts), 1)
        _check_count("cached positions", min(contexts), 0)
        spec, gpus = self.spec, self.tensor_parallel
        positions = len(contexts) * tokens
        stored = sum(contexts) + positions
        nbytes = arch.parameters_read(positions) * DTYPE_BYTES[self.dtype]
        nbytes += stored * self.kv_bytes_per_token(arch)
        seen = tokens * sum(contexts) + len(contexts) * tokens * (tokens + 1) / 2
        operations = (
            arch.linear_flops_per_token * positions
            + arch.attention_flops(seen, expanded=expanded)
            + arch.head_flops * (positions if outputs is None else outputs)
        )
        exchange = collective_seconds(
            spec, "all-reduce", gpus, positions * arch.hidden_size * ACTIVATION_BYTES
        )
        time = PassTime(
            memory_s=nbytes / (gpus * spec.hbm_bytes_per_s * spec.achieved_hbm_ratio),
            compute_s=operations / (gpus * spec.flops(self.dtype) * spec.achieved_flops_ratio),
            overhead_s=(arch.layers * spec.kernels_per_layer + OUTER_KERNELS)
            * spec.kernel_overhead_s,
            all_reduce_s=2 * arch.layers * min(exchange.values()),
            slowdown=1.0 if self.jitter is None else self.jitter.factor(),
        )
        check_pass(time.seconds, spec)
        return time


def check_pass(seconds: float, spec: GpuSpec) -> None:
    """Refuse a pass that would take longer than ``LONGEST_PASS_S``, or no finite time."""
    if not seconds <= LONGEST_PASS_S:
        raise InputError(
            f"a pass on {spec.name} would take {seconds:.3g} s, more than {LONGEST_PASS_S:,.0f} s; "
            "check the units of the GPU's and the link's figures"
        )


def _check_count(what: str, number: int, least: int) -> None:
    if number < least:
        raise InputError(f"{what} {number}: it must be at least {least}")
