"""Snapshots of a group of chips: what has changed since their images, kept outside the process.

A snapshot is one file, there whole or not at all.  It holds the words that programs and host may
have written (``Runner.touched``), digest sums and saturations of the chips, and what the launches
so far gave; everything else a restarted process finds in its shard.  It knows files and chips, not
who died.

    magic | length of the head u32 | head, msgpack | words uint8, chip after chip | CRC-32

Files lie in memory where the host allows it.  A group keeps its snapshots until every group has a
later one, so there is always a launch of which all have one.  The file of a forgotten snapshot is
written over by the next: memory that the host has given already costs a third of new one.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from chip.engine import Chip
from chip.isa import LANES
from cluster.processes.leftovers import hold, release
from programs.running import Runner, RunResult

MAGIC = b"LPUSNAP1"
_HEAD = struct.Struct("<8sI")
#: Launches between two snapshots: a lost process costs at most so many launches again.
SNAPSHOT_LAUNCHES = 32


@contextlib.contextmanager
def snapshot_directory() -> Iterator[Path]:
    """A new directory for the snapshots of a run, readable by its owner only; gone afterwards."""
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(
        prefix="lpu-snapshots-", dir=parent, ignore_cleanup_errors=True
    ) as name:
        hold(name)
        try:
            yield Path(name)
        finally:
            release(name)


class SnapshotError(Exception):
    """A snapshot that cannot be used."""


def _path(directory: Path, group: int, launch: int) -> Path:
    return directory / f"group-{group}-launch-{launch}.snapshot"


def _spare(directory: Path, group: int) -> Path:
    """A file whose contents nobody needs, to be written over."""
    return directory / f"group-{group}.spare"


def _rows(chip: Chip) -> NDArray[np.uint8]:
    """The chip's SRAM as rows uint8 [words, 320], a view."""
    return chip.sram.reshape(-1, LANES)


def take(directory: Path, group: int, runner: Runner, result: RunResult) -> int:
    """Write a snapshot before launch ``len(result.entries)``; the bytes written.

    Raises OSError when there is no room; no part of a file is left then.
    """
    places = [runner.touched(chip) for chip in runner.chips]
    chips = [
        [
            chip.chip_id,
            [int(value) for value in chip.digest_sums],
            rows.astype("<i8").tobytes(),
            chip.saturated.tolist(),
        ]
        for chip, rows in zip(runner.chips, places, strict=True)
    ]
    head = msgpack.packb({"result": asdict(result), "chips": chips})
    path = _path(directory, group, len(result.entries))
    partial = path.with_suffix(".partial")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.replace(_spare(directory, group), partial)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o600), "wb", buffering=0) as file:
            checksum, length = 0, 0
            words = (_rows(c)[rows] for c, rows in zip(runner.chips, places, strict=True))
            for piece in (_HEAD.pack(MAGIC, len(head)), head, *words):
                view = memoryview(piece).cast("B")
                checksum = zlib.crc32(view, checksum)
                while view:
                    written = file.write(view)
                    view, length = view[written:], length + written
            file.write(checksum.to_bytes(4, "little"))
            file.truncate()
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return length + 4


def launches(directory: Path, group: int) -> set[int]:
    """The launches before which ``group`` has a snapshot."""
    found = directory.glob(f"group-{group}-launch-*.snapshot")
    return {int(path.stem.rsplit("-", 1)[1]) for path in found}


def forget_before(directory: Path, group: int, launch: int) -> None:
    """Remove the group's snapshots of launches before ``launch``; one file of them stays spare."""
    for earlier in launches(directory, group):
        if earlier < launch:
            with contextlib.suppress(FileNotFoundError):
                os.replace(_path(directory, group, earlier), _spare(directory, group))


def restore(directory: Path, group: int, launch: int, runner: Runner) -> RunResult:
    """Put a snapshot into the runner's fresh chips; what the launches before it gave.

    Raises SnapshotError for a file that is not whole or not of these chips.
    """
    path = _path(directory, group, launch)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SnapshotError(f"{path}: cannot be read ({error.strerror})") from None
    body = memoryview(data)[:-4]
    if data[:8] != MAGIC or zlib.crc32(body) != int.from_bytes(data[-4:], "little"):
        raise SnapshotError(f"{path}: not a whole snapshot")
    _, length = _HEAD.unpack(data[: _HEAD.size])
    at = _HEAD.size + length
    head: dict[str, Any] = msgpack.unpackb(body[_HEAD.size : at], strict_map_key=False)
    if [entry[0] for entry in head["chips"]] != [chip.chip_id for chip in runner.chips]:
        raise SnapshotError(f"{path}: of other chips")
    for chip, (_, sums, places, saturated) in zip(runner.chips, head["chips"], strict=True):
        rows = np.frombuffer(places, "<i8")
        words = np.frombuffer(data, np.uint8, len(rows) * LANES, at).reshape(-1, LANES)
        _rows(chip)[rows] = words
        chip.digest_sums[:] = np.array(sums, np.uint64)
        chip.saturated = np.array(saturated, np.int64)
        at += len(rows) * LANES
    return RunResult(**head["result"])
