"""How a run ends: what the processes say agrees, chips retired when predicted, and the digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from chip.digest import finish
from cluster.errors import RunError
from cluster.processes.clock import unexpected_retirements
from programs.artifact import Artifact, compiled_at, content_hash, without_sources
from programs.running import Saturations, joined_saturations, saturation_totals


@dataclass(frozen=True)
class ChipsPart:
    """What the chips of one process did.

    entries: the entry point of each launch.  retired: per chip the cycle at which each launch
    ended.  sums: per chip its digest sums over all launches.  images: the digest of each chip's
    memory image.  faults: what was counted, empty without a plan.  saturations: of its chips.
    """

    entries: list[str]
    retired: dict[int, list[int]]
    sums: dict[int, tuple[int, int]]
    images: dict[int, bytes]
    faults: dict[str, int]
    saturations: Saturations = field(default_factory=dict)


@dataclass(frozen=True)
class Conclusion:
    """A run as a whole.  cycles: of each launch, the slowest chip's.  saturations: of all chips."""

    chips: int
    cycles: list[int]
    digest: str
    saturations: Saturations


class RetirementWatch(Protocol):
    """Whoever publishes a run."""

    def retired_unexpectedly(self, launches: int) -> None:
        """So many launches of chips ended at another cycle than predicted."""

    def saturated(self, kind: str, values: int) -> None:
        """So many values of the run were lost in conversions to ``kind``."""


def conclude(
    parts: Sequence[ChipsPart], artifact: Artifact, watch: RetirementWatch | None
) -> Conclusion:
    """All chips' digest and cycles, from the parts of all processes of a run of ``artifact``.

    Raises RunError where the processes ran different entry points or met different faults, or a
    chip retired at another cycle than predicted, which ``watch`` is told.  An entry point without
    a prediction may take what it takes.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.entries != first.entries:
            raise RunError("processes ran different entry points: the run is not deterministic")
        if part.faults != first.faults:
            raise RunError("processes met different faults: the run is not deterministic")
    retired = {chip: cycles for part in parts for chip, cycles in part.retired.items()}
    sums = {chip: pair for part in parts for chip, pair in part.sums.items()}
    if problems := unexpected_retirements(first.entries, retired, artifact.predicted_cycles):
        if watch is not None:
            watch.retired_unexpectedly(len(problems))
        raise RunError(f"{problems[0]} ({len(problems)} such launches)")
    found = joined_saturations(part.saturations for part in parts)
    if watch is not None:
        for kind, values in saturation_totals(found).items():
            watch.saturated(kind, values)
    chips = sorted(retired)
    images = {chip: image for part in parts for chip, image in part.images.items()}
    return Conclusion(
        chips=len(chips),
        cycles=[max(retired[chip][i] for chip in chips) for i in range(len(first.entries))],
        digest=finish(
            artifact_key(artifact, images),
            np.array([sums[chip] for chip in chips], np.uint64),
            [cycle for chip in chips for cycle in retired[chip]],
        ),
        saturations=found,
    )


def artifact_key(artifact: Artifact, images: Mapping[int, bytes]) -> bytes:
    """What a digest knows of the artifact: all but its files and where checkpoint and sources lay.

    images: the digest of every chip's memory image, by whoever has it; the artifact need not.
    """
    nowhere = without_sources(compiled_at(artifact, ""))
    rest = content_hash(replace(nowhere, memory=[[]] * artifact.chips, files={}))
    whole = hashlib.sha256(bytes.fromhex(rest))
    for chip in sorted(images):
        whole.update(images[chip])
    return whole.digest()
