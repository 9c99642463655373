"""Counts of what conversions lost to a narrower type's range, by kind and by part of a program.

A conversion *saturates* a value that lies beyond the range of its result, or a NaN that becomes an
integer (``docs/machine.md``, "What saturates").  Engine and reference count lanes of instructions;
``Tally`` is for golden models, which convert arrays with ``chip.numerics``.

It knows kinds and numbers, not who converts what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from numpy.typing import NDArray

#: What was converted to, by the number that counters have for it.
KINDS = ("fp16", "int32", "int8")
FP16, INT32, INT8 = range(len(KINDS))


class Tally:
    """What golden models count while ``counting``: ``counts`` has int64 [kinds] by place."""

    def __init__(self) -> None:
        self.counts: dict[str, NDArray[np.int64]] = {}
        self._place, self._times = "", 1

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Inside, conversions by ``chip.numerics`` in this thread are counted here."""
        token = _TALLY.set(self)
        try:
            yield
        finally:
            _TALLY.reset(token)

    def at(self, place: str, times: int = 1) -> None:
        """What follows happens at ``place``, ``times`` times over: as often as chips do it."""
        self._place, self._times = place, times

    def add(self, kind: int, lost: int) -> None:
        """``lost`` values saturated in a conversion to ``kind``."""
        own = self.counts.setdefault(self._place, np.zeros(len(KINDS), np.int64))
        own[kind] += lost * self._times


_TALLY: ContextVar[Tally | None] = ContextVar("saturation_tally", default=None)


def note(kind: int, copies: int, lost: Callable[[], NDArray[np.bool_]]) -> None:
    """A conversion to ``kind`` lost the values that ``lost()`` marks; counted if anybody counts.

    copies: conversions of the same values.
    """
    tally = _TALLY.get()
    if tally is None:
        return
    count = int(np.count_nonzero(lost()))
    if count:
        tally.add(kind, count * copies)
