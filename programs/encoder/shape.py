"""A BERT-style encoder: its sizes, its constants and random weights.

Tokens are rows; a token's ``hidden`` values lie on tiles of whole heads.  Values are fp16 between
products and fp32 inside them and on the VXM.  Biases of keys are left out, softmax does not see
them; those of values are part of the output's, and 1/sqrt(head size) is part of the query weights.
Layer normalisation follows each of the two sublayers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chip import numerics
from chip.isa import LANES
from chip.scheduling import CompileError
from programs.kernels import cut

Bits = NDArray[np.uint16]
F32 = NDArray[np.float32]

#: tanh form of GELU: x * (tanh(x * (a + b x^2)) / 2 + 1/2).
GELU_A = float(np.float32(np.sqrt(2.0 / np.pi)))
GELU_B = float(np.float32(np.sqrt(2.0 / np.pi) * 0.044715))
EPS = float(np.float32(1e-12))
MATRICES = ("q", "k", "v", "o", "up", "down")


@dataclass(frozen=True)
class EncoderShape:
    """Sizes; a token's ``hidden`` values are split over ``heads``, ``ffn`` are the inner values."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    tokens: int

    def __post_init__(self) -> None:
        if min(self.layers, self.hidden, self.heads, self.ffn, self.tokens) < 1:
            raise CompileError("an encoder's sizes must all be 1 or more")
        if self.hidden % self.heads or self.head_size % 16 or self.head_size > LANES:
            raise CompileError(
                f"{self.heads} heads of {self.hidden} values: a head must be a multiple of 16 "
                f"values and at most {LANES}"
            )
        if self.tokens % 16 or self.tokens > LANES:
            raise CompileError(f"{self.tokens} tokens: use a multiple of 16, at most {LANES}")

    @property
    def head_size(self) -> int:
        """Values of one head."""
        return self.hidden // self.heads

    @property
    def head_tiles(self) -> list[int]:
        """Heads on each tile of the hidden values."""
        return cut(self.heads, LANES // self.head_size)

    @property
    def tiles(self) -> list[int]:
        """Lanes of each tile of the hidden values."""
        return [n * self.head_size for n in self.head_tiles]

    @property
    def ffn_tiles(self) -> list[int]:
        """Lanes of each tile of the inner values."""
        return [16 * n for n in cut(-(-self.ffn // 16), LANES // 16)]

    @property
    def multiply_accumulates(self) -> int:
        """Useful multiply-accumulates: projections, scores, values, feed-forward."""
        dense = self.tokens * self.hidden * (4 * self.hidden + 2 * self.ffn)
        return self.layers * (dense + 2 * self.tokens**2 * self.hidden)


@dataclass(frozen=True)
class EncoderLayer:
    """fp16 matrices [in, out] by MATRICES and fp32 vectors by name.

    Vectors: q_bias, o_bias, up_bias, down_bias, gain1, shift1, gain2, shift2.
    """

    matrices: dict[str, Bits]
    vectors: dict[str, F32]


def random_layers(shape: EncoderShape, seed: int) -> list[EncoderLayer]:
    """Layers with normal weights of variance 1 / inputs (queries: less 1/sqrt(head size))."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 3]))
    h, f = shape.hidden, shape.ffn
    sizes = {"q": (h, h), "k": (h, h), "v": (h, h), "o": (h, h), "up": (h, f), "down": (f, h)}
    widths = {"q_bias": h, "o_bias": h, "up_bias": f, "down_bias": h}
    layers = []
    for _ in range(shape.layers):
        matrices: dict[str, Bits] = {}
        for name, size in sizes.items():
            scale = 1.0 / np.sqrt(size[0])
            if name == "q":
                scale /= np.sqrt(shape.head_size)
            values = scale * rng.standard_normal(size, np.float32)
            matrices[name] = numerics.to_f16_bits(values.astype(np.float32))
        vectors: dict[str, F32] = {
            name: (0.1 * rng.standard_normal(n)).astype(np.float32) for name, n in widths.items()
        }
        for number in (1, 2):
            vectors[f"gain{number}"] = (1 + 0.1 * rng.standard_normal(h)).astype(np.float32)
            vectors[f"shift{number}"] = (0.1 * rng.standard_normal(h)).astype(np.float32)
        layers.append(EncoderLayer(matrices, vectors))
    return layers


def random_tokens(shape: EncoderShape, seed: int) -> Bits:
    """fp16 bits [tokens, hidden]: what an embedding and its normalisation would hand over."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 4]))
    return numerics.to_f16_bits(rng.standard_normal((shape.tokens, shape.hidden), np.float32))
