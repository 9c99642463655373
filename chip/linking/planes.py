"""State of the matrix planes while a program is resolved: loads, installs, products, sums.

As the steps of ``chip.linking.units``; the detail of a fault is one of ``MXM_RULES``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chip.isa import MXM_QUEUE, PLANES
from chip.jit import jit, jit_inline
from chip.linking.arguments import FP16, INT8
from chip.linking.elements import (
    GROUPS,
    MISSING,
    MODE,
    MXM,
    NEVER,
    OP,
    W0,
    Edges,
    Elements,
    Resolved,
    UnitRules,
    push,
)
from chip.opcodes import ABC, ADD, ADD_EMIT

Array = NDArray[Any]

#: What an element breaks by a detail of the fault ``mxm``.
MXM_RULES = (
    "LW of column group 0 comes before the reload gap is over",
    "IW of a column group that was not loaded since the last IW",
    "fp16 ABC on an odd plane",
    "ABC on a plane nothing was installed on",
    "ABC before the install is in force",
    "ABC overlaps another one on the plane pair",
    "fp16 ABC on planes with different installed group counts",
    "ADD on an accumulator row not SET with this number type",
)
_RELOAD, _NOT_LOADED, _ODD, _NOT_INSTALLED, _NOT_IN_FORCE, _OVERLAP, _UNEQUAL, _NOT_SET = range(8)


class Planes(NamedTuple):
    """Weight buffers, installs, products under way and accumulator rows, by plane."""

    buffer: Array  # int64 [PLANES, GROUPS]: LW of each column group
    load_start: Array
    loaded: Array
    install_cycle: Array
    active: Array  # the install in force
    groups: Array  # its column groups
    installs: Array  # int64 [1]
    products: Array  # int64 [PLANES, ABCs]: ABCs whose product is under way, a queue
    head: Array
    tail: Array
    abc_cycle: Array
    wide_cycle: Array  # last fp16 ABC of a plane pair
    row_element: Array  # int64 [PLANES, rows]: last ACC of an accumulator row
    row_type: Array


@jit
def new_planes(c: Elements, rules: UnitRules) -> Any:
    """The planes before a launch."""
    activations = 0
    for e in range(c.block.shape[0]):
        activations += 1 if c.blocks[c.block[e], OP] == ABC else 0
    return Planes(
        np.full((PLANES, GROUPS), -1, np.int64),
        np.full(PLANES, NEVER, np.int64),
        np.zeros(PLANES, np.int64),
        np.full(PLANES, NEVER, np.int64),
        np.full(PLANES, -1, np.int64),
        np.zeros(PLANES, np.int64),
        np.zeros(1, np.int64),
        np.full((PLANES, activations + 1), -1, np.int64),
        np.zeros(PLANES, np.int64),
        np.zeros(PLANES, np.int64),
        np.full(PLANES, NEVER, np.int64),
        np.full(PLANES // 2, NEVER, np.int64),
        np.full((PLANES, rules.accumulator_rows), -1, np.int64),
        np.zeros((PLANES, rules.accumulator_rows), np.int64),
    )


@jit_inline
def plane_of(queue: int) -> int:
    """The plane of an MXM queue."""
    return (queue - MXM_QUEUE) // 2


@jit_inline
def load(c: Elements, rules: UnitRules, p: Planes, e: int, now: int) -> Any:
    """An LW fills a column group of its plane's buffer."""
    code = -1
    plane = plane_of(c.queue[e])
    if c.a[e] == 0:
        if now - p.load_start[plane] < p.loaded[plane] + rules.reload_gap_cycles:
            code = MXM
        p.load_start[plane] = now
        p.loaded[plane] = 0
    p.loaded[plane] += 1
    p.buffer[plane, c.a[e]] = e
    return code, _RELOAD


@jit_inline
def install(c: Elements, p: Planes, found: Resolved, e: int, now: int) -> Any:
    """An IW puts its plane's buffer in force and empties it."""
    code = -1
    plane = plane_of(c.queue[e])
    number = p.installs[0]
    for j in range(c.a[e]):
        if p.buffer[plane, j] < 0:
            code = MXM
        found.loads[number, j] = p.buffer[plane, j]
    for j in range(GROUPS):
        p.buffer[plane, j] = -1
    p.install_cycle[plane] = now
    p.groups[plane] = c.a[e]
    p.active[plane] = number
    p.installs[0] = number + 1
    return code, _NOT_LOADED


@jit_inline
def multiply(c: Elements, rules: UnitRules, p: Planes, found: Resolved, e: int, now: int) -> Any:
    """An ABC begins a product on its plane, an fp16 one on both planes of its pair."""
    code = -1
    detail = -1
    plane = plane_of(c.queue[e])
    wide = c.blocks[c.block[e], W0] == 2
    pair = plane // 2
    if wide and plane % 2 != 0:
        code = MXM
        detail = _ODD
    for q in range(plane, plane + (2 if wide and plane % 2 == 0 else 1)):
        if p.active[q] < 0:
            code = MXM
            detail = _NOT_INSTALLED
        elif now < p.install_cycle[q] + rules.install_cycles:
            code = MXM
            detail = _NOT_IN_FORCE
        if wide and p.abc_cycle[q] == now:
            code = MXM
            detail = _OVERLAP
        found.install_of[e, q - plane] = p.active[q]
    if now - p.wide_cycle[pair] < 2:
        code = MXM
        detail = _OVERLAP
    if wide:
        if code < 0 and p.groups[plane] != p.groups[plane + 1]:
            code = MXM
            detail = _UNEQUAL
        p.wide_cycle[pair] = now
    p.abc_cycle[plane] = now
    p.products[plane, p.tail[plane]] = e
    p.tail[plane] += 1
    return code, detail


@jit_inline
def accumulate(
    c: Elements, rules: UnitRules, p: Planes, found: Resolved, edges: Edges, e: int, now: int
) -> Any:
    """An ACC takes its plane's oldest product, and sums it to an accumulator row."""
    plane = plane_of(c.queue[e])
    if p.head[plane] >= p.tail[plane]:
        return MISSING, -1
    abc = p.products[plane, p.head[plane]]
    if c.cycle[abc] != now - rules.multiply_cycles:
        return MISSING, -1
    found.abc_of[e] = abc
    p.head[plane] += 1
    number_type = FP16 if c.blocks[c.block[abc], W0] == 2 else INT8
    row = c.a[e]
    mode = c.blocks[c.block[e], MODE]
    code = -1
    if (mode in (ADD, ADD_EMIT)) and p.row_type[plane, row] != number_type:
        code = MXM
    push(edges, p.row_element[plane, row], e)
    p.row_element[plane, row] = e
    p.row_type[plane, row] = number_type
    return code, _NOT_SET


@jit
def product_left(p: Planes) -> int:
    """An ABC whose product no ACC took, or -1."""
    left = -1
    for plane in range(PLANES):
        if p.head[plane] < p.tail[plane]:
            left = p.products[plane, p.head[plane]]
    return left
