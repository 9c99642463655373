"""Collectives of any fabric as real programs: Read, Send, Receive, Write and VXM adds by the cycle.

The steps of ``interconnect.collectives.steps`` as ``schedule`` has timed them, lowered one after
another.  ``chip.checker`` proves the programs legal and that each consumer meets the vector meant;
``interconnect.vectors`` proves that they fit each other.  A few words on a node have programs of
their own, the kernels a decoder uses between its layers (``node``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chip import isa
from chip.isa import LINKS, Op
from chip.program import Program
from chip.scheduling import CompileError, Place
from chip.spec import ChipSpec
from interconnect.collectives.algorithms import collective_steps
from interconnect.collectives.blocks import FabricBlocks
from interconnect.collectives.node import compile_collective
from interconnect.collectives.quads import quads_of
from interconnect.collectives.schedule import TimedSteps, schedule_steps
from interconnect.collectives.steps import RESULT, SOURCE, Step, words_needed
from interconnect.wires import LINK_NUMBERS, WireSchedule, collisions, concatenate, link_frames
from interconnect.wiring import Topology

#: Operations that have programs.
OPERATIONS = ("all-reduce", "reduce-scatter", "all-gather", "broadcast", "all-to-all")

#: Words from which the tree of a node would write a word while it reads one of the same bank.
MOST_WORDS = 10


@dataclass(frozen=True)
class FabricCollective:
    """Programs of a collective and where its 4-byte words [words, 320] lie.

    algorithm: of ``steps``, or ``tree``: one-shot, added by the tree of a node.

    Chip c runs ``programs[program_of_chip[c]]``; all retire at ``cycles``.  source, result: the
    same places on every chip, with their numbers of words; see
    :func:`compile_fabric_collective` for what they hold.  barriers: cycles from which the data of
    each step are readable on every chip.  wires: every run and hop.
    """

    operation: str
    algorithm: str
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
    algorithm: str = "hierarchical",
    add: Op = Op.ADD_I32,
    root: int = 0,
) -> FabricCollective:
    """Programs for one collective of ``words`` 4-byte words [words, 320].

    all-reduce: the sums of every chip's words, on every chip.  reduce-scatter: source word
    j * words on goes to chip j, result: the sums.  all-gather: result word j * words on is chip
    j's.  broadcast: the words of chip ``root``.  all-to-all: source word j * words on goes to chip
    j, result word i * words on came from chip i.  ``add`` is ADD_I32 or ADD_F32; hierarchical sums
    are ((m0 + m1) + ...) over the members of a node, then over the nodes.

    Raises ValueError for an unknown operation, algorithm, ``add`` or root, CompileError for words
    that do not fit the buffers or cables that cannot be used.
    """
    require_compilable(operation, topology, words, spec, add, root)
    steps = collective_steps(topology, operation, algorithm, words, root=root)
    launch = schedule_steps(topology, steps, spec)
    return lower(operation, algorithm, topology, words, spec, steps, launch, add)


def require_compilable(
    operation: str, topology: Topology, words: int, spec: ChipSpec, add: Op, root: int = 0
) -> None:
    """Raise what ``compile_fabric_collective`` raises for arguments that have no programs."""
    if operation not in OPERATIONS:
        raise ValueError(f"collective {operation!r}: known are {', '.join(OPERATIONS)}")
    if add not in (Op.ADD_I32, Op.ADD_F32):
        raise ValueError(f"a collective adds with ADD_I32 or ADD_F32, not {Op(add).name}")
    if not 0 <= root < topology.chips:
        raise ValueError(f"root {root}: chips are 0..{topology.chips - 1}")
    most = max(words_needed(operation, topology.chips, words))
    if words < 1 or most > spec.words_per_slice:
        raise CompileError(
            f"{words} words need {most} words of a buffer: give 1 or more, within "
            f"{spec.words_per_slice}"
        )
    _require_links(topology, spec)


def lower(
    operation: str,
    algorithm: str,
    topology: Topology,
    words: int,
    spec: ChipSpec,
    steps: list[Step],
    launch: TimedSteps,
    add: Op,
) -> FabricCollective:
    """The programs of scheduled steps."""
    fabric = FabricBlocks(topology, spec)
    for step, wires, arrived in zip(steps, launch.wires, launch.arrived, strict=True):
        fabric.move(step, wires)
        fabric.compute(step, arrived, add)
    programs, program_of_chip = fabric.programs(launch.cycles)
    source, result = (Place(quads_of(spec).working[b], 0) for b in (SOURCE, RESULT))
    needed = words_needed(operation, topology.chips, words)
    return FabricCollective(
        operation,
        algorithm,
        spec,
        topology,
        programs,
        program_of_chip,
        launch.cycles,
        source,
        needed[0],
        result,
        needed[1],
        launch.arrived,
        concatenate(launch.wires),
    )


def compile_tree(
    topology: Topology, operation: str, words: int, spec: ChipSpec, add: Op = Op.ADD_I32
) -> FabricCollective | None:
    """The least-latency all-reduce of ``words`` words on a node of 2, 4 or 8 chips; None elsewhere.

    Every chip sends to every chip, then one tree: sums are ((0+1)+(2+3))+((4+5)+(6+7)) over chip
    ids on every chip.
    """
    if topology.name != "node" or topology.chips < 2 or operation != "all-reduce":
        return None
    if not 1 <= words <= MOST_WORDS:
        return None
    compiled = compile_collective(operation, topology.chips, words, spec, add=add)
    # The wiring by XOR makes all chips run one program.
    (blocks,) = {p.blocks.tobytes(): p.blocks for p in compiled.programs}.values()
    sends = blocks[blocks["op"] == Op.SEND]
    chip = np.repeat(np.arange(topology.chips, dtype=np.int64), len(sends))
    link = np.tile(sends["queue"].astype(np.int64) - isa.C2C_QUEUE, topology.chips)
    vectors = np.tile((sends["n1"] * sends["n2"]).astype(np.int64), topology.chips)
    wires = WireSchedule(
        chip=chip,
        link=link,
        cycle=np.tile(sends["cycle"].astype(np.int64), topology.chips),
        vectors=vectors,
        message=np.arange(len(chip), dtype=np.int64),
        hop=np.zeros_like(chip),
        source=chip,
        destination=topology.peer.reshape(-1)[chip * LINKS + link].astype(np.int64),
        message_vectors=vectors,
        ready=np.zeros_like(chip),
        latency=spec.send_to_receive_cycles,
        spacing=spec.send_spacing_cycles,
    )
    return FabricCollective(
        operation,
        "tree",
        spec,
        topology,
        compiled.programs[:1],
        [0] * topology.chips,
        compiled.cycles,
        compiled.source,
        words,
        compiled.result,
        words,
        [],
        wires,
    )


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
