"""The machines of an experiment from what a user names: GPU groups, LPU pipelines, their costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from chip.scheduling import CompileError
from chip.spec import ChipSpec, load_chip_spec
from cluster.errors import InputError
from cluster.experiments.serving.belt import Belt, belt_of, belt_of_plan, given_belt
from programs.decoder import NODE, check_parallelism
from programs.models import SHIPPED, Architecture, find_model

if TYPE_CHECKING:
    from programs.plans import Plan

MOST_COMPILED = 2048
"""Positions compiled for when the user names none, at most; where they follow the requests, at
least ``LEAST_COMPILED``."""
LEAST_COMPILED = 128
GIVEN_CONTEXT = 1 << 17


@dataclass(frozen=True)
class LpuChoice:
    """What a user says about LPUs; None where nothing was said.

    chips: of one pipeline; None: 8, or of a model without weights the fewest that hold it.
    context: positions.  cycles_per_token: a constant instead of a compiled program.
    interval_cycles: between two tokens that enter, instead of the compiled belt's; the chips hold
    as many requests as they have room for caches of, whoever gives it.  overlap: a
    pipeline of several stages takes tokens of several requests, as many as its chips have room
    for caches of.  longest: positions of the longest request, for which such chips are compiled
    where no context is named.  chunk: tokens of a prompt that share each install of weights, on
    pipelines that a request has alone.
    """

    chips: int | None = 8
    chip: str = "groq-lpu-1"
    dtype: str = "int8"
    context: int | None = None
    cycles_per_token: int | None = None
    interval_cycles: int | None = None
    overlap: bool = True
    longest: int | None = None
    chunk: int = 1

    def __post_init__(self) -> None:
        if self.chunk > 1 and self.cycles_per_token is not None:
            raise InputError(
                f"--chunk {self.chunk} with --lpu-cycles-per-token: what a chunk takes is "
                "compiled; leave one out"
            )
        if self.chunk > 1 and self.interval_cycles is not None:
            raise InputError(
                f"--chunk {self.chunk} with --lpu-interval-cycles: an interval is of tokens that "
                "enter one at a time; leave one out"
            )
        if not self.overlap and self.interval_cycles is not None:
            raise InputError(
                "--no-overlap with --lpu-interval-cycles: an interval is of tokens that overlap; "
                "leave one out"
            )

    @property
    def compiles_belt(self) -> bool:
        """Whether the interval of a full belt is wanted."""
        return self.overlap and self.interval_cycles is None

    def positions(self, most: int) -> int:
        """Those to compile for, of a model made for ``most``.

        Caches for several requests take room, so they are not made longer than any request needs.
        """
        limit = min(most, MOST_COMPILED)
        if self.context is not None:
            return self.context
        if self.longest is None or not self.overlap or (self.chips or 0) <= NODE:
            return limit
        return min(1 << max(self.longest - 1, LEAST_COMPILED - 1).bit_length(), limit)


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
    if choice.compiles_belt and (choice.chips or 0) > NODE:
        _refuse_chunks(choice)  # before anything is compiled
    if find_model(model).checkpoint is None:
        belt = _planned_belt(model, choice)
    elif model in SHIPPED:
        belt = _shipped_belt(model, choice, load_chip_spec(choice.chip))
    else:
        belt = _compiled_belt(model, choice)
    if belt.slots > 1:
        _refuse_chunks(choice)
    return belt


def _refuse_chunks(choice: LpuChoice) -> None:
    """Of pipelines whose stages several requests share."""
    if choice.chunk > 1:
        raise InputError(
            f"--chunk {choice.chunk}: tokens of several requests are in a pipeline of this pool, "
            "one a slot; add --no-overlap"
        )


@lru_cache(maxsize=8)
def _shipped_belt(model: str, choice: LpuChoice, spec: ChipSpec) -> Belt:
    """``_compiled_belt`` of files that do not change: many loads on one machine compile once.

    spec: what the choice's chip means now, for its file may change.
    """
    return _compiled_belt(model, choice)


def _compiled_belt(model: str, choice: LpuChoice) -> Belt:
    from programs.decoder import belt_intervals, belt_room, compile_model, partition_model
    from programs.models import open_model

    checkpoint = open_model(model)
    context = choice.positions(checkpoint.config.max_position)
    tp, pp = check_parallelism(choice.chips)
    artifact = compile_model(
        checkpoint,
        tp=tp,
        dtype=choice.dtype,
        context=context,
        chip=choice.chip,
        pp=pp,
        chunk=choice.chunk,
    )
    for places in _places(pp if choice.compiles_belt else 1):
        parts = partition_model(checkpoint, tp, choice.dtype)
        try:
            intervals = belt_intervals(parts, artifact.spec, context, pp, places)
        except CompileError:  # no room for so many caches
            continue
        return belt_of(artifact, None, intervals, places)
    belt = belt_of(artifact, choice.interval_cycles)
    if choice.interval_cycles is None:
        return belt
    parts = partition_model(checkpoint, tp, choice.dtype)
    room = belt_room(parts, artifact.spec, belt.context, pp, belt.slots)
    return replace(belt, most_places=room)


def _places(stages: int) -> range:
    """How many requests to make room for: one in every stage, else fewer, in eight steps."""
    return range(stages, 1, -max(1, stages // 8))


def _planned_belt(model: str, choice: LpuChoice) -> Belt:
    """The costs of a model without weights: its plan, compiled and checked for every bucket."""
    from programs.plans import bucket_costs, check_plan, chunk_costs, plan_room

    plan = _plan_with_room(model, choice)
    check_plan(plan)
    chunk = choice.chunk
    together = chunk_costs(plan, chunk) if chunk > 1 and plan.batch == 1 else None
    belt = belt_of_plan(plan, bucket_costs(plan), choice.interval_cycles, chunk, together)
    if choice.interval_cycles is None:
        return belt
    return replace(belt, most_places=plan_room(plan, belt.slots))


def _plan_with_room(model: str, choice: LpuChoice) -> Plan:
    """A plan with caches for a request in every stage, or for as many as there is room for."""
    from programs.models import config_of
    from programs.plans import compile_plan

    name, config = config_of(model)
    spec = load_chip_spec(choice.chip)
    context = choice.positions(config.max_position)

    def compiled(chips: int | None, batch: int) -> Plan:
        return compile_plan(
            name, config, spec, dtype=choice.dtype, chips=chips, context=context, batch=batch
        )

    alone = compiled(choice.chips, 1)
    if not choice.compiles_belt:
        return alone
    for places in _places(len(alone.starts)):  # groups of chips without a stage have no request
        try:
            return compiled(alone.chips, places)
        except CompileError:  # no room for so many caches
            continue
    return alone


def ffn_cycles_per_layer(belt: Belt, arch: Architecture) -> int:
    """An estimate of one layer's FFN cycles: the share of its weights in a token's cycles.

    cycles of the shortest decode program x FFN weights read / all weights read / layers.
    """
    read = arch.parameters_read(1)
    others = arch.layers * arch.attention_parameters + arch.embedding_parameters
    return max(round(belt.decode_cycles[0] * (1 - others / read) / arch.layers), 1)
