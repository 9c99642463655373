"""What a chip holds for the host after a launch: the artifact's outputs, read and described."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from chip.engine import Chip
from chip.isa import SLICES
from programs.artifact import Artifact, ArtifactError

#: Values of an output that are shown.
SHOWN = 8
#: What an output's 32 bits may be, by the name that ``bindings["output_types"]`` has for it.
TYPES = {"f32": "float32", "i32": "int32"}


def output_places(artifact: Artifact) -> dict[str, list[tuple[int, int, int]]]:
    """Where each output's four byte planes lie: (slice, first word, words), all as long.

    Raises ArtifactError where the bindings say something else.
    """
    outputs = artifact.bindings.get("outputs", {})
    places: dict[str, list[tuple[int, int, int]]] = {}
    for name, planes in outputs.items() if isinstance(outputs, dict) else [("", outputs)]:
        fits = isinstance(planes, list | tuple) and len(planes) == 4
        for plane in planes if fits else ():
            fits = fits and isinstance(plane, list | tuple) and len(plane) == 3
            fits = fits and all(type(value) is int for value in plane)
            if fits:
                queue, address, words = plane
                fits = 0 <= queue < SLICES and address >= 0 and 1 <= words == planes[0][2]
                fits = fits and address + words <= artifact.spec.words_per_slice
        if not fits:
            raise ArtifactError(
                f"output {name!r} is not four places [slice, word, words] in SRAM; compile it again"
            )
        places[name] = [tuple(plane) for plane in planes]
        _type_of(artifact, name)
    return places


def _type_of(artifact: Artifact, name: str) -> str:
    """``float32``, or what the artifact's bindings say."""
    types = artifact.bindings.get("output_types", {})
    asked = types.get(name, "f32") if isinstance(types, dict) else ""
    if not isinstance(asked, str) or asked not in TYPES:
        raise ArtifactError(f"output {name!r} is of no type {', '.join(TYPES)}; make it again")
    return TYPES[asked]


def describe_outputs(artifact: Artifact, chip: Chip) -> dict[str, Any]:
    """Every output of one chip: its type, how many values, the first few, a hash of all."""
    described: dict[str, Any] = {"chip": chip.chip_id}
    for name, planes in output_places(artifact).items():
        words = np.stack([chip.sram[s, a : a + n] for s, a, n in planes], axis=-1)
        kind = _type_of(artifact, name)
        values = np.ascontiguousarray(words).view(kind).ravel()
        described[name] = {
            "type": kind,
            "values": len(values),
            "first": values[:SHOWN].tolist(),
            "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
        }
    return described
