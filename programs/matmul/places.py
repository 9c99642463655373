"""The sizes of a matrix product, and where it lies on each chip.

Blocks of the installed matrix are dealt to planes whole; those that are left over are cut by rows
of the streamed one, so that all planes end together.
"""

from __future__ import annotations

from dataclasses import dataclass

from chip.isa import LANES
from chip.scheduling import CompileError, Place
from chip.spec import ChipSpec
from interconnect.collectives import RECEIVED_QUADS
from interconnect.wiring import NODE_SIZES
from programs.kernels import EAST, PAIRS, PLANES, Weights, cut, step_cycles, tiles_of
from programs.sram import Strips

SPLITS = ("columns", "rows")
GROUP = 16
_MOST_GROUPS = LANES // GROUP
#: Words of one exchange between chips (interconnect.collectives).
EXCHANGED = 256
BUFFERS = 2
#: Chips of a product over nodes.
MOST_GRID_CHIPS = 300


@dataclass(frozen=True)
class MatmulShape:
    """C [m, n] = A [m, k] B [k, n]; dtype int8 or fp16; chips of one node and how they split."""

    m: int
    k: int
    n: int
    dtype: str = "fp16"
    chips: int = 1
    split: str = "columns"

    def __post_init__(self) -> None:
        for name in ("m", "k", "n"):
            if getattr(self, name) < 1:
                raise CompileError(f"{name} is {getattr(self, name)}: use 1 or more")
        if self.dtype not in ("int8", "fp16"):
            raise CompileError(f"number type {self.dtype!r}: use int8 or fp16")
        if self.chips not in NODE_SIZES:
            raise CompileError(f"{self.chips} chips: a node has 1, 2, 4 or 8; use one of these")
        if self.split not in SPLITS:
            raise CompileError(f"split {self.split!r}: use {' or '.join(SPLITS)}")
        if self.dtype == "int8" and self.k * 128 * 128 >= 1 << 31:
            raise CompileError(f"k is {self.k}: sums of more than 131,071 terms may leave int32")

    @property
    def chip_columns(self) -> int:
        """Columns of B that a chip has; the last chips may have fewer."""
        return self.n if self.split == "rows" else -(-self.n // self.chips)

    @property
    def chip_terms(self) -> int:
        """Rows of B that a chip has; the last chips may have fewer."""
        return self.k if self.split == "columns" else -(-self.k // self.chips)

    @property
    def multiply_accumulates(self) -> int:
        """Useful multiply-accumulates of the whole product."""
        return self.m * self.k * self.n


@dataclass(frozen=True)
class GridShape:
    """C [m, n] = A [m, k] B [k, n] on rows x columns chips; dtype int8 or fp16.

    Chip (r, c) multiplies columns r of A with the block of B at rows r and columns c; the sums of
    the chips of a column are added up over the wires.
    """

    m: int
    k: int
    n: int
    dtype: str
    rows: int
    columns: int

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1 or self.chips > MOST_GRID_CHIPS:
            raise CompileError(
                f"a grid of {self.rows} x {self.columns} chips: use 1 to {MOST_GRID_CHIPS} in all"
            )
        MatmulShape(self.m, self.k, self.n, self.dtype)

    @property
    def chips(self) -> int:
        """Chips that work."""
        return self.rows * self.columns

    @property
    def own(self) -> MatmulShape:
        """The product of one chip; the last row's and column's may be smaller."""
        return MatmulShape(self.m, -(-self.k // self.rows), -(-self.n // self.columns), self.dtype)

    @property
    def multiply_accumulates(self) -> int:
        """Useful multiply-accumulates of the whole product."""
        return self.m * self.k * self.n


@dataclass(frozen=True)
class SummedResults:
    """Where results lie that are added up over chips: one quad of slices for each plane.

    words: of a quad; slices: taken by results and sums; received: those that take what links
    receive, from word ``received_first`` on.
    """

    quads: dict[int, tuple[int, ...]]
    words: int
    slices: frozenset[int]
    received: frozenset[int]
    received_first: int

    def take(self, used: dict[int, int], plane: int, words: int) -> tuple[Place, int]:
        """The next ``words`` words of a plane's quad, and the bytes that it lacks for them."""
        first = used.get(plane, 0)
        over = max(0, first + words - max(self.words, first))
        used[plane] = first + words
        return Place(self.quads[plane], min(first, self.words - 1)), 4 * LANES * over


def peak_multiply_accumulates(dtype: str) -> int:
    """Multiply-accumulates of a chip in one cycle: 320 x 320 on four planes, fp16 a quarter."""
    return 4 * LANES * LANES // (1 if dtype == "int8" else 4)


@dataclass(frozen=True)
class Item:
    """Column block ``block`` times row chunk ``chunk`` on plane ``plane``."""

    plane: int
    block: int
    chunk: int


@dataclass
class MatmulPlan:
    """Where everything lies, the same on every chip, and which plane does what.

    Either matrix can be the installed one: its columns (or rows) are cut into blocks, the rows (or
    columns) of the other one into chunks.  turned: A is installed, and results are those of C
    transposed.
    """

    shape: MatmulShape
    turned: bool
    k_tiles: int
    blocks: list[int]  # column groups of each block
    chunks: list[int]  # rows of each chunk
    items: list[Item]
    weights: dict[tuple[int, int], Weights]  # by (plane, block)
    rows: dict[tuple[int, int], Place]  # activations by (plane, chunk)
    results: dict[tuple[int, int], Place]  # by (block, chunk)
    received: dict[int, Place]
    total: Place | None  # row split: what the chips' partial sums add up to
    used_bytes: int

    @property
    def streamed(self) -> int:
        """Rows that stream past the installed matrix."""
        return sum(self.chunks)

    def plane_cycles(self, spec: ChipSpec) -> int:
        """Cycles of the busiest plane, without the way of its first and last row."""
        halves = 1 if self.shape.dtype == "int8" else 2
        busy: dict[int, int] = {}
        for item in self.items:
            step = step_cycles(spec, self.chunks[item.chunk], self.blocks[item.block], halves)
            busy[item.plane] = busy.get(item.plane, 0) + self.k_tiles * step
        return max(busy.values())


def _plan_items(blocks: int, chunks: int, units: tuple[int, ...]) -> list[Item]:
    """Items dealt to planes: whole column blocks first, the last ones cut by rows."""
    whole = blocks - blocks % len(units)
    items = [Item(units[b % len(units)], b, c) for b in range(whole) for c in range(chunks)]
    rest = [(b, c) for b in range(whole, blocks) for c in range(chunks)]
    share = -(-len(rest) // len(units))
    items += [Item(units[i // share], b, c) for i, (b, c) in enumerate(rest)]
    return items


def plan_matmul(
    shape: MatmulShape, spec: ChipSpec, summed: SummedResults | None = None
) -> MatmulPlan:
    """The plan of the two, B or A installed, that takes fewer cycles, of those that fit.

    summed: where results lie that other chips' are added to.  Raises CompileError when neither
    fits.
    """
    plans: list[MatmulPlan] = []
    refused: list[CompileError] = []
    for turned in (False, True):
        try:
            plans.append(_plan(shape, spec, turned, summed))
        except CompileError as error:
            refused.append(error)
    if not plans:
        raise refused[0]
    return min(plans, key=lambda plan: plan.plane_cycles(spec))


def _plan(
    shape: MatmulShape, spec: ChipSpec, turned: bool, summed: SummedResults | None
) -> MatmulPlan:
    installed, streamed = shape.chip_columns, shape.m
    if turned:
        installed, streamed = streamed, installed
    units = PLANES if shape.dtype == "int8" else PAIRS
    halves = 1 if shape.dtype == "int8" else 2
    groups = -(-installed // GROUP)
    blocks = cut(groups, _MOST_GROUPS)
    chunks = cut(streamed, spec.mxm_accumulator_rows)
    k_tiles = tiles_of(shape.chip_terms)
    items = _plan_items(len(blocks), len(chunks), units)
    strips = Strips(spec)
    received: dict[int, Place] = {}
    total: Place | None = None
    words = len(blocks) * streamed
    if shape.split == "rows" and shape.chips > 1:
        received = {k: Place(RECEIVED_QUADS[k], 0) for k in range(1, shape.chips)}
        strips.shared = frozenset(s for place in received.values() for s in place.queues)
        strips.shared_words = BUFFERS * min(EXCHANGED, words)
        top = spec.words_per_slice - strips.shared_words
        received = {k: place.at(top) for k, place in received.items()}
        total = strips.take("total", EAST, 4, words)
    if summed is not None:
        strips.free = [[q for q in free if q not in summed.slices] for free in strips.free]
        strips.shared = summed.received
        strips.shared_words = spec.words_per_slice - summed.received_first
    weights: dict[tuple[int, int], Weights] = {}
    rows: dict[tuple[int, int], Place] = {}
    results: dict[tuple[int, int], Place] = {}
    used: dict[int, int] = {}
    for item in items:
        side, key = item.plane // 2, (item.plane, item.block)
        if key not in weights:
            n = blocks[item.block]
            weights[key] = Weights(
                tuple(strips.take("weights", side, 16, k_tiles * n) for _ in range(halves)), n
            )
        key = (item.plane, item.chunk)
        if key not in rows:
            rows[key] = strips.take(
                ("rows", item.plane), side, halves, chunks[item.chunk] * k_tiles
            )
        if summed is None:
            place = strips.take(("results", item.plane), side, 4, chunks[item.chunk])
        else:
            place, over = summed.take(used, item.plane, chunks[item.chunk])
            strips.missing_bytes += over
        results[item.block, item.chunk] = place
    strips.settle(
        f"[{shape.m} x {shape.k}] x [{shape.k} x {shape.n}] in {shape.dtype} on {shape.chips} "
        f"chip{'s' * (shape.chips > 1)}",
        "use more chips, int8, or smaller matrices",
    )
    return MatmulPlan(
        shape,
        turned,
        k_tiles,
        blocks,
        chunks,
        items,
        weights,
        rows,
        results,
        received,
        total,
        strips.used_bytes() + 4 * LANES * sum(used.values()),
    )
