"""Compiled code on disk that is of other sources is compiled anew, whatever it names or inlines."""

from __future__ import annotations

import os
import shutil
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


ASKING = """
from chip.engine.inlined import answer
from chip.jit import jit


@jit
def ask():
    return answer()


print(ask())
"""
INLINED = """
from chip.jit import jit_inline


@jit_inline
def answer():
    return {}
"""


def printed(directory: Path, module: str, *places: Path) -> str:
    """What ``module`` prints in a fresh interpreter that finds packages in ``places`` too."""
    path = os.pathsep.join(str(place) for place in (directory, *places))
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=directory,  # the first place of all
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run(directory: Path, name: str, more: int) -> str:
    """What the module prints in a fresh interpreter, its tuple's class being called ``name``."""
    (directory / "module_of_old.py").write_text(MODULE.format(name=name, more=more))
    return printed(directory, "module_of_old", ROOT)


@pytest.mark.long
def test_a_class_that_is_gone(tmp_path: Path) -> None:
    assert run(tmp_path, "Before", 1) == "4"
    assert list(tmp_path.rglob("*.nbi"))
    assert run(tmp_path, "After", 20) == "23"
    assert run(tmp_path, "After", 20) == "23"


@pytest.mark.long
def test_a_file_that_is_inlined_is_another(tmp_path: Path) -> None:
    """The asking file stays as it is; the second answer comes from the same kernel on disk."""
    shutil.copytree(ROOT / "chip", tmp_path / "chip", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "asking.py").write_text(ASKING)
    for answer in (7, 1234):
        (tmp_path / "chip" / "engine" / "inlined.py").write_text(INLINED.format(answer))
        for _ in range(2):
            assert printed(tmp_path, "asking") == str(answer)
        assert len(list(tmp_path.rglob("asking*.nbc"))) == 1
