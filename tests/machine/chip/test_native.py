"""The interpreter from a file does what the compiler's does, in a process without the compiler."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import zlib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numba.core.caching import FunctionCache

from chip import jit
from chip.engine import Chip, Rings, loop, native, save_interpreter, use_interpreter, warm_up
from chip.engine import chip as chip_module
from chip.jit import sources_digest
from chip.linking import link, load_linked, save_linked
from chip.program import Program, new_blocks
from chip.spec import ChipSpec
from tests import ROOT
from tests.stands.programs_random import WORDS, fill_words, random_program

SPEC = ChipSpec()

#: Runs linked programs, and prints digests, SRAM and whether numba was loaded.
OTHER = """
import sys, zlib
from pathlib import Path
import numpy as np
from chip.engine import Chip, Rings, use_interpreter
from chip.linking import load_linked
from chip.spec import ChipSpec

where, spec = Path(sys.argv[1]), ChipSpec()
use_interpreter(where / "interpreter.o")
for seed in range(int(sys.argv[2])):
    chip = Chip(spec, 0)
    chip.wire(list(range(16)), [-1] * 16)
    words = np.load(where / f"words-{seed}.npy")
    bank, depth = spec.words_per_bank, words.shape[2]
    chip.sram[:, :depth], chip.sram[:, bank : bank + depth] = words[:, 0], words[:, 1]
    chip.begin(load_linked(where / f"linked-{seed}.npz", spec), 0)
    chip.run(Rings.allocate(16, 4096))
    print(*chip.digest_sums, zlib.crc32(chip.sram[:, :depth].tobytes()), chip.retired_cycles)
print("numba" in sys.modules)
"""


def kept_on_disk() -> bool:
    """Whether numba found a place for kernels; without one its cache is another."""
    return isinstance(loop.run_chips.made._cache, FunctionCache)  # type: ignore[attr-defined]


def test_another_process_runs_the_same_without_the_compiler(tmp_path: Path) -> None:
    expected = []
    bank, seeds = SPEC.words_per_bank, 12
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        linked = link(random_program(rng, SPEC), SPEC)
        words = fill_words(rng)
        np.save(tmp_path / f"words-{seed}.npy", words)
        save_linked(linked, tmp_path / f"linked-{seed}.npz")
        chip = Chip(SPEC, 0)
        chip.wire(list(range(16)), [-1] * 16)
        chip.sram[:, :WORDS], chip.sram[:, bank : bank + WORDS] = words[:, 0], words[:, 1]
        chip.begin(linked, 0)
        chip.run(Rings.allocate(16, 4096))
        crc = zlib.crc32(chip.sram[:, :WORDS].tobytes())
        expected.append(" ".join(map(str, [*chip.digest_sums, crc, chip.retired_cycles])))
    assert len(set(expected)) == seeds
    warm_up()
    if not kept_on_disk():
        pytest.skip("this host keeps no compiled kernels")
    assert save_interpreter(tmp_path / "interpreter.o")
    done = subprocess.run(
        [sys.executable, "-c", OTHER, str(tmp_path), str(seeds)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [*expected, "False"]


def written(path: Path, code: bytes, **facts: Any) -> Path:
    """A file as of ``save_interpreter``, whose header is this copy's but for ``facts``."""
    header = {
        "sources": sources_digest(),
        "code": hashlib.blake2b(code, digest_size=16).hexdigest(),
        "symbol": "run",
        "undefined": [],
    }
    path.write_bytes(json.dumps(header | facts).encode() + b"\n" + code)
    return path


def test_sources_are_those_that_were_imported(tmp_path: Path) -> None:
    """Whoever changes them meanwhile makes another copy, not this one."""
    own = tmp_path / "jit.py"
    own.write_bytes(Path(jit.__file__).read_bytes())
    digests = []
    for name in ("before", "after"):
        spec = spec_from_file_location(name, own)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        (tmp_path / f"{name}.py").write_text("new")
        digests.append(module.sources_digest())
    assert digests[0] == digest_of({"jit.py": own.read_bytes()})
    assert digests[1] == digest_of({"before.py": b"new", "jit.py": own.read_bytes()})


def digest_of(files: dict[str, bytes]) -> str:
    """Of the names, lengths and bytes of sources."""
    digest = hashlib.blake2b(digest_size=16)
    for name, code in files.items():
        digest.update(b"%s %d\n%s" % (name.encode(), len(code), code))
    return digest.hexdigest()


def used(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The interpreter that chips run with after ``use_interpreter``."""
    monkeypatch.setattr(chip_module, "_step", None)
    use_interpreter(path)
    return chip_module._step


def test_what_refers_to_something_unknown_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's interpreter serves instead."""
    undefined = ["sched_yield", "numba_of_next_year"]
    path = written(tmp_path / "interpreter.o", b"nothing", undefined=undefined)
    assert used(path, monkeypatch) is loop.run_chips


def test_what_is_missing_cut_or_damaged_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "interpreter.o"
    assert used(path, monkeypatch) is loop.run_chips
    whole = written(path, bytes(1000)).read_bytes()
    for damaged in (b"", whole[:20], whole[:-1], whole[:-1] + b"x", b"[]\n", b"{}\n", b"\xff\n"):
        path.write_bytes(damaged)
        assert used(path, monkeypatch) is loop.run_chips


def test_a_cut_interpreter_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM reads beyond the end of some object files that are cut."""
    warm_up()
    if not kept_on_disk():
        pytest.skip("this host keeps no compiled kernels")
    path = tmp_path / "interpreter.o"
    assert save_interpreter(path)
    assert used(path, monkeypatch) is not loop.run_chips
    path.write_bytes(path.read_bytes()[:-3000])
    assert used(path, monkeypatch) is loop.run_chips


#: Whether machine code and a linked program are used, in a process that runs other sources.
ELSEWHERE = """
import sys
from pathlib import Path
from chip.engine import chip, loop, use_interpreter
from chip.linking import load_linked
from chip.spec import ChipSpec

where = Path(sys.argv[1])
use_interpreter(where / "interpreter.o")
print(chip.__file__.startswith(sys.argv[2]), chip._step is loop.run_chips)
print(load_linked(where / "linked.npz", ChipSpec()) is None)
"""


@pytest.mark.parametrize("changed", [False, True])
def test_another_copy_of_the_package_uses_nothing_of_this_one(
    changed: bool, tmp_path: Path
) -> None:
    """Its frames may differ, which machine code of this one would write over."""
    warm_up()
    if not kept_on_disk():
        pytest.skip("this host keeps no compiled kernels")
    assert save_interpreter(tmp_path / "interpreter.o")
    save_linked(link(Program(new_blocks(0), [], [], 0), SPEC), tmp_path / "linked.npz")
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "chip", copy / "chip", ignore=shutil.ignore_patterns("__pycache__"))
    if changed:
        frames = copy / "chip" / "engine" / "frames.py"
        frames.write_text(frames.read_text() + "\n#: One more.\n")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path), str(copy)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", str(changed), str(changed)]


def test_no_room_for_it_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_stored_interpreter", lambda: b"machine code")

    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:4])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert not save_interpreter(tmp_path / "interpreter.o")
    assert not list(tmp_path.iterdir())


NO_ELF = (b"", b"\xcf\xfa\xed\xfe" + bytes(100), b"\x7fELF\x01\x01" + bytes(100))
#: Of 64 bits, cut: before its sections are named, and before they are.
CUT_ELF = (b"\x7fELF\x02\x01" + bytes(20), b"\x7fELF\x02\x01" + b"\1" * 60)


@pytest.mark.parametrize("what", ["kept nowhere", "other arguments", "bitcode", *NO_ELF, *CUT_ELF])
def test_only_what_is_known_is_written(
    what: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_up()
    overloads = loop.run_chips.made.overloads  # type: ignore[attr-defined]
    (signature,) = overloads
    kind = "bitcode" if what == "bitcode" else "object"
    code = what if isinstance(what, bytes) else NO_ELF[0]
    facts = SimpleNamespace(
        argtypes=signature[1:] if what == "other arguments" else signature, llvm_func_name="run"
    )
    stored = SimpleNamespace(load=lambda key: (("run_chips", kind, (code, b"")), facts))
    cache = SimpleNamespace(_index_key=lambda *_: 0, _cache_file=stored)
    if what == "kept nowhere":
        cache = SimpleNamespace()
    made = SimpleNamespace(overloads=overloads, _cache=cache)
    monkeypatch.setattr(native, "loop", SimpleNamespace(run_chips=SimpleNamespace(made=made)))
    assert not save_interpreter(tmp_path / "interpreter.o")
    assert not list(tmp_path.iterdir())


def test_a_damaged_cache_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever reading it raises: the compiler's interpreter serves."""
    for error in (KeyError("kind"), EOFError(), pickle.UnpicklingError("cut"), RuntimeError("?")):

        def fail(error: Exception = error) -> bytes:
            raise error

        monkeypatch.setattr(native, "_stored_interpreter", fail)
        assert not save_interpreter(tmp_path / "interpreter.o")
    assert not list(tmp_path.iterdir())


def test_a_linked_program_is_read_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "linked.npz"
    assert load_linked(path, SPEC) is None
    linked = link(random_program(np.random.default_rng(0), SPEC), SPEC)
    save_linked(linked, path)
    read, whole = load_linked(path, SPEC), path.read_bytes()
    assert read is not None and (read.arguments == linked.arguments).all()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged in (b"", whole[:100], whole[:middle], whole[:-1], changed):
        path.write_bytes(damaged)
        assert load_linked(path, SPEC) is None
    path.unlink()

    def full(file: Any, **_: Any) -> None:
        file.write(whole[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        save_linked(linked, path)
    assert not list(tmp_path.iterdir())
