"""The names that ``import chip`` gives, and that it loads nothing heavy for them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import chip

HEAVY = ("numba", "llvmlite", "ray", "chip.engine", "chip.linking")


def loaded_by(code: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after ``code``."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return set(done.stdout.decode().split())


@pytest.mark.parametrize(
    "code",
    [
        "import chip",
        "import chip.spec",
        "from chip import ChipSpec, load_chip_spec; ChipSpec()",
        "from chip import ChipSpec, assemble, check; check(assemble('.cycles 9'), ChipSpec())",
    ],
)
def test_a_light_name_loads_no_compiler(code: str) -> None:
    assert not loaded_by(code) & set(HEAVY)


def test_the_compiler_comes_when_something_compiled_is_called() -> None:
    """So the test above would see it."""
    assert "numba" not in loaded_by("from chip import Chip, ChipSpec; Chip(ChipSpec(), 0)")
    assert "numba" in loaded_by("from chip.numerics import f32_bits; f32_bits(1.0)")


def test_every_name_is_there() -> None:
    assert len(chip.__all__) == len(set(chip.__all__))
    for name in chip.__all__:
        assert getattr(chip, name).__module__.startswith("chip."), name
