"""Gemma 2, Gemma 3 (text) and OLMo-2 in float64, written from what the publishers say they compute.

Takes the fields of a ``config.json`` and tensors by their published names, nothing of the project.
Works on a whole text at once; every layer is written out in the order of its family's description.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Fields = Mapping[str, Any]
Tensors = Callable[[str], NDArray[np.float32]]


def forward(fields: Fields, tensors: Tensors, tokens: list[int]) -> F64:
    """Return the logits after each token, float64 [tokens, vocabulary]."""
    layer = {
        "Gemma2ForCausalLM": _gemma2_layer,
        "Gemma3ForCausalLM": _gemma3_layer,
        "Olmo2ForCausalLM": _olmo2_layer,
    }[fields["architectures"][0]]
    gemma = layer is not _olmo2_layer
    embedding = tensors("model.embed_tokens.weight").astype(np.float64)
    x = embedding[tokens]
    if gemma:
        x = x * math.sqrt(fields["hidden_size"])
    for number in range(fields["num_hidden_layers"]):
        prefix = f"model.layers.{number}."
        x = layer(fields, _Layer(tensors, prefix), number, x)
    x = _rms(x, fields) * (tensors("model.norm.weight") + float(gemma))
    tied = fields.get("tie_word_embeddings", gemma)
    logits: F64 = x @ (embedding if tied else tensors("lm_head.weight").astype(np.float64)).T
    cap = fields.get("final_logit_softcapping")
    return cap * np.tanh(logits / cap) if cap else logits


class _Layer:
    """Tensors of one layer by the rest of their names."""

    def __init__(self, tensors: Tensors, prefix: str) -> None:
        self._tensors, self._prefix = tensors, prefix

    def __getitem__(self, name: str) -> F64:
        return self._tensors(self._prefix + name).astype(np.float64)


def _rms(x: F64, fields: Fields) -> F64:
    """x over the root of its mean square along the last axis."""
    result: F64 = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + fields["rms_norm_eps"])
    return result


def _gemma2_layer(fields: Fields, w: _Layer, number: int, x: F64) -> F64:
    """Norms before and after each block; layers 0, 2, ... see a window; scores are capped."""

    def norm(y: F64, name: str) -> F64:
        return _rms(y, fields) * (1 + w[f"{name}.weight"])

    q, k, v = _projected(fields, w, norm(x, "input_layernorm"))
    turned = _angles(fields["rope_theta"], fields["head_dim"], len(x))
    window = fields["sliding_window"] if number % 2 == 0 else len(x)
    scale, cap = fields["query_pre_attn_scalar"] ** -0.5, fields["attn_logit_softcapping"]
    mixed = _attention(_turn(q, turned), _turn(k, turned), v, scale, window, cap)
    x = x + norm(mixed @ w["self_attn.o_proj.weight"].T, "post_attention_layernorm")
    y = _gated(w, norm(x, "pre_feedforward_layernorm"), _gelu)
    return x + norm(y, "post_feedforward_layernorm")


def _gemma3_layer(fields: Fields, w: _Layer, number: int, x: F64) -> F64:
    """As Gemma 2 without caps; heads are normed; every sixth layer sees all, with its own rope."""

    def norm(y: F64, name: str) -> F64:
        return _rms(y, fields) * (1 + w[f"{name}.weight"])

    kinds = fields.get("layer_types")
    every = (number + 1) % 6 == 0 if kinds is None else kinds[number] == "full_attention"
    nested = fields.get("rope_parameters")
    if nested is not None:
        table = nested["full_attention" if every else "sliding_attention"]
        theta, factor = table["rope_theta"], table.get("factor", 1.0)
    else:
        theta = fields["rope_theta"] if every else fields["rope_local_base_freq"]
        scaling = fields.get("rope_scaling") or {"factor": 1.0}
        factor = scaling["factor"] if every else 1.0
    q, k, v = _projected(fields, w, norm(x, "input_layernorm"))
    turned = _angles(theta, fields["head_dim"], len(x)) / factor
    q, k = norm(q, "self_attn.q_norm"), norm(k, "self_attn.k_norm")
    window = len(x) if every else fields["sliding_window"]
    scale = fields["query_pre_attn_scalar"] ** -0.5
    mixed = _attention(_turn(q, turned), _turn(k, turned), v, scale, window)
    x = x + norm(mixed @ w["self_attn.o_proj.weight"].T, "post_attention_layernorm")
    y = _gated(w, norm(x, "pre_feedforward_layernorm"), _gelu)
    return x + norm(y, "post_feedforward_layernorm")


def _olmo2_layer(fields: Fields, w: _Layer, number: int, x: F64) -> F64:
    """Norms after each block alone; all queries are normed as one vector, and so all keys."""
    d = fields["hidden_size"] // fields["num_attention_heads"]
    q = _rms(x @ w["self_attn.q_proj.weight"].T, fields) * w["self_attn.q_norm.weight"]
    k = _rms(x @ w["self_attn.k_proj.weight"].T, fields) * w["self_attn.k_norm.weight"]
    v = x @ w["self_attn.v_proj.weight"].T
    heads = [y.reshape(len(x), -1, d) for y in (q, k, v)]
    turned = _angles(fields["rope_theta"], d, len(x))
    mixed = _attention(_turn(heads[0], turned), _turn(heads[1], turned), heads[2], d**-0.5, len(x))
    y = mixed @ w["self_attn.o_proj.weight"].T
    x = x + _rms(y, fields) * w["post_attention_layernorm.weight"]
    y = _gated(w, x, lambda g: g / (1 + np.exp(-g)))
    return x + _rms(y, fields) * w["post_feedforward_layernorm.weight"]


def _projected(fields: Fields, w: _Layer, h: F64) -> list[F64]:
    """Queries, keys and values [positions, heads, head_dim]."""
    return [
        (h @ w[f"self_attn.{name}_proj.weight"].T).reshape(len(h), -1, fields["head_dim"])
        for name in "qkv"
    ]


def _angles(theta: float, d: int, positions: int) -> F64:
    return np.outer(np.arange(positions), theta ** (-np.arange(0, d, 2) / d))


def _turn(x: F64, angles: F64) -> F64:
    """Rotate pairs (i, i + d / 2) of heads [positions, heads, d]."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attention(q: F64, k: F64, v: F64, scale: float, window: int, cap: float = 0.0) -> F64:
    """Positions see themselves and those before, ``window`` in all; [positions, heads d]."""
    groups = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, groups, axis=1), np.repeat(v, groups, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) * scale
    if cap:
        scores = cap * np.tanh(scores / cap)
    distance = np.arange(len(q))[:, None] - np.arange(len(q))[None, :]
    scores = np.where((distance >= 0) & (distance < window), scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", shares, v).reshape(len(q), -1)


def _gated(w: _Layer, h: F64, activation: Any) -> F64:
    gate, up = h @ w["mlp.gate_proj.weight"].T, h @ w["mlp.up_proj.weight"].T
    result: F64 = (activation(gate) * up) @ w["mlp.down_proj.weight"].T
    return result


def _gelu(g: F64) -> F64:
    """The tanh form of Gaussian error linear units."""
    return 0.5 * g * (1 + np.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))
