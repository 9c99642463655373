"""Block programs: the columnar, cycle-tagged table one chip executes.

A *block* is one instruction with two nested repeat levels, possibly ganged over several MEM
slices.  Meaning, legality and digest are defined on the *expansion* into single instructions
(:func:`expand`): element (i2, i1, g) of a block, for i2 in range(n2), i1 in range(n1), gang
member g, is the instruction

    cycle  = cycle + i1*dc1 + i2*dc2 + g*dcg + skew(g)
    queue  = queue, or gangs[gang][g] for a ganged block
    a      = a + i1*da1 + i2*da2
    stream = s0 (consumers) or out (producers) + g*dsg

``skew(g)`` exists for ganged blocks only and puts all members of the gang on one diagonal of
their stream (later by the number of hops to member 0 along the stream's direction), so a gang of
four slices delivers an aligned SG4 and a gang of sixteen an SG16, wherever the slices lie.
Only READ, WRITE, GATHER and SCATTER may be ganged.  Elements of a block are numbered
``e = i2*n1 + i1`` and, for gangs, ``g`` beside it.

Streams per operand: ``w0`` streams from s0, ``w1`` from s1, ``wo`` from out.  LW reads 16
streams from s0.  GATHER and SCATTER read their offsets from two streams (s1, s1+1).
ACC that emits drives 4 streams from out.

``tag`` names what a producer drives, ``want0``/``want1`` name what the operands s0/s1 must be
(0: unspecified).  The checker requires the resolved producer's tag to equal the wanted one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chip.isa import Op, is_east, slice_position

BLOCK_DTYPE = np.dtype(
    [
        ("cycle", "<i8"),
        ("queue", "<i4"),
        ("op", "<i4"),
        ("n1", "<i4"),
        ("dc1", "<i4"),
        ("da1", "<i4"),
        ("n2", "<i4"),
        ("dc2", "<i4"),
        ("da2", "<i4"),
        ("gang", "<i4"),  # index into Program.gangs, -1: single queue
        ("dcg", "<i4"),
        ("dsg", "<i4"),
        ("a", "<i4"),  # word address, column group, group count, accumulator row
        ("s0", "<i4"),
        ("s1", "<i4"),
        ("out", "<i4"),
        ("w0", "<i4"),
        ("w1", "<i4"),
        ("wo", "<i4"),
        ("mode", "<i4"),
        ("imm", "<i4"),
        ("lo", "<i4"),  # GATHER/SCATTER window of word addresses, inclusive
        ("hi", "<i4"),
        ("tag", "<i4"),
        ("want0", "<i4"),
        ("want1", "<i4"),
    ]
)

BlockTable = NDArray[np.void]


@dataclass
class Program:
    """One chip's program.

    blocks: structured array of BLOCK_DTYPE; gangs: tuples of MEM queues 0..87; maps: lane maps
    int16 [320] for PERMUTE (out lane -> in lane); cycles: the launch's length, the cycle at
    which the last effect has taken place.
    """

    blocks: BlockTable
    gangs: list[tuple[int, ...]] = field(default_factory=list)
    maps: list[NDArray[np.int16]] = field(default_factory=list)
    cycles: int = 0


def new_blocks(n: int) -> BlockTable:
    """``n`` blocks with neutral columns (single element, no operands)."""
    blocks = np.zeros(n, BLOCK_DTYPE)
    blocks["n1"] = 1
    blocks["n2"] = 1
    for name in ("gang", "s0", "s1", "out"):
        blocks[name] = -1
    return blocks


def gang_skew(queues: tuple[int, ...], stream: int) -> NDArray[np.int64]:
    """Cycles by which each gang member is delayed so that all share member 0's diagonal."""
    positions = np.array([slice_position(q) for q in queues], np.int64)
    hops = positions - positions[0]
    skew: NDArray[np.int64] = hops if is_east(stream) else -hops
    return skew


def expand(program: Program) -> BlockTable:
    """Every block expanded into single instructions, sorted by (cycle, queue, op).

    Returns a table of BLOCK_DTYPE in which n1 = n2 = 1 and gang = -1; ``lo``/``hi`` keep the
    window and ``tag``/``want`` are inherited.  Shape [instructions].
    """
    parts: list[BlockTable] = []
    for block in program.blocks:
        n1, n2 = int(block["n1"]), int(block["n2"])
        i1 = np.tile(np.arange(n1), n2)
        i2 = np.repeat(np.arange(n2), n1)
        base = np.repeat(np.asarray(block).reshape(1), n1 * n2)
        base["cycle"] += i1 * int(block["dc1"]) + i2 * int(block["dc2"])
        base["a"] += (i1 * int(block["da1"]) + i2 * int(block["da2"])).astype(np.int32)
        for name in ("n1", "n2"):
            base[name] = 1
        for name in ("dc1", "da1", "dc2", "da2", "dcg", "dsg"):
            base[name] = 0
        if block["gang"] < 0:
            parts.append(base)
            continue
        base["gang"] = -1
        queues = program.gangs[int(block["gang"])]
        consumer = block["op"] in (Op.WRITE, Op.SCATTER)
        name = "s0" if consumer else "out"
        skew = gang_skew(queues, int(block[name]))
        for g, queue in enumerate(queues):
            member = base.copy()
            member["queue"] = queue
            member["cycle"] += g * int(block["dcg"]) + int(skew[g])
            member[name] += g * int(block["dsg"])
            parts.append(member)
    if not parts:
        return new_blocks(0)
    table = np.concatenate(parts)
    return table[np.lexsort((table["op"], table["queue"], table["cycle"]))]
