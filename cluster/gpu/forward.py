"""What a GPU node computes: the float32 forward pass of a Llama checkpoint, with a KV cache.

A position's logits are the same bits however its text was split into calls, on every machine and
with any number of threads, because every sum has one order (``_forward_kernels``).  Drafted tokens
can therefore be verified in one pass over several positions, and what is accepted is exactly what
decoding one token at a time would have written.  Weights are float32 copies of the checkpoint's.

This module knows neither GPUs nor time; what a pass would take is ``cluster.gpu.roofline``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InputError
from cluster.gpu._forward_kernels import attend, gate, project, rms_norm, rotate
from programs.models import Checkpoint, ModelConfig, inverse_frequencies, sin_cos

F32 = NDArray[np.float32]

_FIRST_CAPACITY = 64


class KvCache:
    """Keys and values of one sequence; made by ``GpuModel.new_cache``.

    keys: float32 [layers, kv_heads, head_dim, capacity], rotated; values: float32 [layers,
    kv_heads, capacity, head_dim].  The capacity doubles as needed.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._length = 0
        self.keys, self.values = self._zeros(_FIRST_CAPACITY)

    @property
    def length(self) -> int:
        """Positions held."""
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes of the positions held, as float32."""
        c = self._config
        return 2 * 4 * c.layers * c.kv_heads * c.head_dim * self._length

    def truncate(self, length: int) -> None:
        """Forget the positions from ``length`` on; ``length`` is 0 up to the present length."""
        if not 0 <= length <= self._length:
            raise InputError(f"truncate to {length}: the cache has {self._length} positions")
        self._length = length

    def _zeros(self, capacity: int) -> tuple[F32, F32]:
        c = self._config
        shape = (c.layers, c.kv_heads)
        keys = np.zeros((*shape, c.head_dim, capacity), dtype=np.float32)
        return keys, np.zeros((*shape, capacity, c.head_dim), dtype=np.float32)

    def make_room(self, positions: int) -> None:
        """Grow until ``positions`` more fit; what is held does not change."""
        kept, needed, capacity = self._length, self._length + positions, self.keys.shape[3]
        if needed > capacity:
            keys, values = self._zeros(max(needed, 2 * capacity))
            keys[..., :kept] = self.keys[..., :kept]
            values[:, :, :kept] = self.values[:, :, :kept]
            self.keys, self.values = keys, values

    def advance(self, positions: int) -> None:
        """Count ``positions`` whose keys and values have been written."""
        self._length += positions


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer's weights, float32; matrices are [inputs, outputs]."""

    input_norm: F32
    query_key_value: F32
    attention_output: F32
    ffn_norm: F32
    gate_up: F32
    down: F32


class GpuModel:
    """A Llama checkpoint, ready to run; caches of any number of sequences share the weights."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = c = checkpoint.config
        if not c.plain:
            raise InputError(
                f"{checkpoint.path or 'the model'}: a GPU node computes Llama-family models alone "
                "(no head norms, GeGLU or experts); use a LlamaForCausalLM model"
            )

        def matrix(*names: str) -> F32:
            parts = [checkpoint.tensor(f"{name}.weight").T for name in names]
            return np.ascontiguousarray(np.concatenate(parts, axis=1))

        self._layers = []
        for number in range(c.layers):
            prefix = f"model.layers.{number}"
            attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
            self._layers.append(
                _Layer(
                    checkpoint.tensor(f"{prefix}.input_layernorm.weight"),
                    matrix(*(f"{attention}.{name}_proj" for name in "qkv")),
                    matrix(f"{attention}.o_proj"),
                    checkpoint.tensor(f"{prefix}.post_attention_layernorm.weight"),
                    matrix(f"{mlp}.gate_proj", f"{mlp}.up_proj"),
                    matrix(f"{mlp}.down_proj"),
                )
            )
        self._embedding = checkpoint.tensor("model.embed_tokens.weight")
        self._norm = checkpoint.tensor("model.norm.weight")
        self._head = matrix(checkpoint.head_name.removesuffix(".weight"))
        self._frequencies = inverse_frequencies(c)

    def new_cache(self) -> KvCache:
        """The empty cache of a new sequence."""
        return KvCache(self.config)

    def forward(self, tokens: Sequence[int], cache: KvCache) -> F32:
        """Append ``tokens`` to the sequence of ``cache``: logits after each, float32 [n, vocab].

        The same bits as the same tokens in any other split.  Raises InputError, with the cache as
        it was, for a token outside the vocabulary or a position beyond the model's context.
        """
        c, n, before = self.config, len(tokens), cache.length
        for token in tokens:
            if not 0 <= token < c.vocab:
                raise InputError(f"token {token} is outside the vocabulary of {c.vocab}")
        if before + n > c.max_position:
            raise InputError(
                f"{before} positions and {n} more exceed the model's context of {c.max_position}; "
                "use a shorter text"
            )
        if n == 0:
            return np.empty((0, c.vocab), dtype=np.float32)
        cache.make_room(n)
        angles = np.outer(np.arange(before, before + n, dtype=np.float64), self._frequencies)
        sin, cos = (table.astype(np.float32) for table in sin_cos(angles))
        x = self._embedding[np.array(tokens, dtype=np.int64)]
        for number, layer in enumerate(self._layers):
            x = x + self._attention(number, layer, x, sin, cos, cache)
            hidden = _linear(self._normed(x, layer.ffn_norm), layer.gate_up)
            gated = np.empty((n, c.ffn), dtype=np.float32)
            gate(hidden, gated)
            x = x + _linear(gated, layer.down)
        logits = _linear(self._normed(x, self._norm), self._head)
        cache.advance(n)
        return logits

    def _attention(
        self, number: int, layer: _Layer, x: F32, sin: F32, cos: F32, cache: KvCache
    ) -> F32:
        """Attention of x [n, hidden_size] with its projections; writes keys and values."""
        c, n, before = self.config, len(x), cache.length
        wide = _linear(self._normed(x, layer.input_norm), layer.query_key_value)
        heads = wide.reshape(n, c.heads + 2 * c.kv_heads, c.head_dim)
        values_from = c.heads + c.kv_heads
        rotate(heads[:, :values_from], sin, cos)
        keys, values = cache.keys[number], cache.values[number]
        keys[:, :, before : before + n] = heads[:, c.heads : values_from].transpose(1, 2, 0)
        values[:, before : before + n] = heads[:, values_from:].transpose(1, 0, 2)
        mixed = np.empty((n, c.heads, c.head_dim), dtype=np.float32)
        shares = np.empty(keys.shape[2], dtype=np.float32)
        attend(heads[:, : c.heads], keys, values, before, shares, mixed)
        return _linear(mixed.reshape(n, -1), layer.attention_output)

    def _normed(self, x: F32, gain: F32) -> F32:
        out = np.empty_like(x)
        rms_norm(x, gain, np.float32(self.config.eps), out)
        return out


def _linear(x: F32, weights: F32) -> F32:
    """x [n, K] times weights [K, N], float32 [n, N]."""
    out = np.empty((len(x), weights.shape[1]), dtype=np.float32)
    project(x, weights, out)
    return out
