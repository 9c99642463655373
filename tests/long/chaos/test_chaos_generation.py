"""Chip processes killed at random virtual times: tokens, cycles and digest as if nobody had."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

import pytest

from cluster.processes import Placement
from programs.artifact import Artifact
from tests.long.chaos.kills import Calm, Disturbed, crew, draw_kills, generate

pytestmark = pytest.mark.ray

PLACEMENT = Placement(4, snapshot_launches=8)


@pytest.fixture(scope="module", autouse=True)
def actors(artifact: Artifact, chaos_ray: None) -> Iterator[None]:
    """The same actors, but for the killed, in all runs."""
    with crew(artifact, PLACEMENT):
        yield


def survive(artifact: Artifact, calm: Calm, seed: int, count: int) -> tuple[int, float, float]:
    """A run with ``count`` kills: (recoveries, slowest recovery, wall) in seconds."""
    kills = draw_kills(seed, count, 8 // PLACEMENT.chips_per_actor, calm.vectors)
    began = perf_counter()
    Disturbed.kills = kills
    result = generate(artifact, PLACEMENT)
    assert result.tokens == calm.result.tokens, kills
    assert result.digest == calm.result.digest, kills
    assert result.cycles_per_token == calm.result.cycles_per_token, kills
    assert result.virtual_seconds == calm.result.virtual_seconds, kills
    assert Disturbed.done == count, kills
    assert 1 <= len(result.recoveries) <= count, kills
    return (
        len(result.recoveries),
        max(recovery.seconds for recovery in result.recoveries),
        perf_counter() - began,
    )


@pytest.mark.parametrize("seed", range(2))
def test_a_kill_changes_nothing(artifact: Artifact, calm: Calm, seed: int) -> None:
    survive(artifact, calm, seed, 1)


def test_two_kills_change_nothing(artifact: Artifact, calm: Calm) -> None:
    survive(artifact, calm, 1000, 2)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("runs", "count"), [(60, 1), (20, 2)])
def test_many_kills_change_nothing(
    artifact: Artifact,
    calm: Calm,
    runs: int,
    count: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = [survive(artifact, calm, 10_000 * count + seed, count) for seed in range(runs)]
    with capsys.disabled():
        print(
            f"\ngeneration: {runs} runs with {count} kills each, {runs} equal digests and texts; "
            f"worst recovery {max(row[1] for row in found):.2f} s, "
            f"worst run {max(row[2] for row in found):.2f} s"
        )
