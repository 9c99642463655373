"""What a damaged or impossible artifact is refused with, in its own words."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from programs.artifact import ArtifactError, load, save
from tests.unit.programs.test_artifact import PREAMBLE, error_of, file, rewritten, sample

__all__ = ["file"]  # the fixture


def with_header(path: Path, packed: bytes) -> None:
    """``path`` with another header, whose hash fits."""
    raw = path.read_bytes()
    body = raw[PREAMBLE.size + PREAMBLE.unpack_from(raw)[2] :]
    start = PREAMBLE.pack(b"LPU\0", 1, len(packed), hashlib.sha256(packed).digest())
    path.write_bytes(start + packed + body)


HEADERS = {
    "ends": (b"\x92\x01", "the header ends early"),
    "longer": (b"\x01\x01", "the header's length is wrong"),
    "extension": (b"\xd4\x01\x02", "the header holds what is no plain data"),
    "text": (b"\xa1\xff", "the header is no msgpack"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_are_none(file: Path, name: str) -> None:
    packed, says = HEADERS[name]
    with_header(file, packed)
    assert says in error_of(file)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "topology": (lambda h: h.update(topology="ring"), "topology is 'ring'; use single"),
    "kind": (lambda h: h.update(bindings=[]), "a list where a dict belongs; compile it again"),
    "digest": (lambda h: h["sections"][0].__setitem__(1, "x"), "a section without its sha256"),
    "sections": (lambda h: h["sections"].append([0, "0" * 64]), "sections that nothing uses"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_headers_that_say_what_cannot_be(file: Path, name: str) -> None:
    change, says = CHANGES[name]
    rewritten(file, change)
    assert says in error_of(file)


def test_files_that_end_or_differ(file: Path) -> None:
    whole = file.read_bytes()
    length = PREAMBLE.unpack_from(whole)[2]
    for data, says in (
        (whole[:20], "it ends inside the preamble"),
        (whole[: PREAMBLE.size + 9], f"a header of {length} bytes cannot be in it"),
        (whole[:60] + bytes([whole[60] ^ 1]) + whole[61:], "the header does not match its sha256"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "does not match its sha256"),
    ):
        file.write_bytes(data)
        assert says in error_of(file)
    newer = PREAMBLE.pack(b"LPU\0", 2, length, bytes(32))
    file.write_bytes(newer + whole[PREAMBLE.size :])
    assert "has format version 2, newer than 1; install a newer lpu-cluster" in error_of(file)
    older = PREAMBLE.pack(b"LPU\0", 0, length, bytes(32))
    file.write_bytes(older + whole[PREAMBLE.size :])
    assert "has format version 0; compile it again for 1" in error_of(file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"programs": {"x": [None]}}, "is a NoneType; use a Program"),
        ({"memory": [[(0, 0)], []]}, "an entry is no (slice, address, rows); use those"),
        ({"memory": [[(0, 0, np.zeros((1, 320)))], []]}, "rows are no uint8 array; use uint8 [n"),
        ({"memory": [[(0, 0, np.zeros((1, 9), np.uint8))], []]}, "rows of shape (1, 9); use [n, 3"),
        ({"bindings": {"x": float("nan")}}, "holds nan; use finite numbers"),
        ({"model": {"x": "\ud800"}}, "holds text with half of a surrogate pair; remove it"),
        ({"bindings": {"x": 10**30}}, "holds an integer beyond 64 bits; use a smaller one"),
    ],
)
def test_artifacts_that_are_not_written(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        save(replace(sample(), **change), tmp_path / "a.lpu")
    assert says in str(caught.value)


def test_names_that_are_all_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every temporary name exists already."""

    def taken(*_: object) -> int:
        raise FileExistsError

    monkeypatch.setattr("programs.artifact.file.os.open", taken)
    with pytest.raises(ArtifactError, match="too many temporary files beside it; remove them"):
        save(sample(), tmp_path / "a.lpu")


def test_a_path_that_is_none(tmp_path: Path) -> None:
    assert "is no regular file; give the path of an .lpu file" in error_of(tmp_path)
    with pytest.raises(ArtifactError, match=": cannot be read: "):
        load(tmp_path / "a\0b.lpu")
