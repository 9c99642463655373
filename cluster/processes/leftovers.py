"""Files of runs, and which of them nobody uses any more.

A process that ends by itself or by a signal it can catch removes its files; one killed with
``kill -9`` leaves them.  Whoever makes such a file or directory *holds* it: a shared lock on it
that the host drops when the process is gone, however it went.  What has no lock is left over.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: Younger ones may just not be held yet.
LEAST_AGE_SECONDS = 60.0

_NAME = re.compile(r"lpu-[a-z0-9_]{8}\.map|lpu-(chips|model|ray|snapshots)-[a-z0-9_]{8}")
#: Locks of this process, by path.
_held: dict[str, int] = {}


def hold(path: str | Path) -> None:
    """Say that this process uses ``path``, until :func:`release` or its end."""
    with suppress(OSError):  # a file system without locks: lpu clean will then go by age alone
        descriptor = os.open(path, os.O_RDONLY)
        _held[str(path)] = descriptor
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def release(path: str | Path) -> None:
    """Say that this process no longer uses ``path``."""
    if (descriptor := _held.pop(str(path), None)) is not None:
        os.close(descriptor)


@dataclass(frozen=True)
class Leftover:
    """A file or directory that no process holds; nbytes: its size with all that is in it."""

    path: Path
    nbytes: int

    def remove(self) -> bool:
        """Remove it; whether it is gone."""
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            self.path.unlink(missing_ok=True)
        return not self.path.exists()


def places() -> list[Path]:
    """Directories in which runs leave files."""
    return list(dict.fromkeys([Path("/dev/shm"), Path(tempfile.gettempdir()), Path("/tmp")]))


def find_leftovers(least_age_seconds: float = LEAST_AGE_SECONDS) -> Iterator[Leftover]:
    """This user's files of runs that ended without removing them."""
    for place in places():
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if not _NAME.fullmatch(entry.name):
                continue
            with suppress(OSError):  # gone meanwhile, or not ours to open
                found = entry.stat(follow_symlinks=False)
                kind = stat.S_ISREG if entry.name.endswith(".map") else stat.S_ISDIR
                old = time.time() - found.st_ctime >= least_age_seconds
                ours = kind(found.st_mode) and found.st_uid == os.getuid()
                if ours and old and not _in_use(entry.path):
                    yield Leftover(Path(entry.path), _size(Path(entry.path)))


def _in_use(path: str) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_size
    return total
