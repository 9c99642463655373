"""Static resolution: which element produced every byte an element consumes, in true time order.

A compiled pass over a program's elements.  It knows the machine's timing rules; it knows nothing
of execution.  The units' own state is in ``chip.linking.units``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.isa import EAST_STREAMS, QUEUES, STREAMS
from chip.jit import jit, jit_inline
from chip.linking.arguments import OPERAND_BYTES, is_icu, is_vxm
from chip.linking.elements import (
    DRIVER,
    GROUPS,
    HI,
    LATENCY,
    LO,
    MISSING,
    N_IN0,
    N_IN1,
    N_OUT,
    NEVER,
    OP,
    QUEUE_FAULT,
    S0,
    S1,
    SYNC_FAULT,
    TAG,
    WANT,
    WANT0,
    WANT1,
    Edges,
    Elements,
    Resolved,
    UnitRules,
    time_order,
)
from chip.linking.planes import product_left
from chip.linking.units import act, new_units
from chip.opcodes import ACC, GATHER, IW, NOTIFY, SCATTER, SYNC, WRITE

Array = NDArray[Any]
_DIAGONALS = 64  # of a stream that are remembered: more than there are positions


class _Streams(NamedTuple):
    """What the streams carry, and who drives them next.

    registers int64 [STREAMS * _DIAGONALS, 3]: diagonal, cycle driven and source; sample, drive
    int64 [QUEUES, STREAMS]: positions; drivers int64 [n]: elements that drive, cycles when and
    order in time; done int64 [1]: how many have driven.
    """

    registers: Array
    sample: Array
    drive: Array
    drivers: Array
    cycles: Array
    order: Array
    done: Array


class _Queues(NamedTuple):
    """Last cycle each queue issued in int64 [QUEUES, 2] (second: write-like, ACC), was parked in,
    and is released in int64 [QUEUES].
    """

    issued: Array
    parked: Array
    release: Array


@jit
def _in_time_order(c: Elements) -> Any:
    """All elements in time order; what takes effect at the end of its cycle comes last in it."""
    keys = np.empty(c.block.shape[0], np.int64)
    for e in range(keys.shape[0]):
        op = c.blocks[c.block[e], OP]
        late = op in (WRITE, SCATTER, IW, NOTIFY)
        keys[e] = 2 * c.cycle[e] + (1 if late else 0)
    return time_order(keys)


@jit
def _open_streams(c: Elements, order: Array, sample: Array, drive: Array) -> Any:
    """Streams that carry nothing, with the elements that will drive them."""
    count = 0
    for e in range(c.block.shape[0]):
        count += 1 if c.blocks[c.block[e], N_OUT] > 0 else 0
    drivers = np.empty(count, np.int64)
    cycles = np.empty(count, np.int64)
    k = 0
    for i in range(order.shape[0]):
        e = order[i]
        if c.blocks[c.block[e], N_OUT] > 0:
            drivers[k] = e
            cycles[k] = c.cycle[e] + c.blocks[c.block[e], LATENCY]
            k += 1
    registers = np.full((STREAMS * _DIAGONALS, 3), NEVER, np.int64)
    done = np.zeros(1, np.int64)
    return _Streams(registers, sample, drive, drivers, cycles, time_order(cycles), done)


@jit
def _new_resolved(c: Elements) -> Any:
    """Nothing resolved yet; installs in time order get one row of loads each."""
    total = c.block.shape[0]
    installs = 0
    edges = 0  # at most: one an element, and more for windows
    for e in range(total):
        b = c.block[e]
        op = c.blocks[b, OP]
        installs += 1 if op == IW else 0
        edges += 1
        if op in (GATHER, SCATTER):
            edges += 2 * (c.blocks[b, HI] - c.blocks[b, LO] + 1)
    found = Resolved(
        np.full(c.slot[total], -1, np.int64),
        np.full(total, -1, np.int64),
        np.full(total, -1, np.int64),
        np.empty((edges, 2), np.int64),
        np.full(total, -1, np.int64),
        np.full((total, 2), -1, np.int64),
        np.full((installs, GROUPS), -1, np.int64),
    )
    return found, np.zeros(1, np.int64)


@jit_inline
def _register(position: int, stream: int, cycle: int) -> Any:
    """The diagonal that passes ``position`` at ``cycle``, and its row of registers."""
    diagonal = cycle - position if stream < EAST_STREAMS else cycle + position
    return diagonal, stream * _DIAGONALS + (diagonal & (_DIAGONALS - 1))


@jit_inline
def _drive_until(c: Elements, s: _Streams, now: Any, fault: Array) -> bool:
    """Let everything onto the streams that is driven before ``now``.

    False, with the fault noted, when two elements drive one register.
    """
    while s.done[0] < s.drivers.shape[0]:
        d = s.order[s.done[0]]
        cycle = s.cycles[d]
        if cycle >= now:
            break
        e = s.drivers[d]
        for j in range(c.blocks[c.block[e], N_OUT]):
            stream = c.stream[e] + j
            diagonal, row = _register(s.drive[c.queue[e], stream], stream, cycle)
            if s.registers[row, 0] == diagonal and s.registers[row, 1] == cycle:
                fault[0] = DRIVER
                fault[1] = e
                fault[2] = stream
                return False
            s.registers[row, 0] = diagonal
            s.registers[row, 1] = cycle
            s.registers[row, 2] = e * 16 + j
        s.done[0] += 1
    return True


@jit_inline
def _issue(q: _Queues, op: int, queue: int, now: int) -> int:
    """Occupy the queue's issue slot; a fault number, or -1."""
    code = -1
    kind = 1 if op in (WRITE, SCATTER, ACC) else 0
    if q.issued[queue, kind] == now or (is_icu(op) and q.issued[queue, 1 - kind] == now):
        code = QUEUE_FAULT
    q.issued[queue, kind] = now
    if is_icu(op):
        q.issued[queue, 1] = now
    if q.parked[queue] != NEVER:
        if q.release[queue] == NEVER or now < q.release[queue]:
            code = SYNC_FAULT
        q.parked[queue] = NEVER
        q.release[queue] = NEVER
    return code


@jit_inline
def _take(
    c: Elements,
    s: _Streams,
    sources: Array,
    e: int,
    now: int,
    first: int,
    width: int,
    wanted: int,
    slot: int,
) -> Any:
    """Resolve ``width`` streams from ``first``; a fault number or -1, and the stream."""
    code = -1
    detail = -1
    for j in range(width):
        stream = first + j
        diagonal, row = _register(s.sample[c.queue[e], stream], stream, now)
        source = s.registers[row, 2] if s.registers[row, 0] == diagonal else -1
        sources[slot + j] = source
        if source < 0:
            return MISSING, stream
        if wanted != 0 and c.blocks[c.block[source // 16], TAG] != wanted:
            code = WANT
            detail = stream
    return code, detail


@jit_inline
def _take_streams(c: Elements, s: _Streams, sources: Array, e: int, now: int) -> Any:
    """Resolve both stream operands of an element; a fault number or -1, and the stream."""
    b = c.block[e]
    op = c.blocks[b, OP]
    first = c.stream[e] if op in (WRITE, SCATTER) else c.blocks[b, S0]
    width = c.blocks[b, N_IN0]
    slot = c.slot[e]
    code, detail = _take(c, s, sources, e, now, first, width, c.blocks[b, WANT0], slot)
    if code >= 0:
        return code, detail
    slot += OPERAND_BYTES if is_vxm(op) else width
    return _take(
        c, s, sources, e, now, c.blocks[b, S1], c.blocks[b, N_IN1], c.blocks[b, WANT1], slot
    )


@jit_inline
def _synchronise(q: _Queues, op: int, queue: int, now: int, notify_cycles: int) -> None:
    """SYNC parks its queue, NOTIFY has the parked ones released."""
    if op == SYNC:
        q.parked[queue] = now
    elif op == NOTIFY:
        for k in range(QUEUES):
            if q.parked[k] != NEVER and q.release[k] == NEVER:
                q.release[k] = now + notify_cycles


@jit
def resolve(c: Elements, rules: UnitRules, sample: Array, drive: Array) -> Any:
    """Walk all elements in time order.

    sample, drive int64 [QUEUES, STREAMS]: positions.  Returns fault int64 [3] (number or -1,
    element, detail) and, as far as there is none, ``Resolved``.
    """
    fault = np.full(3, -1, np.int64)
    total = c.block.shape[0]
    order = _in_time_order(c)
    streams = _open_streams(c, order, sample, drive)
    found, edge_count = _new_resolved(c)
    edges = Edges(found.edges, edge_count)
    units = new_units(c, rules)
    queues = _Queues(
        np.full((QUEUES, 2), NEVER, np.int64),
        np.full(QUEUES, NEVER, np.int64),
        np.full(QUEUES, NEVER, np.int64),
    )
    for i in range(total):
        e = order[i]
        now = c.cycle[e]
        if not _drive_until(c, streams, now, fault):
            break
        op = c.blocks[c.block[e], OP]
        code = _issue(queues, op, c.queue[e], now)
        detail = -1
        if code < 0:
            code, detail = _take_streams(c, streams, found.sources, e, now)
        if code < 0:
            code, detail = act(c, rules, units, found, edges, e, now)
            _synchronise(queues, op, c.queue[e], now, rules.notify_cycles)
        if code >= 0:
            fault[0] = code
            fault[1] = e
            fault[2] = detail
            break
    if fault[0] < 0 and _drive_until(c, streams, np.int64(1 << 60), fault):
        left = product_left(units.planes)
        if left >= 0:
            fault[:] = (MISSING, left, -2)
        for queue in range(QUEUES):
            if queues.parked[queue] != NEVER and queues.release[queue] == NEVER:
                fault[:] = (SYNC_FAULT, -1 - queue, queues.parked[queue])
    resolved = Resolved(
        found.sources,
        found.prev_write,
        found.next_write,
        found.edges[: edge_count[0]],
        found.abc_of,
        found.install_of,
        found.loads,
    )
    return fault, resolved
