"""The static checker: proves a program legal before it runs.

Knows every rule of ``docs/machine.md`` except the run-time rule ``offset``; executes nothing and
sees no data.  Works on the expansion as columns (:mod:`chip.program.columns`), vectorised: each
rule is a mask, a sort with neighbour comparison or a binary search.  One program at a time: that
the programs of wired chips fit each other is proven where the cables are known, in
``interconnect``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from chip.checker.findings import ERROR, CheckReport, Finding
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
    unit_mismatch,
)
from chip.faults import ProgramFault
from chip.isa import Op
from chip.program import Bools, Columns, Program, expand_columns
from chip.spec import ChipSpec


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
    report = CheckReport(everything, chip)
    _report_blocks(everything, report)
    wrong = unit_mismatch(everything)
    report.add(
        "queue",
        np.flatnonzero(wrong),
        "the operation belongs to another unit's queue",
        "dispatch it on a queue of its own unit",
    )
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
                code=finding.code,
                chip=-1 if chip is None else chip,
                cycle=finding.cycle,
                queue=finding.queue,
                message=f"{finding.instruction}: {finding.other}; {finding.mend}",
            )


def _ordered(findings: list[Finding]) -> list[Finding]:
    unique = dict.fromkeys(findings)
    return sorted(
        unique,
        key=lambda f: (
            f.severity != ERROR,
            -1 if f.chip is None else f.chip,
            f.cycle,
            f.queue,
            f.code,
        ),
    )


def _only(c: Columns, keep: Bools) -> Columns:
    return replace(
        c,
        block=c.block[keep],
        cycle=c.cycle[keep],
        queue=c.queue[keep],
        op=c.op[keep],
        a=c.a[keep],
        s0=c.s0[keep],
        out=c.out[keep],
    )


def _report_blocks(c: Columns, report: CheckReport) -> None:
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
            Finding(
                "bounds",
                report.chip,
                int(block["cycle"]),
                int(block["queue"]),
                f"{name} (block {index})",
                reason,
                "correct the block's repeat counts or gang",
                block=index,
            )
        )
