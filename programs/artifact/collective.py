"""A collective of a fabric as an artifact, so that everything that runs artifacts runs it.

One entry point, ``collective``; the chips' words are in their memory images, and the bindings name
the places of source and result.  Knows no cycles and does not run anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.engine import Chip
from chip.isa import LANES
from interconnect.collectives import FabricCollective
from programs.artifact.bindings import Bindings, planes_of
from programs.artifact.file import TOPOLOGIES, Artifact

ENTRY_POINT = "collective"


def collective_artifact(collective: FabricCollective, data: NDArray[Any]) -> Artifact:
    """The artifact that runs ``collective`` on ``data``, 4-byte values [chips, words, 320].

    Chip c's source holds ``data[c]``; words is the collective's ``source_words``.  Raises
    ValueError for another shape or values that do not have four bytes.
    """
    topology = collective.topology
    shape = (topology.chips, collective.source_words, LANES)
    if data.shape != shape or data.dtype.itemsize != 4:
        raise ValueError(f"data are {data.dtype} {data.shape}: use 4-byte values {shape}")
    fewest, most = TOPOLOGIES.get(topology.name, (0, 0))  # a file's own name is none of them
    little = data.astype(data.dtype.newbyteorder("<"))  # a copy
    planes = little.view(np.uint8).reshape(*shape, 4)
    source = collective.source
    memory = [
        [
            (queue, source.address, np.ascontiguousarray(planes[chip, ..., plane]))
            for plane, queue in enumerate(source.queues)
        ]
        for chip in range(topology.chips)
    ]
    return Artifact(
        spec=collective.spec,
        topology=topology.name if fewest <= topology.chips <= most else "custom",
        chips=topology.chips,
        cables=[(a, link_a, b, link_b) for a, link_a, b, link_b in topology.cables.tolist()],
        programs={ENTRY_POINT: collective.programs},
        program_of_chip=list(collective.program_of_chip),
        memory=memory,
        bindings={
            "operation": collective.operation,
            "inputs": {"source": planes_of(source, collective.source_words)},
            "outputs": {"result": planes_of(collective.result, collective.result_words)},
        },
        predicted_cycles={ENTRY_POINT: collective.cycles},
    )


def read_result(artifact: Artifact, chip: Chip, dtype: type = np.int32) -> NDArray[Any]:
    """The result on ``chip`` after the launch: [words, 320] of ``dtype`` (int32 or float32)."""
    planes = [chip.read_words(*plane) for plane in Bindings.of(artifact).outputs["result"]]
    joined = np.ascontiguousarray(np.stack(planes, axis=-1))
    values: NDArray[Any] = joined.view(np.dtype(dtype).newbyteorder("<"))[..., 0]
    return values.astype(dtype)
