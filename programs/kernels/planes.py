"""What all products share: weights on their way into a plane, and sums on their way out of it.

A *column block* is up to 320 columns of a matrix, the weights of one plane (int8) or of one plane
pair (fp16); a *K step* is 320 of its rows, one install.  How activations meet the weights is the
business of ``gemv`` (few vectors, weights streaming) and ``gemm`` (many rows, weights staying).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chip import isa
from chip.isa import LANES, AccMode, Op
from chip.scheduling import Pass, Place, Stream, Symbol
from programs.sram import Image


@dataclass(frozen=True)
class Weights:
    """16 * groups columns: K step k's word g is at (place of its byte).at(k * groups + g).

    halves: one place of sixteen slices (int8), or those of the low and the high bytes (fp16).
    ``same``: all columns of a step are its one word, so that step k is at .at(k).  offsets: where
    given, K step k begins offsets[k] words behind its place instead.
    """

    halves: tuple[Place, ...]
    groups: int
    offsets: tuple[int, ...] | None = None
    same: bool = False

    @property
    def strides(self) -> tuple[int, int]:
        """Words from a column group to the next, and from a K step to the next."""
        return (0, 1) if self.same else (1, self.groups)


def put_weights(
    image: Image,
    weights: Weights,
    planes: list[NDArray[np.uint8]],
    bases: Mapping[Symbol, int] | None = None,
) -> None:
    """Add a column block, byte planes [K steps, 16 * groups, 320], to a memory image.

    bases: the addresses of the symbols that its places may have.
    """
    for place, plane in zip(weights.halves, planes, strict=True):
        base = 0 if place.symbol is None or bases is None else bases[place.symbol]
        words = plane.reshape(-1, 16, LANES)
        for s, queue in enumerate(place.queues):
            image.append((queue, base + place.address, np.ascontiguousarray(words[:, s])))


def install_weights(
    p: Pass,
    weights: Weights,
    half: int,
    code: int,
    queue: int,
    when: tuple[int, int],
    steps: int,
    period: int,
) -> None:
    """LW and IW of one half's K steps, ``period`` cycles apart, on the plane that ``queue`` loads.

    code: first of the sixteen streams of the words; when: the cycles of the first step's first LW
    and of its IW.
    """
    loaded, installed = when
    value = _read(p, weights, weights.halves[half], code, loaded, queue, steps, period)
    p.emit(
        Op.LW,
        queue,
        loaded,
        n=(weights.groups, steps),
        dc=(1, period),
        da=(1, 0),
        a=0,
        s0=code,
        w0=16,
        want0=value.tag,
    )
    p.emit(Op.IW, queue, installed, n=steps, dc=period, a=weights.groups)


def _read(
    p: Pass,
    weights: Weights,
    place: Place,
    code: int,
    when: int,
    queue: int,
    steps: int,
    period: int,
) -> Stream:
    """Read one half of every K step's words: one block where the steps are evenly spaced."""
    groups, strides = weights.groups, weights.strides
    if weights.offsets is None:
        return p.load(place, code, when, queue, n=(groups, steps), dc=(1, period), da=strides)
    tag = p.schedule.tag()
    for step, offset in enumerate(weights.offsets):
        value = p.load(
            place.at(offset), code, when + step * period, queue, n=groups, da=strides[0], tag=tag
        )
    return value


def accumulate(
    p: Pass, queue: int, start: int, count: int, spacing: int, steps: int, period: int, out: Stream
) -> int:
    """ACC of ``count`` sums, ``spacing`` cycles apart: SET the first K step, ADD the others, emit
    the last; the cycle at which the first sum leaves for ``out``.
    """
    last = start + (steps - 1) * period
    if steps > 1:
        p.emit(Op.ACC, queue, start, n=count, dc=spacing, da=1, mode=int(AccMode.SET))
    if steps > 2:
        p.emit(
            Op.ACC,
            queue,
            start + period,
            n=(count, steps - 2),
            dc=(spacing, period),
            da=(1, 0),
            mode=int(AccMode.ADD),
        )
    mode = AccMode.SET_EMIT if steps == 1 else AccMode.ADD_EMIT
    p.emit(
        Op.ACC,
        queue,
        last,
        n=count,
        dc=spacing,
        da=1,
        mode=int(mode),
        out=out.code,
        wo=out.width,
        tag=out.tag,
    )
    return last + p.spec.mxm_accumulate_cycles


def drive_sums(p: Pass, out: Stream, at: int, count: int, spacing: int) -> tuple[int, int]:
    """Sums leave their plane from ``at`` on for the VXM; (edge they pass, where they are taken)."""
    edge = isa.EAST_EDGE if out.code >= 32 else isa.WEST_EDGE
    border = isa.sample_position(isa.VXM_QUEUE, out.code)
    cells = isa.diagonal(out.code, edge, at) + spacing * np.arange(count)
    p.drive(out.code, out.width, cells, edge, border)
    return edge, border
