"""One MXM plane of the reference executor: weight buffer, installs, products, accumulators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.isa import LANES, AccMode
from chip.reference.forms import BrokenRule, Instruction
from chip.reference.math import add_rows, dot_f16
from chip.spec import ChipSpec

Bytes = NDArray[np.uint8]


class Plane:
    """State of a plane during one launch.  Cycles are dispatch cycles unless said otherwise."""

    def __init__(self, spec: ChipSpec) -> None:
        self.spec = spec
        self.buffer: Bytes = np.zeros((LANES, LANES), np.uint8)  # [column, lane]
        self.loaded: set[int] = set()  # column groups loaded since the last IW
        self.first_load: int | None = None  # cycle of the last LW with a = 0
        self.loads = 0  # LWs since that one, it included
        #: (IW's cycle, column groups, weights [column, lane]), oldest first
        self.installs: list[tuple[int, int, Bytes]] = []
        self.busy_until = -1  # last cycle taken by an activation
        #: products under way by the cycle of their ACC: (the ABC, int32 or float32 [320])
        self.products: dict[int, tuple[Instruction, NDArray[Any]]] = {}
        self.rows: dict[int, NDArray[Any]] = {}  # accumulators, int32 or float32 [320]

    def load(self, now: int, group: int, weights: Bytes) -> None:
        """LW: columns 16*group.. of the buffer from ``weights`` [16 columns, 320 lanes]."""
        if group == 0:
            if self.first_load is not None:
                earliest = self.first_load + self.loads + self.spec.mxm_reload_gap_cycles
                if now < earliest:
                    raise BrokenRule("mxm", f"the next load may start at cycle {earliest}")
            self.first_load, self.loads = now, 0
        self.loads += 1
        self.loaded.add(group)
        self.buffer[16 * group : 16 * group + 16] = weights

    def install(self, now: int, groups: int) -> None:
        """IW: the first ``groups`` column groups of the buffer, other columns zero."""
        absent = set(range(groups)) - self.loaded
        if absent:
            raise BrokenRule("mxm", f"column groups {sorted(absent)} are not loaded")
        weights = self.buffer.copy()
        weights[16 * groups :] = 0
        self.installs.append((now, groups, weights))
        self.installs = self.installs[-(self.spec.mxm_install_cycles + 1) :]
        self.loaded = set()

    def in_force(self, now: int) -> tuple[int, Bytes]:
        """(column groups, weights [column, lane]) an activation meets now."""
        for cycle, _, _ in self.installs:
            if cycle < now < cycle + self.spec.mxm_install_cycles:
                raise BrokenRule("mxm", f"the install of cycle {cycle} is under way")
        done = [i for i in self.installs if i[0] + self.spec.mxm_install_cycles <= now]
        if not done:
            raise BrokenRule("mxm", "nothing is installed")
        return done[-1][1:]

    def occupy(self, now: int, cycles: int) -> None:
        """An activation takes the plane for ``cycles`` cycles."""
        if now <= self.busy_until:
            raise BrokenRule("mxm", f"the plane is busy until cycle {self.busy_until}")
        self.busy_until = now + cycles - 1

    def accumulate(self, now: int, row: int, mode: int) -> NDArray[Any]:
        """ACC: take the product due now into a row; returns the row's new value [320]."""
        if now not in self.products:
            delay = self.spec.mxm_multiply_cycles
            raise BrokenRule("missing", f"no ABC was dispatched {delay} cycles earlier")
        value = self.products.pop(now)[1]
        if mode in (AccMode.ADD, AccMode.ADD_EMIT):
            old = self.rows.get(row)
            if old is None or old.dtype != value.dtype:
                raise BrokenRule("mxm", f"row {row} holds no {value.dtype} to add to")
            value = add_rows(old, value)
        self.rows[row] = value
        return value


def multiply(planes: Sequence[Plane], now: int, activation: Bytes) -> NDArray[Any]:
    """ABC: the product [320] of ``activation`` [w, 320] on one plane (int8) or a pair (fp16)."""
    installed = [plane.in_force(now) for plane in planes]
    if len({groups for groups, _ in installed}) > 1:
        raise BrokenRule("mxm", "the two planes are installed with different group counts")
    for plane in planes:
        plane.occupy(now, len(planes))
    weights = [matrix for _, matrix in installed]
    if len(planes) == 1:
        product: NDArray[Any] = weights[0].view(np.int8).astype(np.int32) @ activation[0].view(
            np.int8
        ).astype(np.int32)
        return product
    matrix = np.stack(weights, axis=-1).view("<u2")[..., 0]
    vector = np.stack(list(activation), axis=-1).view("<u2")[..., 0]
    return dot_f16(matrix, vector)
