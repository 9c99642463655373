"""The golden model of encoders: what a compiled encoder must compute, bit for bit, in NumPy.

A product is the exact dot product of a tile, rounded once to fp32, and fp32 sums in ascending tile
order; everything else is one fp32 rounding for each operation written here.  It knows numbers and
their order only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip import numerics
from programs.encoder.shape import EPS, GELU_A, GELU_B, EncoderLayer, EncoderShape

Bits = NDArray[np.uint16]
F32 = NDArray[np.float32]


def golden_encoder(shape: EncoderShape, layers: list[EncoderLayer], x: Bits) -> Bits:
    """fp16 bits [tokens, hidden] after all layers."""
    for layer in layers:
        x = _golden_layer(shape, layer, x)
    return x


def _golden_layer(shape: EncoderShape, layer: EncoderLayer, x: Bits) -> Bits:
    m, v, h = layer.matrices, layer.vectors, shape.tiles
    q = numerics.to_f16_bits(_product(x, m["q"], h) + v["q_bias"])
    k = numerics.to_f16_bits(_product(x, m["k"], h))
    values = numerics.to_f16_bits(_product(x, m["v"], h))
    mixed = np.concatenate(
        [
            _attend(*(_head(each, i, shape.head_size) for each in (q, k, values)))
            for i in range(shape.heads)
        ],
        axis=1,
    )
    z = (_product(mixed, m["o"], h) + v["o_bias"]) + numerics.from_f16_bits(x)
    x = _normalise(z, h, shape.hidden, v["gain1"], v["shift1"])
    y = _product(x, m["up"], h) + v["up_bias"]
    inner = y * (y * y * np.float32(GELU_B) + np.float32(GELU_A))
    half = np.float32(0.5)
    hidden = numerics.to_f16_bits((numerics.tanh(inner) * half + half) * y)
    z = (_product(hidden, m["down"], shape.ffn_tiles) + v["down_bias"]) + numerics.from_f16_bits(x)
    return _normalise(z, h, shape.hidden, v["gain2"], v["shift2"])


def _head(values: Bits, number: int, size: int) -> Bits:
    return values[:, number * size : (number + 1) * size]


def _product(x: Bits, matrix: Bits, tiles: list[int]) -> F32:
    """x [tokens, in] times matrix [in, out], tile by tile."""
    total: F32 | None = None
    first = 0
    for width in tiles:
        rows, columns = x[:, first : first + width], matrix[first : first + width].T
        part = numerics.dot_f16_exact(np.ascontiguousarray(columns), np.ascontiguousarray(rows))
        total = part if total is None else total + part
        first += width
    assert total is not None
    return total


def _attend(q: Bits, k: Bits, v: Bits) -> Bits:
    """One head's mixed values [tokens, head size]; sums over keys in three interleaved classes."""
    scores = numerics.dot_f16_exact(q, k)  # [key, query]
    shares = numerics.exp(scores - scores.max(axis=0))
    sums = [np.add.accumulate(shares[c::3], axis=0)[-1] for c in range(3)]
    root = numerics.rsqrt((sums[0] + sums[1]) + sums[2])
    shared = numerics.to_f16_bits(shares * (root * root))
    mixed = numerics.dot_f16_exact(np.ascontiguousarray(v.T), np.ascontiguousarray(shared.T))
    return numerics.to_f16_bits(mixed)


def _normalise(z: F32, tiles: list[int], hidden: int, gain: F32, shift: F32) -> Bits:
    """Layer normalisation: sums over lanes are fp16 products with ones."""
    ones = np.full((hidden, 1), 0x3C00, np.uint16)
    share = np.float32(1.0 / hidden)
    centred = z - _product(numerics.to_f16_bits(z), ones, tiles) * share
    squares = numerics.to_f16_bits(centred * centred)
    root = numerics.rsqrt(_product(squares, ones, tiles) * share + np.float32(EPS))
    return numerics.to_f16_bits((centred * root) * gain + shift)
