"""Representative runs give what ``guard.json`` says (``tests/guard.py``: when to renew it)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.guard import (
    ENTRIES,
    FILE,
    ROOT,
    UNREPEATABLE,
    Entry,
    GuardError,
    artifact_sha256,
    differences,
    measure,
    recorded,
    repeatable,
    written,
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if entry.long else [])
        for name, entry in ENTRIES.items()
    ],
)
@pytest.mark.cases(8)
def test_same_as_recorded(name: str, tmp_path: Path) -> None:
    found = list(differences(recorded()[name], measure(ENTRIES[name], tmp_path)))
    assert not found, "\n".join(found)


def test_the_file_is_of_these_entries() -> None:
    before = recorded()
    assert list(before) == list(ENTRIES)
    for name, entry in ENTRIES.items():
        commands = [key for key in before[name] if key.startswith("lpu ")]
        assert commands == [f"lpu {line}" for line in entry.commands]


def test_the_file_is_the_same_in_every_checkout() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert tempfile.gettempdir() not in text
    assert not [key for key in UNREPEATABLE if f'"{key}"' in text]
    assert text == written(recorded()) + "\n"


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ({"a": {"cycles": 7}}, {"a": {"cycles": 7}}, []),
        ({"a": {"cycles": 7}}, {"a": {"cycles": 8}}, ["a: cycles: was 7, is 8"]),
        ({"a": [1, 2]}, {"a": [1, 3]}, ["a: was [1, 2], is [1, 3]"]),
        ({"a": 1, "b": "x"}, {"a": 1}, ['b: no longer there, was "x"']),
        ({"a": 1}, {"a": 1, "b": None}, ["b: new, null"]),
        ({"a": 1}, {"a": True}, ["a: was 1, is true"]),
        ({"a": {}}, {"a": None}, ["a: was {}, is null"]),
    ],
)
def test_differences_are_named(before: Any, after: Any, lines: list[str]) -> None:
    assert list(differences(before, after)) == lines


def test_what_differs_between_runs_is_left_out() -> None:
    value = {"run": [{"wall_seconds": 1.5, "cycles": 3}], "virtual_seconds": 0.1234567890123456}
    assert repeatable(value) == {"run": [{"cycles": 3}], "virtual_seconds": 0.123456789012}
    assert repeatable([float("nan"), 2, True]) == ["nan", 2, True]


def test_a_command_that_fails_is_never_recorded(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match=r"^lpu run none\.lpu: exit code 2: lpu: none\.lpu: "):
        measure(Entry(("run none.lpu",)), tmp_path)


def test_an_artifacts_sum_leaves_out_where_its_checkpoint_lay(tmp_path: Path) -> None:
    found = []
    for place in ("here", "elsewhere"):
        directory = tmp_path / place
        directory.mkdir()
        model = directory / "draft"
        command = f"compile --tp 1 --context 64 --model {model} -o model.lpu"
        measured = measure(Entry((command,)), directory)
        found.append((directory / "model.lpu").read_bytes())
        assert measured["model.lpu"]["sha256"] == artifact_sha256(found[-1])
    assert found[0] != found[1]
    assert artifact_sha256(found[0]) == artifact_sha256(found[1])
    damaged = found[0][:-1] + bytes([found[0][-1] ^ 1])
    assert artifact_sha256(damaged) != artifact_sha256(found[0])
