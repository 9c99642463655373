"""What a token of a plan costs at its own length: cycles for every bucket of positions.

A schedule scores every position of its bucket, so a token at position 100 of a plan for 4,096
need not pay for 4,096: the plan's blocks are scheduled for shorter buckets too, over the same
places in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chip.scheduling import CompileError
from programs.plans.plan import Plan, check_bodies

#: The shortest bucket of a plan, in positions.
LEAST_BUCKET = 128


class BucketCost(NamedTuple):
    """Cycles of a token at a position below ``positions``.

    cycles: through all stages, with the logits; prefill_cycles: without the head;
    interval_cycles: of a beat of the full belt.
    """

    positions: int
    cycles: int
    prefill_cycles: int
    interval_cycles: int


def plan_buckets(context: int) -> list[int]:
    """Powers of two from 128 to below ``context``, then ``context`` itself; ascending."""
    doubled = (LEAST_BUCKET << n for n in range(context.bit_length()))
    return [*(bucket for bucket in doubled if bucket < context), context]


def bucket_costs(
    plan: Plan, buckets: Sequence[int] | None = None, *, check: bool = True
) -> list[BucketCost]:
    """What a token costs in each of ``buckets`` (default: ``plan_buckets``), ascending.

    check: the blocks of every bucket but the plan's own, which is ``check_plan``'s, are proved
    legal.  Raises CompileError for a bucket that the plan's caches do not hold, ProgramFault for
    the first error of a program.
    """
    costs = []
    for positions in buckets or plan_buckets(plan.context):
        if not 1 <= positions <= plan.context:
            raise CompileError(
                f"a bucket of {positions:,} positions: the plan has caches for {plan.context:,}; "
                "use 1 up to so many"
            )
        if check and positions != plan.context:
            check_bodies(plan, positions)
        pipeline = plan.pipeline
        whole, without = pipeline.end(positions), pipeline.end(positions, head=False)
        costs.append(BucketCost(positions, whole, without, pipeline.beat(positions)[2]))
    return sorted(costs)
