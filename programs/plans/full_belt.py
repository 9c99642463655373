"""What a plan's machine gives with a sequence at every stage, and whether it holds so many."""

from __future__ import annotations

from dataclasses import dataclass

from programs.decoder import sequences_that_fit
from programs.plans.plan import Plan


@dataclass(frozen=True)
class FullBelt:
    """A conveyor belt with a sequence at every stage, or with the plan's own if these are more.

    per_user, total: tokens per second of one sequence and of all.  that_fit: sequences of the
    plan's context that its stages have caches for, counted up to ``sequences``.  More sequences
    than stages take turns and give no more tokens in all: a kernel serves one sequence a beat.
    """

    sequences: int
    that_fit: int
    per_user: float
    total: float


def full_belt(plan: Plan) -> FullBelt:
    """The full belt of ``plan``."""
    stages = plan.pipeline.stages
    sequences = max(plan.batch, len(stages))
    held = plan_room(plan, sequences)
    total = plan.spec.clock_hz / plan.interval_cycles
    return FullBelt(sequences, held, total / sequences, total)


def plan_room(plan: Plan, most: int) -> int:
    """Sequences of the plan's context, ``most`` or fewer, that its stages have caches for."""
    stages = plan.pipeline.stages
    return sequences_that_fit(stages, plan.layout, plan.spec, plan.dtype, plan.context, most)
