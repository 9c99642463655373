"""What ``lpu fabric info`` says of a wiring that a user brings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.cli import run


def test_links_that_no_collective_can_use_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``fabric info`` took cables that ``fabric collective`` refuses, and said nothing."""
    path = tmp_path / "high.json"
    path.write_text(json.dumps({"chips": 3, "cables": [[0, 15, 1, 14], [1, 2, 2, 0]]}))
    assert run(["fabric", "info", "--chips", str(path)]) == 0
    assert "no collectives over" in (told := capsys.readouterr().out)
    assert "links 14, 15; programs may use them" in " ".join(told.split())
    assert run(["fabric", "collective", "--chips", str(path), "--bytes", "320"]) == 2
    assert "this link number has no place in the frames" in capsys.readouterr().err
    path.write_text(json.dumps({"chips": 3, "cables": [[0, 3, 1, 4], [1, 2, 2, 0]]}))
    assert run(["fabric", "info", "--chips", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["links_without_frames"] == []
