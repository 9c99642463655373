"""A program's elements (single instructions) as arrays, and the block matrix they come from.

The columns of a block table turned into an int64 matrix, its expansion into elements, and two
small tools of the passes over elements: ordering by time and collecting edges.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.isa import EAST_STREAMS
from chip.jit import jit, jit_inline
from chip.opcodes import SCATTER, WRITE

Array = NDArray[Any]

# Columns of the block matrix: the fields of BLOCK_DTYPE in order, then what linking adds.
CYCLE, QUEUE, OP, N1, DC1, DA1, N2, DC2, DA2, GANG, DCG, DSG, A = range(13)
S0, S1, OUT, W0, W1, WO, MODE, IMM, LO, HI, TAG, WANT0, WANT1 = range(13, 26)
N_IN0, N_IN1, N_OUT, LATENCY, SLOT_BASE, UNGANGED, COLUMNS = range(26, 33)

# Fault numbers: indices into chip.faults.CODES.
QUEUE_FAULT, BANK, IN_FLIGHT, BOUNDS, ALIGN, DRIVER, MISSING, WANT, ALU, MXM = range(10)
SXM, LINK, SYNC_FAULT, OFFSET = range(10, 14)

#: Column groups of a plane, and columns (streams of an LW) in each.
GROUPS, GROUP_COLUMNS = 20, 16
NEVER = -(1 << 60)


class Elements(NamedTuple):
    """All elements, unit by unit in time order; ``unit`` is a block or a member of its gang.

    blocks int64 [blocks, COLUMNS]; block, cycle, queue, a, stream int64 [elements]; units int64
    [units, 4] (first element, rows, gang size, block); slot and out int64 [elements + 1]: where
    the bytes an element takes, and those it drives, begin in arrays of all of them.
    """

    blocks: Array
    block: Array
    cycle: Array
    queue: Array
    a: Array
    stream: Array
    units: Array
    slot: Array
    out: Array


class Resolved(NamedTuple):
    """Where every operand comes from; a source is ``16 * element + byte`` of its producer.

    sources int64 [slots]; prev_write and next_write int64 [elements] of READs; edges int64 [n, 2]:
    dependencies that are not operands; abc_of int64 [elements] (the ABC of an ACC); install_of
    int64 [elements, 2] (of an ABC, low and high plane); loads int64 [installs, GROUPS]: the LW of
    each column group.  -1 where there is none.
    """

    sources: Array
    prev_write: Array
    next_write: Array
    edges: Array
    abc_of: Array
    install_of: Array
    loads: Array


class UnitRules(NamedTuple):
    """The numbers of a chip that resolving uses: cycles, accumulator rows, words of a bank."""

    write_cycles: int
    alu_cycles: int
    install_cycles: int
    reload_gap_cycles: int
    multiply_cycles: int
    notify_cycles: int
    send_spacing_cycles: int
    accumulator_rows: int
    words_per_bank: int


class Edges(NamedTuple):
    """Dependencies (earlier, later) as they are found: int64 [room, 2], and int64 [1] how many."""

    pairs: Array
    found: Array


@jit
def expand(blocks: Array, gangs: Array, gang_start: Array, skews: Array, total: int) -> Any:
    """Elements of all blocks, unit by unit, each unit in time order.

    A unit is a block, or one member of a gang that had to be taken apart.  Returns element
    columns int64 [total] (block, cycle, queue, a, stream) and units, as of ``Elements``.
    """
    block_of = np.empty(total, np.int64)
    cycle_of = np.empty(total, np.int64)
    queue_of = np.empty(total, np.int64)
    a_of = np.empty(total, np.int64)
    stream_of = np.empty(total, np.int64)
    unit_count = 0
    for b in range(blocks.shape[0]):
        gang = blocks[b, GANG]
        size = gang_start[gang + 1] - gang_start[gang] if gang >= 0 else 1
        unit_count += size if blocks[b, UNGANGED] else 1
    units = np.empty((unit_count, 4), np.int64)
    e = 0
    u = 0
    for b in range(blocks.shape[0]):
        n = blocks[b, N1] * blocks[b, N2]
        cycles = np.empty(n, np.int64)
        addresses = np.empty(n, np.int64)
        k = 0
        sorted_in_time = True
        for i2 in range(blocks[b, N2]):
            for i1 in range(blocks[b, N1]):
                cycles[k] = blocks[b, CYCLE] + i1 * blocks[b, DC1] + i2 * blocks[b, DC2]
                addresses[k] = blocks[b, A] + i1 * blocks[b, DA1] + i2 * blocks[b, DA2]
                if k > 0 and cycles[k] < cycles[k - 1]:
                    sorted_in_time = False
                k += 1
        if not sorted_in_time:
            order = np.argsort(cycles, kind="mergesort")
            cycles = cycles[order]
            addresses = addresses[order]
        gang = blocks[b, GANG]
        size = gang_start[gang + 1] - gang_start[gang] if gang >= 0 else 1
        consumer = blocks[b, OP] == WRITE or blocks[b, OP] == SCATTER
        stream = blocks[b, S0] if consumer else blocks[b, OUT]
        apart = blocks[b, UNGANGED] != 0
        for part in range(size if apart else 1):
            units[u, 0] = e
            units[u, 1] = n
            units[u, 2] = 1 if apart else size
            units[u, 3] = b
            u += 1
            for k in range(n):
                for g in range(part, part + 1 if apart else size):
                    block_of[e] = b
                    cycle_of[e] = cycles[k]
                    queue_of[e] = blocks[b, QUEUE]
                    a_of[e] = addresses[k]
                    stream_of[e] = stream
                    if gang >= 0:
                        member = gang_start[gang] + g
                        east = 1 if stream < EAST_STREAMS else 0
                        cycle_of[e] += g * blocks[b, DCG] + skews[member, east]
                        queue_of[e] = gangs[member]
                        stream_of[e] += g * blocks[b, DSG]
                    e += 1
    return block_of, cycle_of, queue_of, a_of, stream_of, units


@jit
def time_order(keys: Array) -> Any:
    """Stable order of int64 ``keys``: a counting sort where the range is small."""
    n = keys.shape[0]
    order = np.empty(n, np.int64)
    if n == 0:
        return order
    low = keys.min()
    span = keys.max() - low + 1
    if span > 8 * n + 4_000_000:
        return np.argsort(keys, kind="mergesort")
    counts = np.zeros(span + 1, np.int64)
    for i in range(n):
        counts[keys[i] - low + 1] += 1
    for i in range(span):
        counts[i + 1] += counts[i]
    for i in range(n):
        k = keys[i] - low
        order[counts[k]] = i
        counts[k] += 1
    return order


@jit_inline
def piece_elements(units: Array, pieces: Array, n: int) -> Any:
    """First and end element of piece ``n``; pieces as of ``chip.linking.order.cut_blocks``."""
    u = pieces[n, 1]
    size = units[u, 2]
    return units[u, 0] + pieces[n, 2] * size, units[u, 0] + pieces[n, 3] * size


@jit_inline
def push(edges: Edges, source: Any, target: Any) -> None:
    """Append an edge unless it repeats the last; there must be room."""
    n = edges.found[0]
    if source < 0 or source == target:
        return
    if n > 0 and edges.pairs[n - 1, 0] == source and edges.pairs[n - 1, 1] == target:
        return
    edges.pairs[n, 0] = source
    edges.pairs[n, 1] = target
    edges.found[0] = n + 1
