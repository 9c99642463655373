"""The driver of ``lpu generate``: from an artifact on disk to tokens, in processes or in this one.

Plans the groups, starts the actors, streams tokens as the virtual clock tells them, and checks at
the end that every group picked the same tokens and every chip retired when it was predicted to.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter
from typing import Any

from chip.engine import Chip
from cluster.errors import RunError
from cluster.listening import Listener
from cluster.metrics import OneEpoch, RunWatch, watched
from cluster.processes import (
    ChipGroup,
    GroupResult,
    Placement,
    Recovery,
    SharedMapping,
    Supervisor,
    chip_actors,
    conclude,
    layout_of,
    load_kernels,
)
from cluster.tracing import Launched
from programs.artifact import Artifact, decoder_of
from programs.decoder import ChipImages, PartitionedModel, ends_prompt, entry_at
from programs.running import Generation, Saturations, prompt_feedings, text_feedings

#: How long a look at the clock may take; its answer comes at the next look otherwise.
ANSWER_SECONDS = 0.01
#: Why a text ends.
STOP, LENGTH = "stop", "length"


@dataclass(frozen=True)
class GenerationResult:
    """A finished generation; lists have one entry per generated token.

    entries, launch_cycles: of every launch, prompt included; decode: the launches that gave tokens.
    recoveries: one per time that processes were lost and replaced.  faults: those of the modelled
    machine, empty without a plan; their cycles are in ``virtual_seconds`` only.  refused: foreign
    attachments and vectors.  machine: the chips as the last launch left them, empty where other
    processes had them.  saturations: values that conversions lost, by layer and kind.  ended: why
    there are no more tokens, ``stop`` for one that ends a text, ``length`` for as many as asked.
    """

    tokens: list[int]
    chips: int
    actors: int
    cycles_per_token: list[int]
    predicted_cycles_per_token: list[int]
    digest: str
    virtual_seconds: float
    decode_seconds: float
    wall_seconds: float
    first_token_seconds: float
    token_wall_seconds: float
    steady_token_seconds: float
    entries: list[str]
    launch_cycles: list[int]
    decode: list[int]
    recoveries: tuple[Recovery, ...] = ()
    faults: dict[str, int] = field(default_factory=dict)
    refused: tuple[int, int] = (0, 0)
    machine: tuple[Chip, ...] = ()
    saturations: Saturations = field(default_factory=dict)
    ended: str = LENGTH
    predicted_first_token_cycles: int = 0
    decode_tokens: int = 0
    """Those whose launch took one token through all stages: all but the first, where it came from
    the end of a prompt's beats or from its last chunk.  ``decode_seconds`` is theirs.
    """

    @property
    def whole_cycles(self) -> tuple[list[int], list[int]]:
        """Of ``decode_tokens``, the cycles of each, and those predicted."""
        first = len(self.tokens) - self.decode_tokens
        return self.cycles_per_token[first:], self.predicted_cycles_per_token[first:]

    @property
    def first_token_cycles(self) -> int:
        """From the first launch to the end of the one that gave the first token."""
        return sum(self.launch_cycles[: self.decode[0] + 1])


def planned_launches(artifact: Artifact, job: Generation) -> list[Launched]:
    """The launches of ``job`` if no token ends it early; tokens are not known yet."""
    feedings = text_feedings(artifact, 0, len(job.prompt), job.max_new_tokens)
    cycles = artifact.predicted_cycles
    return [Launched(f.entry, cycles[f.entry], "" if f.logits else None) for f in feedings]


def launches_of(result: GenerationResult, texts: Sequence[str]) -> list[Launched]:
    """The launches of a finished generation; texts: of its tokens, in their order."""
    said = dict(zip(result.decode, texts, strict=True))
    return [
        Launched(entry, cycles, said.get(number))
        for number, (entry, cycles) in enumerate(
            zip(result.entries, result.launch_cycles, strict=True)
        )
    ]


def run_generation(
    artifact: Artifact,
    job: Generation,
    placement: Placement,
    listener: Listener,
    started: float,
    model: PartitionedModel | None = None,
    watch: RunWatch | None = None,
    images: ChipImages | None = None,
) -> GenerationResult:
    """Generate with ``artifact``; ``started`` is the ``perf_counter`` when the command began.

    model: the partitioned model, if it is not in the directory that the artifact names.
    watch: publishes the run while it goes on.  images: of an artifact without memory images, made
    from a checkpoint directory by the processes that have the chips.
    """
    stopwatch = _Stopwatch(started, listener, watch)
    if images is not None and (placement.in_process or placement.faults is not None):
        listener.phase("reading weights")
        artifact = replace(artifact, memory=images.of(range(artifact.chips)))
        images = None

    planned = planned_launches(artifact, job)
    recoveries: list[Recovery] = []
    refused = (0, 0)
    machine: tuple[Chip, ...] = ()
    if placement.in_process:
        load_kernels(listener.phase)
        listener.phase("loading chips")
        layout = layout_of(artifact, 1)
        mapping = SharedMapping.private(layout)
        group = ChipGroup(
            artifact,
            range(artifact.chips),
            0,
            mapping,
            model,
            stopwatch.report,
            faults=placement.setting(artifact),
        )
        listener.phase("generating")
        epoch = OneEpoch(mapping, group.runner.image_bytes)
        with watched(watch, artifact, epoch, lambda launch: planned[launch].entry, group.faults):
            stopwatch.begin()
            results = [group.generate(job)]
            stopwatch.end()
        machine = tuple(group.chips)
    else:
        results, recoveries, refused = _run_actors(
            artifact, job, placement, stopwatch, model, images, planned
        )
    actors = 0 if placement.in_process else len(results)
    done = _conclude(artifact, job, results, stopwatch, actors, recoveries)
    return replace(done, refused=refused, machine=machine)


#: Generates with chips that stay: a job, who hears of it, its result.
Work = Callable[[Generation, Listener], GenerationResult]


@contextlib.contextmanager
def kept_chips(
    artifact: Artifact,
    placement: Placement,
    phase: Callable[[str], None],
    images: ChipImages | None = None,
) -> Iterator[Work]:
    """The chips of ``artifact`` for one generation after another, as long as the context lasts.

    What a prompt shares with what the chips were fed before is not computed again: a result's
    launches, cycles and host transfers are those of what is new.  images: of an artifact without
    memory images.
    """
    if placement.in_process:
        if images is not None:
            phase("reading weights")
            artifact = replace(artifact, memory=images.of(range(artifact.chips)))
        load_kernels(phase)
        phase("loading chips")
        with _kept_here(artifact) as work:
            yield work
        return
    entries = _in_order(artifact)
    with chip_actors(artifact, placement, phase, None, images, entries) as supervisor:

        def work(job: Generation, listener: Listener) -> GenerationResult:
            stopwatch = _Stopwatch(perf_counter(), listener, None)
            results = _collect(supervisor, job, stopwatch, keep=True)
            stopwatch.end()
            return _conclude(artifact, job, results, stopwatch, len(results), supervisor.recoveries)

        yield work


def _in_order(artifact: Artifact) -> list[str]:
    """Entry points that texts which grow from bucket to bucket are likely to take, in order.

    Of each bucket those of a prompt at its beginning, no longer than the shortest bucket, and of a
    token after it.
    """
    facts = decoder_of(artifact)
    ends = sorted({min(bucket, facts.context) for bucket in facts.buckets})
    likely: list[str] = []
    for start, end in zip((0, *ends), ends, strict=False):
        fed = prompt_feedings(artifact, start, min(end - start, facts.buckets[0]))
        likely += [*(feeding.entry for feeding in fed), entry_at(artifact, start, prefill=False)]
    return list(dict.fromkeys(likely))


@contextlib.contextmanager
def _kept_here(artifact: Artifact) -> Iterator[Work]:
    """``kept_chips`` in this process."""
    layout = layout_of(artifact, 1)
    stopwatches: list[_Stopwatch] = []

    def report(group: int, cycle: int, tokens: list[int]) -> None:
        stopwatches[-1].report(group, cycle, tokens)

    chips = range(artifact.chips)
    group = ChipGroup(artifact, chips, 0, SharedMapping.private(layout), None, report)

    def work(job: Generation, listener: Listener) -> GenerationResult:
        stopwatches.append(_Stopwatch(perf_counter(), listener, None))
        group.enter(SharedMapping.private(layout), keep=True)
        results = [group.generate(job)]
        stopwatches[-1].end()
        return _conclude(artifact, job, results, stopwatches[-1], 0, [])

    yield work


class _Stopwatch:
    """Wall times of a run, and the way of tokens to the listener."""

    def __init__(self, started: float, listener: Listener, watch: RunWatch | None) -> None:
        self.started = started
        self.listener = listener
        self.watch = watch
        self.told = 0
        self.first_token = 0.0
        self.begun = self.ended = started

    def begin(self) -> None:
        self.begun = perf_counter()

    def end(self) -> None:
        self.ended = perf_counter()

    def report(self, group: int, cycle: int, tokens: list[int]) -> None:
        """Tokens of a group in this process."""
        for token in tokens[self.told :]:
            self.tell(token)

    def tell(self, token: int) -> None:
        if self.told == 0:
            self.first_token = perf_counter() - self.started
        self.told += 1
        self.listener.token(token)
        if self.watch is not None:
            self.watch.token()


def _run_actors(
    artifact: Artifact,
    job: Generation,
    placement: Placement,
    stopwatch: _Stopwatch,
    model: PartitionedModel | None,
    images: ChipImages | None,
    planned: Sequence[Launched],
) -> tuple[list[GroupResult], list[Recovery], tuple[int, int]]:
    listener = stopwatch.listener
    entries = list(dict.fromkeys(launched.entry for launched in planned))
    with chip_actors(artifact, placement, listener.phase, model, images, entries) as supervisor:
        listener.phase("generating")
        faults = placement.setting(artifact)
        watch = stopwatch.watch
        with watched(watch, artifact, supervisor, lambda launch: planned[launch].entry, faults):
            stopwatch.begin()
            results = _collect(supervisor, job, stopwatch)
            stopwatch.end()
    return results, supervisor.recoveries, supervisor.refused


def _collect(
    supervisor: Supervisor, job: Generation, stopwatch: _Stopwatch, keep: bool = False
) -> list[GroupResult]:
    """Run the job on all actors, streaming tokens; the results in the order of actors.

    keep: as for ``Supervisor.run``.
    """
    import ray

    asked: list[Any] = []

    def poll() -> None:
        # The clock may have died and be starting again: never wait for it long.
        if not asked:
            asked.append(supervisor.progress())
        if ray.wait(asked, timeout=ANSWER_SECONDS)[0]:
            with contextlib.suppress(ray.exceptions.RayError):
                stopwatch.report(0, 0, list(ray.get(asked[0]).tokens))
            asked.clear()

    results: list[GroupResult] = supervisor.run("generate", job, poll=poll, keep=keep)
    stopwatch.report(0, 0, results[0].run.tokens)
    return results


def _steady(launch_seconds: list[float], decode: list[int]) -> float:
    """Median wall seconds of the decode launches after the first; 0 when there are none."""
    # Entry i is the time from the end of launch i to that of launch i + 1.
    later = [launch_seconds[launch - 1] for launch in decode[1:]]
    later = [seconds for seconds in later if not math.isnan(seconds)]
    return median(later) if later else 0.0


def _conclude(
    artifact: Artifact,
    job: Generation,
    groups: list[GroupResult],
    stopwatch: _Stopwatch,
    actors: int,
    recoveries: list[Recovery],
) -> GenerationResult:
    results = [group.run for group in groups]
    first = results[0]
    for result in results[1:]:
        if result.tokens != first.tokens or result.entries != first.entries:
            raise RunError("processes picked different tokens: the run is not deterministic")
    whole = conclude([group.part for group in groups], artifact, stopwatch.watch)
    predicted = artifact.predicted_cycles
    clock_hz = artifact.spec.clock_hz
    cycles = sum(whole.cycles) + first.faults.get("cost_cycles", 0)
    decode_cycles = [whole.cycles[i] for i in first.decode]
    apart = int(ends_prompt(first.entries[first.decode[0]]))
    io_seconds = max(result.io_seconds for result in results)
    decode_io = max(result.decode_io_seconds for result in results)
    return GenerationResult(
        tokens=first.tokens,
        chips=whole.chips,
        actors=actors,
        cycles_per_token=decode_cycles,
        predicted_cycles_per_token=[predicted[first.entries[i]] for i in first.decode],
        digest=whole.digest,
        virtual_seconds=cycles / clock_hz + io_seconds,
        decode_seconds=sum(decode_cycles[apart:]) / clock_hz + decode_io,
        wall_seconds=perf_counter() - stopwatch.started,
        first_token_seconds=stopwatch.first_token,
        token_wall_seconds=stopwatch.ended - stopwatch.begun,
        steady_token_seconds=_steady(groups[0].launch_seconds, first.decode),
        entries=first.entries,
        launch_cycles=whole.cycles,
        decode=first.decode,
        recoveries=tuple(recoveries),
        faults=first.faults,
        saturations=whole.saturations,
        ended=STOP if first.tokens[-1] in job.stop else LENGTH,
        predicted_first_token_cycles=sum(
            predicted[entry] for entry in first.entries[: first.decode[0] + 1]
        ),
        decode_tokens=len(first.decode) - apart,
    )
