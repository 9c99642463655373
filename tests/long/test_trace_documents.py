"""The commands of the page about traces and reports run, and write what they name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cluster.cli import run
from tests import ROOT

PAGE = ROOT / "docs" / "traces-and-reports.md"
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    for line in block.splitlines()
]


def test_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = set()
    for line in COMMANDS:
        program, *arguments = shlex.split(line)
        assert program == "lpu"
        assert run(arguments) == 0, line
        named = set(re.findall(r"\S+\.(?:json\.gz|json|pftrace|html)\b", line))
        assert named <= {path.name for path in tmp_path.iterdir()}, line
        expected |= named
    assert expected == {path.name for path in tmp_path.iterdir()}
    assert all(path.stat().st_size > 10_000 for path in tmp_path.iterdir())
