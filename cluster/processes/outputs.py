"""What a chip holds for the host after a launch: the artifact's outputs, read and described."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from chip.engine import Chip
from programs.artifact import Artifact, Bindings

#: Values of an output that are shown.
SHOWN = 8


def describe_outputs(artifact: Artifact, chip: Chip) -> dict[str, Any]:
    """Every output of one chip: how many float32 values, the first few, a hash of all."""
    described: dict[str, Any] = {"chip": chip.chip_id}
    for name, planes in Bindings.of(artifact).outputs.items():
        words = np.stack([chip.sram[s, a : a + n] for s, a, n in planes], axis=-1)
        values = np.ascontiguousarray(words).view(np.float32).ravel()
        described[name] = {
            "values": len(values),
            "first": [float(value) for value in values[:SHOWN]],
            "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
        }
    return described
