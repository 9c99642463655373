"""Checks of single instructions: units, operands, addresses, alignment (no instruction pairs)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chip.checker.findings import CheckReport
from chip.isa import (
    EAST_STREAMS,
    IMM,
    STREAMS,
    SUPERLANES,
    SXM_QUEUE,
    VXM_QUEUE,
    AccMode,
    Op,
)
from chip.program import (
    ABC_WIDTHS,
    ALU_REACH,
    ARITY,
    BY_MODE,
    BY_ROTATE,
    BY_W0,
    BY_W1,
    BY_WO,
    DISTRIBUTE_WIDTHS,
    EMITTED,
    GROUPS_RANGES,
    OUT_ALIGNED,
    OUT_STREAMS,
    ROTATE_SIZES,
    S0_ALIGNED,
    S0_STREAMS,
    S1_ALIGNED,
    S1_STREAMS,
    VXM_WIDTHS,
    Bools,
    Columns,
    Ints,
)
from chip.spec import ChipSpec


@dataclass
class Operands:
    """What each row samples and drives, after the rules on single instructions.

    Widths are 0 where there is no stream operand or where it is malformed, so that later rules
    never see one.  ``mem`` marks rows with a sound word range ``lo..hi``.  Shapes [rows].
    """

    s1: Ints
    width0: Ints
    width1: Ints
    width_out: Ints
    lo: Ints
    hi: Ints
    mem: Bools


def check_operands(c: Columns, spec: ChipSpec, report: CheckReport) -> Operands:
    """Rules ``bounds``, ``align``, ``alu`` and ``sxm`` of single instructions."""
    s1 = c.of("s1")
    w0, w1, wo = c.of("w0"), c.of("w1"), c.of("wo")
    imm = c.of("imm")
    safe_imm = np.clip(imm, 0, 16)
    arity = ARITY[c.op]
    vxm = arity > 0
    codes0, codes1 = vxm, arity == 2
    stream0, stream1 = codes0 & (c.s0 < STREAMS), codes1 & (s1 < STREAMS)
    mode = c.of("mode")
    acc = c.op == Op.ACC
    emits = acc & ((mode == AccMode.SET_EMIT) | (mode == AccMode.ADD_EMIT))
    width0, width1, width_out = S0_STREAMS[c.op], S1_STREAMS[c.op], OUT_STREAMS[c.op]
    width0 = np.where(width0 == BY_W0, np.where(vxm & ~stream0, 0, w0), width0)
    width1 = np.where(width1 == BY_W1, np.where(stream1, w1, 0), width1)
    width_out = np.where(width_out == BY_WO, wo, width_out)
    width_out = np.where(width_out == BY_W0, w0, width_out)
    width_out = np.where(width_out == BY_ROTATE, safe_imm * safe_imm, width_out)
    width_out = np.where(width_out == BY_MODE, np.where(emits, EMITTED, 0), width_out)

    _flag(
        report,
        "bounds",
        acc & ((mode < 0) | (mode > 3)),
        "mode is none of the four ACC modes",
        "use AccMode",
    )
    for used, code in ((codes0, c.s0), (codes1, s1)):
        _flag(
            report,
            "bounds",
            used & ((code < 0) | (code > IMM)),
            "an operand that is neither stream, ALU, self nor immediate",
            "give the operand a code of chip.isa",
        )
    _check_widths(report, c, vxm, stream0, stream1, w0, w1, wo)
    vector = np.isin(width0, VXM_WIDTHS)
    width0 = np.where(stream0 & ~vector, 0, width0)
    width1 = np.where(stream1 & ~np.isin(width1, VXM_WIDTHS), 0, width1)
    width_out = np.where(vxm & ~np.isin(width_out, VXM_WIDTHS), 0, width_out)
    odd = (c.op == Op.ABC) & ~np.isin(w0, ABC_WIDTHS)
    _flag(
        report, "mxm", odd, "an activation is 1 or 2 streams wide", "set w0 to 1 (int8) or 2 (fp16)"
    )
    width0 = np.where(odd, 0, width0)
    width0, width_out = _check_sxm(report, c, imm, w0, width0, width_out)

    need0 = np.where(S0_ALIGNED[c.op], width0, 1)
    need1 = np.where(S1_ALIGNED[c.op], width1, 1)
    need_out = np.where(OUT_ALIGNED[c.op], width_out, 1)
    sound0 = _check_group(report, "s0", c.s0, width0, need0)
    sound1 = _check_group(report, "s1", s1, width1, need1)
    sound_out = _check_group(report, "out", c.out, width_out, need_out, c.op == Op.ROTATE)
    width0 = np.where(sound0, width0, 0)
    width1 = np.where(sound1, width1, 0)
    width_out = np.where(sound_out, width_out, 0)
    _check_alu_groups(report, c, s1, width0, width1, width_out)
    lo, hi, mem = _check_addresses(report, c, spec)
    return Operands(s1, width0, width1, width_out, lo, hi, mem)


def _flag(report: CheckReport, code: str, wrong: Bools, other: str, mend: str) -> None:
    report.add(code, np.flatnonzero(wrong), other, mend)


def _check_widths(
    report: CheckReport,
    c: Columns,
    vxm: Bools,
    stream0: Bools,
    stream1: Bools,
    w0: Ints,
    w1: Ints,
    wo: Ints,
) -> None:
    for used, width, least in ((stream0, w0, 1), (stream1, w1, 1), (vxm, wo, 0)):
        wrong = used & ~(np.isin(width, VXM_WIDTHS) | ((width == 0) & (least == 0)))
        _flag(
            report,
            "align",
            wrong,
            "a value is 1, 2 or 4 streams wide",
            "set the operand's width to 1, 2 or 4",
        )


def _check_group(
    report: CheckReport,
    name: str,
    stream: Ints,
    width: Ints,
    align: Ints,
    rotate: Bools | None = None,
) -> Bools:
    """Rows whose group is inside the streams, one direction and aligned; findings otherwise."""
    used = width > 0
    last = stream + width - 1
    turning = np.zeros_like(used) if rotate is None else used & rotate
    turning &= (stream >= 0) & (stream < STREAMS) & (stream // EAST_STREAMS != last // EAST_STREAMS)
    outside = used & ~turning & ((stream < 0) | (last >= STREAMS))
    crossing = used & ~outside & (stream // EAST_STREAMS != last // EAST_STREAMS)
    skewed = used & ~outside & ~crossing & (stream % np.maximum(align, 1) != 0)
    _flag(
        report,
        "bounds",
        outside,
        f"{name} names a stream outside 0..63",
        f"choose {name} within 0..63",
    )
    _flag(
        report,
        "align",
        turning,
        "the n x n streams cross the border of the directions",
        "choose out so that n x n streams fit before stream 32 or 64",
    )
    _flag(
        report,
        "bounds",
        crossing & ~turning,
        f"the streams of {name} cross the border between E31 and W0",
        f"choose {name} so that the whole group flows one way",
    )
    _flag(
        report,
        "align",
        skewed,
        f"{name} is not aligned to its width",
        f"start {name} at a multiple of its width",
    )
    sound: Bools = used & ~outside & ~crossing & ~skewed
    return sound


def _check_alu_groups(
    report: CheckReport, c: Columns, s1: Ints, width0: Ints, width1: Ints, width_out: Ints
) -> None:
    rows = np.flatnonzero(ARITY[c.op] > 0)
    alu = c.queue[rows] - VXM_QUEUE
    for name, stream, width in (
        ("s0", c.s0, width0),
        ("s1", s1, width1),
        ("out", c.out, width_out),
    ):
        used = width[rows] > 0
        group = np.where(used, stream[rows] % EAST_STREAMS // 4, 0)
        wrong = rows[used & ~ALU_REACH[alu, group]]
        report.add(
            "alu",
            wrong,
            f"{name} lies outside the SG4s that the ALU's row reaches",
            "move the operand to an SG4 of the row or the operation to another row",
        )
    both = (width0[rows] > 0) & (width1[rows] > 0)
    x, y = c.s0[rows], s1[rows]
    same = x % EAST_STREAMS // 4 == y % EAST_STREAMS // 4
    wrong = rows[both & same & (x // EAST_STREAMS != y // EAST_STREAMS)]
    report.add(
        "alu",
        wrong,
        "s0 and s1 are the same SG4 number from both directions",
        "bring one operand on another SG4",
    )


def _check_sxm(
    report: CheckReport, c: Columns, imm: Ints, w0: Ints, width0: Ints, width_out: Ints
) -> tuple[Ints, Ints]:
    """SXM rules; widths come back 0 for instructions whose shape makes no sense."""
    distribute, transpose = c.op == Op.DISTRIBUTE, c.op == Op.TRANSPOSE
    unit = (c.queue - SXM_QUEUE) % 8
    odd = distribute & ~np.isin(w0, DISTRIBUTE_WIDTHS)
    _flag(
        report, "sxm", odd, "the distributor moves 1, 2, 4 or 8 streams", "set w0 to 1, 2, 4 or 8"
    )
    width0, width_out = np.where(odd, 0, width0), np.where(odd, 0, width_out)
    for stream in (c.s0, c.out):
        good = distribute & ~odd & (stream >= 0)
        wrong = good & (stream // 8 != (stream + w0 - 1) // 8)
        _flag(
            report,
            "sxm",
            wrong,
            "the streams cross the border of an SG8",
            "keep the whole group inside one SG8",
        )
    sg = np.where(distribute, c.s0 % EAST_STREAMS // 8, c.s0 % EAST_STREAMS // 16)
    wrong = (distribute & (sg != unit)) | (transpose & (sg != unit - 4))
    _flag(
        report,
        "sxm",
        wrong & (c.s0 >= 0) & (c.s0 < STREAMS),
        "s0 belongs to another unit of the SXM",
        "use the distributor of s0's SG8, the transposer of s0's SG16",
    )
    rotate = (c.op == Op.ROTATE) & ~np.isin(imm, ROTATE_SIZES)
    _flag(report, "sxm", rotate, "ROTATE turns 3 x 3 or 4 x 4 lanes", "set imm to 3 or 4")
    width_out = np.where(rotate, 0, width_out)
    maps = c.program.maps
    lanes = np.arange(SUPERLANES * 16)
    good_map = np.array(
        [m.shape == lanes.shape and bool(np.array_equal(np.sort(m), lanes)) for m in maps]
        + [False],
        np.bool_,
    )
    permute = c.op == Op.PERMUTE
    known = (imm >= 0) & (imm < len(maps))
    _flag(
        report,
        "sxm",
        permute & ~known,
        "the program has no such lane map",
        "add the map or choose imm among the program's maps",
    )
    broken = permute & known & ~good_map[np.where(known, imm, -1)]
    _flag(
        report,
        "sxm",
        broken,
        "the lane map is no permutation of the 320 lanes",
        "use each in-lane exactly once",
    )
    return width0, width_out


def _check_addresses(report: CheckReport, c: Columns, spec: ChipSpec) -> tuple[Ints, Ints, Bools]:
    plain = (c.op == Op.READ) | (c.op == Op.WRITE)
    mapped = (c.op == Op.GATHER) | (c.op == Op.SCATTER)
    bank, last = spec.words_per_bank, spec.words_per_slice - 1
    outside = (plain | mapped) & ((c.a < 0) | (c.a > last))
    _flag(
        report,
        "bounds",
        outside,
        f"word {last} is the slice's last",
        f"keep the address within 0..{last}",
    )
    lo, hi = c.of("lo"), c.of("hi")
    lo, hi = np.where(mapped, lo, c.a), np.where(mapped, hi, c.a)
    window = mapped & ((lo < 0) | (hi > last) | (lo > hi) | (lo // bank != hi // bank))
    _flag(
        report,
        "bounds",
        window,
        "the window is empty or not inside one bank",
        f"declare lo <= hi inside 0..{bank - 1} or {bank}..{last}",
    )
    rows = spec.mxm_accumulator_rows
    for op, (least, most) in {**GROUPS_RANGES, Op.ACC: (0, rows - 1)}.items():
        wrong = (c.op == op) & ((c.a < least) | (c.a > most))
        _flag(
            report,
            "bounds",
            wrong,
            f"{op.name} takes {least}..{most}",
            f"keep a within {least}..{most}",
        )
    _flag(
        report,
        "bounds",
        c.cycle < 0,
        "a launch starts at cycle 0",
        "move the block to a later cycle",
    )
    return lo, hi, (plain & ~outside) | (mapped & ~window)
