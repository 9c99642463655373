"""The float32 baseline of ``decode_vs_numpy``: one token through a plain NumPy forward.

Run as a process of its own with one BLAS thread; prints the seconds of the fastest of some tokens.
Weights are random.  Two layers' weights serve all layers in turn: together they are several times
larger than any cache of a core, so every matrix still comes from memory, as in a full model, but
the baseline needs half a gigabyte instead of four.
"""

from __future__ import annotations

import sys
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
DISTINCT_LAYERS = 2


def _norm(x: F32) -> F32:
    mean = np.mean(x * x, dtype=np.float32)
    return np.asarray(x / np.sqrt(mean + np.float32(1e-5)), np.float32)


def _rotate(x: F32, cos: F32, sin: F32) -> F32:
    half = x.shape[1] // 2
    swapped = np.concatenate([-x[:, half:], x[:, :half]], axis=1)
    return np.asarray(x * cos + swapped * sin, np.float32)


def token_seconds(
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    ffn: int,
    vocab: int,
    position: int,
    tokens: int,
) -> float:
    """Seconds of the fastest of ``tokens`` forward passes at ``position``."""
    random = np.random.Generator(np.random.PCG64(0))

    def matrix(rows: int, columns: int) -> F32:
        values = random.random((rows, columns), np.float32)
        values -= np.float32(0.5)
        values *= np.float32(2 / np.sqrt(columns))
        return values

    wide = heads * head_dim
    narrow = kv_heads * head_dim
    sets = [
        {
            "q": matrix(wide, hidden),
            "k": matrix(narrow, hidden),
            "v": matrix(narrow, hidden),
            "o": matrix(hidden, wide),
            "gate": matrix(ffn, hidden),
            "up": matrix(ffn, hidden),
            "down": matrix(hidden, ffn),
        }
        for _ in range(DISTINCT_LAYERS)
    ]
    head = matrix(vocab, hidden)
    keys = random.random((layers, kv_heads, position + 1, head_dim), np.float32)
    values = random.random((layers, kv_heads, position + 1, head_dim), np.float32)
    angles = random.random(head_dim // 2, np.float32)
    cos = np.tile(np.cos(angles), 2)
    sin = np.tile(np.sin(angles), 2)
    start = random.random(hidden, np.float32)
    group = heads // kv_heads
    best = float("inf")
    for _ in range(tokens):
        began = perf_counter()
        x = start
        for layer in range(layers):
            w = sets[layer % DISTINCT_LAYERS]
            n = _norm(x)
            q = _rotate((w["q"] @ n).reshape(heads, head_dim), cos, sin)
            keys[layer, :, position] = _rotate((w["k"] @ n).reshape(kv_heads, head_dim), cos, sin)
            values[layer, :, position] = (w["v"] @ n).reshape(kv_heads, head_dim)
            q = q.reshape(kv_heads, group, head_dim)
            scores = q @ keys[layer].transpose(0, 2, 1) / np.float32(np.sqrt(head_dim))
            e = np.exp(scores - scores.max(axis=2, keepdims=True))
            mixed = (e / e.sum(axis=2, keepdims=True)) @ values[layer]
            x = x + w["o"] @ mixed.reshape(wide)
            n = _norm(x)
            gate = w["gate"] @ n
            x = x + w["down"] @ (gate / (1 + np.exp(-gate)) * (w["up"] @ n))
        int(np.argmax(head @ _norm(x)))
        best = min(best, perf_counter() - began)
    return best


if __name__ == "__main__":
    print(token_seconds(*(int(argument) for argument in sys.argv[1:])))
