"""Compiled SXM operations: lanes of byte rows moved."""

from __future__ import annotations

import numpy as np

from chip.engine.machine import LinkedPiece, Machine
from chip.isa import LANES, LANES_PER_SUPERLANE, SUPERLANES
from chip.jit import jit_inline
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


@jit_inline
def _distribute(m: Machine, at: int) -> None:
    lanes = m.rows[m.arguments[at + DISTRIBUTE_LANES]]
    for j in range(m.arguments[at + DISTRIBUTE_WIDTH]):
        row = m.arguments[at + DISTRIBUTE_OUTS + j]
        if row < 0:
            continue
        source = m.rows[m.arguments[at + DISTRIBUTE_SOURCES + j]]
        out = m.rows[row]
        for i in range(LANES):
            lane = lanes[i]
            out[i] = source[(i & ~15) + lane] if lane < LANES_PER_SUPERLANE else np.uint8(0)


@jit_inline
def _transpose(m: Machine, at: int) -> None:
    for i in range(LANES_PER_SUPERLANE):
        row = m.arguments[at + TRANSPOSE_OUTS + i]
        if row < 0:
            continue
        out = m.rows[row]
        for j in range(LANES_PER_SUPERLANE):
            source = m.rows[m.arguments[at + TRANSPOSE_SOURCES + j]]
            for k in range(SUPERLANES):
                out[LANES_PER_SUPERLANE * k + j] = source[LANES_PER_SUPERLANE * k + i]


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
            _transpose(m, at)
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
