"""The compiled interpreter: one loop over a linked program's table, reading SRAM in place."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.engine.frames import (
    ACCUMULATORS,
    ADDRESSES,
    ARGUMENTS,
    BITS,
    CHIP,
    DATA,
    DETAIL,
    DONE,
    ELEMENT,
    FAULT,
    FINITE,
    HOP,
    KEY,
    LAID,
    LAUNCH_NUMBER,
    LINK_STATE,
    LOCKSTEP,
    MAPS,
    PC,
    PRODUCTS,
    RECEIVED,
    REPEATS,
    ROWS,
    RX,
    SENT,
    SLICE_WORDS,
    STARTS,
    STATE,
    SUMS,
    TABLE,
    TX,
    VALUES,
    WAIT_CYCLE,
    WAIT_QUEUE,
    WAIT_RECEIVE,
    WAIT_SEND,
    WEIGHTS,
    WINDOW,
    WORDS,
)
from chip.engine.links import copy, receive, send
from chip.engine.mixing import mix, mix64
from chip.engine.mxm import ACTIVATIONS, decode_half, dot_fp16, dot_int8, find_repeats, lay_int8
from chip.engine.vxm import decode_bytes, encode_byte, vxm
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

Array = NDArray[Any]
_FACTOR = np.uint64(1_000_003)
_SPINS = 20  # rounds without a move before a thread lets others have its core each time
_PATIENCE = 2000  # ... before it gives up
_NAN = np.uint32(0x7FC00000).view(np.float32)


@jit_inline
def copy_word(source: Array, target: Array) -> None:
    """target[:] = source, 32-bit lanes [320]."""
    for i in range(320):
        target[i] = source[i]


@jit_inline
def encode(rows: Array, word: Array, arguments: Array, at: int, count: int) -> None:
    """The wanted bytes of a 32-bit row into their byte rows."""
    for j in range(count):
        if arguments[at + j] >= 0:
            encode_byte(word, 8 * j, row_of(rows, arguments[at + j]))


@jit_inline
def offsets_of(low: Array, high: Array, base: int, lo: int, hi: int, out: Array) -> int:
    """Word address per superlane into int64 [20]; the first outside [lo, hi], or -1."""
    for k in range(20):
        out[k] = base + np.int64(low[16 * k]) + 256 * np.int64(high[16 * k])
        if out[k] < lo or out[k] > hi:
            return k
    return -1


@jit_inline
def accumulate(
    mode: int, number_type: int, row: Array, row_f: Array, product: Array, product_f: Array
) -> None:
    """SET or ADD one product uint32 [320] (or its float32 view) to an accumulator row."""
    if mode == 0 or mode == 2:
        for i in range(320):
            row[i] = product[i]
    elif number_type == 1:
        for i in range(320):
            row[i] = row[i] + product[i]
    else:
        for i in range(320):
            r = row_f[i] + product_f[i]
            row_f[i] = r if r == r else _NAN


@jit_uncounted
def run_acc(
    arguments: Array, at: int, left: int, stride: int, weights: Array, rows: Array,
    signed: Array, words: Array, words_f: Array, accumulators: Array, accumulators_f: Array,
    plane_rows: int, scratch_i: Array, scratch_u: Array, scratch_f: Array, laid: Array,
    bits: Array, values: Array, finite: Array, quads: Array, repeats: Array, compared: int,
) -> int:
    """The next ACC and those after it of the same install, as many as one pass over the weights
    takes; returns how many.

    scratch: products [ACTIVATIONS, 320] in three views; laid int16 [2, 320]; bits, values and
    finite as of ``dot_fp16``; repeats: equal neighbour columns of the fp16 install whose columns
    start at ``compared``.
    """
    number_type = arguments[at + 2]
    install = arguments[at + 4]
    limit = min(left, 2 if number_type == 1 else ACTIVATIONS)
    done = 1
    while done < limit:
        after = at + done * stride
        if arguments[after + 2] != number_type or arguments[after + 4] != install:
            break
        done += 1
    if number_type == 1:
        for k in range(done):  # when it is one, the second product is of no use
            lay_int8(row_of(signed, arguments[at + k * stride + 6]), row_of(laid, k))
        dot_int8(
            signed, weights, install, arguments[at + 3], row_of(laid, 0), row_of(laid, 1),
            row_of(scratch_i, 0), row_of(scratch_i, 1),
        )  # fmt: skip
    else:
        columns = 16 * arguments[at + 3]
        if install != compared:
            find_repeats(quads, weights, install, arguments[at + 5], columns, repeats)
        for k in range(done):
            low = row_of(rows, arguments[at + k * stride + 6])
            high = row_of(rows, arguments[at + k * stride + 7])
            finite[k] = decode_half(low, high, row_of(bits, k), row_of(values, k))
        dot_fp16(
            rows, weights, install, arguments[at + 5], columns, done, bits, values, finite,
            scratch_f, repeats,
        )  # fmt: skip
    for k in range(done):
        mode = arguments[at]
        number = arguments[at + 13] * plane_rows + arguments[at + 1]
        row = row_of(accumulators, number)
        row_f = row_of(accumulators_f, number)
        accumulate(
            mode, number_type, row, row_f, row_of(scratch_u, k), row_of(scratch_f, k)
        )
        if mode >= 2:
            if arguments[at + 8] >= 0:
                copy_word(row, row_of(words, arguments[at + 8]))
            encode(rows, row, arguments, at + 9, 4)
        at += stride
    return done


@jit_uncounted
def run_sxm(op: int, imm: int, arguments: Array, at: int, rows: Array, maps: Array) -> None:
    """DISTRIBUTE, TRANSPOSE, PERMUTE, SHIFT or ROTATE of one element."""
    if op == 160:
        width = arguments[at]
        lanes = rows[arguments[at + 9]]
        for j in range(width):
            if arguments[at + 10 + j] < 0:
                continue
            source = rows[arguments[at + 1 + j]]
            out = rows[arguments[at + 10 + j]]
            for i in range(320):
                m = lanes[i]
                out[i] = source[(i & ~15) + m] if m < 16 else np.uint8(0)
    elif op == 161:
        for i in range(16):
            if arguments[at + 16 + i] < 0:
                continue
            out = rows[arguments[at + 16 + i]]
            for j in range(16):
                source = rows[arguments[at + j]]
                for k in range(20):
                    out[16 * k + j] = source[16 * k + i]
    else:
        source = rows[arguments[at]]
        if op == 164:
            for i in range(imm):
                for j in range(imm):
                    r = arguments[at + 1 + i * imm + j]
                    if r < 0:
                        continue
                    out = rows[r]
                    out[:] = 0
                    for k in range(20):
                        for y in range(imm):
                            for x in range(imm):
                                lane = (y + i) % imm * imm + (x + j) % imm
                                out[16 * k + y * imm + x] = source[16 * k + lane]
            return
        if arguments[at + 1] < 0:
            return
        out = rows[arguments[at + 1]]
        if op == 162:
            lanes = maps[imm]
            for i in range(320):
                out[i] = source[lanes[i]]
        else:
            for i in range(320):
                out[i] = source[i - imm] if i >= imm and i - imm < 320 else np.uint8(0)


@jit_inline
def operand(
    arguments: Array, at: int, temporary: int, rows: Array, words: Array
) -> int:
    """The 32-bit row of a VXM operand: a result, the immediate's row 2, or decoded bytes."""
    if arguments[at + 1] == -2:
        return int(arguments[at])
    if arguments[at] < 0:
        return 2
    decode_bytes(
        rows, arguments[at], arguments[at + 1], arguments[at + 2], arguments[at + 3],
        row_of(words, temporary),
    )  # fmt: skip
    return temporary


@jit_inline
def stop(state: Array, code: int, element: int, queue: int, cycle: int) -> int:
    """Note where the chip stands and hand on why."""
    state[ELEMENT] = element
    state[WAIT_QUEUE] = queue
    state[WAIT_CYCLE] = cycle
    return code


@jit_uncounted
def execute(
    frame: Array, counts: Array, meta: Array, link_data: Array, until: int
) -> int:
    """Run a chip's pieces in order from its state's position; returns why it stopped.

    frame: as of ``chip.engine.frames``; counts, meta, link_data: the rings; pieces that start at
    cycle ``until`` or later are left.
    """
    state = vector_at(frame[STATE], 16, np.int64)
    table = matrix_at(frame[TABLE], frame[TABLE + 1], 7, np.int32)
    starts = vector_at(frame[STARTS], frame[STARTS + 1], np.int64)
    arguments = vector_at(frame[ARGUMENTS], frame[ARGUMENTS + 1], np.int32)
    weights = vector_at(frame[WEIGHTS], frame[WEIGHTS + 1], np.int32)
    maps = matrix_at(frame[MAPS], frame[MAPS + 1], 320, np.int16)
    rows = matrix_at(frame[ROWS], frame[ROWS + 1], 320, np.uint8)
    signed = matrix_at(frame[ROWS], frame[ROWS + 1], 320, np.int8)
    quads = matrix_at(frame[ROWS], frame[ROWS + 1], 80, np.uint32)
    words = matrix_at(frame[WORDS], frame[WORDS + 1], 320, np.uint32)
    words_f = matrix_at(frame[WORDS], frame[WORDS + 1], 320, np.float32)
    words_i = matrix_at(frame[WORDS], frame[WORDS + 1], 320, np.int32)
    accumulators = matrix_at(frame[ACCUMULATORS], frame[ACCUMULATORS + 1], 320, np.uint32)
    accumulators_f = matrix_at(frame[ACCUMULATORS], frame[ACCUMULATORS + 1], 320, np.float32)
    plane_rows = frame[ACCUMULATORS + 1] // 4
    scratch_i = matrix_at(frame[PRODUCTS], frame[PRODUCTS + 1], 320, np.int32)
    scratch_u = matrix_at(frame[PRODUCTS], frame[PRODUCTS + 1], 320, np.uint32)
    scratch_f = matrix_at(frame[PRODUCTS], frame[PRODUCTS + 1], 320, np.float32)
    laid = matrix_at(frame[LAID], frame[LAID + 1], 320, np.int16)
    bits = matrix_at(frame[BITS], frame[BITS + 1], 320, np.uint16)
    values = matrix_at(frame[VALUES], frame[VALUES + 1], 320, np.float32)
    finite = vector_at(frame[FINITE], frame[FINITE + 1], np.bool_)
    repeats = vector_at(frame[REPEATS], frame[REPEATS + 1], np.bool_)
    addresses = vector_at(frame[ADDRESSES], frame[ADDRESSES + 1], np.int64)
    link_state = matrix_at(frame[LINK_STATE], frame[LINK_STATE + 1], 16, np.int64)
    tx = row_of(link_state, TX)
    rx = row_of(link_state, RX)
    sent = row_of(link_state, SENT)
    received = row_of(link_state, RECEIVED)
    totals = vector_at(frame[SUMS], 2, np.uint64)
    launch = frame[LAUNCH_NUMBER]
    hop = frame[HOP]
    key = np.uint64(frame[KEY])
    slice_words = frame[SLICE_WORDS]
    data = frame[DATA] != 0
    base = mix64(mix64(np.uint64(frame[CHIP] + 1)) + np.uint64(launch))
    capacity = meta.shape[0] // counts.shape[0]
    last_row = quads.shape[0] - 1
    while state[PC] < table.shape[0]:
        pc = state[PC]
        if starts[pc] >= until:
            return WINDOW
        op = table[pc, 0]
        queue = table[pc, 1]
        elements = table[pc, 2]
        stride = table[pc, 4]
        imm = table[pc, 5]
        first = table[pc, 3]
        k = state[ELEMENT]
        if op == 192 or op == 193:
            link = queue - 128
            ring = tx[link] if op == 192 else rx[link]
            if ring < 0:
                return stop(state, FAULT, k, queue, arguments[first + k * stride + 1])
            if op == 192:
                k = send(
                    k, elements, first, stride, arguments, quads, data, row_of(counts, ring),
                    meta, link_data, ring * capacity, capacity, sent, link, queue, launch, base,
                    totals, key,
                )  # fmt: skip
                if k < elements:
                    return stop(state, WAIT_SEND, k, queue, arguments[first + k * stride + 1])
            else:
                k = receive(
                    k, elements, first, stride, arguments, quads, data, row_of(counts, ring),
                    meta, link_data, ring * capacity, capacity, received, link, queue, launch,
                    base, totals, hop, slice_words, state, key,
                )  # fmt: skip
                if k < elements:
                    code = LOCKSTEP if state[DETAIL] >= 0 else WAIT_RECEIVE
                    return stop(state, code, k, queue, arguments[first + k * stride + 1])
        elif not data:
            if op == 33 or op == 35:
                idle = row_of(quads, last_row)
                for k in range(elements):
                    at = first + k * stride
                    if op == 33:
                        unit = arguments[at + 3]
                        mix(totals, idle, base, arguments[at + 2], op, unit,
                            arguments[at + 1] - unit * slice_words)  # fmt: skip
                    else:
                        mix(totals, idle, base, arguments[at + 7], op, arguments[at + 3],
                            arguments[at + 4])  # fmt: skip
        elif op == 33:
            for k in range(elements):
                at = first + k * stride
                word = arguments[at + 1]
                unit = arguments[at + 3]
                source = row_of(quads, arguments[at])
                mix(totals, source, base, arguments[at + 2], op, unit, word - unit * slice_words)
                copy(source, row_of(quads, word))
        elif op >= 64 and op < 128:
            fill = row_of(words, 2)
            fill[:] = np.uint32(imm & 0xFFFFFFFF)
            for k in range(elements):
                at = first + k * stride
                coded = (
                    arguments[at + 9] >= 0
                    or arguments[at + 10] >= 0
                    or arguments[at + 11] >= 0
                    or arguments[at + 12] >= 0
                )
                if arguments[at + 8] < 0 and not coded:
                    continue
                x = operand(arguments, at, 0, rows, words)
                y = operand(arguments, at + 4, 1, rows, words)
                z = arguments[at + 8] if arguments[at + 8] >= 0 else 3
                vxm(
                    op, row_of(words, x), row_of(words, y), row_of(words, z),
                    row_of(words_f, x), row_of(words_f, y), row_of(words_f, z),
                    row_of(words_i, x), row_of(words_i, y), row_of(words_i, z),
                )  # fmt: skip
                if coded:
                    encode(rows, row_of(words, z), arguments, at + 9, 4)
        elif op == 131:
            compared = -1
            while k < elements:
                at = first + k * stride
                k += run_acc(
                    arguments, at, elements - k, stride, weights, rows, signed, words, words_f,
                    accumulators, accumulators_f, plane_rows, scratch_i, scratch_u, scratch_f,
                    laid, bits, values, finite, quads, repeats, compared,
                )  # fmt: skip
                if arguments[at + 2] != 1:
                    compared = arguments[at + 4]
        elif op == 32:
            for k in range(elements):
                at = first + k * stride
                if arguments[at + 1] >= 0:
                    copy(row_of(quads, arguments[at]), row_of(quads, arguments[at + 1]))
        elif op == 34 or op == 35:
            for k in range(elements):
                at = first + k * stride
                low = arguments[at] if op == 34 else arguments[at + 1]
                high = arguments[at + 1] if op == 34 else arguments[at + 2]
                unit = arguments[at + 3]
                bad = offsets_of(
                    row_of(rows, low), row_of(rows, high), arguments[at + 4], arguments[at + 5],
                    arguments[at + 6], addresses,
                )  # fmt: skip
                if bad >= 0:
                    state[ELEMENT] = k
                    state[WAIT_QUEUE] = unit
                    state[WAIT_CYCLE] = arguments[at + 7]
                    state[DETAIL] = addresses[bad]
                    return FAULT
                if op == 34:
                    if arguments[at + 2] >= 0:
                        out = row_of(quads, arguments[at + 2])
                        for s in range(20):
                            part = row_of(quads, unit * slice_words + addresses[s])
                            for i in range(4 * s, 4 * s + 4):
                                out[i] = part[i]
                else:
                    source = row_of(quads, arguments[at])
                    number = np.uint64(0)
                    for s in range(20):
                        part = row_of(quads, unit * slice_words + addresses[s])
                        for i in range(4 * s, 4 * s + 4):
                            part[i] = source[i]
                        number = number * _FACTOR + np.uint64(addresses[s] + 1)
                    mix(totals, source, base, arguments[at + 7], op, unit, number)
        else:
            for k in range(elements):
                run_sxm(op, imm, arguments, first + k * stride, rows, maps)
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
    frames: Array, codes: Array, first: int, end: int, counts: Array, meta: Array,
    link_data: Array, until: int, rounds: int, moving: Array, own: int,
) -> bool:
    """Step chips ``first`` to ``end`` - 1 in turn, each as far as it can, ``rounds`` times at most.

    frames int64 [chips, LENGTH].  codes int64 [chips]: READY, or why the chip stopped; only READY
    ones and those that waited are run.  moving int64 [threads]: 1 for threads whose last round
    moved a chip, ``own`` being this one.  Ends early when nothing is left to run, at a fault, when
    a round moves nothing while no other thread moves anything, or after waiting for one too long.
    Returns whether it moved a chip.
    """
    ever = False
    waited = 0
    while rounds > 0 and waited < _PATIENCE:
        rounds -= 1
        alone = not _anybody_moves(moving, own)
        moved = False
        left = False
        for i in range(first, end):
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
        elif alone:
            return ever  # the others had stopped before this round, which met all their vectors
        else:
            waited += 1
            if waited > _SPINS:
                yield_core()
    store_release(moving, own, 0)
    return ever
