"""Checks of streams: producers, consumers and who meets whom on a diagonal.

Every stream element is one number (stream, diagonal, place), place counting downstream: the
producer a consumer sees is the greatest number below the consumer's own with the same stream and
diagonal, so one sort of the producers and one binary search resolve everything.
"""

from __future__ import annotations

import numpy as np

from chip.checker.findings import WARNING, CheckReport
from chip.checker.operands import Operands
from chip.checker.units import check_want
from chip.isa import EAST_EDGE, EAST_STREAMS, Op, stream_name
from chip.program import ARITY, DRIVE_POSITION, SAMPLE_POSITION, Bools, Columns, Ints
from chip.spec import ChipSpec

_PLACE_BITS = 6
_DIAGONAL_BITS = 44
_BIAS = 1 << (_DIAGONAL_BITS - 1)


def _drive_latency(spec: ChipSpec) -> Ints:
    latency = np.zeros(256, np.int64)
    latency[ARITY > 0] = spec.alu_entry_cycles + spec.alu_cycles
    for op, cycles in (
        (Op.READ, spec.read_cycles),
        (Op.GATHER, spec.gather_cycles),
        (Op.ACC, spec.mxm_accumulate_cycles),
        (Op.DISTRIBUTE, spec.distribute_cycles),
        (Op.TRANSPOSE, spec.transpose_cycles),
        (Op.PERMUTE, spec.permute_cycles),
        (Op.SHIFT, spec.shift_cycles),
        (Op.ROTATE, spec.rotate_cycles),
        (Op.RECEIVE, spec.receive_cycles),
    ):
        latency[op] = cycles
    return latency


def _spread(
    c: Columns, rows: Ints, first: Ints, width: Ints, positions: Ints, cycle: Ints
) -> tuple[Ints, Ints]:
    """Element keys of ``width`` streams from ``first`` at the rows' positions, and their owners.

    Owners are indices into ``rows``.
    """
    west = (first >= EAST_STREAMS).astype(np.int64)
    position = positions[c.queue[rows], west]
    diagonal = np.where(west == 1, cycle + position, cycle - position) + _BIAS
    place = np.where(west == 1, EAST_EDGE - position, position + 1)
    base = (((first << _DIAGONAL_BITS) + diagonal) << _PLACE_BITS) + place
    if len(width) and int(width.max()) == 1:
        return base, np.arange(len(rows), dtype=np.int64)
    owner = np.repeat(np.arange(len(rows), dtype=np.int64), width)
    step = np.arange(len(owner), dtype=np.int64) - np.repeat(np.cumsum(width) - width, width)
    return base[owner] + (step << (_DIAGONAL_BITS + _PLACE_BITS)), owner


def check_streams(c: Columns, ops: Operands, spec: ChipSpec, report: CheckReport) -> None:
    """Rules ``driver``, ``missing`` and ``want`` of streams; warning ``overwritten``."""
    makers = np.flatnonzero(ops.width_out > 0)
    cycle = c.cycle[makers] + _drive_latency(spec)[c.op[makers]]
    keys, owner = _spread(c, makers, c.out[makers], ops.width_out[makers], DRIVE_POSITION, cycle)
    order = np.argsort(keys, kind="stable")
    keys, producer = keys[order], makers[owner[order]]
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    _report_drivers(c, report, keys, producer, twice)
    read: Bools = np.zeros(len(keys), np.bool_)
    for name, first, width in (("0", c.s0, ops.width0), ("1", ops.s1, ops.width1)):
        rows = np.flatnonzero(width > 0)
        wanted, takes = _spread(c, rows, first[rows], width[rows], SAMPLE_POSITION, c.cycle[rows])
        at = np.searchsorted(keys, wanted) - 1
        found = at >= 0
        if len(keys):
            found &= keys[np.maximum(at, 0)] >> _PLACE_BITS == wanted >> _PLACE_BITS
            read[at[found]] = True
        _report_missing(c, report, rows, keys, wanted, takes, found)
        want = c.of(f"want{name}", rows)[takes[found]]
        check_want(c, rows[takes[found]], producer[at[found]], want, report)
    _report_overwritten(c, report, keys, producer, read)


def _report_drivers(
    c: Columns, report: CheckReport, keys: Ints, producer: Ints, twice: Ints
) -> None:
    rows, others = producer[twice + 1], producer[twice]
    later = c.cycle[rows] >= c.cycle[others]

    def name(i: int) -> str:
        stream = stream_name(int(keys[twice[i]] >> (_DIAGONAL_BITS + _PLACE_BITS)))
        other = others[i] if later[i] else rows[i]
        return f"{stream} is driven there in that cycle by {c.place(int(other))} too"

    report.add(
        "driver", np.where(later, rows, others), name, "move one of them to another stream or cycle"
    )


def _report_missing(
    c: Columns, report: CheckReport, rows: Ints, keys: Ints, wanted: Ints, takes: Ints, found: Bools
) -> None:
    lost = np.flatnonzero(~found)

    def name(i: int) -> str:
        key = int(wanted[lost[i]])
        stream = key >> (_DIAGONAL_BITS + _PLACE_BITS)
        here = stream_name(stream)
        at = int(np.searchsorted(keys, key))
        offsets = []
        for near in (at - 1, at):
            if 0 <= near < len(keys) and int(keys[near]) >> (_DIAGONAL_BITS + 6) == stream:
                offsets.append((int(keys[near]) >> _PLACE_BITS) - (key >> _PLACE_BITS))
        if not offsets:
            return f"nothing is ever driven on {here}"
        best = min(offsets, key=abs)
        if best == 0:
            return f"{here} is driven on this diagonal only from further downstream"
        side = "later" if best > 0 else "earlier"
        return f"no value on {here} passes; the nearest passes {abs(best)} cycles {side}"

    report.add(
        "missing",
        rows[takes[lost]],
        name,
        "drive the stream upstream on this diagonal or move the consumer",
    )


def _report_overwritten(
    c: Columns, report: CheckReport, keys: Ints, producer: Ints, read: Bools
) -> None:
    """Untagged values nobody read before the next producer on their diagonal replaced them."""
    replaced = np.flatnonzero(
        ~read[:-1] & (keys[1:] >> _PLACE_BITS == keys[:-1] >> _PLACE_BITS) & (keys[1:] != keys[:-1])
    )
    replaced = replaced[c.of("tag", producer[replaced]) == 0]
    report.against(
        "overwritten",
        producer[replaced],
        producer[replaced + 1],
        "give operands their want, or do not drive an unread value",
        "nobody reads the value before it is replaced by ",
        WARNING,
    )
