"""Typed decorators of compiled functions, and the names of ``chip.intrinsics`` for them.

Nothing here imports numba, which takes half as long as all else that a process with chips imports:
a compiled function comes to be when it is first called, and many a process calls none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache, cached_property, update_wrapper
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


@cache
def sources_digest(package: Path = Path(__file__).parent) -> str:
    """A digest of a package's sources, names and bytes.

    What one copy of this package compiles or links is of no use to another one.
    """
    return _digest(package, sorted(package.rglob("*.py")))


@cache
def folders_digest(*folders: str) -> str:
    """The same of the files directly in these folders of ``chip``; ``.`` is the package itself."""
    package = Path(__file__).parent
    return _digest(package, sorted(f for name in folders for f in (package / name).glob("*.py")))


def _digest(package: Path, files: Sequence[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        code = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(code)}\n".encode() + code)
    return digest.hexdigest()


#: Folders whose functions compiled ones of a folder may inline.
INLINED = {"engine": (".", "engine", "linking"), "linking": (".", "linking"), ".": (".",)}

# Of what is imported now: the files may change before anybody asks.
sources_digest()
for _folders in INLINED.values():
    folders_digest(*_folders)


def inlined_digest(file: str) -> str:
    """A digest of the sources that compiled functions in ``file`` may inline: those directly in
    ``chip`` and, where the file is of ``chip.engine`` or ``chip.linking`` or names them, theirs.
    """
    text = Path(file).read_text(encoding="utf-8")
    for folder, inlined in INLINED.items():
        if Path(file).parent == Path(__file__).parent / folder or f"chip.{folder}" in text:
            return folders_digest(*inlined)
    return folders_digest(*INLINED["."])


class Deferred:
    """Something of numba's, made when it is first used, by Python or by compiled code."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    @cached_property
    def made(self) -> Any:
        """Numba's own object."""
        _teach_numba()
        return self._make()

    def __call__(self, *arguments: Any) -> Any:
        return self.made(*arguments)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # nobody asks numba what a copy or a pickle is
            raise AttributeError(name)
        return getattr(self.made, name)


@cache
def _teach_numba() -> None:
    """What compiled code finds behind a name that is deferred is what was deferred."""
    extending = import_module("numba.extending")
    registry = import_module("numba.core.registry")

    def type_of(value: Deferred, _: object) -> Any:
        made = value.made
        registry.cpu_target.target_context.refresh()  # it may be an intrinsic made just now
        return registry.cpu_target.typing_context.resolve_value_type(made)

    extending.typeof_impl.register(Deferred)(type_of)


def compiled(function: F, **options: Any) -> F:
    """Compile with numba's ``options`` when first called; see ``chip.kernel_cache``."""

    def make() -> Any:
        sources = inlined_digest(function.__code__.co_filename)
        return import_module("chip.kernel_cache").compiled(function, sources, **options)

    return cast(F, update_wrapper(Deferred(make), function))


def jit(function: F) -> F:
    """Compile, to run without the interpreter lock."""
    return compiled(function, nogil=True)


def jit_uncounted(function: F) -> F:
    """As ``jit``, for functions that allocate nothing: no array's references are counted.

    The caller keeps them.  Counting costs two atomic operations per array and call.
    """
    return compiled(function, nogil=True, _nrt=False)


def jit_inline(function: F) -> F:
    """As ``jit_uncounted``, always inlined: a call passes seven words per array, which costs more
    than one vector operation on 320 lanes.
    """
    return compiled(function, nogil=True, _nrt=False, forceinline=True)


def jit_any_order(function: F) -> F:
    """As ``jit_uncounted``, with float additions in any order: for sums whose error bound covers
    them all.
    """
    return compiled(function, nogil=True, _nrt=False, fastmath={"reassoc"})


def _intrinsic(name: str) -> Any:
    return Deferred(lambda: getattr(import_module("chip.intrinsics"), name))


#: rows[row] of a C-contiguous 2-D array as a view without reference counting.
row_of: Any = _intrinsic("row_of")
#: target[:] = source, vectors of 320 bytes, past the caches.
stream_row: Any = _intrinsic("stream_row")
#: The array [length] of a NumPy scalar type at an address; the caller keeps it alive.
vector_at: Any = _intrinsic("vector_at")
#: The array [rows, columns] of a NumPy scalar type at an address.
matrix_at: Any = _intrinsic("matrix_at")
#: Ask for the 320 bytes of rows[row] to be brought into the cache.
prefetch_row: Any = _intrinsic("prefetch_row")
#: array[index] = value; everything stored before is visible before it.
store_release: Any = _intrinsic("store_release")
#: array[index]; nothing read after it is older than the value.
load_acquire: Any = _intrinsic("load_acquire")
#: Let another thread have this core for a while; POSIX.
yield_core: Any = _intrinsic("yield_core")
#: Nothing loaded after it is older than what was stored before it, as other cores see it.
memory_fence: Any = _intrinsic("memory_fence")
#: The address of array[index]; the caller keeps the array alive.
address_of: Any = _intrinsic("address_of")
#: A call of Linux's kernel: its number, and six arguments, all int64.
system_call: Any = _intrinsic("system_call")
#: Lane j of a superlane of target i = lane i of it of source j, of 16 rows each.
transpose_rows: Any = _intrinsic("transpose_rows")
#: out[i] = the byte of i's superlane that lanes[i] names, 0 from 16 on; needs SSSE3.
shuffle_lanes: Any = _intrinsic("shuffle_lanes")
#: The digest's keyed sum of products of uint32 [80].
keyed_products: Any = _intrinsic("keyed_products")


def intrinsic_of(implementation: Any) -> Any:
    """What numba makes of a function of typing and code generation, when it is first used."""
    return Deferred(lambda: import_module("numba.extending").intrinsic(implementation))


def processor_has(feature: str) -> bool:
    """Whether compiled code may use what LLVM calls ``feature`` of this processor."""
    config = import_module("numba.core.config")
    if config.CPU_NAME or config.CPU_FEATURES:  # compiled for another processor
        return False
    binding = import_module("llvmlite.binding")
    return bool(binding.get_host_cpu_features().get(feature, False))
