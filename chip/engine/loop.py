"""The compiled interpreter: one loop over a linked program's table, reading SRAM in place."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.engine.bells import sleep, tell
from chip.engine.frames import (
    DETAIL,
    DONE,
    ELEMENT,
    FAULT,
    INTACT,
    LINK_STATE,
    LOCKSTEP,
    PC,
    RECEIVED,
    RX,
    SENT,
    STARTS,
    STATE,
    TABLE,
    TX,
    WAIT_CYCLE,
    WAIT_QUEUE,
    WAIT_RECEIVE,
    WAIT_SEND,
    WINDOW,
)
from chip.engine.links import Ring, receive, send
from chip.engine.machine import LinkedPiece, Machine, open_frame
from chip.engine.mxm import run_acc
from chip.engine.sram import mix_only, run_read, run_window, run_write
from chip.engine.sxm import run_sxm
from chip.engine.vxm import run_vxm
from chip.isa import C2C_QUEUE, LINKS
from chip.jit import (
    jit_inline,
    jit_uncounted,
    load_acquire,
    matrix_at,
    row_of,
    store_release,
    vector_at,
    yield_core,
)
from chip.linking import (
    PIECE_COLUMNS,
    PIECE_COUNTER,
    PIECE_ELEMENTS,
    PIECE_FIRST,
    PIECE_IMM,
    PIECE_OP,
    PIECE_QUEUE,
    PIECE_STRIDE,
    RECEIVE_CYCLE,
    SEND_CYCLE,
    is_vxm,
)
from chip.opcodes import ACC, GATHER, READ, RECEIVE, SCATTER, SEND, WRITE

Array = NDArray[Any]
_SPINS = 20  # rounds without a move before a thread lets others have its core each time
_PATIENCE = 2000  # ... before it gives up
_WOKEN = 10  # wakes without a move before it gives up: somebody wakes it for nothing


@jit_inline
def _exchange(
    m: Machine,
    p: LinkedPiece,
    state: Array,
    links: Array,
    counts: Array,
    meta: Array,
    link_data: Array,
) -> int:
    """The elements of a SEND or RECEIVE; DONE, or why it stopped, ``state`` saying where."""
    link = p.queue - C2C_QUEUE
    number = links[TX, link] if p.op == SEND else links[RX, link]
    k = state[ELEMENT]
    code = FAULT  # unwired
    if number >= 0:
        capacity = meta.shape[0] // counts.shape[0]
        ring = Ring(row_of(counts, number), meta, link_data, number * capacity, capacity)
        before = k
        if p.op == SEND:
            k = send(m, p, ring, row_of(links, SENT), k)
            code = WAIT_SEND
        else:
            k = receive(m, p, ring, row_of(links, RECEIVED), state, k)
            code = WAIT_RECEIVE if state[DETAIL] == INTACT else LOCKSTEP
        if k > before:
            tell(counts, 2 * number + (0 if p.op == SEND else 1))
    if k >= p.elements:
        return DONE
    at = p.first + k * p.stride
    state[ELEMENT] = k
    state[WAIT_QUEUE] = p.queue
    state[WAIT_CYCLE] = m.arguments[at + (SEND_CYCLE if p.op == SEND else RECEIVE_CYCLE)]
    return code


@jit_uncounted
def execute(frame: Array, counts: Array, meta: Array, link_data: Array, until: int) -> int:
    """Run a chip's pieces in order from its state's position; returns why it stopped.

    frame: as of ``chip.engine.frames``; counts, meta, link_data: the rings; pieces that start at
    cycle ``until`` or later are left.
    """
    state = vector_at(frame[STATE], 16, np.int64)
    table = matrix_at(frame[TABLE], frame[TABLE + 1], PIECE_COLUMNS, np.int32)
    starts = vector_at(frame[STARTS], frame[STARTS + 1], np.int64)
    links = matrix_at(frame[LINK_STATE], frame[LINK_STATE + 1], LINKS, np.int64)
    m = open_frame(frame)
    while state[PC] < table.shape[0]:
        pc = state[PC]
        if starts[pc] >= until:
            return WINDOW
        p = LinkedPiece(
            table[pc, PIECE_OP],
            table[pc, PIECE_QUEUE],
            table[pc, PIECE_ELEMENTS],
            table[pc, PIECE_FIRST],
            table[pc, PIECE_STRIDE],
            table[pc, PIECE_IMM],
            table[pc, PIECE_COUNTER],
        )
        if p.op == SEND or p.op == RECEIVE:
            code = _exchange(m, p, state, links, counts, meta, link_data)
            if code != DONE:
                return code
        elif not m.data:
            if p.op == WRITE or p.op == SCATTER:
                mix_only(m, p)
        elif p.op == WRITE:
            run_write(m, p)
        elif is_vxm(p.op):
            run_vxm(m, p)
        elif p.op == ACC:
            run_acc(m, p, state[ELEMENT])
        elif p.op == READ:
            run_read(m, p)
        elif p.op == GATHER or p.op == SCATTER:
            if not run_window(m, p, state):
                return FAULT
        else:
            run_sxm(m, p)
        state[ELEMENT] = 0
        state[PC] = pc + 1
    return DONE


@jit_uncounted
def _anybody_moves(moving: Array, own: int) -> bool:
    """Another thread's last round moved a chip."""
    for thread in range(moving.shape[0]):
        if thread != own and load_acquire(moving, thread) != 0:
            return True
    return False


@jit_uncounted
def run_chips(
    frames: Array,
    codes: Array,
    counts: Array,
    meta: Array,
    link_data: Array,
    until: int,
    rounds: int,
    moving: Array,
    own: int,
    sleeps: int,
) -> bool:
    """Step chips in turn, each as far as it can, ``rounds`` times at most.

    frames int64 [chips, LENGTH].  codes int64 [chips]: READY, or why the chip stopped; only READY
    ones and those that waited are run.  moving int64 [threads]: 1 for threads whose last round
    moved a chip, ``own`` being this one.  Ends early when nothing is left to run, at a fault, when
    a round moves nothing while no other thread moves anything, or after waiting for one too long.
    sleeps: how often it then sleeps instead, until another process makes that a chip can go on; it
    ends when it slept in vain, or is woken in vain too often.  Returns whether it moved a chip.
    """
    ever = False
    waited = 0
    woken = 0
    capacity = meta.shape[0] // counts.shape[0]
    while rounds > 0 and waited < _PATIENCE:
        rounds -= 1
        alone = not _anybody_moves(moving, own)
        moved = False
        left = False
        for i in range(frames.shape[0]):
            if codes[i] == DONE or codes[i] == WINDOW:
                continue
            frame = row_of(frames, i)
            state = vector_at(frame[STATE], 16, np.int64)
            pc = state[PC]
            element = state[ELEMENT]
            codes[i] = execute(frame, counts, meta, link_data, until)
            if codes[i] == FAULT or codes[i] == LOCKSTEP:
                store_release(moving, own, 0)
                return True
            left = left or (codes[i] != DONE and codes[i] != WINDOW)
            moved = moved or codes[i] == DONE or state[PC] != pc or state[ELEMENT] != element
        ever = ever or moved
        store_release(moving, own, 1 if moved and left else 0)
        if not left:
            return ever
        if moved:
            waited = 0
            woken = 0
        elif alone:  # the others had stopped before this round, which met all their vectors
            if sleeps == 0 or woken == _WOKEN or not sleep(frames, codes, counts, capacity):
                return ever
            sleeps -= 1
            woken += 1
        else:
            waited += 1
            if waited > _SPINS:
                yield_core()
    store_release(moving, own, 0)
    return ever
