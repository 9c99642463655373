"""Requests of speculative decoding in virtual time, several at once: who waits for whom.

Up to ``concurrent`` requests are under way; the next begins when one is done, all in order.  They
share the drafter, the two directions of the link, and the GPUs that verify:

- The LPU drafter has one stretch of work at a time, first come, first served.  It keeps a KV cache
  for each request under way; that they fit its memory is assumed, not checked.
- The link carries one transfer at a time in each direction (``LinkLedger``).
- The GPUs, when free, read one prompt that waits, else verify for all requests that wait, in one
  batched pass; shorter proposals are padded to the longest.  A draft on the GPU runs before that
  pass, batched too: the n-th draft pass of all requests together.
- Token ids go to the GPUs' host and back with every pass (``GpuGroup.host_seconds``), except where
  the link brings them and takes the answer.

What a request's steps are does not depend on any of this: a forward pass has the same bits in any
batch.  Events of one instant happen in the order in which they were planned, then free machines
begin, so the same traces give the same times.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from cluster.experiments.serving import check_time
from cluster.experiments.speculative.charges import (
    ANSWER_BYTES,
    LOGIT_BYTES,
    Charge,
    Machines,
    work_seconds,
)
from cluster.experiments.speculative.settings import GPU_ONLY, LOOKUP, LPU_KV, LPU_TOKENS
from cluster.experiments.speculative.steps import DraftStep, RequestTrace, Work
from cluster.gpu import TOKEN_BYTES, LinkLedger, WorldLink


@dataclass
class _Request:
    """A request under way: its next step, since when it decodes, when it became ready to verify."""

    trace: RequestTrace
    admitted_s: float = 0.0
    waits_for: int = 1
    began_s: float = 0.0
    first_s: float = 0.0
    step: int = 0
    ready_s: float = 0.0


class _Serving:
    def __init__(
        self,
        traces: Sequence[RequestTrace],
        machines: Machines,
        link: WorldLink,
        variant: str,
        sampling: bool,
    ) -> None:
        self.machines, self.variant, self.sampling = machines, variant, sampling
        self.crosses, self.ships = variant in (LPU_TOKENS, LPU_KV), variant == LPU_KV
        self.up, self.down = LinkLedger(link), LinkLedger(link)
        self.coming = deque(_Request(trace) for trace in traces)
        self.prompts: deque[_Request] = deque()
        self.verifying: list[_Request] = []
        self.drafts: deque[tuple[Work, float, bool, Callable[[], None]]] = deque()
        """Work, since when it waits, whether it is part of decoding, and what comes next."""
        self.gpu_busy = self.drafter_busy = False
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.planned = 0
        self.now = 0.0
        self.first = self.start = self.decode = 0.0
        self.draft = self.verify = self.on_link = self.host = self.wait = 0.0
        self.host_tokens = 0
        self.each: list[tuple[float, float]] = []
        self.bytes_kv_prompt = 0

    def plan(self, at: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (at, self.planned, what))
        self.planned += 1

    def run(self, concurrent: int) -> Charge:
        for _ in range(min(concurrent, len(self.coming))):
            self.admit()
        self.begin()
        while self.events:
            self.now = self.events[0][0]
            check_time(self.now)
            while self.events and self.events[0][0] == self.now:
                heapq.heappop(self.events)[2]()
            self.begin()
        return Charge(
            first=self.first,
            start=self.start,
            decode=self.decode,
            draft=self.draft,
            verify=self.verify,
            link=self.on_link,
            host=self.host,
            wait=self.wait,
            makespan=self.now,
            bytes_logits=self.up.bytes_by_kind["logits"],
            bytes_tokens=self.up.bytes_by_kind["tokens"] + self.down.bytes_by_kind["tokens"],
            bytes_kv=self.down.bytes_by_kind["kv"] - self.bytes_kv_prompt,
            bytes_kv_prompt=self.bytes_kv_prompt,
            bytes_host=TOKEN_BYTES * self.host_tokens,
            each=tuple(self.each),
        )

    def admit(self) -> None:
        """The next request: GPUs and LPUs read its prompt at the same time."""
        if not self.coming:
            return
        request = self.coming.popleft()
        request.admitted_s = self.now
        self.prompts.append(request)
        if self.crosses:
            request.waits_for = 2
            self.drafts.append(
                (request.trace.start, self.now, False, lambda: self.prompt_read(request))
            )

    def begin(self) -> None:
        """Whatever is free takes what waits for it."""
        if not self.drafter_busy and self.drafts:
            self.drafter_busy = True
            work, since, decoding, then = self.drafts.popleft()
            took = work_seconds(work, self.machines)
            if decoding:
                self.wait += self.now - since
                self.draft += took
            self.plan(self.now + took, lambda: self.drafted(then))
        if self.gpu_busy:
            return
        if self.prompts:
            self.gpu_busy = True
            self.read_prompt(self.prompts.popleft())
        elif self.verifying:
            self.gpu_busy = True
            together, self.verifying = self.verifying, []
            self.verify_batch(together)

    def drafted(self, then: Callable[[], None]) -> None:
        self.drafter_busy = False
        then()

    def read_prompt(self, request: _Request) -> None:
        """The target's pass over a prompt, and a GPU draft's after it."""
        gpu, tokens = self.machines.gpu, len(request.trace.prompt)
        computed = (
            self.now + gpu.host_seconds(tokens) + gpu.prefill_seconds(self.machines.target, tokens)
        )
        out = computed + gpu.host_seconds(1)
        self.host_tokens += tokens + 1
        request.first_s = out - request.admitted_s
        self.first += request.first_s
        reading = 0.0 if self.crosses else work_seconds(request.trace.start, self.machines)
        if self.crosses:
            self.plan(computed, lambda: self.hand_first(request))
        else:
            self.plan(out + reading, lambda: self.prompt_read(request))
        self.plan(out + reading, self.gpu_free)

    def gpu_free(self) -> None:
        self.gpu_busy = False

    def hand_first(self, request: _Request) -> None:
        """The first token to the LPUs, and the prompt's KV if it is shipped."""
        positions = len(request.trace.prompt)
        if self.ships:
            self.bytes_kv_prompt += self.machines.kv_bytes_per_token * positions
        self.plan(self.reply(TOKEN_BYTES, positions), lambda: self.prompt_read(request))

    def reply(self, nbytes: int, positions: int) -> float:
        """Token ids, and the KV of ``positions`` if it is shipped, to the LPUs; the arrival."""
        arrival = self.down.send("tokens", nbytes, self.now)
        if self.ships:
            kv = self.machines.kv_bytes_per_token * positions
            arrival = self.down.send("kv", kv, self.now)
        return arrival

    def answer(self, request: _Request, emitted: int) -> None:
        """A step's outcome to the LPUs."""
        arrival = self.reply(ANSWER_BYTES, emitted)
        self.on_link += arrival - self.now
        self.plan(arrival, lambda: self.next_step(request))

    def prompt_read(self, request: _Request) -> None:
        request.waits_for -= 1
        if not request.waits_for:
            request.began_s = self.now
            self.start += self.now - request.admitted_s
            self.next_step(request)

    def next_step(self, request: _Request) -> None:
        if request.step == len(request.trace.steps):
            decode = self.now - request.began_s
            self.decode += decode
            self.each.append((request.first_s, decode))
            self.admit()
        elif self.crosses:
            work = request.trace.steps[request.step].work
            self.drafts.append((work, self.now, True, lambda: self.propose(request)))
        else:
            self.ask(request)

    def propose(self, request: _Request) -> None:
        """From the LPUs to the GPUs: drafted tokens, when sampling with their distributions."""
        drafted = request.trace.steps[request.step].drafted
        arrival = self.up.send("tokens", TOKEN_BYTES * drafted, self.now)
        if self.sampling:
            vocab = self.machines.target.vocab
            arrival = self.up.send("logits", LOGIT_BYTES * vocab * drafted, self.now)
        self.on_link += arrival - self.now
        self.plan(arrival, lambda: self.ask(request))

    def ask(self, request: _Request) -> None:
        request.ready_s = self.now
        self.verifying.append(request)

    def verify_batch(self, together: list[_Request]) -> None:
        """One pass over the proposals of all requests that wait."""
        gpu, models = self.machines.gpu, self.machines
        steps = [request.trace.steps[request.step] for request in together]
        drafting = 0.0 if self.crosses else self.draft_batch(steps)
        tokens = max(step.drafted for step in steps) + 1
        passing = gpu.pass_time(models.target, [step.context for step in steps], tokens).seconds
        passing += sum(
            gpu.prefill_seconds(models.target, step.replayed) for step in steps if step.replayed
        )
        host = 0.0
        if not self.crosses:
            looked_up = sum(step.drafted for step in steps) if self.variant == LOOKUP else 0
            into, out = len(steps) + looked_up, sum(step.emitted for step in steps)
            host = gpu.host_seconds(into) + gpu.host_seconds(out)
            self.host_tokens += into + out
        for request in together:
            self.wait += self.now - request.ready_s
        self.draft += drafting * len(together)
        self.verify += passing * len(together)
        self.host += host * len(together)
        self.plan(self.now + drafting + passing + host, lambda: self.verified(together))

    def draft_batch(self, steps: list[DraftStep]) -> float:
        """Seconds of a GPU draft's passes; the n-th of all requests are one."""
        seconds = 0.0
        for column in zip_longest(*(step.work.passes for step in steps)):
            passes = [one for one in column if one is not None]
            cached, tokens = [before for before, _ in passes], max(n for _, n in passes)
            seconds += self.machines.gpu.pass_time(
                self.machines.draft, cached, tokens, outputs=len(passes), expanded=True
            ).seconds
        return seconds

    def verified(self, together: list[_Request]) -> None:
        self.gpu_busy = False
        for request in together:
            emitted = request.trace.steps[request.step].emitted
            request.step += 1
            if self.crosses:
                self.answer(request, emitted)
            else:
                self.next_step(request)


def charge(
    traces: Sequence[RequestTrace],
    machines: Machines,
    link: WorldLink,
    variant: str,
    sampling: bool,
    concurrent: int = 1,
) -> Charge:
    """What ``traces`` cost as ``variant``; for those without a link, ``link`` does not matter.

    concurrent: requests under way at once at most.
    """
    return _Serving(traces, machines, link, variant, sampling).run(concurrent)


def charge_gpu_only(
    prompts: Sequence[int], new_tokens: int, machines: Machines, concurrent: int = 1
) -> Charge:
    """The target alone on the GPUs: a prefill gives the first token, a pass every later one.

    prompts: tokens of each request.
    """
    traces = [
        RequestTrace(
            [0] * tokens,
            [0] * new_tokens,
            steps=[DraftStep(tokens + n, 0, 0, 0, Work()) for n in range(new_tokens - 1)],
        )
        for tokens in prompts
    ]
    return charge(traces, machines, WorldLink(), GPU_ONLY, False, concurrent)
