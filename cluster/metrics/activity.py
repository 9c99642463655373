"""What a launch does, known before it runs: blocks by unit and vectors by link, from the programs.

Execution is static, so nothing is counted while chips run: each program's block table is summed up
once, and the sums are multiplied by the launches that have been done.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chip.isa import C2C_QUEUE, LINKS, Op
from chip.program import Program
from cluster.metrics.table import UNITS
from programs.artifact import Artifact

Ints = NDArray[np.int64]

#: Functional unit of an opcode's group, ``op // 32``; the VXM has two groups.
_UNIT_OF_GROUP = np.array([0, 1, 2, 2, 3, 4, 5], np.int64)


@dataclass(frozen=True, eq=False)
class Activity:
    """One launch of a program: blocks and instructions int64 [6] by ``UNITS``, vectors sent on
    each link int64 [16], cycles of the launch."""

    blocks: Ints
    instructions: Ints
    vectors: Ints
    cycles: int


def activity_of(program: Program) -> Activity:
    """Sum up a program's block table."""
    table = program.blocks
    units = _UNIT_OF_GROUP[table["op"] // 32]
    sizes = np.array([*(len(gang) for gang in program.gangs), 1], np.int64)
    # Gang -1, a single queue, takes the last size.
    elements = table["n1"].astype(np.int64) * table["n2"] * sizes[table["gang"]]
    sends = table["op"] == Op.SEND
    return Activity(
        np.bincount(units, minlength=len(UNITS)),
        _sums(units, elements, len(UNITS)),
        _sums(table["queue"][sends] - C2C_QUEUE, elements[sends], LINKS),
        program.cycles,
    )


def _sums(index: Ints, amount: Ints, size: int) -> Ints:
    total = np.zeros(size, np.int64)
    np.add.at(total, index, amount)
    return total


@dataclass(frozen=True, eq=False)
class Done:
    """What chips have done: blocks and instructions int64 [chips, 6], vectors int64 [chips, 16],
    cycles int64 [chips]."""

    blocks: Ints
    instructions: Ints
    vectors: Ints
    cycles: Ints


class RunActivity:
    """What the launches of an artifact's chips came to; each program is summed up at first use."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._of_entry: dict[str, Done] = {}

    def after(self, launches: dict[str, Ints]) -> Done:
        """The sums after ``launches``: how often each chip ran an entry point, int64 [chips]."""
        chips = self._artifact.chips
        total = Done(
            blocks=np.zeros((chips, len(UNITS)), np.int64),
            instructions=np.zeros((chips, len(UNITS)), np.int64),
            vectors=np.zeros((chips, LINKS), np.int64),
            cycles=np.zeros(chips, np.int64),
        )
        for entry, times in launches.items():
            once = self._once(entry)
            total.blocks[...] += times[:, None] * once.blocks
            total.instructions[...] += times[:, None] * once.instructions
            total.vectors[...] += times[:, None] * once.vectors
            total.cycles[...] += times * once.cycles
        return total

    def _once(self, entry: str) -> Done:
        """One launch of ``entry`` on every chip."""
        if entry not in self._of_entry:
            each = [activity_of(program) for program in self._artifact.programs[entry]]
            rows = [each[number] for number in self._artifact.program_of_chip]
            self._of_entry[entry] = Done(
                blocks=np.stack([row.blocks for row in rows]),
                instructions=np.stack([row.instructions for row in rows]),
                vectors=np.stack([row.vectors for row in rows]),
                cycles=np.array([row.cycles for row in rows], np.int64),
            )
        return self._of_entry[entry]
