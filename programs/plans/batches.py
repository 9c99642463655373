"""A plan of more sequences than stages: every stage takes some of them at a time."""

from __future__ import annotations

from dataclasses import replace

from chip.scheduling import CompileError
from programs.artifact import MOST_CHUNK
from programs.plans.plan import Plan, check_words


def batch_plan(plan: Plan) -> tuple[Plan | None, str]:
    """The same stages with a token of several sequences at once; and why not of more, or of none.

    As many at once as it takes to have all of the plan's in flight.  Where a stage cannot take so
    many there are twice the groups, of half as many, which take turns; and so on down to two.
    """
    stages = len(plan.starts)
    turns = max(stages, -(-plan.batch // MOST_CHUNK))
    refused = ""
    while (each := -(-plan.batch // turns)) > 1:
        try:
            pipeline = plan.pipeline.in_batches(each)
            starts = pipeline.starts(plan.context)
            batched = replace(plan, pipeline=pipeline, starts=starts, checked=False)
            check_words(batched, f"a batch of {each} sequences")
        except CompileError as error:
            refused = refused or f"--batch {plan.batch}: {error}"
            turns *= 2
        else:
            return batched, refused
    return None, refused
