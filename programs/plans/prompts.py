"""What a prompt costs a plan: cycles from its first token's beat to the logits of its last.

The tokens follow each other through the stages (``programs.running.feeding``), each beat being of
the bucket of its furthest token; where that is not sooner they are fed one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chip.scheduling import CompileError
from programs.plans.buckets import bucket_costs, plan_buckets
from programs.plans.plan import Plan, check_beats
from programs.running import first_token_cycles


class PromptCost(NamedTuple):
    """Cycles of a prompt of ``tokens`` tokens on an empty machine, without the host.

    cycles: as it is fed, in ``launches`` launches; one_by_one_cycles: every token through all
    stages by itself.
    """

    tokens: int
    cycles: int
    launches: int
    one_by_one_cycles: int


def prompt_costs(plan: Plan, prompts: Sequence[int]) -> list[PromptCost]:
    """What each of ``prompts``, numbers of tokens, costs; all that would run is proved legal.

    Raises CompileError for a prompt that the plan's caches do not hold, ProgramFault for the first
    error of a program.
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
        found.append(PromptCost(tokens, cycles, launches, alone))
    return found
