"""Nodes agree with one forward pass, whatever was known before, and survive each other's death."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.errors import InputError, RunError
from cluster.gpu import GpuModel, GpuPool, common_prefix, ray_pool
from cluster.gpu.pool import GpuNode, LocalMember
from programs.models import load_checkpoint, shipped_model

TEXT = [70, 221, 304, 5, 9, 33, 700, 12, 12, 4]


@pytest.fixture(scope="module")
def model() -> GpuModel:
    return GpuModel(load_checkpoint(shipped_model()))


@pytest.fixture(scope="module")
def expected(model: GpuModel) -> np.ndarray:
    return model.forward(TEXT, model.new_cache())


def test_a_node_computes_only_what_it_does_not_know(model: GpuModel, expected: np.ndarray) -> None:
    node = GpuNode(model)
    first = node.verify(3, TEXT[:4], 3)
    assert first.forwarded == 4
    assert np.array_equal(first.logits, expected[3:4])
    node.verify(3, [*TEXT[:4], 1, 2, 3], 3)  # a draft that is rejected
    then = node.verify(3, TEXT, 4)
    assert then.forwarded == 6
    assert np.array_equal(then.logits, expected[4:])
    assert np.array_equal(node.verify(3, TEXT, 9).logits, expected[9:])  # the same call again
    assert GpuNode(model).verify(3, TEXT, 9).forwarded == len(TEXT)
    node.forget(3)
    assert node.verify(3, TEXT, 9).forwarded == len(TEXT)
    with pytest.raises(ValueError, match="position 10"):
        node.verify(3, TEXT, 10)


def test_a_refused_call_leaves_the_node_usable(model: GpuModel, expected: np.ndarray) -> None:
    node = GpuNode(model)
    node.verify(3, TEXT[:4], 3)
    wrong = [*TEXT[:4], 10**6]
    for _ in range(2):
        with pytest.raises(InputError, match="token 1000000 is outside"):
            node.verify(3, wrong, 4)
    assert np.array_equal(node.verify(3, TEXT, 4).logits, expected[4:])


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_prefix([1, 2], [1, 2, 4]) == 2
    assert common_prefix([], [1]) == 0


def test_requests_are_spread_and_stay(model: GpuModel) -> None:
    pool = GpuPool.in_process(model, 3)
    assert [pool.node_of(r) for r in (10, 11, 12, 13)] == [0, 1, 2, 0]
    pool.forget(11)
    assert [pool.node_of(r) for r in (14, 10)] == [1, 0]


def test_a_pool_grows_and_replaces_its_dead(model: GpuModel, expected: np.ndarray) -> None:
    pool = GpuPool.in_process(model, 1)
    assert [pool.node_of(r) for r in (0, 1)] == [0, 0]
    assert (pool.add(), pool.alive) == (1, 2)
    assert [pool.node_of(r) for r in (2, 3, 0)] == [1, 1, 0]
    with pytest.raises(InputError, match="cannot start nodes"):
        GpuPool([LocalMember(model)]).add()
    renewed(GpuPool.in_process(model, 1, replace_lost=True), expected)


def renewed(pool: GpuPool, expected: np.ndarray) -> None:
    """The only node dies, twice."""
    for length in (6, 8):
        assert np.array_equal(pool.verify(0, TEXT[:length], 4).logits, expected[4:length])
        pool.members[pool.node_of(0)].kill()
    assert np.array_equal(pool.verify(0, TEXT, 8).logits, expected[8:])
    assert (pool.lost, pool.alive, len(pool.members)) == (2, 1, 3)


@pytest.mark.ray
@pytest.mark.long
def test_a_dead_actor_is_replaced(expected: np.ndarray, local_ray: None) -> None:
    with ray_pool(shipped_model(), 1, replace_lost=True) as pool:
        renewed(pool, expected)


def survive(pool: GpuPool, expected: np.ndarray) -> None:
    """Kill the node of request 0 in the middle of two requests."""
    for request in (0, 1):
        assert np.array_equal(pool.verify(request, TEXT[:6], 4).logits, expected[4:6])
    assert (pool.node_of(0), pool.node_of(1)) == (0, 1)
    pool.members[0].kill()
    for request in (0, 1):
        assert np.array_equal(pool.verify(request, TEXT, 6).logits, expected[6:])
    assert pool.node_of(0) == 1
    assert (pool.lost, pool.replayed) == (1, 6)
    pool.members[1].kill()
    with pytest.raises(RunError, match="every GPU node is lost"):
        pool.verify(0, TEXT, 6)


def test_a_dead_nodes_requests_are_replayed(model: GpuModel, expected: np.ndarray) -> None:
    survive(GpuPool.in_process(model, 2), expected)


@pytest.mark.ray
@pytest.mark.long
def test_a_dead_actors_requests_are_replayed(expected: np.ndarray, local_ray: None) -> None:
    with ray_pool(shipped_model(), 2) as pool:
        survive(pool, expected)


def test_a_pool_needs_nodes(model: GpuModel) -> None:
    with pytest.raises(InputError, match="0 nodes"):
        GpuPool([])
    with pytest.raises(InputError, match="0 nodes"), ray_pool(shipped_model(), 0):
        pass
