"""What runs at all, what depends on what, and the cutting of blocks until start order is right.

Every dependency must point to a piece of a block with a strictly earlier start cycle; the later
accessor's block is cut at the violating element until that holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.jit import jit
from chip.linking.elements import ABC, ACC, IW, LW, NEVER, OP, READ, push

Array = NDArray[Any]


@jit
def find_uses(
    blocks: Array, block_of: Array, cycle_of: Array, slot_of: Array, sources: Array,
    next_write: Array, abc_of: Array, install_of: Array, install_loads: Array, idle: Array,
) -> Any:
    """Which elements run at all: bool [elements]; ``idle`` ones (bool [elements]) do not.

    A READ runs (as a copy) only when its word is overwritten before its last use.
    """
    total = block_of.shape[0]
    last = np.full(total, NEVER, np.int64)
    install_last = np.full(install_loads.shape[0], NEVER, np.int64)
    executed = np.zeros(total, np.bool_)
    for e in range(total):
        b = block_of[e]
        op = blocks[b, OP]
        if idle[e] or op < 32 or op in (READ, LW, IW, ABC, 194):
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
    batched: Array, ordered: int, max_span: int,
) -> Any:
    """Cut units into pieces until every edge points to an earlier start.

    A piece may hold both ends of an edge, as its elements run in order, unless the unit is
    ``batched`` (bool [units]): of those, operands of several elements are read before the first
    has a result.  The first ``ordered`` edges are not of operands.

    Returns pieces int64 [n, 4] (start cycle, unit, first row, end row), the latest start of
    every element, and which units must be taken apart into gang members (bool [units]).
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
        incoming[place[edges[i, 1]]] = i
        place[edges[i, 1]] += 1
    start_of = np.full(total, NEVER, np.int64)
    cut = np.zeros(total, np.bool_)  # at the first element of a row
    runs = np.zeros(units.shape[0], np.bool_)
    for e in range(total):
        if executed[e]:
            runs[unit_of[e]] = True
    apart = np.zeros(units.shape[0], np.bool_)
    changed = True
    while changed:
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
                            before = edges[incoming[j], 0]
                            inside = unit_of[before] == u
                            if not inside or (batched[u] and incoming[j] >= ordered):
                                latest = max(latest, start_of[before])
                if start == NEVER or cut[e0] or high - start >= max_span or latest >= start:
                    cut[e0] = True
                    start = low
                    if size > 1 and (latest >= low or high - low >= max_span):
                        apart[u] = True
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
