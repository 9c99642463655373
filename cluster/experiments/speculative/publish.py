"""Speculative decoding on the board: steps when they are done, variants when they are charged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cluster.experiments.speculative.charges import Charge
from cluster.experiments.speculative.steps import DraftStep, RequestTrace
from cluster.gpu import KINDS, GpuPool

if TYPE_CHECKING:
    from cluster.metrics import Board

EXPERIMENT = "speculative"


class DraftWatch:
    """Publishes an experiment in speculative decoding."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._lost = self._replayed = 0

    def step(self, drafter: str, step: DraftStep) -> None:
        """``drafter``'s proposals have been judged."""
        board = self._board
        board.add("lpu_speculative_steps", 1, drafter)
        for verdict, count in (
            ("accepted", step.accepted),
            ("rejected", step.tested - step.accepted),
            ("discarded", step.drafted - step.tested),
        ):
            board.add("lpu_draft_tokens", count, drafter, verdict)

    def pool(self, pool: GpuPool) -> None:
        """What the GPU pool has lost and computed again so far."""
        self._board.add("lpu_recoveries", pool.lost - self._lost, "gpu_node")
        self._board.add("lpu_replayed_positions", pool.replayed - self._replayed)
        self._lost, self._replayed = pool.lost, pool.replayed

    def variant(self, row: dict[str, Any], traces: Sequence[RequestTrace], total: Charge) -> None:
        """A variant's figures, and what each of its requests took."""
        board, served = self._board, (EXPERIMENT, row["variant"])
        board.add("lpu_requests", len(traces), *served)
        board.add("lpu_tokens", row["tokens"], *served)
        board.add("lpu_prompt_tokens", sum(len(trace.prompt) for trace in traces), *served)
        board.observe(
            "lpu_time_to_first_token_seconds", [first for first, _ in total.each], *served
        )
        board.observe(
            "lpu_time_per_output_token_seconds",
            # Every request of the experiment has as many tokens.
            [decode / (len(traces[0].tokens) - 1) for _, decode in total.each],
            *served,
        )
        board.set("lpu_virtual_tokens_per_second", row["tokens_per_second"], *served)
        if row["speedup"] is not None:
            board.set("lpu_speedup_ratio", row["speedup"], *served)
        drafts = "gpu" if row["variant"] == "gpu-draft" else "lpu"
        shares = {"link": row["link_seconds"], "gpu": row["verify_seconds"]}
        shares[drafts] = shares.get(drafts, 0.0) + row["draft_seconds"]
        for pool, seconds in shares.items():
            ratio = seconds / row["decode_seconds"] if row["decode_seconds"] else 0.0
            board.set("lpu_pool_utilisation_ratio", ratio, *served, pool)
        carried = {**row["bytes"], "kv": row["bytes"]["kv"] + row["bytes"]["kv_prompt"]}
        for kind in KINDS:
            board.add("lpu_gpu_link_bytes", carried.get(kind, 0), *served, kind)
