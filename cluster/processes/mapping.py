"""The memory that the processes of one run share: rings, logits, barrier counters.

One file, mapped by every process.  It knows bytes and sequence numbers, not chips or programs:

    header     magic, hash of the run's random token, abandon flag, refused attachments,
               refused vectors, watch flag                                  one page
    barrier    per process a cache line pair: barrier mark, launch kept, seconds of host transfers
    progress   per chip two int64: cycle reached, launches done; noted when somebody watches
    mailboxes  per chip two slots: sequence, checksum, count, float32 values
    rings      the links' vectors, laid out by ``chip.engine.ring.Rings``

The driver creates the file with mode 0600 under a name nobody can guess and removes it at the end;
a process that maps it must show the same token, so that two runs never meet by accident.  The token
is not in the file, only its hash; checksums of vectors and mailboxes are keyed with it, so what a
stranger writes is refused and counted.  That guards against strays, not against an attacker of the
same user, who can read everything the run can.

A mailbox slot carries its sequence number and a CRC-32 of its contents, and a reader takes it only
when both agree; nothing is assumed about the order in which another core sees the stores.  Two
slots alternate: a writer reaches sequence n + 2 only after it has read everybody's n + 1, which
they write after they have read n.

    layout = MappingLayout(processes=2, chips=8, values=128, rings=56)
    mapping = SharedMapping.create(layout)
    mapping.post(0, 1, logits)
    assert mapping.peek(0, 1) is not None
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chip.engine import CAPACITY, Rings
from chip.errors import ErrorKind, LpuError
from cluster.processes.leftovers import hold, release

#: Ends in the number of the form; a process of another form would not wake who sleeps at a ring.
MAGIC = b"LPUMAP2\0"
TOKEN_BYTES = 16
PAGE = 4096
ABANDONED_AT, REFUSED_AT, WATCHED_AT = 64, 72, 88
LINE = 128


class MappingError(LpuError):
    """A mapping that is not the one of this run."""

    kind = ErrorKind.PROBLEM


def _shown(token: bytes) -> bytes:
    """What the file says of a token."""
    return hashlib.sha256(b"token" + token).digest()[:TOKEN_BYTES]


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


@dataclass(frozen=True)
class MappingLayout:
    """Sizes from which every offset follows; equal in all processes of a run.

    values: float32 a mailbox slot has room for; rings: directed links; capacity: vectors per
    ring, enough for every vector that can be under way while the oldest chip catches up.
    """

    processes: int
    chips: int
    values: int
    rings: int
    capacity: int = CAPACITY

    @property
    def slot_bytes(self) -> int:
        """One mailbox slot: a line with sequence, checksum and count, then the values."""
        return LINE + _round_up(4 * self.values, LINE)

    @property
    def progress_at(self) -> int:
        """Offset of chip 0's progress."""
        return PAGE + _round_up(self.processes * LINE, PAGE)

    @property
    def mailbox_at(self) -> int:
        """Offset of chip 0's slots."""
        return self.progress_at + _round_up(16 * self.chips, PAGE)

    @property
    def rings_at(self) -> int:
        """Offset of the rings."""
        return _round_up(self.mailbox_at + self.chips * 2 * self.slot_bytes, PAGE)

    @property
    def nbytes(self) -> int:
        """Size of the whole file."""
        return _round_up(self.rings_at + max(self.ring_bytes, 1), PAGE)

    @property
    def ring_bytes(self) -> int:
        """Size of the rings' part."""
        return int(Rings.nbytes(self.rings, self.capacity))


def _new_file(nbytes: int, directory: Path | None) -> tuple[mmap.mmap, Path]:
    """A mapped file of ``nbytes`` whose space is really there (a full tmpfs kills its users)."""
    places = [directory] if directory else [Path("/dev/shm"), Path(tempfile.gettempdir())]
    for place in places:
        if not (place.is_dir() and os.access(place, os.W_OK)):
            continue
        # mkstemp creates the file exclusively, readable and writable by its owner only.
        handle, name = tempfile.mkstemp(prefix="lpu-", suffix=".map", dir=place)
        try:
            os.posix_fallocate(handle, 0, nbytes)
            memory = mmap.mmap(handle, nbytes)
            hold(name)
            return memory, Path(name)
        except OSError:
            os.unlink(name)
        finally:
            os.close(handle)
    tried = " nor in ".join(str(place) for place in places)
    raise MappingError(f"no room for {nbytes} bytes shared between processes in {tried}")


class SharedMapping:
    """One process's view of the shared memory of a run."""

    def __init__(
        self, memory: mmap.mmap, layout: MappingLayout, path: Path | None, token: bytes
    ) -> None:
        self.layout = layout
        self.path = path
        self.token = token
        self._memory = memory
        self._view = memoryview(memory)
        self._flag = np.frombuffer(memory, np.int64, 1, ABANDONED_AT)
        self._refused = np.frombuffer(memory, np.int64, 2, REFUSED_AT)
        self._watch = np.frombuffer(memory, np.int64, 1, WATCHED_AT)
        self._key = hashlib.sha256(b"vectors" + token).digest() if token else bytes(8)
        counters = np.frombuffer(memory, np.int64, layout.processes * LINE // 8, PAGE)
        lines = counters.reshape(layout.processes, LINE // 8)
        self._arrived, self._kept = lines[:, 0], lines[:, 1]
        self._io_seconds = lines.view(np.float64)[:, 2]
        progress = np.frombuffer(memory, np.int64, 2 * layout.chips, layout.progress_at)
        self._progress = progress.reshape(layout.chips, 2)
        self._heads: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float32]] = []
        for slot in range(2 * layout.chips):
            at = layout.mailbox_at + slot * layout.slot_bytes
            self._heads.append(np.frombuffer(memory, np.int64, 3, at))
            self._values.append(np.frombuffer(memory, np.float32, layout.values, at + LINE))

    @classmethod
    def create(cls, layout: MappingLayout, directory: Path | None = None) -> SharedMapping:
        """A new file in ``directory`` (default: shared memory, else the temporary directory)."""
        token = secrets.token_bytes(TOKEN_BYTES)
        memory, path = _new_file(layout.nbytes, directory)
        memory[: len(MAGIC) + TOKEN_BYTES] = MAGIC + _shown(token)
        return cls(memory, layout, path, token)

    @classmethod
    def private(cls, layout: MappingLayout) -> SharedMapping:
        """The same memory without a file, for a run in one process."""
        return cls(mmap.mmap(-1, layout.nbytes), layout, None, b"")

    @classmethod
    def attach(cls, path: Path, layout: MappingLayout, token: bytes) -> SharedMapping:
        """The driver's file, mapped by another process of the same host."""
        try:
            with open(path, "r+b") as file:
                memory = mmap.mmap(file.fileno(), 0)
        except (OSError, ValueError) as error:
            raise MappingError(
                f"{path} cannot be mapped ({error}): actors and driver must share one host"
            ) from None
        head = memory[: len(MAGIC) + TOKEN_BYTES]
        if head != MAGIC + _shown(token) or len(memory) != layout.nbytes:
            if head.startswith(MAGIC) and len(memory) >= PAGE:
                np.frombuffer(memory, np.int64, 1, REFUSED_AT)[0] += 1
            raise MappingError(f"{path} belongs to another run")
        return cls(memory, layout, path, token)

    def rings(self) -> Rings:
        """The links' rings."""
        part = self._view[self.layout.rings_at : self.layout.rings_at + self.layout.ring_bytes]
        key = int.from_bytes(self._key[:8], "little", signed=True)
        return Rings.attach(part, self.layout.rings, self.layout.capacity, key)

    def unlink(self) -> None:
        """Remove the file's name; processes that have it mapped keep the memory."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            release(self.path)

    # Abandoning a run

    def abandon(self) -> None:
        """Tell every process of the run to stop waiting."""
        self._flag[0] = 1

    @property
    def abandoned(self) -> bool:
        """True once some process (or the driver) gave the run up."""
        return bool(self._flag[0])

    # Strangers

    def refuse_vector(self) -> None:
        """A vector or a mailbox was found that nobody of the run wrote."""
        self._refused[1] += 1

    @property
    def refused(self) -> tuple[int, int]:
        """Attachments without the token, and vectors or mailboxes not written with it."""
        return int(self._refused[0]), int(self._refused[1])

    # Mailboxes

    def _checksum(self, values: NDArray[np.float32], sequence: int) -> int:
        return zlib.crc32(values.data, zlib.crc32(self._key + sequence.to_bytes(8, "little")))

    def post(self, chip: int, sequence: int, values: NDArray[np.float32]) -> None:
        """Write ``values`` of ``chip`` under ``sequence`` (from 1, ascending)."""
        slot = 2 * chip + sequence % 2
        head, target = self._heads[slot], self._values[slot][: len(values)]
        target[:] = values
        head[1] = self._checksum(target, sequence)
        head[2] = len(values)
        head[0] = sequence

    def peek(self, chip: int, sequence: int) -> NDArray[np.float32] | None:
        """A copy of what ``chip`` posted under ``sequence``; None while it is not there yet."""
        slot = 2 * chip + sequence % 2
        head = self._heads[slot]
        if head[0] != sequence:
            return None
        values = self._values[slot][: max(0, int(head[2]))].copy()
        if self._checksum(values, sequence) != head[1]:
            return None
        return values

    def is_under(self, chip: int, sequence: int) -> bool:
        """The mailbox of ``chip`` says ``sequence``, whether its contents are whole or not."""
        return bool(self._heads[2 * chip + sequence % 2][0] == sequence)

    # Barrier

    def arrive(self, process: int, mark: int) -> None:
        """``process`` has reached ``mark``; marks only ascend."""
        self._arrived[process] = mark

    def everyone_reached(self, mark: int) -> bool:
        """True when no process is before ``mark``."""
        return bool((self._arrived >= mark).all())

    # Progress, for those who watch

    def watch(self) -> None:
        """Ask all processes to note their chips' clocks."""
        self._watch[0] = 1

    @property
    def watched(self) -> bool:
        """True once somebody wants to see the chips' clocks."""
        return bool(self._watch[0])

    def note_clock(self, chip: int, cycle: int) -> None:
        """``chip`` has reached ``cycle``, counted over all launches."""
        self._progress[chip, 0] = cycle

    def note_launches(self, chip: int, launches: int) -> None:
        """``chip`` has finished so many launches."""
        self._progress[chip, 1] = launches

    def note_transfers(self, process: int, io_seconds: float) -> None:
        """``process`` has charged so many virtual seconds of host transfers."""
        self._io_seconds[process] = io_seconds

    def progress(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Cycle reached and launches done, as the chips noted them; int64 [chips] each."""
        now = self._progress.copy()
        return now[:, 0], now[:, 1]

    @property
    def io_seconds(self) -> float:
        """Virtual seconds of host transfers so far."""
        return float(self._io_seconds.max())

    # Snapshots

    def keep(self, process: int, launch: int) -> int:
        """``process`` has a snapshot before ``launch``; the latest launch that all have kept."""
        self._kept[process] = launch
        return int(self._kept.min())
