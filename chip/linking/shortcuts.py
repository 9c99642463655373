"""Work that the compiled loop is spared: moves seen through, received vectors written at once.

Passes over a program's resolved elements; what they spare has the same effects at the same cycles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.jit import jit, jit_inline
from chip.linking.arguments import is_vxm
from chip.linking.elements import N_IN0, N_OUT, OP, Elements, Resolved, piece_elements
from chip.opcodes import MOV, RECEIVE, WRITE

Array = NDArray[Any]


@jit_inline
def _passes(blocks: Array, b: int) -> bool:
    """The block's results are the bytes it takes from streams, unchanged."""
    return blocks[b, OP] == MOV and blocks[b, N_IN0] > 0 and blocks[b, N_IN0] == blocks[b, N_OUT]


@jit
def see_through_moves(c: Elements, sources: Array) -> Any:
    """Let consumers outside the VXM take what a MOV passes from where the MOV takes it.

    Changes ``sources``; returns which MOVs nobody uses any more, bool [elements].
    """
    blocks, block_of, slot_of = c.blocks, c.block, c.slot
    total = block_of.shape[0]
    used = np.zeros(total, np.bool_)
    for e in range(total):
        seen = not is_vxm(blocks[block_of[e], OP])
        for j in range(slot_of[e], slot_of[e + 1]):
            if sources[j] < 0:
                continue
            if seen:
                p = sources[j] // 16
                while _passes(blocks, block_of[p]):
                    sources[j] = sources[slot_of[p] + (sources[j] & 15)]
                    p = sources[j] // 16
            used[sources[j] // 16] = True
    idle = np.zeros(total, np.bool_)
    for e in range(total):
        idle[e] = not used[e] and _passes(blocks, block_of[e])
    return idle


@jit
def straight_from_links(
    c: Elements, r: Resolved, executed: Array, edges: Array, pieces: Array
) -> Any:
    """The WRITE that takes each RECEIVE's vector straight from the link, int64 [elements] or -1.

    ``pieces`` are in execution order.  It must be the vector's only use, and everything that must
    come before the WRITE must run in a piece before the RECEIVE's.
    """
    blocks, block_of, slot_of, sources = c.blocks, c.block, c.slot, r.sources
    total = block_of.shape[0]
    piece_of = np.full(total, -1, np.int64)
    for n in range(pieces.shape[0]):
        first, end = piece_elements(c.units, pieces, n)
        for e in range(first, end):
            piece_of[e] = n
    uses = np.zeros(total, np.int64)
    write_of = np.full(total, -1, np.int64)
    source_of = np.full(total, -1, np.int64)
    for e in range(total):
        for j in range(slot_of[e], slot_of[e + 1]):
            p = sources[j] // 16
            if sources[j] >= 0 and blocks[block_of[p], OP] == RECEIVE:
                uses[p] += 1
                if executed[e] and blocks[block_of[e], OP] == WRITE:
                    write_of[p] = e
                    source_of[e] = p
    for i in range(edges.shape[0]):
        receive = source_of[edges[i, 1]]
        before = edges[i, 0]
        if (
            receive >= 0
            and before != receive
            and executed[before]
            and piece_of[before] >= piece_of[receive]
        ):
            write_of[receive] = -1
    for e in range(total):
        if uses[e] != 1:
            write_of[e] = -1
    return write_of
