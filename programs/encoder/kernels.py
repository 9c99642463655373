"""Kernels of an encoder: what follows its products on the VXM, and the passes between them.

Inward streams of a hemisphere carry results on group 0 (east) or 4 (west), other operands on the
groups beside it; outward ones carry fp16 on group 6 and fp32 on group 7, clear of weights and
activations.  Column layout: token n's word is on slice n mod 16, word n div 16, as LW takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chip import isa
from chip.isa import Op
from chip.scheduling import Alu, Operand, Pass, Place, Schedule, Self, Stream
from chip.spec import ChipSpec
from programs.encoder.places import Head
from programs.encoder.shape import EPS, GELU_A, GELU_B
from programs.kernels import EAST, Emitted, Finish

#: Inward groups of a bias and of a residual beside a result, by hemisphere (west, east).
_BIAS, _RESIDUAL = (5, 1), (6, 2)
_HALF, _WHOLE = 6, 7
_START = 40  # cycles of a pass before its first ALU operation


def inward(side: int, group: int) -> int:
    """Stream code towards the VXM."""
    return 4 * group + 32 * side


def outward(side: int, group: int) -> int:
    """Stream code away from the VXM."""
    return 4 * group + 32 * (1 - side)


Target = Callable[[Pass, Stream, int, int, int], None]
"""Stores ``n`` fp16 values that the ALU block of a cycle drives, one each ``dc`` cycles."""


def rows_at(place: Place, stride: int) -> Target:
    """fp16 rows at every ``stride``-th word."""

    def store(p: Pass, out: Stream, when: int, n: int, dc: int) -> None:
        p.keep(place, out, when, n=n, dc=dc, da=stride)

    return store


def columns_at(halves: tuple[Place, Place], period: int, jump: int) -> Target:
    """Column layout; after ``period`` words of a slice the next ones begin ``jump`` further."""

    def store(p: Pass, out: Stream, when: int, n: int, dc: int) -> None:
        for byte, place in enumerate(halves):
            one = Stream(out.code + byte, 1, out.tag)
            for slot in range(16):
                words = -(-(n - slot) // 16)
                if words <= 0:
                    continue
                own = place.part(slot, slot + 1)
                n2 = max(1, words // period)
                p.keep(
                    own,
                    one,
                    when + slot * dc,
                    n=(min(words, period), n2),
                    dc=(16 * dc, 16 * dc * period),
                    da=(1, jump),
                )

    return store


def _halves(
    p: Pass, value: Operand, t: int, n: int, dc: int, targets: dict[int, Sequence[Target]]
) -> None:
    """fp16 of ``value``, driven to each hemisphere of ``targets`` and stored there."""
    for side, stores in targets.items():
        _, out = p.op(Op.CVT_F32_F16, t, value, n=n, dc=dc, out=outward(side, _HALF), width=2)
        for store in stores:
            store(p, out, t, n, dc)


def halve(targets: dict[int, Sequence[Target]], bias: Place | None = None) -> Finish:
    """A finish: fp16 of the results, after adding an fp32 word if given."""

    def finish(p: Pass, e: Emitted) -> None:
        t, n, dc = e.vxm_cycle, e.count, e.spacing
        value: Operand = e.stream
        if bias is not None:
            word = p.load(bias, inward(e.side, _BIAS[e.side]), t, n=n, dc=dc)
            value, _ = p.op(Op.ADD_F32, t, value, word, n=n, dc=dc)
            t += 3
        _halves(p, value, t, n, dc, targets)

    return finish


def add_bias(bias: Place, targets: Sequence[Place]) -> Finish:
    """A finish: fp32 results plus a word, to places of the own hemisphere."""

    def finish(p: Pass, e: Emitted) -> None:
        t, n, dc = e.vxm_cycle, e.count, e.spacing
        word = p.load(bias, inward(e.side, _BIAS[e.side]), t, n=n, dc=dc)
        _, out = p.op(Op.ADD_F32, t, e.stream, word, n=n, dc=dc, out=outward(e.side, _WHOLE))
        for target in targets:
            p.keep(target, out, t, n=n, dc=dc)

    return finish


def add_residual(
    bias: Place, residual: Place, stride: int, target: Place, halves: dict[int, Sequence[Target]]
) -> Finish:
    """A finish: results plus a word plus fp16 rows, as fp32 and as fp16."""

    def finish(p: Pass, e: Emitted) -> None:
        t, n, dc = e.vxm_cycle, e.count, e.spacing
        word = p.load(bias, inward(e.side, _BIAS[e.side]), t, n=n, dc=dc)
        value, _ = p.op(Op.ADD_F32, t, e.stream, word, n=n, dc=dc)
        rows = p.load(residual, inward(e.side, _RESIDUAL[e.side]), t, n=n, dc=dc, da=stride)
        other, _ = p.op(Op.CVT_F16_F32, t, rows, n=n, dc=dc)
        total, out = p.op(Op.ADD_F32, t + 3, value, other, n=n, dc=dc, out=outward(e.side, _WHOLE))
        p.keep(target, out, t + 3, n=n, dc=dc)
        _halves(p, total, t + 6, n, dc, halves)

    return finish


def mean(share: float, target: Place) -> Finish:
    """A finish: results times ``share``."""

    def finish(p: Pass, e: Emitted) -> None:
        t, n, dc = e.vxm_cycle, e.count, e.spacing
        _, out = p.op(Op.MUL_F32, t, e.stream, imm=share, n=n, dc=dc, out=outward(e.side, _WHOLE))
        p.keep(target, out, t, n=n, dc=dc)

    return finish


def inverse_root(share: float, target: Place) -> Finish:
    """A finish: 1 / sqrt(results * share + eps)."""

    def finish(p: Pass, e: Emitted) -> None:
        t, n, dc = e.vxm_cycle, e.count, e.spacing
        a, _ = p.op(Op.MUL_F32, t, e.stream, imm=share, n=n, dc=dc)
        a, _ = p.op(Op.ADD_F32, t + 3, a, imm=EPS, n=n, dc=dc)
        _, out = p.op(Op.RSQRT, t + 6, a, n=n, dc=dc, out=outward(e.side, _WHOLE))
        p.keep(target, out, t + 6, n=n, dc=dc)

    return finish


def _running(
    p: Pass, op: Op, t: int, x: Operand, n: int, dc: int, classes: int, target: Place, side: int
) -> None:
    """Running ``op`` over n values in ``classes`` interleaved totals, to that many words."""
    code = outward(side, _HALF)
    alu = p.pick(code, *([x.code] if isinstance(x, Stream) else []))
    p.op(Op.MOV, t, x, alu=alu, n=classes, dc=dc)
    if n > 2 * classes:
        p.op(op, t + classes * dc, x, Self(), alu=alu, n=n - 2 * classes, dc=dc)
    last = t + (n - classes) * dc
    _, out = p.op(op, last, x, Self(), alu=alu, n=classes, dc=dc, out=code)
    for i in range(classes):
        p.keep(target.at((n - classes + i) % classes), out, last + i * dc)
    p.hold_alu(alu, t, last + (classes - 1) * dc)


def scores(head: Head) -> Finish:
    """A finish: the results as they are, and their two running maxima."""

    def finish(p: Pass, e: Emitted) -> None:
        edge = isa.EAST_EDGE if e.side == EAST else isa.WEST_EDGE
        p.store(head.scores, e.stream, e.edge_cycle, edge, n=e.count, dc=e.spacing)
        _running(p, Op.MAX_F32, e.vxm_cycle, e.stream, e.count, e.spacing, 2, head.maxima, e.side)

    return finish


@dataclass
class Passes:
    """VXM passes over ``tokens`` rows; each returns the cycle at which its results are readable."""

    schedule: Schedule
    spec: ChipSpec
    tokens: int

    def _place(self, p: Pass, ready: int) -> int:
        """Put ``p`` where its first read of data is not before ``ready``."""
        return self.schedule.place(p, ready - p.first_read()) + p.ready

    def _pass(self) -> Pass:
        return Pass(self.schedule, self.spec)

    def mask_keys(
        self, side: int, keys: Place, masks: Sequence[Place], heads: Sequence[Head], ready: int
    ) -> int:
        """Keys on the lanes of one head each, for up to two heads."""
        p, n = self._pass(), self.tokens
        value = p.load(keys, inward(side, 4), _START, n=n, da=1)
        for i, (place, head) in enumerate(zip(masks, heads, strict=True)):
            mask = p.load(place, inward(side, 5) + i, _START, n=n)
            group = (_HALF, _WHOLE)[i]
            _, out = p.op(Op.MASK, _START, value, mask, n=n, out=outward(side, group), width=2)
            p.keep(head.keys, out, _START, n=n)
        return self._place(p, ready)

    def maximum(self, side: int, head: Head, ready: int) -> int:
        """The greater of the two running maxima."""
        p, t = self._pass(), _START
        pair = p.load(head.maxima, inward(side, 4), t, n=2, dc=3, da=1)
        alu = p.pick(pair.code, outward(side, _HALF))
        p.op(Op.MOV, t, pair, alu=alu)
        _, out = p.op(Op.MAX_F32, t + 3, pair, Self(), alu=alu, out=outward(side, _HALF))
        p.hold_alu(alu, t + 1, t + 2)
        p.keep(head.maximum, out, t + 3)
        return self._place(p, ready)

    def exponentials(self, side: int, head: Head, ready: int) -> int:
        """exp(score - maximum), and its three running sums."""
        p, t, n = self._pass(), _START, self.tokens
        score = p.load(head.scores, inward(side, 4), t, n=n, da=1)
        greatest = p.load(head.maximum, inward(side, 5), t, n=n)
        a, _ = p.op(Op.SUB_F32, t, score, greatest, n=n)
        share, out = p.op(Op.EXP, t + 3, a, n=n, out=outward(side, _WHOLE))
        p.keep(head.exponentials, out, t + 3, n=n)
        _running(p, Op.ADD_F32, t + 6, share, n, 1, 3, head.sums, side)
        return self._place(p, ready)

    def inverse(self, side: int, head: Head, ready: int) -> int:
        """One over the sum of the three running sums."""
        p, t = self._pass(), _START
        sums = p.load(head.sums, inward(side, 4), t, n=3, dc=3, da=1)
        alu = p.pick(sums.code)
        p.op(Op.MOV, t, sums, alu=alu)
        p.op(Op.ADD_F32, t + 3, sums, Self(), alu=alu, n=2, dc=3)
        p.hold_alu(alu, t + 1, t + 5)
        root, _ = p.op(Op.RSQRT, t + 9, Alu(alu))
        _, out = p.op(Op.MUL_F32, t + 12, root, root, out=outward(side, _HALF))
        p.keep(head.inverse, out, t + 12)
        return self._place(p, ready)

    def shares(self, side: int, head: Head, ready: int) -> int:
        """Exponentials over their sum, fp16 in column layout."""
        p, t, n = self._pass(), _START, self.tokens
        value = p.load(head.exponentials, inward(side, 4), t, n=n, da=1)
        inverse = p.load(head.inverse, inward(side, 5), t, n=n)
        a, _ = p.op(Op.MUL_F32, t, value, inverse, n=n)
        _halves(p, a, t + 3, n, 1, {side: [columns_at(head.columns, n, 0)]})
        return self._place(p, ready)

    def centre(
        self,
        side: int,
        value: Place,
        average: Place,
        target: Place,
        squares: dict[int, Sequence[Target]],
        ready: int,
    ) -> int:
        """value - mean as fp32, and its square as fp16."""
        p, t, n = self._pass(), _START, self.tokens
        x = p.load(value, inward(side, 4), t, n=n, da=1)
        middle = p.load(average, inward(side, 5), t, n=n, da=1)
        a, out = p.op(Op.SUB_F32, t, x, middle, n=n, out=outward(side, _WHOLE))
        p.keep(target, out, t, n=n)
        square, _ = p.op(Op.MUL_F32, t + 3, a, a, n=n)
        _halves(p, square, t + 6, n, 1, squares)
        return self._place(p, ready)

    def normalise(
        self,
        side: int,
        value: Place,
        factor: Place,
        gain: Place,
        shift: Place,
        targets: dict[int, Sequence[Target]],
        ready: int,
    ) -> int:
        """value * factor * gain + shift as fp16."""
        p, t, n = self._pass(), _START, self.tokens
        x = p.load(value, inward(side, 4), t, n=n, da=1)
        f = p.load(factor, inward(side, 5), t, n=n, da=1)
        a, _ = p.op(Op.MUL_F32, t, x, f, n=n)
        g = p.load(gain, inward(side, 6), t + 3, n=n)
        a, _ = p.op(Op.MUL_F32, t + 3, a, g, n=n)
        s = p.load(shift, inward(side, 7), t + 6, n=n)
        a, _ = p.op(Op.ADD_F32, t + 6, a, s, n=n)
        _halves(p, a, t + 9, n, 1, targets)
        return self._place(p, ready)

    def gelu(
        self,
        side: int,
        copies: tuple[Place, Place, Place],
        targets: dict[int, Sequence[Target]],
        ready: int,
    ) -> int:
        """GELU in its tanh form, as fp16; its operand is read three times, from three copies."""
        p, t, n = self._pass(), _START, self.tokens
        y = p.load(copies[0], inward(side, 4), t, n=n, da=1)
        a, _ = p.op(Op.MUL_F32, t, y, y, n=n)
        a, _ = p.op(Op.MUL_F32, t + 3, a, imm=GELU_B, n=n)
        a, _ = p.op(Op.ADD_F32, t + 6, a, imm=GELU_A, n=n)
        y = p.load(copies[1], inward(side, 5), t + 9, n=n, da=1)
        a, _ = p.op(Op.MUL_F32, t + 9, a, y, n=n)
        a, _ = p.op(Op.TANH, t + 12, a, n=n)
        a, _ = p.op(Op.MUL_F32, t + 15, a, imm=0.5, n=n)
        a, _ = p.op(Op.ADD_F32, t + 18, a, imm=0.5, n=n)
        y = p.load(copies[2], inward(side, 3), t + 21, n=n, da=1)
        a, _ = p.op(Op.MUL_F32, t + 21, a, y, n=n)
        _halves(p, a, t + 24, n, 1, targets)
        return self._place(p, ready)
