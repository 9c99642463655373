"""From ordered pieces to an execution table: rows of scratch and arguments of every element.

Values that are SRAM words stay references; the others get rows of scratch, reused as soon as
their last use has run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.jit import jit
from chip.linking.elements import (
    ACC,
    GATHER,
    HI,
    LO,
    MODE,
    N_OUT,
    OP,
    READ,
    RECEIVE,
    S0,
    S1,
    SCATTER,
    SEND,
    W0,
    W1,
    WRITE,
)

Array = NDArray[Any]
WORD = 1 << 16  # bit of ``need``: the 32-bit result row itself is used
WORD_ROWS = 4  # rows of 32-bit scratch that belong to the kernels


@jit
def argument_count(op: int) -> int:
    """int32 arguments of one executed element."""
    if op >= 64 and op < 128:
        return 13
    if op in (READ, SEND, 162, 163):
        return 2
    if op in (WRITE, RECEIVE):
        return 4
    if op in (GATHER, SCATTER):
        return 8
    if op == ACC:
        return 14
    if op == 160:
        return 18
    return 32 if op == 161 else 17


@jit
def _is_word(blocks: Array, block_of: Array, sources: Array, slot: int, width: int) -> bool:
    """Four source bytes that are exactly the 32-bit result of one ALU or plane."""
    if width != 4:
        return False
    p = sources[slot] // 16
    op = blocks[block_of[p], OP]
    if op != ACC and (op < 64 or op >= 128):
        return False
    same = True
    for j in range(4):
        same = same and sources[slot + j] == p * 16 + j
    return same


@jit
def lay_out(
    blocks: Array, block_of: Array, cycle_of: Array, queue_of: Array, a_of: Array,
    slot_of: Array, out_of: Array, sources: Array, executed: Array, abc_of: Array,
    install_of: Array, install_loads: Array, units: Array, pieces: Array, write_of: Array,
    slice_words: int,
) -> Any:
    """Scratch rows and arguments of every piece, ``pieces`` being in execution order.

    Row ``slice * slice_words + word`` is an SRAM word; scratch comes after the last slice.
    write_of: of a RECEIVE, the WRITE (not in ``executed``) that it does as well, or -1.

    Returns table int64 [pieces, 3] (first argument, executed elements, argument count each),
    arguments int32, weight rows int32, and the numbers of byte rows and 32-bit rows needed.
    """
    sram_rows = 88 * slice_words
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
                row_of[i] = queue_of[p] * slice_words + a_of[p]
            elif byte_row[out_of[p] + (sources[i] & 15)] >= 0:
                row_of[i] = sram_rows + byte_row[out_of[p] + (sources[i] & 15)]
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
            word = queue_of[e] * slice_words + a_of[e]
            outs = blocks[b, N_OUT]
            out = np.int32(-1)
            if outs > 0 and byte_row[out_of[e]] >= 0:
                out = sram_rows + byte_row[out_of[e]]
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
                        arguments[at + 9 + j] = sram_rows + byte_row[out_of[e] + j]
            elif op == READ:
                arguments[at] = word
                arguments[at + 1] = out
            elif op == WRITE:
                arguments[at] = row_of[slot]
                arguments[at + 1] = word
                arguments[at + 2] = cycle_of[e]
                arguments[at + 3] = queue_of[e]
            elif op in (GATHER, SCATTER):
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
                        arguments[at + 9 + j] = sram_rows + byte_row[out_of[e] + j]
                arguments[at + 13] = (queue_of[e] - 104) // 2
            elif op == SEND:
                arguments[at] = row_of[slot]
                arguments[at + 1] = cycle_of[e]
            elif op == RECEIVE:
                arguments[at] = out
                arguments[at + 1] = cycle_of[e]
                w = write_of[e]
                if w >= 0:
                    arguments[at] = queue_of[w] * slice_words + a_of[w]
                    arguments[at + 2] = cycle_of[w]
                    arguments[at + 3] = queue_of[w]
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
                        arguments[at_out + j] = sram_rows + byte_row[out_of[e] + j]
            at += table[n, 2]
    return table, arguments, weights, byte_rows, word_rows
