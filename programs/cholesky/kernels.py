"""The kernels of a factorisation, sixteen rows after sixteen rows.

Row j of the factor's transpose is u_j = s_j rsqrt(s_j[j]), s_j being row j of the matrix less the
product of the rows before.  All of it is lane by lane but for two things.  The scalars u_j[m] of
the sixteen rows' own columns must be on every lane: a product with fixed weights puts the sixteen
columns into every superlane, in three fp16 parts whose sum is exact, and DISTRIBUTE one of them on
all lanes.  And a product contracts over lanes: u's words, as weights, are turned by the rows of the
unit matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chip import isa
from chip.isa import LANES, Op
from chip.program import BlockTable, Program
from chip.scheduling import (
    Alu,
    Gangs,
    Pass,
    Place,
    Repeat,
    Schedule,
    Stream,
    program_of,
    rename_tags,
    translate_gangs,
)
from chip.spec import ChipSpec
from interconnect.collectives import link_pace, spread_words
from programs.cholesky.places import GROUPS, ROWS, Places
from programs.kernels import Emitted, Finish, RowOperand, Rows, Weights, product

#: The pair of planes of all products.
_PAIR = 2
_DISTRIBUTOR = isa.SXM_QUEUE + 8
_START = 80


class Kernels:
    """The kernels on one chip, step by step; each returns the cycle from which its words are
    readable, counted from the step's beginning.

    ``ready``: the cycle from which what they read is.  A step begins when all of the one before is
    readable, so it has a schedule of its own.
    """

    def __init__(self, spec: ChipSpec, places: Places) -> None:
        self.spec, self.places = spec, places
        self.tables: list[BlockTable] = []
        self.gangs: Gangs = []
        self._tags = 0
        self._begin_step()

    def _begin_step(self) -> None:
        self.schedule, self._next_read = Schedule(), 0

    def end_step(self, begun: int) -> None:
        """What was scheduled since the last step ended belongs to one that begins at ``begun``."""
        table, _, gangs = self.schedule.blocks()
        table["cycle"] += begun
        rename_tags(table, self._tags)
        translate_gangs(table, gangs, self.gangs)
        self._tags = max(self._tags, int(table["tag"].max(initial=0)))
        self.tables.append(table)
        self._begin_step()

    def program(self, cycles: int) -> Program:
        """All steps."""
        return program_of(self.tables, self.gangs, cycles)

    def _pass(self) -> Pass:
        return Pass(self.schedule, self.spec)

    def _place(self, p: Pass, ready: int, *values: Stream) -> int:
        """When everything is readable that a pass stores which reads ``values`` from ``ready`` on;
        none: all it reads.
        """
        return self.schedule.place(p, ready - p.first_read(*values)) + p.ready

    def _load(
        self,
        p: Pass,
        place: Place,
        group: int,
        when: int,
        n: Repeat,
        dc: Repeat = 1,
        da: Repeat = 1,
    ) -> Stream:
        """A load by stream group ``group`` of the direction that leads to the VXM."""
        return p.load(place, place.inward + 4 * group, when, n=n, dc=dc, da=da)

    def _keep(self, p: Pass, value: Alu, target: Place, group: int, when: int, **rest: int) -> int:
        """A copy of an ALU's result to ``target``, a word every ``dc`` cycles; when readable."""
        n, dc, da = rest["n"], rest.get("dc", 1), rest.get("da", 1)
        _, out = p.op(Op.MOV, when, value, n=n, dc=dc, out=target.outward + 4 * group)
        return p.keep(target, out, when, n=n, dc=dc, da=da)

    # -- between chips --------------------------------------------------------------------------

    def spread(self, source: Place | None, words: Sequence[int]) -> int:
        """``source`` to every neighbour, words[k] of neighbour k to its place; on all chips alike.

        words: of this chip first.  Nothing else may run: the chips' cycles must agree.
        """
        p = self._pass()
        pace = link_pace(self.spec, 4 * max(words))
        spread_words(p, self.spec, pace, source, words, _START, self.places.received)
        start = self.schedule.place(p, 0, "spread")
        assert start == 0, "a chip sends at another cycle than it is received"
        return max(p.ready, p.span())

    def copy(self, source: Place, target: Place, words: int, ready: int) -> int:
        """Words as they are, to another quad."""
        p = self._pass()
        value = self._load(p, source, 0, _START, words)
        alu, _ = p.op(Op.MOV, _START, value, n=words)
        self._keep(p, alu, target, 1, _START + 3, n=words)
        return self._place(p, ready)

    # -- rows before they are factored ----------------------------------------------------------

    def copy_rows(self, source: Place, width: int, number: int) -> int:
        """Sixteen words of a tile to its place, ``number``, in the rows to be factored."""
        p = self._pass()
        value = self._load(p, source, 0, _START, n=ROWS, da=1)
        alu, _ = p.op(Op.MOV, _START, value, n=ROWS)
        target = self.places.work[0].at(ROWS + number)
        self._keep(p, alu, target, 1, _START + 3, n=ROWS, da=width)
        return self._place(p, 0)

    def reduce_rows(self, source: Place, row: int, tile: int, width: int, number: int) -> int:
        """As ``copy_rows``, less the product of rows ``row`` on with the tile's columns so far."""
        target = self.places.work[0].at(ROWS + number)
        finish = self._subtract_from(source, target, Rows(ROWS), width)
        return self._product(self._three(tile), self._parts(row), Rows(ROWS), finish, 0)

    def update(self, source: Place, row: int, count: int, tile: int) -> int:
        """``count`` words of a tile, in place, less the product of rows ``row`` on with it."""
        finish = self._subtract_from(source, source, Rows(count), 1)
        return self._product(self._three(tile), self._parts(row), Rows(count), finish, 0)

    def _three(self, tile: int) -> Weights:
        high, low = self.places.columns[tile]
        offset = low.halves[0].address - high.halves[0].address
        return Weights(high.halves, GROUPS, (0, 0, offset))

    def _parts(self, row: int) -> tuple[Place, ...]:
        high, low = self._halves(self.places.rows.at(row))
        return high, low, high

    def _halves(self, words: Place) -> tuple[Place, Place]:
        """Where the two fp16 parts of rows lie."""
        return words.part(0, 2), words.part(2)

    def _subtract_from(self, source: Place, target: Place, rows: Rows, da: int) -> Finish:
        def finish(p: Pass, emitted: Emitted) -> None:
            n, dc, at = rows.count, emitted.spacing, emitted.vxm_cycle
            value = self._load(p, source, 1, at, n, dc)
            alu, _ = p.op(Op.SUB_F32, at, value, emitted.stream, n=n, dc=dc)
            # reads and writes of one quad take turns: an odd number of cycles lies between them
            hops = abs(source.position - isa.sample_position(isa.VXM_QUEUE, source.inward))
            hops += abs(target.position - isa.drive_position(isa.VXM_QUEUE, target.outward))
            late = self.spec.read_cycles + hops + self.spec.alu_entry_cycles
            for step in range(2):
                at += 3
                if step == 1 or (late + at + 3 - emitted.vxm_cycle) % 2:
                    self._keep(p, alu, target, 2, at, n=n, dc=dc, da=da)
                    return
                alu, _ = p.op(Op.MOV, at, alu, n=n, dc=dc)

        return finish

    def _product(
        self,
        weights: Weights,
        parts: tuple[Place, ...],
        rows: Rows,
        finish: Finish,
        ready: int,
    ) -> int:
        operand = RowOperand(parts[0], rows, (0,) * len(parts), places=parts)
        first_read = max(ready, self._next_read)
        placed = product(
            self.schedule, self.spec, _PAIR, weights, operand, first_read, ready, finish
        )
        self._next_read = placed.next_read
        return placed.ready

    # -- scalars on all lanes -------------------------------------------------------------------

    def split_rows(self, width: int, ready: int) -> int:
        """The rows' own tile, number 0, as three fp16 parts."""
        p, n, t = self._pass(), ROWS, _START
        value = self._load(p, self.places.work[0].at(ROWS), 0, t, n=n, da=width)
        rest, _ = p.op(Op.MOV, t, value, n=n)
        t += 3
        for number, target in enumerate(self.places.parts):
            narrow = self._narrow(p, rest, target, 1 + number, t)
            if number < 2:
                rest = self._remainder(p, rest, narrow, t)
                rest, _ = p.op(Op.MUL_F32, t + 9, rest, imm=2048.0, n=n)
                t += 12
        return self._place(p, ready)

    def _narrow(self, p: Pass, value: Alu, target: Place, group: int, when: int) -> Alu:
        """fp16 of sixteen values, to words of a pair of slices; the ALU that has it."""
        alu, out = p.op(
            Op.CVT_F32_F16, when, value, n=ROWS, out=target.outward + 4 * group, width=2
        )
        p.keep(target, out, when, n=ROWS)
        return alu

    def _remainder(self, p: Pass, value: Alu, narrow: Alu, when: int) -> Alu:
        """``value`` at ``when`` less the fp16 that ``narrow`` makes of it there, 9 cycles later."""
        back, _ = p.op(Op.CVT_F16_F32, when + 3, narrow, n=ROWS)
        for turn in range(2):
            value, _ = p.op(Op.MOV, when + 3 * turn, value, n=ROWS)
        rest, _ = p.op(Op.SUB_F32, when + 6, value, back, n=ROWS)
        return rest

    def spread_rows(self, group: int, ready: int) -> int:
        """The sixteen columns of ``group`` in every superlane of sixteen words."""
        places = self.places
        weights = Weights(
            tuple(half.at(3 * group) for half in places.picks.halves), GROUPS, None, True
        )

        def finish(p: Pass, emitted: Emitted) -> None:
            at, dc = emitted.vxm_cycle, emitted.spacing
            alu, _ = p.op(Op.MOV, at, emitted.stream, n=ROWS, dc=dc)
            self._keep(p, alu, places.spread, 2, at + 3, n=ROWS, dc=dc)

        return self._product(weights, places.parts, Rows(ROWS), finish, ready)

    def distribute(self, width: int, ready: int) -> int:
        """Value m of row j on all lanes, word m of the row."""
        p, places, n = self._pass(), self.places, (ROWS, ROWS)
        t = _START + 60
        sxm = t - 12 - self.spec.distribute_cycles
        value = p.load(places.spread, 0, sxm, _DISTRIBUTOR, n=n, dc=(1, ROWS), da=(0, 1))
        lanes = p.load(places.lanes, 8, sxm, _DISTRIBUTOR, n=n, dc=(1, ROWS), da=(1, 0))
        tag = self.schedule.tag()
        p.emit(
            Op.DISTRIBUTE,
            _DISTRIBUTOR,
            sxm,
            n=n,
            dc=(1, ROWS),
            s0=0,
            w0=4,
            want0=value.tag,
            s1=8,
            w1=1,
            want1=lanes.tag,
            out=32,
            wo=4,
            tag=tag,
        )
        p.drive(32, 4, sxm + self.spec.distribute_cycles + 36 + np.arange(ROWS * ROWS), 36, 24)
        alu, _ = p.op(Op.MOV, t, Stream(32, 4, tag), n=n, dc=(1, ROWS))
        target = places.work[0]
        _, out = p.op(Op.MOV, t + 3, alu, n=n, dc=(1, ROWS), out=target.outward + 4)
        p.keep(target, out, t + 3, n=n, dc=(1, ROWS), da=(1, width))
        self._keep(p, alu, places.head, 2, t + 3, n=1)
        return self._place(p, ready, value)

    # -- factoring ------------------------------------------------------------------------------

    def factor(self, width: int, ready: int) -> int:
        """Sixteen rows of ``width`` words, scalars first, to ``factored``."""
        head = done = rest = ready
        for j in range(ROWS):
            scaled = self._scale(j, width, head)
            done = max(done, scaled)
            if j + 1 < ROWS:
                head, rest = self._eliminate(j, width, max(scaled, rest))
        return done

    def _scale(self, j: int, width: int, ready: int) -> int:
        """Row j times 1 / sqrt of its diagonal element."""
        p, places, t, n = self._pass(), self.places, _START, width - j
        diagonal = self._load(p, places.head, 0, t, n=n, da=0)
        factor, _ = p.op(Op.RSQRT, t, diagonal, n=n)
        row = self._load(p, places.work[j % 4].at(j * width + j), 1, t + 3, n=n, da=1)
        value, _ = p.op(Op.MUL_F32, t + 3, row, factor, n=n)
        for group, target in enumerate((places.factored, places.again)):
            self._keep(p, value, target.at(j * width + j), 2 + group, t + 6, n=n)
        return self._place(p, ready)

    def _eliminate(self, j: int, width: int, ready: int) -> tuple[int, int]:
        """Rows j + 1 on less row j times their scalars; when the first of them is readable, and
        from when on the next step's reads meet nothing that is still to be written."""
        p, places, t = self._pass(), self.places, _START
        wide, high = width - j - 1, ROWS - j - 1
        n, dc, at = (wide, high), (1, wide), j * width + j + 1
        row = self._load(p, places.factored.at(at), 0, t, n=n, dc=dc, da=(1, 0))
        scalar = self._load(p, places.again.at(at), 1, t, n=n, dc=dc, da=(0, 1))
        times, _ = p.op(Op.MUL_F32, t, row, scalar, n=n, dc=dc)
        old, new = places.work[j % 4], places.work[(j + 1) % 4]
        value = self._load(p, old.at(at + width), 2, t + 3, n=n, dc=dc, da=(1, width))
        alu, _ = p.op(Op.SUB_F32, t + 3, value, times, n=n, dc=dc)
        _, out = p.op(Op.MOV, t + 6, alu, n=n, dc=dc, out=new.outward + 12)
        all_rows = p.keep(new.at(at + width), out, t + 6, n=n, dc=dc, da=(1, width))
        first_row = all_rows - wide * (high - 1)
        head = self._keep(p, alu, places.head, 4, t + 6, n=1)
        start = self.schedule.place(p, ready - p.first_read())
        return start + max(head, first_row), start + first_row + high

    # -- what is known, for products ------------------------------------------------------------

    def keep_rows(
        self, target: Place, tile: int, width: int, number: int, group: int, ready: int
    ) -> int:
        """Sixteen rows of tile ``number`` to the matrix, and in two fp16 parts among the weights.

        Of the rows' own tile (number 0) what lies before the diagonal becomes zero.
        """
        p, places, t, n = self._pass(), self.places, _START, ROWS
        value = self._load(p, places.factored.at(ROWS + number), 0, t, n=n, da=width)
        if number == 0:
            # of the other quad's direction: groups of one number must not come from both
            below = self._load(p, places.below.at(ROWS * group), 1, t, n=n, da=1)
            alu, _ = p.op(Op.MASK, t, value, below, n=n)
        else:
            alu, _ = p.op(Op.MOV, t, value, n=n)
        self._keep(p, alu, target, 2, t + 3, n=n)
        high, low = places.done[tile]
        narrow = self._to_columns(p, alu, high, group, 3, t + 3)
        rest = self._remainder(p, alu, narrow, t + 3)
        self._to_columns(p, rest, low, group, 4, t + 12)
        return self._place(p, ready, value)

    def _to_columns(
        self, p: Pass, value: Alu, weights: Weights, group: int, streams: int, when: int
    ) -> Alu:
        """fp16 of sixteen values, value c to the slice of column c of a column group."""
        code = weights.halves[0].outward + 4 * streams
        alu, out = p.op(Op.CVT_F32_F16, when, value, n=ROWS, out=code, width=2)
        for half, place in enumerate(weights.halves):
            stream = Stream(code + half, 1, out.tag)
            position = isa.drive_position(isa.VXM_QUEUE, code)
            p.store(place.at(group), stream, p.driven(when), position, n=1, dcg=1)
        return alu

    def turn(self, tile: int, wanted: range, group: int, ready: int) -> int:
        """The rows so far, up to ``group``, as columns: weights, and words to stream past them.

        wanted: the tile's column groups of sixteen that are still used.
        """
        if not wanted:
            return ready
        places, done, first = self.places, ready, ROWS * wanted.start
        rows = Rows(ROWS * len(wanted))
        for known, columns, words in zip(
            places.done[tile],
            places.columns[tile],
            self._halves(places.rows.at(LANES * tile + first)),
            strict=True,
        ):
            weights = Weights(known.halves, group + 1)
            halves = tuple(half.at(wanted.start) for half in columns.halves)
            finish = self._turned(halves, words, len(wanted))
            parts = (places.unit.at(first),)
            done = max(done, self._product(weights, parts, rows, finish, ready))
        return done

    def _turned(self, columns: tuple[Place, ...], words: Place, groups: int) -> Finish:
        def finish(p: Pass, emitted: Emitted) -> None:
            at, spacing, n = emitted.vxm_cycle, emitted.spacing, ROWS * groups
            code = columns[0].outward + 12
            alu, out = p.op(Op.CVT_F32_F16, at, emitted.stream, n=n, dc=spacing, out=code, width=2)
            position = isa.drive_position(isa.VXM_QUEUE, code)
            for half, place in enumerate(columns):
                stream = Stream(code + half, 1, out.tag)
                p.store(
                    place,
                    stream,
                    p.driven(at),
                    position,
                    n=groups,
                    dc=ROWS * spacing,
                    da=1,
                    dcg=spacing,
                )
            code = words.outward + 16
            _, out = p.op(Op.MOV, at + 3, alu, n=n, dc=spacing, out=code, width=2)
            p.keep(words, out, at + 3, n=n, dc=spacing)

        return finish
