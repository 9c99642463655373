"""One launch of an artifact's entry point over actors, or in this process: no host, no tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from cluster.metrics import OneEpoch, RunWatch, watched
from cluster.processes import (
    ChipGroup,
    LaunchPart,
    Placement,
    SharedMapping,
    chip_actors,
    conclude,
    cores,
    layout_of,
    load_kernels,
)
from programs.artifact import Artifact, Bindings
from programs.running import Saturations


@dataclass(frozen=True)
class Launch:
    """digest and cycles of the launch; outputs: per chip, what it holds for the host.

    launch_seconds: wall time of the slowest process's launch, without start-up.  recoveries: how
    often lost processes were replaced.  faults, saturations: as of ``GenerationResult``.
    """

    digest: str
    cycles: int
    outputs: list[dict[str, Any]]
    actors: int
    launch_seconds: float
    wall_seconds: float
    recoveries: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    saturations: Saturations = field(default_factory=dict)


def launch_everywhere(
    artifact: Artifact,
    entry: str,
    sync: str,
    placement: Placement,
    phase: Callable[[str], None] = lambda _: None,
    watch: RunWatch | None = None,
) -> Launch:
    """Run ``entry`` once on all chips.  watch: publishes the run while it goes on.

    Raises RunError when a chip retires at another cycle than the artifact says, ArtifactError when
    its inputs or outputs are nowhere.
    """
    began = perf_counter()
    Bindings.of(artifact)  # they are wrong before anything is started
    recoveries = 0
    if placement.in_process:
        load_kernels(phase)
        phase("loading chips")
        mapping = SharedMapping.private(layout_of(artifact, 1))
        group = ChipGroup(
            artifact,
            range(artifact.chips),
            0,
            mapping,
            threads=cores(),
            faults=placement.setting(artifact),
        )
        phase("running")
        epoch = OneEpoch(mapping, group.runner.image_bytes)
        with watched(watch, artifact, epoch, lambda _: entry, group.faults):
            parts = [group.launch(entry, sync)]
    else:
        parts, recoveries = _launch_actors(artifact, entry, sync, placement, phase, watch)
    whole = conclude([part.part for part in parts], artifact, watch)
    return Launch(
        digest=whole.digest,
        cycles=whole.cycles[0],
        outputs=[output for part in parts for output in part.outputs],
        actors=0 if placement.in_process else len(parts),
        launch_seconds=max(part.wall_seconds for part in parts),
        wall_seconds=perf_counter() - began,
        recoveries=recoveries,
        faults=parts[0].part.faults,
        saturations=whole.saturations,
    )


def _launch_actors(
    artifact: Artifact,
    entry: str,
    sync: str,
    placement: Placement,
    phase: Callable[[str], None],
    watch: RunWatch | None,
) -> tuple[list[LaunchPart], int]:
    faults = placement.setting(artifact)
    with (
        chip_actors(artifact, placement, phase, entries=(entry,)) as supervisor,
        watched(watch, artifact, supervisor, lambda _: entry, faults),
    ):
        phase("running")
        parts: list[LaunchPart] = supervisor.run("launch", entry, sync)
    return parts, len(supervisor.recoveries)
