"""What the chip's layer refuses, in its own words: programs beyond the limits, specs, planes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chip.encoding import AssemblyError, assemble, assembly
from chip.encoding.instruction_words import encode
from chip.engine import Chip, Rings, run_chips
from chip.faults import ProgramFault
from chip.isa import AccMode, Op
from chip.linking import link
from chip.linking.static import check_blocks
from chip.numerics import split_f16
from chip.program import Program, ProgramLimitError, new_blocks, validate_program
from chip.program import limits as program_limits
from chip.reference.mxm import Plane, multiply
from chip.scheduling import CompileError, Pass, Schedule
from chip.spec import ChipSpec, SpecError, field_source, load_chip_spec

SPEC = ChipSpec()
MAP = np.arange(320, dtype=np.int16)


def one(**columns: int) -> Program:
    """A program of one READ with other columns."""
    table = new_blocks(1)
    table["op"], table["out"], table["wo"] = Op.READ, 0, 1
    for name, value in columns.items():
        table[name] = value
    return Program(table, [], [], 100)


# --- programs beyond the limits -------------------------------------------------------------------

LIMITS: dict[str, tuple[Callable[[], Program], str]] = {
    "gang": (lambda: Program(new_blocks(1), [()]), "gang 0 is no tuple of 1..88 queues"),
    "member": (lambda: Program(new_blocks(1), [(3, 88)]), "gang 0 holds 88; only MEM queues 0..87"),
    "map": (lambda: Program(new_blocks(1), [], [MAP[:9]]), "map 0 is no int16 array of 320 lanes"),
    "lane": (lambda: Program(new_blocks(1), [], [MAP, MAP + 1]), "map 1 names a lane outside"),
    "cycles": (lambda: Program(new_blocks(1), [], [], True), "the launch's cycles are no integer"),
    "span": (lambda: Program(new_blocks(1), [], [], -1), r"cycles is -1; keep it within 0\.\."),
    "column": (lambda: one(queue=144), r"queue is 144; keep it within 0\.\.143"),
    "table": (lambda: Program(np.zeros(3)), "the blocks are no one-dimensional table"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_programs_that_no_file_holds(name: str) -> None:
    make, says = LIMITS[name]
    with pytest.raises(ProgramLimitError, match=says):
        validate_program(make())


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("MAX_BLOCKS", "3 blocks; use repeats to stay within 2"),
        ("MAX_GANGS", "3 gangs; keep them within 2"),
        ("MAX_MAPS", "3 maps; keep them within 2"),
    ],
)
def test_too_many_of_anything(monkeypatch: pytest.MonkeyPatch, limit: str, says: str) -> None:
    program = Program(new_blocks(3), [(0,), (1,), (2,)], [MAP, MAP, MAP])
    program.blocks["op"] = Op.READ
    monkeypatch.setattr(program_limits, limit, 3)
    validate_program(program)
    monkeypatch.setattr(program_limits, limit, 2)
    with pytest.raises(ProgramLimitError, match=says):
        validate_program(program)


def test_too_many_single_instructions() -> None:
    """2^15 by 2^13 repeats are 2^28; the loader and the static check take up to 2^27."""
    endless = one(n1=1 << 15, n2=1 << 13, dc1=1, dc2=1 << 15)
    for refuse in (lambda: link(endless, SPEC), lambda: check_blocks(endless, SPEC)):
        with pytest.raises(ProgramFault, match="268435456 instructions: at most"):
            refuse()


# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("5: mem_w[0] READ a=1 out=Q4 wo=1", r"out is 'Q4'; use E0\.\.E31, W0\.\.W31 or -"),
        ("5: alu[0] MOV s0=alu16", r"W0\.\.W31, alu0\.\.alu15, self, imm or -"),
        (".map 0 1-4", "map has 4 lanes; list all 320"),
        (".map 0 0-319,0-319", "a list of more than 320; shorten it"),
        ("5: mem_w[0-43]+mem_e[0-43]+mem_w[0] READ a=1 out=E4", "a gang of 89; keep it within"),
        ("# " + "x" * 10_000, "10002 characters; keep a line within 10000"),
    ],
)
def test_lines_that_are_refused(line: str, says: str) -> None:
    with pytest.raises(AssemblyError, match=says):
        assemble(line)


def test_gangs_are_what_was_declared() -> None:
    with pytest.raises(AssemblyError, match=r"gang 0 is not .*; declare it with \.gang"):
        assemble(".gang 0 mem_e[3]\n5: mem_w[0-3] READ gang=0 a=1 out=E4 wo=1")


@pytest.mark.parametrize(
    ("limit", "text", "says"),
    [
        ("MAX_BLOCKS", "5: mem_w[0] READ a=1 out=E4 wo=1\n" * 3, "more than 2 blocks; use repeats"),
        (
            "MAX_GANGS",
            "".join(f"{i}: mem_w[{i}-9] READ a=1 out=E4 wo=1\n" for i in range(3)),
            "more than 2 gangs; share equal ones",
        ),
        ("MAX_MAPS", "".join(f".map {i} 0-319\n" for i in range(3)), "more than 2 of .*; share"),
    ],
)
def test_texts_that_are_too_long(
    monkeypatch: pytest.MonkeyPatch, limit: str, text: str, says: str
) -> None:
    monkeypatch.setattr(assembly, limit, 2)
    with pytest.raises(AssemblyError, match=says):
        assemble(text)


def test_a_field_of_an_instruction_word_that_is_too_large() -> None:
    with pytest.raises(ValueError, match=r"a = 16777216 does not fit the .* bits of its field"):
        encode(one(a=1 << 24))


# --- specs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"lanes": 256}, "chip.lanes is 256: the instruction set fixes it at 320"),
        ({"hop_cycles": 2**20 + 1}, "chip.hop_cycles is larger: use 1048576 or less"),
        ({"reserved_slices_west": (1, 1)}, r"reserved_slices_west: list different slices of 0\."),
        ({"reserved_slices_east": (44,)}, r"reserved_slices_east: list different slices of 0\."),
        ({"hop_cycles": 230}, "leaves no time beyond the wire: raise hop_cycles"),
    ],
)
def test_specs_that_cannot_be(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        ChipSpec(**fields)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[chip]\nbase = 'lpu-9'", "chip.base 'lpu-9' is not one of groq-lpu-1, groq-3-lp30"),
        ("[chip]\nhop_cycles = 1.5", "chip.hop_cycles must be int, not float"),
        ("[chip]\nreserved_slices_west = ['a']", "must be a list of whole numbers"),
        ("chip = 3", "chip is no table; put the fields under"),
        ("[chip]\nlane = 3", "chip.lane is no field; known: name"),
    ],
)
def test_spec_files_that_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "chip.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=says):
        load_chip_spec(path)


def test_a_field_without_a_source() -> None:
    with pytest.raises(SpecError, match=r"chip.colour is no field; known: name, clock_hz"):
        field_source("groq-lpu-1", "colour")


# --- planes of the reference, the scheduler, and a chip that was not begun ------------------------


def plane_with(*installs: tuple[int, int]) -> Plane:
    """A plane and its installs (cycle, column groups), loaded just before."""
    plane = Plane(SPEC)
    for cycle, groups in installs:
        plane.first_load = None
        for group in range(groups):
            plane.load(cycle - groups + group, group, np.ones((16, 320), np.uint8))
        plane.install(cycle, groups)
    return plane


def test_the_reference_names_what_a_plane_lacks() -> None:
    activation = np.ones((1, 320), np.uint8)
    with pytest.raises(Exception, match="nothing is installed"):
        plane_with().in_force(50)
    with pytest.raises(Exception, match="the install of cycle 50 is under way"):
        plane_with((50, 2)).in_force(51)
    assert plane_with((50, 2)).in_force(53)[0] == 2
    with pytest.raises(Exception, match="the two planes are installed with different group counts"):
        multiply([plane_with((50, 2)), plane_with((50, 3))], 60, activation.repeat(2, 0))
    plane = plane_with((50, 2))
    plane.occupy(60, 3)
    with pytest.raises(Exception, match=r"the plane is busy until cycle 6[0-9]"):
        plane.occupy(61, 1)
    plane.load(70, 0, np.ones((16, 320), np.uint8))
    with pytest.raises(Exception, match="the next load may start at cycle 78"):
        plane.load(77, 0, np.ones((16, 320), np.uint8))


def test_the_reference_names_what_an_accumulator_lacks() -> None:
    plane = plane_with((50, 2))
    with pytest.raises(Exception, match="no ABC was dispatched 13 cycles earlier"):
        plane.accumulate(90, 0, AccMode.SET)
    plane.products[90] = (None, np.ones(320, np.int32))  # type: ignore[assignment]
    with pytest.raises(Exception, match="row 7 holds no int32 to add to"):
        plane.accumulate(90, 7, AccMode.ADD)


def test_a_pass_has_sixteen_alus() -> None:
    p = Pass(Schedule(), SPEC)
    with pytest.raises(CompileError, match="a VXM pass needs an ALU that reaches stream groups"):
        for _ in range(17):
            p.pick(0)


def test_a_chip_runs_what_it_has_begun() -> None:
    with pytest.raises(RuntimeError, match=r"run before Chip\.begin: begin a launch first"):
        run_chips([Chip(SPEC, 0)], Rings.allocate(1))


def test_infinities_and_nan_have_no_digits() -> None:
    """The split of fp16: 2^20 h + l in units of 2^-24, zero where there is no number."""
    values = np.array([1.0, np.inf, -np.inf, np.nan, -65504.0], np.float16)
    found = split_f16(values.view(np.uint16)[:, None])
    assert found.h.reshape(-1).tolist() == [16, 0, 0, 0, -1048064]
    assert found.l.reshape(-1).tolist() == [0] * 5
    assert found.bad.tolist() == [False, True, True, True, False]
