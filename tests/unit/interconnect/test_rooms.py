"""What a user imports first is light, and the rooms of the fabric see only those below them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import interconnect

ROOT = Path(interconnect.__file__).parent

#: room: the rooms of the fabric it may see, itself left out.
BELOW = {
    "wiring": set[str](),
    "wires": {"wiring"},
    "vectors": set[str](),
    "collectives": {"wiring", "wires", "vectors"},
    "clocks": {"wiring"},
}


def test_the_first_import_compiles_nothing() -> None:
    look = "import sys, interconnect; print(*{'numba', 'numpy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


def test_every_name_of_the_face_is_there() -> None:
    assert interconnect.topology_of(8).chips == 8
    for name in interconnect.__all__:
        assert getattr(interconnect, name).__name__ == name


@pytest.mark.parametrize("room", BELOW)
def test_rooms_see_what_is_below(room: str) -> None:
    files = [ROOT / f"{room}.py"] if room == "vectors" else sorted((ROOT / room).glob("*.py"))
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("interconnect."):
                _, seen, *file = str(node.module).split(".")
                assert seen == room or seen in BELOW[room], f"{path.name} imports {node.module}"
                assert seen == room or not file, f"{path.name} imports a file of {seen}"
