"""Throw-away copies of the checkout, and numba's caches in them.

One copy is never mutated: baselines run there and fill its caches.  A worker's copy starts each
mutant with the same caches, less those that the mutant makes stale; so nothing compiled from one
mutant is met by the next, and what a mutant does not touch is compiled once.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .mutant import Mutant


class CheckoutError(Exception):
    """No checkout to copy; one line."""


def checkout_files(root: Path) -> list[Path]:
    """The files of a checkout that git knows or does not ignore, relative to it, as they are now.

    CheckoutError where git finds none.
    """
    command = ["git", "-C", str(root), "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, check=False)
    names = sorted({name for name in listed.stdout.decode().split("\0") if name})
    found = [Path(name) for name in names if (root / name).is_file()]
    if listed.returncode or not found:
        raise CheckoutError(f"{root}: git lists no files here; run it in a clone of the repository")
    return found


def digest(root: Path, files: Iterable[Path]) -> str:
    """Of the files' names and contents, 16 hexadecimal digits."""
    found = hashlib.sha256()
    for file in files:
        content = (root / file).read_bytes()
        found.update(f"{file.as_posix()}\0{len(content)}\0".encode() + content)
    return found.hexdigest()[:16]


def copy_checkout(root: Path, files: Iterable[Path], target: Path) -> None:
    """Copy files with their time stamps, which numba's caches go by; what is there stays."""
    for file in files:
        if not (target / file).exists():
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / file, target / file)


@contextmanager
def applied(mutant: Mutant, copy: Path, pristine: Path, stale: set[str]) -> Iterator[None]:
    """Mutate a copy for a while."""
    path = copy / mutant.file
    _forget(path, copy, stale)
    path.write_bytes(mutant.apply((pristine / mutant.file).read_bytes()))
    try:
        yield
    finally:
        shutil.copy2(pristine / mutant.file, path)
        _forget(path, copy, stale)
        # examples of one mutant would be tried first on the next
        shutil.rmtree(copy / ".hypothesis", ignore_errors=True)


def mirror_caches(pristine: Path, copy: Path, stale: set[str]) -> None:
    """Give a copy the unmutated copy's compiled functions, all but the stale ones."""
    wanted, there = caches(pristine), caches(copy)
    keep = {name for name in wanted if not name.startswith(tuple(stale))}
    for name in there:
        if name not in keep and not name.startswith(tuple(stale)):
            (copy / name).unlink(missing_ok=True)
    for name in keep:
        if there.get(name) != wanted[name]:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(pristine / name, copy / name)


def caches(copy: Path) -> dict[str, tuple[int, int]]:
    """Numba's files in a copy, relative to it: time stamp and size."""
    found = {}
    for path in copy.rglob("__pycache__/*.nb[ic]"):
        state = path.stat()
        found[path.relative_to(copy).as_posix()] = (state.st_mtime_ns, state.st_size)
    return found


def _forget(path: Path, copy: Path, stale: set[str]) -> None:
    """Drop the bytecode of a file (Python goes by whole seconds) and stale compiled functions."""
    for bytecode in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        bytecode.unlink()
    for prefix in stale:
        for cache in copy.glob(f"{prefix}*.nb[ic]"):
            cache.unlink()
