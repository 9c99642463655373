"""Compiled MEM operations: words copied, written, gathered, scattered, and their effects mixed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.digest import KEY_A, KEY_B
from chip.engine.frames import DETAIL, ELEMENT, WAIT_CYCLE, WAIT_QUEUE
from chip.engine.machine import LinkedPiece, Machine
from chip.engine.mixing import mix, mix_known
from chip.isa import LANES_PER_SUPERLANE, SUPERLANES
from chip.jit import jit_inline, keyed_products, row_of
from chip.linking import (
    GATHER_HIGH,
    GATHER_LOW,
    GATHER_OUT,
    READ_COPY,
    READ_WORD,
    SCATTER_HIGH,
    SCATTER_LOW,
    SCATTER_SOURCE,
    WINDOW_BASE,
    WINDOW_CYCLE,
    WINDOW_FIRST,
    WINDOW_LAST,
    WINDOW_SLICE,
    WRITE_CYCLE,
    WRITE_SLICE,
    WRITE_SOURCE,
    WRITE_WORD,
)
from chip.opcodes import GATHER, SCATTER, WRITE

Array = NDArray[Any]
#: Factors of the superlanes' addresses in the number that the digest has of a SCATTER.
_POWERS = np.array([pow(1_000_003, 19 - s, 1 << 64) for s in range(SUPERLANES)], np.uint64)


@jit_inline
def copy(source: Array, target: Array) -> None:
    """target[:] = source, one vector as uint32 [80]; a length known here becomes five moves."""
    for i in range(80):
        target[i] = source[i]


@jit_inline
def mix_only(m: Machine, p: LinkedPiece) -> None:
    """The effects of a WRITE or SCATTER on a chip without data."""
    arguments = m.arguments
    idle = row_of(m.quads, m.quads.shape[0] - 1)
    for k in range(p.elements):
        at = p.first + k * p.stride
        if p.op == WRITE:
            unit = arguments[at + WRITE_SLICE]
            address = arguments[at + WRITE_WORD] - unit * m.slice_words
            mix(m.sums, idle, m.base, arguments[at + WRITE_CYCLE], p.op, unit, address)
        else:
            mix(
                m.sums,
                idle,
                m.base,
                arguments[at + WINDOW_CYCLE],
                p.op,
                arguments[at + WINDOW_SLICE],
                arguments[at + WINDOW_BASE],
            )


@jit_inline
def run_write(m: Machine, p: LinkedPiece) -> None:
    """The elements of a WRITE."""
    arguments = m.arguments
    for k in range(p.elements):
        at = p.first + k * p.stride
        word = arguments[at + WRITE_WORD]
        unit = arguments[at + WRITE_SLICE]
        source = row_of(m.quads, arguments[at + WRITE_SOURCE])
        address = word - unit * m.slice_words
        mix(m.sums, source, m.base, arguments[at + WRITE_CYCLE], p.op, unit, address)
        copy(source, row_of(m.quads, word))


@jit_inline
def run_read(m: Machine, p: LinkedPiece) -> None:
    """The elements of a READ whose words are overwritten too soon to be read in place."""
    for k in range(p.elements):
        at = p.first + k * p.stride
        if m.arguments[at + READ_COPY] >= 0:
            word = row_of(m.quads, m.arguments[at + READ_WORD])
            copy(word, row_of(m.quads, m.arguments[at + READ_COPY]))


@jit_inline
def _find_words(low: Array, high: Array, base: int, lo: int, hi: int, out: Array) -> int:
    """Word address per superlane into int64 [20]; the first outside [lo, hi], or -1."""
    outside = False
    for k in range(SUPERLANES):
        lane = LANES_PER_SUPERLANE * k
        out[k] = base + np.int64(low[lane]) + 256 * np.int64(high[lane])
        outside = outside or out[k] < lo or out[k] > hi
    if outside:
        for k in range(SUPERLANES):
            if out[k] < lo or out[k] > hi:
                return k
    return -1


@jit_inline
def _gather(m: Machine, at: int) -> None:
    row = m.arguments[at + GATHER_OUT]
    if row < 0:
        return
    out = row_of(m.pairs, row)
    first = m.arguments[at + WINDOW_SLICE] * m.slice_words
    for s in range(SUPERLANES):
        part = row_of(m.pairs, first + m.addresses[s])
        a = part[2 * s]
        b = part[2 * s + 1]
        out[2 * s] = a
        out[2 * s + 1] = b


@jit_inline
def _scatter(m: Machine, at: int) -> None:
    """The superlanes of one SCATTER into their words."""
    source = row_of(m.pairs, m.arguments[at + SCATTER_SOURCE])
    first = m.arguments[at + WINDOW_SLICE] * m.slice_words
    for s in range(SUPERLANES):
        part = row_of(m.pairs, first + m.addresses[s])
        a = source[2 * s]
        b = source[2 * s + 1]
        part[2 * s] = a
        part[2 * s + 1] = b


@jit_inline
def _number_of(addresses: Array) -> Any:
    """The word addresses of all superlanes as the digest has them."""
    number = np.uint64(0)
    for s in range(SUPERLANES):
        number += _POWERS[s] * np.uint64(addresses[s] + 1)
    return number


@jit_inline
def _writes_over(m: Machine, gathers: bool, at: int, row: int) -> bool:
    """Whether the element whose arguments begin at ``at`` may change ``row``."""
    arguments = m.arguments
    if gathers:
        return bool(row == arguments[at + GATHER_OUT])
    word = row - arguments[at + WINDOW_SLICE] * m.slice_words
    return bool(word >= arguments[at + WINDOW_FIRST] and word <= arguments[at + WINDOW_LAST])


@jit_inline
def _same_words(m: Machine, gathers: bool, before: int, at: int) -> bool:
    """The element at ``at`` has the word addresses of that at ``before``, which ran just now."""
    arguments = m.arguments
    first = GATHER_LOW if gathers else SCATTER_LOW  # the high one follows the low one
    same = True
    for j in (first, first + 1, WINDOW_BASE, WINDOW_FIRST, WINDOW_LAST):
        same = same and arguments[before + j] == arguments[at + j]
    for j in (first, first + 1):
        same = same and not _writes_over(m, gathers, before, arguments[at + j])
    return same


@jit_inline
def run_window(m: Machine, p: LinkedPiece, state: Array) -> bool:
    """The elements of a GATHER or SCATTER; False at the first with a word outside its window,
    which ``state`` then names.

    Elements in a row often have their words, or what they write, in common.
    """
    arguments = m.arguments
    gathers = p.op == GATHER
    number = np.uint64(0)
    a = np.uint64(0)
    b = np.uint64(0)
    for k in range(p.elements):
        at = p.first + k * p.stride
        before = at - p.stride
        if k == 0 or not _same_words(m, gathers, before, at):
            low = arguments[at + GATHER_LOW] if gathers else arguments[at + SCATTER_LOW]
            high = arguments[at + GATHER_HIGH] if gathers else arguments[at + SCATTER_HIGH]
            bad = _find_words(
                row_of(m.rows, low),
                row_of(m.rows, high),
                arguments[at + WINDOW_BASE],
                arguments[at + WINDOW_FIRST],
                arguments[at + WINDOW_LAST],
                m.addresses,
            )
            if bad >= 0:
                state[ELEMENT] = k
                state[WAIT_QUEUE] = arguments[at + WINDOW_SLICE]
                state[WAIT_CYCLE] = arguments[at + WINDOW_CYCLE]
                state[DETAIL] = m.addresses[bad]
                return False
            if not gathers:
                number = _number_of(m.addresses)
        if gathers:
            _gather(m, at)
            continue
        row = arguments[at + SCATTER_SOURCE]
        if (
            k == 0
            or row != arguments[before + SCATTER_SOURCE]
            or _writes_over(m, gathers, before, row)
        ):
            source = row_of(m.quads, row)
            a = keyed_products(source, KEY_A)
            b = keyed_products(source, KEY_B)
        _scatter(m, at)
        cycle = arguments[at + WINDOW_CYCLE]
        mix_known(m.sums, a, b, m.base, cycle, SCATTER, arguments[at + WINDOW_SLICE], number)
    return True
