"""Compiled SXM operations: lanes of byte rows moved."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from chip.engine.machine import LinkedPiece, Machine
from chip.isa import LANES, LANES_PER_SUPERLANE, SUPERLANES
from chip.jit import Deferred, jit_inline, processor_has, row_of, shuffle_lanes, transpose_rows
from chip.linking import (
    DISTRIBUTE_LANES,
    DISTRIBUTE_OUTS,
    DISTRIBUTE_SOURCES,
    DISTRIBUTE_WIDTH,
    MOVE_OUTS,
    MOVE_SOURCE,
    TRANSPOSE_OUTS,
    TRANSPOSE_SOURCES,
)
from chip.opcodes import DISTRIBUTE, PERMUTE, ROTATE, TRANSPOSE

Array = NDArray[Any]


@jit_inline
def pick_lanes_plainly(source: Array, lanes: Array, out: Array) -> None:
    """As ``chip.jit.shuffle_lanes``, on any processor."""
    for i in range(LANES):
        lane = lanes[i]
        out[i] = source[(i & ~15) + lane] if lane < LANES_PER_SUPERLANE else np.uint8(0)


#: What the processor does best.
pick_lanes: Any = Deferred(
    lambda: cast(Any, shuffle_lanes if processor_has("ssse3") else pick_lanes_plainly).made
)


@jit_inline
def _distribute(m: Machine, at: int) -> None:
    lanes = row_of(m.rows, m.arguments[at + DISTRIBUTE_LANES])
    for j in range(m.arguments[at + DISTRIBUTE_WIDTH]):
        row = m.arguments[at + DISTRIBUTE_OUTS + j]
        if row < 0:
            continue
        pick_lanes(
            row_of(m.rows, m.arguments[at + DISTRIBUTE_SOURCES + j]), lanes, row_of(m.rows, row)
        )


@jit_inline
def _rotate(m: Machine, at: int, n: int) -> None:
    source = m.rows[m.arguments[at + MOVE_SOURCE]]
    for i in range(n):
        for j in range(n):
            row = m.arguments[at + MOVE_OUTS + i * n + j]
            if row < 0:
                continue
            out = m.rows[row]
            out[:] = 0
            for k in range(SUPERLANES):
                for y in range(n):
                    for x in range(n):
                        lane = (y + i) % n * n + (x + j) % n
                        to = LANES_PER_SUPERLANE * k + y * n + x
                        out[to] = source[LANES_PER_SUPERLANE * k + lane]


@jit_inline
def run_sxm(m: Machine, p: LinkedPiece) -> None:
    """The elements of a DISTRIBUTE, TRANSPOSE, PERMUTE, SHIFT or ROTATE."""
    imm = p.imm
    for k in range(p.elements):
        at = p.first + k * p.stride
        if p.op == DISTRIBUTE:
            _distribute(m, at)
        elif p.op == TRANSPOSE:
            sources = at + TRANSPOSE_SOURCES
            transpose_rows(m.rows, m.arguments, sources, at + TRANSPOSE_OUTS)
        elif p.op == ROTATE:
            _rotate(m, at, imm)
        elif m.arguments[at + MOVE_OUTS] >= 0:
            source = m.rows[m.arguments[at + MOVE_SOURCE]]
            out = m.rows[m.arguments[at + MOVE_OUTS]]
            if p.op == PERMUTE:
                lanes = m.maps[imm]
                for i in range(LANES):
                    out[i] = source[lanes[i]]
            else:
                for i in range(LANES):
                    inside = i >= imm and i - imm < LANES
                    out[i] = source[i - imm] if inside else np.uint8(0)
