"""The header of an ``.lpu`` file: plain data, packed canonically and trusted in nothing.

``parse`` checks every value of a header, and that each use of a section fits the section's size;
it allocates no more than the header's own values need.  What the sections hold is
``programs.artifact``'s business.
"""

from __future__ import annotations

import itertools
import math
import re
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import msgpack
import numpy as np

from chip.errors import LpuError
from chip.isa import LANES, LINKS, SLICES, SLICES_PER_HEMISPHERE
from chip.program import BLOCK_DTYPE, MAX_BLOCKS, MAX_CYCLES, MAX_GANG_MEMBERS, MAX_GANGS, MAX_MAPS
from chip.spec import ChipSpec, SpecError, largest_value

VERSION = 1
#: (Fewest, most) chips of every topology an artifact can be for; the last five are those of
#: ``interconnect.wiring.topology``, a topology file is "custom".
TOPOLOGIES = {
    "single": (1, 1),
    "node-2": (2, 2),
    "node-4": (4, 4),
    "node-8": (8, 8),
    "node": (1, 8),
    "nodes": (16, 264),
    "dragonfly": (144, 10_440),
    "lpx": (256, 256),
    "custom": (1, 10_440),
}

MAX_HEADER_BYTES = 32 * 2**20
MAX_ITEMS = 500_000  # values in a header
MAX_DEPTH = 32  # containers inside containers
MAX_PROGRAMS = 4096  # over all entry points, as the next two
MAX_TOTAL_BLOCKS = 2**25
MAX_TOTAL_GANGS = 2**18
MAX_FILE_BYTES = 2**44
#: Paths of files that travel with a model: a name, or one in a directory; none is hidden.
_FILE_NAME = re.compile(r"(/?[^/.\x00-\x1f\x7f][^/\x00-\x1f\x7f]{0,254}){1,2}")
COLUMNS = [[name, BLOCK_DTYPE[name].str] for name in BLOCK_DTYPE.names or ()]


class ArtifactError(LpuError, ValueError):
    """A file or artifact that cannot be used: one line, what is wrong and what would mend it."""


def damaged(what: str) -> ArtifactError:
    """The error of a file that is not as it was written."""
    return ArtifactError(f"damaged: {what}; copy or compile it again")


@dataclass
class Section:
    """One section as the header describes it; ``kind`` and ``count`` come from its first use."""

    length: int
    digest: str
    kind: str = ""
    count: int = 0


def pack(header: dict[str, Any]) -> bytes:
    """The one msgpack of ``header``, which must be plain data."""
    packed: bytes = msgpack.packb(_plain(header, "the header"))
    return packed


def _plain(value: Any, what: str, depth: int = 0) -> Any:
    """``value`` with sorted keys and lists for tuples, if it is plain data."""
    if depth > MAX_DEPTH:
        raise ArtifactError(f"{what} is nested deeper than {MAX_DEPTH}; flatten it")
    kind = type(value)
    if isinstance(value, (np.bool_, np.integer, np.float64)):
        return _plain(value.item(), what, depth)
    if value is None or kind is bool:
        return value
    if kind is int:
        if -(2**63) <= value < 2**63:
            return value
        raise ArtifactError(f"{what} holds an integer beyond 64 bits; use a smaller one")
    if kind is float:
        if math.isfinite(value):
            return value
        raise ArtifactError(f"{what} holds {value}; use finite numbers")
    if kind is str:
        if value.isascii() or value.encode("utf-8", "replace").decode() == value:
            return value
        raise ArtifactError(f"{what} holds text with half of a surrogate pair; remove it")
    if kind in (list, tuple):
        return [_plain(item, what, depth + 1) for item in value]
    if kind is dict and all(type(key) is str for key in value):
        return {
            _plain(key, what): _plain(
                value[key], ascii(key)[1:-1][:40] if depth == 0 else what, depth + 1
            )
            for key in sorted(value)
        }
    raise ArtifactError(
        f"{what} holds a {kind.__name__}; use None, bool, int, float, str, lists"
        " and dictionaries with text keys"
    )


def _scan(data: bytes) -> None:
    """Refuse msgpack that is incomplete, holds bytes or extensions, or unpacks to too much."""
    pending = [1]  # values still to come, per open container
    items, at = 0, 0
    while pending:
        if pending[-1] == 0:
            pending.pop()
            continue
        pending[-1] -= 1
        items += 1
        if at >= len(data):
            raise damaged("the header ends early")
        code = data[at]
        at += 1
        inside, length = 0, 0
        if 0x80 <= code <= 0x9F:  # short map or list
            inside = (code & 15) * (2 if code < 0x90 else 1)
        elif 0xA0 <= code <= 0xBF:  # short text
            length = code & 31
        elif code in _WIDTH_OF_LENGTH:
            width = _WIDTH_OF_LENGTH[code]
            number = int.from_bytes(data[at : at + width], "big")
            at += width
            if code <= 0xDB:
                length = number
            else:
                inside = number * (2 if code >= 0xDE else 1)
        elif code in _WIDTH_OF_NUMBER:
            length = _WIDTH_OF_NUMBER[code]
        elif code not in (0xC0, 0xC2, 0xC3) and 0x80 <= code < 0xE0:
            raise damaged("the header holds what is no plain data")
        at += length
        if inside:
            pending.append(inside)
        if items + inside > MAX_ITEMS or len(pending) > MAX_DEPTH + 2:
            raise ArtifactError(
                f"the header holds more than {MAX_ITEMS} values or is nested deeper than"
                f" {MAX_DEPTH}; use fewer, larger pieces"
            )
    if at != len(data):
        raise damaged("the header's length is wrong")


_WIDTH_OF_LENGTH = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_WIDTH_OF_NUMBER = {
    0xCA: 4,
    0xCB: 8,
    0xCC: 1,
    0xCD: 2,
    0xCE: 4,
    0xCF: 8,
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
}


def typed(value: Any, kind: type, what: str) -> Any:
    """``value``, which has to be a ``kind``."""
    if type(value) is not kind:
        given = type(value).__name__
        raise ArtifactError(f"{what}: a {given} where a {kind.__name__} belongs; compile it again")
    return value


def _number(value: Any, what: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ArtifactError(f"{what} is {reprlib.repr(value)}; use an integer in {low}..{high}")
    return value


def _list(value: Any, what: str, length: int | None = None) -> list[Any]:
    if type(value) is not list or (length is not None and len(value) != length):
        items = "" if length is None else f" of {length}"
        raise ArtifactError(f"{what} is no list{items}; compile it again")
    return value


def _record(value: Any, what: str, names: tuple[str, ...]) -> dict[str, Any]:
    if type(value) is not dict or set(value) != set(names):
        odd = sorted(set(names) ^ set(value)) if type(value) is dict else names
        first = ascii(odd[0])[1:-1][:40]
        raise ArtifactError(f"{what} lacks the field {first}, or has it too much; compile it again")
    return value


_FIELDS = (
    "format",
    "spec",
    "topology",
    "chips",
    "cables",
    "columns",
    "entry_points",
    "program_of_chip",
    "memory",
    "bindings",
    "model",
    "predicted_cycles",
    "sections",
)


def parse(raw: bytes) -> tuple[dict[str, Any], list[Section], ChipSpec]:
    """The checked header in ``raw``, its sections, and its chip spec."""
    if len(raw) > MAX_HEADER_BYTES:
        raise ArtifactError(f"a header of {len(raw)} bytes; keep it within {MAX_HEADER_BYTES}")
    _scan(raw)
    try:
        header = msgpack.unpackb(raw, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException):
        raise damaged("the header is no msgpack") from None
    fields_ = (*_FIELDS, "files") if type(header) is dict and "files" in header else _FIELDS
    _record(header, "the header", fields_)
    if pack(header) != raw:
        raise damaged("the header is not in canonical form")
    _number(header["format"], "the format", VERSION, VERSION)
    spec = _parse_spec(header["spec"])
    if type(header["topology"]) is not str or header["topology"] not in TOPOLOGIES:
        raise ArtifactError(
            f"topology is {reprlib.repr(header['topology'])}; use {', '.join(TOPOLOGIES)}"
        )
    fewest, most = TOPOLOGIES[header["topology"]]
    chips = _number(header["chips"], f"chips of {header['topology']}", fewest, most)
    ends: set[tuple[int, int]] = set()
    for cable in _list(header["cables"], "cables"):
        _list(cable, "a cable", 4)
        for chip, link in (cable[:2], cable[2:]):
            _number(chip, "a cable's chip", 0, chips - 1)
            _number(link, "a cable's link", 0, LINKS - 1)
            if (chip, link) in ends:
                raise ArtifactError(f"link {link} of chip {chip} has two cable ends; keep one")
            ends.add((chip, link))
    if header["columns"] != COLUMNS:
        raise ArtifactError("the block tables have other columns; compile it again")
    for name in ("bindings", "model"):
        typed(header[name], dict, name)
    for name, cycles in typed(header["predicted_cycles"], dict, "predicted_cycles").items():
        _number(cycles, f"predicted_cycles of {name[:40]!r}", 0, MAX_CYCLES)
    sections: list[Section] = []
    for entry in _list(header["sections"], "sections"):
        length, digest = _list(entry, "a section", 2)
        _number(length, "a section's length", 0, 2**40)
        if type(digest) is not str or len(digest) != 64:
            raise damaged("a section without its sha256")
        sections.append(Section(length, digest))
    _parse_uses(header, sections, chips, spec.words_per_slice)
    return header, sections, spec


def _parse_files(files: Any, use: Callable[[int, Any, str, int, int], None]) -> None:
    """Check the files of a model: plain paths below one name, pieces that ascend inside them."""
    top: set[str] = set()
    for name, entry in typed(files, dict, "files").items():
        if name.startswith("/") or not _FILE_NAME.fullmatch(name):
            raise ArtifactError(f"files: {ascii(name)[:60]} is no plain path; compile it again")
        top.add(name.partition("/")[0])
        size, pieces = _list(entry, "a file", 2)
        _number(size, "a file's size", 0, MAX_FILE_BYTES)
        end = 0
        for piece in _list(pieces, "a file's pieces"):
            at, length, number = _list(piece, "a file's piece", 3)
            _number(length, "a piece's length", 1, size)
            _number(at, "a piece's offset", end, size - length)
            use(length, number, "file", length, length)
            end = at + length
    if len(top) > 1:
        raise ArtifactError("files of two models; compile it again")


def _parse_spec(value: Any) -> ChipSpec:
    """The chip spec with these fields, none of them absurd."""
    names = tuple(f.name for f in fields(ChipSpec))
    values = dict(_record(value, "spec", names))
    default = ChipSpec()
    for name in names:
        kind, what = type(getattr(default, name)), f"spec.{name}"
        if kind is int:
            _number(values[name], what, 1, largest_value(name))
        elif kind is tuple:
            last = SLICES_PER_HEMISPHERE - 1
            slices = tuple(_number(v, what, 0, last) for v in _list(values[name], what))
            _number(len(set(slices)), f"distinct {what}", len(slices), len(slices))
            values[name] = slices
        else:
            typed(values[name], kind, what)
    try:
        return ChipSpec(**values)
    except SpecError as error:
        raise ArtifactError(f"spec: {error}; compile it again") from None


def _parse_uses(
    header: dict[str, Any], sections: list[Section], chips: int, words_per_slice: int
) -> None:
    """Check everything that refers to sections; sections come in the order of their first use."""
    used = 0

    def use(count: int, number: Any, kind: str, least: int, most: int) -> None:
        nonlocal used
        if type(number) is not int or not 0 <= number <= used or number >= len(sections):
            raise damaged(f"{kind} in a section that is missing or out of order")
        section = sections[number]
        if number == used:
            used += 1
            section.kind, section.count = kind, count
        if (section.kind, section.count) != (kind, count) or not least <= section.length <= most:
            raise damaged(f"a section of {kind} does not have its size")

    which = _list(header["program_of_chip"], "program_of_chip", chips)
    highest = max(_number(number, "program_of_chip", 0, MAX_PROGRAMS - 1) for number in which)
    total_blocks, total_programs = 0, 0
    for name, programs in typed(header["entry_points"], dict, "entry_points").items():
        if not 1 <= len(name) <= 64 or not name.isprintable():
            raise ArtifactError("an entry point's name is no 1..64 printable characters; rename it")
        _number(
            len(_list(programs, name)),
            f"programs of {name}: their number",
            highest + 1,
            MAX_PROGRAMS,
        )
        total_programs += len(programs)
        for program in programs:
            _record(program, f"a program of {name}", ("cycles", "blocks", "gangs", "maps"))
            _number(program["cycles"], f"cycles of {name}", 0, MAX_CYCLES)
            for kind, limit, least, most in (
                ("blocks", MAX_BLOCKS, BLOCK_DTYPE.itemsize, BLOCK_DTYPE.itemsize),
                ("gangs", MAX_GANGS, 2, 1 + MAX_GANG_MEMBERS),
                ("maps", MAX_MAPS, 2 * LANES, 2 * LANES),
            ):
                count, number = _list(program[kind], f"{kind} of {name}", 2)
                _number(count, f"{kind} of {name}", 0, limit)
                use(count, number, kind, count * least, count * most)
            total_blocks += program["blocks"][0]
    _number(total_blocks, "the number of all blocks", 0, MAX_TOTAL_BLOCKS)
    _number(total_programs, "the number of all programs", 0, MAX_PROGRAMS)
    for chip, entries in enumerate(_list(header["memory"], "memory", chips)):
        what = f"memory of chip {chip}:"
        spans: list[tuple[int, int, int]] = []
        for entry in _list(entries, what):
            slice_, address, words, number = _list(entry, f"{what} an entry", 4)
            _number(slice_, f"{what} a slice", 0, SLICES - 1)
            _number(address, f"{what} an address", 0, words_per_slice - 1)
            _number(words, f"{what} the words at {address}", 1, words_per_slice - address)
            use(words, number, "rows", words * LANES, words * LANES)
            spans.append((slice_, address, words))
        spans.sort()
        for (s, a, n), (other, b, _) in itertools.pairwise(spans):
            if s == other and a + n > b:
                raise ArtifactError(f"{what} slice {s} has word {b} twice; keep one")
    _parse_files(header.get("files", {}), use)
    if used != len(sections):
        raise damaged("sections that nothing uses")
    gangs = sum(section.count for section in sections if section.kind == "gangs")
    _number(gangs, "the number of all gangs", 0, MAX_TOTAL_GANGS)
