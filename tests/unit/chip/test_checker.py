"""The checker: every rule by a minimal legal program and its illegal neighbour."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chip.checker import ERROR, Finding, check
from chip.checker.findings import WARNING
from chip.checker.rules import assert_legal
from chip.faults import ProgramFault
from chip.isa import ALU0, IMM, SELF, AccMode, Op, slice_position
from chip.program import Program, expand, new_blocks
from chip.spec import ChipSpec
from tests.stands.programs_mutated import mutate
from tests.stands.programs_random import random_program

SPEC = ChipSpec()
S2R = SPEC.send_to_receive_cycles
Row = dict[str, Any]


def program(rows: list[Row], gangs: Any = (), maps: Any = ()) -> Program:
    table = new_blocks(len(rows))
    for row, columns in zip(table, rows, strict=True):
        for name, value in columns.items():
            row[name] = value
    return Program(table, list(gangs), list(maps), cycles=1000)


def errors(p: Program) -> list[Finding]:
    return [f for f in check(p, SPEC, chip=3) if f.severity == ERROR]


def changed(rows: list[Row], index: int, **columns: Any) -> list[Row]:
    return [{**row, **columns} if i == index else row for i, row in enumerate(rows)]


def read(cycle: int, queue: int, out: int, a: int = 0, **columns: Any) -> Row:
    return {"cycle": cycle, "queue": queue, "op": Op.READ, "out": out, "wo": 1, "a": a, **columns}


def write(cycle: int, queue: int, s0: int, a: int = 0, **columns: Any) -> Row:
    return {"cycle": cycle, "queue": queue, "op": Op.WRITE, "s0": s0, "w0": 1, "a": a, **columns}


def feed(stream: int, position: int, cycle: int, queue: int, **columns: Any) -> Row:
    """A READ of slice ``queue`` that reaches ``position`` at ``cycle``."""
    at = cycle - SPEC.read_cycles - abs(position - slice_position(queue))
    return read(at, queue, stream, **columns)


# West slices 0..3 lie at position 19, 40..43 at 9; east 44..47 at 25.  E0 reaches 25 after 6.
COPY = [read(0, 0, 0), write(7, 44, 0)]
PAIRED = [*COPY, read(7, 44, 1, a=4096)]


GANGS = [tuple(range(0, 16)), tuple(range(16, 32)), tuple(range(44, 60)), tuple(range(60, 76))]


def gather(cycle: int = 50) -> list[Row]:
    return [
        feed(0, 25, cycle, 0),
        feed(1, 25, cycle, 1),
        {
            "cycle": cycle,
            "queue": 44,
            "op": Op.GATHER,
            "out": 5,
            "wo": 1,
            "s1": 0,
            "w1": 2,
            "a": 0,
            "lo": 0,
            "hi": 7,
        },
    ]


def add(cycle: int = 50) -> list[Row]:
    """E0..E3 plus E4..E7 on ALU 0, out on W0..W3."""
    return [
        *(feed(s, 20, cycle, s) for s in range(8)),
        {
            "cycle": cycle,
            "queue": 88,
            "op": Op.ADD_I32,
            "s0": 0,
            "w0": 4,
            "s1": 4,
            "w1": 4,
            "out": 32,
            "wo": 4,
        },
    ]


#: E0..E3 plus W4..W7, while W0..W3 pass too.
SIDES = [
    *(feed(s, 20, 50, s) for s in range(4)),
    *(feed(32 + s, 24, 50, 44 + s) for s in range(4)),
    {**add()[8], "s1": 36, "out": 0},
    *(feed(36 + s, 24, 50, 50 + s) for s in range(4)),
]


def chain(cycle: int = 50) -> list[Row]:
    return [
        {"cycle": cycle, "queue": 88, "op": Op.MOV, "s0": IMM},
        {"cycle": cycle + 3, "queue": 89, "op": Op.ADD_I32, "s0": ALU0, "s1": IMM},
        {"cycle": cycle + 6, "queue": 88, "op": Op.ADD_I32, "s0": SELF, "s1": IMM},
    ]


def tile(plane: int, cycle: int, groups: int = 2) -> list[Row]:
    """Weights onto a plane: READs, LW, IW."""
    first = 16 * (plane % 2) + (0 if plane >= 2 else 32)
    east = plane >= 2
    source = feed(first, 45 if east else -1, cycle, GANGS[plane][0], gang=plane, dsg=1)
    return [
        {**source, "n1": groups, "dc1": 1},
        {
            "cycle": cycle,
            "queue": 104 + 2 * plane,
            "op": Op.LW,
            "n1": groups,
            "dc1": 1,
            "da1": 1,
            "s0": first,
            "w0": 16,
        },
        {"cycle": cycle + groups, "queue": 104 + 2 * plane, "op": Op.IW, "a": groups},
    ]


def activate(
    plane: int, cycle: int, mode: AccMode, wide: bool = False, stream: int = 8
) -> list[Row]:
    """Activation, ACC and the READs that feed them."""
    east = plane >= 2
    position, streams = (45 if east else -1), stream + (0 if east else 32)
    queue = 105 + 2 * plane
    sources = [
        feed(streams + i, position, cycle, (80 if east else 36) + i, a=9) for i in range(1 + wide)
    ]
    out = (32 if east else 0) + 4
    return [
        *sources,
        {"cycle": cycle, "queue": queue, "op": Op.ABC, "s0": streams, "w0": 1 + wide},
        {
            "cycle": cycle + SPEC.mxm_multiply_cycles,
            "queue": queue,
            "op": Op.ACC,
            "mode": mode,
            "out": out,
            "wo": 4,
        },
    ]


MXM = [*tile(2, 100), *activate(2, 105, AccMode.SET), *activate(2, 107, AccMode.ADD_EMIT)]
PAIR = [*tile(2, 100), *tile(3, 100), *activate(2, 105, AccMode.SET, wide=True)]


def lanes(op: Op, queue: int, s0: int, out: int, width: int = 1, **columns: Any) -> list[Row]:
    """An east SXM operation of eastward streams at cycle 90, fed by slices 0.. (or a gang)."""
    return [
        *(feed(s0 + i, 39, 90, i) for i in range(width)),
        {
            "cycle": 90,
            "queue": queue,
            "op": op,
            "s0": s0,
            "w0": width,
            "out": out,
            "wo": width,
            **columns,
        },
    ]


DISTRIBUTE = [*lanes(Op.DISTRIBUTE, 120, 2, 40, 2, s1=9, w1=1), feed(9, 39, 90, 20)]
TRANSPOSE = lanes(Op.TRANSPOSE, 125, 16, 32, 16)
MAP = np.arange(320, dtype=np.int16)[::-1].copy()
BROKEN_MAP = np.zeros(320, np.int16)
PERMUTE = lanes(Op.PERMUTE, 126, 0, 32)
ROTATE = lanes(Op.ROTATE, 127, 0, 32, imm=3)
SENDS = [{"cycle": t, "queue": 136, "op": Op.SEND, "s0": 0, "w0": 1} for t in (60, 84)]
SENDS += [feed(0, 45, 60, 0), feed(0, 45, 84, 0)]
#: A unary operation of E0..E3 drives E4..E7 seven cycles later, a hop before slice 44.
UNARY = [
    *(feed(s, 20, 50, s) for s in range(4)),
    {"cycle": 50, "queue": 88, "op": Op.MOV, "s0": 0, "w0": 4, "out": 4, "wo": 4},
    write(58, 44, 4),
]
BARRIER = [
    {"cycle": 5, "queue": 0, "op": Op.SYNC},
    {"cycle": 5, "queue": 1, "op": Op.NOTIFY},
    read(40, 0, 0),
]
FAR = [read(0, 40, 0, tag=7), write(17, 44, 0, want0=7)]
WANTED = [read(0, 0, 0, tag=7), write(7, 44, 0, want0=7)]
WANTED_RESULTS = [
    {**row, **tags}
    for row, tags in zip(chain(), ({"tag": 7}, {"want0": 7}, {"want0": 7}), strict=True)
]

#: name: (legal rows, code, illegal rows)
RULES: dict[str, tuple[list[Row], str, list[Row]]] = {
    "queue twice": (COPY, "queue", [*COPY, read(0, 0, 9)]),
    "queue pair": (PAIRED, "queue", changed(PAIRED, 2, op=Op.WRITE, s0=0, out=-1)),
    "queue unit": (COPY, "queue", changed(COPY, 0, queue=90)),
    "queue number": (COPY, "queue", changed(COPY, 0, queue=144)),
    "opcode": (COPY, "queue", changed(COPY, 0, op=77777)),
    "queue mxm": (MXM, "queue", changed(MXM, 1, queue=109)),
    "bank": (PAIRED, "bank", changed(PAIRED, 2, a=17)),
    "in-flight": ([*COPY, read(9, 44, 1)], "in-flight", [*COPY, read(8, 44, 1)]),
    "in-flight window": (
        [*gather(), feed(8, 25, 48, 4), write(48, 44, 8, a=7)],
        "in-flight",
        [*gather(), feed(8, 25, 49, 4), write(49, 44, 8, a=7)],
    ),
    "address": (changed(COPY, 0, a=8191), "bounds", changed(COPY, 0, a=8192)),
    "address repeat": (
        changed(COPY, 0, a=8190, n1=2, dc1=1, da1=1),
        "bounds",
        changed(COPY, 0, a=8190, n1=3, dc1=1, da1=1),
    ),
    "window": (gather(), "bounds", changed(gather(), 2, lo=4090, hi=4096)),
    "stream": (COPY, "bounds", changed(COPY, 0, out=64)),
    "group border": (DISTRIBUTE, "sxm", changed(DISTRIBUTE, 2, out=31)),
    "column group": (MXM, "bounds", changed(MXM, 1, a=19)),
    "install count": (MXM, "bounds", changed(MXM, 2, a=0)),
    "row": (MXM, "bounds", changed(MXM, 5, a=320)),
    "cycle": (COPY, "bounds", changed(COPY, 0, cycle=-1)),
    "repeat": (COPY, "bounds", changed(COPY, 0, n2=0)),
    "gang op": (MXM, "bounds", changed(MXM, 1, gang=0)),
    "gang index": (MXM, "bounds", changed(MXM, 0, gang=4)),
    "align alu": (add(), "align", changed(add(), 8, out=34)),
    "width alu": (add(), "align", changed(add(), 8, wo=3)),
    "no width of s0": (add(), "align", changed(add(), 8, w0=0)),
    "no width of s1": (add(), "align", changed(add(), 8, w1=0)),
    "no width of either side": (SIDES, "align", changed(SIDES, 8, w0=0, w1=0)),
    "align map": (gather(), "align", changed(gather(), 2, s1=3)),
    "align load": (MXM, "align", changed(MXM, 1, s0=1)),
    "align emit": (MXM, "align", changed(MXM, 8, out=38)),
    "rotate border": (ROTATE, "align", changed(ROTATE, 1, out=56)),
    "driver": ([*COPY, read(0, 1, 1)], "driver", [*COPY, read(0, 1, 0)]),
    "missing": (COPY, "missing", changed(COPY, 1, cycle=8)),
    "missing upstream": (COPY, "missing", changed(COPY, 0, queue=44, cycle=6)),
    "missing unary": (UNARY, "missing", changed(UNARY, 5, cycle=57)),
    "missing alu": (chain(), "missing", changed(chain(), 1, cycle=54)),
    "missing self": (chain(), "missing", changed(chain(), 2, cycle=52)),
    "missing abc": (MXM, "missing", changed(MXM, 8, cycle=119)),
    "want": (WANTED, "want", changed(WANTED, 1, want0=8)),
    "want of an ALU": (WANTED_RESULTS, "want", changed(WANTED_RESULTS, 1, want0=8)),
    "want of self": (WANTED_RESULTS, "want", changed(WANTED_RESULTS, 2, want0=8)),
    "want replaced": (FAR, "want", [*FAR, read(10, 0, 0)]),
    "alu row": (add(), "alu", changed(add(), 8, queue=96)),
    "alu sides": (SIDES, "alu", changed(SIDES, 8, s1=32)),
    "reload": ([*MXM, *tile(2, 109)], "mxm", [*MXM, *tile(2, 108)]),
    "reload of one group": (
        [*tile(2, 100, 1), *tile(2, 108, 3)],
        "mxm",
        [*tile(2, 100, 1), *tile(2, 107, 3)],
    ),
    "reload of three groups": (
        [*tile(2, 100, 3), *tile(2, 110, 3)],
        "mxm",
        [*tile(2, 100, 3), *tile(2, 109, 3)],
    ),
    "not loaded": (MXM, "mxm", changed(MXM, 2, a=3)),
    "installing": (MXM, "mxm", changed(MXM, 2, cycle=103)),
    "not installed": (MXM, "mxm", MXM[3:]),
    "fp16 plane": (
        PAIR,
        "mxm",
        [*tile(2, 100), *tile(3, 100), *activate(3, 105, AccMode.SET, wide=True)],
    ),
    "fp16 counts": (
        PAIR,
        "mxm",
        [*tile(2, 100), *tile(3, 99, 3), *activate(2, 105, AccMode.SET, wide=True)],
    ),
    "fp16 busy": (
        [*PAIR, *activate(3, 107, AccMode.SET, stream=12)],
        "mxm",
        [*PAIR, *activate(3, 106, AccMode.SET, stream=12)],
    ),
    "add unset": (MXM, "mxm", changed(MXM, 5, mode=AccMode.ADD)),
    "add type": (
        [*PAIR, *activate(2, 107, AccMode.ADD, wide=True)],
        "mxm",
        [*PAIR, *activate(2, 107, AccMode.ADD)],
    ),
    "distributor": (DISTRIBUTE, "sxm", changed(DISTRIBUTE, 2, queue=121)),
    "distributor width": (DISTRIBUTE, "sxm", changed(DISTRIBUTE, 2, w0=3)),
    "distributor SG8": (DISTRIBUTE, "sxm", changed(DISTRIBUTE, 2, out=47)),
    "transposer": (TRANSPOSE, "sxm", changed(TRANSPOSE, 16, queue=124)),
    "no map": (PERMUTE, "sxm", changed(PERMUTE, 1, imm=2)),
    "no permutation": (PERMUTE, "sxm", changed(PERMUTE, 1, imm=1)),
    "rotate n": (ROTATE, "sxm", changed(ROTATE, 1, imm=5)),
    "spacing": (SENDS, "link", [*changed(changed(SENDS, 1, cycle=83), 3, cycle=57)]),
    "parked": (BARRIER, "sync", changed(BARRIER, 2, cycle=39)),
    "never released": (BARRIER, "sync", changed(BARRIER, 1, cycle=4)),
}


@pytest.mark.parametrize("name", RULES)
def test_rule(name: str) -> None:
    legal, code, illegal = RULES[name]
    assert errors(program(legal, GANGS, [MAP, BROKEN_MAP])) == []
    broken = program(illegal, GANGS, [MAP, BROKEN_MAP])
    found = errors(broken)
    assert code in {f.code for f in found}, [str(f) for f in found]
    first = next(f for f in found if f.code == code)
    assert first.chip == 3 and first.instruction and first.other and first.mend
    assert "\n" not in str(first) and "chip 3" in str(first)
    with pytest.raises(ProgramFault):
        assert_legal(broken, SPEC, chip=3)


def test_finding_names_both_parties() -> None:
    (finding,) = errors(program([*COPY, read(8, 44, 1)]))
    assert (finding.code, finding.cycle, finding.queue) == ("in-flight", 8, 44)
    assert finding.instruction == "READ a=0 out=E1 (block 2)"
    assert "WRITE a=0 s0=E0 (block 1) on mem_e[0] at cycle 7" in finding.other


def test_unused_operands_are_ignored() -> None:
    assert errors(program(changed(chain(), 0, s1=7, w1=3, want1=4))) == []


def test_expansion_is_the_programs() -> None:
    from chip.program import expand_columns

    for seed in range(20):
        p = random_program(np.random.default_rng(seed), SPEC)
        columns, table = expand_columns(p), expand(p)
        order = np.lexsort((columns.op, columns.queue, columns.cycle))
        for name in ("cycle", "queue", "op"):
            assert np.array_equal(getattr(columns, name)[order], table[name])
        for name in ("a", "s0", "out"):
            left = sorted(zip(columns.cycle, columns.queue, getattr(columns, name), strict=True))
            assert left == sorted(zip(table["cycle"], table["queue"], table[name], strict=True))


def test_warnings() -> None:
    unread = program([read(0, 40, 0), read(10, 0, 0), write(17, 44, 0)])
    (finding,) = check(unread, SPEC)
    assert (finding.severity, finding.code, finding.queue) == (WARNING, "overwritten", 40)
    data = np.zeros((88, 8192), np.bool_)
    (finding,) = check(program(COPY), SPEC, initialised=data)
    assert (finding.severity, finding.code, finding.queue) == (WARNING, "uninitialised", 0)
    data[0, 0] = True
    assert check(program([*COPY, read(9, 44, 1)]), SPEC, initialised=data) == []
    assert len(check(program(gather()), SPEC, initialised=data)) == 2


def test_malformed_tables() -> None:
    assert check(program([]), SPEC) == []
    endless = changed(COPY, 0, n1=2**31 - 1, n2=2**31 - 1)
    assert {f.code for f in check(program(endless), SPEC)} == {"bounds", "missing"}
    assert "bounds" in {f.code for f in check(program(changed(COPY, 0, gang=-2)), SPEC)}
    assert "bounds" in {f.code for f in check(program(changed(COPY, 0, gang=0), [()]), SPEC)}
    assert "bounds" in {f.code for f in check(program(changed(COPY, 0, gang=0), [(99,)]), SPEC)}
    wild = changed(COPY, 0, a=2**31 - 1, n1=3, da1=2**31 - 1, cycle=2**40, dc1=2**31 - 1)
    assert "bounds" in {f.code for f in check(program(wild), SPEC)}


@pytest.mark.long
def test_mutants_are_noticed() -> None:
    """Most single edits of a tagged program break a rule; all findings are complete."""
    rejected = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        mutant = mutate(rng, random_program(rng, SPEC), SPEC)
        found = [f for f in check(mutant, SPEC, chip=0) if f.severity == ERROR]
        rejected += bool(found)
        for f in found:
            assert f.code and f.instruction and f.other and f.mend and f.chip == 0
    assert rejected >= 50
