"""Compiled Send and Receive: vectors into and out of the rings of links, checked and mixed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.digest import KEY_A, KEY_B
from chip.engine.frames import DETAIL, SEEN_CYCLE, SEEN_LAUNCH, SEEN_SEQUENCE
from chip.engine.mixing import mix64, mix_known, products
from chip.jit import (
    jit_inline,
    jit_uncounted,
    load_acquire,
    prefetch_row,
    row_of,
    store_release,
    stream_row,
)

Array = NDArray[Any]
_AHEAD = 6  # vectors fetched into the cache before a Send or Receive needs them


@jit_inline
def copy(source: Array, target: Array) -> None:
    """target[:] = source, one vector as uint32 [80]; a length known here becomes five moves."""
    for i in range(80):
        target[i] = source[i]


@jit_uncounted
def send(
    k: int, elements: int, first: int, stride: int, arguments: Array, quads: Array, data: bool,
    own: Array, meta: Array, link_data: Array, ring_at: int, capacity: int, sent: Array,
    link: int, queue: int, launch: int, base: Any, totals: Array, key: Any,
) -> int:
    """Send vectors k .. elements - 1 as far as the ring has room; returns the next one."""
    idle = quads.shape[0] - 1
    tail = own[0]
    end = min(elements, k + capacity - (tail - load_acquire(own, 8)))
    place = tail % capacity
    sequence = sent[link]
    while k < end:
        at = first + k * stride
        cycle = arguments[at + 1]
        source = row_of(quads, np.int64(arguments[at] if data and arguments[at] >= 0 else idle))
        if data:
            after = arguments[min(at + _AHEAD * stride, arguments.shape[0] - 1)]
            prefetch_row(quads, np.int64(min(max(after, 0), idle)))
            copy(source, row_of(link_data, ring_at + place))
        a = products(source, KEY_A)
        b = products(source, KEY_B)
        about = row_of(meta, ring_at + place)
        about[0] = cycle
        about[1] = sequence
        about[2] = np.int64(mix64(a + key))
        about[3] = launch
        about[4] = np.int64(b)
        mix_known(totals, a, b, base, cycle, 192, queue, link)
        sequence += 1
        place = place + 1 if place + 1 < capacity else 0
        k += 1
        tail += 1
    sent[link] = sequence
    store_release(own, 0, tail)
    return k


@jit_uncounted
def receive(
    k: int, elements: int, first: int, stride: int, arguments: Array, quads: Array, data: bool,
    own: Array, meta: Array, link_data: Array, ring_at: int, capacity: int, received: Array,
    link: int, queue: int, launch: int, base: Any, totals: Array, hop: int, slice_words: int,
    state: Array, key: Any,
) -> int:
    """Receive vectors k .. elements - 1 as far as they are there; returns the next one.

    Arguments of each: its row (-1: none), its cycle, and, where a WRITE takes it straight from
    the link, that WRITE's cycle (else -1) and slice; the row is then the word written.
    The vector that is not the scheduled one stays in the ring; state[DETAIL] says why, else -1.
    Its second keyed sum comes with it; the first is computed from the bytes and must agree, with
    the key of these rings: a vector of someone who does not hold it is none.
    """
    idle = quads.shape[0] - 1
    head = own[8]
    end = min(elements, k + load_acquire(own, 0) - head)
    place = head % capacity
    sequence = received[link]
    state[DETAIL] = -1
    while k < end:
        at = first + k * stride
        cycle = arguments[at + 1]
        about = row_of(meta, ring_at + place)
        source = row_of(link_data, ring_at + place) if data else row_of(quads, idle)
        if data:
            prefetch_row(link_data, ring_at + (place + _AHEAD) % capacity)
        a = products(source, KEY_A)
        if about[2] != np.int64(mix64(a + key)):
            state[DETAIL] = 3
        elif about[3] != launch:
            state[DETAIL] = 0
        elif about[1] != sequence:
            state[DETAIL] = 1
        elif about[0] + hop != cycle:
            state[DETAIL] = 2
        if state[DETAIL] >= 0:
            state[SEEN_CYCLE] = about[0]
            state[SEEN_SEQUENCE] = about[1]
            state[SEEN_LAUNCH] = about[3]
            break
        row = arguments[at]
        if data and row >= 0:
            stream_row(source, row_of(quads, row))
        second = np.uint64(about[4])
        mix_known(totals, a, second, base, cycle, 193, queue, link)
        if arguments[at + 2] >= 0:
            unit = arguments[at + 3]
            address = row - unit * slice_words
            mix_known(totals, a, second, base, arguments[at + 2], 33, unit, address)
        sequence += 1
        place = place + 1 if place + 1 < capacity else 0
        k += 1
        head += 1
    received[link] = sequence
    store_release(own, 8, head)
    return k
