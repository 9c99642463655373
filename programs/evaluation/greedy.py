"""Greedy continuations, token for token: the emulated model against float32.

Float32 continues a prompt; the emulated model then reads that very text at once.  Up to the first
token that it would have chosen otherwise, its own continuation is the same, and it is the first
difference that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from programs.evaluation.float32 import Forward

__all__ = ["GreedyCheck", "check_greedy"]


@dataclass(frozen=True)
class GreedyCheck:
    """tokens: of the float32 continuation.  first: the first that the emulated model would not
    choose, counted from 0, None where it chooses all; instead: what it would choose.

    float32_gap: by how much float32's logit of its token exceeds that of the other; emulated_gap:
    the emulated model's, the other way round.
    """

    tokens: tuple[int, ...]
    first: int | None = None
    instead: int | None = None
    float32_gap: float | None = None
    emulated_gap: float | None = None


def check_greedy(
    reference: Forward,
    emulated: Forward,
    prompt: Sequence[int],
    new_tokens: int,
    ends: Sequence[int] = (),
) -> GreedyCheck:
    """Continue ``prompt`` by ``new_tokens``, or up to one of ``ends``, and compare the choices."""
    reference.reset()
    rows = [reference.block(prompt, 0)[-1]]
    tokens = [int(rows[0].argmax())]
    while len(tokens) < new_tokens and tokens[-1] not in ends:
        rows.append(reference.block(tokens[-1:], len(prompt) + len(tokens) - 1)[0])
        tokens.append(int(rows[-1].argmax()))
    emulated.reset()
    ours = emulated.block([*prompt, *tokens[:-1]], 0)[len(prompt) - 1 :]
    chosen = ours.argmax(axis=1)
    differing = np.flatnonzero(chosen != tokens)
    if not len(differing):
        return GreedyCheck(tuple(tokens))
    at = int(differing[0])
    mine, other = tokens[at], int(chosen[at])
    return GreedyCheck(
        tuple(tokens),
        at,
        other,
        float(rows[at][mine] - rows[at][other]),
        float(ours[at, other] - ours[at, mine]),
    )
