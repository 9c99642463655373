"""Continuous batching in virtual time: one queue, one or more servers that batch decode steps.

The rules, exactly.  All times are integer picoseconds.  At one instant, in this order:

1. requests that arrive join the queue, in the order of the trace;
2. servers whose iteration ends have its effect, in the order of servers: after a prefill the
   request has its first token and joins the server's batch; after a decode step every request of
   the batch has one more token, and those that are complete leave;
3. servers without an iteration begin one, in the order of servers: if the request at the head of
   the queue fits (a free place in the batch, and KV room for its whole prompt and answer) its
   prefill, alone; else one decode step of the whole batch; else nothing.

A request whose answer is one token is complete after its prefill.  One that could never fit is
refused on arrival.  Decode steps between two events are computed in one go, which changes nothing:
a run of steps is cut at the first step that ends when the head of the queue could be taken.

A pool may scale (``scaling``): servers that are down or still starting are passed over in all of
this, and the rule for them is applied last.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InputError
from cluster.experiments.serving.arrivals import PS, Trace, check_time
from cluster.experiments.serving.figures import NOBODY, Served, ServiceStage
from cluster.experiments.serving.scaling import MAX_GROUPS, Scaling, node_ps
from cluster.gpu import TOKEN_BYTES

I64 = NDArray[np.int64]

MAX_SERVERS = MAX_GROUPS
WAKE = -1
"""Instead of a server's number: an instant to look at the pool, when none of them ends anything."""
RUN_STEPS = 256
"""Decode steps computed in one go at most."""


class BatchCost(Protocol):
    """What the steps of a server cost."""

    @property
    def max_batch(self) -> int:
        """Requests in a batch at most."""

    @property
    def kv_tokens(self) -> int:
        """Positions that fit the server's KV cache, over all its requests."""

    def prefill_ps(self, tokens: int) -> int:
        """Picoseconds of the prefill of one prompt."""

    def decode_ps(self, batch: int, context: int, steps: int) -> I64:
        """Picoseconds of each of ``steps`` decode steps of a batch that does not change.

        context: the sum, over the batch, of positions each attends to in the first step; every
        further step adds ``batch``.  int64 [steps].
        """


@dataclass
class _Server:
    """State of one server; ``ends`` are the ends of the steps of its current run of decoding."""

    number: int
    version: int = 0
    prefilling: int = -1
    ends: I64 | None = None
    began: int = 0
    steps: int = 0
    """Decode steps since the beginning; a request leaves at a step known when it joins."""
    leaving: list[tuple[int, int]] = field(default_factory=list)
    """Heap of (step, request)."""
    fresh: list[int] = field(default_factory=list)
    """Requests of the batch that wait for their second token."""
    context: int = 0
    reserved: int = 0
    busy: int = 0
    prefill_busy: int = 0
    up: bool = True
    ready_ps: int = 0
    """When it has started."""
    idle_since: int = -1

    @property
    def idle(self) -> bool:
        return self.prefilling < 0 and self.ends is None


class Batching:
    """The servers and their queue, moved from instant to instant by whoever knows the arrivals.

    Requests are numbered in the order of ``add``.  start, first, second, done: per request, ps,
    -1 where it has not come to that; a refused request never does.  scaling: servers beyond
    its least are down at first; then ``servers`` does not matter.
    """

    def __init__(self, cost: BatchCost, servers: int, scaling: Scaling | None = None) -> None:
        self.scaling = scaling
        least = servers
        if scaling is not None:
            least, servers = scaling.least, scaling.most
        if not 1 <= servers <= MAX_SERVERS:
            raise InputError(f"GPU groups {servers}: use 1 to {MAX_SERVERS:,}")
        self.cost = cost
        self.prompt: list[int] = []
        self.output: list[int] = []
        self.start: list[int] = []
        self.first: list[int] = []
        self.second: list[int] = []
        self.done: list[int] = []
        self.servers = [_Server(number, up=number < least) for number in range(servers)]
        self.nodes = [(0, least)]
        """(instant, servers that are up from then on)."""
        self.came: dict[int, int] = {}
        self.queue: deque[int] = deque()
        self.steps = self.tokens = 0
        self.steps_of: Counter[int] = Counter()
        """Decode steps by size of the batch."""
        self._events: list[tuple[int, int, int]] = []  # end, server, version
        self._prefills: dict[int, int] = {}
        self._finished: list[int] = []

    def add(self, prompt: int, output: int) -> int:
        """A new request of so many tokens; its number, to be given to ``advance``."""
        for times in (self.start, self.first, self.second, self.done):
            times.append(-1)
        self.prompt.append(prompt)
        self.output.append(output)
        return len(self.prompt) - 1

    @property
    def next_ps(self) -> int | None:
        """The next instant at which something may happen without an arrival."""
        return self._events[0][0] if self._events else None

    def advance(self, now: int, arriving: Iterable[int]) -> list[int]:
        """What happens at the instant ``now``, not after ``next_ps``; requests that finish."""
        check_time(now / PS)
        for request in arriving:
            if self.prompt[request] + self.output[request] <= self.cost.kv_tokens:
                self.queue.append(request)
                self._wake(now, request)
        self._finished = []
        while self._events and self._events[0][0] == now:
            _, number, version = heapq.heappop(self._events)
            if number == WAKE:
                continue
            server = self.servers[number]
            if version == server.version:
                self._end(server, now)
        for server in self.servers:
            if not server.up or server.ready_ps > now:
                continue
            if server.ends is not None and self.queue and self._fits(server):
                self._cut(server, now)
            if server.idle:
                self._begin(server, now)
        if self.queue:
            for server in self.servers:
                if server.ends is not None and self._fits(server):
                    self._shorten(server, now)
        if self.scaling is not None:
            self._scale(self.scaling, now)
        return self._finished

    def _wake(self, now: int, request: int) -> None:
        """Come back when ``request`` has waited too long."""
        if self.scaling is not None and self.scaling.wait_ps is not None:
            self.came[request] = now
            heapq.heappush(self._events, (now + self.scaling.wait_ps, WAKE, 0))

    def _scale(self, rule: Scaling, now: int) -> None:
        """Start and stop servers by the rule, and come back when it may say something else."""
        for server in self.servers:
            resting = server.up and server.ready_ps <= now and server.idle
            if resting and server.idle_since < 0:
                server.idle_since = now
                heapq.heappush(self._events, (now + rule.idle_ps, WAKE, 0))
            elif not resting:
                server.idle_since = -1
        before = up = sum(server.up for server in self.servers)
        starting = sum(server.up and server.ready_ps > now for server in self.servers)
        waited = now - self.came.get(self.queue[0], now) if self.queue else None
        down = (server for server in self.servers if not server.up)
        for _ in range(rule.more(up, starting, len(self.queue), waited)):
            server = next(down)
            server.up, server.ready_ps = True, now + rule.start_ps
            heapq.heappush(self._events, (server.ready_ps, WAKE, 0))
            up += 1
        for server in reversed(self.servers):
            idle = server.idle_since >= 0 and now - server.idle_since >= rule.idle_ps
            if idle and up > rule.least and not self.queue:
                server.up, server.idle_since = False, -1
                up -= 1
        if up != before:
            self.nodes.append((now, up))

    def _fits(self, server: _Server) -> bool:
        head = self.queue[0]
        need = self.prompt[head] + self.output[head]
        room = len(server.leaving) < self.cost.max_batch
        return room and server.reserved + need <= self.cost.kv_tokens

    def _begin(self, server: _Server, now: int) -> None:
        if self.queue and self._fits(server):
            request = self.queue.popleft()
            server.prefilling = request
            server.reserved += self.prompt[request] + self.output[request]
            self.start[request] = now
            tokens = self.prompt[request]
            if tokens not in self._prefills:
                self._prefills[tokens] = self.cost.prefill_ps(tokens)
            end = now + self._prefills[tokens]
        elif server.leaving:
            steps = min(server.leaving[0][0] - server.steps, RUN_STEPS)
            spans = self.cost.decode_ps(len(server.leaving), server.context, steps)
            server.ends = now + np.cumsum(spans)
            for request in server.fresh:
                self.second[request] = int(server.ends[0])
            server.fresh.clear()
            end = int(server.ends[-1])
        else:
            return
        server.began = now
        self._expect(server, end)

    def _expect(self, server: _Server, end: int) -> None:
        server.version += 1
        heapq.heappush(self._events, (end, server.number, server.version))

    def _end(self, server: _Server, now: int) -> None:
        """The effect of the iteration, or run of them, that ends now."""
        server.busy += now - server.began
        request = server.prefilling
        if request >= 0:
            server.prefilling = -1
            server.prefill_busy += now - server.began
            self.first[request] = now
            if self.output[request] == 1:
                self._leave(server, request, now)
            else:
                heapq.heappush(server.leaving, (server.steps + self.output[request] - 1, request))
                server.context += self.prompt[request] + 1
                server.fresh.append(request)
            return
        assert server.ends is not None
        steps, batch = len(server.ends), len(server.leaving)
        server.ends = None
        server.steps += steps
        server.context += steps * batch
        self.steps += steps
        self.tokens += steps * batch
        self.steps_of[batch] += steps
        while server.leaving and server.leaving[0][0] == server.steps:
            request = heapq.heappop(server.leaving)[1]
            server.context -= self.prompt[request] + self.output[request]
            self._leave(server, request, now)

    def _leave(self, server: _Server, request: int, now: int) -> None:
        server.reserved -= self.prompt[request] + self.output[request]
        self.done[request] = now
        self._finished.append(request)

    def _cut(self, server: _Server, now: int) -> None:
        """End the run now if one of its steps, not the last, ends at this instant."""
        assert server.ends is not None
        step = int(np.searchsorted(server.ends, now))
        if step < len(server.ends) and server.ends[step] == now:
            server.ends = server.ends[: step + 1]
            server.version += 1
            self._end(server, now)

    def _shorten(self, server: _Server, now: int) -> None:
        """Let the run end with the first step after now: then the head can be taken."""
        assert server.ends is not None
        step = int(np.searchsorted(server.ends, now, side="right"))
        if step + 1 < len(server.ends):
            server.ends = server.ends[: step + 1]
            self._expect(server, int(server.ends[-1]))


def serve_batched(
    trace: Trace, cost: BatchCost, servers: int, scaling: Scaling | None = None
) -> Served:
    """Serve ``trace`` on ``servers`` equal servers by the rules above."""
    return served_by(run_batched(trace, cost, servers, scaling), trace)


def run_batched(
    trace: Trace, cost: BatchCost, servers: int, scaling: Scaling | None = None
) -> Batching:
    """``trace`` from its first arrival until nothing more can happen."""
    batching = Batching(cost, servers, scaling)
    arrivals: list[int] = trace.arrival_ps.tolist()
    for prompt, output in zip(
        trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True
    ):
        batching.add(prompt, output)
    coming, requests = 0, len(arrivals)
    while coming < requests or batching.next_ps is not None:
        now = batching.next_ps
        if now is None or (coming < requests and arrivals[coming] < now):
            now = arrivals[coming]
        until = coming
        while until < requests and arrivals[until] == now:
            until += 1
        batching.advance(now, range(coming, until))
        coming = until
    return batching


def served_by(batching: Batching, trace: Trace) -> Served:
    """What ``run_batched`` of a trace came to: prefill and decode on the same servers."""
    busy = [server.busy for server in batching.servers]
    start, first, second, done, working = (
        np.array(values, np.int64)
        for values in (batching.start, batching.first, batching.second, batching.done, busy)
    )
    fine = done >= 0
    prefill = sum(server.prefill_busy for server in batching.servers)
    horizon = int(done.max(initial=0))
    nodes = [(at, count) for at, count in batching.nodes if at <= horizon]
    time = None if batching.scaling is None else node_ps(nodes, horizon)
    waits, decode = (trace.arrival_ps[fine], start[fine]), sum(busy) - prefill
    stages = {
        "prefill": ServiceStage("GPU groups", len(busy), prefill, *waits, time),
        "decode": ServiceStage("GPU groups", len(busy), decode, NOBODY, NOBODY, time),
    }
    into = int((trace.prompt_tokens + trace.output_tokens - 1)[fine].sum())
    out = int(trace.output_tokens[fine].sum())
    host = {"gpu_tokens_in": TOKEN_BYTES * into, "gpu_tokens_out": TOKEN_BYTES * out}
    return Served(
        start,
        first,
        second,
        done,
        working,
        batching.steps,
        batching.tokens,
        stages,
        {**host},
        nodes,
    )
