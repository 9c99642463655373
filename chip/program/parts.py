"""Parts of a program, and which counter takes what each block's conversions saturate.

Compilers give every copy of a piece of code tags of its own, ``part << 16`` and what follows
(``chip.scheduling.rename_tags``), so the parts can be told from the blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip.isa import VXM_ARITY, Op
from chip.program.blocks import BlockTable
from chip.saturation import FP16, INT8, INT32, KINDS

#: Bits of a tag below its part's number.
PART_SHIFT = 16
_KIND_OF = {Op.CVT_F32_F16: FP16, Op.CVT_F32_I32: INT32, Op.CVT_I32_I8: INT8}


def tagged_part(blocks: BlockTable) -> NDArray[np.int64]:
    """The part whose values a block drives or takes, int64 [blocks]; -1 where it names none."""
    named = np.max([blocks[name] for name in ("tag", "want0", "want1")], axis=0).astype(np.int64)
    return np.where(named > 0, named >> PART_SHIFT, -1)


def part_of_blocks(blocks: BlockTable) -> NDArray[np.int64]:
    """The part of every VXM block, int64 [blocks]; 0 for the others.

    A block without a tag, as a conversion inside a chain of ALUs, is of the part of the last one
    before it in time that names a value: parts take the VXM in turn.
    """
    part = np.zeros(len(blocks), np.int64)
    vxm = np.flatnonzero(np.isin(blocks["op"], [int(op) for op in VXM_ARITY]))
    vxm = vxm[np.argsort(blocks["cycle"][vxm], kind="stable")]
    named = tagged_part(blocks[vxm])
    before = np.maximum.accumulate(np.where(named >= 0, np.arange(len(vxm)), -1))
    part[vxm] = np.where(before >= 0, named[before], 0)
    return part


def counter_of_blocks(blocks: BlockTable) -> NDArray[np.int64]:
    """The counter of every block that converts to a narrower range, int64 [blocks]; else -1.

    Counters are numbered ``part * len(KINDS) + kind``.
    """
    counter = np.full(len(blocks), -1, np.int64)
    parts = part_of_blocks(blocks)
    for op, kind in _KIND_OF.items():
        own = blocks["op"] == op
        counter[own] = parts[own] * len(KINDS) + kind
    return counter
