"""Checks of instruction pairs on units: queues, SRAM ports, parking, ALU results, links.

Every rule is a sort by (queue, cycle) and a comparison of neighbours, or a binary search.
"""

from __future__ import annotations

import numpy as np

from chip.checker.findings import WARNING, CheckReport
from chip.checker.operands import Operands
from chip.isa import (
    ALU0,
    QUEUES,
    SELF,
    STREAMS,
    VXM_QUEUE,
    Op,
)
from chip.program import (
    ANY_UNIT,
    ARITY,
    OPCODES,
    UNIT_OF_OP,
    UNIT_OF_QUEUE,
    Bools,
    Columns,
    Ints,
)
from chip.spec import ChipSpec

#: Cycles fit this many bits beside a queue, plane or stream in one sort key.
SPAN = np.int64(1) << 44
_BIAS = SPAN >> 1


def key(major: Ints, cycle: Ints) -> Ints:
    """One sortable number of (major, cycle); cycles may be slightly negative."""
    packed: Ints = major * SPAN + (cycle + _BIAS)
    return packed


def find(sorted_keys: Ints, wanted: Ints) -> Ints:
    """Index of each wanted key in ``sorted_keys``, -1 where it is absent."""
    if len(sorted_keys) == 0:
        return np.full(len(wanted), -1, np.int64)
    at = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    found: Ints = np.where(sorted_keys[at] == wanted, at, -1)
    return found


def latest(sorted_keys: Ints, at_most: Ints, major: Ints) -> Ints:
    """Index of the greatest key <= ``at_most`` with the same major, -1 where there is none."""
    at = np.searchsorted(sorted_keys, at_most, side="right") - 1
    if len(sorted_keys) == 0:
        return np.full(len(at_most), -1, np.int64)
    inside = (at >= 0) & (sorted_keys[np.maximum(at, 0)] // SPAN == major)
    found: Ints = np.where(inside, at, -1)
    return found


def pick(rows: Ints, at: Ints) -> Ints:
    """``rows[at]`` with -1 kept as -1."""
    if len(rows) == 0:
        return np.full(len(at), -1, np.int64)
    picked: Ints = np.where(at >= 0, rows[np.maximum(at, 0)], -1)
    return picked


def unit_mismatch(c: Columns) -> Bools:
    """Rows whose queue or opcode does not exist or that do not belong together."""
    known = (c.op >= 0) & (c.op < len(UNIT_OF_OP)) & (c.queue >= 0) & (c.queue < QUEUES)
    unit = UNIT_OF_OP[np.where(known, c.op, 0)]
    fits = (unit == ANY_UNIT) | (unit == UNIT_OF_QUEUE[np.where(known, c.queue, 0)])
    wrong: Bools = ~known | ~fits
    return wrong


def check_queues(c: Columns, ops: Operands, spec: ChipSpec, report: CheckReport) -> None:
    """Rules ``queue`` (one instruction per cycle) and ``bank`` (paired read and write)."""
    kind = np.zeros(OPCODES, np.int64)
    kind[[Op.READ, Op.GATHER]] = 1
    kind[[Op.WRITE, Op.SCATTER]] = 2
    kind[Op.ABC], kind[Op.ACC] = 3, 4
    full = key(c.queue, c.cycle) * 8 + kind[c.op]
    order = np.argsort(full, kind="stable")
    full = full[order]
    same = np.flatnonzero(full[1:] // 8 == full[:-1] // 8)
    first, second = full[same] % 8, full[same + 1] % 8
    paired = ((first == 1) & (second == 2)) | ((first == 3) & (second == 4))
    report.against(
        "queue",
        order[same + 1][~paired],
        order[same][~paired],
        "move one of them to another cycle or queue",
        "the queue already dispatches ",
    )
    ports = same[first + 2 * second == 5]
    read, write = order[ports], order[ports + 1]
    clash = ops.mem[read] & ops.mem[write]
    clash &= ops.lo[read] // spec.words_per_bank == ops.lo[write] // spec.words_per_bank
    report.against(
        "bank",
        read[clash],
        write[clash],
        "place one of them in the slice's other bank or in another cycle",
        "the same bank serves ",
    )


def check_sram(c: Columns, ops: Operands, spec: ChipSpec, report: CheckReport) -> None:
    """Rule ``in-flight``: no read of a word whose write is on its way."""
    reads = np.flatnonzero(ops.mem & ((c.op == Op.READ) | (c.op == Op.GATHER)))
    writes = np.flatnonzero(ops.mem & ((c.op == Op.WRITE) | (c.op == Op.SCATTER)))
    keys = key(c.queue[writes], c.cycle[writes])
    order = np.argsort(keys, kind="stable")
    keys, writes = keys[order], writes[order]
    for age in range(1, spec.write_cycles):
        at = find(keys, key(c.queue[reads], c.cycle[reads] - age))
        hit = np.flatnonzero(at >= 0)
        read, write = reads[hit], writes[at[hit]]
        clash = (ops.lo[read] <= ops.hi[write]) & (ops.lo[write] <= ops.hi[read])
        report.against(
            "in-flight",
            read[clash],
            write[clash],
            f"read at least {spec.write_cycles} cycles after the write",
            "the word is still being written by ",
        )


def check_initialised(
    c: Columns, ops: Operands, spec: ChipSpec, initialised: Bools, report: CheckReport
) -> None:
    """Warn of reads whose words hold no data before the launch and were not written in it."""
    never = np.iinfo(np.int64).max
    since = np.where(initialised.reshape(-1), np.iinfo(np.int64).min, never)
    writes = np.flatnonzero(ops.mem & ((c.op == Op.WRITE) | (c.op == Op.SCATTER)))
    words, owner = _words(c, ops, writes, spec)
    np.minimum.at(since, words, (c.cycle[writes] + spec.write_cycles)[owner])
    reads = np.flatnonzero(ops.mem & ((c.op == Op.READ) | (c.op == Op.GATHER)))
    words, owner = _words(c, ops, reads, spec)
    late = since[words] > c.cycle[reads[owner]]
    bad = reads[np.unique(owner[late])]
    report.add(
        "uninitialised",
        bad,
        "a word it reads was never written before",
        "load or write the word first, or accept zero",
        WARNING,
    )


def _words(c: Columns, ops: Operands, rows: Ints, spec: ChipSpec) -> tuple[Ints, Ints]:
    """Every word [slice * words_per_slice + word] of the rows' ranges and the index of its row."""
    size = ops.hi[rows] - ops.lo[rows] + 1
    owner = np.repeat(np.arange(len(rows), dtype=np.int64), size)
    step = np.arange(len(owner), dtype=np.int64) - np.repeat(np.cumsum(size) - size, size)
    return c.queue[rows[owner]] * spec.words_per_slice + ops.lo[rows[owner]] + step, owner


def check_sync(c: Columns, spec: ChipSpec, report: CheckReport) -> None:
    """Rule ``sync``: parked queues dispatch nothing, and every SYNC is released."""
    syncs = np.flatnonzero(c.op == Op.SYNC)
    if len(syncs) == 0:
        return
    notify = np.flatnonzero(c.op == Op.NOTIFY)
    notify = notify[np.argsort(c.cycle[notify], kind="stable")]
    at = np.searchsorted(c.cycle[notify], c.cycle[syncs], side="left")
    stuck = at >= len(notify)
    report.add(
        "sync",
        syncs[stuck],
        "no NOTIFY is dispatched at or after it",
        "dispatch a NOTIFY on another queue",
    )
    release = np.full(len(syncs), np.iinfo(np.int64).max, np.int64)
    release[~stuck] = c.cycle[notify[at[~stuck]]] + spec.notify_cycles
    keys = key(c.queue, c.cycle)
    order = np.argsort(keys, kind="stable")
    following = np.searchsorted(keys[order], key(c.queue[syncs], c.cycle[syncs]), side="right")
    inside = following < len(order)
    rows = order[np.minimum(following, len(order) - 1)]
    wrong = inside & (c.queue[rows] == c.queue[syncs]) & (c.cycle[rows] < release)
    report.against(
        "sync",
        rows[wrong],
        syncs[wrong],
        "dispatch it after the NOTIFY's release",
        "the queue is parked by ",
    )


def check_alu_results(c: Columns, ops: Operands, spec: ChipSpec, report: CheckReport) -> None:
    """Rules ``missing`` and ``want`` for operands that are ALU results."""
    vxm = np.flatnonzero(ARITY[c.op] > 0)
    keys = key(c.queue[vxm], c.cycle[vxm])
    order = np.argsort(keys, kind="stable")
    vxm, keys = vxm[order], keys[order]
    operands = (("want0", c.s0, ARITY[c.op] > 0), ("want1", ops.s1, ARITY[c.op] > 1))
    for want, codes, used in operands:
        rows = np.flatnonzero(used & (codes >= STREAMS) & (codes <= SELF))
        code = codes[rows]
        own = code == SELF
        source = np.where(own, c.queue[rows], VXM_QUEUE + code - ALU0)
        wanted = key(source, c.cycle[rows] - spec.alu_cycles)
        at = np.where(own, latest(keys, wanted, source), find(keys, wanted))
        lost = at < 0
        report.add(
            "missing",
            rows[lost & ~own],
            f"that ALU dispatched nothing exactly {spec.alu_cycles} cycles before",
            f"dispatch the operand's operation {spec.alu_cycles} cycles earlier",
        )
        report.add(
            "missing",
            rows[lost & own],
            f"the ALU has no own result {spec.alu_cycles} or more cycles old",
            "dispatch the first operation without self",
        )
        there = rows[~lost]
        check_want(c, there, vxm[at[~lost]], c.of(want, there), report)


def check_want(c: Columns, rows: Ints, producer: Ints, want: Ints, report: CheckReport) -> None:
    """Rule ``want``: the resolved producer carries the wanted tag."""
    asked = np.flatnonzero((want != 0) & (producer >= 0))
    wrong = asked[c.of("tag", producer[asked]) != want[asked]]
    report.against(
        "want",
        rows[wrong],
        producer[wrong],
        "delay or move the value in between, or correct tag and want",
        "the wanted value is replaced by ",
    )


def check_sends(c: Columns, spec: ChipSpec, report: CheckReport) -> None:
    """Rule ``link``: vectors leave a link at least ``send_spacing_cycles`` apart."""
    sends = np.flatnonzero(c.op == Op.SEND)
    sends = sends[np.argsort(key(c.queue[sends], c.cycle[sends]), kind="stable")]
    before, after = sends[:-1], sends[1:]
    close = (c.queue[before] == c.queue[after]) & (
        c.cycle[after] - c.cycle[before] < spec.send_spacing_cycles
    )
    report.against(
        "link",
        after[close],
        before[close],
        f"space the SENDs of a link {spec.send_spacing_cycles} cycles apart",
        "the link still carries the vector of ",
    )
