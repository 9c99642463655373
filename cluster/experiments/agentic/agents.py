"""Agents in virtual time: graphs of steps, routed as JSON messages to LPUs and GPUs.

An orchestrator holds the graphs.  A step whose predecessors are done becomes a message; a desk
with a router names the pool; the message crosses the link to that pool, is checked there, and its
result comes back as a message.  Which model runs a step depends on its kind alone: light ones the
draft (or the target, if asked for), heavy ones the target.  Both pools have both models, each on
machines of its own, so that runs differ in what they name and in nothing else.  Tools are stubs
beside the orchestrator.  Each pool has a link of its own, one ledger per direction, so that neither
is nearer than the other.

Text is real (``agentic_text``).  LPU times are exact cycles of the compiled programs, GPU times the
roofline's, both with the host's transfers.  Events of one instant happen in the order in which
they were planned, so a seed gives one history.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cluster.errors import InputError
from cluster.experiments.agentic.graph import (
    LIGHT,
    NEW_TOKENS,
    TOOL_MS,
    AgentRequest,
    argument_of,
    prompt_of,
    tool_result,
)
from cluster.experiments.agentic.messages import RESULT, Inbox, StepMessage, Tool, encode
from cluster.experiments.agentic.routing import GPU, LPU, POOLS, Desk, LocalDesk, Router, View
from cluster.experiments.agentic.text import Writer
from cluster.experiments.serving import (
    HOST_KINDS,
    PS,
    BatchCost,
    Batching,
    Belt,
    BeltPlaces,
    Latencies,
    check_time,
    cycles_to_ps,
    percentiles,
    ps_to_cycles,
)
from cluster.gpu import TOKEN_BYTES, LinkLedger, WorldLink

DRAFT, TARGET = "draft", "target"
PROMPT_MOST = 96
"""Tokens of a prompt that a pool reads: the last ones."""
ATTEMPTS = 4
"""How often a message is sent at most before its request has failed."""


@dataclass(frozen=True, eq=False)
class LpuModel:
    """A model on LPU pipelines: what it costs and what it writes."""

    belt: Belt
    writer: Writer
    pipelines: int = 1


@dataclass(frozen=True, eq=False)
class GroupModel:
    """A model on GPU groups: what it costs and what it writes."""

    cost: BatchCost
    writer: Writer
    groups: int = 1


@dataclass(frozen=True, eq=False)
class AgentSite:
    """The machines: two models on LPUs and on GPUs, by name, links, a tokenizer.

    corrupt: probability that a message is cut short on its way.  machines: each pool in words.
    """

    lpu: dict[str, LpuModel]
    gpu: dict[str, GroupModel]
    tokenizer: Tokenizer
    link: WorldLink
    corrupt: float = 0.0
    machines: dict[str, str] = field(default_factory=lambda: {LPU: "LPUs", GPU: "GPUs"})

    def __post_init__(self) -> None:
        if not 0 <= self.corrupt < 1:
            raise InputError(f"corrupt {self.corrupt}: use a probability from 0 to below 1")


@dataclass
class _Running:
    """A request under way; texts by step, what is left to wait for, when its answer began."""

    texts: dict[int, str] = field(default_factory=dict)
    sent: set[int] = field(default_factory=set)
    answer_first_ps: int = -1
    answer_last_ps: int = -1
    done_ps: int = -1
    failed: bool = False


@dataclass
class _Job:
    """A step at a pool."""

    message: StepMessage
    pool: str
    model: str
    view: View
    asked_ps: int
    ids: tuple[int, ...] = ()


class _Run:
    def __init__(
        self,
        requests: Sequence[AgentRequest],
        site: AgentSite,
        router: Router | Desk,
        seed: int,
        light_model: str,
    ) -> None:
        self.requests, self.site, self.light_model = requests, site, light_model
        self.desk = router if isinstance(router, Desk) else LocalDesk(router)
        self.running = [_Running() for _ in requests]
        self.inbox = Inbox()
        self.links = {(p, way): LinkLedger(site.link) for p in POOLS for way in ("to", "from")}
        self.places = {name: BeltPlaces(m.belt, m.pipelines) for name, m in site.lpu.items()}
        self.batching = {name: Batching(m.cost, m.groups) for name, m in site.gpu.items()}
        self.at_gpu: dict[tuple[str, int], _Job] = {}
        self.joining: dict[str, list[int]] = {name: [] for name in site.gpu}
        self.host: Counter[str] = Counter()
        self.steps_of_models: Counter[str] = Counter()
        self.in_flight = dict.fromkeys(POOLS, 0)
        self.steps: dict[str, Counter[str]] = {name: Counter() for name in (*POOLS, "tool")}
        self.random = np.random.Generator(np.random.Philox(key=np.array([seed, 4], np.uint64)))
        self.events: list[tuple[int, int, Callable[[int], None]]] = []
        self.planned = 0
        self.now = 0

    def plan(self, at: int, what: Callable[[int], None]) -> None:
        heapq.heappush(self.events, (at, self.planned, what))
        self.planned += 1

    def run(self) -> None:
        for number, request in enumerate(self.requests):
            self.plan(request.arrival_ps, partial(self.advance, number))
        while True:
            instants = [self.events[0][0]] if self.events else []
            ends = [batching.next_ps for batching in self.batching.values()]
            instants += [end for end in ends if end is not None]
            if not instants:
                return
            self.now = now = min(instants)
            while self.events and self.events[0][0] == now:
                heapq.heappop(self.events)[2](now)
            for name, batching in self.batching.items():
                if self.joining[name] or batching.next_ps == now:
                    arriving, self.joining[name] = self.joining[name], []
                    for done in batching.advance(now, arriving):
                        self.finish(self.at_gpu.pop((name, done)), batching.first[done], now)

    def advance(self, number: int, now: int) -> None:
        """Send every step of a request whose predecessors are done."""
        request, state = self.requests[number], self.running[number]
        if state.failed:
            return
        for index, step in enumerate(request.steps):
            if index in state.sent or any(before not in state.texts for before in step.after):
                continue
            state.sent.add(index)
            texts = [state.texts[before] for before in step.after]
            if step.tool is not None:
                tool = Tool(step.tool, argument_of(texts[0]))
                message = StepMessage(number, index, step.kind, step.after, tool=tool)
                self.call_tool(message, now)
                continue
            message = StepMessage(
                number,
                index,
                step.kind,
                step.after,
                prompt=prompt_of(request.task, step.kind, texts),
                max_new_tokens=NEW_TOKENS[step.kind],
            )
            self.ask(message, now)

    def call_tool(self, message: StepMessage, now: int) -> None:
        taken = self.inbox.receive(encode(message))
        assert taken is not None and taken.tool is not None
        self.steps["tool"][message.kind] += 1
        text = tool_result(taken.tool.name, taken.tool.argument)
        result = StepMessage(
            message.request, message.step, message.kind, message.after, RESULT, text=text
        )
        milliseconds = TOOL_MS[taken.tool.name]
        self.plan(now + milliseconds * PS // 1000, lambda at: self.take(result, at))

    def ask(self, message: StepMessage, now: int) -> None:
        raw = encode(message)
        routed = self.desk.route(raw, dict(self.in_flight))
        if routed is None:
            self.running[message.request].failed = True
            return
        view, pool = routed
        self.in_flight[pool] += 1
        self.steps[pool][message.kind] += 1
        model = self.light_model if message.kind in LIGHT else TARGET
        self.steps_of_models[f"{pool}-{model}"] += 1
        job = _Job(message, pool, model, view, now)
        self.send(job, "to", raw, 1, lambda got, at: self.serve(job, got, at))

    def send(
        self,
        job: _Job,
        way: str,
        raw: bytes,
        attempt: int,
        then: Callable[[StepMessage, int], None],
    ) -> None:
        """Send over the job's link; a message that arrives damaged is asked for again."""
        seconds = self.links[job.pool, way].send("json", len(raw), self.now / PS)
        check_time(seconds)
        arrival = round(seconds * PS)
        sent = raw
        if self.site.corrupt:
            chance, where = self.random.random(2)
            if chance < self.site.corrupt:
                sent = raw[: int(where * len(raw))]

        def arrive(now: int) -> None:
            message = self.inbox.receive(sent)
            if message is not None:
                then(message, now)
            elif attempt == ATTEMPTS:
                self.in_flight[job.pool] -= 1
                self.running[job.message.request].failed = True
            else:
                again = now + round(self.site.link.latency_s * PS)
                self.plan(again, lambda _: self.send(job, way, raw, attempt + 1, then))

        self.plan(max(arrival, self.now), arrive)

    def serve(self, job: _Job, message: StepMessage, now: int) -> None:
        """A step at its pool: read the prompt, write, and plan the result."""
        prompt, new = message.prompt, message.max_new_tokens
        assert prompt is not None and new is not None
        ids = tuple(self.site.tokenizer.encode(prompt).ids[-PROMPT_MOST:])
        if job.pool == GPU:
            job.ids = self.site.gpu[job.model].writer.write(ids, new)
            number = self.batching[job.model].add(len(ids), new)
            self.at_gpu[job.model, number] = job
            self.joining[job.model].append(number)
            self.host["gpu_tokens_in"] += TOKEN_BYTES * (len(ids) + new - 1)
            self.host["gpu_tokens_out"] += TOKEN_BYTES * new
            return
        model = self.site.lpu[job.model]
        job.ids = model.writer.write(ids, new)
        crossing = model.belt.crossing(model.belt.fed(len(ids), new), new)
        self.host.update({kind: count or 0 for kind, count in crossing.items()})
        clock = model.belt.clock_hz
        went = self.places[job.model].enter(ps_to_cycles(now, clock), len(ids), new)
        first, done = cycles_to_ps(went.first, clock), cycles_to_ps(went.done, clock)
        self.plan(done, lambda at: self.finish(job, first, at))

    def finish(self, job: _Job, first: int, now: int) -> None:
        """A pool has written a step's text: send it back."""
        asked = job.message
        state = self.running[asked.request]
        if asked.step == len(self.requests[asked.request].steps) - 1:
            state.answer_first_ps, state.answer_last_ps = first, now
        result = StepMessage(
            asked.request,
            asked.step,
            asked.kind,
            asked.after,
            RESULT,
            text=self.site.tokenizer.decode(list(job.ids)),
            output_tokens=len(job.ids),
        )

        def back(message: StepMessage, at: int) -> None:
            self.in_flight[job.pool] -= 1
            self.desk.observe(job.view, job.pool, (at - job.asked_ps) / PS)
            self.take(message, at)

        self.send(job, "from", encode(result), 1, back)

    def take(self, result: StepMessage, now: int) -> None:
        """The orchestrator has a step's result."""
        state = self.running[result.request]
        assert result.text is not None
        state.texts[result.step] = result.text
        if len(state.texts) == len(self.requests[result.request].steps) and not state.failed:
            state.done_ps = now
        self.advance(result.request, now)

    def latencies(self) -> Latencies:
        """To the first token of each finished answer, and per further one."""
        fine = [n for n, state in enumerate(self.running) if state.done_ps >= 0]
        arrivals, firsts, lasts = (
            np.array(times, np.int64)
            for times in (
                [self.requests[n].arrival_ps for n in fine],
                [self.running[n].answer_first_ps for n in fine],
                [self.running[n].answer_last_ps for n in fine],
            )
        )
        return Latencies(firsts - arrivals, (lasts - firsts) / (NEW_TOKENS["summarise"] - 1))

    def report(self, slo_s: float) -> dict[str, Any]:
        took = self.latencies()
        fine = [n for n, state in enumerate(self.running) if state.done_ps >= 0]
        horizon = max((self.running[n].done_ps for n in fine), default=0)

        arrivals = [self.requests[n].arrival_ps for n in fine]
        done = [self.running[n].done_ps for n in fine]
        good = sum(d - a <= slo_s * PS for d, a in zip(done, arrivals, strict=True))
        texts = hashlib.sha256()
        for number, state in enumerate(self.running):
            for step in sorted(state.texts):
                texts.update(f"{number}.{step}.{state.texts[step]}\0".encode())
        busy = {
            f"lpu-{name}": cycles_to_ps(int(p.busy.sum()), self.site.lpu[name].belt.clock_hz)
            / len(p.busy)
            for name, p in self.places.items()
        }
        busy |= {
            f"gpu-{name}": sum(server.busy for server in batching.servers) / len(batching.servers)
            for name, batching in self.batching.items()
        }
        answer = self.running[fine[0]].texts if fine else {}
        return {
            "requests": len(self.requests),
            "failed": len(self.requests) - len(fine),
            "virtual_seconds": horizon / PS,
            "end_to_end_s": percentiles(np.array(done, np.int64) - np.array(arrivals, np.int64)),
            "ttft_s": percentiles(took.ttft_ps),
            "tpot_s": percentiles(took.tpot_ps),
            "goodput_per_s": good * PS / horizon if horizon else 0.0,
            "good_ratio": good / len(self.requests),
            "models": {"light": self.light_model, "heavy": TARGET},
            "steps_of_models": dict(sorted(self.steps_of_models.items())),
            "steps": {pool: dict(sorted(counts.items())) for pool, counts in self.steps.items()},
            "bytes": {
                f"json {way} {pool}": ledger.bytes_by_kind["json"]
                for (pool, way), ledger in self.links.items()
            },
            "host_bytes": {kind: self.host[kind] for kind in HOST_KINDS},
            "messages": self.inbox.counts(),
            "routing": self.desk.counts(),
            "utilisation": {n: b / horizon if horizon else 0.0 for n, b in busy.items()},
            "text_digest": texts.hexdigest(),
            "first_answer": answer.get(max(answer, default=0), ""),
        }


def run_agents(
    requests: Sequence[AgentRequest],
    site: AgentSite,
    router: Router | Desk,
    seed: int,
    slo_s: float,
    light_model: str = DRAFT,
    done: Callable[[dict[str, Any], Latencies], None] = lambda report, took: None,
) -> dict[str, Any]:
    """Run ``requests`` to their end; the figures as plain data, times in seconds.

    done: told the same, and the latencies of all answers.

    end_to_end_s: from arrival to the last result at the orchestrator.  ttft_s: to the first token
    of the last step, at its pool; tpot_s: per further token of that step.
    messages: as the pools, tools and the orchestrator took them; routing: as the desk took them.
    goodput: requests within ``slo_s`` seconds, per second.  light_model: which runs light steps,
    wherever they go.  host_bytes: between the pools' machines and their hosts, by kind.
    """
    if not (slo_s > 0 and np.isfinite(slo_s)):
        raise InputError(f"slo {slo_s}: use a finite number of seconds above 0")
    if not set(site.lpu) == set(site.gpu) == {DRAFT, TARGET}:
        raise InputError("each pool needs two models, draft and target")
    run = _Run(requests, site, router, seed, light_model)
    run.run()
    report = run.report(slo_s)
    done(report, run.latencies())
    return report
