"""Compiled Send and Receive: vectors into and out of the rings of links, checked and mixed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.digest import KEY_A, KEY_B
from chip.engine.frames import (
    DETAIL,
    FORGED,
    INTACT,
    OTHER_CYCLE,
    OTHER_LAUNCH,
    OTHER_VECTOR,
    SEEN_CYCLE,
    SEEN_LAUNCH,
    SEEN_SEQUENCE,
)
from chip.engine.machine import LinkedPiece, Machine
from chip.engine.mixing import mix64, mix_known
from chip.engine.ring import CHECKSUM, HEAD, LAUNCH, MIX, SENT_CYCLE, SEQUENCE, TAIL
from chip.engine.sram import copy
from chip.isa import C2C_QUEUE
from chip.jit import (
    jit_inline,
    keyed_products,
    load_acquire,
    prefetch_row,
    row_of,
    store_release,
    stream_row,
)
from chip.linking import (
    RECEIVE_CYCLE,
    RECEIVE_ROW,
    RECEIVE_WRITE_CYCLE,
    RECEIVE_WRITE_SLICE,
    SEND_CYCLE,
    SEND_ROW,
)
from chip.opcodes import RECEIVE, SEND, WRITE

Array = NDArray[Any]
_AHEAD = 6  # vectors fetched into the cache before a Send or Receive needs them


class Ring(NamedTuple):
    """One ring: its counts int64 [16], and the rows ``at`` .. ``at`` + ``capacity`` - 1 of meta
    int64 [n, META] and data uint32 [n, 80] of all.
    """

    counts: Array
    meta: Array
    data: Array
    at: int
    capacity: int


@jit_inline
def send(m: Machine, p: LinkedPiece, ring: Ring, sent: Array, k: int) -> int:
    """Send vectors k .. elements - 1 as far as the ring has room; returns the next one.

    sent int64 [LINKS]: vectors of this launch.
    """
    arguments = m.arguments
    idle = m.quads.shape[0] - 1
    link = p.queue - C2C_QUEUE
    tail = ring.counts[TAIL]
    end = min(p.elements, k + ring.capacity - (tail - load_acquire(ring.counts, HEAD)))
    place = tail % ring.capacity
    sequence = sent[link]
    while k < end:
        at = p.first + k * p.stride
        cycle = arguments[at + SEND_CYCLE]
        row = arguments[at + SEND_ROW]
        source = row_of(m.quads, np.int64(row if m.data and row >= 0 else idle))
        if m.data:
            later = at + _AHEAD * p.stride + SEND_ROW
            after = arguments[min(later, arguments.shape[0] - 1)]
            prefetch_row(m.quads, np.int64(min(max(after, 0), idle)))
            copy(source, row_of(ring.data, ring.at + place))
        a = keyed_products(source, KEY_A)
        b = keyed_products(source, KEY_B)
        about = row_of(ring.meta, ring.at + place)
        about[SENT_CYCLE] = cycle
        about[SEQUENCE] = sequence
        about[CHECKSUM] = np.int64(mix64(a + m.key))
        about[LAUNCH] = m.launch
        about[MIX] = np.int64(b)
        mix_known(m.sums, a, b, m.base, cycle, SEND, p.queue, link)
        sequence += 1
        place = place + 1 if place + 1 < ring.capacity else 0
        k += 1
        tail += 1
    sent[link] = sequence
    store_release(ring.counts, TAIL, tail)
    return k


@jit_inline
def _judge(m: Machine, about: Array, a: Any, sequence: int, cycle: int) -> int:
    """What is wrong with a vector that is due at ``cycle``, or INTACT; a: its first keyed sum."""
    if about[CHECKSUM] != np.int64(mix64(a + m.key)):
        return FORGED
    if about[LAUNCH] != m.launch:
        return OTHER_LAUNCH
    if about[SEQUENCE] != sequence:
        return OTHER_VECTOR
    return OTHER_CYCLE if about[SENT_CYCLE] + m.hop != cycle else INTACT


@jit_inline
def receive(m: Machine, p: LinkedPiece, ring: Ring, received: Array, state: Array, k: int) -> int:
    """Receive vectors k .. elements - 1 as far as they are there; returns the next one.

    The vector that is not the scheduled one stays in the ring; state[DETAIL] says why, else
    INTACT.  Its second keyed sum comes with it; the first is computed from the bytes and must
    agree, with the key of these rings: a vector of someone who does not hold it is none.
    """
    arguments = m.arguments
    idle = m.quads.shape[0] - 1
    link = p.queue - C2C_QUEUE
    head = ring.counts[HEAD]
    end = min(p.elements, k + load_acquire(ring.counts, TAIL) - head)
    place = head % ring.capacity
    sequence = received[link]
    state[DETAIL] = INTACT
    while k < end:
        at = p.first + k * p.stride
        cycle = arguments[at + RECEIVE_CYCLE]
        about = row_of(ring.meta, ring.at + place)
        source = row_of(ring.data, ring.at + place) if m.data else row_of(m.quads, idle)
        if m.data:
            prefetch_row(ring.data, ring.at + (place + _AHEAD) % ring.capacity)
        a = keyed_products(source, KEY_A)
        state[DETAIL] = _judge(m, about, a, sequence, cycle)
        if state[DETAIL] != INTACT:
            state[SEEN_CYCLE] = about[SENT_CYCLE]
            state[SEEN_SEQUENCE] = about[SEQUENCE]
            state[SEEN_LAUNCH] = about[LAUNCH]
            break
        row = arguments[at + RECEIVE_ROW]
        if m.data and row >= 0:
            stream_row(source, row_of(m.quads, row))
        second = np.uint64(about[MIX])
        mix_known(m.sums, a, second, m.base, cycle, RECEIVE, p.queue, link)
        written = arguments[at + RECEIVE_WRITE_CYCLE]
        if written >= 0:
            unit = arguments[at + RECEIVE_WRITE_SLICE]
            address = row - unit * m.slice_words
            mix_known(m.sums, a, second, m.base, written, WRITE, unit, address)
        sequence += 1
        place = place + 1 if place + 1 < ring.capacity else 0
        k += 1
        head += 1
    received[link] = sequence
    store_release(ring.counts, HEAD, head)
    return k
