"""Chip processes killed inside a collective: it is launched again and gives the same words."""

from __future__ import annotations

from functools import cache
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from chip.spec import PRESETS
from cluster.runs import CollectiveSettings, run_functional
from interconnect.wiring import topology_of
from tests.long.chaos.kills import Disturbed, Kill, disturbed

pytestmark = pytest.mark.ray

OPERATIONS = ("all-reduce", "all-to-all", "all-gather")
BYTES = 1 << 17


def collective(operation: str, in_process: bool) -> dict[str, Any]:
    return run_functional(
        topology_of(8),
        PRESETS["groq-lpu-1"],
        CollectiveSettings(
            operation,
            nbytes=BYTES,
            algorithm="hierarchical",
            run=True,
            chips_per_actor=None if in_process else 4,
            in_process=in_process,
        ),
        seed=3,
    )


@cache
def expected(operation: str) -> str:
    return str(collective(operation, True)["digest"])


def survive(seed: int, count: int = 1) -> tuple[int, float]:
    random = np.random.Generator(np.random.Philox(key=[seed, 7]))
    operation = OPERATIONS[seed % len(OPERATIONS)]
    kills = [
        Kill(int(random.integers(2)), int(random.integers(400)), bool(random.random() < 0.3))
        for _ in range(count)
    ]
    began = perf_counter()
    Disturbed.kills = kills
    with disturbed():
        found = collective(operation, False)
    assert found["equal"] and found["digest"] == expected(operation), kills
    # A launch is short: it may be over before the victim's end is noticed.
    assert found["recoveries"] <= Disturbed.done
    return int(found["recoveries"]), perf_counter() - began


@pytest.mark.long
def test_a_kill_changes_nothing(chaos_ray: None) -> None:
    survive(0)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_many_kills_change_nothing(chaos_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    found = [survive(100 + seed) for seed in range(20)]
    hit = sum(recoveries for recoveries, _ in found)
    assert hit >= 10
    with capsys.disabled():
        print(
            f"\ncollectives: 20 runs with a kill each, 20 equal digests, {hit} recoveries; "
            f"worst run {max(wall for _, wall in found):.2f} s"
        )
