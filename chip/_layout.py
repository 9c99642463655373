"""From resolved elements to an execution table: uses, order, block pieces, rows, arguments.

Every dependency must point to a piece of a block with a strictly earlier start cycle; the later
accessor's block is cut at the violating element until that holds.  Values that are SRAM words
stay references; the others get rows of scratch, reused as soon as their last use has run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip._jit import jit
from chip._resolve import (
    ABC,
    ACC,
    GATHER,
    HI,
    IW,
    LO,
    LW,
    MODE,
    N_IN0,
    N_OUT,
    NEVER,
    OP,
    READ,
    RECEIVE,
    S0,
    S1,
    SCATTER,
    SEND,
    W0,
    W1,
    WO,
    WRITE,
    push,
)

Array = NDArray[Any]
WORD = 1 << 16  # bit of ``need``: the 32-bit result row itself is used
WORD_ROWS = 4  # rows of 32-bit scratch that belong to the kernels
SRAM_ROWS = 88 * 8192
IMMEDIATE = 81


@jit
def slot_count(op: int, in0: int, in1: int) -> int:
    """Source slots of one element."""
    return 8 if op >= 64 and op < 128 else in0 + in1


@jit
def argument_count(op: int) -> int:
    """int32 arguments of one executed element."""
    if op >= 64 and op < 128:
        return 13
    if op == READ or op == SEND or op == RECEIVE or op == 162 or op == 163:
        return 2
    if op == WRITE:
        return 4
    if op == GATHER or op == SCATTER:
        return 8
    if op == ACC:
        return 14
    if op == 160:
        return 18
    return 32 if op == 161 else 17


@jit
def find_uses(
    blocks: Array, block_of: Array, cycle_of: Array, slot_of: Array, sources: Array,
    next_write: Array, abc_of: Array, install_of: Array, install_loads: Array,
) -> Any:
    """Which elements run at all: bool [elements].

    A READ runs (as a copy) only when its word is overwritten before its last use.
    """
    total = block_of.shape[0]
    last = np.full(total, NEVER, np.int64)
    install_last = np.full(install_loads.shape[0], NEVER, np.int64)
    executed = np.zeros(total, np.bool_)
    for e in range(total):
        b = block_of[e]
        op = blocks[b, OP]
        if op < 32 or op == READ or op == LW or op == IW or op == ABC or op == 194:
            continue
        executed[e] = True
        user = e
        if op == ACC:
            user = abc_of[e]
            for half in range(2):
                install = install_of[user, half]
                if install >= 0:
                    install_last[install] = max(install_last[install], cycle_of[e])
        for j in range(slot_of[user], slot_of[user + 1]):
            if sources[j] >= 0:
                p = sources[j] // 16
                last[p] = max(last[p], cycle_of[e])
    for i in range(install_loads.shape[0]):
        if install_last[i] == NEVER:
            continue
        for j in range(20):
            load = install_loads[i, j]
            if load >= 0:
                for k in range(slot_of[load], slot_of[load + 1]):
                    p = sources[k] // 16
                    last[p] = max(last[p], install_last[i])
    for e in range(total):
        if blocks[block_of[e], OP] == READ and next_write[e] >= 0:
            executed[e] = cycle_of[next_write[e]] <= last[e]
    return executed


@jit
def _use(
    edges: Array, count: int, source: int, user: int, is_reference: bool, prev_write: Array,
    next_write: Array,
) -> Any:
    """Edges of ``user`` consuming ``source``'s product."""
    if is_reference:
        edges, count = push(edges, count, prev_write[source], user)
        if next_write[source] >= 0:
            edges, count = push(edges, count, user, next_write[source])
    else:
        edges, count = push(edges, count, source, user)
    return edges, count


@jit
def collect_edges(
    blocks: Array, block_of: Array, slot_of: Array, sources: Array, executed: Array,
    prev_write: Array, next_write: Array, abc_of: Array, install_of: Array,
    install_loads: Array, known: Array,
) -> Any:
    """All dependencies int64 [n, 2] between executed elements; ``known`` come from resolving."""
    count = known.shape[0]
    edges = np.empty((max(1024, 2 * count), 2), np.int64)
    edges[:count] = known
    total = block_of.shape[0]
    plain = np.ones(install_loads.shape[0], np.bool_)
    for i in range(install_loads.shape[0]):
        for j in range(20):
            load = install_loads[i, j]
            if load >= 0:
                for k in range(slot_of[load], slot_of[load + 1]):
                    p = sources[k] // 16
                    if executed[p] or prev_write[p] >= 0 or next_write[p] >= 0:
                        plain[i] = False
    for e in range(total):
        if not executed[e]:
            continue
        op = blocks[block_of[e], OP]
        if op == READ:
            edges, count = push(edges, count, prev_write[e], e)
            edges, count = push(edges, count, e, next_write[e])
            continue
        user = abc_of[e] if op == ACC else e
        for j in range(slot_of[user], slot_of[user + 1]):
            if sources[j] >= 0:
                p = sources[j] // 16
                reference = not executed[p]
                edges, count = _use(edges, count, p, e, reference, prev_write, next_write)
        if op != ACC:
            continue
        for half in range(2):
            install = install_of[user, half]
            if install < 0 or plain[install]:
                continue
            for j in range(20):
                load = install_loads[install, j]
                if load < 0:
                    continue
                for k in range(slot_of[load], slot_of[load + 1]):
                    p = sources[k] // 16
                    reference = not executed[p]
                    edges, count = _use(edges, count, p, e, reference, prev_write, next_write)
    return edges[:count]


@jit
def cut_blocks(
    units: Array, cycle_of: Array, executed: Array, edges: Array, unit_order: Array,
    max_span: int,
) -> Any:
    """Cut units into pieces until every edge points to an earlier start.

    Returns pieces int64 [n, 4] (start cycle, unit, first row, end row), the latest start of
    every element, and the unit that must be taken apart into gang members (or -1).
    """
    total = cycle_of.shape[0]
    unit_of = np.empty(total, np.int64)
    for u in range(units.shape[0]):
        unit_of[units[u, 0] : units[u, 0] + units[u, 1] * units[u, 2]] = u
    first = np.zeros(total + 1, np.int64)
    for i in range(edges.shape[0]):
        first[edges[i, 1] + 1] += 1
    for e in range(total):
        first[e + 1] += first[e]
    incoming = np.empty(edges.shape[0], np.int64)
    place = first[:total].copy()
    for i in range(edges.shape[0]):
        incoming[place[edges[i, 1]]] = edges[i, 0]
        place[edges[i, 1]] += 1
    start_of = np.full(total, NEVER, np.int64)
    cut = np.zeros(total, np.bool_)  # at the first element of a row
    runs = np.zeros(units.shape[0], np.bool_)
    for e in range(total):
        if executed[e]:
            runs[unit_of[e]] = True
    apart = -1
    changed = True
    while changed and apart < 0:
        changed = False
        for i in range(units.shape[0]):
            u = unit_order[i]
            if not runs[u]:
                continue
            size = units[u, 2]
            start = np.int64(NEVER)
            for k in range(units[u, 1]):
                e0 = units[u, 0] + k * size
                low = np.int64(1 << 60)
                high = np.int64(NEVER)
                for e in range(e0, e0 + size):
                    if executed[e]:
                        low = min(low, cycle_of[e])
                        high = max(high, cycle_of[e])
                if high == NEVER:
                    continue
                latest = np.int64(NEVER)
                for e in range(e0, e0 + size):
                    if executed[e]:
                        for j in range(first[e], first[e + 1]):
                            if unit_of[incoming[j]] != u:
                                latest = max(latest, start_of[incoming[j]])
                if start == NEVER or cut[e0] or high - start >= max_span or latest >= start:
                    cut[e0] = True
                    start = low
                    if size > 1 and (latest >= low or high - low >= max_span):
                        apart = u
                if start_of[e0] != start:
                    changed = True
                    for e in range(e0, e0 + size):
                        start_of[e] = start
    count = 0
    for e in range(total):
        count += 1 if cut[e] else 0
    pieces = np.empty((count, 4), np.int64)
    n = 0
    for u in range(units.shape[0]):
        for k in range(units[u, 1]):
            e0 = units[u, 0] + k * units[u, 2]
            if cut[e0]:
                pieces[n, 0] = start_of[e0]
                pieces[n, 1] = u
                pieces[n, 2] = k
                pieces[n, 3] = units[u, 1]
                if n > 0 and pieces[n - 1, 1] == u:
                    pieces[n - 1, 3] = k
                n += 1
    return pieces, start_of, apart


@jit
def _is_word(blocks: Array, block_of: Array, sources: Array, slot: int, width: int) -> bool:
    """Four source bytes that are exactly the 32-bit result of one ALU or plane."""
    if width != 4:
        return False
    p = sources[slot] // 16
    op = blocks[block_of[p], OP]
    if op != ACC and (op < 64 or op >= 128):
        return False
    for j in range(4):
        if sources[slot + j] != p * 16 + j:
            return False
    return True


@jit
def lay_out(
    blocks: Array, block_of: Array, cycle_of: Array, queue_of: Array, a_of: Array,
    slot_of: Array, out_of: Array, sources: Array, executed: Array, abc_of: Array,
    install_of: Array, install_loads: Array, units: Array, pieces: Array,
) -> Any:
    """Scratch rows and arguments of every piece, ``pieces`` being in execution order.

    Returns table int64 [pieces, 3] (first argument, executed elements, argument count each),
    arguments int32, weight rows int32, and the numbers of byte rows and 32-bit rows needed.
    """
    total = block_of.shape[0]
    piece_count = pieces.shape[0]
    need = np.zeros(total, np.int64)
    last_piece = np.full(total, -1, np.int64)
    install_last = np.full(install_loads.shape[0], -1, np.int64)
    table = np.zeros((piece_count, 3), np.int64)
    argument_total = 0
    for n in range(piece_count):
        u = pieces[n, 1]
        b = units[u, 3]
        op = blocks[b, OP]
        table[n, 0] = argument_total
        table[n, 2] = argument_count(op)
        size = units[u, 2]
        for e in range(units[u, 0] + pieces[n, 2] * size, units[u, 0] + pieces[n, 3] * size):
            if not executed[e]:
                continue
            table[n, 1] += 1
            argument_total += table[n, 2]
            if op >= 64 and op < 128:
                for operand in range(2):
                    s = blocks[b, S0] if operand == 0 else blocks[b, S1]
                    width = blocks[b, W0] if operand == 0 else blocks[b, W1]
                    slot = slot_of[e] + 4 * operand
                    if s >= 64 and s <= 80:
                        p = sources[slot] // 16
                        need[p] |= WORD
                        last_piece[p] = n
                    elif s >= 0 and s < 64:
                        if _is_word(blocks, block_of, sources, slot, width):
                            need[sources[slot] // 16] |= WORD
                            last_piece[sources[slot] // 16] = n
                        else:
                            for j in range(width):
                                need[sources[slot + j] // 16] |= 1 << (sources[slot + j] & 15)
                                last_piece[sources[slot + j] // 16] = n
                continue
            user = abc_of[e] if op == ACC else e
            if op == ACC:
                for half in range(2):
                    if install_of[user, half] >= 0:
                        install_last[install_of[user, half]] = n
            for j in range(slot_of[user], slot_of[user + 1]):
                if sources[j] >= 0:
                    need[sources[j] // 16] |= 1 << (sources[j] & 15)
                    last_piece[sources[j] // 16] = n
    weight_total = 0
    weight_start = np.full(install_loads.shape[0], -1, np.int64)
    for i in range(install_loads.shape[0]):
        if install_last[i] < 0:
            continue
        weight_start[i] = weight_total
        for j in range(20):
            load = install_loads[i, j]
            if load >= 0:
                weight_total += 16
                for k in range(slot_of[load], slot_of[load + 1]):
                    p = sources[k] // 16
                    need[p] |= 1 << (sources[k] & 15)
                    last_piece[p] = max(last_piece[p], install_last[i])
    # Rows, in execution order; freed rows are reused first, so they stay in the cache.
    byte_row = np.full(out_of[total] + 1, -1, np.int32)
    word_row = np.full(total, -1, np.int32)
    free_bytes = np.empty(out_of[total] + 1, np.int32)
    free_words = np.empty(total + 1, np.int32)
    free_byte_count = 0
    free_word_count = 0
    byte_rows = 0
    word_rows = WORD_ROWS
    ending = np.full(piece_count + 1, -1, np.int64)
    ending_next = np.full(total, -1, np.int64)
    for n in range(piece_count):
        u = pieces[n, 1]
        size = units[u, 2]
        for e in range(units[u, 0] + pieces[n, 2] * size, units[u, 0] + pieces[n, 3] * size):
            if not executed[e] or need[e] == 0:
                continue
            for j in range(blocks[block_of[e], N_OUT]):
                if need[e] >> j & 1:
                    if free_byte_count > 0:
                        free_byte_count -= 1
                        byte_row[out_of[e] + j] = free_bytes[free_byte_count]
                    else:
                        byte_row[out_of[e] + j] = byte_rows
                        byte_rows += 1
            if need[e] & WORD:
                if free_word_count > 0:
                    free_word_count -= 1
                    word_row[e] = free_words[free_word_count]
                else:
                    word_row[e] = word_rows
                    word_rows += 1
            ending_next[e] = ending[last_piece[e]]
            ending[last_piece[e]] = e
        e = ending[n]
        while e >= 0:
            for j in range(blocks[block_of[e], N_OUT]):
                if need[e] >> j & 1:
                    free_bytes[free_byte_count] = byte_row[out_of[e] + j]
                    free_byte_count += 1
            if need[e] & WORD:
                free_words[free_word_count] = word_row[e]
                free_word_count += 1
            e = ending_next[e]
    # A source's row number; sources without a row never run.
    row_of = np.full(sources.shape[0], -1, np.int32)
    for i in range(sources.shape[0]):
        if sources[i] >= 0:
            p = sources[i] // 16
            if blocks[block_of[p], OP] == READ and not executed[p]:
                row_of[i] = queue_of[p] * 8192 + a_of[p]
            elif byte_row[out_of[p] + (sources[i] & 15)] >= 0:
                row_of[i] = SRAM_ROWS + byte_row[out_of[p] + (sources[i] & 15)]
    weights = np.empty(weight_total, np.int32)
    for i in range(install_loads.shape[0]):
        at = weight_start[i]
        if at >= 0:
            for j in range(20):
                load = install_loads[i, j]
                if load >= 0:
                    weights[at : at + 16] = row_of[slot_of[load] : slot_of[load] + 16]
                    at += 16
    arguments = np.full(argument_total, -1, np.int32)
    for n in range(piece_count):
        u = pieces[n, 1]
        b = units[u, 3]
        op = blocks[b, OP]
        at = table[n, 0]
        size = units[u, 2]
        for e in range(units[u, 0] + pieces[n, 2] * size, units[u, 0] + pieces[n, 3] * size):
            if not executed[e]:
                continue
            slot = slot_of[e]
            word = queue_of[e] * 8192 + a_of[e]
            outs = blocks[b, N_OUT]
            out = np.int32(-1)
            if outs > 0 and byte_row[out_of[e]] >= 0:
                out = SRAM_ROWS + byte_row[out_of[e]]
            if op >= 64 and op < 128:
                for operand in range(2):
                    s = blocks[b, S0] if operand == 0 else blocks[b, S1]
                    width = blocks[b, W0] if operand == 0 else blocks[b, W1]
                    base = slot + 4 * operand
                    if s >= 64 and s <= 80:
                        arguments[at + 4 * operand] = word_row[sources[base] // 16]
                        arguments[at + 4 * operand + 1] = -2
                    elif s >= 0 and s < 64:
                        if _is_word(blocks, block_of, sources, base, width):
                            arguments[at + 4 * operand] = word_row[sources[base] // 16]
                            arguments[at + 4 * operand + 1] = -2
                        else:
                            for j in range(width):
                                arguments[at + 4 * operand + j] = row_of[base + j]
                arguments[at + 8] = word_row[e]
                for j in range(outs):
                    if byte_row[out_of[e] + j] >= 0:
                        arguments[at + 9 + j] = SRAM_ROWS + byte_row[out_of[e] + j]
            elif op == READ:
                arguments[at] = word
                arguments[at + 1] = out
            elif op == WRITE:
                arguments[at] = row_of[slot]
                arguments[at + 1] = word
                arguments[at + 2] = cycle_of[e]
                arguments[at + 3] = queue_of[e]
            elif op == GATHER or op == SCATTER:
                arguments[at] = row_of[slot]
                arguments[at + 1] = row_of[slot + 1]
                if op == SCATTER:
                    arguments[at + 2] = row_of[slot + 2]
                else:
                    arguments[at + 2] = out
                arguments[at + 3] = queue_of[e]
                arguments[at + 4] = a_of[e]
                arguments[at + 5] = blocks[b, LO]
                arguments[at + 6] = blocks[b, HI]
                arguments[at + 7] = cycle_of[e]
            elif op == ACC:
                abc = abc_of[e]
                wide = blocks[block_of[abc], W0] == 2
                load = install_of[abc, 0]
                groups = 0
                while groups < 20 and install_loads[load, groups] >= 0:
                    groups += 1
                arguments[at] = blocks[b, MODE]
                arguments[at + 1] = a_of[e]
                arguments[at + 2] = 2 if wide else 1
                arguments[at + 3] = groups
                arguments[at + 4] = weight_start[load]
                arguments[at + 6] = row_of[slot_of[abc]]
                if wide:
                    arguments[at + 5] = weight_start[install_of[abc, 1]]
                    arguments[at + 7] = row_of[slot_of[abc] + 1]
                arguments[at + 8] = word_row[e]
                for j in range(outs):
                    if byte_row[out_of[e] + j] >= 0:
                        arguments[at + 9 + j] = SRAM_ROWS + byte_row[out_of[e] + j]
                arguments[at + 13] = (queue_of[e] - 104) // 2
            elif op == SEND or op == RECEIVE:
                arguments[at] = row_of[slot] if op == SEND else out
                arguments[at + 1] = cycle_of[e]
            else:
                inputs = slot_of[e + 1] - slot
                if op == 160:
                    width = blocks[b, W0]
                    arguments[at] = width
                    for j in range(width):
                        arguments[at + 1 + j] = row_of[slot + j]
                    arguments[at + 9] = row_of[slot + width]
                    at_out = at + 10
                else:
                    for j in range(inputs):
                        arguments[at + j] = row_of[slot + j]
                    at_out = at + inputs
                for j in range(outs):
                    if byte_row[out_of[e] + j] >= 0:
                        arguments[at_out + j] = SRAM_ROWS + byte_row[out_of[e] + j]
            at += table[n, 2]
    return table, arguments, weights, byte_rows, word_rows
