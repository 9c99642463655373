""".data: the bytes that come to lie in SRAM, written back, and refusals of one line."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip.encoding import AssemblyError, read_assembly
from chip.encoding.assembly import assemble
from chip.encoding.data_text import data_lines
from tests import examples

LANES = 320
FORMATS = {"i8": "<b", "f16": "<e", "i32": "<i", "f32": "<f"}
VALUES = {
    "i8": st.integers(-128, 127),
    "i32": st.integers(-(2**31), 2**31 - 1),
    "f16": st.floats(-60000, 60000, width=16),
    "f32": st.floats(-(2.0**90), 2.0**90, width=32),
}


def sram(text: str) -> dict[tuple[int, int, int], int]:
    """(slice, word, lane) -> byte of everything the text fills."""
    found: dict[tuple[int, int, int], int] = {}
    for slice_, first, rows in read_assembly(text).memory:
        for word, row in enumerate(rows.tolist()):
            for lane, byte in enumerate(row):
                assert found.setdefault((slice_, first + word, lane), byte) is byte
    return found


@st.composite
def directives(draw: st.DrawFn) -> tuple[str, dict[tuple[int, int, int], int]]:
    """A .data line and the bytes it means, one by one."""
    name = draw(st.sampled_from(sorted(FORMATS)))
    size = struct.calcsize(FORMATS[name])
    groups, first = draw(st.integers(1, 3)), draw(st.integers(0, 500))
    low = draw(st.integers(0, 44 - size * groups))
    values = draw(st.lists(VALUES[name], min_size=1, max_size=7))
    times = draw(st.integers(1, 60))
    words = draw(st.integers(-(-(len(values) + times - 1) // LANES), 5))
    line = f".data mem_e[{low}-{low + size * groups - 1}]:{first} {name} {values[0]}*{times} "
    line += " ".join(map(str, values[1:])) + f" x{words}"
    listed = [values[0]] * times + values[1:]
    bytes_: dict[tuple[int, int, int], int] = {}
    for number in range(words * LANES):
        packed = struct.pack(FORMATS[name], listed[number % len(listed)])
        row, lane = divmod(number, LANES)
        for j, byte in enumerate(packed):
            place = 44 + low + (row % groups) * size + j
            bytes_[place, first + row // groups, lane] = byte
    return line, bytes_


@settings(max_examples=examples(60), deadline=None)
@given(directives())
def test_every_byte_lies_where_the_line_says(
    case: tuple[str, dict[tuple[int, int, int], int]],
) -> None:
    line, meant = case
    assert sram(line) == meant
    again = "\n".join(data_lines(read_assembly(line).memory))
    assert sram(again) == meant


def test_values_runs_and_bits() -> None:
    rows = read_assembly(".data mem_w[7]:3 i8 -2..1 2..0 0xff*2 5").memory
    assert [(s, a) for s, a, _ in rows] == [(7, 3)]
    period = [-2, -1, 0, 1, 2, 1, 0, -1, -1, 5]
    assert rows[0][2].view(np.int8).ravel().tolist() == period * 32
    nan = read_assembly(".data mem_w[0-3]:0 f32 0x7fc00000").memory
    assert [int(rows[0, 319]) for _, _, rows in nan] == [0, 0, 0xC0, 0x7F]


def test_a_program_alone_takes_no_data() -> None:
    with pytest.raises(
        AssemblyError, match=r"\.data fills memory, which a program alone lacks; use read_assembly"
    ):
        assemble(".data mem_w[0]:0 i8 1")


def test_lines_of_blocks() -> None:
    text = "; nothing\n1: alu[0] MOV\n\n.data mem_w[0]:0 i8 1\n2: alu[0] MOV\n3: alu[0] MOV"
    assert list(read_assembly(text).lines) == [2, 5, 6]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (".data", "no directive"),
        (".data mem_w[0]:0", ".data of nothing; use one of i8, f16, i32, f32"),
        (".data mem_w[0]:0 i9 1", "'i9'"),
        (".data mem_w[0]:0 i8", "without values"),
        (".data mem_w[0]:0 i8 x3", "without values"),
        (".data mem_w[0]:0 i8 1*0", "without values"),
        (".data mem_w[0]:0 i8 1 x0", "0 words"),
        (".data mem_w[0]:0 i8 1*321 x1", "321 values for 1 words"),
        (".data mem_w[0]:0 i8 128", "'128' is no i8; use V, V*TIMES, FIRST..LAST or 0x bits"),
        (".data mem_w[0]:0 i8 0x100", "is no i8"),
        (".data mem_w[0]:0 i8 1.5", "is no i8"),
        (".data mem_w[0]:0 i8 0..200", "is no i8"),
        (".data mem_w[0-1]:0 f16 1e9", "is no f16"),
        (".data mem_w[0-3]:0 f32 1e39", "is no f32"),
        (".data mem_w[0-3]:0 f32 nan", "is no f32"),
        (".data mem_w[0-2]:0 f32 1", "3 slices"),
        (".data alu[0]:0 i8 1", "is no queue"),
        (".data mem_w[0] i8 1", "lacks its word"),
        (".data mem_w[0]:-1 i8 1", "the word of .data"),
        (".data mem_w[0]:32768 i8 1", "the word of .data"),
        (".data mem_w[0]:32767 i8 1 x2", "beyond word 32767"),
        (".data mem_w[0-3]:0 f32 1*99999999", "too much"),
        (".data mem_w[0-3]:0 f32 " + "1*9999999 " * 900, "too much"),
        (".data mem_w[0-3]:0 i32 0..9999999 " + "0..9999999 " * 600, "too much"),
        (".data mem_w[0-3]:0 i32 1 x99999999", "at most"),
    ],
)
def test_what_is_no_data_is_refused_with_its_line(line: str, says: str) -> None:
    with pytest.raises(AssemblyError) as caught:
        read_assembly(f"; first\n{line}\n1: alu[0] MOV\n")
    message = str(caught.value)
    assert message.startswith("line 2: ") and says in message
    assert message.isprintable() and len(message) < 400


@pytest.mark.long
def test_no_word_is_filled_twice_and_not_too_many() -> None:
    with pytest.raises(AssemblyError, match=r"line 3: word 4 of mem_w\[1\].*by line 1 too"):
        read_assembly(".data mem_w[0-1]:0 i8 1 x10\n.data mem_w[0]:5 i8 1\n.data mem_w[1]:4 i8 2")
    with pytest.raises(AssemblyError, match="line 1: word 0"):
        read_assembly(".data mem_w[3,3]:0 i8 1 x2")
    most = "".join(f".data mem_w[{n}]:0 i8 1 x32768\n" for n in range(44))
    with pytest.raises(AssemblyError, match=r"line 7: all \.data together"):
        read_assembly(most)
