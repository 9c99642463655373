"""The static checker: proves a program legal before it runs.

Knows every rule of ``docs/machine.md`` except the run-time rule ``offset``; executes nothing and
sees no data.  Works on the expansion as columns (:mod:`chip.program.columns`), vectorised: each rule is
a mask, a sort with neighbour comparison or a binary search.  One program at a time
(:func:`check`), plus the links between programs (:func:`check_links`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from chip.checker.mxm import check_mxm
from chip.checker.operands import check_operands
from chip.checker.streams import check_streams
from chip.checker.units import (
    check_alu_results,
    check_initialised,
    check_queues,
    check_sends,
    check_sram,
    check_sync,
    find,
    unit_mismatch,
)
from chip.faults import ProgramFault
from chip.isa import C2C_QUEUE, Op, queue_name
from chip.program import (
    ERROR,
    WARNING,
    Bools,
    Columns,
    Finding,
    Ints,
    Program,
    Report,
    expand_columns,
)
from chip.spec import ChipSpec

__all__ = ["ERROR", "WARNING", "Finding", "assert_legal", "check", "check_links"]

#: A cable: (chip a, link of a, chip b, link of b); carries vectors both ways.
Cable = tuple[int, int, int, int]


def check(
    program: Program,
    spec: ChipSpec,
    *,
    chip: int | None = None,
    initialised: Bools | None = None,
) -> list[Finding]:
    """All findings about one program, errors first, then by cycle.

    initialised: bool [88, words_per_slice], which words hold data before the launch; None: no
    warnings about words never written.
    """
    everything = expand_columns(program)
    report = Report(everything, chip)
    _report_blocks(everything, report)
    wrong = unit_mismatch(everything)
    report.add("queue", np.flatnonzero(wrong), "the operation belongs to another unit's queue",
               "dispatch it on a queue of its own unit")  # fmt: skip
    columns = _only(everything, ~wrong) if wrong.any() else everything
    report.columns = columns
    operands = check_operands(columns, spec, report)
    check_queues(columns, operands, spec, report)
    check_sram(columns, operands, spec, report)
    check_sync(columns, spec, report)
    check_alu_results(columns, operands, spec, report)
    check_mxm(columns, spec, report)
    check_sends(columns, spec, report)
    check_streams(columns, operands, spec, report)
    if initialised is not None:
        check_initialised(columns, operands, spec, initialised, report)
    return _ordered(report.findings)


def assert_legal(program: Program, spec: ChipSpec, *, chip: int | None = None) -> None:
    """Raise :class:`ProgramFault` for the first error, if there is one."""
    for finding in check(program, spec, chip=chip):
        if finding.severity == ERROR:
            raise ProgramFault(
                code=finding.code, chip=-1 if chip is None else chip, cycle=finding.cycle,
                queue=finding.queue,
                message=f"{finding.instruction}: {finding.other}; {finding.mend}",
            )  # fmt: skip


def _ordered(findings: list[Finding]) -> list[Finding]:
    unique = dict.fromkeys(findings)
    return sorted(
        unique, key=lambda f: (f.severity != ERROR, -1 if f.chip is None else f.chip,
                               f.cycle, f.queue, f.code),
    )  # fmt: skip


def _only(c: Columns, keep: Bools) -> Columns:
    return replace(
        c, block=c.block[keep], cycle=c.cycle[keep], queue=c.queue[keep], op=c.op[keep],
        a=c.a[keep], s0=c.s0[keep], out=c.out[keep],
    )  # fmt: skip


def _report_blocks(c: Columns, report: Report) -> None:
    """Blocks that have no expansion, and gangs on anything but MEM operations."""
    blocks = c.program.blocks
    ganged = (blocks["gang"] >= 0) & ~np.isin(
        blocks["op"], (Op.READ, Op.WRITE, Op.GATHER, Op.SCATTER)
    )
    faults = [*c.bad]
    faults += [(int(i), "only MEM operations are ganged") for i in np.flatnonzero(ganged)]
    for index, reason in faults:
        block = blocks[index]
        op = int(block["op"])
        name = Op(op).name if op in Op._value2member_map_ else f"op {op}"
        report.findings.append(
            Finding("bounds", report.chip, int(block["cycle"]), int(block["queue"]),
                    f"{name} (block {index})", reason,
                    "correct the block's repeat counts or gang", block=index)
        )  # fmt: skip


def check_links(
    programs: Sequence[Program], cables: Sequence[Cable], spec: ChipSpec
) -> list[Finding]:
    """Findings about the vectors between chips: chip i runs ``programs[i]``.

    Every SEND has its RECEIVE at the far end exactly ``send_to_receive_cycles`` later and the
    other way round, SENDs keep their spacing, and no link carries more vectors since its first
    than ``cycles_per_vector`` allows.
    """
    far: dict[tuple[int, int], tuple[int, int]] = {}
    findings: list[Finding] = []
    for a, link_a, b, link_b in cables:
        for near, other in (((a, link_a), (b, link_b)), ((b, link_b), (a, link_a))):
            if far.get(near, other) != other:
                text = f"two cables end at chip {near[0]} link {near[1]}"
                findings.append(_cable_finding(near, text))
            far[near] = other
    reports: list[Report] = []
    vectors: dict[tuple[int, int, int], Ints] = {}
    for chip, program in enumerate(programs):
        used = np.flatnonzero(np.isin(program.blocks["op"], (Op.SEND, Op.RECEIVE)))
        columns = expand_columns(replace(program, blocks=program.blocks[used]))
        # Blocks by their numbers in the whole program, as findings name them.
        columns.program, columns.block = program, used[columns.block]
        report = Report(columns, chip)
        reports.append(report)
        check_sends(columns, spec, report)
        for op in (Op.SEND, Op.RECEIVE):
            for link in range(16):
                rows = np.flatnonzero((columns.op == op) & (columns.queue == C2C_QUEUE + link))
                rows = rows[np.argsort(columns.cycle[rows], kind="stable")]
                vectors[chip, link, op] = rows
                if op == Op.SEND:
                    _check_rate(report, rows, spec)
    _match_vectors(reports, vectors, far, spec)
    for report in reports:
        findings += report.findings
    return _ordered(findings)


def _cable_finding(near: tuple[int, int], text: str) -> Finding:
    return Finding("link", near[0], 0, C2C_QUEUE + near[1], "cable", text,
                   "give every link one cable")  # fmt: skip


def _check_rate(report: Report, rows: Ints, spec: ChipSpec) -> None:
    """The j-th vector after the first leaves at least j exact vector times after it."""
    if len(rows) == 0:
        return
    rate = spec.cycles_per_vector
    elapsed = report.columns.cycle[rows] - report.columns.cycle[rows[0]]
    ahead = elapsed * rate.denominator < np.arange(len(rows)) * rate.numerator
    report.add("link", rows[ahead], f"the link carries one vector per {rate} cycles",
               "send later")  # fmt: skip


def _match_vectors(
    reports: list[Report],
    vectors: dict[tuple[int, int, int], Ints],
    far: dict[tuple[int, int], tuple[int, int]],
    spec: ChipSpec,
) -> None:
    delay = spec.send_to_receive_cycles
    for (chip, link, op), rows in vectors.items():
        if len(rows) == 0:
            continue
        report = reports[chip]
        peer = far.get((chip, link))
        sending = op == Op.SEND
        if peer is None or not 0 <= peer[0] < len(reports):
            report.add("link" if sending else "missing", rows, "no cable leads from this link",
                       "use a wired link")  # fmt: skip
            continue
        there = reports[peer[0]].columns
        others = vectors[peer[0], peer[1], Op.RECEIVE if sending else Op.SEND]
        shift = delay if sending else -delay
        expected = report.columns.cycle[rows] + shift
        lost = rows[find(there.cycle[others], expected) < 0]
        place = f"chip {peer[0]} {queue_name(C2C_QUEUE + peer[1])}"
        name = _absent("RECEIVE" if sending else "SEND", place, report.columns.cycle[lost] + shift)
        code = "link" if sending or len(others) else "missing"
        report.add(code, lost, name, f"dispatch the RECEIVE {delay} cycles after its SEND")


def _absent(op: str, place: str, cycles: Ints) -> Callable[[int], str]:
    return lambda i: f"{place} dispatches no {op} at cycle {cycles[i]}"
