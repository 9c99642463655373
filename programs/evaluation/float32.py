"""The plain float32 forward that an emulated model is measured against.

It is what a checkpoint's configuration says, on whole vectors in NumPy's float32: no tiles, no
chips, no conversions.  Sums are NumPy's, so its last bits depend on the host; what it is compared
with does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from chip.errors import LpuError
from programs.models import (
    CLAMPED_SILU,
    GELU_TANH,
    LATENT_EPS,
    Checkpoint,
    bias_name,
    ffn_names,
    inverse_frequencies,
    latent_names,
    norm_names,
    router_bias_name,
    router_name,
    shared_gate_name,
    sin_cos,
)

__all__ = ["EvaluationError", "Float32Forward", "Forward", "Watch"]

F32 = NDArray[np.float32]
#: Is told the layer, "attention" or "ffn", and the residual stream [positions, hidden] after it.
Watch = Callable[[int, str, F32], None]
#: Fields of a configuration, and of what it is made of, that this forward computes; others must be
#: as they are by default.
COMPUTED = {
    *("hidden_size", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab", "max_position"),
    *("eps", "rope_theta", "rope_scaling", "tied", "head_norms", "activation", "unit_gain"),
    *("scaled_embedding", "experts", "experts_per_token", "sliding_window", "layer_kinds"),
    *("second_rope", "sliding", "theta", "scaling", "pre_norms", "post_norms", "wide_norms"),
    *("query_scale", "score_cap", "logit_cap", "qkv_bias", "o_bias", "sinks", "head_gains"),
    *("shared_experts", "shared_gate", "shares_of_all", "input_shares", "expert_bias"),
    *("swiglu_limit", "plain_heads", "dense", "dense_ffn", "latent", "routed_factor"),
    *("expert_groups", "chosen_groups", "sigmoid_scores"),
    *("key_value", "rope", "query", "value"),
    *("embedding_factor", "residual_factor", "logit_factor"),
    *("kind", "factor", "low_freq_factor", "high_freq_factor", "original_max_position"),
    *("beta_fast", "beta_slow", "truncate", "size"),
}


class EvaluationError(LpuError, ValueError):
    """A model or a text that cannot be evaluated: what, and what would mend it, in one line."""


class Forward(Protocol):
    """A model that reads a text block by block and says what could follow each token."""

    def reset(self) -> None:
        """Forget the text."""

    def block(self, tokens: Sequence[int], position: int, watch: Watch | None = None) -> F32:
        """Read ``tokens`` from ``position`` on: logits after each, float32 [tokens, vocab]."""


class Float32Forward:
    """A checkpoint's tensors as float32, and keys and values of the text so far.

    Raises EvaluationError for a configuration that asks for something it does not compute.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._config = config = checkpoint.config
        _refuse_others(config)
        self._checkpoint = checkpoint
        self._tensors: dict[str, F32] = {}
        self._frequencies = [
            inverse_frequencies(config, table) for table in range(len(config.ropes))
        ]
        self.reset()

    def reset(self) -> None:
        """Forget the text."""
        config = self._config
        value = config.head_dim if config.latent is None else config.latent.value
        empty = np.zeros((0, config.kv_heads, config.head_dim), np.float32)
        self._keys = [empty] * config.layers
        self._values = [empty[:, :, :value]] * config.layers

    def block(self, tokens: Sequence[int], position: int, watch: Watch | None = None) -> F32:
        """Read ``tokens`` from ``position`` on: logits after each, float32 [tokens, vocab]."""
        config = self._config
        x = np.stack([self._checkpoint.embedding_row(token) for token in tokens])
        if config.scaled_embedding:
            x = x * np.float32(math.sqrt(config.hidden_size))
        x, grown = x * np.float32(config.embedding_factor), np.float32(config.residual_factor)
        positions = np.arange(position, position + len(x))
        ropes = [
            _rope_rows(np.outer(positions, table), rope.size)
            for table, rope in zip(self._frequencies, config.ropes, strict=True)
        ]
        for layer in range(config.layers):
            norms, rope = norm_names(config, layer), ropes[config.kind_of(layer).second_rope]
            before, after = norms.attention
            given = self._attend(layer, self._norm(x, before), position, rope)
            x = x + self._norm(given, after) * grown
            if watch is not None:
                watch(layer, "attention", x)
            before, after = norms.ffn
            x = x + self._norm(self._feed_forward(layer, self._norm(x, before)), after) * grown
            if watch is not None:
                watch(layer, "ffn", x)
        logits = self._linear(self._norm(x, "model.norm.weight"), self._checkpoint.head_name)
        return _capped(logits * np.float32(config.logit_factor), config.logit_cap)

    def _attend(self, layer: int, x: F32, position: int, rope: tuple[F32, F32]) -> F32:
        """What attention adds to the residual stream [P, hidden]; keys and values are kept."""
        config, prefix = self._config, f"model.layers.{layer}.self_attn"
        q, k, v = (self._heads if config.latent is None else self._from_latents)(layer, x, rope)
        keys = self._keys[layer] = np.concatenate([self._keys[layer][:position], k])
        values = self._values[layer] = np.concatenate([self._values[layer][:position], v])
        group, scale = config.heads // config.kv_heads, config.query_scale or config.head_dim**-0.5
        ages = position + np.arange(len(x))[:, None] - np.arange(len(keys))
        sliding = config.kind_of(layer).sliding
        seen = (ages >= 0) & (ages < (config.sliding_window if sliding else len(keys)))
        mixed = np.empty((len(x), config.heads, values.shape[2]), np.float32)
        for head in range(config.heads):
            scores = q[:, head] @ keys[:, head // group].T * np.float32(scale)
            scores = np.where(seen, _capped(scores, config.score_cap), np.float32(-np.inf))
            if config.sinks:
                sink = self._tensor(f"{prefix}.sinks")[head]
                scores = np.concatenate([scores, np.full((len(x), 1), sink)], axis=1)
            mixed[:, head] = _shares(scores)[:, : len(keys)] @ values[:, head // group]
        return self._product(mixed.reshape(len(x), -1), f"{prefix}.o_proj.weight", config.o_bias)

    def _heads(self, layer: int, x: F32, rope: tuple[F32, F32]) -> tuple[F32, F32, F32]:
        """Queries, keys and values [P, heads, head_dim], rotated."""
        config, prefix = self._config, f"model.layers.{layer}.self_attn"
        matrices = (f"{prefix}.{name}_proj.weight" for name in "qkv")
        q, k, v = (self._product(x, matrix, config.qkv_bias) for matrix in matrices)
        gains = f"{prefix}.q_norm.weight", f"{prefix}.k_norm.weight"
        if config.wide_norms:
            q, k = self._norm(q, gains[0]), self._norm(k, gains[1])
        q, k, v = (y.reshape(len(x), -1, config.head_dim) for y in (q, k, v))
        if config.head_norms and not config.kind_of(layer).plain_heads:
            q, k = (
                self._norm(y, gain) if config.head_gains else self._unit(y)
                for y, gain in zip((q, k), gains, strict=True)
            )
        return _rotate(q, rope), _rotate(k, rope), v

    def _from_latents(self, layer: int, x: F32, rope: tuple[F32, F32]) -> tuple[F32, F32, F32]:
        """As ``_heads``, made of latents; values [P, heads, value]."""
        config, names, a = self._config, latent_names(layer), self._config.latent
        assert a is not None
        inner, queries = x, names.queries
        if a.query:
            inner, queries = self._linear(x, names.query_down), names.query_up
            inner = self._unit(inner, LATENT_EPS) * self._tensor(names.query_norm)
        q = self._linear(inner, queries).reshape(len(x), config.heads, -1)
        down = self._linear(x, names.down)
        latent = self._unit(down[:, : a.key_value], LATENT_EPS) * self._tensor(names.norm)
        made = self._linear(latent, names.up).reshape(len(x), config.heads, -1)
        plain = config.head_dim - a.rope
        shared = _rotate(_in_halves(down[:, None, a.key_value :]), rope)
        shared = np.broadcast_to(shared, (len(x), config.heads, a.rope))
        q = np.concatenate([q[..., :plain], _rotate(_in_halves(q[..., plain:]), rope)], axis=2)
        return q, np.concatenate([made[..., :plain], shared], axis=2), made[..., plain:]

    def _feed_forward(self, layer: int, x: F32) -> F32:
        """What the FFN, or a layer's experts, add to the residual stream [P, hidden]."""
        config, names = self._config, ffn_names(self._config, layer)
        if len(names) == 1:
            return self._gated(x, *names[0])
        logits = self._product(x, router_name(config, layer), config.expert_bias)
        by = logits
        if config.sigmoid_scores:
            logits = _sigmoid(logits)
            by = logits + self._tensor(router_bias_name(config, layer))
        by = self._within_groups(by)
        chosen = np.argsort(-by, axis=1, kind="stable")[:, : config.experts_per_token]
        best: F32 = np.take_along_axis(logits, chosen, 1)
        shares = _shares(best)
        if config.sigmoid_scores:
            shares = best / best.sum(axis=1, keepdims=True)
        if config.shares_of_all:
            shares = np.take_along_axis(_shares(logits), chosen, 1)
        if config.input_shares:
            shares = _sigmoid(best)
        shares = shares * np.float32(config.routed_factor)
        out = np.zeros_like(x)
        for expert, tensors in enumerate(names[: config.experts]):
            rows, place = np.nonzero(chosen == expert)
            if len(rows):
                share = shares[rows, place, None]
                taken = x[rows] * share if config.input_shares else x[rows]
                given = self._gated(taken, *tensors)
                out[rows] += given if config.input_shares else share * given
        if config.shared_experts:
            own: F32 = np.ones((len(x), 1), np.float32)
            if config.shared_gate:
                own = _sigmoid(self._linear(x, shared_gate_name(layer)))
            for tensors in names[config.experts :]:
                out += own * self._gated(x, *tensors)
        return out

    def _within_groups(self, by: F32) -> F32:
        """What experts are chosen by [P, experts], minus infinity outside of the best groups."""
        config = self._config
        if config.expert_groups == 1:
            return by
        of_groups = np.sort(by.reshape(len(by), config.expert_groups, -1), axis=2)
        scores = of_groups[..., -1 - config.sigmoid_scores :].sum(axis=2)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : config.chosen_groups]
        kept = (best[:, None] == np.arange(config.expert_groups)[:, None]).any(axis=2)
        found: F32 = np.where(kept.repeat(of_groups.shape[2], 1), by, np.float32(-np.inf))
        return found

    def _gated(self, x: F32, gate: str, up: str, down: str) -> F32:
        config = self._config
        g, u = (self._product(x, name, config.expert_bias) for name in (gate, up))
        if config.activation == CLAMPED_SILU:
            limit = np.float32(config.swiglu_limit)
            g, u = np.minimum(g, limit), np.clip(u, -limit, limit)
            active = g * _sigmoid(np.float32(1.702) * g) * (u + np.float32(1))
        elif config.activation == GELU_TANH:
            inner = np.float32(math.sqrt(2 / math.pi)) * (g + np.float32(0.044715) * g * g * g)
            active = np.float32(0.5) * g * (np.float32(1) + np.tanh(inner)) * u
        else:
            active = g * _sigmoid(g) * u
        return self._product(active, down, config.expert_bias)

    def _norm(self, x: F32, name: str | None) -> F32:
        """RMS norm over the last axis, times the gain ``name``; x itself without one."""
        if name is None:
            return x
        gain = self._tensor(name) + np.float32(self._config.unit_gain)
        normed: F32 = self._unit(x) * gain
        return normed

    def _unit(self, x: F32, eps: float | None = None) -> F32:
        """x over its root mean square along the last axis; eps: if not the model's."""
        mean: F32 = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
        unit: F32 = x / np.sqrt(mean + np.float32(self._config.eps if eps is None else eps))
        return unit

    def _product(self, x: F32, name: str, biased: bool) -> F32:
        """A product with the matrix ``name``, and its bias where it has one."""
        y = self._linear(x, name)
        return y + self._tensor(bias_name(name)) if biased else y

    def _linear(self, x: F32, name: str) -> F32:
        result: F32 = x @ self._tensor(name).T
        return result

    def _tensor(self, name: str) -> F32:
        if name not in self._tensors:
            self._tensors[name] = self._checkpoint.tensor(name)
        return self._tensors[name]


def _refuse_others(value: Any) -> None:
    """Raise EvaluationError for a field that is not in COMPUTED and not as it is by default."""
    for each in value if isinstance(value, tuple) else (value,):
        for field in fields(each) if is_dataclass(each) else ():
            own = getattr(each, field.name)
            if field.name not in COMPUTED and own != field.default:
                raise EvaluationError(
                    f"the float32 forward does not compute {field.name}; evaluate a model without "
                    "it"
                )
            _refuse_others(own)


def _sigmoid(x: F32) -> F32:
    """1 / (1 + exp(-x)), without an overflow."""
    result: F32 = np.float32(0.5) * (np.float32(1) + np.tanh(np.float32(0.5) * x))
    return result


def _shares(logits: F32) -> F32:
    """The softmax over the last axis."""
    shares: F32 = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return shares


def _capped(x: F32, cap: float) -> F32:
    """Cap tanh(x / cap); x itself where there is no cap."""
    return np.float32(cap) * np.tanh(x / np.float32(cap)) if cap else x


def _rope_rows(angles: NDArray[np.float64], size: float) -> tuple[F32, F32]:
    """(cos, sin) times ``size``, float32 [P, 1, head_dim / 2], of angles [P, head_dim / 2]."""
    sin, cos = sin_cos(angles)
    return (cos * size).astype(np.float32)[:, None], (sin * size).astype(np.float32)[:, None]


def _in_halves(x: F32) -> F32:
    """Even elements along the last axis, then odd ones."""
    halves: F32 = np.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)
    return halves


def _rotate(x: F32, rope: tuple[F32, F32]) -> F32:
    """Rotate the halves of heads [P, heads, head_dim] by (cos, sin) [P, 1, head_dim / 2]."""
    cos, sin = rope
    first, second = np.split(x, 2, axis=-1)
    rotated: F32 = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated
