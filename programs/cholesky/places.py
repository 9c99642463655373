"""Where a factorisation lies on a chip: the matrix by block rows, constants, and what is between.

Word j of a *tile* t is row j of the matrix (of the factor's transpose, once it is known), columns
320 t .. 320 t + 319 on the lanes, down to the diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chip.isa import LANES
from chip.scheduling import CompileError, Place
from chip.spec import ChipSpec
from interconnect.collectives import RECEIVED_QUADS
from interconnect.wiring import NODE_SIZES
from programs.kernels import EAST, WEST, Weights
from programs.sram import Image, Strips, put_fp32

#: Rows that are factored at once, and the column group of a plane that takes them.
ROWS = 16
GROUPS = LANES // ROWS
#: fp16 of 1, 2^-11 and 2^-22, by which three parts of a number are added up.
_PARTS = (0x3C00, 0x1000, 0x0004)


@dataclass(frozen=True)
class CholeskyShape:
    """An n x n matrix on ``chips`` chips of a node, that take its tiles in turn."""

    n: int
    chips: int = 1

    def __post_init__(self) -> None:
        if self.n < 1:
            raise CompileError(f"a matrix of {self.n} rows: use 1 or more")
        if self.chips not in NODE_SIZES:
            raise CompileError(f"a matrix on {self.chips} chips: use 1, 2, 4 or 8")

    @property
    def tiles(self) -> int:
        """Words that a row takes."""
        return -(-self.n // LANES)

    @property
    def rows(self) -> int:
        """Rows with those that fill the last sixteen: their diagonal is 1."""
        return -(-self.n // ROWS) * ROWS

    @property
    def multiply_accumulates(self) -> int:
        """n^3 / 6 to the whole number below."""
        return self.n**3 // 6

    def own(self, chip: int) -> range:
        """The tiles of a chip."""
        return range(chip, self.tiles, self.chips)

    def height(self, tile: int) -> int:
        """Rows of block row ``tile``."""
        return min(LANES, self.rows - LANES * tile)


@dataclass(frozen=True)
class Places:
    """``matrix``: by tile, those of the chip.

    work: rows while they are factored, one quad after another; factored, again: the rows they
    become, twice; head: the next row's first value; spread: sixteen rows' scalars in all
    superlanes; parts: three fp16 parts of these; rows: two fp16 parts of the factor's rows, by
    words (low and high bytes of each); columns, done: the same parts as weights, by tile, of the
    factor's columns and of the rows known so far.
    guest: the block on the diagonal where another chip has it; received: what each neighbour sends.
    """

    matrix: dict[int, Place]
    work: tuple[Place, ...]
    factored: Place
    again: Place
    head: Place
    spread: Place
    parts: tuple[Place, Place, Place]
    rows: Place
    columns: dict[int, tuple[Weights, Weights]]
    done: dict[int, tuple[Weights, Weights]]
    picks: Weights
    lanes: Place
    unit: Place
    below: Place
    guest: Place
    received: dict[int, Place]
    used_bytes: int


def place_cholesky(shape: CholeskyShape, spec: ChipSpec, chip: int) -> Places:
    """Raises CompileError when the matrix does not fit."""
    received = {k: RECEIVED_QUADS[k] for k in range(1, shape.chips)}
    kept = frozenset(queue for quad in received.values() for queue in quad)
    strips = Strips(spec, kept=kept, kept_words=LANES)
    wide = ROWS * (ROWS + shape.tiles)
    low, high = (strips.take(name, EAST, 16, 3 * GROUPS + 80 * shape.tiles) for name in "lh")

    def weights(first: int, groups: int, same: bool = False) -> Weights:
        return Weights((low.at(first), high.at(first)), groups, None, same)

    picks = weights(0, GROUPS, True)
    columns, done = (
        {
            t: (
                weights(3 * GROUPS + 80 * t + 40 * kind, GROUPS),
                weights(3 * GROUPS + 80 * t + 40 * kind + GROUPS, GROUPS),
            )
            for t in range(shape.tiles)
        }
        for kind in range(2)
    )
    work = tuple(
        strips.take(("work", i), side, 4, wide) for i, side in enumerate((EAST, EAST, WEST, WEST))
    )
    factored = strips.take("factored", WEST, 4, wide)
    again = strips.take("again", WEST, 4, wide + 3 * ROWS)
    head = strips.take("head", WEST, 4, 1)
    first_part = strips.take("part", WEST, 2, ROWS)
    rows = strips.take("rows", WEST, 4, LANES * shape.tiles)
    lanes = strips.take("lanes", WEST, 1, ROWS)
    unit = strips.take("unit", WEST, 2, LANES)
    below = strips.take("below", WEST, 1, LANES)
    guest = strips.take("guest", WEST, 4, LANES)
    matrix = {
        t: strips.take("matrix", WEST, 4, min(shape.rows, LANES * (t + 1))) for t in shape.own(chip)
    }
    strips.settle(
        f"a matrix of {shape.n} x {shape.n} on {shape.chips} chip{'s' * (shape.chips > 1)}",
        "use more chips or a smaller matrix",
    )
    spread = again.at(wide)
    second, third = (again.part(i, i + 2).at(wide + ROWS) for i in (0, 2))
    return Places(
        matrix,
        work,
        factored,
        again,
        head,
        spread,
        (first_part, second, third),
        rows,
        columns,
        done,
        picks,
        lanes,
        unit,
        below,
        guest,
        {k: Place(quad, spec.words_per_slice - LANES) for k, quad in received.items()},
        strips.used_bytes(),
    )


def constants(places: Places) -> Image:
    """What every chip holds beside its tiles."""
    ramp = np.arange(LANES)
    image: Image = [
        (places.lanes.queues[0], places.lanes.address, _bytes(np.arange(ROWS)[:, None] + 0 * ramp)),
        (places.below.queues[0], places.below.address, _bytes(ramp >= ramp[:, None])),
        (places.unit.queues[1], places.unit.address, _bytes(0x3C * (ramp == ramp[:, None]))),
    ]
    for half, place in enumerate(places.picks.halves):
        for column, queue in enumerate(place.queues):
            lane = ROWS * np.arange(GROUPS) + column
            words = np.zeros((GROUPS, 3, LANES), np.uint8)
            for number, part in enumerate(_PARTS):
                words[np.arange(GROUPS), number, lane] = part >> (8 * half) & 255
            image.append((queue, place.address, words.reshape(-1, LANES)))
    return image


def matrix_image(shape: CholeskyShape, places: Places, a: NDArray[np.float32] | None) -> Image:
    """The upper triangle of ``a`` [n, n], those tiles that a chip has, and its first block."""
    image: Image = []
    if a is None:
        return image
    padded = np.zeros((shape.rows, shape.tiles * LANES), np.float32)
    padded[: shape.n, : shape.n] = np.triu(a)
    padded[range(shape.n, shape.rows), range(shape.n, shape.rows)] = 1
    for tile, place in places.matrix.items():
        words = padded[: LANES * (tile + 1), LANES * tile : LANES * (tile + 1)]
        put_fp32(image, place, 0, np.ascontiguousarray(words))
    if 0 not in places.matrix:
        put_fp32(image, places.guest, 0, np.ascontiguousarray(padded[:LANES, :LANES]))
    return image


def _bytes(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values.astype(np.uint8))
