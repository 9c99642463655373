"""The least-latency all-reduce of a node, as programs: every chip to every chip, then one tree.

These are the kernels a decoder uses between its layers (``interconnect.collectives``), compiled
alone.  Sums are ((0+1)+(2+3))+((4+5)+(6+7)) over chip ids on every chip.
"""

from __future__ import annotations

import numpy as np

from chip import isa
from chip.isa import LINKS, Op
from chip.spec import ChipSpec
from interconnect.collectives.node import compile_collective
from interconnect.collectives.programs import FabricCollective
from interconnect.wires import WireSchedule
from interconnect.wiring import Topology

#: Words from which the tree would write a word while it reads one of the same bank.
MOST_WORDS = 10


def compile_one_shot(
    topology: Topology, operation: str, words: int, spec: ChipSpec, add: Op = Op.ADD_I32
) -> FabricCollective | None:
    """The one-shot all-reduce of ``words`` words on a node of 2, 4 or 8 chips; None elsewhere."""
    if topology.name != "node" or topology.chips < 2 or operation != "all-reduce":
        return None
    if not 1 <= words <= MOST_WORDS:
        return None
    compiled = compile_collective(operation, topology.chips, words, spec, add=add)
    # The wiring by XOR makes all chips run one program.
    assert len({program.blocks.tobytes() for program in compiled.programs}) == 1
    blocks = compiled.programs[0].blocks
    sends = blocks[blocks["op"] == Op.SEND]
    runs = len(sends)
    chip = np.repeat(np.arange(topology.chips, dtype=np.int64), runs)
    link = np.tile(sends["queue"].astype(np.int64) - isa.C2C_QUEUE, topology.chips)
    vectors = np.tile((sends["n1"] * sends["n2"]).astype(np.int64), topology.chips)
    wires = WireSchedule(
        chip=chip, link=link, cycle=np.tile(sends["cycle"].astype(np.int64), topology.chips),
        vectors=vectors, message=np.arange(len(chip), dtype=np.int64), hop=np.zeros_like(chip),
        source=chip, destination=topology.peer.reshape(-1)[chip * LINKS + link].astype(np.int64),
        message_vectors=vectors, ready=np.zeros_like(chip), latency=spec.send_to_receive_cycles,
        spacing=spec.send_spacing_cycles,
    )  # fmt: skip
    return FabricCollective(
        operation, spec, topology, compiled.programs[:1], [0] * topology.chips, compiled.cycles,
        compiled.source, words, compiled.result, words, [], wires,
    )  # fmt: skip
