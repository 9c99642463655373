"""What speculative decoding costs in virtual time: LPU cycles, link, GPU roofline.

What each part takes, and the figures made of it; ``speculative_serving`` puts the parts in order.
The LPU part is exact cycles (plus host transfers by the chip's PCIe model); the link and the GPU
are estimates.

- ``lpu-tokens``: token ids cross the link (when sampling also the draft's distributions, as float32
  logits); each side keeps its own KV cache and cuts it after a rejection by itself.
- ``lpu-kv``: the target's keys and values of every new position also cross to the LPU side, at each
  step, and before the first step those of the prompt.  They are weighed, not read: the shipped
  draft keeps its own cache either way.
- ``gpu-draft``: the draft on the verifying GPU; nothing crosses.
- ``lookup``: prompt lookup on the host; drafting is free, nothing crosses.

Seconds are floats, bytes integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.experiments.speculative import acceptance
from cluster.experiments.speculative.acceptance import Draws, Use
from cluster.experiments.speculative.steps import DraftStep, Job, RequestTrace, Work
from cluster.gpu import TOKEN_BYTES, GpuGroup, WorldLink
from programs.models import Architecture

#: Causes of ``crossover`` that would not be without shipping KV.
CAUSED_BY_KV = ("kv", "prompt kv")

#: An answer: how many proposals were accepted, and the target's own token.
ANSWER_BYTES = 2 * TOKEN_BYTES
LOGIT_BYTES = 4


@dataclass(frozen=True)
class Machines:
    """Who works: an LPU clock, a GPU group, and the two models' shapes."""

    clock_hz: float
    gpu: GpuGroup
    target: Architecture
    draft: Architecture

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one position's keys and values of the target."""
        return self.target.kv_bytes_per_token(self.gpu.kv_bytes_per_value)


@dataclass(frozen=True)
class Charge:
    """Virtual seconds, summed over requests, each from when it began; makespan: of all together.

    first: until the first token.  start: until the prompt is read on both sides and the first token
    is known there.  decode: all steps; draft, verify, link, host (token ids to the GPUs and back)
    and wait (for a machine that others use) are its parts.  Bytes: what crossed the link, by kind,
    kv_prompt before the first step; host: between the GPUs and their host.  each: (first, decode)
    of every request, in the order in which they ended.
    """

    first: float = 0.0
    start: float = 0.0
    decode: float = 0.0
    draft: float = 0.0
    verify: float = 0.0
    link: float = 0.0
    host: float = 0.0
    wait: float = 0.0
    makespan: float = 0.0
    bytes_tokens: int = 0
    bytes_logits: int = 0
    bytes_kv: int = 0
    bytes_kv_prompt: int = 0
    bytes_host: int = 0
    each: tuple[tuple[float, float], ...] = ()

    def __add__(self, other: Charge) -> Charge:
        return replace(self, **{n: v + getattr(other, n) for n, v in vars(self).items()})


def work_seconds(work: Work, machines: Machines) -> float:
    """Seconds of a drafter's work: cycles at the LPU's clock, host transfers, GPU passes."""
    seconds = work.cycles / machines.clock_hz + work.io_seconds
    for cached, tokens in work.passes:
        seconds += machines.gpu.prefill_seconds(machines.draft, tokens, cached)
    return seconds


def simulate(
    alpha: float, job: Job, request: int, prompt_tokens: int, work: Callable[[int, int, int], Work]
) -> RequestTrace:
    """A request whose proposals are accepted with probability ``alpha`` each, without any model.

    work(cached, pending, drafted): a drafter's work for a step that begins with ``pending``
    positions not in its cache.  Draws are keyed as those of real requests.
    """
    draws = Draws(job.seed, request)
    trace = RequestTrace([0] * prompt_tokens, [0] * job.max_new_tokens)
    length, pending = prompt_tokens + 1, 1
    trace.start = work(0, prompt_tokens, 0)
    while length < prompt_tokens + job.max_new_tokens:
        accepted = 0
        while accepted < job.gamma and draws.uniform(length + accepted, Use.ACCEPT) < alpha:
            accepted += 1
        done = work(length - pending, pending, job.gamma)
        trace.steps.append(DraftStep(length - 1, job.gamma, accepted, 0, done))
        # The last accepted proposal was never fed back to the draft.
        pending = 2 if accepted == job.gamma else 1
        length += accepted + 1
    return trace


def gpu_work(cached: int, pending: int, drafted: int) -> Work:
    """A GPU drafter's work for a step, as ``simulate`` asks for it."""
    first = cached + pending
    passes = [(cached, pending)] + [(first + n, 1) for n in range(max(0, drafted - 1))]
    return Work(passes=tuple(passes))


def acceptance_of(traces: Sequence[RequestTrace]) -> float | None:
    """Share of the decided proposals that were accepted; None when none was."""
    steps = [step for trace in traces for step in trace.steps]
    tested = sum(step.tested for step in steps)
    return sum(step.accepted for step in steps) / tested if tested else None


def figures(
    traces: Sequence[RequestTrace], total: Charge, baseline: Charge, gamma: int
) -> dict[str, Any]:
    """The figures of one variant; ``baseline``: GPU-only for the same tokens."""
    steps = [step for trace in traces for step in trace.steps]
    tokens = sum(len(trace.tokens) for trace in traces)
    alpha = acceptance_of(traces)
    drafted = sum(step.drafted for step in steps)
    formula = formula_speedup = None
    if alpha is not None:
        # A drafter may propose fewer than gamma (lookup): the formula is taken step by step.
        expected = [acceptance.expected_tokens(alpha, step.drafted) for step in steps]
        formula = sum(expected) / len(steps)
        later = tokens - len(traces)
        cost = (total.draft / drafted) / (baseline.decode / later) if later else 0.0
        formula_speedup = formula / (drafted / len(steps) * cost + 1.0)
    return {
        "gamma": gamma,
        "tokens": tokens,
        "steps": len(steps),
        "tokens_per_step": sum(s.emitted for s in steps) / len(steps) if steps else None,
        "acceptance": alpha,
        "formula_tokens_per_step": formula,
        "speedup": baseline.decode / total.decode if total.decode else None,
        "formula_speedup": formula_speedup,
        **seconds_of(total, tokens, len(traces), baseline),
        "kv_bytes_per_step": total.bytes_kv / len(steps) if steps else 0.0,
        "draft_cycles": sum(step.work.cycles for step in steps),
    }


def seconds_of(total: Charge, tokens: int, requests: int, baseline: Charge) -> dict[str, Any]:
    """The times and bytes of one variant; ttft and tpot are means over requests and tokens.

    tpot: decode seconds per token after each request's first.
    """
    seconds = total.makespan
    return {
        "ttft_s": total.first / requests,
        "tpot_s": total.decode / (tokens - requests),
        "end_to_end_speedup": baseline.makespan / seconds,
        "virtual_seconds": seconds,
        "start_seconds": total.start,
        "decode_seconds": total.decode,
        "tokens_per_second": tokens / seconds,
        "draft_seconds": total.draft,
        "verify_seconds": total.verify,
        "link_seconds": total.link,
        "host_seconds": total.host,
        "wait_seconds": total.wait,
        "bytes": {
            "tokens": total.bytes_tokens,
            "logits": total.bytes_logits,
            "kv": total.bytes_kv,
            "kv_prompt": total.bytes_kv_prompt,
        },
        "host_bytes": {"gpu_tokens": total.bytes_host},
    }


def crossover(
    tokens: dict[str, Any], kv: dict[str, Any], baseline: Charge, link: WorldLink
) -> dict[str, Any]:
    """Whether shipping KV turns a gain over GPU-only into a loss, and at how many bytes.

    tokens, kv: the two variants' figures over the same trace and ``link``.  cause: ``kv`` where the
    KV of each step makes decoding slower, ``prompt kv`` where the prompt's KV, shipped once, costs
    more than all steps gain; ``drafting`` and ``reading`` (of the prompt by the drafter) where the
    same is so without shipping any KV.  The break-even is of requests that share nothing: it leaves
    out that several at once also wait for each other's KV.
    """
    slack = (baseline.decode - tokens["decode_seconds"]) / tokens["steps"]
    slower = kv["decode_seconds"] > baseline.decode
    whole = baseline.makespan
    late = kv["virtual_seconds"] > whole
    cause = None
    if slower:
        cause = "drafting" if slack <= 0 else "kv"
    elif late:
        cause = "reading" if tokens["virtual_seconds"] > whole else "prompt kv"
    return {
        "gamma": kv["gamma"],
        "speedup_tokens": tokens["speedup"],
        "speedup_kv": kv["speedup"],
        "end_to_end_speedup_tokens": tokens["end_to_end_speedup"],
        "end_to_end_speedup_kv": kv["end_to_end_speedup"],
        "slower_than_gpu_only": slower,
        "slower_end_to_end": late,
        "cause": cause,
        "kv_bytes_per_step": kv["kv_bytes_per_step"],
        "break_even_kv_bytes_per_step": max(0.0, slack) * link.bytes_per_s * link.achieved_ratio,
        "prompt_kv_bytes": kv["bytes"]["kv_prompt"],
    }
