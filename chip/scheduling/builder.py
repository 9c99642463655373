"""The builder kernels are written with: loads, ALU operations and stores with exact cycles.

A :class:`Pass` is a reservation group that knows the machine's latencies: ``load`` dispatches a
Read so that its value is sampled by a given unit at a given cycle, ``op`` issues an ALU block,
``store`` writes what a unit drives.  All cycles are relative to the pass; the value of every
operand is named by a tag, so that the checker can prove each consumer meets the value it means.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip import isa
from chip.errors import LpuError
from chip.isa import Op
from chip.program import gang_skew
from chip.scheduling.groups import Group
from chip.scheduling.places import Place
from chip.scheduling.reservation import Schedule
from chip.spec import ChipSpec

EASTWARD, WESTWARD = 0, 32
Repeat = tuple[int, int] | int

#: Order in which operations without streams take ALUs: rows 0 and 3 are asked for most.
_ANYWHERE = (11, 10, 7, 6, 9, 5, 15, 14, 8, 4, 13, 12, 3, 2, 1, 0)


class CompileError(LpuError, ValueError):
    """A model that cannot be compiled as asked; the message says what would fit."""


@dataclass(frozen=True)
class Stream:
    """An operand on streams code .. code + width - 1, and the tag of the value meant."""

    code: int
    width: int
    tag: int


@dataclass(frozen=True)
class Alu:
    """The result of an ALU, consumed exactly three cycles after its dispatch."""

    number: int


@dataclass(frozen=True)
class Self:
    """The consuming ALU's own latest result."""


Operand = Stream | Alu | Self


@dataclass(frozen=True)
class ScatterWindow:
    """What a SCATTER may write or a GATHER read: a place's words up to ``last``; the offsets come
    on two streams.
    """

    offsets: Stream
    last: int


def float_bits(value: float) -> int:
    """The fp32 bits of ``value`` as the signed 32-bit number an immediate column holds."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def offsets(n: Repeat, dc: Repeat) -> NDArray[np.int64]:
    """Cycle offsets of the elements of a block, int64 [n1 * n2]."""
    n1, n2 = (n, 1) if isinstance(n, int) else n
    dc1, dc2 = (dc, 0) if isinstance(dc, int) else dc
    inner: NDArray[np.int64] = np.tile(np.arange(n1, dtype=np.int64), n2) * dc1
    return inner + np.repeat(np.arange(n2, dtype=np.int64), n1) * dc2


class Pass(Group):
    """A rigid group of instructions; see the module's text."""

    def __init__(self, schedule: Schedule, spec: ChipSpec) -> None:
        super().__init__(spec.words_per_bank)
        self.schedule = schedule
        self.spec = spec
        self.ready = 0  # first relative cycle at which everything stored is readable

    # -- MEM ------------------------------------------------------------------------------

    def load(
        self,
        place: Place,
        code: int,
        when: int,
        unit: int = isa.VXM_QUEUE,
        *,
        n: Repeat = 1,
        dc: Repeat = 1,
        da: Repeat = 0,
        dsg: int = 1,
        dcg: int = 0,
        tag: int = 0,
    ) -> Stream:
        """Read ``place`` so that ``unit`` samples element 0 at cycle ``when``.

        The byte planes arrive on streams code, code+1, ... (``dsg`` 1) or all on ``code`` (0), and
        have them as far as the last unit of the pass that samples the value.
        """
        goal = isa.sample_position(unit, code)
        tag = tag or self.schedule.tag()
        start = when - self.spec.read_cycles - abs(goal - place.position)
        self.emit(
            Op.READ,
            0,
            start,
            n=n,
            dc=dc,
            da=da,
            place=place,
            dsg=dsg,
            dcg=dcg,
            out=code,
            wo=1,
            tag=tag,
        )
        diagonals = isa.diagonal(code, goal, when) + offsets(n, dc)
        for g, position in enumerate(place.positions):
            self.drive(code + g * dsg, 1, diagonals + g * dcg, position, tag=tag)
        return Stream(code, len(place.queues) if dsg else 1, tag)

    def store(
        self,
        place: Place,
        source: Stream,
        driven_at: int,
        position: int,
        *,
        n: Repeat = 1,
        dc: Repeat = 1,
        da: Repeat = 1,
        dcg: int = 0,
        copies: bool = False,
        window: ScatterWindow | None = None,
    ) -> int:
        """Write what is driven on ``source`` at ``position`` from ``driven_at`` on.

        Returns the first cycle at which all of it is readable.  ``copies``: every slice of
        ``place`` takes the same stream.  With ``window`` the write is a SCATTER.
        """
        start = driven_at + abs(place.position - position)
        columns: dict[str, Any] = {}
        op = Op.WRITE
        if window is not None:
            op = Op.SCATTER
            columns = {
                "s1": window.offsets.code,
                "w1": 2,
                "want1": window.offsets.tag,
                "lo": place.address,
                "hi": place.address + window.last,
            }
        dsg = 0 if copies or dcg else 1
        self.emit(
            op,
            0,
            start,
            n=n,
            dc=dc,
            da=da,
            place=place,
            dsg=dsg,
            dcg=dcg,
            s0=source.code,
            w0=1,
            want0=source.tag,
            **columns,
        )
        skew = int(gang_skew(place.queues, source.code).max()) + (len(place.queues) - 1) * dcg
        done = start + int(offsets(n, dc).max()) + skew + self.spec.write_cycles
        self.ready = max(self.ready, done)
        return done

    def gathered(self, place: Place, code: int, when: int, unit: int = isa.VXM_QUEUE) -> int:
        """The cycle of a GATHER from ``place`` that ``unit`` samples on ``code`` at ``when``: then
        the first slice takes the offset.
        """
        goal = isa.sample_position(unit, code)
        return when - self.spec.gather_cycles - abs(goal - place.position)

    def gather(
        self,
        place: Place,
        code: int,
        when: int,
        window: ScatterWindow,
        unit: int = isa.VXM_QUEUE,
        *,
        n: Repeat = 1,
        dc: Repeat = 1,
        da: Repeat = 0,
        tag: int = 0,
        first: int = 0,
    ) -> Stream:
        """As ``load``, of the words of ``place`` from ``first`` on that the window's offsets name.

        The offsets pass the slices on their way, from ``gathered`` on the first.
        """
        tag = tag or self.schedule.tag()
        self.emit(
            Op.GATHER,
            0,
            self.gathered(place, code, when, unit),
            n=n,
            dc=dc,
            da=da,
            place=place.at(first),
            dsg=1,
            out=code,
            wo=1,
            s1=window.offsets.code,
            w1=2,
            want1=window.offsets.tag,
            tag=tag,
            lo=place.address,
            hi=place.address + window.last,
        )
        diagonals = isa.diagonal(code, isa.sample_position(unit, code), when) + offsets(n, dc)
        for g, position in enumerate(place.positions):
            self.drive(code + g, 1, diagonals, position, tag=tag)
        return Stream(code, len(place.queues), tag)

    def first_read(self, *values: Stream, since: int = 0, level: bool = False) -> int:
        """The earliest cycle at which a slice is read for ``values``, or for anything.

        The slices of a place that lie at several positions are not read at the same time.  since:
        of the blocks from number ``since`` on.  level: only first slices count, for words that a
        stream of the same direction wrote: a slice is written as much sooner as it is read.
        Raises ValueError where nothing is read.
        """
        tags = {value.tag for value in values}
        return min(
            block["cycle"] + (0 if level else min(self.member_delays(block, gang)))
            for block, gang in zip(self.blocks[since:], self.gang_of[since:], strict=True)
            if block["op"] in (Op.READ, Op.GATHER) and (not tags or block["tag"] in tags)
        )

    # -- VXM ------------------------------------------------------------------------------

    def pick(self, *codes: int) -> int:
        """An ALU unused in this pass whose row reaches the stream groups of ``codes``.

        Where it is taken when the pass is placed, another that reaches as far stands in for it.
        """
        groups = {(code % 32) // 4 for code in codes}
        order = range(isa.ALUS) if groups else _ANYWHERE
        for alu in order:
            if alu not in self.picked and groups <= set(isa.alu_stream_groups(alu)):
                self.picked.add(alu)
                return alu
        raise CompileError(f"a VXM pass needs an ALU that reaches stream groups {sorted(groups)}")

    def op(
        self,
        op: Op,
        when: int,
        x: Operand,
        y: Operand | None = None,
        *,
        imm: int | float | None = None,
        alu: int | None = None,
        n: Repeat = 1,
        dc: Repeat = 1,
        out: int = -1,
        width: int = 4,
        reach: int | None = None,
        tag: int = 0,
    ) -> tuple[Alu, Stream]:
        """One ALU block dispatched at ``when``; returns its result as chained and as stream.

        ``out``: first stream code the low ``width`` bytes are driven on (-1: none), held free up to
        position ``reach`` (default: that of the last consumer in the pass).  ``imm`` is the second
        operand (fp32 if a float).
        """
        codes = [o.code for o in (x, y) if isinstance(o, Stream)]
        if alu is None:
            alu = self.pick(*codes, *((out,) if out >= 0 else ()))
        columns: dict[str, Any] = {}
        for i, operand in enumerate((x, y)):
            if operand is None:
                continue
            if isinstance(operand, Stream):
                columns |= {f"s{i}": operand.code, f"w{i}": operand.width, f"want{i}": operand.tag}
            elif isinstance(operand, Alu):
                columns[f"s{i}"] = isa.ALU0 + operand.number
            else:
                columns[f"s{i}"] = isa.SELF
        if imm is not None:
            columns["s1"] = isa.IMM
            columns["imm"] = float_bits(imm) if isinstance(imm, float) else imm
        if out >= 0:
            tag = tag or self.schedule.tag()
            columns |= {"out": out, "wo": width, "tag": tag}
            position = isa.drive_position(isa.VXM_QUEUE, out)
            at = self.driven(when) + offsets(n, dc)
            diagonals = at - position if isa.is_east(out) else at + position
            self.drive(out, width, diagonals, position, reach, tag)
        self.emit(op, isa.VXM_QUEUE + alu, when, n=n, dc=dc, **columns)
        return Alu(alu), Stream(out, width, tag)

    def driven(self, when: int) -> int:
        """Cycle at which an ALU instruction dispatched at ``when`` drives its output streams."""
        return when + self.spec.alu_entry_cycles + self.spec.alu_cycles

    def keep(
        self,
        place: Place,
        source: Stream,
        when: int,
        *,
        n: Repeat = 1,
        dc: Repeat = 1,
        da: Repeat = 1,
        copies: bool = False,
    ) -> int:
        """Store the output of the ALU block dispatched at ``when``; returns when readable."""
        position = isa.drive_position(isa.VXM_QUEUE, source.code)
        return self.store(
            place, source, self.driven(when), position, n=n, dc=dc, da=da, copies=copies
        )
