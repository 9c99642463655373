"""A finished generation on the board: one request that the LPUs served, in virtual time."""

from __future__ import annotations

from cluster.metrics import Board
from cluster.runs.generation import GenerationResult

#: Experiment and platform of ``lpu generate``.
SERVED = ("generate", "lpu")


def publish_generation(board: Board, result: GenerationResult, prompt_tokens: int) -> None:
    """The request's counts and latencies; its tokens were published while they came."""
    per_token = result.decode_seconds / len(result.tokens)
    board.add("lpu_prompt_tokens", prompt_tokens, *SERVED)
    board.add("lpu_requests", 1, *SERVED)
    first = result.virtual_seconds - per_token * (len(result.tokens) - 1)
    board.observe("lpu_time_to_first_token_seconds", [first], *SERVED)
    if len(result.tokens) > 1:
        board.observe("lpu_time_per_output_token_seconds", [per_token], *SERVED)
