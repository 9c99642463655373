"""What a newcomer sees first: the version, tables of 80 columns, digests that can be copied."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cluster.cli import run

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_the_version_is_that_of_the_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"lpu-cluster {project['version']}\n"


@pytest.mark.parametrize("text", [None, "[project", '[project]\nname = "other"\nversion = "9"\n'])
def test_a_copy_without_its_pyproject_has_a_version_or_says_unknown(
    tmp_path: Path, text: str | None
) -> None:
    shutil.copy(ROOT / "cluster" / "version.py", tmp_path / "version.py")
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", "import version; print(version.version())"],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"unknown|[0-9]+(\.[0-9]+)+\S*", done.stdout.strip())


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_a_digest_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    columns: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", columns)
    text, made = tmp_path / "two.asm", tmp_path / "two.lpu"
    text.write_text("0: mem_e[0] READ a=8 out=E0 wo=1\n2: mem_e[4] WRITE a=8 s0=E0 w0=1\n")
    assert run(["assemble", str(text), "-o", str(made)]) == 0
    capsys.readouterr()
    assert run(["run", str(made), "--json"]) == 0
    digest = json.loads(capsys.readouterr().out)["digest"]
    assert run(["run", str(made)]) == 0
    assert f"digest: {digest}" in capsys.readouterr().out.splitlines()


def test_a_sweep_of_the_fabric_is_readable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "sweep.csv"
    assert run(["fabric", "sweep", "--to", "20000000", "--csv", str(table)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80 and not any("…" in line for line in shown)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows[0]) == 9
    for row in rows:
        us = float(row["latency_ns"]) / 1000
        assert any(f" {us:,.2f} us " in line and row["algorithm"] in line for line in shown)
    for size in ("320 B", "1.25 KiB", "10 MiB"):
        assert sum(line.strip().startswith(size) for line in shown) == 1


def test_a_sweep_of_plans_is_a_row_each_and_a_bottleneck_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["plan", "--model", "tinyllama-1.1b", "--context", "64", "--sweep", "chips=4..16",
             "--no-run"]  # fmt: skip
    assert run([*asked, "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert run(asked) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "problem" in plans[0] and [plan.get("chips") for plan in plans] == [4, 8, 16]
    for plan in plans[1:]:
        cells = [
            f"{plan['tp']} x {plan['pp']}", f"{plan['cycles_per_token']:,}",
            f"{plan['initiation_interval_cycles']:,}",
            f"{plan['energy']['joules_per_token_in_all']:.3g}",
        ]  # fmt: skip
        row = [line for line in shown if line.strip().startswith(f"{plan['chips']} ")]
        assert len(row) == 1 and len(row[0]) <= 80
        assert all(cell in row[0] for cell in cells)
    assert sum(line.startswith("bottleneck at chips 8; 16: ") for line in shown) == 1
    assert sum(line.startswith("no plan for chips 4: ") for line in shown) == 1
