"""The sums of the float32 forward pass, each in one fixed order.

Float addition is not associative, and a BLAS orders a sum by the shape of the call and the number
of threads.  Here every sum runs over its index upwards, one rounded float32 addition after
another, and positions never share one: what a position gets depends on nothing but that
position's operands.  Loops are vectorised across results, never within a sum; without
reassociation or contraction the compiler must keep every rounding, so all machines agree.  Rows
are taken as views first: the compiler does not vectorise over bounded indices of two dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chip.jit import jit
from chip.numerics import exp_f32

_ONE = np.float32(1.0)
#: Columns worked on at a time: four rows of weights and one of results stay in the first cache.
_TILE = 1024


@jit
def project(x: Any, weights: Any, out: Any) -> None:
    """out[p, n] = sum over k of x[p, k] * weights[k, n]; float32, out [positions, N].

    Four k at a time, so that a result is loaded and stored once for four additions.
    """
    positions, inputs = x.shape
    columns = weights.shape[1]
    whole = inputs - inputs % 4
    for first in range(0, columns, _TILE):
        last = min(first + _TILE, columns)
        out[:, first:last] = 0.0
        for k in range(0, whole, 4):
            w0, w1 = weights[k, first:last], weights[k + 1, first:last]
            w2, w3 = weights[k + 2, first:last], weights[k + 3, first:last]
            for p in range(positions):
                a, b, c, d = x[p, k], x[p, k + 1], x[p, k + 2], x[p, k + 3]
                row = out[p, first:last]
                for n in range(row.size):
                    row[n] = (((row[n] + a * w0[n]) + b * w1[n]) + c * w2[n]) + d * w3[n]
        for k in range(whole, inputs):
            w0 = weights[k, first:last]
            for p in range(positions):
                a = x[p, k]
                row = out[p, first:last]
                for n in range(row.size):
                    row[n] += a * w0[n]


@jit
def rms_norm(x: Any, gain: Any, eps: Any, out: Any) -> None:
    """out = x / sqrt(mean(x^2) + eps) * gain along each row; float32 [positions, features]."""
    positions, features = x.shape
    for p in range(positions):
        total = np.float32(0.0)
        for i in range(features):
            total += x[p, i] * x[p, i]
        root = np.sqrt(total / np.float32(features) + eps)
        for i in range(features):
            out[p, i] = x[p, i] / root * gain[i]


@jit
def rotate(x: Any, sin: Any, cos: Any) -> None:
    """Turn x float32 [positions, heads, head_dim] in place: first halves against second halves.

    sin, cos: float32 [positions, head_dim / 2].
    """
    positions, heads, head_dim = x.shape
    half = head_dim // 2
    for p in range(positions):
        for h in range(heads):
            for i in range(half):
                a, b = x[p, h, i], x[p, h, half + i]
                x[p, h, i] = a * cos[p, i] - b * sin[p, i]
                x[p, h, half + i] = b * cos[p, i] + a * sin[p, i]


@jit
def attend(q: Any, keys: Any, values: Any, before: int, shares: Any, out: Any) -> None:
    """Attention of new positions, each over all positions up to its own.

    q, out: float32 [positions, heads, head_dim]; keys: [kv_heads, head_dim, capacity]; values:
    [kv_heads, capacity, head_dim]; before: cached positions; shares: scratch [capacity].
    """
    positions, heads, head_dim = q.shape
    group = heads // keys.shape[0]
    scale = _ONE / np.sqrt(np.float32(head_dim))
    for p in range(positions):
        length = before + p + 1
        share = shares[:length]
        for h in range(heads):
            g = h // group
            share[:] = 0.0
            for i in range(head_dim):
                a = q[p, h, i] * scale
                key = keys[g, i, :length]
                for t in range(length):
                    share[t] += a * key[t]
            highest = share[0]
            for t in range(1, length):
                highest = max(highest, share[t])
            for t in range(length):
                share[t] = exp_f32(share[t] - highest)
            total = np.float32(0.0)
            mixed = out[p, h]
            mixed[:] = 0.0
            for t in range(length):
                a = share[t]
                total += a
                value = values[g, t]
                for i in range(mixed.size):
                    mixed[i] += a * value[i]
            for i in range(mixed.size):
                mixed[i] /= total


@jit
def gate(both: Any, out: Any) -> None:
    """out = silu(g) * u for both = [g | u], float32 [positions, 2 ffn]; out [positions, ffn]."""
    positions, ffn = out.shape
    for p in range(positions):
        for i in range(ffn):
            g = both[p, i]
            out[p, i] = g / (_ONE + exp_f32(-g)) * both[p, ffn + i]
