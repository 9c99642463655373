"""The checker passes what the reservation table places, which is all that the machine allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import pytest

from chip import isa
from chip.checker import check
from chip.isa import Op
from chip.program import expand
from chip.scheduling import (
    Alu,
    CompileError,
    Pass,
    Place,
    ScatterWindow,
    Schedule,
    Self,
    Symbol,
    place_together,
    program_of,
    relocate,
)
from chip.spec import ChipSpec

SPEC = ChipSpec()
WORDS = SPEC.words_per_bank
WEST, EAST = tuple(range(40)), tuple(range(44, 84))
#: Words that are read are never written: a read too close behind a write is a kernel's business.
READ, WRITTEN = range(100), range(200, 300)


def random_place(rng: np.random.Generator, words: Sequence[int]) -> Place:
    """Four slices of one hemisphere, at a fixed word, or at a symbol of one bank or of any."""
    side = (WEST, EAST)[rng.integers(2)]
    queues = tuple(sorted(rng.choice(side, 4, replace=False).tolist()))
    if rng.integers(2):
        queues = tuple(range(queues[0] // 4 * 4, queues[0] // 4 * 4 + 4))
    bank, word = int(rng.integers(2)), int(rng.choice(words))
    symbols = [None, Symbol("low", 1), Symbol("high", 2), Symbol("any")]
    symbol = symbols[rng.integers(4)]
    return Place(queues, word + bank * WORDS * (symbol is None), symbol)


def random_pass(schedule: Schedule, rng: np.random.Generator) -> Pass:
    """Some words through two or three ALUs, one of which may wait, to another place."""
    p = Pass(schedule, SPEC)
    t, n, dc = 60, int(rng.integers(1, 30)), int(rng.integers(1, 4))
    source, target = random_place(rng, READ), random_place(rng, WRITTEN)
    group = int(rng.integers(8))
    to = (group + int(rng.choice([1, 2, 3]))) % 8
    shape = {"n": n, "dc": dc}
    value = p.load(source, source.inward + 4 * group, t, da=int(rng.integers(2)), **shape)
    first, _ = p.op(Op.ADD_F32, t, value, imm=1.0, **shape)
    alu = p.pick(4 * to)
    if n > 1 and rng.integers(2):  # the sum of all, taken from the ALU by itself
        p.op(Op.MOV, t + 3, first, alu=alu)
        if dc < 3:
            return random_pass(schedule, rng)
        p.op(Op.ADD_F32, t + 6, Alu(first.number), Self(), alu=alu, n=n - 1, dc=3)
        p.hold_alu(alu, t + 4, t + 3 + 3 * n)
        _, out = p.op(Op.MOV, t + 6 + 3 * n, Self(), alu=alu, out=target.outward + 4 * to)
        p.keep(target, out, t + 6 + 3 * n)
        return p
    _, out = p.op(Op.MUL_F32, t + 3, first, imm=2.0, alu=alu, out=target.outward + 4 * to, **shape)
    p.keep(target, out, t + 3, n=n, dc=dc)
    return p


@pytest.mark.parametrize("seed", range(6))
def test_what_is_placed_is_legal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    schedule = Schedule()
    for _ in range(40):
        p = random_pass(schedule, rng)
        with suppress(ValueError):  # its target may be on a slice that it reads
            schedule.place(p, int(rng.integers(0, 60)))
    table, symbols, gangs = schedule.blocks()
    assert len(table) > 60 and any(symbols)
    for anywhere in (0, WORDS, WORDS - 250):  # the last: a layer's words in both banks
        bases = {Symbol("low"): 0, Symbol("high"): WORDS, Symbol("any"): anywhere}
        moved = relocate(table, symbols, bases, 0)
        assert check(program_of([moved], gangs, 4000), SPEC) == []


def copy_pass(schedule: Schedule, source: Place, target: Place, group: int, to: int) -> Pass:
    """Ten words from place to place in ten cycles, by named stream groups."""
    p = Pass(schedule, SPEC)
    value = p.load(source, source.inward + 4 * group, 60, n=10, da=1)
    _, out = p.op(Op.MOV, 60, value, n=10, out=target.outward + 4 * to)
    p.keep(target, out, 60, n=10)
    return p


NEAR, FAR, OTHER = (44, 45, 46, 47), (60, 61, 62, 63), (0, 1, 2, 3)
#: What a copy to word 0 of NEAR writes in the cycles in which it has taken word 0 of it.
READ_LATER = 60 - SPEC.read_cycles


@pytest.mark.parametrize(
    ("address", "symbol", "together"),
    [
        (WORDS, None, True),
        (10, None, False),
        (0, Symbol("there", 2), True),
        (0, Symbol("there"), False),
    ],
)
def test_a_slice_reads_one_bank_while_it_writes_the_other(
    address: int, symbol: Symbol | None, together: bool
) -> None:
    schedule = Schedule()
    writes = copy_pass(schedule, Place(OTHER, 0), Place(NEAR, 0), 0, 1)
    reads = copy_pass(schedule, Place(NEAR, address, symbol), Place(OTHER, 20), 2, 3)
    at = {
        op: [b["cycle"] for b in p.blocks if b["op"] == op]
        for op, p in ((Op.WRITE, writes), (Op.READ, reads))
    }
    start = schedule.place(writes, 0)
    wanted = start + at[Op.WRITE][0] - at[Op.READ][0]
    assert (schedule.place(reads, wanted) == wanted) is together


def test_a_stream_carries_two_values_on_different_parts_of_its_way() -> None:
    schedule = Schedule()
    stored = copy_pass(schedule, Place(OTHER, 0), Place(NEAR, 0), 0, 1)
    start = schedule.place(stored, 0)
    outward = Pass(schedule, SPEC)  # weights, say: from further out to the edge on the same stream
    driven = outward.load(Place(FAR, 0), 4, 60, isa.MXM_QUEUE + 4, n=10, da=1)
    assert driven.code == 4
    at = outward.blocks[0]["cycle"] + SPEC.read_cycles - isa.slice_position(FAR[0])
    meant = start + stored.driven(60) - 24 - at  # the same diagonals
    assert schedule.place(outward, meant) == meant
    near = Pass(schedule, SPEC)  # but not from within what the first value passes
    near.load(Place((44, 45, 46, 47), 300), 4, 60, isa.MXM_QUEUE + 4, n=10, da=1)
    assert schedule.place(near, meant) > meant


def test_passes_that_ask_for_the_same_alu_take_different_ones() -> None:
    schedule = Schedule()
    places = [Place(tuple(range(q, q + 4)), 0) for q in (0, 4, 8, 12)]
    passes = [
        copy_pass(schedule, place, Place(EAST[4 * i :][:4], 0), i % 2, 3)
        for i, place in enumerate(places)
    ]
    assert {b["queue"] for p in passes for b in p.blocks if b["op"] == Op.MOV} == {isa.VXM_QUEUE}
    starts = [schedule.place(passes[0], 0), schedule.place(passes[1], 1)]
    assert starts[1] - starts[0] <= 10  # one stream takes both results, one behind the other
    table, _, gangs = schedule.blocks()
    assert check(program_of([table], gangs, 400), SPEC) == []


def test_alus_make_way_for_each_other() -> None:
    """An ALU with one choice gets it, though one with four had picked it."""
    schedule = Schedule()
    blocker = Pass(schedule, SPEC)
    for alu in range(1, 4):
        blocker.hold_alu(alu, 0, 200)
    blocker.op(Op.MOV, 0, Self(), alu=1)
    start = schedule.place(blocker, 0)
    p = Pass(schedule, SPEC)
    wide = p.load(Place(OTHER, 0), 8, 60, n=2)  # group 2: rows 0, 1
    a, _ = p.op(Op.MOV, 60, wide, n=2)
    narrow = p.load(Place((8, 9, 10, 11), 0), 0, 63, n=2)  # groups 0 and 1: row 0 alone
    _, out = p.op(Op.ADD_F32, 63, narrow, a, n=2, out=36)
    p.keep(Place((12, 13, 14, 15), 0), out, 63, n=2)
    assert schedule.place(p, start) == start
    table, _, gangs = schedule.blocks()
    rows = expand(program_of([table], gangs, 400))
    used = {int(q) - isa.VXM_QUEUE for q in rows["queue"] if isa.VXM_QUEUE <= q < isa.MXM_QUEUE}
    assert 0 in used and used & {4, 5, 6, 7}


def test_a_pass_names_what_it_takes_twice() -> None:
    schedule = Schedule()
    p = Pass(schedule, SPEC)
    p.op(Op.MOV, 7, Self(), alu=3)
    p.op(Op.MOV, 7, Self(), alu=3)
    with pytest.raises(ValueError, match=r"a group takes one resource twice: row 91, cycle 7"):
        schedule.place(p, 0)
    with pytest.raises(CompileError, match="a VXM pass needs an ALU"):
        p.pick(0, 4, 8, 12, 16)


@pytest.mark.parametrize(
    ("held", "resource"),
    [
        (lambda p: p.hold_buffer(2, 0, 40), "buffer of plane 2"),
        (lambda p: p.hold_plane(3, 0, 40), "plane 3"),
        (lambda p: [p.hold_alu(alu, 0, 40) for alu in range(16)], "issue of alu[5]"),
        (lambda p: p.emit(Op.READ, 0, 0, n=41, place=Place((44,), 0), out=36), "issue of mem_e[0]"),
        (
            lambda p: p.emit(Op.WRITE, 0, 0, n=41, place=Place((44,), 0), s0=4),
            "port of mem_e[0], bank 0",
        ),
        (lambda p: p.emit(Op.ACC, isa.MXM_QUEUE + 5, 0, n=41), "accumulators of plane 2"),
        (lambda p: p.drive(36, 1, np.arange(-24, 90), 45, 24), "stream W4, east near slices"),
    ],
)
def test_a_watched_table_says_who_had_what(held: Callable[[Pass], object], resource: str) -> None:
    schedule = Schedule(watched=True)
    first = Pass(schedule, SPEC)
    held(first)
    first.op(Op.MOV, 30, Self(), alu=0)
    schedule.place(first, 0, "first")
    p = Pass(schedule, SPEC)
    value = p.load(Place((44, 45, 46, 47), 0), 36, 8)
    p.op(Op.MOV, 8, value, alu=5)
    p.hold_buffer(2, 0, 0)
    p.hold_plane(3, 0, 0)
    p.emit(Op.ACC, isa.MXM_QUEUE + 5, 0)
    start = schedule.place(p, 0, "second")
    placed = schedule.passes[-1]
    assert (placed.name, placed.start) == ("second", start) and start > placed.wanted
    wait = placed.waits[0]
    assert (wait.resource, wait.holder) == (resource, "first")
    assert sum(one.cycles for one in placed.waits) == start - placed.wanted
    assert Schedule().passes == []


@pytest.mark.parametrize("far", [(56, 57, 58, 59), (60, 61, 62, 63)])
def test_offsets_keep_their_streams_as_far_as_the_last_slice(far: tuple[int, ...]) -> None:
    """A Scatter and a Gather of slices at two distances: nobody drives the streams between."""
    target = Place((44, 45, *far[:2]), 0)
    for scatters in (True, False):
        schedule = Schedule()
        p = Pass(schedule, SPEC)
        if scatters:
            _, out = p.op(Op.MOV, 60, imm=1.0, x=Self(), out=4, width=4)
            driven, border = p.driven(60), isa.drive_position(isa.VXM_QUEUE, 4)
            at = driven + target.position - border
            window = ScatterWindow(p.load(Place((44,), 900), 16, at, 44), 7)
            p.store(target, out, driven, border, window=window)
        else:
            at = p.gathered(target, 4, 100, isa.MXM_QUEUE + 4)
            window = ScatterWindow(p.load(Place((44,), 900), 16, at, 44), 7)
            p.gather(target, 4, 100, window, isa.MXM_QUEUE + 4)
        start = schedule.place(p, 0)
        between = Pass(schedule, SPEC)
        between.load(Place((52,), 7), 16, 60, isa.MXM_QUEUE + 4)
        way = isa.slice_position(52) - isa.slice_position(44)
        meant = start + at + way - between.blocks[0]["cycle"] - SPEC.read_cycles
        assert schedule.place(between, meant) > meant


def legal_pass(schedule: Schedule, rng: np.random.Generator) -> Pass:
    """A random pass that takes nothing twice."""
    while True:
        with suppress(ValueError):
            p = random_pass(schedule, rng)
            p.claim()
            return p


@pytest.mark.parametrize("seed", range(2))
def test_passes_of_several_chips_begin_together(seed: int) -> None:
    """Where the first cycle is that all chips have free, and others go on from a chip's fork."""
    rng = np.random.default_rng(seed)
    schedules = [Schedule() for _ in range(3)]
    for schedule in schedules:
        for _ in range(6):
            schedule.place(legal_pass(schedule, rng), int(rng.integers(100)))
    passes = [(schedule, legal_pass(schedule, rng)) for schedule in schedules]
    before, counts = [schedule.fork() for schedule in schedules], [len(s) for s in schedules]
    start = place_together(passes, 10)
    for cycle in range(max(10, start - 50), start):
        assert any(s.free(p, cycle) > cycle for s, (_, p) in zip(before, passes, strict=True))
    for schedule, other, count, (_, p) in zip(schedules, before, counts, passes, strict=True):
        assert other.free(p, start) == start < schedule.free(p, start)
        assert len(other) == count and len(schedule) == count + len(p.blocks)
        table, symbols, _ = schedule.blocks(count)
        assert len(table) == len(symbols) == len(p.blocks)
        assert table["cycle"].min() >= start + min(block["cycle"] for block in p.blocks)
        assert other.tag() == schedule.fork().tag()
