"""Compiled code that an older version left on disk is compiled anew, whatever it names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

MODULE = """
from typing import NamedTuple

from chip.jit import jit


class {name}(NamedTuple):
    x: int


@jit
def take(pair):
    return pair.x + {more}


print(take({name}(3)))
"""


def run(directory: Path, name: str, more: int) -> str:
    """What the module prints in a fresh interpreter, its tuple's class being called ``name``."""
    (directory / "module_of_old.py").write_text(MODULE.format(name=name, more=more))
    path = os.pathsep.join([str(directory), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", "import module_of_old"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.long
def test_a_class_that_is_gone(tmp_path: Path) -> None:
    assert run(tmp_path, "Before", 1) == "4"
    assert list(tmp_path.rglob("*.nbi"))
    assert run(tmp_path, "After", 20) == "23"
    assert run(tmp_path, "After", 20) == "23"
