"""What a prompt costs a plan: cycles from its first token's beat to the logits of its last.

It is fed as a compiled model is (``programs.running.feeding``): its tokens one by one, or one after
another through the stages, or chunks of them, whichever takes the least time with the host's
transfers; each launch is of the bucket of its furthest token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chip.scheduling import CompileError
from programs.decoder import chunk_entry, input_planes, prompt_entry, token_entry
from programs.plans.buckets import bucket_costs, plan_buckets
from programs.plans.plan import Plan, check_beats, check_plan, chunk_plan
from programs.running import Feeder


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


class PromptCosts(NamedTuple):
    """What prompts cost.  pieces: distinct pieces of programs of chunks that were checked.

    refused: why there are no programs of chunks although they were asked for; empty otherwise.
    """

    costs: list[PromptCost]
    pieces: int = 0
    refused: str = ""


def prompt_costs(plan: Plan, prompts: Sequence[int], chunk: int = 1) -> PromptCosts:
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
    cycles = _cycles(plan, buckets, 1)
    pieces, refused = 0, ""
    if 1 < chunk <= longest:
        try:
            together, pieces = _chunk_cycles(plan, buckets, chunk)
            cycles |= together
        except CompileError as error:
            chunk, refused = 1, f"--chunk {chunk}: {error}"
    feeder = _feeder(plan, buckets, chunk, cycles)
    costs = []
    for tokens in prompts:
        alone = feeder.launches(feeder.one_by_one(0, tokens))
        fed = feeder.launches(feeder.way(0, tokens))
        costs.append(
            PromptCost(
                tokens,
                sum(cycles[name] for name, _ in fed),
                len(fed),
                sum(cycles[name] for name, _ in alone),
                max(together for _, together in fed),
            )
        )
    return PromptCosts(costs, pieces, refused)


def _feeder(plan: Plan, buckets: Sequence[int], chunk: int, cycles: dict[str, int]) -> Feeder:
    """How a prompt is fed to a plan with programs of these cycles."""
    spec, inputs = plan.spec, input_planes(plan.pipeline.code[-1].places).values()
    words = sum(words for planes in inputs for _, _, words in planes)
    return Feeder(
        stages=len(plan.starts),
        context=plan.context,
        buckets=buckets,
        chunk=chunk,
        cycles=cycles,
        clock_hz=spec.clock_hz,
        launch_seconds=spec.pcie_latency_s,
        token_seconds=spec.lanes * words / spec.pcie_bytes_per_s,
    )


def chunk_costs(plan: Plan, chunk: int) -> dict[str, int]:
    """Cycles of every entry point for a chunk of so many tokens, in every bucket; all proved legal.

    Raises CompileError where there can be no such programs, ProgramFault for an error of one.
    """
    return _chunk_cycles(plan, plan_buckets(plan.context), chunk)[0]


def _chunk_cycles(plan: Plan, buckets: Sequence[int], chunk: int) -> tuple[dict[str, int], int]:
    """Cycles by entry point for a chunk, and the distinct pieces of programs that were checked."""
    chunked = chunk_plan(plan, chunk)
    pieces = check_plan(chunked)
    return _cycles(chunked, buckets, chunk), pieces


def _cycles(plan: Plan, buckets: Sequence[int], chunk: int) -> dict[str, int]:
    """Of every entry point for a token or a chunk that feeds a prompt; all are proved legal.

    plan: with room for the chunk.
    """
    found = {}
    for cost in bucket_costs(plan, buckets):
        for end, own in ((False, cost.prefill_cycles), (True, cost.cycles)):
            alone = token_entry(cost.positions, not end)
            found[alone if chunk == 1 else chunk_entry(cost.positions, end)] = own
    if len(plan.starts) > 1:
        check_beats(plan)
        for positions in buckets:
            both = plan.pipeline.prompt_cycles(positions)
            for end, own in zip((False, True), both, strict=True):
                beat = prompt_entry(positions, end)
                found[beat if chunk == 1 else chunk_entry(positions, end, together=True)] = own
    return found
