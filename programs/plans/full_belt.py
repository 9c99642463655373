"""What a plan's machine gives with all stages at work, and whether it holds so many sequences."""

from __future__ import annotations

from dataclasses import dataclass

from programs.decoder import sequences_that_fit
from programs.plans.plan import Plan


@dataclass(frozen=True)
class FullBelt:
    """A conveyor belt with a sequence at every stage, or with the plan's own if these are more.

    per_user, total: tokens per second of one sequence and of all.  that_fit: sequences of the
    plan's context that its stages have caches for, counted up to ``sequences``.  Of batches, all
    groups of which are full: a stage takes one of them a beat.  Otherwise it takes one sequence a
    beat, so more sequences than stages take turns and give no more tokens in all.
    """

    sequences: int
    that_fit: int
    per_user: float
    total: float


def full_belt(plan: Plan, batched: Plan | None = None) -> FullBelt:
    """The full belt of ``plan``; batched: the one of ``batch_plan``, if it is what serves."""
    if batched is not None:
        count, each = batched.pipeline.places.sequences, batched.pipeline.places.chunk
        total = each * plan.spec.clock_hz / batched.interval_cycles
        return FullBelt(count, count, total / count, total)
    stages = plan.pipeline.stages
    sequences = max(plan.batch, len(stages))
    held = plan_room(plan, sequences)
    total = plan.spec.clock_hz / plan.interval_cycles
    return FullBelt(sequences, held, total / sequences, total)


def plan_room(plan: Plan, most: int) -> int:
    """Sequences of the plan's context, ``most`` or fewer, that its stages have caches for."""
    stages = plan.pipeline.stages
    return sequences_that_fit(stages, plan.layout, plan.spec, plan.dtype, plan.context, most)
