"""Where a private Ray keeps its sockets, whose paths have at most 107 bytes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from cluster.processes.ray_session import LONGEST_DIRECTORY, _short_directory


@pytest.mark.parametrize("extra", [0, 1, 100])
def test_a_long_temporary_directory_is_not_used(
    extra: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    parent = root / ("d" * (LONGEST_DIRECTORY + extra - len(str(root)) - 1))
    parent.mkdir()
    assert len(str(parent)) == LONGEST_DIRECTORY + extra
    monkeypatch.setattr(tempfile, "tempdir", str(parent))
    found = Path(_short_directory())
    assert found.is_dir()
    assert found.parent == (parent if extra == 0 else Path("/tmp"))
    shutil.rmtree(found)
    shutil.rmtree(root)
