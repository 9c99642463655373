"""One launch of an entry point with the inputs as they are stored: ``lpu run``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chip.digest import finish
from chip.engine import Chip
from chip.ring import Rings
from programs.artifact import Artifact, content_hash
from programs.runner import LOOKAHEAD, Alone, Runner

#: Values of an output that are shown.
SHOWN = 8


@dataclass(frozen=True)
class LaunchResult:
    """digest and cycles of the launch; outputs: per chip, what it holds for the host."""

    digest: str
    cycles: int
    outputs: list[dict[str, Any]]


def run_entry(artifact: Artifact, entry: str, sync: str = LOOKAHEAD) -> LaunchResult:
    """Run ``entry`` once on all chips in this process."""
    rings = Rings.allocate(2 * len(artifact.cables))
    runner = Runner(artifact, range(artifact.chips), rings, Alone())
    retired = runner.launch(entry, 0, sync)
    sums = np.array([chip.digest_sums for chip in runner.chips], np.uint64)
    return LaunchResult(
        digest=finish(artifact_key(artifact), sums, list(retired.values())),
        cycles=max(retired.values()),
        outputs=[_outputs(artifact, chip) for chip in runner.chips],
    )


def artifact_key(artifact: Artifact) -> bytes:
    """What a digest knows of the artifact: all of it but where the checkpoint lay."""
    model = {**artifact.model, "checkpoint": ""}
    return bytes.fromhex(content_hash(replace(artifact, model=model)))


def _outputs(artifact: Artifact, chip: Chip) -> dict[str, Any]:
    """Every output of one chip: how many float32 values, the first few, a hash of all."""
    described: dict[str, Any] = {"chip": chip.chip_id}
    for name, planes in artifact.bindings.get("outputs", {}).items():
        words = np.stack([chip.sram[s, a : a + n] for s, a, n in planes], axis=-1)
        values = np.ascontiguousarray(words).view(np.float32).ravel()
        described[name] = {
            "values": len(values),
            "first": [float(value) for value in values[:SHOWN]],
            "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
        }
    return described
