"""The baseline of ``prefill_vs_numpy``: a prompt through the float32 forward that models are
measured against, as one block.

Run as a process of its own with one BLAS thread, ``python -m cluster.bench.numpy_prefill MODEL
TOKENS``; prints the seconds of the fastest of some forwards.
"""

from __future__ import annotations

import sys
from time import perf_counter

from programs.evaluation import Float32Forward
from programs.models import open_model

FORWARDS = 3


def prompt_of(tokens: int) -> list[int]:
    """Tokens that both sides read; neither side takes longer for others."""
    return list(range(1000, 1000 + tokens))


def prompt_seconds(model: str, tokens: int) -> float:
    """Seconds of the fastest forward of a prompt of ``tokens`` tokens."""
    forward = Float32Forward(open_model(model))
    best = float("inf")
    for _ in range(FORWARDS):
        forward.reset()
        began = perf_counter()
        forward.block(prompt_of(tokens), 0)
        best = min(best, perf_counter() - began)
    return best


if __name__ == "__main__":
    print(prompt_seconds(sys.argv[1], int(sys.argv[2])))
