"""What the VXM does with a product's int32 results: scale, bias, residual, rounding, pooling.

Each half of the VXM serves one hemisphere: ALUs 0..7 the east planes, 8..15 the west ones, with
stream groups that the rows of that half reach.  A residual needs nine ALUs, so it borrows one of
the other half.  Everything is one result per cycle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chip.isa import Op
from chip.scheduling import Alu, Operand, Pass, Place, Schedule, Stream
from chip.spec import ChipSpec
from programs.kernels.gemm import EAST, WEST, Emitted, Finish, Rows


@dataclass(frozen=True)
class _Bank:
    """ALUs of one half by what they do, and the stream groups they use."""

    convert: int
    scale: int
    bias: int
    round: int
    widen: int
    residual: int
    add: int  # in the other half
    narrow: tuple[int, int]  # to the west, to the east
    last: int  # adds the bias where float32 itself is the result
    scale_group: int
    bias_group: int
    residual_group: int
    out_group: int


#: By hemisphere, west first.
_BANKS = (
    _Bank(8, 9, 10, 11, 12, 13, 4, (14, 15), 10, 6, 7, 0, 6),
    _Bank(0, 1, 2, 3, 4, 5, 12, (6, 7), 4, 2, 3, 4, 5),
)


@dataclass(frozen=True)
class Affine:
    """One fp32 word of scales and one of biases of a column block, by hemisphere."""

    scale: tuple[Place, Place]
    bias: tuple[Place, Place]


def _code(side: int, group: int) -> int:
    """First stream code of an inward stream group of a hemisphere."""
    return 32 * side + 4 * group


def _scaled(
    p: Pass, e: Emitted, affine: Affine, alu: int, out: int = -1
) -> tuple[Alu, Stream, int]:
    """float32(sum) * scale + bias, added by ``alu`` (to ``out``), and when that issues."""
    bank, t, n, dc = _BANKS[e.side], e.vxm_cycle, e.count, e.spacing
    a, _ = p.op(Op.CVT_I32_F32, t, e.stream, alu=bank.convert, n=n, dc=dc)
    scale = p.load(affine.scale[e.side], _code(e.side, bank.scale_group), t + 3, n=n, dc=dc)
    a, _ = p.op(Op.MUL_F32, t + 3, a, scale, alu=bank.scale, n=n, dc=dc)
    bias = p.load(affine.bias[e.side], _code(e.side, bank.bias_group), t + 6, n=n, dc=dc)
    value, driven = p.op(Op.ADD_F32, t + 6, a, bias, alu=alu, n=n, dc=dc, out=out)
    return value, driven, t + 6


def requantise_rows(
    affine: Affine,
    targets: Mapping[int, Place],
    rows: Rows,
    residual: tuple[Mapping[int, Place], Rows] | None = None,
) -> Finish:
    """A finish that makes int8 of the results and writes them to ``targets`` of both hemispheres.

    targets: by hemisphere, places whose slices all take the same bytes; ``residual``: the places
    (one slice by hemisphere) and rows of int8 numbers to add before the rounding.
    """

    def finish(p: Pass, e: Emitted) -> None:
        bank = _BANKS[e.side]
        n, dc, da = rows.repeats(e.spacing)
        value, _, t = _scaled(p, e, affine, bank.bias)
        if residual is not None:
            places, pattern = residual
            rn, rdc, rda = pattern.repeats(e.spacing)
            code = _code(e.side, bank.residual_group)
            other: Operand = p.load(places[e.side], code, t - 3, n=rn, dc=rdc, da=rda)
            other, _ = p.op(Op.CVT_I8_I32, t - 3, other, alu=bank.widen, n=rn, dc=rdc)
            other, _ = p.op(Op.CVT_I32_F32, t, other, alu=bank.residual, n=rn, dc=rdc)
            t += 3
            value, _ = p.op(Op.ADD_F32, t, value, other, alu=bank.add, n=n, dc=dc)
        whole, _ = p.op(Op.CVT_F32_I32, t + 3, value, alu=bank.round, n=n, dc=dc)
        for side, place in targets.items():
            code = 4 * bank.out_group + (32 if side == WEST else 0)
            _, out = p.op(
                Op.CVT_I32_I8, t + 6, whole, alu=bank.narrow[side], n=n, dc=dc, out=code, width=1
            )
            p.keep(place, out, t + 6, n=n, dc=dc, da=da, copies=True)

    return finish


def logits(affine: Affine, target: Place, rows: Rows) -> Finish:
    """A finish that writes float32(sum) * scale + bias to ``target`` in the plane's hemisphere."""

    def finish(p: Pass, e: Emitted) -> None:
        bank = _BANKS[e.side]
        n, dc, da = rows.repeats(e.spacing)
        code = 4 * bank.out_group + (32 if e.side == WEST else 0)
        _, out, t = _scaled(p, e, affine, bank.last, code)
        p.keep(target, out, t, n=n, dc=dc, da=da)

    return finish


def unsigned_rows(affine: Affine, targets: list[tuple[Place, int, Rows]]) -> Finish:
    """A finish that writes int8 results plus 128, as unsigned bytes, to the east.

    targets: places of one or more slices, the number of the first result each takes and the rows
    (spaced ``dc`` = 2 results in x, in the order of results) it takes.
    """

    def finish(p: Pass, e: Emitted) -> None:
        bank = _BANKS[e.side]
        value, _, t = _scaled(p, e, affine, bank.bias)
        n, dc = e.count, e.spacing
        whole, _ = p.op(Op.CVT_F32_I32, t + 3, value, alu=bank.round, n=n, dc=dc)
        narrow, _ = p.op(Op.CVT_I32_I8, t + 6, whole, alu=bank.widen, n=n, dc=dc)
        _, out = p.op(
            Op.XOR,
            t + 9,
            narrow,
            imm=128,
            alu=bank.narrow[EAST],
            n=n,
            dc=dc,
            out=4 * bank.out_group,
            width=1,
        )
        for place, first, rows in targets:
            p.keep(place, out, t + 9 + first * dc, n=rows.nx, dc=2 * dc, da=rows.dx, copies=True)

    return finish


#: Inward streams of the nine terms of a pooling window (one byte each), all from the east.
_TERM_CODES = (32, 36, 40, 44, 48, 52, 56, 60, 33)
_POOLED_GROUP = 7


def maximum_of_nine(
    schedule: Schedule,
    spec: ChipSpec,
    terms: list[tuple[Place, Rows]],
    targets: Mapping[int, Place],
    rows: Rows,
    earliest: int,
) -> tuple[int, int]:
    """The greatest of nine unsigned bytes, less 128, for every row, to both hemispheres.

    Unsigned bytes are compared as the subnormal floats they spell.  ``terms``: one slice each, in
    the east, all different.  Returns (last read, first cycle at which all is readable).
    """
    p = Pass(schedule, spec)
    n, dc, da = rows.repeats(1)
    t = 50
    steps = (t,) * 8 + (t + 9,)  # the ninth term meets the greatest of eight
    values: list[Operand] = []
    for (place, pattern), code, when in zip(terms, _TERM_CODES, steps, strict=True):
        tn, tdc, tda = pattern.repeats(1)
        values.append(p.load(place, code, when, n=tn, dc=tdc, da=tda))
    first, last = p.first_read(), max(block["cycle"] for block in p.blocks)
    ninth = values.pop()
    while len(values) > 1:
        values = [
            p.op(Op.MAX_F32, t, a, b, n=n, dc=dc)[0]
            for a, b in zip(values[::2], values[1::2], strict=True)
        ]
        t += 3
    greatest, _ = p.op(Op.MAX_F32, t, values[0], ninth, n=n, dc=dc)
    for side, place in targets.items():
        code = 4 * _POOLED_GROUP + (32 if side == WEST else 0)
        _, out = p.op(Op.XOR, t + 3, greatest, imm=128, n=n, dc=dc, out=code, width=1)
        p.keep(place, out, t + 3, n=n, dc=dc, da=da, copies=True)
    start = schedule.place(p, earliest - first, "maximum of nine")
    return start + last + rows.count - 1, start + p.ready
