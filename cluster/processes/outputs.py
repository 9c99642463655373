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
    """Every output of one chip: its type, how many values, the first few, a hash of all."""
    described: dict[str, Any] = {"chip": chip.chip_id}
    bindings = Bindings.of(artifact)
    for name, planes in bindings.outputs.items():
        words = np.stack([chip.sram[s, a : a + n] for s, a, n in planes], axis=-1)
        kind = bindings.types.get(name, "float32")
        values = np.ascontiguousarray(words).view(kind).ravel()
        described[name] = {
            "type": kind,
            "values": len(values),
            "first": values[:SHOWN].tolist(),
            "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
        }
    return described
