"""The programs of the tutorials and of the assembler's page compute what these say."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from chip.encoding import read_assembly
from chip.isa import Op
from cluster.cli import run
from tests import ROOT

DOCS = ROOT / "docs"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with every program of the documents, to be in."""
    for path in DOCS.glob("*.md"):
        for name, text in re.findall(r"```asm\n; (\S+)\n(.*?)```", path.read_text("utf-8"), re.S):
            (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def first_chip(capsys: pytest.CaptureFixture[str], file: str) -> dict[str, object]:
    capsys.readouterr()
    assert run(["run", file, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    return {"cycles": told["cycles"], **told["outputs"][0]["result"]}


def test_the_product_is_numpys(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["assemble", "matmul.asm", "-o", "matmul.lpu", "--result", "mem_w[20-23]:0:320"]
    assert run([*command, "--result-type", "i32"]) == 0
    assert run(["check", "matmul.lpu"]) == 0
    a = np.array([i % 13 - 6 for i in range(320 * 320)], np.int32).reshape(320, 320)
    columns = np.array([i % 11 - 5 for i in range(320 * 320)], np.int32).reshape(320, 320)
    product = a @ columns.T
    result = first_chip(capsys, "matmul.lpu")
    assert result["sha256"] == hashlib.sha256(product.astype("<i4").tobytes()).hexdigest()
    assert result["type"] == "int32" and result["cycles"] == 424
    assert result["first"] == product[0, :8].tolist()


def test_other_matrices_too(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random ones, written as .data by hand."""
    rng = np.random.default_rng(3)
    a, b = rng.integers(-128, 128, (2, 320, 320))
    lines = (files / "matmul.asm").read_text().splitlines()
    data = [f".data mem_w[16]:{m} i8 {' '.join(map(str, row))}" for m, row in enumerate(a)]
    data += [
        f".data mem_w[{n % 16}]:{n // 16} i8 {' '.join(map(str, b[:, n]))}" for n in range(320)
    ]
    kept = [line for line in lines if not line.startswith(".data")]
    (files / "random.asm").write_text("\n".join([*data, *kept]))
    command = ["assemble", "random.asm", "-o", "random.lpu", "--result", "mem_w[20-23]:0:320"]
    assert run([*command, "--result-type", "i32"]) == 0
    whole = np.ascontiguousarray(a @ b).astype("<i4").tobytes()
    assert first_chip(capsys, "random.lpu")["sha256"] == hashlib.sha256(whole).hexdigest()


def test_the_sum_is_numpys(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["assemble", "add.asm", "-o", "add.lpu", "--result", "mem_e[8-11]:8"]) == 0
    first = np.zeros(320, np.float32)
    first[:2] = 1, 2.5
    total = first + np.arange(320, dtype=np.float32)
    result = first_chip(capsys, "add.lpu")
    assert result["sha256"] == hashlib.sha256(total.astype("<f4").tobytes()).hexdigest()


@pytest.mark.parametrize("receive_write", [("679", "699"), ("679", "700")])
def test_the_moved_instruction_stops_as_told(
    files: Path, capsys: pytest.CaptureFixture[str], receive_write: tuple[str, str]
) -> None:
    receive, write = receive_write
    text = (files / "receiver.asm").read_text()
    text = text.replace("678: c2c", f"{receive}: c2c").replace("699: mem_w", f"{write}: mem_w")
    (files / "receiver.asm").write_text(text)
    assert run(["assemble", "sender.asm", "receiver.asm", "-o", "pair.lpu"]) == 0
    assert run(["check", "pair.lpu"]) == 1
    said = capsys.readouterr().out
    assert ("no value on E16 passes; the nearest passes 1 cycles later" in said) == (write == "699")
    assert "arrives at chip 1 link 0 at cycle 678, taken by chip 1" in said
    assert f"at cycle {receive}; dispatch the RECEIVE 637 cycles after its SEND" in said
    assert run(["run", "pair.lpu"]) == 1
    stopped = capsys.readouterr().err
    assert "receiver.asm:1" in stopped if write == "700" else "receiver.asm:2" in stopped
    if write == "700":
        assert "chip 1" in stopped and "chip 0" in stopped
        assert "679" in stopped and "678" in stopped


def test_the_page_names_every_key_and_directive() -> None:
    page = (DOCS / "assembler.md").read_text("utf-8")
    from chip.encoding.assembly import _KEYS

    for key in (*_KEYS, "gang", "queue", ".data", ".cycles", ".map", ".gang"):
        assert re.search(rf"\| [^|]*`{re.escape(key)}[ `]", page), key


def test_the_repeat_of_the_page_reads_the_words_it_says() -> None:
    page = (DOCS / "assembler.md").read_text("utf-8")
    from chip.program import expand

    line = next(text.strip() for text in page.splitlines() if text.startswith("    100: "))
    table = expand(read_assembly(line).program)
    assert set(table["op"]) == {Op.READ} and len(table) == 32
    assert table["a"][:8].tolist() == list(range(20, 35, 2))
    assert table["cycle"][:8].tolist() == list(range(100, 108))
    assert table["a"][8:10].tolist() == [28, 30] and int(table["cycle"][8]) == 420
