"""Products over the chips of nodes: the golden model's bits, and its sums in their order."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chip.checker import check
from chip.isa import LANES, Op
from chip.scheduling import CompileError, Place
from chip.spec import PRESETS, ChipSpec
from interconnect.collectives import WordRange, sum_over_groups, working_quads
from interconnect.vectors import check_fabric
from interconnect.wiring import topology_of
from programs.artifact import Artifact, load, save
from programs.matmul import GridShape, compile_grid, golden_grid, read_grid
from programs.matmul.compiler import ENTRY
from programs.running import LOOKAHEAD, Runner
from programs.sram import read_words

SPEC = ChipSpec()
Values = NDArray[np.generic]


def random_data(shape: GridShape, seed: int) -> tuple[Values, Values]:
    """int8 with its extremes, fp16 over many magnitudes."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    sizes = ((shape.m, shape.k), (shape.k, shape.n))
    if shape.dtype == "int8":
        a, b = (rng.integers(-128, 128, size).astype(np.int8) for size in sizes)
        return a, b
    spread = [np.exp2(rng.integers(-8, 5, size)) * rng.standard_normal(size) for size in sizes]
    return spread[0].astype(np.float16), spread[1].astype(np.float16)


def require_legal(artifact: Artifact, entry: str) -> None:
    programs = artifact.programs[entry]
    findings = [str(finding) for program in programs for finding in check(program, artifact.spec)]
    assert findings == []
    assert check_fabric(programs, artifact.program_of_chip, artifact.cables, artifact.spec) == []


def compare(shape: GridShape, seed: int = 0, spec: ChipSpec = SPEC) -> Artifact:
    """Compile, check, run; every bit of C must be the golden model's."""
    a, b = random_data(shape, seed)
    artifact, plan = compile_grid(shape, spec, a, b)
    require_legal(artifact, ENTRY)
    runner = Runner.alone(artifact)
    assert set(runner.launch(ENTRY, 0, LOOKAHEAD).values()) == {artifact.predicted_cycles[ENTRY]}
    found, wanted = read_grid(shape, plan, runner.chips), golden_grid(a, b, shape.rows)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    assert found.shape == (shape.m, shape.n)
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))
    return artifact


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    m=st.integers(1, 400),
    k=st.integers(1, 900),
    n=st.integers(1, 700),
    dtype=st.sampled_from(["int8", "fp16"]),
    rows=st.integers(1, 6),
    columns=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_products_over_nodes_equal_the_golden_model(
    m: int, k: int, n: int, dtype: str, rows: int, columns: int, seed: int
) -> None:
    compare(GridShape(m, k, n, dtype, rows, columns), seed)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_a_product_of_thirteen_nodes(dtype: str) -> None:
    artifact = compare(GridShape(130, 4200, 330, dtype, 13, 8))
    assert (artifact.chips, artifact.topology) == (104, "nodes")


@pytest.mark.long
def test_chips_with_short_frames() -> None:
    compare(GridShape(70, 700, 300, "int8", 3, 2), spec=PRESETS["groq-3-lp30"])


def test_sums_are_added_row_after_row() -> None:
    """fp16: one rounding for each tile of 320 terms of a chip, its sums, then the rows'."""
    shape = GridShape(2, 1010, 3, "fp16", 3, 1)
    a, b = random_data(shape, 5)
    found = golden_grid(a, b, 3)
    for row in range(2):
        for column in range(3):
            parts = []
            for share in (range(337), range(337, 674), range(674, 1010)):
                tiles = []
                for first in (share.start, share.start + 320):
                    exact = sum(
                        Fraction(float(a[row, i])) * Fraction(float(b[i, column]))
                        for i in range(first, min(first + 320, share.stop))
                    )
                    tiles.append(np.float32(float(exact)))
                parts.append(np.float32(tiles[0] + tiles[1]))
            assert found[row, column] == np.float32(np.float32(parts[0] + parts[1]) + parts[2])


def test_a_product_over_nodes_is_an_artifact_like_any_other(tmp_path: Path) -> None:
    shape = GridShape(20, 400, 70, "int8", 5, 2)
    a, b = random_data(shape, 1)
    artifact, plan = compile_grid(shape, SPEC, a, b)
    save(artifact, tmp_path / "grid.lpu")
    runner = Runner.alone(load(tmp_path / "grid.lpu"))
    runner.launch(ENTRY, 0, LOOKAHEAD)
    assert len(runner.chips) == 16  # ten of them work
    assert np.array_equal(read_grid(shape, plan, runner.chips), golden_grid(a, b, 5))


def test_small_buffers_take_rounds() -> None:
    """Links that hold few words at once: the same sums, over more and later messages."""
    wiring, quads = topology_of(4), working_quads(SPEC)
    groups = np.array([[0, 3], [2, 1]])
    ranges = (WordRange(0, 0, 90), WordRange(1, 5, 41))
    few, many = (
        sum_over_groups(wiring, SPEC, groups, ranges, (2, 0), first, 100, Op.ADD_I32)
        for first in (8192 - 20, 4096)
    )
    assert (many.rounds, few.rounds) == (1, 4) and many.cycles < few.cycles
    rng = np.random.Generator(np.random.Philox(key=[3, 0]))
    words = rng.integers(-(2**30), 2**30, (4, 2, 90, LANES)).astype(np.int32)
    for sums in (few, many):
        memory = [
            [
                (q, part.first, np.ascontiguousarray(own[i, : part.words].view(np.uint8)[:, p::4]))
                for i, part in enumerate(ranges)
                for p, q in enumerate(quads[part.quad])
            ]
            for own in words
        ]
        artifact = Artifact(
            spec=SPEC,
            topology="node",
            chips=4,
            cables=[tuple(cable) for cable in wiring.cables.tolist()],
            programs={"sums": sums.programs},
            program_of_chip=sums.program_of_chip,
            memory=memory,
            bindings={},
            predicted_cycles={"sums": sums.cycles},
        )
        require_legal(artifact, "sums")
        runner = Runner.alone(artifact)
        runner.launch("sums", 0, LOOKAHEAD)
        for group in groups.tolist():
            total = words[group[0]] + words[group[1]]
            for member, chip in enumerate(group):
                at = 0
                for part in sums.ranges:
                    first, end = part.share(member, 2)
                    place = Place(quads[2], at)
                    found = read_words(runner.chips[chip], place, end - first).view(np.int32)
                    own = total[part.quad, first - ranges[part.quad].first :][: end - first]
                    assert np.array_equal(found[..., 0], own)
                    at += end - first


def test_what_no_round_can_hold_is_refused() -> None:
    with pytest.raises(CompileError, match="sums over 2 chips: links receive 1 words in one of"):
        sum_over_groups(
            topology_of(2),
            SPEC,
            np.array([[0, 1]]),
            [WordRange(0, 0, 2)],
            (2, 0),
            SPEC.words_per_slice,
            0,
            Op.ADD_F32,
        )


def test_grids_that_cannot_be() -> None:
    with pytest.raises(CompileError, match="a grid of 20 x 16 chips: use 1 to 300 in all"):
        GridShape(9, 9, 9, "int8", 20, 16)
    with pytest.raises(CompileError, match=r"a chip keeps \d+ words of sums, 4096 fit a slice"):
        compile_grid(GridShape(4096, 1280, 1280, "int8", 2, 1), ChipSpec())
    with pytest.raises(CompileError, match=r"does not fit: [\d,]+ bytes too many"):
        compile_grid(GridShape(6000, 3000, 4000, "int8", 2, 2), SPEC)
    with pytest.raises(ValueError, match="the product is GridShape"):
        compile_grid(
            GridShape(2, 2, 2, "int8", 2, 1),
            SPEC,
            *random_data(GridShape(2, 3, 2, "int8", 1, 1), 0),
        )
