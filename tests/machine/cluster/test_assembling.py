"""``lpu assemble``: text in, an artifact out that runs; anything else is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip.encoding import disassemble
from cluster.cli import run
from programs.artifact import content_hash, load, save

ADD = """
0: alu[0] MOV s0=imm imm={a}f
3: alu[1] ADD_F32 s0=alu0 s1=imm imm={b}f out=E0 wo=4 tag=1
11: mem_e[0-3] WRITE a=8 s0=E0 w0=1 dsg=1 want0=1
"""
RESULT = "mem_e[0-3]:8"
TWO_VECTORS = """
.data mem_e[0-3]:8 f32 1 2.5 0*318
.data mem_e[4-7]:8 f32 0..319
0: mem_e[4-7] READ a=8 out=W4 wo=1 dsg=1 tag=2
1: mem_e[0-3] READ a=8 out=W0 wo=1 dsg=1 tag=1
3: alu[0] ADD_F32 s0=W0 w0=4 want0=1 s1=W4 w1=4 want1=2 out=E8 wo=4 tag=3
13: mem_e[8-11] WRITE a=8 s0=E8 w0=1 dsg=1 want0=3
"""
FLOATS = st.floats(-1e6, 1e6, width=32)


@pytest.mark.long
@settings(max_examples=20, deadline=None)
@given(FLOATS, FLOATS)
def test_the_sum_comes_out(tmp_path_factory: pytest.TempPathFactory, a: float, b: float) -> None:
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
    first, second = load(made), load(tmp_path / "again.lpu")
    assert second.model["sources"][0]["file"] == "again.asm"
    assert content_hash(replace(first, model={})) == content_hash(replace(second, model={}))


def test_inspect_shows_memory_that_assembles_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, made = tmp_path / "add.asm", tmp_path / "add.lpu"
    text.write_text(TWO_VECTORS)
    assert run(["assemble", str(text), "-o", str(made)]) == 0
    capsys.readouterr()
    assert run(["inspect", str(made), "--memory", "--limit", "0", "--json"]) == 0
    again = tmp_path / "again.asm"
    again.write_text(json.loads(capsys.readouterr().out)["assembly"])
    assert run(["assemble", str(again), "-o", str(tmp_path / "again.lpu")]) == 0

    def words(path: Path) -> dict[tuple[int, int], bytes]:
        return {
            (place, first + number): row.tobytes()
            for place, first, rows in load(path).memory[0]
            for number, row in enumerate(rows)
        }

    assert words(tmp_path / "again.lpu") == words(made) and len(words(made)) == 8


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("0: alu[0] JUMP", (), "JUMP"),
        ("0: alu[99] MOV s0=imm", (), "alu[99]"),
        (".data mem_e[0]:8190 i8 1 x3", (), "mem_e[0] up to word 8192"),
        (".data mem_e[0]:0 i8 1*321 x1", (), "bad.asm: line 1"),
        (ADD.format(a=1, b=2), ("--result-type", "i32"), "add --result"),
        (ADD.format(a=1, b=2), ("--result", RESULT, "--result-type", "i8"), "f32 or i32"),
        (ADD.format(a=1, b=2), ("--result", "mem_e[0-2]:8"), "four slices"),
        (ADD.format(a=1, b=2), ("--result", "mem_e[0-3]:8192"), "8192"),
        (ADD.format(a=1, b=2), ("--chip", "none.toml"), "none.toml"),
    ],
)
def test_what_is_no_program_is_told_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    arguments: tuple[str, ...],
    said: str,
) -> None:
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


def assembled(directory: Path, *texts: str) -> Path:
    """The artifact of a text for each chip, chip0.asm and so on."""
    names = [directory / f"chip{number}.asm" for number in range(len(texts))]
    for name, text in zip(names, texts, strict=True):
        name.write_text(text)
    assert run(["assemble", *map(str, names), "-o", str(directory / "made.lpu")]) == 0
    return directory / "made.lpu"


def test_findings_name_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = "; a heading\n" + ADD.format(a=1, b=2).replace("11: mem_e", "\n\n12: mem_e")
    line = late.splitlines().index("12: mem_e[0-3] WRITE a=8 s0=E0 w0=1 dsg=1 want0=1") + 1
    made = assembled(tmp_path, "", late)
    assert f"chip 1, cycle 12, mem_e[0]: missing: WRITE of block 2, chip1.asm:{line}:" in (
        capsys.readouterr().err
    )
    assert run(["check", str(made)]) == 1
    assert f"(block 2, chip1.asm:{line})" in capsys.readouterr().out
    assert run(["run", str(made)]) == 1
    assert f"chip 1, cycle 12, mem_e[0]: missing: WRITE of block 2, chip1.asm:{line}:" in (
        capsys.readouterr().err
    )
    assert run(["check", str(made), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {(f["file"], f["line"], f["block"]) for f in findings} == {("chip1.asm", line, 2)}


def test_a_link_that_is_late_is_one_finding_that_names_both_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    send = "0: mem_w[0] READ out=W0 wo=1 x50/24\n20: mem_w[1] READ out=W1 wo=1\n"
    send += "21: c2c[0] SEND s0=W0 w0=1 x50/24"
    made = assembled(tmp_path, send, "700: c2c[0] RECEIVE out=E0 wo=1 x50/24")
    assert run(["check", str(made)]) == 1
    told = [line for line in capsys.readouterr().out.splitlines() if ": link: " in line]
    assert len(told) == 1
    assert "SEND on link 0 (block 2, chip0.asm:3): vector 0 of the link arrives" in told[0]
    assert "taken by chip 1 c2c[0] RECEIVE (block 0, chip1.asm:1) at cycle 700" in told[0]
    assert run(["run", str(made)]) == 1
    assert "chip 1, cycle 700" in (err := capsys.readouterr().err)
    assert "block 0, chip1.asm:1 got a vector" in err and "arrives at cycle 658" in err


@pytest.mark.parametrize(
    "sources",
    [
        None,
        7,
        [],
        [None],
        [{"file": "a"}],
        [{"file": "a\nb", "lines": [[0, 1, 9]]}],
        [{"file": "a", "lines": [[0, 1]]}],
        [{"file": "a", "lines": [["x", 1, 2]]}],
        [{"file": "a", "lines": [[5, 1, 1]]}],
    ],
)
def test_sources_that_say_nothing_leave_the_block_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sources: object
) -> None:
    late = ADD.format(a=1, b=2).replace("11: mem_e", "12: mem_e")
    made = assembled(tmp_path, late)
    save(replace(load(made), model={"sources": sources}), made)
    assert run(["check", str(made)]) == 1
    assert "(block 2)" in capsys.readouterr().out


def test_the_digest_knows_no_names_of_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = []
    for model in ({}, {"sources": [{"file": "other.asm", "lines": []}]}):
        made = assembled(tmp_path, ADD.format(a=1, b=2))
        save(replace(load(made), model=model), made)
        capsys.readouterr()
        assert run(["run", str(made), "--json"]) == 0
        digests.append(json.loads(capsys.readouterr().out)["digest"])
    assert digests[0] == digests[1]


def test_two_vectors_are_added_without_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, made = tmp_path / "add.asm", tmp_path / "add.lpu"
    text.write_text(TWO_VECTORS)
    assert run(["assemble", str(text), "-o", str(made), "--result", "mem_e[8-11]:8"]) == 0
    assert run(["check", str(made)]) == 0
    capsys.readouterr()
    assert run(["run", str(made)]) == 0
    assert "result of chip 0 (float32)" in (out := capsys.readouterr().out)
    assert " 1, 3.5, 2, 3, 4, 5, 6, 7, ..." in out
    whole = ["assemble", str(text), "-o", str(made), "--result", "mem_e[8-11]:8"]
    assert run([*whole, "--result-type", "i32"]) == 0
    assert run(["run", str(made)]) == 0
    out = capsys.readouterr().out
    assert "result of chip 0 (int32)" in out
    assert f" {0x3F800000}, {0x40600000}, {0x40000000}, " in out
