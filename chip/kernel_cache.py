"""Compiled kernels on disk: where they are kept, and that no run fails for want of a place.

Numba keeps them beside the sources, or in the user's cache directory.  Where neither can be written
(an installation of somebody else's, a user without a home) they go to a directory of the user's own
under the temporary one, and where there is none either every process compiles what it needs.

Numba takes a kernel from disk while the file of its function is the same; what that inlines or
takes as constants lies in other files, so a kernel is kept with a digest of those of ``chip`` too.
"""

from __future__ import annotations

import os
import stat
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import caching as _caching

from chip.errors import LpuWarning

caching: Any = _caching
F = TypeVar("F", bound=Callable[..., Any])


@lru_cache(None)
def _own_directory() -> Path | None:
    """This user's directory for kernels, made if need be; None where nobody may trust it.

    What lies in it is run, so nobody else may be able to write there.
    """
    with suppress(OSError):
        directory = Path(tempfile.gettempdir()) / f"lpu-kernels-{os.getuid()}"
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        found = directory.lstat()
        private = found.st_uid == os.getuid() and not found.st_mode & 0o077
        return directory if stat.S_ISDIR(found.st_mode) and private else None
    return None


@lru_cache(None)
def _tell_of_none() -> None:
    warnings.warn(
        "compiled kernels can be kept nowhere, so every process compiles them, for a minute or "
        "two; set NUMBA_CACHE_DIR to a directory that you may write",
        LpuWarning,
        stacklevel=2,
    )


class _OwnLocator(caching.UserWideCacheLocator):
    """Keeps kernels in the user's directory under the temporary one."""

    def __init__(self, function: Any, file: str) -> None:
        super().__init__(function, file)
        directory = _own_directory()
        assert directory is not None
        self._cache_path = str(directory / self.get_suitable_cache_subpath(file))

    @classmethod
    def from_function(cls, function: Any, file: str) -> Any:
        """As of numba: a locator, or None where it cannot be used."""
        return None if _own_directory() is None else super().from_function(function, file)


class _Entries(caching.CompileResultCacheImpl):
    _locator_classes = (*caching.CacheImpl._locator_classes, _OwnLocator)


class _Cache(caching.FunctionCache):
    """Compiled code on disk; what an older version of the package left there is compiled anew.

    A signature names the classes of its named tuples, which an older version may have had under
    other names.
    """

    _impl_class = _Entries

    def __init__(self, function: Any, sources: str) -> None:
        super().__init__(function)
        self._cache_file._source_stamp = (self._cache_file._source_stamp, sources)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The code for a signature, or None; as of numba."""
        try:
            return super().load_overload(sig, target_context)
        except (AttributeError, ImportError):
            self.flush()
        except OSError:  # a file of another user's
            pass
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the code for a signature if there is room; as of numba."""
        with suppress(OSError):
            super().save_overload(sig, data)


def compiled(function: F, sources: str, **options: Any) -> F:
    """Compile with numba's ``options``, cached on disk where that is possible, IEEE division.

    sources: a digest of those that it may inline.
    """
    dispatcher = numba.njit(error_model="numpy", **options)(function)
    try:
        dispatcher._cache = _Cache(function, sources)
    except RuntimeError:  # no locator: numba's words are for its own developers
        _tell_of_none()
    return cast(F, dispatcher)
