"""What runs at all, what depends on what, and the cutting of blocks until start order is right.

Every dependency must point to a piece of a block with a strictly earlier start cycle; the later
accessor's block is cut at the violating element until that holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.jit import jit, jit_inline
from chip.linking.arguments import is_icu
from chip.linking.elements import (
    GROUP_COLUMNS,
    GROUPS,
    NEVER,
    OP,
    Edges,
    Elements,
    Resolved,
    push,
)
from chip.opcodes import ABC, ACC, DESKEW, IW, LW, READ

Array = NDArray[Any]

#: At least the edges of one element: two of each byte of an ACC's activation and both installs.
_MOST_EDGES = 2 * (2 * GROUPS * GROUP_COLUMNS + 64)


@jit
def find_uses(c: Elements, r: Resolved, idle: Array) -> Any:
    """Which elements run at all: bool [elements]; ``idle`` ones (bool [elements]) do not.

    A READ runs (as a copy) only when its word is overwritten before its last use.
    """
    total = c.block.shape[0]
    last = np.full(total, NEVER, np.int64)
    install_last = np.full(r.loads.shape[0], NEVER, np.int64)
    executed = np.zeros(total, np.bool_)
    for e in range(total):
        op = c.blocks[c.block[e], OP]
        if idle[e] or is_icu(op) or op in (READ, LW, IW, ABC, DESKEW):
            continue
        executed[e] = True
        user = e
        if op == ACC:
            user = r.abc_of[e]
            for half in range(2):
                install = r.install_of[user, half]
                if install >= 0:
                    install_last[install] = max(install_last[install], c.cycle[e])
        for j in range(c.slot[user], c.slot[user + 1]):
            if r.sources[j] >= 0:
                p = r.sources[j] // 16
                last[p] = max(last[p], c.cycle[e])
    for i in range(r.loads.shape[0]):
        if install_last[i] == NEVER:
            continue
        for j in range(GROUPS):
            load = r.loads[i, j]
            if load >= 0:
                for k in range(c.slot[load], c.slot[load + 1]):
                    p = r.sources[k] // 16
                    last[p] = max(last[p], install_last[i])
    for e in range(total):
        if c.blocks[c.block[e], OP] == READ and r.next_write[e] >= 0:
            executed[e] = c.cycle[r.next_write[e]] <= last[e]
    return executed


@jit_inline
def _use(edges: Edges, r: Resolved, executed: Array, first: int, end: int, user: int) -> None:
    """Edges of ``user`` consuming what the sources ``first`` .. ``end`` - 1 produce.

    A READ that does not run is a reference to its word: what counts are the WRITEs around it.
    """
    for j in range(first, end):
        if r.sources[j] < 0:
            continue
        p = r.sources[j] // 16
        if executed[p]:
            push(edges, p, user)
        else:
            push(edges, r.prev_write[p], user)
            if r.next_write[p] >= 0:
                push(edges, user, r.next_write[p])


@jit
def _plain_installs(c: Elements, r: Resolved, executed: Array) -> Any:
    """Installs of words that nobody writes, bool [installs]: they make no edges."""
    plain = np.ones(r.loads.shape[0], np.bool_)
    for i in range(r.loads.shape[0]):
        for j in range(GROUPS):
            load = r.loads[i, j]
            if load >= 0:
                for k in range(c.slot[load], c.slot[load + 1]):
                    p = r.sources[k] // 16
                    if executed[p] or r.prev_write[p] >= 0 or r.next_write[p] >= 0:
                        plain[i] = False
    return plain


@jit_inline
def _edges_of(
    edges: Edges, c: Elements, r: Resolved, executed: Array, plain: Array, e: int
) -> None:
    """All edges of one executed element but those that resolving found."""
    op = c.blocks[c.block[e], OP]
    if op == READ:
        push(edges, r.prev_write[e], e)
        push(edges, e, r.next_write[e])
        return
    user = r.abc_of[e] if op == ACC else e
    _use(edges, r, executed, c.slot[user], c.slot[user + 1], e)
    if op != ACC:
        return
    for half in range(2):
        install = r.install_of[user, half]
        if install < 0 or plain[install]:
            continue
        for j in range(GROUPS):
            load = r.loads[install, j]
            if load >= 0:
                _use(edges, r, executed, c.slot[load], c.slot[load + 1], e)


@jit
def collect_edges(c: Elements, r: Resolved, executed: Array) -> Any:
    """All dependencies int64 [n, 2] between executed elements, those of ``r`` first."""
    known = r.edges.shape[0]
    edges = Edges(np.empty((2 * known + _MOST_EDGES, 2), np.int64), np.full(1, known, np.int64))
    edges.pairs[:known] = r.edges
    plain = _plain_installs(c, r, executed)
    for e in range(c.block.shape[0]):
        if not executed[e]:
            continue
        count = edges.found[0]
        if count + _MOST_EDGES > edges.pairs.shape[0]:
            grown = np.empty((2 * count + _MOST_EDGES, 2), np.int64)
            grown[:count] = edges.pairs[:count]
            edges = Edges(grown, edges.found)
        _edges_of(edges, c, r, executed, plain, e)
    return edges.pairs[: edges.found[0]]


@jit
def cut_blocks(
    c: Elements,
    executed: Array,
    edges: Array,
    unit_order: Array,
    batched: Array,
    ordered: int,
    max_span: int,
) -> Any:
    """Cut units into pieces until every edge points to an earlier start.

    A piece may hold both ends of an edge, as its elements run in order, unless the unit is
    ``batched`` (bool [units]): of those, operands of several elements are read before the first
    has a result.  The first ``ordered`` edges are not of operands.

    Returns pieces int64 [n, 4] (start cycle, unit, first row, end row), and which units must be
    taken apart into gang members (bool [units]).
    """
    units, cycle_of = c.units, c.cycle
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
    return pieces, apart
