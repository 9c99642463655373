"""Static resolution: which element produced every byte an element consumes, in true time order.

A compiled pass over a program's elements.  It knows the machine's timing rules; it knows nothing
of execution.  A source is ``16 * element + byte`` of the producing element.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.jit import jit
from chip.linking.elements import (
    ABC,
    ACC,
    BANK,
    DRIVER,
    GATHER,
    HI,
    IN_FLIGHT,
    IW,
    LATENCY,
    LINK,
    LO,
    LW,
    MISSING,
    MODE,
    MXM,
    N_IN0,
    N_IN1,
    N_OUT,
    NEVER,
    NOTIFY,
    OP,
    QUEUE_FAULT,
    READ,
    RECEIVE,
    S0,
    S1,
    SCATTER,
    SEND,
    SYNC,
    SYNC_FAULT,
    T_ALU,
    T_GAP,
    T_INSTALL,
    T_MULTIPLY,
    T_NOTIFY,
    T_SPACING,
    T_WRITE,
    TAG,
    W0,
    WANT,
    WANT0,
    WANT1,
    WRITE,
    push,
    time_order,
)

Array = NDArray[Any]


@jit
def take(table: Array, positions: Array, stream: int, queue: int, cycle: int) -> int:
    """Source on the diagonal that ``queue`` samples of ``stream`` at ``cycle``, or -1."""
    position = positions[queue, stream]
    diagonal = cycle - position if stream < 32 else cycle + position
    slot = stream * 64 + (diagonal & 63)
    return table[slot, 2] if table[slot, 0] == diagonal else -1


@jit
def drive(
    table: Array, positions: Array, stream: int, queue: int, cycle: int, source: int
) -> bool:
    """Put ``source`` on the stream; False when another producer drives the same register."""
    position = positions[queue, stream]
    diagonal = cycle - position if stream < 32 else cycle + position
    slot = stream * 64 + (diagonal & 63)
    if table[slot, 0] == diagonal and table[slot, 1] == cycle:
        return False
    table[slot, 0] = diagonal
    table[slot, 1] = cycle
    table[slot, 2] = source
    return True


@jit
def resolve(
    blocks: Array, block_of: Array, cycle_of: Array, queue_of: Array, a_of: Array,
    stream_of: Array, slot_of: Array, slots: int, sample: Array, drives: Array, timing: Array,
    accumulator_rows: int, bank_words: int,
) -> Any:
    """Walk all elements in time order; a slice has two banks of ``bank_words`` words.

    Returns fault int64 [3] (number or -1, element, detail); sources int64 [slots]; prev_write and
    next_write int64 [elements] of READs; edges int64 [n, 2]; abc_of int64 [elements] (the ABC of
    an ACC); install_of int64 [elements, 2] (of an ABC, low and high plane); installs: element of
    each IW int64 [n] and LW elements int64 [n, 20].
    """
    total = block_of.shape[0]
    fault = np.full(3, -1, np.int64)
    sources = np.full(slots, -1, np.int64)
    prev_write = np.full(total, -1, np.int64)
    next_write = np.full(total, -1, np.int64)
    abc_of = np.full(total, -1, np.int64)
    edges = np.empty((1024, 2), np.int64)
    edge_count = 0
    keys = np.empty(total, np.int64)
    driver_count = 0
    node_count = 0
    install_count = 0
    abc_count = 0
    for e in range(total):
        b = block_of[e]
        op = blocks[b, OP]
        late = op in (WRITE, SCATTER, IW, NOTIFY)
        keys[e] = 2 * cycle_of[e] + (1 if late else 0)
        driver_count += 1 if blocks[b, N_OUT] > 0 else 0
        node_count += 1 if op == READ else 0
        if op == GATHER:
            node_count += blocks[b, HI] - blocks[b, LO] + 1
        install_count += 1 if op == IW else 0
        abc_count += 1 if op == ABC else 0
    order = time_order(keys)
    drivers = np.empty(driver_count, np.int64)
    drive_cycle = np.empty(driver_count, np.int64)
    k = 0
    for i in range(total):
        e = order[i]
        if blocks[block_of[e], N_OUT] > 0:
            drivers[k] = e
            drive_cycle[k] = cycle_of[e] + blocks[block_of[e], LATENCY]
            k += 1
    drive_order = time_order(drive_cycle)
    table = np.full((64 * 64, 3), NEVER, np.int64)
    slice_words = 2 * bank_words
    last_write = np.full(88 * slice_words, -1, np.int32)
    readers = np.full(88 * slice_words, -1, np.int32)  # list of reads since the last write
    node_element = np.empty(node_count + 1, np.int32)
    node_next = np.empty(node_count + 1, np.int32)
    nodes = 0
    issued = np.full((144, 2), NEVER, np.int64)
    read_cycle = np.full(88, NEVER, np.int64)
    read_banks = np.zeros(88, np.int64)
    parked = np.full(144, NEVER, np.int64)
    release = np.full(144, NEVER, np.int64)
    alu_ring = 1
    while alu_ring < timing[T_ALU] + 2:
        alu_ring *= 2
    alu_cycle = np.full((16, alu_ring), NEVER, np.int64)
    alu_element = np.full((16, alu_ring), -1, np.int64)
    alu_count = np.zeros(16, np.int64)
    buffer = np.full((4, 20), -1, np.int64)
    load_start = np.full(4, NEVER, np.int64)
    loaded = np.zeros(4, np.int64)
    install_cycle = np.full(4, NEVER, np.int64)
    active = np.full(4, -1, np.int64)
    install_element = np.full(install_count, -1, np.int64)
    install_loads = np.full((install_count, 20), -1, np.int64)
    install_groups = np.zeros(4, np.int64)
    install_of = np.full((total, 2), -1, np.int64)
    installs = 0
    abc_queue = np.full((4, abc_count + 1), -1, np.int64)
    abc_head = np.zeros(4, np.int64)
    abc_tail = np.zeros(4, np.int64)
    abc_cycle = np.full(4, NEVER, np.int64)
    wide_cycle = np.full(2, NEVER, np.int64)  # last fp16 ABC of a plane pair
    row_element = np.full((4, accumulator_rows), -1, np.int64)
    row_type = np.zeros((4, accumulator_rows), np.int64)
    link_element = np.full((16, 2), -1, np.int64)
    next_drive = 0
    for i in range(total + 1):
        e = order[i] if i < total else -1
        now: Any = cycle_of[e] if i < total else np.int64(1 << 60)
        while next_drive < driver_count:
            d = drive_order[next_drive]
            if drive_cycle[d] >= now:
                break
            p = drivers[d]
            for j in range(blocks[block_of[p], N_OUT]):
                stream = stream_of[p] + j
                if not drive(table, drives, stream, queue_of[p], drive_cycle[d], p * 16 + j):
                    fault[:] = (DRIVER, p, stream)
                    return (fault, sources, prev_write, next_write, edges[:edge_count], abc_of,
                            install_of, install_element, install_loads)  # fmt: skip
            next_drive += 1
        if i == total:
            break
        b = block_of[e]
        op = blocks[b, OP]
        queue = queue_of[e]
        code = -1
        detail = -1
        # Queue occupation and parking.
        kind = 1 if op in (WRITE, SCATTER, ACC) else 0
        if issued[queue, kind] == now or (op < 32 and issued[queue, 1 - kind] == now):
            code = QUEUE_FAULT
        issued[queue, kind] = now
        if op < 32:
            issued[queue, 1] = now
        if parked[queue] != NEVER:
            if release[queue] == NEVER or now < release[queue]:
                code = SYNC_FAULT
            parked[queue] = NEVER
            release[queue] = NEVER
        # Stream operands.
        slot = slot_of[e]
        for j in range(blocks[b, N_IN0] if code < 0 else 0):
            first = stream_of[e] if op in (WRITE, SCATTER) else blocks[b, S0]
            source = take(table, sample, first + j, queue, now)
            sources[slot] = source
            slot += 1
            if source < 0:
                code = MISSING
                detail = first + j
                break
            wanted = blocks[b, WANT0]
            if wanted != 0 and blocks[block_of[source // 16], TAG] != wanted:
                code = WANT
                detail = first + j
        if op >= 64 and op < 128:
            slot = slot_of[e] + 4
        for j in range(blocks[b, N_IN1] if code < 0 else 0):
            source = take(table, sample, blocks[b, S1] + j, queue, now)
            sources[slot] = source
            slot += 1
            if source < 0:
                code = MISSING
                detail = blocks[b, S1] + j
                break
            wanted = blocks[b, WANT1]
            if wanted != 0 and blocks[block_of[source // 16], TAG] != wanted:
                code = WANT
                detail = blocks[b, S1] + j
        # State of the units.
        if code >= 0:
            pass
        elif op in (READ, GATHER):
            low = a_of[e] if op == READ else blocks[b, LO]
            high = a_of[e] if op == READ else blocks[b, HI]
            read_cycle[queue] = now
            read_banks[queue] = low // bank_words
            for word in range(queue * slice_words + low, queue * slice_words + high + 1):
                w = last_write[word]
                if w >= 0:
                    if now < cycle_of[w] + timing[T_WRITE]:
                        code = IN_FLIGHT
                        detail = word
                    if op == READ:
                        prev_write[e] = w
                    else:
                        edges, edge_count = push(edges, edge_count, w, e)
                node_element[nodes] = e
                node_next[nodes] = readers[word]
                readers[word] = nodes
                nodes += 1
        elif op in (WRITE, SCATTER):
            low = a_of[e] if op == WRITE else blocks[b, LO]
            high = a_of[e] if op == WRITE else blocks[b, HI]
            if read_cycle[queue] == now and read_banks[queue] == low // bank_words:
                code = BANK
            for word in range(queue * slice_words + low, queue * slice_words + high + 1):
                edges, edge_count = push(edges, edge_count, last_write[word], e)
                last_write[word] = e
                node = readers[word]
                while node >= 0:
                    r = node_element[node]
                    if blocks[block_of[r], OP] == READ:
                        next_write[r] = e
                    else:
                        edges, edge_count = push(edges, edge_count, r, e)
                    node = node_next[node]
                readers[word] = -1
        elif op >= 64 and op < 128:
            alu = queue - 88
            for operand in range(2):
                s = blocks[b, S0] if operand == 0 else blocks[b, S1]
                if s < 64 or s > 80:
                    continue
                other = alu if s == 80 else s - 64
                found = -1
                for back in range(min(alu_ring, alu_count[other])):
                    r = (alu_count[other] - 1 - back) & (alu_ring - 1)
                    if alu_cycle[other, r] <= now - timing[T_ALU]:
                        if s == 80 or alu_cycle[other, r] == now - timing[T_ALU]:
                            found = alu_element[other, r]
                        break
                if found < 0:
                    code = MISSING
                    detail = s
                    break
                wanted = blocks[b, WANT0] if operand == 0 else blocks[b, WANT1]
                if wanted != 0 and blocks[block_of[found], TAG] != wanted:
                    code = WANT
                    detail = s
                sources[slot_of[e] + (0 if operand == 0 else 4)] = found * 16
            r = alu_count[alu] & (alu_ring - 1)
            alu_cycle[alu, r] = now
            alu_element[alu, r] = e
            alu_count[alu] += 1
        elif op == LW:
            plane = (queue - 104) // 2
            group = a_of[e]
            if group == 0:
                if now - load_start[plane] < loaded[plane] + timing[T_GAP]:
                    code = MXM
                    detail = 0
                load_start[plane] = now
                loaded[plane] = 0
            loaded[plane] += 1
            buffer[plane, group] = e
        elif op == IW:
            plane = (queue - 104) // 2
            groups = a_of[e]
            for j in range(groups):
                if buffer[plane, j] < 0:
                    code = MXM
                    detail = 1
                install_loads[installs, j] = buffer[plane, j]
            buffer[plane] = -1
            install_element[installs] = e
            install_cycle[plane] = now
            install_groups[plane] = groups
            active[plane] = installs
            installs += 1
        elif op == ABC:
            plane = (queue - 104) // 2
            wide = blocks[b, W0] == 2
            pair = plane // 2
            if wide and plane % 2 != 0:
                code = MXM
                detail = 2
            for q in range(plane, plane + (2 if wide and plane % 2 == 0 else 1)):
                if active[q] < 0:
                    code = MXM
                    detail = 3
                elif now < install_cycle[q] + timing[T_INSTALL]:
                    code = MXM
                    detail = 4
                if wide and abc_cycle[q] == now:
                    code = MXM
                    detail = 5
                install_of[e, q - plane] = active[q]
            if now - wide_cycle[pair] < 2:
                code = MXM
                detail = 5
            if wide:
                if code < 0 and install_groups[plane] != install_groups[plane + 1]:
                    code = MXM
                    detail = 6
                wide_cycle[pair] = now
            abc_cycle[plane] = now
            abc_queue[plane, abc_tail[plane]] = e
            abc_tail[plane] += 1
        elif op == ACC:
            plane = (queue - 104) // 2
            head = abc_head[plane]
            if head >= abc_tail[plane]:
                code = MISSING
            else:
                abc = abc_queue[plane, head]
                if cycle_of[abc] != now - timing[T_MULTIPLY]:
                    code = MISSING
                else:
                    abc_of[e] = abc
                    abc_head[plane] += 1
                    number_type = 2 if blocks[block_of[abc], W0] == 2 else 1
                    row = a_of[e]
                    add = blocks[b, MODE] == 1 or blocks[b, MODE] == 3
                    if add and row_type[plane, row] != number_type:
                        code = MXM
                        detail = 7
                    edges, edge_count = push(edges, edge_count, row_element[plane, row], e)
                    row_element[plane, row] = e
                    row_type[plane, row] = number_type
        elif op in (SEND, RECEIVE):
            link = queue - 128
            previous = link_element[link, op - SEND]
            if op == SEND and previous >= 0 and now - cycle_of[previous] < timing[T_SPACING]:
                code = LINK
            edges, edge_count = push(edges, edge_count, previous, e)
            link_element[link, op - SEND] = e
        elif op == SYNC:
            parked[queue] = now
        elif op == NOTIFY:
            for q in range(144):
                if parked[q] != NEVER and release[q] == NEVER:
                    release[q] = now + timing[T_NOTIFY]
        if code >= 0:
            fault[:] = (code, e, detail)
            return (fault, sources, prev_write, next_write, edges[:edge_count], abc_of,
                    install_of, install_element, install_loads)  # fmt: skip
    for plane in range(4):
        if abc_head[plane] < abc_tail[plane]:
            fault[:] = (MISSING, abc_queue[plane, abc_head[plane]], -2)
    for queue in range(144):
        if parked[queue] != NEVER and release[queue] == NEVER:
            fault[:] = (SYNC_FAULT, -1 - queue, parked[queue])
    return (fault, sources, prev_write, next_write, edges[:edge_count], abc_of,
            install_of, install_element, install_loads)  # fmt: skip
