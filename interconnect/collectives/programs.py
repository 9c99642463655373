"""Collectives of any fabric as real programs: Read, Send, Receive, Write and VXM adds by the cycle.

The steps of ``interconnect.collectives.steps`` are lowered one after another: messages get minimal
routes and link slots, and after the cycle at which the last vector of the step is readable, known
here and the same for all chips, every chip adds or copies.  ``chip.checker`` proves the programs
legal and that each consumer meets the vector meant; ``interconnect.vectors`` proves that
they fit each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chip.isa import Op
from chip.program import Program
from chip.scheduling import CompileError, Place
from chip.spec import ChipSpec
from interconnect.collectives import steps as fabric_steps
from interconnect.collectives.blocks import FabricBlocks
from interconnect.collectives.steps import OPERATIONS, RESULT, SOURCE, Groups, Step
from interconnect.wires import LINK_NUMBERS, WireSchedule, collisions, concatenate, link_frames
from interconnect.wiring import Topology

__all__ = ["OPERATIONS", "FabricCollective", "compile_fabric_collective", "compile_point_to_point"]

@dataclass(frozen=True)
class FabricCollective:
    """Programs of a collective and where its 4-byte words [words, 320] lie.

    Chip c runs ``programs[program_of_chip[c]]``; all retire at ``cycles``.  source, result: the
    same places on every chip, with their numbers of words; see
    :func:`compile_fabric_collective` for what they hold.  barriers: cycles from which the data of
    each step are readable on every chip.  wires: every run and hop.
    """

    operation: str
    spec: ChipSpec
    topology: Topology
    programs: list[Program]
    program_of_chip: list[int]
    cycles: int
    source: Place
    source_words: int
    result: Place
    result_words: int
    barriers: list[int]
    wires: WireSchedule


def compile_fabric_collective(
    operation: str,
    topology: Topology,
    words: int,
    spec: ChipSpec,
    *,
    add: Op = Op.ADD_I32,
    root: int = 0,
) -> FabricCollective:
    """Programs for one collective of ``words`` 4-byte words [words, 320].

    all-reduce: the sums of every chip's words, on every chip.  reduce-scatter: source word
    j * words on goes to chip j, result: the sums.  all-gather: result word j * words on is chip
    j's.  broadcast: the words of chip ``root``.  all-to-all: source word j * words on goes to chip
    j, result word i * words on came from chip i.  ``add`` is ADD_I32 or ADD_F32; sums are
    ((m0 + m1) + ...) over the members of a node, then over the nodes.

    Raises ValueError for an unknown operation, ``add`` or root, CompileError for words that do not
    fit the buffers or cables that cannot be used.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"collective {operation!r}: known are {', '.join(OPERATIONS)}")
    if add not in (Op.ADD_I32, Op.ADD_F32):
        raise ValueError(f"a collective adds with ADD_I32 or ADD_F32, not {Op(add).name}")
    if not 0 <= root < topology.chips:
        raise ValueError(f"root {root}: chips are 0..{topology.chips - 1}")
    needed = fabric_steps.words_needed(operation, topology.chips, words)
    _require_words(words, max(needed), spec)
    steps = fabric_steps.steps_of(operation, _groups(topology), words, root)
    return _lower(operation, topology, steps, needed, spec, add)


def compile_point_to_point(
    topology: Topology, source: int, destination: int, words: int, spec: ChipSpec
) -> FabricCollective:
    """Programs that move ``words`` words of chip ``source`` to chip ``destination``."""
    if source == destination or not 0 <= min(source, destination) <= max(
        source, destination
    ) < topology.chips:
        raise ValueError(
            f"from chip {source} to chip {destination}: use two chips of 0..{topology.chips - 1}"
        )
    _require_words(words, words, spec)
    steps = fabric_steps.point_to_point(topology.chips, source, destination, words)
    return _lower("point-to-point", topology, steps, (words, words), spec, Op.ADD_I32)


def _require_words(words: int, most: int, spec: ChipSpec) -> None:
    if words < 1 or most > spec.words_per_slice:
        raise CompileError(
            f"{words} words need {most} words of a buffer: give 1 or more, within "
            f"{spec.words_per_slice}"
        )


def _groups(topology: Topology) -> Groups:
    """The nodes; chips of a topology without nodes talk to each other directly."""
    members = topology.chips_per_node
    return Groups(topology.chips, members if members > 1 else topology.chips)


def _lower(
    operation: str, topology: Topology, steps: list[Step], needed: tuple[int, int],
    spec: ChipSpec, add: Op,
) -> FabricCollective:  # fmt: skip
    _require_links(topology, spec)
    fabric = FabricBlocks(topology, spec)
    barriers: list[int] = []
    wires: list[WireSchedule] = []
    ready = 0
    for step in steps:
        arrived = fabric.move(step, ready, wires)
        barriers.append(arrived)
        ready = fabric.compute(step, arrived, add)
    programs, program_of_chip = fabric.programs(ready)
    return FabricCollective(
        operation, spec, topology, programs, program_of_chip, ready,
        Place(fabric.working[SOURCE], 0), needed[0], Place(fabric.working[RESULT], 0), needed[1],
        barriers, concatenate(wires),
    )  # fmt: skip


def _require_links(topology: Topology, spec: ChipSpec) -> None:
    """Refuse cables on links without a buffer, and those whose forwards could collide.

    With a turn of one frame no forward meets a Write: where both fall on one cycle of the frame,
    the Read is one vector behind the Write, hence in another slice of the quad.
    """
    frames = link_frames(spec)
    cables = np.asarray(topology.cables, np.int64).reshape(-1, 4)
    turn = frames.turn_frames * spec.send_spacing_cycles
    turn_phase = (frames.phase - frames.rotation * spec.send_spacing_cycles) % turn
    for pair in np.unique(np.concatenate([cables[:, [1, 3]], cables[:, [3, 1]]]), axis=0).tolist():
        sender, entry = pair
        if sender not in LINK_NUMBERS or entry not in LINK_NUMBERS:
            raise CompileError(
                f"a cable on link {max(pair, key=lambda n: n not in LINK_NUMBERS)}: programs have "
                f"buffers for links {', '.join(map(str, LINK_NUMBERS))}"
            )
        met = collisions(spec, turn_phase, turn, entry, frames.received[entry])
        if frames.turn_frames > 1 and (met[:, 0] == sender).any():
            raise CompileError(
                f"a cable from link {sender} to link {entry} with frames of "
                f"{spec.send_spacing_cycles} cycles: forwards could meet writes; use equal links "
                "at both ends or global links"
            )
