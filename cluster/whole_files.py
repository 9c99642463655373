"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster.errors import InputError, one_line


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """An empty file in the directory of ``path``, gone afterwards if it still has its name."""
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise InputError(f"{path}: not written: {reason}; choose another path") from None


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a file and put it in place of ``path`` only when it is whole."""
    with _beside(path) as temporary:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)


def replace_text(path: Path, text: str) -> None:
    """Put ``text`` as UTF-8 in place of ``path``, whole or not at all."""

    def write(target: Path) -> None:
        target.write_text(text, encoding="utf-8")

    replace_file(path, write)


def check_writable(path: Path) -> None:
    """Refuse a path that `replace_file` could not write, before the work for it is done."""
    with _beside(path):
        if path.is_dir():
            raise InputError(f"{path}: not written: it is a directory; choose another path")
