"""What is no table is refused with a reason, and nobody's memory is filled."""

from __future__ import annotations

from pathlib import Path

import pytest

from chip.toml_files import TomlFileError, read_toml


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"x", "not valid TOML"),
        (b"\xff = 1", "not valid TOML"),
        (b"a = " + b"[" * 5000, "nested too deeply"),
        (b"#" * 101, "more than 100 bytes"),
    ],
)
def test_refusals_are_one_line(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(data)
    with pytest.raises(TomlFileError, match=reason) as refusal:
        read_toml(path, 100 if len(data) == 101 else 1 << 20)
    assert "\n" not in str(refusal.value)


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.toml", tmp_path / "a\0b"):
        with pytest.raises(TomlFileError, match="not readable"):
            read_toml(path)


def test_endless_files_are_read_to_the_limit() -> None:
    with pytest.raises(TomlFileError, match="more than 1000 bytes"):
        read_toml(Path("/dev/zero"), 1000)
