"""``lpu assemble``: text in, an artifact out that runs; anything else is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip.encoding import disassemble
from cluster.cli import run
from programs.artifact import load

ADD = """
0: alu[0] MOV s0=imm imm={a}f
3: alu[1] ADD_F32 s0=alu0 s1=imm imm={b}f out=E0 wo=4 tag=1
11: mem_e[0-3] WRITE a=8 s0=E0 w0=1 dsg=1 want0=1
"""
RESULT = "mem_e[0-3]:8"
FLOATS = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=20, deadline=None)
@given(FLOATS, FLOATS)
def test_the_sum_comes_out(
    tmp_path_factory: pytest.TempPathFactory, a: float, b: float
) -> None:
    directory = tmp_path_factory.mktemp("sum")
    text, made = directory / "add.asm", directory / "add.lpu"
    text.write_text(ADD.format(a=a, b=b))
    assert run(["assemble", str(text), "-o", str(made), "--result", RESULT]) == 0
    assert run(["check", str(made)]) == 0
    with pytest.MonkeyPatch.context() as patch:
        told: list[str] = []
        patch.setattr("cluster.commands.output.print_json", lambda o: told.append(json.dumps(o)))
        assert run(["run", str(made), "--json"]) == 0
    first = json.loads(told[0])["outputs"][0]["result"]["first"]
    assert first == [float(np.float32(a) + np.float32(b))] * 8


def test_inspect_shows_what_was_assembled(tmp_path: Path) -> None:
    text, made = tmp_path / "add.asm", tmp_path / "add.lpu"
    text.write_text(ADD.format(a=1, b=2))
    assert run(["assemble", str(text), "-o", str(made)]) == 0
    again = tmp_path / "again.asm"
    again.write_text(disassemble(load(made).programs["main"][0]))
    assert run(["assemble", str(again), "-o", str(tmp_path / "again.lpu")]) == 0
    assert (tmp_path / "again.lpu").read_bytes() == made.read_bytes()


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("0: alu[0] JUMP", (), "JUMP"),
        ("0: alu[99] MOV s0=imm", (), "alu[99]"),
        (ADD.format(a=1, b=2), ("--result", "mem_e[0-2]:8"), "four slices"),
        (ADD.format(a=1, b=2), ("--result", "mem_e[0-3]:8192"), "8192"),
        (ADD.format(a=1, b=2), ("--chip", "none.toml"), "none.toml"),
    ],
)
def test_what_is_no_program_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, arguments: tuple[str, ...],
    said: str,
) -> None:  # fmt: skip
    path, made = tmp_path / "bad.asm", tmp_path / "bad.lpu"
    path.write_text(text)
    assert run(["assemble", str(path), "-o", str(made), *arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and said in told[0]
    assert not made.exists()


def test_three_chips_are_no_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "add.asm"
    path.write_text(ADD.format(a=1, b=2))
    assert run(["assemble", *[str(path)] * 3, "-o", str(tmp_path / "x.lpu")]) == 2
    assert "1, 2, 4, 8" in capsys.readouterr().err


def test_an_illegal_program_is_written_down_and_check_says_why(tmp_path: Path) -> None:
    path, made = tmp_path / "late.asm", tmp_path / "late.lpu"
    path.write_text(ADD.format(a=1, b=2).replace("11: mem_e", "12: mem_e"))
    assert run(["assemble", str(path), "-o", str(made)]) == 0
    assert run(["check", str(made)]) == 1
    assert run(["run", str(made)]) == 1
