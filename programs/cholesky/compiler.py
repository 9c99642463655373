"""Cholesky's factorisation of a symmetric positive definite fp32 matrix, block row by block row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chip.engine import Chip
from chip.isa import LANES
from chip.scheduling import Schedule, program_of
from chip.spec import ChipSpec
from programs.artifact import Artifact, planes_of
from programs.cholesky.kernels import Kernels
from programs.cholesky.places import (
    ROWS,
    CholeskyShape,
    constants,
    matrix_image,
    place_cholesky,
)
from programs.sram import Image, read_words

ENTRY = "cholesky"


def compile_cholesky(
    shape: CholeskyShape, spec: ChipSpec, a: NDArray[np.float32] | None = None
) -> Artifact:
    """Compile the factorisation of ``a`` [n, n], whose upper triangle is read.

    Without ``a`` the artifact has no memory image (timing only).  Raises CompileError when the
    matrix does not fit, ValueError for one of another shape or type.
    """
    if a is not None and (a.shape != (shape.n, shape.n) or a.dtype != np.float32):
        raise ValueError(f"the matrix is {a.dtype} {a.shape}: use float32 [{shape.n}, {shape.n}]")
    places = place_cholesky(shape, spec)
    schedule = Schedule()
    kernels = Kernels(schedule, spec, places)
    ready = 0
    for block in range(shape.tiles):
        ready = _factor_block(kernels, shape, block, ready)
        ready = _update_rest(kernels, shape, block, ready)
    table, _, gangs = schedule.blocks()
    program = program_of([table], gangs, ready)
    memory: list[Image] = [[]]
    if a is not None:
        memory = [constants(places) + matrix_image(shape, places, a)]
    outputs = {
        f"tile{t}": planes_of(place, min(shape.rows, LANES * (t + 1)))
        for t, place in places.matrix.items()
    }
    return Artifact(
        spec=spec,
        topology="single",
        chips=1,
        cables=[],
        programs={ENTRY: [program]},
        program_of_chip=[0],
        memory=memory,
        bindings={"outputs": outputs},
        model={"workload": "cholesky", "n": shape.n, "sram_used_bytes": places.used_bytes},
        predicted_cycles={ENTRY: program.cycles},
    )


def _factor_block(kernels: Kernels, shape: CholeskyShape, block: int, ready: int) -> int:
    """Block row ``block`` of the factor's transpose, sixteen rows after sixteen rows."""
    places = kernels.places
    tiles = range(block, shape.tiles)
    width = ROWS + len(tiles)
    for group in range(shape.height(block) // ROWS):
        row = LANES * block + ROWS * group
        parts = []
        for number, tile in enumerate(tiles):
            source = places.matrix[tile].at(row)
            if group == 0:
                parts.append(kernels.copy_rows(source, width, number, ready))
            else:
                parts.append(kernels.reduce_rows(source, row, tile, width, number, ready))
        ready = max(parts)
        ready = kernels.split_rows(width, ready)
        ready = kernels.spread_rows(group, ready)
        ready = kernels.distribute(width, ready)
        ready = kernels.factor(width, ready)
        ready = max(
            kernels.keep_rows(places.matrix[tile].at(row), tile, width, number, group, ready)
            for number, tile in enumerate(tiles)
        )
        ready = max(kernels.turn(tile, group, ready) for tile in tiles)
    return ready


def _update_rest(kernels: Kernels, shape: CholeskyShape, block: int, ready: int) -> int:
    """What lies behind block row ``block``, less the product of its rows."""
    done = ready
    for row in range(block + 1, shape.tiles):
        for tile in range(row, shape.tiles):
            source = kernels.places.matrix[tile].at(LANES * row)
            done = max(done, kernels.update(source, LANES * row, shape.height(row), tile, ready))
    return done


def read_cholesky(shape: CholeskyShape, spec: ChipSpec, chip: Chip) -> NDArray[np.float32]:
    """L [n, n] after a launch."""
    upper = np.zeros((shape.rows, shape.tiles * LANES), np.float32)
    for tile, place in place_cholesky(shape, spec).matrix.items():
        words = read_words(chip, place, min(shape.rows, LANES * (tile + 1)))
        found = words.view(np.float32)[..., 0]
        upper[: len(found), LANES * tile : LANES * (tile + 1)] = found
    return np.ascontiguousarray(upper[: shape.n, : shape.n].T)
