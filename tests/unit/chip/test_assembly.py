"""Assembler text: exact round trip, readable notation, and one-line errors for any other text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chip.encoding import AssemblyError, disassemble
from chip.encoding.assembly import assemble
from chip.isa import AccMode, Op
from chip.program import (
    BLOCK_DTYPE,
    COLUMN_RANGES,
    Program,
    ProgramLimitError,
    new_blocks,
    validate_program,
)
from tests import examples

#: Ranges narrowed so that any combination of repeats stays inside the limits.
NARROW = {
    "cycle": (0, 2**39),
    "n1": (1, 900),
    "n2": (1, 900),
    **dict.fromkeys(("dc1", "dc2", "da1", "da2", "dcg"), (-(2**20), 2**20)),
}
GANG = st.lists(st.integers(0, 87), min_size=1, max_size=88).map(tuple)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Any program inside the limits, with unused, equal and one-member gangs too."""
    gangs = draw(st.lists(GANG, max_size=4))
    gangs += draw(st.lists(st.sampled_from(gangs), max_size=2)) if gangs else []
    blocks = new_blocks(draw(st.integers(0, 8)))
    for block in blocks:
        for name, limits in COLUMN_RANGES.items():
            if draw(st.booleans()):
                block[name] = draw(st.integers(*NARROW.get(name, limits)))
        block["op"] = draw(st.sampled_from(list(Op)))
        block["gang"] = draw(st.integers(-1, len(gangs) - 1))
        if block["gang"] >= 0 and draw(st.booleans()):
            block["queue"] = gangs[block["gang"]][0]
    seed = draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    maps = [rng.permutation(320).astype(np.int16) for _ in range(seed % 3)]
    maps += [np.arange(320, dtype=np.int16)[::-1], np.zeros(320, np.int16)][: seed % 4]
    return Program(blocks, gangs, maps, draw(st.integers(0, 2**40)))


def assert_same(a: Program, b: Program) -> None:
    """Equal column for column."""
    assert a.blocks.dtype == b.blocks.dtype == BLOCK_DTYPE
    assert a.blocks.tobytes() == b.blocks.tobytes()
    assert a.gangs == b.gangs
    assert len(a.maps) == len(b.maps)
    assert all(np.array_equal(x, y) for x, y in zip(a.maps, b.maps, strict=True))
    assert all(lanes.dtype == np.int16 for lanes in b.maps)
    assert a.cycles == b.cycles


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(programs())
def test_round_trip(program: Program) -> None:
    text = disassemble(program)
    again = assemble(text)
    assert_same(program, again)
    assert disassemble(again) == text


def test_many_blocks_round_trip() -> None:
    blocks = new_blocks(10_000)
    blocks["op"] = Op.READ
    blocks["cycle"] = np.arange(10_000) * 3
    blocks["queue"] = np.arange(10_000) % 88
    blocks["gang"][::3] = 0
    program = Program(blocks, [(0, 1, 2, 3)], [], 40_000)
    assert_same(program, assemble(disassemble(program)))


def test_notation() -> None:
    text = """
        ; a comment
        .cycles 4000
        .map 0 16-31,0-15,32-319       # out lane -> in lane
        100: mem_w[12] READ a=20 out=E5 wo=1 x8/1/2 x4/320/-8
        100: mem_w[0-3,7] WRITE a=0x40 s0=W17 w0=1 dsg=1
        101: mem_e[3-1]+mem_w[0] READ out=E4 wo=1
        102: mem_w[0-3,7] READ
        130: alu[5] MUL_F32 s0=E4 w0=4 s1=imm imm=1.5f
        131: alu[0] ADD_I32 s0=alu15 s1=self imm=0xffffffff
        140: mxm[2].activations ACC mode=ADD_EMIT out=W0
        150: sxm_e.distributor[1] DISTRIBUTE w0=8
        151: c2c[3] SEND s0=W31
    """
    program = assemble(text)
    blocks = program.blocks
    assert program.cycles == 4000
    assert program.maps[0][:16].tolist() == list(range(16, 32))
    first = {name: int(blocks[name][0]) for name in BLOCK_DTYPE.names or ()}
    assert (first["n1"], first["dc1"], first["da1"]) == (8, 1, 2)
    assert (first["n2"], first["dc2"], first["da2"]) == (4, 320, -8)
    assert (first["queue"], first["op"], first["a"], first["out"]) == (12, Op.READ, 20, 5)
    assert program.gangs == [(0, 1, 2, 3, 7), (47, 46, 45, 0)]
    assert blocks["gang"].tolist()[:5] == [-1, 0, 1, 0, -1]
    assert blocks["queue"].tolist()[:5] == [12, 0, 47, 0, 93]
    assert int(blocks["a"][1]) == 64 and int(blocks["s0"][1]) == 49
    assert blocks["imm"][4:5].view(np.float32)[0] == 1.5
    assert (blocks["s0"][5], blocks["s1"][5], blocks["imm"][5]) == (79, 80, -1)
    assert (blocks["queue"][6], blocks["mode"][6]) == (109, AccMode.ADD_EMIT)
    assert blocks["queue"].tolist()[7:] == [121, 131]
    lines = disassemble(program).splitlines()
    assert "100: mem_w[12] READ a=20 out=E5 wo=1 x8/1/2 x4/320/-8" in lines
    assert "101: mem_e[3-1]+mem_w[0] READ out=E4 wo=1" in lines
    assert "130: alu[5] MUL_F32 s0=E4 w0=4 s1=imm imm=1.5f" in lines
    assert_same(program, assemble(disassemble(program)))


@settings(deadline=None)
@given(st.integers(-(2**31), 2**31 - 1))
def test_float_immediates_keep_their_bits(bits: int) -> None:
    blocks = new_blocks(1)
    blocks["op"], blocks["queue"], blocks["s1"], blocks["imm"] = Op.ADD_F32, 88, 81, bits
    assert assemble(disassemble(Program(blocks))).blocks["imm"][0] == bits


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nonsense", "is no block"),
        ("-5: alu[0] MOV", "is no block"),
        ("5: alu[16] MOV", "is no queue"),
        ("5: alu[0] MOVE", "'MOVE' is no opcode; do you mean MOV?"),
        ("5: alu[0] AD_F32", "do you mean ADD_F32? All are in docs/reference/instructions.md"),
        ("5: alu[0] jump_to_it", "no opcode; all are in docs/reference/instructions.md"),
        ("99999999999999999999: alu[0] MOV", "the cycle"),
        ("5: alu[0] MOV s0=E32", "s0 is 'E32'"),
        ("5: alu[0] MOV out=imm", "out is 'imm'"),
        ("5: alu[0] MOV s0=E1 s0=E1", "given twice"),
        ("5: alu[0] MOV volume=11", "is not understood"),
        ("5: alu[0] MOV imm=1e39f", "float32 ends"),
        ("5: alu[0] MOV imm=0x1ffffffff", "imm is"),
        ("5: alu[0] MOV imm=" + "9" * 5000, "imm is"),
        ("5: alu[0] MOV w0=17", "w0 is '17'"),
        ("5: alu[0] MOV a=\N{ARABIC-INDIC DIGIT THREE}", "a is"),
        ("5: mem_w[0] READ a=32768", "0..32767"),
        ("5: mem_w[0] READ x2/1/1 x2/1/1 x2/1/1", "third repeat"),
        ("5: mem_w[0] READ x2/1/1/1", "is no repeat"),
        ("5: mem_w[0] READ x0", "n1 of"),
        ("5: mem_w[0] READ x200000000 x2", "expands to more than"),
        ("5: mem_w[0-43] READ x5000000", "expands to more than"),
        ("5: mem_w[0] READ x1000000/2000000000", "carry cycle"),
        ("5: mem_w[0] READ x1000000/1/2000000000", "carry a outside"),
        ("5: mem_w[0-44] READ", "slice '0-44' of the list '0-44': slices are 0 to 43"),
        ("5: mem_w[0] READ gang=0", "gang 0 is not"),
        ("5: mem_w[0] READ queue=alu[0]", "beside a single queue"),
        ("5: mem_w[0,1] READ queue=alu[20]", "is no queue"),
        (f"5: mem_w[{'0,' * 88}0] READ", "more than 88"),
        (".map 0 0-318", "319 lanes"),
        (".map 1 0-319", "the next one is 0"),
        (".map 0 0-320", "lanes are 0 to 319"),
        (".map 0 " + ",".join(["0-319"] * 9), "more than 320"),
        (".cycles -1", ".cycles is"),
        (".cycles", "no directive"),
        (".include x", "no directive"),
        ("x" * 20_000, "20000 characters"),
        ("5: alu[0] MOV a=\ud800\x00\u2028", "a is"),
    ],
)
def test_errors_name_the_line(line: str, says: str) -> None:
    with pytest.raises(AssemblyError) as caught:
        assemble(f"; first\n1: alu[0] MOV\n{line}\n7: alu[0] MOV\n")
    message = str(caught.value)
    assert message.startswith("line 3: ") and says in message
    assert message.isprintable() and len(message) < 400


def test_directives_out_of_place() -> None:
    with pytest.raises(AssemblyError, match=r"line 2: \.gang after a block"):
        assemble("1: mem_w[0-3] READ\n.gang 1 mem_w[0-3]")
    with pytest.raises(AssemblyError, match=r"line 1: 'alu\[0\]' is no queue"):
        assemble(".gang 0 alu[0]")
    with pytest.raises(AssemblyError, match=r"line 2: \.cycles is given twice"):
        assemble(".cycles 1\n.cycles 1")


PIECES = st.sampled_from(
    [
        ":",
        " ",
        "\n",
        "\r\n",
        "mem_w[",
        "0-3",
        "]",
        "alu[5]",
        "READ",
        "MOV",
        "x",
        "/",
        "=",
        "s0",
        "E5",
        "imm",
        "a",
        "out",
        "gang",
        ".map",
        ".gang",
        ".cycles",
        "0",
        "1",
        "-",
        "99999999999",
        "0x",
        "f",
        "e9",
        ";",
        "#",
        "+",
        ",",
        "1: mem_w[0-3] READ ",
        "5: alu[1] MOV ",
    ]
)


@settings(max_examples=examples(500), deadline=None)
@given(st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=30).map("".join)))
def test_any_text_ends_in_a_program_or_an_assembly_error(text: str) -> None:
    try:
        program = assemble(text)
    except AssemblyError as error:
        assert str(error).isprintable()  # hence one line
    else:
        validate_program(program)
        assert_same(program, assemble(disassemble(program)))


def test_mutated_assembly_ends_in_a_program_or_an_assembly_error() -> None:
    text = (
        ".cycles 9\n.gang 0 mem_w[0-3]\n100: mem_w[0-3] READ a=20 out=E5 wo=1 x8/1/2 x4/320/8\n"
        "130: alu[5] MUL_F32 s0=E4 w0=4 s1=imm imm=1.5f tag=7\n"
    )
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(2000):
        changed = list(text)
        for _ in range(rng.integers(1, 4)):
            changed[rng.integers(len(changed))] = chr(rng.integers(1, 128))
        try:
            assemble("".join(changed))
            outcomes.add("program")
        except AssemblyError as error:
            assert str(error).isprintable()
            outcomes.add("error")
    assert outcomes == {"program", "error"}


@pytest.mark.parametrize(
    ("column", "value"), [("queue", 144), ("op", 3), ("gang", 0), ("s0", 82), ("n1", 0), ("a", -1)]
)
def test_limits_hold_for_tables_too(column: str, value: int) -> None:
    blocks = new_blocks(2)
    blocks["op"] = Op.MOV
    blocks[column][1] = value
    with pytest.raises(ProgramLimitError) as caught:
        validate_program(Program(blocks))
    assert caught.value.block == 1
    with pytest.raises(ProgramLimitError):
        disassemble(Program(blocks))


@pytest.mark.parametrize(
    "program",
    [
        Program(np.zeros(1, np.int64)),
        Program(new_blocks(0), cycles=-1),
        Program(new_blocks(0), gangs=[()]),
        Program(new_blocks(0), gangs=[(88,)]),
        Program(new_blocks(0), maps=[np.zeros(319, np.int16)]),
        Program(new_blocks(0), maps=[np.full(320, 320, np.int16)]),
        Program(new_blocks(0), maps=[np.zeros(320, np.int32)]),
    ],
)
def test_limits_of_gangs_maps_and_cycles(program: Program) -> None:
    with pytest.raises(ProgramLimitError):
        validate_program(program)
