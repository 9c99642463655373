"""SRAM is as deep as the spec says: for the reference, the engine and the checker alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from chip.checker import ERROR, check
from chip.engine import Chip, Status
from chip.faults import ProgramFault
from chip.isa import MAX_WORDS_PER_BANK, Op, slice_position
from chip.linking import link
from chip.program import Program, new_blocks
from chip.reference import ReferenceChip
from chip.spec import PRESETS, ChipSpec
from tests.stands.unit_bench import offsets, vector

DEFAULT = ChipSpec()
DEPTHS = (64, 4096, 8878, MAX_WORDS_PER_BANK)
SLICE, FAR = 48, 17_000

Row = dict[str, int]


def program(*rows: Row) -> Program:
    blocks = new_blocks(len(rows))
    for block, row in zip(blocks, rows, strict=True):
        for name, value in row.items():
            block[name] = value
    return Program(blocks)


def read(cycle: int, queue: int, a: int, out: int) -> Row:
    """Drives E``out`` so that it passes ``SLICE`` at ``cycle`` (its own position excluded)."""
    at = cycle - 1 - slice_position(SLICE) + slice_position(queue)
    return {"cycle": at, "queue": queue, "op": Op.READ, "a": a, "out": out, "wo": 1}


def write(cycle: int, a: int, s0: int) -> Row:
    return {"cycle": cycle, "queue": SLICE, "op": Op.WRITE, "a": a, "s0": s0, "w0": 1}


def mapped(op: Op, cycle: int, a: int, lo: int, hi: int) -> Row:
    """GATHER to E8 or SCATTER of E0, map on E2 and E3."""
    row = {"cycle": cycle, "queue": SLICE, "op": op, "a": a, "lo": lo, "hi": hi, "s1": 2, "w1": 2}
    return row | ({"out": 8, "wo": 1} if op == Op.GATHER else {"s0": 0, "w0": 1})


def everything(base: int, top: int) -> Program:
    """WRITE and READ of word ``base``, SCATTER to and GATHER from words base+1..top of a slice."""
    maps = [read(t, 1 + i, 5, 2 + i) for t in (90, 120) for i in (0, 1)]
    last = 60
    return program(
        read(30, 0, 5, 0),
        write(30, base, 0),
        {"cycle": 40, "queue": SLICE, "op": Op.READ, "a": base, "out": 4, "wo": 1},
        {
            "cycle": 41 + slice_position(last) - slice_position(SLICE),
            "queue": last,
            "op": Op.WRITE,
            "a": base + 1,
            "s0": 4,
            "w0": 1,
        },
        *maps,
        read(90, 0, 5, 0),
        mapped(Op.SCATTER, 90, base + 1, base + 1, top),
        mapped(Op.GATHER, 120, base + 1, base + 1, top),
        {
            "cycle": 121 + slice_position(last) - slice_position(SLICE),
            "queue": last,
            "op": Op.WRITE,
            "a": top,
            "s0": 8,
            "w0": 1,
        },
    )


def run_reference(p: Program, spec: ChipSpec) -> ProgramFault | None:
    try:
        ReferenceChip(spec).run(p)
    except ProgramFault as fault:
        return fault
    return None


def run_engine(p: Program, spec: ChipSpec) -> ProgramFault | None:
    try:
        link(p, spec)
    except ProgramFault as fault:
        return fault
    return None


def run_checker(p: Program, spec: ChipSpec) -> ProgramFault | None:
    for finding in check(p, spec):
        if finding.severity == ERROR:
            text = f"{finding.other}; {finding.mend}"
            return ProgramFault(finding.code, finding.cycle, finding.queue, text)
    return None


Reader = Callable[[Program, ChipSpec], ProgramFault | None]
READERS = pytest.mark.parametrize("reader", [run_reference, run_engine, run_checker])


@pytest.mark.parametrize(
    ("spec", "base", "top"),
    [
        (PRESETS["groq-3-lp30"], FAR, 17_755),
        (replace(DEFAULT, words_per_bank=8878), FAR, 17_755),
        (replace(DEFAULT, words_per_bank=8878), 5_000, 8_877),
        (replace(DEFAULT, words_per_bank=MAX_WORDS_PER_BANK), 30_000, 32_767),
        (replace(DEFAULT, words_per_bank=64), 64, 127),
        (DEFAULT, 4_096, 8_191),
    ],
)
def test_write_read_scatter_and_gather_reach_every_word(
    spec: ChipSpec, base: int, top: int
) -> None:
    """Both executors, the same bytes, cycles and digest; the last word included."""
    p = everything(base, top)
    assert [f for f in check(p, spec) if f.severity == ERROR] == []
    reference, engine = ReferenceChip(spec, 3), Chip(spec, 3)
    steps = np.linspace(0, top - base - 1, 20).astype(np.int64)
    for sram in (reference.sram, engine.sram):
        assert sram.shape == (88, spec.words_per_slice, 320) and sram.nbytes == spec.sram_bytes
        sram[0, 5] = vector(1)
        sram[1, 5], sram[2, 5] = offsets(steps)
    result = reference.run(p, 7)
    engine.begin(link(p, spec), 7)
    assert engine.run() == Status.DONE
    assert result.cycles == engine.retired_cycles
    assert result.digest_sums == tuple(int(s) for s in engine.digest_sums)
    for sram in (reference.sram, engine.sram):
        assert (sram[SLICE, base] == vector(1)).all() and (sram[60, base + 1] == vector(1)).all()
        for k, step in enumerate(steps):
            lanes = slice(16 * k, 16 * k + 16)
            assert (sram[SLICE, base + 1 + step, lanes] == vector(1)[lanes]).all()
        assert (sram[60, top] == vector(1)).all()
    for queue in (0, SLICE, 60):
        assert np.array_equal(reference.sram[queue], engine.sram[queue])


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_run_without_data_is_a_run_of_zeros(depth: int) -> None:
    """The same words of the same slices in the digest, whether or not they are moved."""
    spec = replace(DEFAULT, words_per_bank=depth)
    linked = link(program(read(30, 0, depth, 0), write(30, 2 * depth - 1, 0)), spec)
    chips = [Chip(spec, 3, data=data) for data in (True, False)]
    for chip in chips:
        chip.begin(linked, 0)
        assert chip.run() == Status.DONE
    assert chips[0].digest_sums.any()
    assert (chips[0].digest_sums == chips[1].digest_sums).all()


@READERS
def test_a_program_for_a_deeper_sram_is_refused(reader: Reader) -> None:
    p = everything(FAR, 17_755)
    assert reader(p, PRESETS["groq-3-lp30"]) is None
    for depth in (1, 4_096, 8_877):
        fault = reader(p, replace(DEFAULT, words_per_bank=depth))
        assert fault is not None and fault.code == "bounds"
        assert str(2 * depth - 1) in str(fault) or "window" in str(fault)


@READERS
@pytest.mark.parametrize("depth", DEPTHS)
def test_bounds_are_the_specs(reader: Reader, depth: int) -> None:
    """Addresses end with the slice, windows with the bank, and messages say where."""
    spec = replace(DEFAULT, words_per_bank=depth)
    last = 2 * depth - 1

    def code(*rows: Row) -> str:
        fault = reader(program(*rows), spec)
        return "" if fault is None else fault.code

    assert code(read(30, 0, last, 0)) == ""
    assert code(read(30, 0, depth, 0), write(30, last, 0)) == ""
    fault = reader(program(read(30, 0, last + 1, 0)), spec)
    assert fault is not None and fault.code == "bounds" and f"{last}" in str(fault)
    assert code(read(30, 0, 0, 0), write(30, last + 1, 0)) == "bounds"
    maps = (read(30, 1, 0, 2), read(30, 2, 0, 3))
    assert code(*maps, mapped(Op.GATHER, 30, 0, 0, depth - 1)) == ""
    assert code(*maps, mapped(Op.GATHER, 30, depth, depth, last)) == ""
    assert code(*maps, mapped(Op.GATHER, 30, depth, depth - 1, depth)) == "bounds"
    assert code(*maps, mapped(Op.GATHER, 30, depth, depth, last + 1)) == "bounds"


@READERS
@pytest.mark.parametrize("depth", DEPTHS)
def test_the_border_between_banks_is_the_specs(reader: Reader, depth: int) -> None:
    """A slice reads and writes in one cycle when ``words_per_bank`` lies between the words."""
    spec = replace(DEFAULT, words_per_bank=depth)
    for first, second, code in (
        (0, depth, ""),
        (depth - 1, depth, ""),
        (2 * depth - 1, depth - 1, ""),
        (0, depth - 1, "bank"),
        (depth, 2 * depth - 1, "bank"),
    ):
        here = {"cycle": 30, "queue": SLICE, "op": Op.READ, "a": first, "out": 9, "wo": 1}
        fault = reader(program(read(30, 0, 3, 0), write(30, second, 0), here), spec)
        assert code == ("" if fault is None else fault.code), (first, second)


def test_words_in_flight_and_never_written_are_named_in_a_deep_slice() -> None:
    spec = PRESETS["groq-3-lp30"]
    soon = {"cycle": 31, "queue": SLICE, "op": Op.READ, "a": FAR, "out": 9, "wo": 1}
    p = program(read(30, 0, 5, 0), write(30, FAR, 0), soon)
    for reader in (run_reference, run_engine, run_checker):
        fault = reader(p, spec)
        assert fault is not None and (fault.code, fault.cycle) == ("in-flight", 31)
    assert f"word {FAR} is still" in str(run_engine(p, spec))
    data = np.zeros((88, spec.words_per_slice), np.bool_)
    late = program(read(30, 0, FAR, 0), write(30, FAR, 0), {**soon, "cycle": 32})
    found = check(late, spec, initialised=data)
    assert [(f.code, f.queue) for f in found] == [("uninitialised", 0)]
    data[0, FAR] = True
    assert check(late, spec, initialised=data) == []


def test_a_program_linked_for_another_spec_does_not_begin() -> None:
    linked = link(program(read(30, 0, 5, 0)), PRESETS["groq-3-lp30"])
    with pytest.raises(ValueError, match=r"linked for chip spec 'groq-3-lp30', chip 4 is another"):
        Chip(DEFAULT, 4).begin(linked, 0)
