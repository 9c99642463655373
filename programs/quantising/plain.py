"""A decoder of Llama's plain kind as arrays, and the same one in a turned residual stream.

Norms have no gain here: it is in the matrices behind them.  Then a rotation of the residual stream
changes nothing but the matrices, and spreads weights that stand out over all of a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from chip.errors import LpuError
from programs.decoder import finite
from programs.models import Checkpoint, ModelConfig, inverse_frequencies, sin_cos

__all__ = ["PlainLayer", "PlainModel", "QuantisingError", "plain_model", "rotated"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
#: A layer's matrices by their short names, float32 [outputs, inputs].
PlainLayer = Mapping[str, F32]

SIZES = ("hidden_size", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab")
#: Fields of a configuration that may differ from what they are by default.
KNOWN = {*SIZES, "max_position", "eps", "rope_theta", "tied", "activation"}
IN_ATTENTION, IN_FFN = ("q", "k", "v"), ("gate", "up")


class QuantisingError(LpuError, ValueError):
    """A model or a text that cannot be used: what, and what would mend it, in one line."""


@dataclass(frozen=True)
class PlainModel:
    """embedding, head: float32 [vocab, hidden].  frequencies: of the rotary positions."""

    config: ModelConfig
    embedding: F32
    layers: list[PlainLayer]
    head: F32
    frequencies: F64

    def unit(self, x: F32) -> F32:
        """x [..., hidden] over its root mean square."""
        mean: F32 = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
        unit: F32 = x / np.sqrt(mean + np.float32(self.config.eps))
        return unit

    def in_heads(self, x: F32, position: int = 0, turn: bool = True) -> F32:
        """[..., P, heads * d] as [..., heads, P, d], rotated from ``position`` on if ``turn``."""
        split = x.reshape(*x.shape[:-1], -1, self.config.head_dim).swapaxes(-3, -2)
        if not turn:
            return split
        places = np.arange(position, position + split.shape[-2])
        sin, cos = (part.astype(np.float32) for part in sin_cos(np.outer(places, self.frequencies)))
        first, second = np.split(split, 2, axis=-1)
        parts: list[F32] = [first * cos - second * sin, second * cos + first * sin]
        return np.concatenate(parts, axis=-1)

    def shares(self, q: F32, k: F32) -> F32:
        """Attention [..., kv heads, group, P, T] of queries at the last P of T positions."""
        group = self.config.heads // self.config.kv_heads
        grouped = q.reshape(*q.shape[:-3], -1, group, *q.shape[-2:])
        scores = grouped @ k[..., None, :, :].swapaxes(-1, -2)
        scores *= np.float32(self.config.head_dim**-0.5)
        new, every = scores.shape[-2:]
        seen = np.arange(every) <= np.arange(every - new, every)[:, None]
        scores = np.where(seen, scores, np.float32(-np.inf))
        shares: F32 = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        return shares


def gated(x: F32, layer: PlainLayer) -> F32:
    """What ``down`` takes: SiLU of the gate, times up."""
    g = x @ layer["gate"].T
    active: F32 = np.float32(0.5) * g * (np.float32(1) + np.tanh(np.float32(0.5) * g))
    active *= x @ layer["up"].T
    return active


def plain_model(checkpoint: Checkpoint) -> PlainModel:
    """Read a checkpoint and fold its norms' gains, float64 rounded once to float32.

    Raises QuantisingError for a model of another kind, PartitionError for values that are not
    finite.
    """
    config = checkpoint.config
    for field in fields(config):
        known = field.name in KNOWN and (field.name != "activation" or config.activation == "silu")
        if not known and getattr(config, field.name) != field.default:
            raise QuantisingError(
                f"roundings that compensate each other are made for Llama's plain kind of model, "
                f"not for one with {field.name}; use its weights as they are"
            )

    def folded(name: str, norm: str | None = None) -> F32:
        weights = checkpoint.tensor(name)
        finite(weights, name)
        if norm is None:
            return weights
        gain = checkpoint.tensor(norm).astype(np.float64)
        finite(gain, norm)
        with np.errstate(over="ignore"):
            weights = (weights * gain).astype(np.float32)
        finite(weights, name)
        return weights

    layers: list[PlainLayer] = []
    for number in range(config.layers):
        prefix = f"model.layers.{number}"
        before, second = f"{prefix}.input_layernorm", f"{prefix}.post_attention_layernorm"
        layers.append(
            {
                name: folded(matrix_name(number, name), f"{norm}.weight" if norm else None)
                for name, norm in (
                    *((name, before) for name in IN_ATTENTION),
                    ("o", None),
                    *((name, second) for name in IN_FFN),
                    ("down", None),
                )
            }
        )
    head = folded(checkpoint.head_name, "model.norm.weight")
    embedding = folded("model.embed_tokens.weight")
    return PlainModel(config, embedding, layers, head, inverse_frequencies(config, 0))


def matrix_name(layer: int, name: str) -> str:
    """The name of a layer's matrix in a checkpoint."""
    block = "self_attn" if name in (*IN_ATTENTION, "o") else "mlp"
    return f"model.layers.{layer}.{block}.{name}_proj.weight"


def rotated(model: PlainModel, seed: int) -> PlainModel:
    """The same model in a residual stream, and with values in each head, turned at random.

    Deterministic for a seed, but for the last bits of the host's sums.
    """
    config = model.config
    drawn = np.random.Generator(np.random.Philox(key=np.array([seed, 0], np.uint64)))

    def turn(size: int) -> F64:
        matrix: F64 = np.linalg.qr(drawn.standard_normal((size, size)))[0]
        return matrix

    stream = turn(config.hidden_size)
    layers: list[PlainLayer] = []
    group = config.heads // config.kv_heads
    for layer in model.layers:
        values = [turn(config.head_dim) for _ in range(config.kv_heads)]
        wide = {name: layer[name] @ stream for name in (*IN_ATTENTION, *IN_FFN)}
        wide["v"] = _in_blocks(values) @ wide["v"]
        each = [block for block in values for _ in range(group)]
        wide["o"] = stream.T @ (layer["o"] @ _in_blocks(each).T)
        wide["down"] = stream.T @ layer["down"]
        layers.append({name: each.astype(np.float32) for name, each in wide.items()})
    embedding, head = ((each @ stream).astype(np.float32) for each in (model.embedding, model.head))
    return replace(model, embedding=embedding, layers=layers, head=head)


def _in_blocks(blocks: list[F64]) -> F64:
    """A matrix with ``blocks``, all of one size, on its diagonal."""
    size = len(blocks[0])
    whole = np.zeros((size * len(blocks), size * len(blocks)))
    for number, block in enumerate(blocks):
        own = slice(number * size, (number + 1) * size)
        whole[own, own] = block
    return whole
