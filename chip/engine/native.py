"""The compiled interpreter as machine code in a file, for processes that need no compiler then.

One process writes the file for the others of its run: importing numba and loading its cache costs a
process half a second.  The file has what LLVM made of ``loop.run_chips``, which is called by its
address; where it cannot be made or used, numba serves.  It names the sources that it was made from:
a process of another copy of the package has other frames, which this code would write over.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import struct
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.engine import loop
from chip.jit import sources_digest

#: What only the interpreter's face to Python refers to, which is never called here.
_OF_WRAPPERS = {
    "numba_adapt_ndarray",
    "numba_do_raise",
    "numba_gil_ensure",
    "numba_gil_release",
    "numba_runtime_build_excinfo_struct",
    "numba_unpickle",
}
#: The interpreter's arguments: type and dimensions of an array, no dimensions for a number.
_SIGNATURE = (
    ("int64", 2),
    ("int64", 1),
    ("int64", 2),
    ("int64", 2),
    ("uint32", 2),
    ("int64", 0),
    ("int64", 0),
    ("int64", 1),
    ("int64", 0),
    ("int64", 0),
)
_SYMBOL_TABLE, _UNDEFINED = 2, 0
Step = Callable[..., Any]


def _undefined(code: bytes) -> set[str] | None:
    """Names that an ELF object of 64 bits leaves to others; None for anything else."""
    if code[:6] != b"\x7fELF\x02\x01":
        return None
    (table,) = struct.unpack_from("<Q", code, 40)
    size, count = struct.unpack_from("<HH", code, 58)
    sections = [struct.unpack_from("<IIQQQQII", code, table + size * i) for i in range(count)]
    names = set()
    for _, kind, _, _, offset, length, link, _ in sections:
        if kind == _SYMBOL_TABLE:
            strings = sections[link][4]
            for at in range(offset + 24, offset + length, 24):
                name, _, _, section = struct.unpack_from("<IBBH", code, at)
                if section == _UNDEFINED:
                    start = strings + name
                    names.add(code[start : code.index(b"\0", start)].decode())
    return names


def _code_digest(code: bytes) -> str:
    return hashlib.blake2b(code, digest_size=16).hexdigest()


def save_interpreter(path: Path) -> bool:
    """Write the interpreter to ``path``, once it is compiled; False where that cannot be.

    It can where numba keeps kernels on disk: it does not keep machine code in memory.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        stored = _stored_interpreter()
        if stored is not None:
            part.write_bytes(stored)
            os.replace(part, path)
    except Exception:  # kept nowhere, damaged, of another version's form, or no room
        part.unlink(missing_ok=True)
        return False
    return stored is not None


def _stored_interpreter() -> bytes | None:
    """The bytes of such a file; None where numba's cache has something else than is known here."""
    dispatcher = loop.run_chips.made  # type: ignore[attr-defined]
    cache = dispatcher._cache
    ((signature, compiled),) = dispatcher.overloads.items()
    key = cache._index_key(signature, compiled.target_context.codegen())
    (_, kind, data), facts = cache._cache_file.load(key)[:2]
    found = tuple((str(getattr(a, "dtype", a)), getattr(a, "ndim", 0)) for a in facts.argtypes)
    if kind != "object" or found != _SIGNATURE:
        return None
    code = data[0]
    undefined = _undefined(code)
    if undefined is None:
        return None
    header = {
        "sources": sources_digest(),
        "code": _code_digest(code),
        "symbol": facts.llvm_func_name,
        "undefined": sorted(undefined),
    }
    return json.dumps(header).encode() + b"\n" + bytes(code)


#: LLVM's engines, which own the machine code.
_ENGINES: list[Any] = []


def _load(path: Path) -> int | None:
    """The interpreter's address, None where it is another copy's, or damaged, or where something
    that it calls is not in this process.
    """
    header, _, code = path.read_bytes().partition(b"\n")
    facts = json.loads(header)
    # LLVM ends the process over some damaged code
    if facts["sources"] != sources_digest() or facts["code"] != _code_digest(code):
        return None
    binding = import_module("llvmlite.binding")
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(jit=True)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    missing = {n for n in facts["undefined"] if not binding.address_of_symbol(n)}
    if not missing <= _OF_WRAPPERS:
        return None
    nowhere = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
    for name in missing:
        binding.add_symbol(name, nowhere)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _ENGINES.append(engine)
    return int(engine.get_function_address(facts["symbol"])) or None


def _flat(array: NDArray[Any]) -> tuple[int, ...]:
    """An array as compiled code takes it: two owners, length, item size, data, shape, strides."""
    address = array.__array_interface__["data"][0]
    return 0, 0, array.size, array.itemsize, address, *array.shape, *array.strides


def load_interpreter(path: Path) -> Step | None:
    """``loop.run_chips`` from a file of ``save_interpreter``; None where it does not work here."""
    try:
        address = _load(path)
    except Exception:  # no file, no header, another LLVM: numba serves
        address = None
    if address is None:
        return None
    kinds = [np.dtype(kind) if dimensions else None for kind, dimensions in _SIGNATURE]
    words = sum(5 + 2 * dimensions if dimensions else 1 for _, dimensions in _SIGNATURE)
    pointers = [ctypes.c_void_p] * 2
    call = ctypes.CFUNCTYPE(ctypes.c_int32, *pointers, *[ctypes.c_int64] * words)(address)

    def step(*arguments: Any) -> bool:
        flat: list[int] = []
        for argument, kind in zip(arguments, kinds, strict=True):
            if kind is None:
                flat.append(int(argument))
            else:
                assert argument.dtype == kind  # numba would compile for another one
                flat += _flat(argument)
        moved, error = ctypes.c_uint8(), ctypes.c_void_p()
        failed = call(ctypes.addressof(moved), ctypes.addressof(error), *flat)
        assert not failed  # nothing in the interpreter raises
        return bool(moved.value)

    return step
