"""LPU pipelines in virtual time: exact cycles per token, and places on a conveyor belt.

A pipeline without overlap works on one request at a time, from its first prompt token to its last
answer token; the prompt's tokens follow each other through the stages, or go through them in
chunks, where that is sooner.  With an *initiation interval* a token enters every so many cycles,
whosever it is: ``slots`` has who enters when.  On a compiled belt the stages go in lockstep, so a
token takes as many intervals as there are stages, and no more tokens are in flight than stages;
tokens of prompts enter no faster than the host brings them.  The queue is first come, first served.

Cycles and intervals are exact where they come from a compiled program; either may be a figure that
the user gives.  Times are integers of cycles; what leaves this module is in picoseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.spec import ChipSpec
from cluster.errors import InputError
from cluster.experiments.serving.arrivals import PS
from programs.artifact import Artifact, Bindings, decoder_of
from programs.decoder import prompt_entry, token_entry
from programs.plans import BucketCost, Plan
from programs.running import Feeder

I64 = NDArray[np.int64]

MAX_CONTEXT = 1 << 20
MAX_CYCLES = 10**9
"""Cycles of one token at most: a second."""
MAX_PLACES = 4096
"""Places of one pipeline."""


class PromptWork(NamedTuple):
    """Launches that read a prompt, their cycles, those of the host's transfers before them, and the
    tokens that these bring: more than the prompt has where a chunk feeds some again, or where
    stages work for a prompt that has no token left to enter.
    """

    launches: int
    cycles: int
    host_cycles: int
    tokens: int


@dataclass(frozen=True)
class Belt:
    """What a token costs on a pipeline of LPUs.

    buckets: ascending numbers of positions; a token at a position below a bucket costs that
    bucket's cycles.  prefill_cycles, decode_cycles: per bucket, without and with the logits.
    host_cycles: the host's transfers around a token, without and with the logits, rounded up.
    source: where the cycles come from, for the report.
    interval_cycles: given cycles between two tokens; None: those of ``intervals``, or no overlap.
    host_bytes: to the chips for every token, and back with logits; None where not known.
    stages: of the pipeline; prompt_cycles: per bucket a beat of one prompt's tokens and the last
    stage alone, where known.  intervals: per bucket a beat of the full belt, compiled; empty where
    nothing overlaps.  most_places: requests whose caches the chips hold.  most_positions: of a
    request, which may be fewer than there are programs for.  chunk: tokens of a prompt that share
    each install of weights, 1 for none; chunk_cycles: of the programs that take so many, by entry
    point; chunk_host_cycles: of the host's transfers before a launch of such a program, rounded up
    (without chunks that is one token's).
    """

    clock_hz: int
    buckets: tuple[int, ...]
    prefill_cycles: tuple[int, ...]
    decode_cycles: tuple[int, ...]
    host_cycles: tuple[int, int]
    source: str
    interval_cycles: int | None = None
    host_bytes: tuple[int, int] | None = None
    stages: int = 1
    prompt_cycles: tuple[tuple[int, int], ...] = ()
    intervals: tuple[int, ...] = ()
    most_places: int = MAX_PLACES
    most_positions: int = MAX_CONTEXT
    chunk: int = 1
    chunk_cycles: Mapping[str, int] = field(default_factory=dict)
    chunk_host_cycles: int = 0

    def __post_init__(self) -> None:
        for value in (*self.prefill_cycles, *self.decode_cycles):
            if not 1 <= value <= MAX_CYCLES:
                raise InputError(f"LPU cycles per token {value}: use 1 to {MAX_CYCLES:,}")
        if self.buckets[-1] > MAX_CONTEXT:
            raise InputError(f"LPU context {self.buckets[-1]}: use at most {MAX_CONTEXT:,}")
        if self.interval_cycles is not None and not (
            self.turn / MAX_PLACES <= self.interval_cycles <= self.turn
        ):
            raise InputError(
                f"LPU initiation interval {self.interval_cycles}: use "
                f"{-(-self.turn // MAX_PLACES):,} to {self.turn:,} cycles, the longest "
                "token with its transfers"
            )

    @property
    def context(self) -> int:
        """Positions a request may have."""
        return min(self.buckets[-1], self.most_positions)

    @property
    def interval(self) -> int | None:
        """Cycles between two tokens that enter; None: nothing overlaps."""
        return self.interval_cycles or (self.intervals[-1] if self.intervals else None)

    @property
    def interval_source(self) -> str:
        """``given``, ``compiled``, or ``none`` where nothing overlaps."""
        if self.interval_cycles is not None:
            return "given"
        return "compiled" if self.intervals else "none"

    @property
    def exact(self) -> bool:
        """Whether all cycles come from a compiled program and nothing was given."""
        return self.source.startswith("compiled") and self.interval_cycles is None

    def up_to(self, positions: int) -> Belt:
        """The belt for requests of at most ``positions``: a schedule for longer ones is not run."""
        count = 1 + sum(bucket < positions for bucket in self.buckets[:-1])
        shorter = replace(
            self,
            buckets=self.buckets[:count],
            prefill_cycles=self.prefill_cycles[:count],
            decode_cycles=self.decode_cycles[:count],
            prompt_cycles=self.prompt_cycles[:count],
            intervals=self.intervals[:count],
            interval_cycles=None,
        )
        if self.interval_cycles is None:
            return shorter
        return replace(shorter, interval_cycles=min(self.interval_cycles, shorter.turn))

    @property
    def turn(self) -> int:
        """Cycles of the longest token with its transfers; an answer's tokens enter one per turn."""
        before, after = self.host_cycles
        return max(
            max(max(self.prefill_cycles), self.belt_cycles) + before,
            max(max(self.decode_cycles), self.belt_cycles) + after,
        )

    @property
    def belt_cycles(self) -> int:
        """Cycles of a token on the compiled belt at least: its stages go in lockstep, one a beat.

        0 where nothing overlaps, and where the interval was given: that says nothing of stages.
        """
        compiled = self.interval_cycles is None and self.stages > 1
        return self.stages * self.intervals[-1] if compiled and self.intervals else 0

    @property
    def slots(self) -> int:
        """Tokens that may enter in a turn: compiled, one a stage, however long the host takes."""
        if self.interval is None:
            return 1
        if self.interval_cycles is None:
            return self.stages
        return max(1, self.turn // self.interval)

    @property
    def feeding_cycles(self) -> int:
        """Cycles between tokens of prompts at least: an interval, or the host's transfer of one."""
        return max(self.interval or 0, self.host_cycles[0])

    @property
    def places(self) -> int:
        """Requests in flight in one pipeline."""
        return min(self.slots, self.most_places)

    @cached_property
    def _decode(self) -> I64:
        """Cycles of launches with logits of all positions before, int64 [context + 1]."""
        sizes = np.diff((0, *self.buckets))
        per_position = np.repeat(np.array(self.decode_cycles, np.int64), sizes)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(per_position)])

    @cached_property
    def _feeder(self) -> Feeder:
        """The ways to feed a prompt to a pipeline that it has alone."""
        cycles = dict(self.chunk_cycles)
        for bucket, prefill, decode in zip(
            self.buckets, self.prefill_cycles, self.decode_cycles, strict=True
        ):
            cycles[token_entry(bucket, True)] = prefill
            cycles[token_entry(bucket, False)] = decode
        for bucket, both in zip(self.buckets, self.prompt_cycles, strict=False):
            for end in (False, True):
                cycles[prompt_entry(bucket, end)] = both[end]
        alone = self.host_cycles[0]
        each = (self.chunk_host_cycles - alone) / (self.chunk - 1) if self.chunk > 1 else 0.0
        return Feeder(
            stages=self.stages,
            context=self.most_positions,
            buckets=self.buckets,
            chunk=self.chunk,
            cycles=cycles,
            clock_hz=self.clock_hz,
            launch_seconds=(alone - each) / self.clock_hz,
            token_seconds=each / self.clock_hz,
        )

    @cached_property
    def _prompts(self) -> dict[int, PromptWork]:
        """What prompts took that were asked for, by their tokens."""
        return {}

    def fits(self, prompt: I64, output: I64) -> NDArray[np.bool_]:
        """Whether requests fit the context: the last answer token is never fed."""
        return np.asarray(prompt + output - 1 <= self.context)

    def crossing(self, fed: int, logits: int) -> dict[str, int | None]:
        """Bytes between chips and host, by ``HOST_KINDS``: tokens fed, and those with logits."""
        if self.host_bytes is None:
            return {"lpu_inputs_in": None, "lpu_logits_out": None}
        into, out = self.host_bytes
        return {"lpu_inputs_in": into * fed, "lpu_logits_out": out * logits}

    def reading(self, prompt: int) -> int:
        """Cycles until the logits of a prompt's last token, nobody else being in the pipeline."""
        work, (before, after) = self.prompt_work(prompt), self.host_cycles
        return work.cycles + work.host_cycles + after - before

    def prompt_work(self, prompt: int) -> PromptWork:
        """What reads a prompt of so many tokens, by the rule of ``programs.running.Feeder``."""
        if prompt not in self._prompts:
            launches = self._feeder.tally(self._feeder.way(0, prompt))
            self._prompts[prompt] = PromptWork(
                launches.total(),
                sum(count * self._feeder.cycles[name] for (name, _), count in launches.items()),
                sum(
                    count * (self.host_cycles[0] if tokens == 1 else self.chunk_host_cycles)
                    for (_, tokens), count in launches.items()
                ),
                sum(count * tokens for (_, tokens), count in launches.items()),
            )
        return self._prompts[prompt]

    def fed(self, prompt: int, output: int) -> int:
        """Tokens that the host brings to a pipeline for a request; its last one is never fed."""
        read = prompt if self.slots > 1 else self.prompt_work(prompt).tokens
        return read + output - 1

    def out(self, position: int) -> int:
        """Cycles of one token with logits, transfers included; on a belt of its stages' beats."""
        return max(self.answers(position, 1), self.belt_cycles + self.host_cycles[1])

    def answers(self, prompt: int, answers: int) -> int:
        """Cycles of ``answers`` tokens one after another, the first of them after ``prompt``."""
        decode = self._decode
        return int(decode[prompt + answers] - decode[prompt]) + answers * self.host_cycles[1]


def cycles_to_ps(cycles: int, clock_hz: int) -> int:
    """Picoseconds of a number of cycles, to the nearest."""
    return (2 * cycles * PS + clock_hz) // (2 * clock_hz)


def ps_to_cycles(ps: int, clock_hz: int) -> int:
    """The first cycle that begins at or after a time."""
    return -(-ps * clock_hz // PS)


def host_bytes(artifact: Artifact) -> tuple[int, int]:
    """Bytes that the host puts into the chips for a token, and takes out with the logits."""
    bindings, facts = Bindings.of(artifact), decoder_of(artifact)
    into = sum(320 * words for planes in bindings.inputs.values() for _, _, words in planes)
    out = 4 * 320 * bindings.outputs["logits"][0][2]
    return into // facts.rows, out // facts.logit_rows


def host_seconds(artifact: Artifact) -> tuple[float, float]:
    """Seconds of the host's transfers around a prefill and a decode launch, by the PCIe model.

    The same sums that ``programs.decoder.host.Host`` charges for ``prepare`` and ``read_logits``.
    """
    return _transfers(artifact.spec, host_bytes(artifact))


def _transfers(spec: ChipSpec, host_bytes: tuple[int, int]) -> tuple[float, float]:
    """As ``host_seconds``, of bytes as ``host_bytes`` gives them."""
    into, out = host_bytes
    before = spec.pcie_latency_s + into / spec.pcie_bytes_per_s
    return before, before + spec.pcie_latency_s + out / spec.pcie_bytes_per_s


def _host_cycles(spec: ChipSpec, host_bytes: tuple[int, int], chunk: int) -> tuple[int, int, int]:
    """Cycles of the host's transfers around a token, without and with logits, and before a chunk.

    host_bytes: to the chips for a token, and back with logits.
    """
    before, after = _transfers(spec, host_bytes)
    together = spec.pcie_latency_s + chunk * host_bytes[0] / spec.pcie_bytes_per_s
    # A whole number of cycles, as 20.266667 us at 900 MHz, must not become one more by rounding.
    first, second, third = (
        math.ceil(seconds * spec.clock_hz - 1e-6) for seconds in (before, after, together)
    )
    return first, second, third


def belt_of(
    artifact: Artifact,
    interval_cycles: int | None = None,
    intervals: Sequence[int] = (),
    places: int = MAX_PLACES,
) -> Belt:
    """The costs of a compiled decoder: exact cycles, and host transfers by the PCIe model.

    intervals, places: of a belt of the same chips, see ``Belt``.
    """
    facts = decoder_of(artifact)
    buckets = facts.buckets
    cycles = artifact.predicted_cycles
    crossing = host_bytes(artifact)
    before, after, together = _host_cycles(artifact.spec, crossing, facts.chunk)
    return Belt(
        artifact.spec.clock_hz,
        buckets,
        tuple(cycles[token_entry(bucket, True)] for bucket in buckets),
        tuple(cycles[token_entry(bucket, False)] for bucket in buckets),
        (before, after),
        "compiled: exact cycles per token",
        interval_cycles,
        crossing,
        facts.pp,
        tuple(
            (cycles[prompt_entry(bucket, False)], cycles[prompt_entry(bucket, True)])
            for bucket in buckets
            if facts.pp > 1
        ),
        tuple(intervals),
        places,
        facts.context,
        facts.chunk,
        {name: count for name, count in cycles.items() if name.startswith("chunk")},
        together,
    )


def belt_of_plan(
    plan: Plan,
    costs: Sequence[BucketCost],
    interval_cycles: int | None = None,
    chunk: int = 1,
    chunk_cycles: Mapping[str, int] | None = None,
) -> Belt:
    """The costs of a plan: exact cycles of its buckets, the host by the PCIe model.

    costs: of ``programs.plans.bucket_costs``; chunk_cycles: of ``programs.plans.chunk_costs``.
    A plan for several sequences has that many places.
    """
    tiles, spec = plan.layout.x_tiles, plan.spec
    places = plan.pipeline.code[0].places
    rows = 2 * plan.layout.rope_tables
    into = 320 * (4 * (tiles + rows) + places.map_words)  # x, rope rows; maps and masks
    out = 4 * 320 * plan.layout.vocab_blocks
    before, after, together = _host_cycles(spec, (into, out), chunk)
    return Belt(
        spec.clock_hz,
        tuple(cost.positions for cost in costs),
        tuple(cost.prefill_cycles for cost in costs),
        tuple(cost.cycles for cost in costs),
        (before, after),
        "compiled: exact cycles per token, of a plan without weights",
        interval_cycles,
        (into, out),
        len(plan.starts),
        tuple(plan.pipeline.prompt_cycles(cost.positions) for cost in costs),
        tuple(cost.interval_cycles for cost in costs if plan.batch > 1),
        plan.batch if plan.batch > 1 else MAX_PLACES,
        plan.context,
        chunk,
        chunk_cycles or {},
        together,
    )


def given_belt(
    cycles_per_token: int, clock_hz: int, context: int, interval_cycles: int | None = None
) -> Belt:
    """A pipeline whose every token takes a given number of cycles, transfers included."""
    return Belt(
        clock_hz,
        (context,),
        (cycles_per_token,),
        (cycles_per_token,),
        (0, 0),
        "given: one constant for every token",
        interval_cycles,
    )
