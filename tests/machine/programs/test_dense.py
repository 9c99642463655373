"""Compiled matrix products against the golden model, and the golden model against exact sums."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chip.checker import check
from chip.scheduling import CompileError
from chip.spec import ChipSpec
from interconnect.vectors import check_fabric
from programs.kernels import step_cycles
from programs.matmul import (
    MatmulShape,
    compile_matmul,
    golden_matmul,
    peak_multiply_accumulates,
    plan_matmul,
    read_matmul,
)
from programs.matmul.compiler import ENTRY
from programs.running import LOOKAHEAD, Runner

SPEC = ChipSpec()


def random_data(shape: MatmulShape, seed: int) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """int8 with its extremes, fp16 over many magnitudes."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    sizes = ((shape.m, shape.k), (shape.k, shape.n))
    if shape.dtype == "int8":
        a, b = (rng.integers(-128, 128, size).astype(np.int8) for size in sizes)
        return a, b
    spread = [np.exp2(rng.integers(-8, 5, size)) * rng.standard_normal(size) for size in sizes]
    return spread[0].astype(np.float16), spread[1].astype(np.float16)


def compare(shape: MatmulShape, seed: int = 0) -> int:
    """Compile, check, run; every bit of C must be the golden model's.  Returns the cycles."""
    a, b = random_data(shape, seed)
    artifact = compile_matmul(shape, SPEC, a, b)
    program = artifact.program(ENTRY, 0)
    assert [str(finding) for finding in check(program, SPEC)] == []
    assert check_fabric([program], [0] * shape.chips, artifact.cables, SPEC) == []
    runner = Runner.alone(artifact)
    cycles = artifact.predicted_cycles[ENTRY]
    assert set(runner.launch(ENTRY, 0, LOOKAHEAD).values()) == {cycles}
    found = read_matmul(plan_matmul(shape, SPEC), runner.chips)
    wanted = golden_matmul(a, b, shape.chips, shape.split)
    assert (
        (found.shape, found.dtype)
        == (wanted.shape, wanted.dtype)
        == ((shape.m, shape.n), found.dtype)
    )
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))
    return cycles


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    m=st.integers(1, 700),
    k=st.integers(1, 700),
    n=st.integers(1, 900),
    dtype=st.sampled_from(["int8", "fp16"]),
    chips=st.sampled_from([1, 1, 2, 4, 8]),
    split=st.sampled_from(["columns", "rows"]),
    seed=st.integers(0, 1000),
)
def test_products_equal_the_golden_model(
    m: int, k: int, n: int, dtype: str, chips: int, split: str, seed: int
) -> None:
    compare(MatmulShape(m, k, n, dtype, chips, split), seed)


@pytest.mark.parametrize("split", ["columns", "rows"])
def test_golden_products_are_exact_sums(split: str) -> None:
    """fp16: one rounding for each tile of 320 terms, then fp32 sums; int8: whole numbers."""
    shape = MatmulShape(3, 700, 4, "fp16", 2, split)
    a, b = random_data(shape, 7)
    found = golden_matmul(a, b, 2, split)
    shares = [range(700)] if split == "columns" else [range(350), range(350, 700)]
    for row in range(3):
        for column in range(4):
            parts = []
            for share in shares:
                total = np.float32(0)
                for first in range(share.start, share.stop, 320):
                    exact = sum(
                        Fraction(float(a[row, i])) * Fraction(float(b[i, column]))
                        for i in range(first, min(first + 320, share.stop))
                    )
                    total = np.float32(total + np.float32(float(exact)))
                parts.append(total)
            assert found[row, column] == sum(parts[1:], parts[0])
    whole = MatmulShape(2, 500, 3, "int8")
    a, b = random_data(whole, 8)
    exact_sums = [[sum(int(x) * int(y) for x, y in zip(r, c, strict=True)) for c in b.T] for r in a]
    assert golden_matmul(a, b).tolist() == exact_sums


@pytest.mark.parametrize(("dtype", "least"), [("int8", 0.9), ("fp16", 0.95)])
def test_large_products_keep_the_planes_busy(dtype: str, least: float) -> None:
    """What is lost is the install of each K step and the way of the first and last row."""
    shape = MatmulShape(1280, 1280, 1280, dtype)
    artifact = compile_matmul(shape, SPEC)
    cycles = artifact.predicted_cycles[ENTRY]
    halves = 1 if dtype == "int8" else 2
    units = 4 if dtype == "int8" else 2
    steps = 4 * 4 * 4 // units  # column blocks x row chunks x K tiles
    bound = steps * step_cycles(SPEC, 320, 20, halves)
    assert bound <= cycles <= bound + 200 + 41 * units
    assert shape.multiply_accumulates / (cycles * peak_multiply_accumulates(dtype)) > least


def test_what_does_not_fit_says_by_how_much() -> None:
    with pytest.raises(CompileError, match=r"on 1 chip does not fit: [\d,]+ bytes too many"):
        compile_matmul(MatmulShape(9000, 9000, 9000), SPEC)
    with pytest.raises(CompileError, match="3 chips: a node has 1, 2, 4 or 8"):
        MatmulShape(10, 10, 10, chips=3)
    with pytest.raises(CompileError, match="may leave int32"):
        MatmulShape(1, 131_072, 1, "int8")
    with pytest.raises(ValueError, match="takes int8"):
        shape = MatmulShape(2, 2, 2, "int8")
        compile_matmul(shape, SPEC, np.zeros((2, 2), np.float16), np.zeros((2, 2), np.float16))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_the_published_shape(dtype: str) -> None:
    compare(MatmulShape(2304, 4096, 3500, dtype))
