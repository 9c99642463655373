"""What a newcomer sees first: the version, tables of 80 columns, digests that can be copied."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import app, run
from cluster.commands.benchmarks import ROW_NAMES
from cluster.commands.help_pages import PANELS
from tests import ROOT


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
    shutil.copy(ROOT / "cluster" / "commands" / "version.py", tmp_path / "version.py")
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", "import version; print(version.version())"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"unknown|[0-9]+(\.[0-9]+)+\S*", done.stdout.strip())


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_a_digest_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
) -> None:
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


@pytest.mark.long
def test_a_sweep_of_plans_is_a_row_each_and_a_bottleneck_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [
        "plan",
        "--model",
        "tinyllama-1.1b",
        "--context",
        "64",
        "--sweep",
        "chips=8..32",
        "--no-run",
    ]
    assert run([*asked, "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert run(asked) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "problem" in plans[0] and [plan.get("chips") for plan in plans] == [8, 16, 32]
    for plan in plans[1:]:
        cells = [
            f"{plan['tp']} x {plan['pp']}",
            f"{plan['cycles_per_token']:,}",
            f"{plan['initiation_interval_cycles']:,}",
            f"{plan['energy']['joules_per_token_in_all']:.3g}",
        ]
        row = [line for line in shown if line.strip().startswith(f"{plan['chips']} ")]
        assert len(row) == 1 and len(row[0]) <= 80
        assert all(cell in row[0] for cell in cells)
    assert sum(line.startswith("bottleneck at chips 16; 32: ") for line in shown) == 1
    assert sum(line.startswith("no plan for chips 8: ") for line in shown) == 1


def verbs() -> dict[str, Any]:
    """Every verb's command by its words after ``lpu``."""
    import typer.main

    found: dict[str, Any] = {}
    groups: list[tuple[str, Any]] = [("", typer.main.get_command(app))]
    for path, group in groups:
        for name, command in group.commands.items():
            words = f"{path} {name}".strip()
            if hasattr(command, "commands"):
                groups.append((words, command))
            else:
                found[words] = command
    return found


@pytest.mark.parametrize("words", verbs())
def test_every_verb_has_an_example_that_parses(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = verbs()[words]
    assert run([*words.split(), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    example = re.search(r"Example: (lpu .*)$", shown)
    assert example is not None
    given = shlex.split(example[1])[1:]
    assert given[: len(words.split())] == words.split()
    context = command.make_context(words, given[len(words.split()) :])
    assert set(context.params) == {param.name for param in command.params}


def test_options_of_a_long_verb_are_in_groups() -> None:
    names = {param.name for command in verbs().values() for param in command.params}
    assert set(PANELS) <= names, "a group for an option that no verb has"
    load = verbs()["experiment load"]
    panels = {param.rich_help_panel for param in load.params}
    assert len(load.params) > 30 and len(panels - {None}) >= 6
    assert {p.name for p in load.params if p.rich_help_panel is None} <= {"help"}


def test_bench_lists_its_rows() -> None:
    from cluster.bench.rows import ROWS

    assert tuple(ROWS) == ROW_NAMES
    names = next(param for param in verbs()["bench"].params if param.name == "names")
    assert all(name in names.help for name in ROWS)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from cluster.cli import run; run(['--help']);"
        "print(*[m for m in ('numpy', 'numba', 'ray', 'matplotlib', 'pandas') if m in sys.modules],"
        " file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "" and "generate" in done.stdout
