"""LPU pipelines in virtual time: exact cycles per token, and places on a conveyor belt.

A pipeline without overlap works on one token at a time; a request has it from its first prompt
token to its last answer token.  With an *initiation interval* a pipeline takes a token of another
request every so many cycles: it has ``places``, place s may begin a token at cycles
``s * interval + n * turn``, and a request keeps its place.  No request ever disturbs another; that
is what a compiled schedule gives.  The queue is first come, first served, and the head takes the
place that lets it begin earliest (the lowest number of equals).

Cycles are exact where the costs come from a compiled artifact; the interval is a figure that the
user gives.  The prompt is fed token by token.  Times are integers of cycles; what leaves this
module is in picoseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InputError
from cluster.experiments.serving.arrivals import PS, Trace, check_time
from cluster.experiments.serving.figures import NOBODY, Served, ServiceStage
from programs.artifact import Artifact, Bindings, decoder_of
from programs.decoder import token_entry
from programs.plans import BucketCost, Plan

I64 = NDArray[np.int64]

MAX_CONTEXT = 1 << 20
MAX_CYCLES = 10**9
"""Cycles of one token at most: a second."""
MAX_PLACES = 4096
"""Places of one pipeline."""
MOST_PLACES = 65_536
"""Places of all pipelines."""


LPU_SERVERS = "places of LPU pipelines"


class Spans(NamedTuple):
    """Cycles from a request's entry to its first, second and last token, and to the next entry.

    int64 [requests] each; ``second`` is -1 for an answer of one token.
    """

    first: I64
    second: I64
    done: I64
    free: I64


@dataclass(frozen=True)
class Belt:
    """What a token costs on a pipeline of LPUs.

    buckets: ascending numbers of positions; a token at a position below a bucket costs that
    bucket's cycles.  prefill_cycles, decode_cycles: per bucket, without and with the logits.
    host_cycles: the host's transfers around a token, without and with the logits, rounded up.
    interval_cycles: given cycles between two tokens of different requests; None, or one that
    leaves no second place: no overlap.
    source: where the cycles come from, for the report.
    host_bytes: to the chips for every token, and back with logits; None where not known.
    """

    clock_hz: int
    buckets: tuple[int, ...]
    prefill_cycles: tuple[int, ...]
    decode_cycles: tuple[int, ...]
    host_cycles: tuple[int, int]
    source: str
    interval_cycles: int | None = None
    host_bytes: tuple[int, int] | None = None

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
        return self.buckets[-1]

    @property
    def exact(self) -> bool:
        """Whether all cycles come from a compiled program and nothing was given."""
        return self.source.startswith("compiled") and self.interval_cycles is None

    @property
    def turn(self) -> int:
        """Cycles of the longest token with its transfers; a place begins one token per turn."""
        before, after = self.host_cycles
        return max(max(self.prefill_cycles) + before, max(self.decode_cycles) + after)

    @property
    def places(self) -> int:
        """Requests in flight in one pipeline."""
        return 1 if self.interval_cycles is None else self.turn // self.interval_cycles

    @cached_property
    def _sums(self) -> tuple[I64, I64]:
        """Cycles of all positions before, without and with logits; int64 [context + 1] each."""
        sizes = np.diff((0, *self.buckets))
        sums = []
        for cycles, host in zip(
            (self.prefill_cycles, self.decode_cycles), self.host_cycles, strict=True
        ):
            per_position = np.repeat(np.array(cycles, np.int64) + host, sizes)
            sums.append(np.concatenate([np.zeros(1, np.int64), np.cumsum(per_position)]))
        return sums[0], sums[1]

    def fits(self, prompt: I64, output: I64) -> NDArray[np.bool_]:
        """Whether requests fit the context: the last answer token is never fed."""
        return np.asarray(prompt + output - 1 <= self.context)

    def crossing(self, fed: int, logits: int) -> dict[str, int | None]:
        """Bytes between chips and host, by ``HOST_KINDS``: tokens fed, and those with logits."""
        if self.host_bytes is None:
            return {"lpu_inputs_in": None, "lpu_logits_out": None}
        into, out = self.host_bytes
        return {"lpu_inputs_in": into * fed, "lpu_logits_out": out * logits}

    def spans(self, prompt: I64, output: I64, cached: bool = False) -> Spans:
        """What requests take on a place; they must fit.

        cached: the prompt and the first token come from elsewhere, so that the place begins with
        the first token; ``first`` is then 0, and ``output`` is 2 or more.
        """
        begin = prompt if cached else np.zeros_like(prompt)
        last = prompt + output - 1

        def until(fed: I64) -> I64:
            """Cycles from the entry until the token of the last of ``fed`` positions is out."""
            prefill, decode = self._sums
            if self.places == 1:
                answers = np.maximum(begin, prompt - 1)
                return prefill[answers] - prefill[begin] + decode[fed] - decode[answers]
            return (fed - 1 - begin) * self.turn + decode[fed] - decode[fed - 1]

        first = np.zeros_like(prompt) if cached else until(prompt)
        second = np.where(output > 1, until(np.minimum(prompt + 1, last)), -1)
        done = until(last)
        return Spans(first, second, done, done if self.places == 1 else (last - begin) * self.turn)


def cycles_to_ps(cycles: int, clock_hz: int) -> int:
    """Picoseconds of a number of cycles, to the nearest."""
    return (2 * cycles * PS + clock_hz) // (2 * clock_hz)


def ps_to_cycles(ps: int, clock_hz: int) -> int:
    """The first cycle that begins at or after a time."""
    return -(-ps * clock_hz // PS)


def host_bytes(artifact: Artifact) -> tuple[int, int]:
    """Bytes that the host puts into the chips before a launch, and takes out with the logits."""
    bindings = Bindings.of(artifact)
    into = sum(320 * words for planes in bindings.inputs.values() for _, _, words in planes)
    return into, 4 * 320 * bindings.outputs["logits"][0][2]


def host_seconds(artifact: Artifact) -> tuple[float, float]:
    """Seconds of the host's transfers around a prefill and a decode launch, by the PCIe model.

    The same sums that ``programs.decoder.host.Host`` charges for ``prepare`` and ``read_logits``.
    """
    into, out = host_bytes(artifact)
    spec = artifact.spec
    before = spec.pcie_latency_s + into / spec.pcie_bytes_per_s
    return before, before + spec.pcie_latency_s + out / spec.pcie_bytes_per_s


def belt_of(artifact: Artifact, interval_cycles: int | None = None) -> Belt:
    """The costs of a compiled decoder: exact cycles, and host transfers by the PCIe model."""
    buckets = decoder_of(artifact).buckets
    cycles = artifact.predicted_cycles
    clock = artifact.spec.clock_hz
    # A whole number of cycles, as 20.266667 us at 900 MHz, must not become one more by rounding.
    host = [math.ceil(seconds * clock - 1e-6) for seconds in host_seconds(artifact)]
    return Belt(
        clock,
        buckets,
        tuple(cycles[token_entry(bucket, True)] for bucket in buckets),
        tuple(cycles[token_entry(bucket, False)] for bucket in buckets),
        (host[0], host[1]),
        "compiled: exact cycles per token",
        interval_cycles,
        host_bytes(artifact),
    )


def belt_of_plan(
    plan: Plan, costs: Sequence[BucketCost], interval_cycles: int | None = None
) -> Belt:
    """The costs of a plan: exact cycles of its buckets, the host by the PCIe model.

    costs: of ``programs.plans.bucket_costs``.
    """
    tiles, spec = plan.layout.x_tiles, plan.spec
    places = plan.pipeline.code[0].places
    rows = 2 * plan.layout.rope_tables
    into = 320 * (4 * (tiles + rows) + places.map_words)  # x, rope rows; maps and masks
    out = 4 * 320 * plan.layout.vocab_blocks
    before = spec.pcie_latency_s + into / spec.pcie_bytes_per_s
    after = before + spec.pcie_latency_s + out / spec.pcie_bytes_per_s
    host = [math.ceil(seconds * spec.clock_hz - 1e-6) for seconds in (before, after)]
    return Belt(
        spec.clock_hz,
        tuple(cost.positions for cost in costs),
        tuple(cost.prefill_cycles for cost in costs),
        tuple(cost.cycles for cost in costs),
        (host[0], host[1]),
        "compiled: exact cycles per token, of a plan without weights",
        interval_cycles,
        (into, out),
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


class BeltPlaces:
    """The places of equal pipelines, given to requests in the order in which they ask."""

    def __init__(self, belt: Belt, pipelines: int) -> None:
        if not 1 <= pipelines * belt.places <= MOST_PLACES:
            raise InputError(
                f"{pipelines} LPU pipelines of {belt.places} places: use 1 pipeline up to "
                f"{MOST_PLACES // belt.places:,}"
            )
        self._places, self._turn, self._clock_hz = belt.places, belt.turn, belt.clock_hz
        self._phase = np.tile(np.arange(belt.places) * (belt.interval_cycles or 0), pipelines)
        self._free = self._phase.copy()
        self.busy = np.zeros(belt.places * pipelines, np.int64)
        """Cycles each place was held."""

    def enter(self, ready: int, span: int) -> int:
        """The cycle at which a request ready at cycle ``ready`` begins; it stays ``span``."""
        entries = np.maximum(self._free, ready)
        if self._places > 1:  # the next cycle of each place's own phase
            entries = self._phase - (self._phase - entries) // self._turn * self._turn
        place = int(entries.argmin())
        entry = int(entries[place])
        check_time((entry + span) / self._clock_hz)
        self._free[place] = entry + span
        self.busy[place] += span
        return entry


@dataclass(frozen=True, eq=False)
class Ride:
    """How requests went through the belts: cycles ready and of entry, int64 [requests].

    busy_ps: time each place was held, int64 [places].
    """

    ready: I64
    entry: I64
    busy_ps: I64


def ride(ready_ps: I64, spans: Spans, belt: Belt, pipelines: int) -> Ride:
    """Give places to requests in the order of the arrays; ready_ps: int64 [requests], ascending."""
    places = BeltPlaces(belt, pipelines)
    ready = [ps_to_cycles(ps, belt.clock_hz) for ps in ready_ps.tolist()]
    entry = [places.enter(at, span) for at, span in zip(ready, spans.free.tolist(), strict=True)]
    return Ride(
        np.array(ready, np.int64), np.array(entry, np.int64), _to_ps(places.busy, belt.clock_hz)
    )


def _to_ps(cycles: I64, clock_hz: int) -> I64:
    return np.array([cycles_to_ps(value, clock_hz) for value in cycles.tolist()], np.int64)


def serve_on_belts(trace: Trace, belt: Belt, pipelines: int) -> Served:
    """Serve ``trace`` on ``pipelines`` equal pipelines; requests too long are refused.

    One decode step per answer token; busy time is that of places.
    """
    fine = np.flatnonzero(belt.fits(trace.prompt_tokens, trace.output_tokens))
    spans = belt.spans(trace.prompt_tokens[fine], trace.output_tokens[fine])
    went = ride(trace.arrival_ps[fine], spans, belt, pipelines)
    start, first, second, done = (np.full(len(trace), -1, np.int64) for _ in range(4))
    at_once = went.entry == went.ready
    start[fine] = np.where(at_once, trace.arrival_ps[fine], _to_ps(went.entry, belt.clock_hz))
    first[fine] = _to_ps(went.entry + spans.first, belt.clock_hz)
    several = spans.second >= 0
    second[fine[several]] = _to_ps((went.entry + spans.second)[several], belt.clock_hz)
    done[fine] = _to_ps(went.entry + spans.done, belt.clock_hz)
    tokens = int(trace.output_tokens[fine].sum())
    busy, places = sum(went.busy_ps.tolist()), len(went.busy_ps)
    prefill = min(cycles_to_ps(sum(spans.first.tolist()), belt.clock_hz), busy)
    stages = {
        "prefill": ServiceStage(LPU_SERVERS, places, prefill, trace.arrival_ps[fine], start[fine]),
        "decode": ServiceStage(LPU_SERVERS, places, busy - prefill, NOBODY, NOBODY),
    }
    fed = int((trace.prompt_tokens + trace.output_tokens - 1)[fine].sum())
    host = belt.crossing(fed, tokens)
    return Served(start, first, second, done, went.busy_ps, tokens, tokens, stages, host)
