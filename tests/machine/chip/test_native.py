"""The interpreter from a file does what the compiler's does, in a process without the compiler."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from chip.engine import Chip, Rings, loop, native, save_interpreter, use_interpreter, warm_up
from chip.engine import chip as chip_module
from chip.linking import link, save_linked
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
    if not save_interpreter(tmp_path / "interpreter.o"):
        pytest.skip("this host keeps no compiled kernels")
    done = subprocess.run(
        [sys.executable, "-c", OTHER, str(tmp_path), str(seeds)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [*expected, "False"]


def test_what_refers_to_something_unknown_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's interpreter serves instead."""
    path = tmp_path / "interpreter.o"
    header = {"symbol": "run", "undefined": ["sched_yield", "numba_of_next_year"]}
    path.write_bytes(json.dumps(header).encode() + b"\nnothing")
    monkeypatch.setattr(chip_module, "_step", None)
    use_interpreter(path)
    assert chip_module._step is loop.run_chips


NO_ELF = (b"", b"\xcf\xfa\xed\xfe" + bytes(100), b"\x7fELF\x01\x01" + bytes(100))


@pytest.mark.parametrize("what", ["kept nowhere", "other arguments", "bitcode", *NO_ELF])
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
