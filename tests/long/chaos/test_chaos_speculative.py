"""GPU nodes killed at random moments of speculative decoding: the text stays the target's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from time import perf_counter, sleep

import numpy as np
import pytest

from cluster.experiments.speculative import SpeculativeSettings
from cluster.experiments.speculative.rig import Rig
from cluster.experiments.speculative.steps import Job, target_only
from cluster.gpu import GpuPool, ray_pool
from cluster.gpu.pool import Answer, RayMember
from programs.models import shipped_model

pytestmark = pytest.mark.ray

PROMPTS = ([70, 221, 304], [33, 9, 5, 9, 5, 9])
NEW = 16
NODES = 2


@pytest.fixture(scope="module")
def pool(chaos_ray: None) -> Iterator[GpuPool]:
    """Nodes that are replaced when they die."""
    with ray_pool(shipped_model(), NODES, replace_lost=True) as pool:
        yield pool


@pytest.fixture(scope="module")
def rig(pool: GpuPool) -> Rig:
    return Rig(SpeculativeSettings(), 256, lambda _: None, pool)


@pytest.fixture(scope="module")
def expected(rig: Rig) -> list[list[int]]:
    return [target_only(rig.target, prompt, None, NEW)[0] for prompt in PROMPTS]


def survive(
    rig: Rig,
    pool: GpuPool,
    expected: list[list[int]],
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[int, float]:
    """A node dies at a random pass, before, in or after it; (positions computed again, wall)."""
    import ray

    random = np.random.Generator(np.random.Philox(key=[seed, 11]))
    when, late = int(random.integers(8)), float(random.random()) * 0.02
    gamma = int(random.integers(1, 6))
    passes = 0
    verify = GpuPool.verify

    def disturbed(self: GpuPool, request: int, tokens: list[int], first: int) -> Answer:
        nonlocal passes
        if passes == when:
            member = self.members[self.node_of(request)]
            assert isinstance(member, RayMember)

            def strike() -> None:
                sleep(late)
                ray.kill(member._actor)

            threading.Thread(target=strike).start()
        passes += 1
        return verify(self, request, tokens, first)

    lost, replayed, began = pool.lost, pool.replayed, perf_counter()
    with monkeypatch.context() as patch:
        patch.setattr(GpuPool, "verify", disturbed)
        traces = rig.traces(PROMPTS, Job(gamma, NEW), "lpu")
    assert [trace.tokens for trace in traces] == expected, (seed, when, late)
    assert passes > when
    assert pool.lost - lost <= 1 and pool.alive == NODES
    return pool.replayed - replayed, perf_counter() - began


def test_a_kill_changes_nothing(
    rig: Rig, pool: GpuPool, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    survive(rig, pool, expected, 0, monkeypatch)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_many_kills_change_nothing(
    rig: Rig,
    pool: GpuPool,
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = pool.lost
    found = [survive(rig, pool, expected, 100 + seed, monkeypatch) for seed in range(20)]
    # A strike after the last pass is noticed by the next run.
    assert pool.lost - before >= 19
    with capsys.disabled():
        print(
            f"\nspeculative: 20 runs with a kill each, 20 equal texts, "
            f"{sum(again for again, _ in found)} positions computed again; "
            f"worst run {max(wall for _, wall in found):.2f} s"
        )
