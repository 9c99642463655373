"""Cholesky's factorisation of a symmetric positive definite fp32 matrix, block row by block row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from chip.engine import Chip
from chip.isa import LANES
from chip.scheduling import CompileError
from chip.spec import ChipSpec
from interconnect.wiring import node_cables
from programs.artifact import Artifact, Planes, planes_of
from programs.cholesky.kernels import Kernels
from programs.cholesky.places import (
    ROWS,
    CholeskyShape,
    Places,
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
    if spec.alu_cycles != 3:
        raise CompileError(f"chip.alu_cycles is {spec.alu_cycles}: these kernels are written for 3")
    if a is not None and (a.shape != (shape.n, shape.n) or a.dtype != np.float32):
        raise ValueError(f"the matrix is {a.dtype} {a.shape}: use float32 [{shape.n}, {shape.n}]")
    chips = [Kernels(spec, place_cholesky(shape, spec, chip)) for chip in range(shape.chips)]
    ready = 0
    for block in range(shape.tiles):
        if shape.chips > 1 and block:
            ready = _step(chips, ready, partial(_share_block, shape, block))
        for group in range(shape.height(block) // ROWS):
            ready = _step(chips, ready, partial(_factor_rows, shape, block, group))
        if block + 1 == shape.tiles:
            break
        for turn in range(-(-(shape.tiles - block - 1) // shape.chips) * (shape.chips > 1)):
            ready = _step(chips, ready, partial(_share_rows, shape, block, turn))
        ready = _step(chips, ready, partial(_update_rest, shape, block))
    programs = [kernels.program(ready) for kernels in chips]
    memory: list[Image] = [[] for _ in chips]
    if a is not None:
        memory = [constants(k.places) + matrix_image(shape, k.places, a) for k in chips]
    return Artifact(
        spec=spec,
        topology="single" if shape.chips == 1 else f"node-{shape.chips}",
        chips=shape.chips,
        cables=node_cables(shape.chips),
        programs={ENTRY: programs},
        program_of_chip=list(range(shape.chips)),
        memory=memory,
        bindings={"outputs": _outputs(shape, chips[0].places)},
        model={
            "workload": "cholesky",
            "n": shape.n,
            "sram_used_bytes": max(k.places.used_bytes for k in chips),
        },
        predicted_cycles={ENTRY: ready},
    )


def _outputs(shape: CholeskyShape, places: Places) -> dict[str, Planes]:
    """The tiles of the first chip; the others have theirs from the same word on."""
    return {
        f"tile{t}": planes_of(place, min(shape.rows, LANES * (t + 1)))
        for t, place in places.matrix.items()
    }


def _step(chips: list[Kernels], begun: int, work: Callable[[int, Kernels], int]) -> int:
    """One step on all chips; returns the cycle at which the last of them ends it."""
    done = max(work(chip, kernels) for chip, kernels in enumerate(chips))
    for kernels in chips:
        kernels.end_step(begun)
    return begun + done


def _share_block(shape: CholeskyShape, block: int, chip: int, kernels: Kernels) -> int:
    """The block on the diagonal, from the chip that has it to the others."""
    places, owner, height = kernels.places, block % shape.chips, shape.height(block)
    source = places.matrix[block].at(LANES * block) if chip == owner else None
    words = [height * (chip ^ k == owner) for k in range(shape.chips)]
    arrived = kernels.spread(source, words)
    if chip == owner:
        return arrived
    return kernels.copy(places.received[chip ^ owner], places.guest, height, arrived)


def _share_rows(shape: CholeskyShape, block: int, turn: int, chip: int, kernels: Kernels) -> int:
    """The rows of a tile of each chip, as they stream past weights, to all others."""
    tiles = [
        [t for t in shape.own(other) if t > block][turn : turn + 1] for other in range(shape.chips)
    ]
    heights = [shape.height(tile[0]) if tile else 0 for tile in tiles]
    rows, received = kernels.places.rows, kernels.places.received
    source = rows.at(LANES * tiles[chip][0]) if tiles[chip] else None
    done = kernels.spread(source, [heights[chip ^ k] for k in range(shape.chips)])
    arrived = done
    for k, place in received.items():
        for tile in tiles[chip ^ k]:
            target = rows.at(LANES * tile)
            done = max(done, kernels.copy(place, target, heights[chip ^ k], arrived))
    return done


def _factor_rows(shape: CholeskyShape, block: int, group: int, chip: int, kernels: Kernels) -> int:
    """Sixteen rows of a block row: a chip's tiles of them, and the first tile on all chips."""
    places, row = kernels.places, LANES * block + ROWS * group
    tiles = [block, *(t for t in shape.own(chip) if t > block)]
    words = [
        places.matrix[t].at(row) if t in places.matrix else places.guest.at(ROWS * group)
        for t in tiles
    ]
    width = ROWS + len(tiles)
    ready = 0
    for number, tile in enumerate(tiles):
        if group:
            done = kernels.reduce_rows(words[number], row, tile, width, number)
        else:
            done = kernels.copy_rows(words[number], width, number)
        ready = max(ready, done)
    ready = kernels.split_rows(width, ready)
    ready = kernels.spread_rows(group, ready)
    ready = kernels.distribute(width, ready)
    ready = kernels.factor(width, ready)
    kept = [
        kernels.keep_rows(words[number], tile, width, number, group, ready)
        for number, tile in enumerate(tiles)
    ]
    # of the block on the diagonal only what lies behind these rows is needed any more
    wanted = [range((group + 1) * (t == block), shape.height(t) // ROWS) for t in tiles]
    return max(
        kernels.turn(tile, groups, group, done)
        for tile, groups, done in zip(tiles, wanted, kept, strict=True)
    )


def _update_rest(shape: CholeskyShape, block: int, chip: int, kernels: Kernels) -> int:
    """What a chip has behind block row ``block``, less the product of its rows."""
    done = 0
    for tile, place in kernels.places.matrix.items():
        for row in range(block + 1, tile + 1):
            words = place.at(LANES * row)
            done = max(done, kernels.update(words, LANES * row, shape.height(row), tile))
    return done


def read_cholesky(
    shape: CholeskyShape, spec: ChipSpec, chips: Sequence[Chip]
) -> NDArray[np.float32]:
    """L [n, n] after a launch, from all chips in order."""
    upper = np.zeros((shape.rows, shape.tiles * LANES), np.float32)
    for number, chip in enumerate(chips):
        for tile, place in place_cholesky(shape, spec, number).matrix.items():
            words = read_words(chip, place, min(shape.rows, LANES * (tile + 1)))
            found = words.view(np.float32)[..., 0]
            upper[: len(found), LANES * tile : LANES * (tile + 1)] = found
    return np.ascontiguousarray(upper[: shape.n, : shape.n].T)
