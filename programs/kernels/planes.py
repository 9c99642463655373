"""What all products share: weights on their way into a plane, and sums on their way out of it.

A *column block* is up to 320 columns of a matrix, the weights of one plane (int8) or of one plane
pair (fp16); a *K step* is 320 of its rows, one install.  How activations meet the weights is the
business of ``gemv`` (few vectors, weights streaming) and ``gemm`` (many rows, weights staying).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chip import isa
from chip.isa import LANES, AccMode, Op
from chip.program import gang_skew
from chip.scheduling import Pass, Place, Repeat, ScatterWindow, Stream, Symbol, offsets
from programs.sram import Image

Repeats = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Weights:
    """16 * groups columns: K step k's word g is at (place of its byte).at(k * groups + g).

    halves: one place of sixteen slices (int8), or those of the low and the high bytes (fp16).
    ``same``: all columns of a step are its one word, so that step k is at .at(k).  offsets: where
    given, K step k begins offsets[k] words behind its place instead.  experts: where several,
    there are as many such matrices one behind the other, and a ``Steering`` says which is meant.
    reach: where given, an expert's words are cut after every ``reach``; the first part of all
    experts is at ``halves``, the others at ``beyond``.  copies: where several, a step's words are
    fewer by that factor, and each install takes them as often, one after the other.
    """

    halves: tuple[Place, ...]
    groups: int
    offsets: tuple[int, ...] | None = None
    same: bool = False
    experts: int = 1
    reach: int = 0
    beyond: tuple[tuple[Place, ...], ...] = ()
    copies: int = 1

    @property
    def strides(self) -> tuple[int, int]:
        """Words from a column group to the next, and from a K step to the next."""
        return (0, 1) if self.same else (1, self.groups // self.copies)


def put_weights(
    image: Image,
    weights: Weights,
    planes: list[NDArray[np.uint8]],
    bases: Mapping[Symbol, int] | None = None,
) -> None:
    """Add a column block, byte planes [K steps, 16 * groups, 320], to a memory image.

    bases: the addresses of the symbols that its places may have.
    """
    for half, plane in enumerate(planes):
        words = plane.reshape(weights.experts, -1, 16, LANES)
        reach = weights.reach or words.shape[1]
        for number, places in enumerate((weights.halves, *weights.beyond)):
            place, own = places[half], words[:, reach * number : reach * (number + 1)]
            short = reach - own.shape[1]
            rows = np.pad(own, ((0, 0), (0, short), (0, 0), (0, 0))).reshape(-1, 16, LANES)
            base = 0 if place.symbol is None or bases is None else bases[place.symbol]
            for s, queue in enumerate(place.queues):
                image.append((queue, base + place.address, np.ascontiguousarray(rows[:, s])))


@dataclass
class Steering:
    """The map of one hemisphere that says which expert's weights a pass installs.

    It lies further out than the weights and flows inward past them, on ``code`` and the next
    stream, all the time that they are read.
    """

    place: Place
    code: int
    tag: int
    _times: list[tuple[int, int]] = field(default_factory=list)

    def gather(
        self,
        p: Pass,
        weights: Weights,
        half: int,
        code: int,
        when: int,
        queue: int,
        repeats: Repeats,
    ) -> Stream:
        """Read the words of the expert meant as ``Pass.load`` would those of the first one.

        repeats: how often and how many cycles apart.
        """
        (groups, steps), (apart, period) = repeats
        place, tag = weights.halves[half], p.schedule.tag()
        reach = weights.reach or groups * steps
        window = ScatterWindow(Stream(self.code, 2, self.tag), weights.experts * reach - 1)
        for number, places in enumerate((weights.halves, *weights.beyond)):
            first = number * reach
            for at, wide, count in _runs(first, min(first + reach, groups * steps), groups):
                step, group = divmod(at, groups)
                p.gather(
                    places[half],
                    code,
                    when + group * apart + step * period,
                    window,
                    queue,
                    n=(wide, count),
                    dc=(apart, period),
                    da=weights.strides,
                    tag=tag,
                    first=at - first,
                )
        start, span = p.gathered(place, code, when, queue), int(offsets(*repeats).max())
        for slice_, skew in zip(place.queues, gang_skew(place.queues, code), strict=True):
            distance = abs(isa.slice_position(slice_) - self.place.position)
            early = start + int(skew) - distance - p.spec.read_cycles
            self._times.append((early, early + span))
        return Stream(code, len(place.queues), tag)

    def flow(self, p: Pass) -> int:
        """Read the map from its first use to its last; when it begins to."""
        first, last = min(a for a, _ in self._times), max(b for _, b in self._times)
        n = last - first + 1
        p.emit(Op.READ, 0, first, n=n, place=self.place, dsg=1, out=self.code, wo=1, tag=self.tag)
        start = self.place.position
        cells = isa.diagonal(self.code, start, first + p.spec.read_cycles) + np.arange(n)
        p.drive(self.code, 2, cells, start, tag=self.tag)
        return first


def _runs(first: int, end: int, groups: int) -> Iterator[tuple[int, int, int]]:
    """(first word, column groups, K steps) of rectangles that are the words ``first`` .. ``end``
    of K steps of ``groups`` words each.
    """
    while first < end:
        group = first % groups
        whole = 0 if group else (end - first) // groups
        wide = groups if whole else min(groups - group, end - first)
        yield first, wide, max(whole, 1)
        first += wide * max(whole, 1)


def install_weights(
    p: Pass,
    weights: Weights,
    half: int,
    code: int,
    queue: int,
    when: tuple[int, int],
    steps: int,
    period: int,
    steering: Steering | None = None,
) -> None:
    """LW and IW of one half's K steps, ``period`` cycles apart, on the plane that ``queue`` loads.

    code: first of the sixteen streams of the words; when: the cycles of the first step's first LW
    and of its IW.
    """
    loaded, installed = when
    place = weights.halves[half]
    if steering is None:
        value = _read(p, weights, place, code, loaded, queue, steps, period)
    else:
        repeats = ((weights.groups, steps), (1, period))
        value = steering.gather(p, weights, half, code, loaded, queue, repeats)
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
    groups, strides = weights.groups // weights.copies, weights.strides
    tag = p.schedule.tag()
    if weights.offsets is None:
        for copy in range(weights.copies):
            at, n = when + copy * groups, (groups, steps)
            value = p.load(place, code, at, queue, n=n, dc=(1, period), da=strides, tag=tag)
        return value
    for step, offset in enumerate(weights.offsets):
        value = p.load(
            place.at(offset), code, when + step * period, queue, n=groups, da=strides[0], tag=tag
        )
    return value


def accumulate(
    p: Pass,
    queue: int,
    start: int,
    count: int,
    spacing: int,
    steps: int,
    period: int,
    out: Stream,
    emitted: tuple[Repeat, Repeat] | None = None,
) -> int:
    """ACC of ``count`` sums, ``spacing`` cycles apart: SET the first K step, ADD the others, emit
    the last; the cycle at which the first sum leaves for ``out``.

    emitted: how often and how many cycles apart in the last K step, if otherwise there.
    """
    n, dc = (count, spacing) if emitted is None else emitted
    da: Repeat = 1 if isinstance(n, int) else (1, n[0])
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
        n=n,
        dc=dc,
        da=da,
        mode=int(mode),
        out=out.code,
        wo=out.width,
        tag=out.tag,
    )
    return last + p.spec.mxm_accumulate_cycles


def drive_sums(p: Pass, out: Stream, at: int, n: Repeat, dc: Repeat) -> tuple[int, int]:
    """Sums leave their plane from ``at`` on for the VXM; (edge they pass, where they are taken)."""
    edge = isa.EAST_EDGE if out.code >= 32 else isa.WEST_EDGE
    border = isa.sample_position(isa.VXM_QUEUE, out.code)
    cells = isa.diagonal(out.code, edge, at) + offsets(n, dc)
    p.drive(out.code, out.width, cells, edge, border)
    return edge, border
