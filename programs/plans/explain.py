"""Why the passes of a plan's block are where they are: what each waited for, and who had it."""

from __future__ import annotations

from chip.scheduling import PlacedPass
from programs.decoder import ATTENTION
from programs.plans.plan import Plan


def explain_block(plan: Plan, kind: str) -> list[PlacedPass]:
    """The passes of the first attention, ffn or head of the plan; x is readable at cycle 0."""
    pipeline = plan.pipeline
    if kind == "head":
        return pipeline.code[-1].explained(plan.context, None)
    code, variant = next(
        (code, variant)
        for stage, code in zip(pipeline.stages, pipeline.code, strict=True)
        for block, variant in zip(stage.blocks, code.places.variant_of, strict=True)
        if (block.kind == ATTENTION) == (kind == "attention")
    )
    return code.explained(plan.context, code.places.variants[variant])
