"""A pass through a plane pair: weights that stream beside the activations that meet them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chip import isa
from chip.isa import AccMode, Op
from chip.scheduling import Alu, Pass, Place, Schedule, Self, Stream, offsets
from chip.spec import ChipSpec

#: Streams between the edge of a hemisphere and the VXM take as many cycles.
EDGE = 21
#: Column groups of a plane.
GROUPS = 20
WEST, EAST = 0, 1
#: Blocks of an install: (the first, how many, cycles apart).
ONCE = (0, 1, 0)
#: Cycles the west runs behind the east.
BEHIND = 3
#: Activations of up to eight heads are two cycles apart, four on the odd plane's streams, then four
#: on the even plane's: (first head, first stream).
_ACTIVATIONS = ((0, 16), (4, 0))


@dataclass(frozen=True)
class InstalledColumns:
    """Column groups ``first`` .. of an install: word ``word`` + i of ``place``, or always the same.

    step: words from one block to the next.
    """

    first: int
    count: int
    place: Place
    step: int = 0
    same: bool = False


def outward(side: int, code: int) -> int:
    """The stream ``code`` of those that flow to the edge of a side."""
    return code if side == EAST else 32 + code


def inward(side: int, code: int) -> int:
    """The stream ``code`` of those that flow from the edge of a side to the VXM."""
    return 32 + code if side == EAST else code


def farthest(places: tuple[Place, ...], position: int) -> tuple[int, int]:
    """The slice farthest from ``position``, and how far it is."""
    queues = [queue for place in places for queue in place.queues]
    distance, queue = max((abs(isa.slice_position(q) - position), q) for q in queues)
    return queue, distance


class PlanePass(Pass):
    """A pass of several phases, whose ALUs serve one after another."""

    def __init__(self, schedule: Schedule, spec: ChipSpec) -> None:
        super().__init__(schedule, spec)
        self._served: set[int] = set()
        install = spec.mxm_install_cycles
        #: Cycles from one block to the next: an install and the gap after it, or the activations.
        self.period = max(GROUPS + max(spec.mxm_reload_gap_cycles, 5), install + 16)
        #: Cycles from an IW to the ACC of its first activation, and to its result at the VXM.
        self.first_sum = install + spec.mxm_multiply_cycles
        self.result = self.first_sum + spec.mxm_accumulate_cycles + EDGE

    def activated(self, first: int) -> list[int]:
        """Cycles from an IW to the activations of the four heads from ``first`` on."""
        return [self.spec.mxm_install_cycles + 2 * head for head in range(first, first + 4)]

    def slots(self, half: int) -> list[int]:
        """LWs of a block from the IW of the one before: they step aside for activations."""
        passing = self.activated(0 if half else 4)
        return [slot for slot in range(1, GROUPS + 5) if slot not in passing]

    def pick(self, *codes: int) -> int:
        """As of any pass, among the ALUs that this phase does not use."""
        served, self.picked = self.picked, self.picked - self._served
        try:
            alu = super().pick(*codes)
        finally:
            self.picked |= served
        self._served.discard(alu)
        return alu

    def free_alus(self) -> None:
        """ALUs picked so far have done what they were picked for."""
        self._served |= self.picked

    def release(self, alus: list[Alu]) -> None:
        """These ALUs have done what they were picked for."""
        self._served.update(alu.number for alu in alus)

    def keep_alu(self, alu: Alu) -> None:
        """An ALU that was freed with the others serves on."""
        self._served.discard(alu.number)

    # -- planes ---------------------------------------------------------------------------

    def install(
        self,
        plane: int,
        columns: list[InstalledColumns],
        slots: list[int],
        when: int,
        blocks: tuple[int, int, int],
    ) -> None:
        """LW of 20 groups at ``when`` + slots[group], for blocks (first, count, cycles apart)."""
        side, half = divmod(plane, 2)
        first, count, period = blocks
        if count <= 0:
            return
        code = outward(side, 16 * half)
        queue = isa.MXM_QUEUE + 2 * plane
        for part in columns:
            group = part.first
            while group < part.first + part.count:
                end = part.first + part.count
                step = slots[group + 1] - slots[group] if group + 1 < end else 1
                n = 1
                while group + n < end and slots[group + n] == slots[group] + n * step:
                    n += 1
                word = 0 if part.same else group - part.first
                place = part.place.at(word + first * part.step)
                at = when + slots[group]
                da = (0 if part.same else 1, part.step)
                value = self.load(place, code, at, queue, n=(n, count), dc=(step, period), da=da)
                self.emit(
                    Op.LW,
                    queue,
                    at,
                    n=(n, count),
                    dc=(step, period),
                    da=(1, 0),
                    a=group,
                    s0=code,
                    w0=16,
                    want0=value.tag,
                )
                group += n

    def install_same(self, plane: int, word: Place, when: int) -> None:
        """All column groups from one word, in force by an IW at ``when``."""
        first = when - GROUPS
        self.install(
            plane, [InstalledColumns(0, GROUPS, word, same=True)], list(range(GROUPS)), first, ONCE
        )
        self.put_in_force(plane, when)
        self.hold_buffer(plane, first, when + self.spec.mxm_reload_gap_cycles - 1)

    def put_in_force(self, plane: int, when: int, count: int = 1, period: int = 0) -> None:
        """IW of all groups, ``count`` times."""
        queue = isa.MXM_QUEUE + 2 * plane
        self.emit(Op.IW, queue, when, n=count, dc=period, a=GROUPS)

    def activate(
        self,
        plane: int,
        value: Stream,
        when: int,
        n: tuple[int, int] | int,
        dc: tuple[int, int] | int,
    ) -> None:
        """ABC of bytes, or of fp16 words on the pair whose even plane is given."""
        queue = isa.MXM_QUEUE + 2 * plane + 1
        self.emit(Op.ABC, queue, when, n=n, dc=dc, s0=value.code, w0=value.width, want0=value.tag)

    def accumulate(
        self,
        plane: int,
        when: int,
        mode: AccMode,
        n: tuple[int, int] | int,
        dc: tuple[int, int] | int,
        da: tuple[int, int] | int = 0,
        out: Stream | None = None,
        row: int = 0,
    ) -> int:
        """ACC from ``row`` on; returns when the VXM may take what it emits first."""
        queue = isa.MXM_QUEUE + 2 * plane + 1
        emitted: dict[str, Any] = {}
        if out is not None:
            emitted = {"out": out.code, "wo": 4, "tag": out.tag}
        self.emit(Op.ACC, queue, when, n=n, dc=dc, da=da, a=row, mode=int(mode), **emitted)
        leave = when + self.spec.mxm_accumulate_cycles
        if out is not None:
            edge = isa.EAST_EDGE if plane >= 2 else isa.WEST_EDGE
            at = isa.diagonal(out.code, edge, leave) + offsets(n, dc)
            self.drive(out.code, 4, at, edge, tag=out.tag)
        return leave + EDGE

    # -- VXM ------------------------------------------------------------------------------

    def again(
        self, alu: Alu, when: int, n: int = 1, dc: int = 1, out: int = -1
    ) -> tuple[Alu, Stream]:
        """The latest result of an ALU once more, from ``when`` on."""
        return self.op(Op.MOV, when, Self(), alu=alu.number, n=n, dc=dc, out=out)

    def join(self, op: Op, parts: list[tuple[int, Alu]]) -> tuple[int, Alu]:
        """One result of all (cycle of its latest dispatch, ALU), the earliest first; the same."""
        left = sorted(parts, key=lambda part: (part[0], part[1].number))
        while len(left) > 1:
            (_, first), (when, second) = left[:2]
            self.op(op, when + self.spec.alu_cycles, second, Self(), alu=first.number)
            left = sorted(
                [*left[2:], (when + self.spec.alu_cycles, first)],
                key=lambda part: (part[0], part[1].number),
            )
        return left[0]


def stream_blocks(
    p: PlanePass,
    side: int,
    columns: list[tuple[list[InstalledColumns], list[InstalledColumns]]],
    heads: list[int],
    when: int,
    blocks: int,
) -> None:
    """Install ``blocks`` blocks of each run, which take turns, on a side's pair from the IW at
    ``when`` on; heads: activations of each run.
    """
    spec, even, turns = p.spec, 2 * side, len(columns)
    first_slots = list(range(1 - p.period, 1 - p.period + GROUPS))
    last = when + (blocks * turns - 1) * p.period
    end = last + 2 * max(heads) + spec.mxm_install_cycles
    for half in (0, 1):
        plane = even + half
        for turn, parts in enumerate(columns):
            begun, apart = when + (turn - 1) * p.period, turns * p.period
            first = 0
            if turn == 0:
                p.install(plane, parts[half], first_slots, when, ONCE)
                begun, first = begun + apart, 1
            p.install(plane, parts[half], p.slots(half), begun, (first, blocks - first, apart))
        p.put_in_force(plane, when, blocks * turns, p.period)
        loaded = (
            max(when + first_slots[-1], last - p.period + GROUPS + 4)
            + spec.mxm_reload_gap_cycles
            - 1
        )
        p.hold_buffer(plane, when + first_slots[0], loaded)
        p.hold_plane(plane, when, end)
    p.hold(isa.MXM_QUEUE + 2 * even + 3, when + spec.mxm_install_cycles, end)


def run_activations(
    p: PlanePass,
    side: int,
    source: Place,
    heads: int,
    when: int,
    blocks: tuple[int, int],
    step: int,
) -> None:
    """fp16 words of ``heads`` heads meet each block on a side's pair, whose first IW is at
    ``when``; blocks: how many, and cycles apart; step: words of ``source`` from one to the next.
    """
    count, apart = blocks
    for first, code in _ACTIVATIONS:
        n = min(4, heads - first)
        if n > 0:
            at, unit = when + p.activated(first)[0], isa.MXM_QUEUE + 4 * side
            repeat, dc, stream = (n, count), (2, apart), outward(side, code)
            place = source.at(first)
            value = p.load(place, stream, at, unit, n=repeat, dc=dc, da=(1, step))
            p.activate(2 * side, value, at, repeat, dc)
