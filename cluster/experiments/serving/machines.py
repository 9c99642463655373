"""The machines of an experiment from what a user names: GPU groups, LPU pipelines, their costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from chip.spec import ChipSpec, load_chip_spec
from cluster.experiments.serving.belt import Belt, belt_of, belt_of_plan, given_belt
from programs.decoder import check_parallelism
from programs.models import SHIPPED, Architecture, find_model

MOST_COMPILED = 2048
"""Positions compiled for when the user names none."""
GIVEN_CONTEXT = 1 << 17


@dataclass(frozen=True)
class LpuChoice:
    """What a user says about LPUs; None where nothing was said.

    chips: of one pipeline; None: 8, or of a model without weights the fewest that hold it.
    context: positions.  cycles_per_token: a constant instead of a compiled program.
    interval_cycles: see ``Belt``.
    """

    chips: int | None = 8
    chip: str = "groq-lpu-1"
    dtype: str = "int8"
    context: int | None = None
    cycles_per_token: int | None = None
    interval_cycles: int | None = None


def lpu_belt(model: str, choice: LpuChoice) -> Belt:
    """The costs of an LPU pipeline for ``model``: compiled now and exact, or the given constant.

    Of a model by name without weights, the compiled cycles of its plan.
    """
    if choice.cycles_per_token is not None:
        return given_belt(
            choice.cycles_per_token,
            load_chip_spec(choice.chip).clock_hz,
            GIVEN_CONTEXT if choice.context is None else choice.context,
            choice.interval_cycles,
        )
    if find_model(model).checkpoint is None:
        return _planned_belt(model, choice)
    if model in SHIPPED:
        return _shipped_belt(model, choice, load_chip_spec(choice.chip))
    return _compiled_belt(model, choice)


@lru_cache(maxsize=8)
def _shipped_belt(model: str, choice: LpuChoice, spec: ChipSpec) -> Belt:
    """``_compiled_belt`` of files that do not change: many loads on one machine compile once.

    spec: what the choice's chip means now, for its file may change.
    """
    return _compiled_belt(model, choice)


def _compiled_belt(model: str, choice: LpuChoice) -> Belt:
    from programs.decoder import compile_model
    from programs.models import open_model

    checkpoint = open_model(model)
    context = choice.context or min(checkpoint.config.max_position, MOST_COMPILED)
    tp, pp = check_parallelism(choice.chips)
    artifact = compile_model(
        checkpoint, tp=tp, dtype=choice.dtype, context=context, chip=choice.chip, pp=pp
    )
    return belt_of(artifact, choice.interval_cycles)


def _planned_belt(model: str, choice: LpuChoice) -> Belt:
    """The costs of a model without weights: its plan, compiled and checked for every bucket."""
    from programs.models import config_of
    from programs.plans import bucket_costs, check_plan, compile_plan

    name, config = config_of(model)
    plan = compile_plan(
        name,
        config,
        load_chip_spec(choice.chip),
        dtype=choice.dtype,
        chips=choice.chips,
        context=choice.context or min(config.max_position, MOST_COMPILED),
    )
    check_plan(plan)
    return belt_of_plan(plan, bucket_costs(plan), choice.interval_cycles)


def ffn_cycles_per_layer(belt: Belt, arch: Architecture) -> int:
    """An estimate of one layer's FFN cycles: the share of its weights in a token's cycles.

    cycles of the shortest decode program x FFN weights read / all weights read / layers.
    """
    read = arch.parameters_read(1)
    others = arch.layers * arch.attention_parameters + arch.embedding_parameters
    return max(round(belt.decode_cycles[0] * (1 - others / read) / arch.layers), 1)
