"""The compiled interpreter: one loop over a linked program's table, reading SRAM in place."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip._jit import jit_inline, jit_uncounted, load_acquire, prefetch_row, row_of, store_release
from chip._mxm import (
    ACTIVATIONS,
    decode_half,
    dot_fp16,
    dot_int8,
    find_repeats,
    widen_int8,
)
from chip._vxm import decode_bytes, encode_byte, vxm
from chip.digest import KEY_A, KEY_B

Array = NDArray[Any]
DONE, WAIT_RECEIVE, WAIT_SEND, WINDOW, FAULT, LOCKSTEP = range(6)
# Positions in the state vector, int64 [16].
PC, ELEMENT, WAIT_QUEUE, WAIT_CYCLE, DETAIL, SEEN_CYCLE, SEEN_SEQUENCE, SEEN_LAUNCH = range(8)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_FACTOR = np.uint64(1_000_003)
_HALF = 40
_AHEAD = 2  # vectors fetched into the cache before a Send or Receive needs them
_NAN = np.uint32(0x7FC00000).view(np.float32)


@jit_inline
def mix64(v: Any) -> Any:
    """The splitmix64 finaliser on uint64."""
    v = (v ^ (v >> np.uint64(30))) * _M1
    v = (v ^ (v >> np.uint64(27))) * _M2
    return v ^ (v >> np.uint64(31))


@jit_inline
def products(words: Array, key: Array) -> Any:
    """Keyed sum of products of uint32 [80], modulo 2^64."""
    total = np.uint64(0)
    for i in range(_HALF):
        a = np.uint32(words[i] + key[i])
        b = np.uint32(words[i + _HALF] + key[i + _HALF])
        total += np.uint64(a) * np.uint64(b)
    return total


@jit_inline
def mix_known(
    sums: Array, first: Any, second: Any, base: Any, cycle: int, op: int, queue: int, address: Any
) -> None:
    """Add one effect, of whose bytes both keyed sums are known; ``base`` mixes chip and launch."""
    meta = mix64(base + np.uint64(cycle))
    meta = mix64(meta + np.uint64((op << 16) | queue))
    meta = mix64(meta + np.uint64(address))
    sums[0] += mix64(first + meta)
    sums[1] += mix64(second + meta * _GOLDEN)


@jit_inline
def mix(
    sums: Array, words: Array, base: Any, cycle: int, op: int, queue: int, address: Any
) -> None:
    """Add the effect of one vector uint32 [80] to the two sums."""
    mix_known(sums, products(words, KEY_A), products(words, KEY_B), base, cycle, op, queue, address)


@jit_inline
def copy(source: Array, target: Array) -> None:
    """target[:] = source, one vector as uint32 [80]; a length known here becomes five moves."""
    for i in range(80):
        target[i] = source[i]


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
    scratch_i: Array, scratch_u: Array, scratch_f: Array, widened: Array, bits: Array,
    values: Array, finite: Array, quads: Array, repeats: Array, compared: int,
) -> int:
    """The next ACC and those after it of the same install, as many as one pass over the weights
    takes; returns how many.

    scratch: products [ACTIVATIONS, 320] in three views; widened int16 [2, 320]; bits, values and
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
            widen_int8(row_of(signed, arguments[at + k * stride + 6]), row_of(widened, k))
        dot_int8(
            signed, weights, install, arguments[at + 3], row_of(widened, 0), row_of(widened, 1),
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
        plane = arguments[at + 13]
        row = accumulators[plane, arguments[at + 1]]
        row_f = accumulators_f[plane, arguments[at + 1]]
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
def send(
    k: int, elements: int, first: int, stride: int, arguments: Array, quads: Array, data: bool,
    own: Array, meta: Array, link_data: Array, ring_at: int, capacity: int, sent: Array,
    link: int, queue: int, launch: int, base: Any, totals: Array,
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
        source = row_of(quads, arguments[at] if data and arguments[at] >= 0 else idle)
        if data:
            after = arguments[min(at + _AHEAD * stride, arguments.shape[0] - 1)]
            prefetch_row(quads, np.int64(min(max(after, 0), idle)))
            copy(source, row_of(link_data, ring_at + place))
        a = products(source, KEY_A)
        b = products(source, KEY_B)
        about = row_of(meta, ring_at + place)
        about[0] = cycle
        about[1] = sequence
        about[2] = np.int64(mix64(a))
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
    link: int, queue: int, launch: int, base: Any, totals: Array, hop: int, state: Array,
) -> int:
    """Receive vectors k .. elements - 1 as far as they are there; returns the next one.

    The vector that is not the scheduled one stays in the ring; state[DETAIL] says why, else -1.
    Its second keyed sum comes with it; the first is computed from the bytes and must agree.
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
            if arguments[at] >= 0:
                copy(source, row_of(quads, arguments[at]))
        a = products(source, KEY_A)
        if about[3] != launch:
            state[DETAIL] = 0
        elif about[1] != sequence:
            state[DETAIL] = 1
        elif about[0] + hop != cycle:
            state[DETAIL] = 2
        elif about[2] != np.int64(mix64(a)):
            state[DETAIL] = 3
        if state[DETAIL] >= 0:
            state[SEEN_CYCLE] = about[0]
            state[SEEN_SEQUENCE] = about[1]
            state[SEEN_LAUNCH] = about[3]
            break
        mix_known(totals, a, np.uint64(about[4]), base, cycle, 193, queue, link)
        sequence += 1
        place = place + 1 if place + 1 < capacity else 0
        k += 1
        head += 1
    received[link] = sequence
    store_release(own, 8, head)
    return k


@jit_uncounted
def execute(
    table: Array, starts: Array, arguments: Array, weights: Array, maps: Array, rows: Array,
    signed: Array, quads: Array, words: Array, words_f: Array, words_i: Array,
    accumulators: Array, accumulators_f: Array, scratch_i: Array, scratch_u: Array,
    scratch_f: Array, widened: Array, bits: Array, values: Array, finite: Array, repeats: Array,
    addresses: Array, counts: Array,
    meta: Array, link_data: Array, tx: Array, rx: Array, sent: Array, received: Array,
    state: Array, sums: Array, chip: int, launch: int, until: int, hop: int, slice_words: int,
    data: bool,
) -> int:
    """Run pieces in order from the state's position; returns why it stopped.

    slice_words: words of a MEM slice, whose word w is row ``slice * slice_words + w``.
    """
    base = mix64(mix64(np.uint64(chip + 1)) + np.uint64(launch))
    capacity = meta.shape[0] // counts.shape[0]
    last_row = quads.shape[0] - 1
    totals = row_of(sums, 0)  # without the counting of references that an argument costs per call
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
                    totals,
                )  # fmt: skip
                if k < elements:
                    return stop(state, WAIT_SEND, k, queue, arguments[first + k * stride + 1])
            else:
                k = receive(
                    k, elements, first, stride, arguments, quads, data, row_of(counts, ring),
                    meta, link_data, ring * capacity, capacity, received, link, queue, launch,
                    base, totals, hop, state,
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
                    accumulators, accumulators_f, scratch_i, scratch_u, scratch_f, widened, bits,
                    values, finite, quads, repeats, compared,
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
