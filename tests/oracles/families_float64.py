"""A float64 forward of decoder families in NumPy, from each family's published description.

It reads the fields of a Hugging Face ``config.json`` and the tensors by their published names, and
nothing else of the project: what a field means is said here a second time, from the published
configuration and modelling classes.  It works on whole sequences of [positions, features] and knows
no tiles, chips or number tricks.

Llama, Mistral, Mixtral, Qwen2, Qwen2-MoE, Qwen3, Qwen3-MoE, gpt-oss, Phi-3, Granite and SmolLM3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Tensors = Callable[[str], NDArray[Any]]


class FamilyFloat64:
    """A model's configuration and tensors, and its forward pass."""

    def __init__(self, fields: Mapping[str, Any], tensors: Tensors) -> None:
        self.fields = fields
        self.type: str = fields["model_type"]
        self._tensors = tensors
        self._known: dict[str, F64] = {}
        heads: int = fields["num_attention_heads"]
        self.heads, self.kv_heads = heads, fields.get("num_key_value_heads", heads)
        self.head_dim: int = fields.get("head_dim") or fields["hidden_size"] // heads

    def logits(self, tokens: list[int]) -> F64:
        """Return the next-token logits after each of `tokens`, float64 [positions, vocab]."""
        f = self.fields
        x = self._get("model.embed_tokens.weight")[np.array(tokens)]
        grown = 1.0
        if self.type == "granite":
            x = x * f["embedding_multiplier"]
            grown = f["residual_multiplier"]
        for layer in range(f["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            h = self._norm(x, prefix + "input_layernorm")
            x = x + grown * self._attention(h, layer, prefix + "self_attn.")
            h = self._norm(x, prefix + "post_attention_layernorm")
            if not self._routes(layer):
                x = x + grown * self._mlp(h, prefix + "mlp.")
            elif self.type == "mixtral":
                names = prefix + "block_sparse_moe.", ("w1", "w3", "w2")
                x = x + self._experts(h, *names, f["num_experts_per_tok"])
            elif self.type == "gpt_oss":
                x = x + self._clamped_experts(h, prefix + "mlp.")
            elif self.type == "llama4_text":
                x = x + self._scaled_experts(h, prefix + "mlp.")
            elif self.type.startswith("deepseek"):
                x = x + self._deepseek_experts(h, prefix + "mlp.")
            elif self.type == "qwen2_moe":
                names = prefix + "mlp.", ("gate_proj", "up_proj", "down_proj")
                x = x + self._experts(h, *names, f["num_experts_per_tok"])
                x = x + self._shared_expert(h, prefix + "mlp.")
            else:
                names = prefix + "mlp.", ("gate_proj", "up_proj", "down_proj")
                x = x + self._experts(h, *names, f["num_experts_per_tok"])
        tied = f.get("tie_word_embeddings", False)
        head = self._get("model.embed_tokens.weight" if tied else "lm_head.weight")
        logits: F64 = self._norm(x, "model.norm") @ head.T
        return logits / f["logits_scaling"] if self.type == "granite" else logits

    def _attention(self, h: F64, layer: int, prefix: str) -> F64:
        if self.type.startswith("deepseek"):
            return self._latent_attention(h, prefix)
        n, d = len(h), self.head_dim
        shares_of = self.heads // self.kv_heads
        q = self._linear(h, prefix + "q_proj").reshape(n, self.heads, d)
        k = self._linear(h, prefix + "k_proj").reshape(n, self.kv_heads, d)
        v = self._linear(h, prefix + "v_proj").reshape(n, self.kv_heads, d)
        if self.type in ("qwen3", "qwen3_moe"):
            q, k = self._norm(q, prefix + "q_norm"), self._norm(k, prefix + "k_norm")
        if self._turns(layer):
            q, k = self._rotate(q), self._rotate(k)
            if self.type == "llama4_text":  # to a mean square of one, without a gain
                q, k = (x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-5) for x in (q, k))
        factor = self.fields["attention_multiplier"] if self.type == "granite" else d**-0.5
        ages = np.arange(n)[:, None] - np.arange(n)[None, :]  # of a key, seen from a query
        seen = (ages >= 0) & (ages < self._window(layer))
        mixed = np.zeros((n, self.heads, d))
        for head in range(self.heads):
            of = head // shares_of
            scores = np.where(seen, q[:, head] @ k[:, of].T * factor, -np.inf)
            if self.type == "gpt_oss":  # a column that nobody's value belongs to
                own = np.full((n, 1), self._get(prefix + "sinks")[head])
                scores = np.concatenate([scores, own], axis=1)
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            mixed[:, head] = shares[:, :n] @ v[:, of]
        return self._linear(mixed.reshape(n, -1), prefix + "o_proj")

    def _latent_attention(self, h: F64, prefix: str) -> F64:
        """A key of every head is made from a latent and completed by one that all share."""
        f, n = self.fields, len(h)
        plain, turned, long = f["qk_nope_head_dim"], f["qk_rope_head_dim"], f["v_head_dim"]
        if f["q_lora_rank"] is None:
            q = self._linear(h, prefix + "q_proj")
        else:
            inner = self._small_norm(self._linear(h, prefix + "q_a_proj"), prefix + "q_a_layernorm")
            q = self._linear(inner, prefix + "q_b_proj")
        q = q.reshape(n, self.heads, plain + turned)
        both = self._linear(h, prefix + "kv_a_proj_with_mqa")
        latent = self._small_norm(both[:, : f["kv_lora_rank"]], prefix + "kv_a_layernorm")
        made = self._linear(latent, prefix + "kv_b_proj").reshape(n, self.heads, plain + long)
        shared = self._turn_pairs(both[:, None, f["kv_lora_rank"] :])
        turning = self._turn_pairs(q[:, :, plain:])
        factor = (plain + turned) ** -0.5
        table = f.get("rope_scaling") or {}
        if table.get("mscale_all_dim"):
            factor *= (0.1 * table["mscale_all_dim"] * math.log(table["factor"]) + 1) ** 2
        seen = np.tril(np.ones((n, n), bool))
        mixed = np.zeros((n, self.heads, long))
        for head in range(self.heads):
            scores = q[:, head, :plain] @ made[:, head, :plain].T
            scores = (scores + turning[:, head] @ shared[:, 0].T) * factor
            shares = np.exp(np.where(seen, scores, -np.inf))
            mixed[:, head] = shares / shares.sum(axis=1, keepdims=True) @ made[:, head, plain:]
        return self._linear(mixed.reshape(n, -1), prefix + "o_proj")

    def _turn_pairs(self, x: F64) -> F64:
        """Turn elements 2 i against 2 i + 1, as numbers of the complex plane."""
        speeds, size = rotary(self.fields, x.shape[-1])
        turns = np.exp(1j * np.outer(np.arange(len(x)), speeds))[:, None] * size
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * turns
        return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)

    def _small_norm(self, x: F64, name: str) -> F64:
        """A norm whose epsilon is not the configuration's."""
        root = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        normed: F64 = x / root * self._get(name + ".weight")
        return normed

    def _mlp(self, h: F64, prefix: str) -> F64:
        gate = self._linear(h, prefix + "gate_proj")
        active = gate / (1 + np.exp(-gate))
        return self._linear(active * self._linear(h, prefix + "up_proj"), prefix + "down_proj")

    def _shared_expert(self, h: F64, prefix: str) -> F64:
        """An FFN that every token takes, times the sigmoid of one number; stored here in parts."""
        size: int = self.fields["shared_expert_intermediate_size"]
        parts = range(size // self.fields["moe_intermediate_size"])
        matrices = [
            np.concatenate(
                [self._get(f"{prefix}shared_expert.{n}.{name}_proj.weight") for n in parts], axis
            )
            for name, axis in (("gate", 0), ("up", 0), ("down", 1))
        ]
        g, u = h @ matrices[0].T, h @ matrices[1].T
        open_ = 1 / (1 + np.exp(-self._linear(h, prefix + "shared_expert_gate")))
        given: F64 = open_ * ((g / (1 + np.exp(-g)) * u) @ matrices[2].T)
        return given

    def _experts(self, h: F64, prefix: str, names: tuple[str, str, str], count: int) -> F64:
        """The best experts of the softmax over all; their shares made to add up to one, except
        where ``norm_topk_prob`` is there and false.
        """
        normed = self.type == "mixtral" or self.fields.get("norm_topk_prob", False)
        logits = self._linear(h, prefix + "gate")
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        given = np.zeros_like(h)
        for row, (token, own) in enumerate(zip(h, shares, strict=True)):
            best = sorted(range(len(own)), key=lambda e: (-own[e], e))[:count]
            for expert in best:
                gate, up, down = (f"{prefix}experts.{expert}.{name}" for name in names)
                g = self._linear(token, gate)
                part = self._linear(g / (1 + np.exp(-g)) * self._linear(token, up), down)
                given[row] += own[expert] / (own[best].sum() if normed else 1.0) * part
        return given

    def _deepseek_experts(self, h: F64, prefix: str) -> F64:
        """The best experts times a factor, and those that every token takes."""
        f = self.fields
        given = np.zeros_like(h)
        for part in range(f["n_shared_experts"] or 0):
            given += self._mlp(h, f"{prefix}shared_expert.{part}.")
        logits = self._linear(h, prefix + "gate")
        for row, (token, own) in enumerate(zip(h, logits, strict=True)):
            if self.type == "deepseek_v3":
                shares = 1 / (1 + np.exp(-own))
                score, counted = shares + self._get(prefix + "gate.e_score_correction_bias"), 2
            else:
                shares = np.exp(own - own.max())
                score = shares = shares / shares.sum()
                counted = 1
            score = score.copy()
            if f.get("topk_method") != "greedy" and f["n_group"] > 1:
                members = np.arange(len(own)).reshape(f["n_group"], -1)
                worth = [sorted(score[group])[-counted:] for group in members]
                order = sorted(range(len(members)), key=lambda g: -sum(worth[g]))
                score[members[order[f["topk_group"] :]]] = -np.inf
            best = sorted(range(len(own)), key=lambda e: (-score[e], e))[: f["num_experts_per_tok"]]
            if self.type == "deepseek_v3":
                shares = shares / shares[best].sum()
            for expert in best:
                share = shares[expert] * f["routed_scaling_factor"]
                given[row] += share * self._mlp(token, f"{prefix}experts.{expert}.")
        return given

    def _scaled_experts(self, h: F64, prefix: str) -> F64:
        """The best experts of token times sigmoid, and one that takes every token as it is."""
        logits = self._linear(h, prefix + "gate")
        given = self._mlp(h, prefix + "shared_expert.0.")
        for row, (token, own) in enumerate(zip(h, logits, strict=True)):
            best = sorted(range(len(own)), key=lambda e: (-own[e], e))
            for expert in best[: self.fields["num_experts_per_tok"]]:
                taken = token / (1 + np.exp(-own[expert]))
                given[row] += self._mlp(taken, f"{prefix}experts.{expert}.")
        return given

    def _clamped_experts(self, h: F64, prefix: str) -> F64:
        """The best experts of the router's logits, and the softmax over these alone."""
        logits = self._linear(h, prefix + "router")
        limit = self.fields.get("swiglu_limit", 7.0)
        given = np.zeros_like(h)
        for row, (token, own) in enumerate(zip(h, logits, strict=True)):
            best = sorted(range(len(own)), key=lambda e: (-own[e], e))
            best = best[: self.fields["num_experts_per_tok"]]
            shares = np.exp(own[best] - own[best].max())
            for expert, share in zip(best, shares / shares.sum(), strict=True):
                name = f"{prefix}experts.{expert}."
                gate = np.minimum(self._linear(token, name + "gate_proj"), limit)
                up = np.clip(self._linear(token, name + "up_proj"), -limit, limit)
                hidden = (up + 1) * gate / (1 + np.exp(-1.702 * gate))
                given[row] += share * self._linear(hidden, name + "down_proj")
        return given

    def _window(self, layer: int) -> float:
        """Keys that a token attends to, its own included."""
        f = self.fields
        window = f.get("sliding_window")
        if window is None or self.type in ("llama", "granite"):
            return math.inf
        if self.type in ("mistral", "mixtral", "phi3"):
            return float(window)
        if self.type == "gpt_oss":
            types = f.get("layer_types") or ["sliding_attention", "full_attention"] * (layer + 1)
            return float(window) if types[layer] == "sliding_attention" else math.inf
        if not f.get("use_sliding_window", False):
            return math.inf
        if "layer_types" in f:
            slides = f["layer_types"][layer] == "sliding_attention"
        elif self.type == "smollm3":
            slides = not self._turns(layer)
        else:
            slides = layer >= f["max_window_layers"]
        return float(window) if slides else math.inf

    def _routes(self, layer: int) -> bool:
        """Whether a layer has experts."""
        f = self.fields
        if self.type in ("qwen2_moe", "qwen3_moe"):
            step, named = f.get("decoder_sparse_step", 1), f.get("mlp_only_layers") or []
            return layer not in named and (layer + 1) % step == 0
        if self.type == "llama4_text":
            return (layer + 1) % int(f.get("interleave_moe_layer_step", 1)) == 0
        if self.type.startswith("deepseek"):
            return f["n_routed_experts"] is not None and layer >= f["first_k_dense_replace"]
        return self.type in ("mixtral", "gpt_oss")

    def _turns(self, layer: int) -> bool:
        """Whether a layer has rotary positions at all."""
        if self.type not in ("smollm3", "llama4_text"):
            return True
        if self.fields.get("no_rope_layers") is not None:
            return bool(self.fields["no_rope_layers"][layer])
        return (layer + 1) % int(self.fields.get("no_rope_layer_interval", 4)) != 0

    def _rotate(self, x: F64) -> F64:
        """Turn the first half of every head against the second: [positions, heads, head_dim]."""
        speeds, size = rotary(self.fields, self.head_dim)
        angles = np.outer(np.arange(len(x)), speeds)[:, None, :]
        cos, sin = np.cos(angles) * size, np.sin(angles) * size
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def _norm(self, x: F64, name: str) -> F64:
        root = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.fields["rms_norm_eps"])
        normed: F64 = x / root * self._get(name + ".weight")
        return normed

    def _linear(self, x: F64, name: str) -> F64:
        y: F64 = x @ self._get(name + ".weight").T
        return y + self._get(name + ".bias") if self._biased(name) else y

    def _biased(self, name: str) -> bool:
        part = name.rpartition(".")[2]
        if self.type in ("qwen2", "qwen2_moe"):
            return part in ("q_proj", "k_proj", "v_proj")
        if self.type == "gpt_oss":
            return part != "lm_head"
        attention = part in ("q_proj", "k_proj", "v_proj", "o_proj")
        return attention and bool(self.fields.get("attention_bias", False))

    def _get(self, name: str) -> F64:
        if name not in self._known:
            self._known[name] = self._tensors(name).astype(np.float64)
        return self._known[name]


def rotary(fields: Mapping[str, Any], d: int) -> tuple[F64, float]:
    """(radians per position of each pair, [d / 2]; what cosines and sines are multiplied by)."""
    theta: float = fields.get("rope_theta", 10000.0)
    plain = 1.0 / theta ** (np.arange(0, d, 2) / d)
    table = fields.get("rope_scaling") or {}
    kind, factor = table.get("rope_type", table.get("type", "default")), table.get("factor", 1.0)
    if kind == "linear":
        return plain / factor, 1.0
    if kind == "llama3":
        trained = table["original_max_position_embeddings"]
        low, high = table["low_freq_factor"], table["high_freq_factor"]
        waves = 2 * math.pi / plain
        smooth = np.clip((trained / waves - low) / (high - low), 0, 1)
        return (1 - smooth) * plain / factor + smooth * plain, 1.0
    if kind == "yarn":
        return yarn(table, fields, plain, theta, d)
    assert kind == "default", kind
    return plain, 1.0


def yarn(
    table: Mapping[str, Any], fields: Mapping[str, Any], plain: F64, theta: float, d: int
) -> tuple[F64, float]:
    """Pairs that turn often keep their speed, those that turn seldom lose `factor`."""
    trained = table.get("original_max_position_embeddings") or fields["max_position_embeddings"]
    factor: float = table["factor"]

    def pair_that_turns(times: float) -> float:
        return d * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = pair_that_turns(table.get("beta_fast") or 32)
    high = pair_that_turns(table.get("beta_slow") or 1)
    if table.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    if low == high:
        high += 0.001
    slowed = np.clip((np.arange(d // 2) - low) / (high - low), 0, 1)

    def size(scale: float, times: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * times * math.log(scale) + 1.0

    given = table.get("attention_factor")
    if given is None:
        one, all_dims = table.get("mscale"), table.get("mscale_all_dim")
        given = size(factor, one) / size(factor, all_dims) if one and all_dims else size(factor)
    return slowed * plain / factor + (1 - slowed) * plain, float(given)
