"""A plan of more sequences than stages: every stage takes some of them at a time."""

from __future__ import annotations

from dataclasses import replace

from chip.scheduling import CompileError
from programs.plans.plan import Plan, check_words


def batch_plan(plan: Plan) -> tuple[Plan | None, str]:
    """The same stages with a token of as many sequences at once as it takes to have all of the
    plan's in flight; and why there is none although there are more sequences than stages.
    """
    stages = len(plan.starts)
    each = -(-plan.batch // stages)
    if each < 2:
        return None, ""
    try:
        pipeline = plan.pipeline.in_batches(each)
        starts = pipeline.starts(plan.context)
        batched = replace(plan, pipeline=pipeline, starts=starts, checked=False)
        check_words(batched, f"a batch of {each} sequences")
    except CompileError as error:
        return None, f"--batch {plan.batch}: {error}"
    return batched, ""
