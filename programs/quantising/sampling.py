"""Calibration text that a model writes itself: several sequences at once, from a seed."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from programs.quantising.plain import PlainModel, gated

__all__ = ["sample_tokens"]

F32 = NDArray[np.float32]
Index = NDArray[np.int64]


@np.errstate(over="ignore", invalid="ignore")  # who rounds by this text tells
def sample_tokens(
    model: PlainModel,
    sequences: int,
    length: int,
    seed: int,
    never: Collection[int] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> Index:
    """Draw tokens [sequences, length] from the model's own probabilities.

    Each sequence begins with a token drawn from all alike; ``never`` are drawn nowhere, as the
    tokens that end a text.
    """
    config = model.config
    drawn = np.random.Generator(np.random.Philox(key=np.array([seed, 1], np.uint64)))
    allowed = np.setdiff1d(np.arange(config.vocab), list(never))
    tokens = np.empty((sequences, length), np.int64)
    tokens[:, 0] = drawn.choice(allowed, sequences)
    shape = config.layers, 2, sequences, config.kv_heads, length, config.head_dim
    caches: F32 = np.zeros(shape, np.float32)
    for at in range(length - 1):
        if at % 64 == 0:
            tell(f"writing calibration text: {at:,} of {length:,} tokens ...")
        logits = _step(model, tokens[:, at], at, caches)[:, allowed].astype(np.float64)
        chances = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
        places = drawn.random(sequences) * chances[:, -1]
        both = zip(chances, places, strict=True)
        chosen = [np.searchsorted(row, place, "right") for row, place in both]
        tokens[:, at + 1] = allowed[np.minimum(chosen, len(allowed) - 1)]
    return tokens


def _step(model: PlainModel, tokens: Index, at: int, caches: F32) -> F32:
    """Logits [sequences, vocab] after one more token of each; its keys and values are kept."""
    x = model.embedding[tokens]
    for layer, (keys, values) in zip(model.layers, caches, strict=True):
        normed = model.unit(x)  # in two dimensions: sequences share each read of the weights
        q, k = (model.in_heads((normed @ layer[name].T)[:, None], at) for name in "qk")
        keys[:, :, at] = k[:, :, 0]
        values[:, :, at] = (normed @ layer["v"].T).reshape(values[:, :, at].shape)
        shares = model.shares(q, keys[:, :, : at + 1])
        mixed = shares @ values[:, :, None, : at + 1]
        x = x + mixed.reshape(len(x), -1) @ layer["o"].T
        x = x + gated(model.unit(x), layer) @ layer["down"].T
    logits: F32 = model.unit(x) @ model.head.T
    return logits
