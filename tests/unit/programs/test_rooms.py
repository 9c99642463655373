"""The rooms of programs: which may import which, and how large what stands in them may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

PROGRAMS = ROOT / "programs"
#: From below to above; rooms of one level do not see each other.
LEVELS = (
    {"models", "sram", "artifact"},
    {"kernels", "faults"},
    {"decoder", "encoder", "convnet", "matmul"},
    {"running"},
    {"plans"},
)
#: Trained elsewhere, and scripts on top of everything.
OUTSIDE = {"checkpoints", "workloads"}
MOST_FILES, MOST_LINES, MOST_PARAMETERS, MOST_BODY = 15, 400, 10, 120
ROOMS = sorted(path.name for path in PROGRAMS.iterdir() if (path / "__init__.pyi").exists())


def files(room: str) -> list[Path]:
    return [p for p in sorted((PROGRAMS / room).glob("*.py")) if p.name != "__init__.py"]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_room_has_its_level() -> None:
    assert set(ROOMS) == set().union(*LEVELS)
    assert {p.name for p in PROGRAMS.iterdir() if p.is_dir()} - OUTSIDE - {"__pycache__"} == set(
        ROOMS
    )


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down(room: str) -> None:
    level = next(number for number, rooms in enumerate(LEVELS) if room in rooms)
    below = set().union(*LEVELS[:level])
    for path in files(room):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "programs" or parts[1] == room:
                continue
            assert parts[1] in below, f"{path.name} imports {name}"
            assert len(parts) == 2, f"{path.name} imports {name}, a file of another room"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_and_functions_stay_small(room: str) -> None:
    assert len(files(room)) <= MOST_FILES
    for path in files(room):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= MOST_LINES, path.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                a, at = node.args, f"{path.name}: {node.name}"
                assert len(a.posonlyargs + a.args + a.kwonlyargs) <= MOST_PARAMETERS, at
                assert (node.end_lineno or 0) - node.lineno < MOST_BODY, at


def test_a_public_class_has_its_name_alone() -> None:
    found: dict[str, str] = {}
    for path in sorted(PROGRAMS.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert node.name not in found, f"{node.name}: {found[node.name]} and {path}"
                found[node.name] = str(path)
