"""Compiled factorisations against the golden model, and the golden model against float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from chip import numerics
from chip.checker import check
from chip.isa import WEST
from chip.scheduling import CompileError
from chip.spec import PRESETS, ChipSpec
from interconnect.vectors import check_fabric
from programs.cholesky import CholeskyShape, compile_cholesky, golden_cholesky, read_cholesky
from programs.cholesky.compiler import ENTRY
from programs.running import LOOKAHEAD, Runner
from programs.sram import Strips

SPEC = ChipSpec()
F32 = NDArray[np.float32]


def random_matrix(n: int, seed: int = 0, spread: float = 0.0) -> F32:
    """Positive definite; spread: powers of two between the scales of rows."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    g = rng.standard_normal((n, n)) * np.exp2(rng.uniform(-spread, spread, (n, 1)))
    return np.asarray(g @ g.T / n + np.diag(np.diag(g @ g.T)) / n, np.float32)


def compare(n: int, chips: int = 1, spec: ChipSpec = SPEC, spread: float = 0.0) -> None:
    """Compile, check, run; every bit of L must be the golden model's."""
    shape, a = CholeskyShape(n, chips), random_matrix(n, n, spread)
    artifact = compile_cholesky(shape, spec, a)
    programs = artifact.programs[ENTRY]
    assert [str(finding) for program in programs for finding in check(program, spec)] == []
    assert check_fabric(programs, artifact.program_of_chip, artifact.cables, spec) == []
    runner = Runner.alone(artifact)
    cycles = artifact.predicted_cycles[ENTRY]
    assert set(runner.launch(ENTRY, 0, LOOKAHEAD).values()) == {cycles}
    found = read_cholesky(shape, spec, runner.chips)
    wanted = golden_cholesky(a)
    assert found.dtype == wanted.dtype and found.shape == (n, n)
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize(("n", "chips"), [(1, 1), (16, 2), (39, 1)])
def test_factors_equal_the_golden_model(n: int, chips: int) -> None:
    compare(n, chips)


@pytest.mark.long
@pytest.mark.parametrize(("n", "chips", "spread"), [(60, 1, 3.0), (330, 2, 1.0)])
def test_factors_of_blocks_equal_the_golden_model(n: int, chips: int, spread: float) -> None:
    compare(n, chips, spread=spread)


@pytest.mark.long
def test_another_chip_factors_alike() -> None:
    compare(40, spec=PRESETS["groq-3-lp30"])


@pytest.mark.parametrize("n", [5, 60, pytest.param(330, marks=pytest.mark.long)])
def test_golden_factors_are_near_those_of_float64(n: int) -> None:
    a = random_matrix(n)
    found = golden_cholesky(a).astype(np.float64)
    exact = np.linalg.cholesky(a.astype(np.float64))
    assert np.abs(found - exact).max() <= 4e-7 * np.abs(exact).max()
    assert np.abs(found @ found.T - a).max() <= 2e-6 * np.abs(a).max()
    assert np.array_equal(found, np.tril(found))


def test_sixteen_rows_are_plain_fp32() -> None:
    """Within the first sixteen rows: one rounding for each operation, column after column."""
    a = random_matrix(16, 3)
    rest = np.triu(a)
    wanted = np.zeros((16, 16), np.float32)
    for j in range(16):
        factor = numerics.rsqrt(rest[j, j : j + 1])[0]
        wanted[j:, j] = rest[j, j:] * factor
        for m in range(j + 1, 16):
            for i in range(m, 16):
                rest[m, i] = rest[m, i] - wanted[m, j] * wanted[i, j]
    assert np.array_equal(golden_cholesky(a), wanted)


def test_the_lower_triangle_is_not_read() -> None:
    a = random_matrix(40)
    assert np.array_equal(golden_cholesky(np.triu(a)), golden_cholesky(a))


def test_what_cannot_be_factored() -> None:
    with pytest.raises(CompileError, match="alu_cycles is 4: these kernels are written for 3"):
        compile_cholesky(CholeskyShape(4, 1), ChipSpec(alu_cycles=4))
    with pytest.raises(CompileError, match="a matrix of 0 rows: use 1 or more"):
        CholeskyShape(0)
    with pytest.raises(CompileError, match=r"a matrix of 9000 x 9000 on 1 chip does not fit"):
        compile_cholesky(CholeskyShape(9000), SPEC)
    with pytest.raises(CompileError, match="a matrix on 3 chips: use 1, 2, 4 or 8"):
        CholeskyShape(9, 3)
    with pytest.raises(ValueError, match=r"the matrix is float64 \(3, 3\): use float32 \[4, 4\]"):
        compile_cholesky(CholeskyShape(4), SPEC, np.eye(3))  # type: ignore[arg-type]


def test_what_neighbours_send_lies_where_no_strip_reaches() -> None:
    """The last words of their slices are kept from every strip, narrow or wide."""
    words = SPEC.words_per_slice
    strips = Strips(SPEC, kept=frozenset({2, 40}), kept_words=320)
    first = strips.take("a", WEST, 4, words - 320)
    assert (first.queues, first.address) == ((0, 1, 2, 3), 0)
    second = strips.take("a", WEST, 4, 1)
    assert (second.queues, second.address) == ((4, 5, 6, 7), 0)
    assert strips.take("a", WEST, 4, words - 1).address == 1
    strips.settle("all of it", "ask for less")
    assert 40 in strips.take("weights", WEST, 16, words - 320).queues
    strips.settle("all of it", "ask for less")
    strips = Strips(SPEC, kept=frozenset({2}), kept_words=320)
    strips.take("a", WEST, 4, words - 319)
    with pytest.raises(CompileError, match="all of it does not fit"):
        strips.settle("all of it", "ask for less")
