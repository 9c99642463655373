"""The ``.lpu`` file: everything a cluster needs to run a compiled model, in one file.

Layout, little-endian::

    magic "LPU\\0" | version u32 | header length u64 | content hash, 32 bytes of sha256
    header: canonical msgpack (sorted keys) of plain data; lists every section [length, sha256]
    sections, one after another, nothing between or after them

The content hash is the sha256 of the header, and the header holds the sha256 of every section, so
it names the whole content.  A section is a block table (columns one after another), a list of
gangs (u8 lengths, then u8 queues), lane maps (int16), memory rows (uint8 [n, 320]) or bytes of a
file that travels with the model: its tokenizer, its embeddings.  Equal
arrays are stored once and loaded once: chips and entry points *share* what is equal, so loaded
arrays are read-only and a table has to be copied before it is changed.

Reading trusts nothing: the header's every value is checked, and all sizes against the size of the
file, before anything is allocated.  Any file ends in an :class:`Artifact` or one
:class:`ArtifactError`, with at most the file's size in arrays.  This module knows nothing of
models, of what bindings mean, or of what makes a program legal.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from chip.isa import LANES
from chip.program import BlockTable, Program, ProgramLimitError, new_blocks, validate_program
from chip.spec import ChipSpec
from programs.artifact.header import (
    COLUMNS,
    MAX_HEADER_BYTES,
    TOPOLOGIES,
    VERSION,
    ArtifactError,
    Section,
    damaged,
    pack,
    parse,
    typed,
)

__all__ = ["TOPOLOGIES", "Artifact", "ArtifactError", "content_hash", "load", "save"]

MAGIC = b"LPU\0"
_PREAMBLE = struct.Struct("<4sIQ32s")
_CHUNK = 4 * 2**20  # bytes read, hashed or written at once

Rows = NDArray[np.uint8]
#: Bytes of the whole file, and what is kept of it: (offset, uint8 [n]), ascending and apart.
KeptFile = tuple[int, tuple[tuple[int, NDArray[np.uint8]], ...]]


@dataclass(eq=False)
class Artifact:
    """A compiled model.  Two artifacts are equal when their :func:`content_hash` is.

    cables: (chip, link, chip, link).  programs: entry point -> programs, of which chip c runs
    number ``program_of_chip[c]``.  memory: per chip (slice 0..87, first word, uint8 [n, 320]).
    bindings, model: plain JSON-like data.  files: by path below any directory, what of a model's
    own files travels with it; an artifact of no model has none.
    """

    spec: ChipSpec
    topology: str
    chips: int
    cables: list[tuple[int, int, int, int]] = field(default_factory=list)
    programs: dict[str, list[Program]] = field(default_factory=dict)
    program_of_chip: list[int] = field(default_factory=list)
    memory: list[list[tuple[int, int, Rows]]] = field(default_factory=list)
    bindings: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    predicted_cycles: dict[str, int] = field(default_factory=dict)
    files: dict[str, KeptFile] = field(default_factory=dict)

    def program(self, entry_point: str, chip: int) -> Program:
        """The program that ``chip`` runs for ``entry_point``."""
        return self.programs[entry_point][self.program_of_chip[chip]]


def content_hash(artifact: Artifact) -> str:
    """sha256 (hex) over the artifact's whole content; two equal artifacts have one hash."""
    return hashlib.sha256(_header_of(artifact)[0]).hexdigest()


def save(artifact: Artifact, path: str | Path) -> None:
    """Write ``artifact`` to ``path``: the old file stays until the new one is complete on disk."""
    path = Path(path)
    try:
        header, sources = _header_of(artifact)
        temporary, descriptor = _temporary_beside(path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                digest = hashlib.sha256(header).digest()
                file.write(_PREAMBLE.pack(MAGIC, VERSION, len(header), digest))
                file.write(header)
                for source in sources:
                    for chunk in source():
                        file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except ArtifactError as error:
        raise ArtifactError(f"{_show_path(path)}: not written: {error}") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{_show_path(path)}: not written: {_reason(error)}") from None


def load(path: str | Path) -> Artifact:
    """The artifact in the file ``path``; raises :class:`ArtifactError` for any other file."""
    path = Path(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ArtifactError("is no regular file; give the path of an .lpu file")
        with open(path, "rb", buffering=0) as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except ArtifactError as error:
        raise ArtifactError(f"{_show_path(path)}: {error}") from None
    except MemoryError:
        raise ArtifactError(f"{_show_path(path)}: does not fit in memory; free some") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise ArtifactError(f"{_show_path(path)}: cannot be read: {_reason(error)}") from None


def _show_path(path: Path) -> str:
    text = os.fspath(path)
    return text if text.isprintable() else ascii(text)


def _reason(error: Exception) -> str:
    text = (error.strerror or "") if isinstance(error, OSError) else str(error)
    mend = "choose another path" if getattr(error, "errno", 0) != errno.ENOSPC else "free some disk"
    return f"{text or type(error).__name__}; {mend}"


def _temporary_beside(path: Path) -> tuple[Path, int]:
    """A new file in the directory of ``path``, opened for writing."""
    for number in range(1000):
        name = path.with_name(f".{path.name[:100]}.{os.getpid()}.{number}.tmp")
        try:
            return name, os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
    raise ArtifactError("too many temporary files beside it; remove them")


Source = Callable[[], Iterator[bytes]]


class _Writer:
    """Collects the sections of an artifact, equal ones once."""

    def __init__(self) -> None:
        self.sections: list[list[Any]] = []
        self.sources: list[Source] = []
        self._number: dict[tuple[str, int, str], int] = {}

    def add(self, kind: str, count: int, source: Source) -> list[int]:
        """[count, section number] of the data that ``source`` streams."""
        digest, length = hashlib.sha256(), 0
        for chunk in source():
            digest.update(chunk)
            length += len(chunk)
        key = (kind, length, digest.hexdigest())
        if key not in self._number:
            self._number[key] = len(self.sections)
            self.sections.append([length, key[2]])
            self.sources.append(source)
        return [count, self._number[key]]


def _describe(program: Program, writer: _Writer) -> dict[str, Any]:
    """The header's words for ``program``, whose data go to ``writer``."""
    blocks, gangs, maps = program.blocks, program.gangs, program.maps
    return {
        "cycles": program.cycles,
        "blocks": writer.add("blocks", len(blocks), partial(_columns_of, blocks)),
        "gangs": writer.add("gangs", len(gangs), partial(_bytes_of_gangs, gangs)),
        "maps": writer.add("maps", len(maps), partial(_lanes_of, maps)),
    }


def _describe_files(files: dict[str, KeptFile], writer: _Writer) -> dict[str, list[Any]]:
    """The header's words for ``files``, whose pieces go to ``writer``."""
    described: dict[str, list[Any]] = {}
    for name in sorted(files):
        size, parts = files[name]
        places = [
            [at, *writer.add("file", len(part), partial(_parts_of, part))] for at, part in parts
        ]
        described[name] = [size, places]
    return described


def _header_of(artifact: Artifact) -> tuple[bytes, list[Source]]:
    """The packed header of ``artifact`` and the data of its sections, all checked."""
    writer = _Writer()
    typed(artifact.spec, ChipSpec, "the spec")
    entry_points: dict[str, list[dict[str, Any]]] = {}
    for name in typed(artifact.programs, dict, "programs"):
        typed(name, str, "an entry point's name")
    for name in sorted(artifact.programs):
        programs = typed(artifact.programs[name], list, f"programs of {name!r}")
        for number, program in enumerate(programs):
            _validate(program, f"program {number} of {name!r}")
        entry_points[name] = [_describe(program, writer) for program in programs]
    memory: list[list[list[Any]]] = []
    known: dict[int, list[tuple[Rows, list[int]]]] = {}  # by the number of rows
    for chip, entries in enumerate(typed(artifact.memory, list, "memory")):
        what = f"memory of chip {chip}"
        memory.append([])
        for entry in typed(entries, list, what):
            if type(entry) is not tuple or len(entry) != 3:
                raise ArtifactError(f"{what}: an entry is no (slice, address, rows); use those")
            rows = entry[2]
            if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8:
                raise ArtifactError(f"{what}: rows are no uint8 array; use uint8 [n, {LANES}]")
            if rows.ndim != 2 or rows.shape[1] != LANES:
                raise ArtifactError(f"{what}: rows of shape {rows.shape}; use [n, {LANES}]")
            same = known.setdefault(len(rows), [])
            place = next((place for other, place in same if other is rows), None)
            if place is None:
                place = writer.add("rows", len(rows), partial(_rows_of, rows))
                same.append((rows, place))
            memory[-1].append([*entry[:2], *place])
    header = {
        "format": VERSION,
        "spec": asdict(artifact.spec),
        "topology": artifact.topology,
        "chips": artifact.chips,
        "cables": artifact.cables,
        "columns": COLUMNS,
        "entry_points": entry_points,
        "program_of_chip": artifact.program_of_chip,
        "memory": memory,
        "bindings": artifact.bindings,
        "model": artifact.model,
        "predicted_cycles": artifact.predicted_cycles,
        "sections": writer.sections,
    }
    if artifact.files:  # no others have the field, and are to the byte as they were before
        header["files"] = _describe_files(artifact.files, writer)
    packed = pack(header)
    parse(packed)
    return packed, writer.sources


# --- the sections -------------------------------------------------------------------------------


def _columns_of(blocks: BlockTable) -> Iterator[bytes]:
    step = _CHUNK // 8
    for name, dtype in COLUMNS:
        for start in range(0, len(blocks), step):
            yield blocks[name][start : start + step].astype(dtype).tobytes()


def _rows_of(rows: Rows) -> Iterator[bytes]:
    step = _CHUNK // LANES
    for start in range(0, len(rows), step):
        yield rows[start : start + step].tobytes()


def _parts_of(data: NDArray[np.uint8]) -> Iterator[bytes]:
    for start in range(0, len(data), _CHUNK):
        yield data[start : start + _CHUNK].tobytes()


def _lanes_of(maps: list[NDArray[np.int16]]) -> Iterator[bytes]:
    for lanes in maps:
        yield lanes.astype("<i2").tobytes()


def _bytes_of_gangs(gangs: list[tuple[int, ...]]) -> Iterator[bytes]:
    yield bytes(len(gang) for gang in gangs)
    for gang in gangs:
        yield bytes(int(queue) for queue in gang)


def _validate(program: Any, what: str) -> None:
    if not isinstance(program, Program):
        raise ArtifactError(f"{what} is a {type(program).__name__}; use a Program")
    try:
        validate_program(program)
    except ProgramLimitError as error:
        raise ArtifactError(f"{what}: {error}") from None


def _read(file: BinaryIO, size: int) -> Artifact:
    """The artifact in ``file`` of ``size`` bytes."""
    start = file.read(_PREAMBLE.size)
    if start[:4] != MAGIC:
        begin = f"begins with {start[:4]!r}" if start else "is empty"
        raise ArtifactError(f"is no .lpu file (it {begin}); compile a model to get one")
    if len(start) < _PREAMBLE.size:
        raise damaged("it ends inside the preamble")
    _, version, header_length, digest = _PREAMBLE.unpack(start)
    if version > VERSION:
        raise ArtifactError(
            f"has format version {version}, newer than {VERSION}; install a newer lpu-cluster"
        )
    if version != VERSION:
        raise ArtifactError(f"has format version {version}; compile it again for {VERSION}")
    if header_length > min(MAX_HEADER_BYTES, size - _PREAMBLE.size):
        raise damaged(f"a header of {header_length} bytes cannot be in it")
    raw = file.read(header_length)
    if hashlib.sha256(raw).digest() != digest:
        raise damaged("the header does not match its sha256")
    header, sections, spec = parse(raw)
    expected = _PREAMBLE.size + header_length + sum(section.length for section in sections)
    if expected != size:
        raise damaged(f"{size} bytes where {expected} belong")
    data = [_read_section(file, section, number) for number, section in enumerate(sections)]
    programs: dict[str, list[Program]] = {}
    valid: dict[tuple[int, ...], Program] = {}
    for name, described in header["entry_points"].items():
        programs[name] = []
        for number, entry in enumerate(described):
            places = [entry[kind][1] for kind in ("blocks", "gangs", "maps")]
            key = (entry["cycles"], *places)
            if key not in valid:
                blocks, gangs, maps = (data[place] for place in places)
                program = Program(blocks, gangs, maps, entry["cycles"])
                _validate(program, f"program {number} of {name!r}")
                valid[key] = program
            programs[name].append(valid[key])
    return Artifact(
        spec=spec,
        topology=header["topology"],
        chips=header["chips"],
        cables=[tuple(cable) for cable in header["cables"]],
        programs=programs,
        program_of_chip=header["program_of_chip"],
        memory=[[(s, a, data[n]) for s, a, _, n in chip] for chip in header["memory"]],
        bindings=header["bindings"],
        model=header["model"],
        predicted_cycles=header["predicted_cycles"],
        files={
            name: (whole, tuple((at, data[number]) for at, _, number in parts))
            for name, (whole, parts) in header.get("files", {}).items()
        },
    )


def _read_into(file: BinaryIO, target: Any, hasher: Any, what: str) -> None:
    """Fill the array ``target`` of bytes from ``file``, taking them into the hash."""
    at = 0
    while at < len(target):
        piece = target[at : at + _CHUNK]
        got = file.readinto(piece)  # type: ignore[attr-defined]
        if not got:
            raise damaged(f"it ends inside {what}")
        hasher.update(piece[:got])
        at += got


def _read_section(file: BinaryIO, section: Section, number: int) -> Any:
    """The array, the list of maps or the list of gangs of one section."""
    hasher, what, n = hashlib.sha256(), f"section {number} ({section.kind})", section.count
    if section.kind == "blocks":
        array: NDArray[Any] = new_blocks(n)
        buffer = np.empty(min(_CHUNK, section.length), np.uint8)
        for name, dtype in COLUMNS:
            step = _CHUNK // 8
            for start in range(0, n, step):
                part = array[name][start : start + step]
                piece = buffer[: part.size * part.itemsize]
                _read_into(file, piece, hasher, what)
                part[:] = piece.view(dtype)
    else:
        array = np.empty(section.length, np.uint8)
        _read_into(file, array, hasher, what)
    if hasher.hexdigest() != section.digest:
        raise damaged(f"{what} does not match its sha256")
    array.flags.writeable = False
    if section.kind == "gangs":
        return _gangs_from(array.tobytes(), n, what)
    if section.kind == "maps":
        return list(array.view("<i2").reshape(n, LANES))
    return array.reshape(n, LANES) if section.kind == "rows" else array


def _gangs_from(data: bytes, n: int, what: str) -> list[tuple[int, ...]]:
    gangs: list[tuple[int, ...]] = []
    at = n
    for length in data[:n]:
        gangs.append(tuple(data[at : at + length]))
        at += length
    if at != len(data):
        raise damaged(f"{what} does not have its size")
    return gangs
