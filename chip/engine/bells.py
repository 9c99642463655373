"""Compiled: a process sleeps until its chips can go on, and is woken by whoever makes that so.

A ring's counts lie in two lines, the sender's and the receiver's; lines are numbered 2 * ring and
2 * ring + 1.  Whose chip lacks vectors, or room for one, writes into its own line which count of
the other line it wants, and sleeps; who raises that count looks there, and wakes.  What a chip
wants of several rings at once is a circle of lines, and it is woken when all of it is there.

Nothing depends on being woken: who is not, or too early, looks again after a while.  Between a
store of one's own and a load of the other's there is a fence on both sides, so of two who do that
at the same time at least one sees the other.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.engine.frames import (
    ELEMENT,
    LINK_STATE,
    PC,
    RX,
    SLEEP_NANOSECONDS,
    SLEEP_SECONDS,
    STATE,
    TABLE,
    TX,
    WAIT_QUEUE,
    WAIT_RECEIVE,
    WAIT_SEND,
)
from chip.engine.ring import HEAD, TAIL
from chip.isa import C2C_QUEUE, LINKS
from chip.jit import (
    address_of,
    jit_uncounted,
    load_acquire,
    matrix_at,
    memory_fence,
    row_of,
    store_release,
    system_call,
    vector_at,
)
from chip.linking import PIECE_COLUMNS, PIECE_ELEMENTS, PIECE_OP, PIECE_QUEUE
from chip.opcodes import RECEIVE, SEND

Array = NDArray[Any]

#: Behind the count in a line: the other line's count that is wanted (0: none), the next line of the
#: circle, the line that has the word to sleep on, that word (1: woken).
_WANT, _NEXT, _DOOR, _WORD = range(1, 5)
_LINE = HEAD - TAIL
#: Linux's call to sleep on a word of memory, and to wake; 0 where it is not known.
_NUMBERS = {"x86_64": 202, "aarch64": 98}
FUTEX = _NUMBERS.get(platform.machine(), 0) if sys.platform == "linux" else 0
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
#: The longest sleep.  Who was not woken then, as its peers are gone or busy, looks about.
_SLEEP_NANOSECONDS = 20_000_000
#: Work between two Receives that a chip leaves for later, to be woken once for both.
_MOST_WORK = 2000


@jit_uncounted
def _is_there(counts: Array, line: int) -> bool:
    """What is wanted at ``line``; False where nothing is."""
    both = row_of(counts, line >> 1)
    side = _LINE * (line & 1)
    want = load_acquire(both, side + _WANT)
    return want > 0 and load_acquire(both, _LINE - side) >= want


@jit_uncounted
def _all_there(counts: Array, line: int) -> bool:
    """All that the circle of ``line`` wants."""
    at = line
    for _ in range(LINKS):
        if not _is_there(counts, at):
            return False
        at = row_of(counts, at >> 1)[_LINE * (at & 1) + _NEXT]
        if at < 0 or at >= 2 * counts.shape[0]:
            return False  # a stranger wrote it
        if at == line:
            return True
    return False


@jit_uncounted
def _wake(counts: Array, line: int) -> None:
    """Wake who sleeps at ``line``."""
    door = row_of(counts, line >> 1)[_LINE * (line & 1) + _DOOR]
    if door < 0 or door >= 2 * counts.shape[0]:
        return
    both = row_of(counts, door >> 1)
    at = _LINE * (door & 1) + _WORD
    if load_acquire(both, at) == 0:
        store_release(both, at, 1)
        system_call(FUTEX, address_of(both, at), _FUTEX_WAKE, 1, 0, 0, 0)


@jit_uncounted
def tell(counts: Array, line: int) -> None:
    """The count of ``line`` went up: wake who wanted that and nothing else any more."""
    if FUTEX == 0:
        return
    memory_fence()
    if _is_there(counts, line ^ 1) and _all_there(counts, line ^ 1):
        _wake(counts, line ^ 1)


@jit_uncounted
def _line_of(frame: Array, code: int) -> int:
    """The line at which a chip waits that stopped with ``code``; -1 if it does not."""
    state = vector_at(frame[STATE], 16, np.int64)
    links = matrix_at(frame[LINK_STATE], frame[LINK_STATE + 1], LINKS, np.int64)
    link = state[WAIT_QUEUE] - C2C_QUEUE
    if code == WAIT_SEND:
        return 2 * links[TX, link]
    return 2 * links[RX, link] + 1 if code == WAIT_RECEIVE else -1


@jit_uncounted
def _enter(counts: Array, line: int, door: int, want: int) -> None:
    """Want something at ``line``, and be woken at ``door``."""
    both = row_of(counts, line >> 1)
    side = _LINE * (line & 1)
    both[side + _DOOR] = door
    store_release(both, side + _WANT, want)


@jit_uncounted
def _want_room(counts: Array, line: int, door: int, capacity: int) -> None:
    """Want room in a ring that was full: for half of what it holds."""
    both = row_of(counts, line >> 1)
    both[_NEXT] = line
    # By the own count: its reader may have gone on since, and can get no further than that.
    _enter(counts, line, door, both[TAIL] - capacity + max(1, capacity // 2))
    memory_fence()
    # Its reader may wait for others as well, which wait for what is not sent before this.  One of
    # this process that does is found by ``sleep``: it must not wake itself.
    if load_acquire(both, _LINE + _WANT) > 0 and both[_LINE + _DOOR] != door:
        _wake(counts, line ^ 1)


@jit_uncounted
def _want_vectors(
    counts: Array, frame: Array, first: int, door: int, capacity: int, pieces: int
) -> None:
    """Want the vectors of a chip's next Receives, the first at line ``first``, ``pieces`` at most.

    None behind a Send, which others may need before, and no more than a ring has room for.
    """
    state = vector_at(frame[STATE], 16, np.int64)
    table = matrix_at(frame[TABLE], frame[TABLE + 1], PIECE_COLUMNS, np.int32)
    links = matrix_at(frame[LINK_STATE], frame[LINK_STATE + 1], LINKS, np.int64)
    opening = row_of(counts, first >> 1)
    opening[_LINE + _NEXT] = first
    done = state[ELEMENT]
    work = 0
    at = state[PC]
    while at < table.shape[0] and pieces > 0 and work < _MOST_WORK:
        if table[at, PIECE_OP] == SEND:
            return
        if table[at, PIECE_OP] != RECEIVE:
            work += table[at, PIECE_ELEMENTS]
        else:
            number = links[RX, table[at, PIECE_QUEUE] - C2C_QUEUE]
            if number < 0:
                return  # a fault when it is reached
            both = row_of(counts, number)
            known = both[_LINE + _WANT]
            want = (known if known > 0 else both[HEAD]) + table[at, PIECE_ELEMENTS] - done
            line = 2 * number + 1
            if want > both[HEAD] + capacity:
                if line == first and known == 0:
                    _enter(counts, line, door, both[HEAD] + max(1, capacity // 2))
                return
            if line != first and known == 0:
                both[_LINE + _NEXT] = opening[_LINE + _NEXT]
                opening[_LINE + _NEXT] = line
            _enter(counts, line, door, want)
            pieces -= 1
            done = 0
        at += 1


@jit_uncounted
def _forget(counts: Array, line: int) -> None:
    """Want nothing any more of the circle of ``line``."""
    at = line
    for _ in range(LINKS):
        both = row_of(counts, at >> 1)
        both[_LINE * (at & 1) + _WANT] = 0
        at = both[_LINE * (at & 1) + _NEXT]
        if at == line or at < 0 or at >= 2 * counts.shape[0]:
            return


@jit_uncounted
def _any_full(counts: Array, line: int, capacity: int) -> bool:
    """The sender of a ring of the circle of ``line`` may be waiting for room."""
    at = line
    for _ in range(LINKS):
        both = row_of(counts, at >> 1)
        if load_acquire(both, TAIL) - both[HEAD] >= capacity:
            return True
        at = both[_LINE * (at & 1) + _NEXT]
        if at == line or at < 0 or at >= 2 * counts.shape[0]:
            return False
    return False


@jit_uncounted
def sleep(frames: Array, codes: Array, counts: Array, capacity: int) -> bool:
    """Sleep until a chip that waits can go on, for a while at most; whether one can.

    frames, codes: as of ``loop.run_chips``.  capacity: of a ring.
    """
    if FUTEX == 0:
        return False
    door = sleeper = -1
    for i in range(frames.shape[0]):
        frame = row_of(frames, i)
        line = _line_of(frame, codes[i])
        if line < 0:
            continue
        if door < 0:
            door = line
            sleeper = i
            row_of(counts, door >> 1)[_LINE * (door & 1) + _WORD] = 0
        if codes[i] == WAIT_SEND:
            _want_room(counts, line, door, capacity)
        else:
            _want_vectors(counts, frame, line, door, capacity, LINKS)
    if door < 0:
        return False
    memory_fence()
    ready = False
    for i in range(frames.shape[0]):
        frame = row_of(frames, i)
        line = _line_of(frame, codes[i])
        if codes[i] == WAIT_RECEIVE and _any_full(counts, line, capacity):
            _forget(counts, line)
            _want_vectors(counts, frame, line, door, capacity, 1)
            memory_fence()
        ready = ready or (line >= 0 and _all_there(counts, line))
    if not ready:
        both = row_of(counts, door >> 1)
        at = _LINE * (door & 1) + _WORD
        # How long lies in memory of this process alone: a stranger could make it hours.
        state = vector_at(row_of(frames, sleeper)[STATE], 16, np.int64)
        state[SLEEP_SECONDS] = 0
        state[SLEEP_NANOSECONDS] = _SLEEP_NANOSECONDS
        span = address_of(state, SLEEP_SECONDS)
        system_call(FUTEX, address_of(both, at), _FUTEX_WAIT, 0, span, 0, 0)
        ready = load_acquire(both, at) != 0
    for i in range(frames.shape[0]):
        line = _line_of(row_of(frames, i), codes[i])
        if line >= 0:
            _forget(counts, line)
    return ready
