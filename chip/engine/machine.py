"""What compiled code works with: a frame's arrays opened, and the piece to run."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.engine.frames import (
    ACCUMULATORS,
    ADDRESSES,
    ARGUMENTS,
    CHIP,
    DATA,
    DOTS,
    EXCESS,
    FINITE,
    HOP,
    KEY,
    LAID,
    LAUNCH_NUMBER,
    LIVE,
    MAPS,
    PRODUCTS,
    REPEATS,
    ROWS,
    SATURATED,
    SLICE_WORDS,
    SUMS,
    TILE,
    TOTALS,
    WEIGHTS,
    WIDE,
    WORDS,
)
from chip.engine.mixing import mix64
from chip.isa import LANES, PLANES
from chip.jit import jit_inline, matrix_at, vector_at

Array = NDArray[Any]
_QUADS = LANES // 4


class Halves(NamedTuple):
    """fp16 activations decoded: wide float64 [ACTIVATIONS + 3, 320], the last rows for a column and
    its products; finite bool, totals of magnitudes, and sums of products with a column float64
    [ACTIVATIONS]; live int64 [40]: lanes at which blocks begin that are not zero in all.
    """

    finite: Array
    wide: Array
    totals: Array
    sums: Array
    live: Array


class TurnedColumns(NamedTuple):
    """Scratch of int8 products of many activations: 16 columns turned over, uint8 [5120], and what
    each activation's products begin with, int32 [ACTIVATIONS].
    """

    columns: Array
    excess: Array


class Machine(NamedTuple):
    """A chip's arrays, some in several views, and its numbers of this launch.

    rows, signed, quads, pairs: SRAM and scratch [rows, 320] as uint8 and int8, [rows, 80] as uint32
    and [rows, 40] as uint64, the last row being zeros; words and accumulators: [rows, 320] as
    uint32, float32 and int32, each plane having ``plane_rows`` accumulators; products: those of one
    pass of ACCs; laid int16 [ACTIVATIONS, 320]: int8 activations; repeats uint8 [320]; addresses
    int64 [20]; sums uint64 [2]: the digest; saturated int64: counters of lanes.
    base: mixes chip and launch; key: of the vectors' checksums; hop: cycles from Send to Receive;
    data: False runs for the time only.
    """

    arguments: Array
    weights: Array
    maps: Array
    rows: Array
    signed: Array
    quads: Array
    pairs: Array
    words: Array
    words_f: Array
    words_i: Array
    accumulators: Array
    accumulators_f: Array
    products_i: Array
    products_u: Array
    products_f: Array
    laid: Array
    tile: TurnedColumns
    halves: Halves
    repeats: Array
    addresses: Array
    sums: Array
    saturated: Array
    plane_rows: int
    slice_words: int
    base: Any
    key: Any
    launch: int
    hop: int
    data: bool


class LinkedPiece(NamedTuple):
    """A piece of the table; arguments of element k begin at first + k * stride."""

    op: int
    queue: int
    elements: int
    first: int
    stride: int
    imm: int
    counter: int


@jit_inline
def open_frame(frame: Array) -> Any:
    """The machine of a frame, whose arrays somebody keeps alive."""
    return Machine(
        vector_at(frame[ARGUMENTS], frame[ARGUMENTS + 1], np.int32),
        vector_at(frame[WEIGHTS], frame[WEIGHTS + 1], np.int32),
        matrix_at(frame[MAPS], frame[MAPS + 1], LANES, np.int16),
        matrix_at(frame[ROWS], frame[ROWS + 1], LANES, np.uint8),
        matrix_at(frame[ROWS], frame[ROWS + 1], LANES, np.int8),
        matrix_at(frame[ROWS], frame[ROWS + 1], _QUADS, np.uint32),
        matrix_at(frame[ROWS], frame[ROWS + 1], _QUADS // 2, np.uint64),
        matrix_at(frame[WORDS], frame[WORDS + 1], LANES, np.uint32),
        matrix_at(frame[WORDS], frame[WORDS + 1], LANES, np.float32),
        matrix_at(frame[WORDS], frame[WORDS + 1], LANES, np.int32),
        matrix_at(frame[ACCUMULATORS], frame[ACCUMULATORS + 1], LANES, np.uint32),
        matrix_at(frame[ACCUMULATORS], frame[ACCUMULATORS + 1], LANES, np.float32),
        matrix_at(frame[PRODUCTS], frame[PRODUCTS + 1], LANES, np.int32),
        matrix_at(frame[PRODUCTS], frame[PRODUCTS + 1], LANES, np.uint32),
        matrix_at(frame[PRODUCTS], frame[PRODUCTS + 1], LANES, np.float32),
        matrix_at(frame[LAID], frame[LAID + 1], LANES, np.int16),
        TurnedColumns(
            vector_at(frame[TILE], frame[TILE + 1], np.uint8),
            vector_at(frame[EXCESS], frame[EXCESS + 1], np.int32),
        ),
        Halves(
            vector_at(frame[FINITE], frame[FINITE + 1], np.bool_),
            matrix_at(frame[WIDE], frame[WIDE + 1], LANES, np.float64),
            vector_at(frame[TOTALS], frame[TOTALS + 1], np.float64),
            vector_at(frame[DOTS], frame[DOTS + 1], np.float64),
            vector_at(frame[LIVE], frame[LIVE + 1], np.int64),
        ),
        vector_at(frame[REPEATS], frame[REPEATS + 1], np.uint8),
        vector_at(frame[ADDRESSES], frame[ADDRESSES + 1], np.int64),
        vector_at(frame[SUMS], 2, np.uint64),
        vector_at(frame[SATURATED], frame[SATURATED + 1], np.int64),
        frame[ACCUMULATORS + 1] // PLANES,
        frame[SLICE_WORDS],
        mix64(mix64(np.uint64(frame[CHIP] + 1)) + np.uint64(frame[LAUNCH_NUMBER])),
        np.uint64(frame[KEY]),
        frame[LAUNCH_NUMBER],
        frame[HOP],
        frame[DATA] != 0,
    )
