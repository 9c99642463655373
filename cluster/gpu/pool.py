"""A pool of GPU nodes that verify drafts, and the nodes in it.

A ``GpuNode`` is a plain class that owns a model and one KV cache per request.  It is told the whole
text every time, keeps what agrees with its cache and computes the rest: rolling back after a
rejection, starting with a request it has never seen, and repeating a call are one and the same.

A ``GpuPool`` gives every request a node.  When a node dies its requests go to the others, which
compute the text so far again, so no token is lost or changed.  A pool that knows how to start a
node can grow (``add``), and can replace every node that dies (``replace_lost``).  Nodes live in
this process or are Ray actors; logits are bit-identical either way, because a forward pass does not
depend on how its positions are batched.

Nothing here knows time: ``Answer.forwarded`` says what was computed, the caller charges it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InputError, RunError, one_line
from cluster.processes import open_ray
from programs.models import load_checkpoint

F32 = NDArray[np.float32]

#: One thread per node; more would only fight over the cores of this host.
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class PassModel(Protocol):
    """A forward pass with a KV cache that can be cut; ``cluster.gpu.forward.GpuModel`` is one."""

    def new_cache(self) -> Any:
        """An empty cache; it has ``truncate(positions)``."""

    def forward(self, tokens: Sequence[int], cache: Any) -> F32:
        """Append ``tokens`` to the cache; logits after each, float32 [len(tokens), vocab]."""


@dataclass(frozen=True, eq=False)
class Answer:
    """logits: float32 [positions asked for, vocab]; forwarded: positions computed for it."""

    logits: F32
    forwarded: int


class NodeLostError(Exception):
    """A node does not answer any more."""


class GpuNode:
    """One GPU (or tensor-parallel group): a model, and the caches of the requests it serves."""

    def __init__(self, model: PassModel) -> None:
        self._model = model
        self._caches: dict[int, tuple[list[int], Any]] = {}

    def verify(self, request: int, tokens: Sequence[int], from_position: int) -> Answer:
        """Logits after each of ``tokens[from_position:]``, given the whole text ``tokens``.

        A request not known yet is computed from its first token on.
        """
        if not 0 <= from_position < len(tokens):
            raise ValueError(f"position {from_position} of a text of {len(tokens)} tokens")
        text = list(tokens)
        if request not in self._caches:
            self._caches[request] = ([], self._model.new_cache())
        known, cache = self._caches[request]
        keep = min(common_prefix(known, text), from_position)
        cache.truncate(keep)
        self._caches[request] = (text[:keep], cache)
        logits = self._model.forward(text[keep:], cache)
        self._caches[request] = (text, cache)
        return Answer(logits[from_position - keep :], len(text) - keep)

    def forget(self, request: int) -> None:
        """Drop the request's cache."""
        self._caches.pop(request, None)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading tokens two texts share."""
    for number, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return number
    return min(len(one), len(other))


class Member(Protocol):
    """A node as the pool reaches it; every call may raise ``NodeLostError``."""

    def verify(self, request: int, tokens: Sequence[int], from_position: int) -> Answer:
        """See ``GpuNode.verify``."""

    def forget(self, request: int) -> None:
        """See ``GpuNode.forget``."""

    def kill(self) -> None:
        """End the node as a failure would: its caches are gone."""


class LocalMember:
    """A node in this process."""

    def __init__(self, model: PassModel) -> None:
        self._node: GpuNode | None = GpuNode(model)

    def _alive(self) -> GpuNode:
        if self._node is None:
            raise NodeLostError("the node was killed")
        return self._node

    def verify(self, request: int, tokens: Sequence[int], from_position: int) -> Answer:
        """See ``GpuNode.verify``."""
        return self._alive().verify(request, tokens, from_position)

    def forget(self, request: int) -> None:
        """See ``GpuNode.forget``."""
        self._alive().forget(request)

    def kill(self) -> None:
        """The node and its caches are gone."""
        self._node = None


class NodeActor:
    """A ``GpuNode`` as a Ray actor; reads the checkpoint itself."""

    def __init__(self, checkpoint: str) -> None:
        from cluster.gpu.forward import GpuModel

        self._node = GpuNode(GpuModel(load_checkpoint(checkpoint)))

    def verify(self, request: int, tokens: list[int], from_position: int) -> Answer:
        """See ``GpuNode.verify``."""
        return self._node.verify(request, tokens, from_position)

    def forget(self, request: int) -> None:
        """See ``GpuNode.forget``."""
        self._node.forget(request)


class RayMember:
    """A node that is a Ray actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def verify(self, request: int, tokens: Sequence[int], from_position: int) -> Answer:
        """See ``GpuNode.verify``."""
        answer: Answer = self._call("verify", request, list(tokens), from_position)
        return answer

    def forget(self, request: int) -> None:
        """See ``GpuNode.forget``."""
        self._call("forget", request)

    def kill(self) -> None:
        """End the actor's process; returns when it is gone."""
        import ray

        ray.kill(self._actor)
        # Calls made right after ``ray.kill`` may still be answered.
        with contextlib.suppress(NodeLostError):
            while True:
                self.forget(-1)

    def _call(self, method: str, *arguments: object) -> Any:
        import ray

        try:
            return ray.get(getattr(self._actor, method).remote(*arguments))
        except ray.exceptions.RayActorError as error:
            raise NodeLostError(one_line(error)[:200]) from None
        except ray.exceptions.RayTaskError as error:
            raise RunError(f"a GPU node failed: {one_line(error.cause)}") from None


class GpuPool:
    """Nodes that share requests; ``lost`` counts the dead, ``replayed`` positions computed again.

    A request goes to the node with the fewest, the lowest number among equals, and stays there.
    """

    def __init__(
        self,
        members: Sequence[Member],
        start: Callable[[], Member] | None = None,
        replace_lost: bool = False,
    ) -> None:
        """start: starts one more node.  replace_lost: so is one for each that dies."""
        if not members:
            raise InputError("a GPU pool of 0 nodes: use 1 or more")
        self._start, self._replace_lost = start, replace_lost
        self.members = list(members)
        self._alive = set(range(len(members)))
        self._node_of: dict[int, int] = {}
        self._orphans: set[int] = set()
        self.lost = 0
        self.replayed = 0

    @classmethod
    def in_process(cls, model: PassModel, nodes: int = 1, replace_lost: bool = False) -> GpuPool:
        """``nodes`` nodes in this process, which read one copy of the weights."""
        members = [LocalMember(model) for _ in range(nodes)]
        return cls(members, lambda: LocalMember(model), replace_lost)

    @property
    def alive(self) -> int:
        """Nodes that are not known to be dead."""
        return len(self._alive)

    def add(self) -> int:
        """Start one more node; its number.  It takes new requests first, having the fewest."""
        if self._start is None:
            raise InputError("this GPU pool cannot start nodes: it was given those it has")
        self.members.append(self._start())
        self._alive.add(len(self.members) - 1)
        return len(self.members) - 1

    def node_of(self, request: int) -> int:
        """The node that serves ``request``, assigned now if it has none."""
        if request not in self._node_of:
            if not self._alive:
                raise RunError("every GPU node is lost: nobody is left to verify")
            load = dict.fromkeys(sorted(self._alive), 0)
            for node in self._node_of.values():
                load[node] += 1
            self._node_of[request] = min(load, key=lambda node: (load[node], node))
        return self._node_of[request]

    def verify(self, request: int, tokens: Sequence[int], from_position: int) -> Answer:
        """See ``GpuNode.verify``; a dead node's requests are computed again by another."""
        while True:
            node = self.node_of(request)
            try:
                answer = self.members[node].verify(request, tokens, from_position)
            except NodeLostError:
                self._bury(node)
                continue
            if request in self._orphans:
                self._orphans.remove(request)
                self.replayed += answer.forwarded - (len(tokens) - from_position)
            return answer

    def forget(self, request: int) -> None:
        """The request is finished."""
        node = self._node_of.pop(request, None)
        self._orphans.discard(request)
        if node is not None:
            try:
                self.members[node].forget(request)
            except NodeLostError:
                self._bury(node)

    def _bury(self, node: int) -> None:
        self._alive.discard(node)
        self.lost += 1
        orphans = [request for request, at in self._node_of.items() if at == node]
        self._orphans.update(orphans)
        for request in orphans:
            del self._node_of[request]
        if self._replace_lost:
            self.add()


@contextlib.contextmanager
def ray_pool(
    checkpoint: Path, nodes: int, address: str | None = None, replace_lost: bool = False
) -> Iterator[GpuPool]:
    """A pool of ``nodes`` Ray actors, each with the checkpoint in its own process.

    address: as for ``open_ray``.  replace_lost: as for ``GpuPool``.  The actors are gone
    afterwards, those started later too.
    """
    import ray

    if nodes < 1:
        raise InputError(f"a GPU pool of {nodes} nodes: use 1 or more")
    with open_ray(address, nodes + 1) as where:
        remote: Any = ray.remote(num_cpus=0, max_restarts=0)(NodeActor)
        options = remote.options(
            scheduling_strategy=where, runtime_env={"env_vars": THREADS}, max_task_retries=0
        )
        actors: list[Any] = []

        def start() -> RayMember:
            # Absolute: actors work in another directory.
            actors.append(options.remote(str(checkpoint.absolute())))
            return RayMember(actors[-1])

        try:
            yield GpuPool([start() for _ in range(nodes)], start, replace_lost)
        finally:
            for actor in actors:
                with contextlib.suppress(Exception):
                    ray.kill(actor)
