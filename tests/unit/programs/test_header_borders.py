"""Numbers of a header at the ends of what they may be, and msgpack of every kind."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import msgpack
import pytest

from programs.artifact import ArtifactError, save
from programs.artifact.header import _scan, pack, parse
from tests.unit.programs.test_artifact import PREAMBLE, sample

Place = Sequence[Any]


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("header") / "a.lpu"
    save(sample(), path)
    raw = path.read_bytes()
    whole: dict[str, Any] = msgpack.unpackb(raw[PREAMBLE.size :][: PREAMBLE.unpack_from(raw)[2]])
    return whole


def refusal(header: dict[str, Any], place: Place, value: Any) -> str:
    """What is said of a header with another value at a place; empty where it is taken."""
    changed = copy.deepcopy(header)
    inside: Any = changed
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    try:
        parse(pack(changed))
    except ArtifactError as error:
        return str(error)
    return ""


PROGRAM = ("entry_points", "decode", 0)
#: Where a number is, and the least and the greatest it may be.
NUMBERS: list[tuple[Place, int, int]] = [
    (("format",), 1, 1),
    (("chips",), 2, 2),
    (("cables", 0, 0), 0, 1),
    (("cables", 0, 1), 0, 15),
    (("cables", 0, 2), 0, 1),
    (("cables", 0, 3), 0, 15),
    (("predicted_cycles", "decode"), 0, 2**40),
    (("sections", 0, 0), 0, 2**40),
    (("program_of_chip", 1), 0, 4095),
    ((*PROGRAM, "cycles"), 0, 2**40),
    ((*PROGRAM, "blocks", 0), 0, 2**24),
    ((*PROGRAM, "gangs", 0), 0, 65_536),
    ((*PROGRAM, "maps", 0), 0, 65_536),
    (("memory", 0, 0, 0), 0, 87),
    (("memory", 0, 0, 1), 0, 8191),
    (("memory", 0, 0, 2), 1, 8192),  # from word 0 on
    (("memory", 0, 1, 2), 1, 3),  # from word 8189 on
    (("files", "tiny/weights", 0), 0, 2**44),
    (("files", "tiny/weights", 1, 0, 1), 1, 5000),
    (("files", "tiny/weights", 1, 0, 0), 0, 5000 - 320),
    (("files", "tiny/weights", 1, 1, 0), 8 + 320, 5000 - 5),
    (("spec", "read_cycles"), 1, 2**20),
    (("spec", "reserved_slices_west", 0), 0, 43),
    (("spec", "reserved_slices_east", 0), 0, 43),
]


@pytest.mark.parametrize(("place", "least", "most"), NUMBERS)
def test_the_ends_of_a_number(header: dict[str, Any], place: Place, least: int, most: int) -> None:
    said = f"use an integer in {least}..{most}"
    for value in (least - 1, most + 1, True, float(least), None):
        assert said in refusal(header, place, value), value
    for value in (least, most):
        assert said not in refusal(header, place, value), value


def test_names_of_entry_points(header: dict[str, Any]) -> None:
    for name, fine in (("", False), ("x", True), ("x" * 64, True), ("x" * 65, False)):
        changed = copy.deepcopy(header)
        for table in ("entry_points", "predicted_cycles"):
            changed[table][name] = changed[table].pop("decode")
        # sections come in the order of their first use, which is that of the names
        changed["entry_points"] = {name: header["entry_points"]["decode"]}
        said = refusal(changed, ("format",), 1)
        assert ("is no 1..64 printable characters" in said) == (not fine), name


# --- msgpack --------------------------------------------------------------------------------------

ONES: list[Any] = [
    None,
    True,
    False,
    1.5,
    *(s * 2**n for n in (0, 6, 8, 16, 32, 62) for s in (1, -1)),
]
TEXTS: list[Any] = ["", "x" * 31, "x" * 32, "x" * 255, "x" * 256, "x" * 65_535, "x" * 65_536]
LISTS: list[Any] = [[7] * n for n in (0, 1, 15, 16, 65_535, 65_536)]
DICTS: list[Any] = [{str(k): [k, "a"] for k in range(n)} for n in (0, 1, 15, 16, 256)]
DICTS.append(dict.fromkeys(map(str, range(65_536))))


@pytest.mark.parametrize("values", [ONES, TEXTS, LISTS, DICTS])
def test_plain_data_of_every_size(values: list[Any]) -> None:
    for value in values:
        packed = msgpack.packb(value)
        _scan(packed)
        if len(packed) < 1000:
            _scan(b"\x92" + packed + packed)
        for short in {0, 1, len(packed) // 2, len(packed) - 1} - {len(packed)}:
            with pytest.raises(ArtifactError, match=r"the header ends early|length is wrong"):
                _scan(packed[:short])
        with pytest.raises(ArtifactError, match="the header's length is wrong"):
            _scan(packed + b"\xc0")
    _scan(msgpack.packb(1.5, use_single_float=True))


def test_what_is_no_plain_data() -> None:
    """Bytes, extensions and the one code that msgpack never uses."""
    odd = [msgpack.packb(b"x" * n) for n in (1, 300, 70_000)]
    odd += [msgpack.packb(msgpack.ExtType(5, b"x" * n)) for n in (1, 2, 3, 4, 8, 16, 300, 70_000)]
    for packed in [*odd, b"\xc1"]:
        with pytest.raises(ArtifactError, match="the header holds what is no plain data"):
            _scan(packed)


def test_too_much_and_too_deep(header: dict[str, Any]) -> None:
    _scan(msgpack.packb([0] * 499_999))  # with the list itself half a million
    with pytest.raises(
        ArtifactError, match="the header holds more than 500000 values or is nested"
    ):
        _scan(msgpack.packb([0] * 500_000))
    _scan(b"\x91" * 33 + b"\xc0")
    with pytest.raises(ArtifactError, match="nested deeper than 32"):
        _scan(b"\x91" * 34 + b"\xc0")
    deep: Any = 0
    for _ in range(30):
        deep = [deep]
    assert refusal(header, ("model",), {"deep": deep}) == ""
    said = refusal(header, ("model",), {"deep": [deep]})
    assert said == "model is nested deeper than 32; flatten it"


def test_numbers_of_64_bits() -> None:
    for value in (2**63 - 1, -(2**63)):
        assert msgpack.unpackb(pack({"x": value})) == {"x": value}
    for value in (2**63, -(2**63) - 1):
        with pytest.raises(ArtifactError, match="x holds an integer beyond 64 bits"):
            pack({"x": value})
