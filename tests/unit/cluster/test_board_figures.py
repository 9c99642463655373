"""What a board is told of runs that are over: every figure by hand, on a board that listens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.experiments.speculative.charges import gpu_work
from cluster.experiments.speculative.publish import DraftWatch
from cluster.gpu.link import KINDS
from cluster.runs.texts import publish_generation


class Board:
    """What was added, set and observed, by name and labels."""

    def __init__(self) -> None:
        self.told: dict[tuple[str, ...], Any] = {}

    def add(self, name: str, value: Any, *labels: str) -> None:
        self.told[name, *labels] = self.told.get((name, *labels), 0) + value

    def set(self, name: str, value: Any, *labels: str) -> None:
        self.told[name, *labels] = value

    def observe(self, name: str, values: Any, *labels: str) -> None:
        self.told[name, *labels] = [*self.told.get((name, *labels), []), *values]


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_a_request_that_was_generated(tokens: int) -> None:
    """With one token there is none after the first."""
    board: Any = Board()
    result: Any = SimpleNamespace(
        tokens=[0] * tokens,
        decode_tokens=tokens - 1,
        decode_seconds=0.5 * (tokens - 1),
        virtual_seconds=2.0 + 0.5 * (tokens - 1),
    )
    publish_generation(board, result, 7)
    served = ("generate", "lpu")
    expected: dict[tuple[str, ...], Any] = {
        ("lpu_prompt_tokens", *served): 7,
        ("lpu_requests", *served): 1,
        ("lpu_time_to_first_token_seconds", *served): [2.0],
    }
    if tokens > 1:
        expected["lpu_time_per_output_token_seconds", *served] = [0.5]
    assert board.told == expected


def test_steps_of_drafting() -> None:
    board: Any = Board()
    watch = DraftWatch(board)
    watch.step("lpu", SimpleNamespace(drafted=7, tested=5, accepted=2))  # type: ignore[arg-type]
    watch.step("lpu", SimpleNamespace(drafted=4, tested=4, accepted=4))  # type: ignore[arg-type]
    assert board.told == {
        ("lpu_speculative_steps", "lpu"): 2,
        ("lpu_draft_tokens", "lpu", "accepted"): 6,
        ("lpu_draft_tokens", "lpu", "rejected"): 3,
        ("lpu_draft_tokens", "lpu", "discarded"): 2,
    }


def test_a_pools_losses_are_told_once() -> None:
    board: Any = Board()
    watch = DraftWatch(board)
    for lost, replayed in ((1, 10), (1, 10), (3, 25)):
        watch.pool(SimpleNamespace(lost=lost, replayed=replayed))  # type: ignore[arg-type]
    assert board.told == {("lpu_recoveries", "gpu_node"): 3, ("lpu_replayed_positions",): 25}


@pytest.mark.parametrize("variant", ["lpu-kv", "gpu-draft"])
@pytest.mark.parametrize("decode", [4.0, 0.0])
def test_a_variant(variant: str, decode: float) -> None:
    board: Any = Board()
    row: dict[str, Any] = {
        "variant": variant,
        "tokens": 20,
        "tokens_per_second": 5.0,
        "speedup": 1.25 if decode else None,
        "link_seconds": 1.0,
        "verify_seconds": 2.0,
        "draft_seconds": 0.5,
        "decode_seconds": decode,
        "bytes": {"tokens": 10, "logits": 30, "kv": 100, "kv_prompt": 7},
    }
    traces: Any = [SimpleNamespace(prompt=[0] * n, tokens=[0] * 11) for n in (3, 4)]
    total: Any = SimpleNamespace(each=[(0.25, 5.0), (0.75, 2.5)])
    DraftWatch(board).variant(row, traces, total)
    served = ("speculative", variant)
    expected: dict[tuple[str, ...], Any] = {
        ("lpu_requests", *served): 2,
        ("lpu_tokens", *served): 20,
        ("lpu_prompt_tokens", *served): 7,
        ("lpu_time_to_first_token_seconds", *served): [0.25, 0.75],
        ("lpu_time_per_output_token_seconds", *served): [0.5, 0.25],
        ("lpu_virtual_tokens_per_second", *served): 5.0,
    }
    if decode:
        expected["lpu_speedup_ratio", *served] = 1.25
    shares = {"link": 1.0, "gpu": 2.0, "lpu": 0.5}
    if variant == "gpu-draft":
        shares = {"link": 1.0, "gpu": 2.5}
    for pool, seconds in shares.items():
        expected["lpu_pool_utilisation_ratio", *served, pool] = seconds / decode if decode else 0.0
    carried = {"tokens": 10, "logits": 30, "kv": 107}
    for kind in KINDS:
        expected["lpu_gpu_link_bytes", *served, kind] = carried.get(kind, 0)
    assert board.told == expected


def test_passes_of_a_gpu_that_drafts() -> None:
    """What is pending first, with the first proposal; then a position for each further one."""
    assert gpu_work(10, 2, 4).passes == ((10, 2), (12, 1), (13, 1), (14, 1))
    for drafted in (0, 1):
        assert gpu_work(10, 1, drafted).passes == ((10, 1),)
    assert (gpu_work(0, 5, 0).launches, gpu_work(0, 5, 0).cycles) == (0, 0)
