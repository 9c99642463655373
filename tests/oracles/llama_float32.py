"""A plain float32 forward of Llama, Qwen3, Gemma or Mixtral in NumPy, from the architecture.

The independent yardstick of the tests: it reads a checkpoint's tensors and nothing else of the
project, works on whole sequences of [positions, features], and knows no tiles, chips or number
tricks.  Rotary embedding rotates the first half of a head against the second (Hugging Face's
``rotate_half``); query heads share key/value heads in consecutive groups.
"""

import math

import numpy as np
from numpy.typing import NDArray

from programs.models import Checkpoint, ModelConfig

F32 = NDArray[np.float32]


class LlamaFloat32:
    """A model's tensors as float32, and its forward pass."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self.checkpoint = checkpoint
        self._tensors: dict[str, F32] = {}

    def logits(self, tokens: list[int]) -> F32:
        """Return the next-token logits after each of `tokens`, float32 [positions, vocab]."""
        c = self.config
        n, d = len(tokens), c.head_dim
        angles = np.outer(np.arange(n), rope_frequencies(c))
        angles = np.concatenate([angles, angles], axis=1)
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        causal = np.triu(np.full((n, n), -np.inf, dtype=np.float32), 1)
        x = self._get("model.embed_tokens.weight")[np.array(tokens)]
        if c.scaled_embedding:
            x = x * np.float32(math.sqrt(c.hidden_size))
        for layer in range(c.layers):
            prefix = f"model.layers.{layer}."
            h = self._norm(x, prefix + "input_layernorm.weight")
            q = self._linear(h, prefix + "self_attn.q_proj.weight").reshape(n, c.heads, d)
            k = self._linear(h, prefix + "self_attn.k_proj.weight").reshape(n, c.kv_heads, d)
            v = self._linear(h, prefix + "self_attn.v_proj.weight").reshape(n, c.kv_heads, d)
            if c.head_norms:
                q = self._norm(q, prefix + "self_attn.q_norm.weight")
                k = self._norm(k, prefix + "self_attn.k_norm.weight")
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            k = np.repeat(k, c.heads // c.kv_heads, axis=1)
            v = np.repeat(v, c.heads // c.kv_heads, axis=1)
            scores = np.einsum("qhd,khd->hqk", q, k) / np.float32(math.sqrt(d)) + causal
            shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
            shares /= shares.sum(axis=-1, keepdims=True)
            mixed = np.einsum("hqk,khd->qhd", shares, v).reshape(n, c.heads * d)
            x = x + self._linear(mixed, prefix + "self_attn.o_proj.weight")
            h = self._norm(x, prefix + "post_attention_layernorm.weight")
            if c.experts > 1:
                x = x + self._experts(h, prefix + ("mlp." if c.head_norms else "block_sparse_moe."))
            else:
                x = x + self._ffn(h, *(f"{prefix}mlp.{n}_proj" for n in ("gate", "up", "down")))
        h = self._norm(x, "model.norm.weight")
        return self._linear(h, "model.embed_tokens.weight" if c.tied else "lm_head.weight")

    def _ffn(self, h: F32, gate: str, up: str, down: str) -> F32:
        g = self._linear(h, gate + ".weight")
        if self.config.activation == "silu":
            active = g / (np.float32(1) + np.exp(-g))
        else:
            inner = math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)
            active = (0.5 * g * (1 + np.tanh(inner))).astype(np.float32)
        return self._linear(active * self._linear(h, up + ".weight"), down + ".weight")

    def _experts(self, h: F32, prefix: str) -> F32:
        """Each position's best experts by softmax, their shares made to add up to one."""
        logits = self._linear(h, prefix + "gate.weight")
        out = np.zeros_like(h)
        for row, scores in enumerate(logits):
            shares = np.exp(scores - scores.max())
            chosen = np.argsort(-shares, kind="stable")[: self.config.experts_per_token]
            for e in chosen:
                own = ("w1", "w3", "w2")
                if self.config.head_norms:
                    own = ("gate_proj", "up_proj", "down_proj")
                names = (f"{prefix}experts.{e}.{w}" for w in own)
                part = self._ffn(h[row : row + 1], *names)[0]
                out[row] += shares[e] / shares[chosen].sum() * part
        return out

    def _get(self, name: str) -> F32:
        if name not in self._tensors:
            self._tensors[name] = self.checkpoint.tensor(name)
        return self._tensors[name]

    def _linear(self, x: F32, name: str) -> F32:
        result: F32 = x @ self._get(name).T
        return result

    def _norm(self, x: F32, name: str) -> F32:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        gain = self._get(name) + np.float32(self.config.unit_gain)
        result: F32 = x / np.sqrt(mean + np.float32(self.config.eps)) * gain
        return result


def rope_frequencies(config: ModelConfig) -> NDArray[np.float64]:
    """Return radians per position of each rotated pair [head_dim / 2]."""
    d = config.head_dim
    frequencies: NDArray[np.float64] = config.rope_theta ** (-np.arange(0, d, 2) / d)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    wavelengths = 2 * np.pi / frequencies
    original = scaling.original_max_position
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (original / wavelengths - low) / (high - low)
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    result = np.where(wavelengths > original / low, frequencies / scaling.factor, blended)
    return np.where(wavelengths < original / high, frequencies, result)


def rotate(x: F32, cos: F32, sin: F32) -> F32:
    """Rotate `x` [positions, heads, head_dim] by tables [positions, head_dim]."""
    first, second = np.split(x, 2, axis=-1)
    half = np.concatenate([-second, first], axis=-1)
    result: F32 = x * cos[:, None, :] + half * sin[:, None, :]
    return result


def perplexity(logits: F32, tokens: list[int]) -> float:
    """Return exp of the mean surprise, in nats, of tokens[1:] given `logits` [len(tokens), V]."""
    wide = logits[:-1].astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    normaliser = np.log(np.exp(wide).sum(axis=1))
    taken = wide[np.arange(len(wide)), tokens[1:]]
    return float(np.exp(np.mean(normaliser - taken)))
