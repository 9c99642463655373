"""The chip actors of one run: files for them, the shared mapping, start, failure, end."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chip.engine import warm_up
from cluster.errors import RunError, one_line
from cluster.mapping import SharedMapping
from cluster.node import GroupPlan, layout_of, split_chips
from cluster.ray_session import ray_session
from programs.artifact import Artifact, save
from programs.partition import PartitionedModel

#: Actors one host is trusted with unless it has more cores; a process costs some 50 MB.
MOST_ACTORS = 8


@dataclass(frozen=True)
class Placement:
    """Where chips run: chips per process, Ray's address (None: private), or all in this process."""

    chips_per_actor: int = 1
    address: str | None = None
    in_process: bool = False


def chips_per_actor(chips: int, asked: int | None) -> int:
    """``asked``, or for None as few chips per process as the host can hold processes."""
    if asked is not None:
        return min(asked, chips)
    return -(-chips // max(MOST_ACTORS, os.cpu_count() or 1))


@contextlib.contextmanager
def chip_actors(
    artifact: Artifact,
    placement: Placement,
    phase: Callable[[str], None],
    model: PartitionedModel | None = None,
) -> Iterator[tuple[Any, list[Any], SharedMapping]]:
    """The clock, one ready actor per group of chips, and the memory they share.

    phase: told what goes on.  model: as for ``Host``.  A failure inside abandons the run, so that
    no actor waits for another for ever; files and actors are gone afterwards.
    """
    groups = split_chips(artifact.chips, placement.chips_per_actor)
    # One process compiles the kernels before all of them would at once.
    phase("compiling kernels")
    warm_up()
    phase("starting Ray")
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
            phase(f"starting {len(groups)} actors")
            with _actors(plans, where) as (clock, actors):
                yield clock, actors, mapping
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


def raise_failure(call: Any, calls: list[Any], mapping: SharedMapping) -> None:
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
