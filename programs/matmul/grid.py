"""A matrix product over the chips of many nodes: B by rows and columns, sums over the wires.

Every chip multiplies its share; then the chips that share columns add their results up: each keeps
the sums of a share of the words, receives that share of all others and adds in ascending order of
the rows, ((p0 + p1) + p2) + ...  The result stays where it was added.  Which chips make a column is
whatever takes fewer cycles: chips that follow each other, or chips at one place of every group of
``columns``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from chip.engine import Chip
from chip.isa import LANES, Op
from chip.program import Program, new_blocks
from chip.scheduling import (
    CompileError,
    Place,
    Schedule,
    program_of,
    rename_tags,
    translate_gangs,
)
from chip.spec import ChipSpec
from interconnect.collectives import (
    GroupSums,
    WordRange,
    receiving_slices,
    sum_over_groups,
    working_quads,
)
from interconnect.wiring import FabricError, Topology, topology_of
from programs.artifact import Artifact, planes_of
from programs.matmul.compiler import ENTRY, image_of, require_data, schedule_items
from programs.matmul.places import GROUP, GridShape, MatmulPlan, SummedResults, plan_matmul
from programs.sram import Image, read_words

#: The working quad of each plane's results (those of its hemisphere), and that of the sums.
_QUAD_OF_PLANE = {2: 1, 3: 3, 0: 0, 1: 2}
_SUMS = 2


@dataclass(frozen=True)
class GridPlan:
    """How a product lies on a grid of chips.

    own: of every chip; chips: int64 [columns, rows], which chip has what; ranges: the words of
    every plane's results, in pieces; sums: where a chip keeps its shares of those, one after
    another.
    """

    own: MatmulPlan
    chips: NDArray[np.int64]
    ranges: tuple[WordRange, ...]
    sums: Place

    @property
    def sum_words(self) -> int:
        """The most words that a chip keeps."""
        rows = self.chips.shape[1]
        if rows == 1:
            return 0
        shares = [[part.share(r, rows) for part in self.ranges] for r in range(rows)]
        return max(sum(end - first for first, end in share) for share in shares)


def wiring_of(chips: int) -> Topology:
    """The smallest wiring that has ``chips`` chips or more."""
    while True:
        try:
            return topology_of(chips)
        except FabricError:
            chips += 1


def plan_grid(shape: GridShape, spec: ChipSpec, turned: bool = False) -> GridPlan:
    """Where everything lies.  turned: a column is chips that follow each other.

    Raises CompileError for what a chip cannot hold.
    """
    quads = working_quads(spec)
    planes = (2, 0) if shape.dtype == "fp16" else (2, 3, 0, 1)
    # of four planes with results no quad is free: sums then lie in the other bank of one
    shared = len(planes) == 4
    words = spec.words_per_bank if shared else spec.words_per_slice
    summed = SummedResults(
        {plane: quads[_QUAD_OF_PLANE[plane]] for plane in planes},
        words,
        frozenset(q for quad in quads for q in quad),
        receiving_slices(spec),
        spec.words_per_bank,
    )
    own = plan_matmul(shape.own, spec, summed)
    used = dict.fromkeys(planes, 0)
    for item in own.items:
        used[item.plane] += own.chunks[item.chunk]
    ranges = tuple(WordRange(_QUAD_OF_PLANE[p], 0, n) for p, n in used.items() if n)
    numbers = np.arange(shape.chips, dtype=np.int64)
    chips = (
        numbers.reshape(shape.columns, shape.rows)
        if turned
        else numbers.reshape(shape.rows, shape.columns).T
    )
    sums = Place(quads[_SUMS], spec.words_per_bank if shared else 0)
    return GridPlan(own, np.ascontiguousarray(chips), ranges, sums)


def compile_grid(
    shape: GridShape,
    spec: ChipSpec,
    a: NDArray[np.generic] | None = None,
    b: NDArray[np.generic] | None = None,
) -> tuple[Artifact, GridPlan]:
    """Compile a product over a grid of chips; ``a`` [m, k] and ``b`` [k, n] are its data.

    Without data the artifact has no memory image (timing only).  Raises CompileError when a chip
    cannot hold its share, and ValueError for data of another shape or type.
    """
    topology = wiring_of(shape.chips)
    schedule = Schedule()
    plan = plan_grid(shape, spec)
    done = schedule_items(schedule, spec, plan.own)
    table, _, gangs = schedule.blocks()
    first = int(table["cycle"].min())
    table["cycle"] -= first
    product = program_of([table], gangs, done - first)
    programs, program_of_chip, end, rounds = [product], [0] * shape.chips, product.cycles, 0
    if shape.rows > 1:
        plan, sums = _fewest_cycles(shape, spec, topology, product.cycles)
        programs, program_of_chip = _joined(product, sums, shape.chips)
        end, rounds = sums.cycles, sums.rounds
    idle = topology.chips - shape.chips
    if idle and shape.rows == 1:
        programs = [product, Program(new_blocks(0), [], [], end)]
        program_of_chip = [0] * shape.chips + [1] * idle
    memory: list[Image] = [[] for _ in range(topology.chips)]
    if a is not None and b is not None:
        require_data(shape, a, b)
        for column, group in enumerate(plan.chips.tolist()):
            for row, chip in enumerate(group):
                terms, columns = _share(row, plan.own.shape.k), _share(column, plan.own.shape.n)
                memory[chip] = image_of(plan.own, a[:, terms], b[terms, columns])
    outputs = (
        {"c": planes_of(plan.sums, plan.sum_words)}
        if shape.rows > 1
        else {
            f"c{block}.{chunk}": planes_of(place, plan.own.chunks[chunk])
            for (block, chunk), place in plan.own.results.items()
        }
    )
    artifact = Artifact(
        spec=spec,
        topology="single" if topology.chips == 1 else topology.name,
        chips=topology.chips,
        cables=[(x, link_x, y, link_y) for x, link_x, y, link_y in topology.cables.tolist()],
        programs={ENTRY: programs},
        program_of_chip=program_of_chip,
        memory=memory,
        bindings={"outputs": outputs},
        model={
            "workload": "matmul",
            "m": shape.m,
            "k": shape.k,
            "n": shape.n,
            "dtype": shape.dtype,
            "split": f"rows:{shape.rows},columns:{shape.columns}",
            "product_cycles": product.cycles,
            "rounds": rounds,
            "sram_used_bytes": plan.own.used_bytes + 4 * LANES * plan.sum_words,
        },
        predicted_cycles={ENTRY: end},
    )
    return artifact, plan


def read_grid(shape: GridShape, plan: GridPlan, chips: Sequence[Chip]) -> NDArray[np.generic]:
    """C [m, n] (int32 or float32) after a launch, from all chips in order."""
    own = plan.own
    dtype = np.dtype(np.int32 if shape.dtype == "int8" else np.float32)
    row_starts = np.cumsum([0, *own.chunks])
    column_starts = GROUP * np.cumsum([0, *own.blocks])
    whole = np.zeros((shape.m, shape.columns * own.shape.n), dtype)
    for column, group in enumerate(plan.chips.tolist()):
        words = _results(plan, [chips[chip] for chip in group])
        c = np.zeros((own.streamed, column_starts[-1]), dtype)
        for (block, chunk), place in own.results.items():
            found = words[place.queues][place.address : place.address + own.chunks[chunk]]
            width = GROUP * own.blocks[block]
            c[
                row_starts[chunk] : row_starts[chunk + 1],
                column_starts[block] : column_starts[block + 1],
            ] = found.view(dtype)[:, :width, 0]
        part = c[:, : shape.m].T if own.turned else c[:, : own.shape.n]
        whole[:, _share(column, own.shape.n)] = part
    return whole[:, : shape.n]


def _results(plan: GridPlan, group: list[Chip]) -> dict[tuple[int, ...], NDArray[np.uint8]]:
    """The words of every plane's results, by its quad, from the chips that have their sums."""
    spec = group[0].spec
    quads = working_quads(spec)
    found: dict[tuple[int, ...], list[NDArray[np.uint8]]] = {}
    at = [0] * len(group)
    for part in plan.ranges:
        words = found.setdefault(quads[part.quad], [])
        for row, chip in enumerate(group):
            first, end = part.share(row, len(group))
            place = plan.sums.at(at[row]) if len(group) > 1 else Place(quads[part.quad], first)
            words.append(read_words(chip, place, end - first))
            at[row] += end - first
    return {quad: np.concatenate(words) for quad, words in found.items()}


def _share(number: int, each: int) -> slice:
    return slice(number * each, (number + 1) * each)


def _fewest_cycles(
    shape: GridShape, spec: ChipSpec, topology: Topology, ready: int
) -> tuple[GridPlan, GroupSums]:
    """The sums of the better of the two ways to give chips their columns."""
    add = Op.ADD_I32 if shape.dtype == "int8" else Op.ADD_F32
    best: tuple[GridPlan, GroupSums] | None = None
    for turned in (False, True) if shape.columns > 1 else (False,):
        plan = plan_grid(shape, spec, turned)
        target = (_SUMS, plan.sums.address)
        sums = sum_over_groups(
            topology, spec, plan.chips, plan.ranges, target, spec.words_per_bank, ready, add
        )
        if best is None or sums.cycles < best[1].cycles:
            best = replace(plan, ranges=sums.ranges), sums
    assert best is not None
    room = spec.words_per_slice - best[0].sums.address
    if best[0].sum_words > room:
        raise CompileError(
            f"a chip keeps {best[0].sum_words} words of sums, {room} fit a slice beside its "
            "product; use more rows of chips"
        )
    return best


def _joined(product: Program, sums: GroupSums, working: int) -> tuple[list[Program], list[int]]:
    """The chips' programs: the product, of those that work, and what the sums need of each."""
    known: dict[tuple[int, bool], int] = {}
    programs: list[Program] = []
    numbers = []
    named = int(product.blocks["tag"].max())
    for chip, number in enumerate(sums.program_of_chip):
        works = chip < working
        if (number, works) not in known:
            known[number, works] = len(programs)
            added = sums.programs[number]
            gangs = list(product.gangs)
            blocks = added.blocks.copy()
            rename_tags(blocks, named)
            translate_gangs(blocks, added.gangs, gangs)
            tables = [product.blocks, blocks] if works else [blocks]
            programs.append(program_of(tables, gangs, sums.cycles))
        numbers.append(known[number, works])
    return programs, numbers
