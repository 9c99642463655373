"""What a prompt costs a plan: cycles from its first token's beat to the logits of its last.

The tokens follow each other through the stages (``programs.running.feeding``), each beat being of
the bucket of its furthest token; where that is not sooner they are fed one by one.  Chunks of
tokens go through the stages together, one chunk after another or one in each stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chip.scheduling import CompileError
from programs.plans.buckets import BucketCost, bucket_costs, plan_buckets
from programs.plans.plan import Plan, check_beats, check_plan, chunk_plan
from programs.running import first_token_cycles


class PromptCost(NamedTuple):
    """Cycles of a prompt of ``tokens`` tokens on an empty machine, without the host.

    cycles: as it is fed, in ``launches`` launches; one_by_one_cycles: every token through all
    stages by itself.  chunk: tokens that go together, 1 where no chunk is sooner.
    """

    tokens: int
    cycles: int
    launches: int
    one_by_one_cycles: int
    chunk: int = 1


def prompt_costs(plan: Plan, prompts: Sequence[int], chunk: int = 1) -> list[PromptCost]:
    """What each of ``prompts``, numbers of tokens, costs; all that would run is proved legal.

    chunk: tokens that may go through the stages together.  Raises CompileError for a prompt that
    the plan's caches do not hold, ProgramFault for the first error of a program.
    """
    longest = max(prompts)
    if longest > plan.context:
        raise CompileError(
            f"a prompt of {longest:,} tokens: the plan has caches for {plan.context:,}; use "
            f"--context {longest}"
        )
    every = plan_buckets(plan.context)
    buckets = every[: 1 + sum(bucket < longest for bucket in every)]
    costs = bucket_costs(plan, buckets)
    stages = len(plan.starts)
    if stages > 1:
        check_beats(plan)
    of_chunks: tuple[Plan, list[BucketCost]] | None = None
    if chunk > 1:
        chunked = chunk_plan(plan, chunk)
        check_plan(chunked)
        of_chunks = chunked, bucket_costs(chunked, buckets)
        if stages > 1:
            check_beats(chunked)
    found = []
    for tokens in prompts:
        last = next(cost for cost in costs if tokens <= cost.positions)
        alone, before = last.cycles - last.prefill_cycles, 0
        for cost in costs:  # those that are fed without logits, and the last one's own head
            here = max(0, min(tokens, cost.positions) - before)
            alone, before = alone + here * cost.prefill_cycles, cost.positions
        launches, cycles = tokens, alone
        if stages > 1:
            beats = first_token_cycles(plan.pipeline.prompt_cycles, tokens, stages, buckets)
            if beats < alone:
                launches, cycles = stages + tokens - 1, beats
        own = PromptCost(tokens, cycles, launches, alone)
        if of_chunks is not None and tokens >= chunk:
            own = min(own, _in_chunks(*of_chunks, own, chunk), key=lambda cost: cost.cycles)
        found.append(own)
    return found


def _in_chunks(plan: Plan, costs: Sequence[BucketCost], own: PromptCost, chunk: int) -> PromptCost:
    """A prompt in chunks of ``chunk`` tokens, the last of which ends with it; own: as tokens.

    costs: of a chunk by the bucket of its last position.
    """
    tokens, stages = own.tokens, len(plan.starts)
    ends = [*range(chunk, tokens, chunk), tokens]
    of = [next(cost for cost in costs if end <= cost.positions) for end in ends]
    cycles, launches = sum(cost.prefill_cycles for cost in of[:-1]) + of[-1].cycles, len(ends)
    if stages > 1:
        buckets = [cost.positions for cost in costs]
        beats = first_token_cycles(plan.pipeline.prompt_cycles, tokens, stages, buckets, chunk)
        if beats < cycles:
            cycles, launches = beats, stages + len(ends) - 1
    return PromptCost(tokens, cycles, launches, own.one_by_one_cycles, chunk)
