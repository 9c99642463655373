"""The driver of ``lpu generate``: from an artifact on disk to tokens, in processes or in this one.

Plans the groups, starts the actors, streams tokens as the virtual clock tells them, and checks at
the end that every group picked the same tokens and every chip retired when it was predicted to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from chip.digest import finish
from chip.engine import warm_up
from cluster.clock import unexpected_retirements
from cluster.errors import RunError, one_line
from cluster.mapping import SharedMapping
from cluster.node import ChipGroup, GroupPlan, GroupResult, layout_of, split_chips
from cluster.ray_session import ray_session
from cluster.single import artifact_key
from programs.artifact import Artifact, save
from programs.partition import PartitionedModel
from programs.runner import Generation

POLL_SECONDS = 0.05
#: Actors one host is trusted with unless it has more cores; a process costs some 50 MB.
MOST_ACTORS = 8


@dataclass(frozen=True)
class Placement:
    """Where chips run: chips per process, Ray's address (None: private), or all in this process."""

    chips_per_actor: int = 1
    address: str | None = None
    in_process: bool = False


@dataclass(frozen=True)
class GenerationResult:
    """A finished generation; lists have one entry per generated token."""

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


class Listener:
    """What the driver tells while it works; this one is silent."""

    def phase(self, text: str) -> None:
        """The driver begins something that takes a while."""

    def token(self, token: int) -> None:
        """One more token."""


def chips_per_actor(chips: int, asked: int | None) -> int:
    """``asked``, or for None as few chips per process as the host can hold processes."""
    if asked is not None:
        return min(asked, chips)
    return -(-chips // max(MOST_ACTORS, os.cpu_count() or 1))


def run_generation(
    artifact: Artifact,
    job: Generation,
    placement: Placement,
    listener: Listener,
    started: float,
    model: PartitionedModel | None = None,
) -> GenerationResult:
    """Generate with ``artifact``; ``started`` is the ``perf_counter`` when the command began.

    model: the partitioned model, if it is not in the directory that the artifact names.
    """
    stopwatch = _Stopwatch(started, listener)
    if placement.in_process:
        listener.phase("loading chips")
        layout = layout_of(artifact, 1)
        mapping = SharedMapping.private(layout)
        group = ChipGroup(artifact, range(artifact.chips), 0, mapping, model, stopwatch.report)
        listener.phase("generating")
        stopwatch.begin()
        results = [group.generate(job)]
        stopwatch.end()
    else:
        results = _run_actors(artifact, job, placement, stopwatch, model)
    return _conclude(artifact, results, stopwatch, 0 if placement.in_process else len(results))


class _Stopwatch:
    """Wall times of a run, and the way of tokens to the listener."""

    def __init__(self, started: float, listener: Listener) -> None:
        self.started = started
        self.listener = listener
        self.told = 0
        self.first_token = 0.0
        self.begun = self.ended = started

    def begin(self) -> None:
        self.begun = perf_counter()

    def end(self) -> None:
        self.ended = perf_counter()

    def report(self, group: int, cycle: int, tokens: list[int]) -> None:
        """Tokens of a group in this process."""
        for token in tokens:
            self.tell(token)

    def tell(self, token: int) -> None:
        if self.told == 0:
            self.first_token = perf_counter() - self.started
        self.told += 1
        self.listener.token(token)


def _run_actors(
    artifact: Artifact,
    job: Generation,
    placement: Placement,
    stopwatch: _Stopwatch,
    model: PartitionedModel | None,
) -> list[GroupResult]:
    groups = split_chips(artifact.chips, placement.chips_per_actor)
    listener = stopwatch.listener
    # One process compiles the kernels before eight would, all at once.
    listener.phase("compiling kernels")
    warm_up()
    listener.phase("starting Ray")
    mapping = SharedMapping.create(layout_of(artifact, len(groups)))
    directory = Path(tempfile.mkdtemp(prefix="lpu-chips-"))
    try:
        paths = _save_groups(artifact, groups, directory)
        assert mapping.path is not None
        light = None if model is None else replace(model, _built={})
        plans = [
            GroupPlan(
                paths[number], tuple(chips), number, mapping.path, mapping.layout, mapping.token,
                light,
            )
            for number, chips in enumerate(groups)
        ]  # fmt: skip
        with ray_session(placement.address, len(groups) + 1) as where:
            listener.phase(f"starting {len(groups)} actors")
            with _actors(plans, where) as (clock, actors):
                listener.phase("generating")
                stopwatch.begin()
                results = _collect(clock, actors, job, mapping, stopwatch)
                stopwatch.end()
        return results
    except BaseException:
        mapping.abandon()
        raise
    finally:
        mapping.unlink()
        shutil.rmtree(directory, ignore_errors=True)


def _save_groups(artifact: Artifact, groups: list[range], directory: Path) -> list[Path]:
    """One file per group in ``directory``, holding the memory images of its own chips only."""
    paths = []
    for number, chips in enumerate(groups):
        own = [image if c in chips else [] for c, image in enumerate(artifact.memory)]
        paths.append(directory / f"group-{number}.lpu")
        save(replace(artifact, memory=own), paths[-1])
    return paths


@contextlib.contextmanager
def _actors(plans: list[GroupPlan], where: Any) -> Iterator[tuple[Any, list[Any]]]:
    """A clock and one ready actor per plan; they are gone afterwards."""
    import ray

    from cluster.actors import start_chips, start_clock

    clock = start_clock(len(plans), where)
    actors = []
    try:
        actors += [start_chips(plan, clock, where) for plan in plans]
        try:
            failures = ray.get([actor.ready.remote() for actor in actors])
        except ray.exceptions.RayError as error:
            raise RunError(f"an actor did not start: {one_line(error)[:300]}") from None
        for failure in failures:
            if failure is not None:
                raise RunError(f"an actor did not start: {failure}")
        yield clock, actors
    finally:
        for actor in [*actors, clock]:
            with contextlib.suppress(Exception):
                ray.kill(actor)


def _collect(
    clock: Any, actors: list[Any], job: Generation, mapping: SharedMapping, stopwatch: _Stopwatch
) -> list[GroupResult]:
    """Run the job on all actors, streaming tokens; the results in the order of actors."""
    import ray

    calls = [actor.generate.remote(job) for actor in actors]
    waiting = list(calls)
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=POLL_SECONDS)
        for call in done:
            _raise_failure(call, calls, mapping)
        progress = ray.get(clock.progress.remote())
        for token in progress.tokens[stopwatch.told :]:
            stopwatch.tell(token)
    results: list[GroupResult] = ray.get(calls)
    for token in results[0].run.tokens[stopwatch.told :]:
        stopwatch.tell(token)
    return results


def _raise_failure(call: Any, calls: list[Any], mapping: SharedMapping) -> None:
    """If ``call`` failed, end the run with the failure that caused the others."""
    import ray

    try:
        ray.get(call)
        return
    except ray.exceptions.RayError:
        mapping.abandon()
    texts = []
    for other in calls:
        try:
            ray.get(other, timeout=10)
        except ray.exceptions.RayTaskError as error:
            cause = one_line(error.cause)
            texts.append((("given up" in cause), cause))
        except ray.exceptions.RayActorError as error:
            texts.append((False, f"an actor died: {one_line(error)[:300]}"))
        except ray.exceptions.GetTimeoutError:
            continue
    raise RunError(min(texts)[1] if texts else "an actor failed") from None


def _steady(launch_seconds: list[float], decode: list[int]) -> float:
    """Median wall seconds of the decode launches after the first; 0 when there are none."""
    # Entry i is the time from the end of launch i to that of launch i + 1.
    later = [launch_seconds[launch - 1] for launch in decode[1:]]
    return median(later) if later else 0.0


def _conclude(
    artifact: Artifact, groups: list[GroupResult], stopwatch: _Stopwatch, actors: int
) -> GenerationResult:
    results = [group.run for group in groups]
    first = results[0]
    for result in results[1:]:
        if result.tokens != first.tokens or result.entries != first.entries:
            raise RunError("processes picked different tokens: the run is not deterministic")
    retired = {chip: cycles for result in results for chip, cycles in result.retired.items()}
    sums = {chip: pair for result in results for chip, pair in result.sums.items()}
    predicted = artifact.predicted_cycles
    if problems := unexpected_retirements(first.entries, retired, predicted):
        raise RunError(f"{problems[0]} ({len(problems)} such launches)")
    chips = sorted(retired)
    lengths = [max(retired[chip][i] for chip in chips) for i in range(len(first.entries))]
    clock_hz = artifact.spec.clock_hz
    decode_cycles = [lengths[i] for i in first.decode]
    io_seconds = max(result.io_seconds for result in results)
    decode_io = io_seconds * len(first.decode) / max(1, len(lengths))
    return GenerationResult(
        tokens=first.tokens,
        chips=len(chips),
        actors=actors,
        cycles_per_token=decode_cycles,
        predicted_cycles_per_token=[predicted[first.entries[i]] for i in first.decode],
        digest=finish(
            artifact_key(artifact),
            np.array([sums[chip] for chip in chips], np.uint64),
            [cycle for chip in chips for cycle in retired[chip]],
        ),
        virtual_seconds=sum(lengths) / clock_hz + io_seconds,
        decode_seconds=sum(decode_cycles) / clock_hz + decode_io,
        wall_seconds=perf_counter() - stopwatch.started,
        first_token_seconds=stopwatch.first_token,
        token_wall_seconds=stopwatch.ended - stopwatch.begun,
        steady_token_seconds=_steady(groups[0].launch_seconds, first.decode),
    )
