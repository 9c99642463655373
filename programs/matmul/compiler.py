"""A matrix product [M, K] x [K, N] on one chip or on all chips of a node, int8 or fp16.

One matrix is installed, the rows of the other stream past it (programs/kernels/gemm.py); which
of the two is whatever takes fewer cycles.  int8 gives exact int32 sums, fp16 sums of exact 320-term
products in fp32, K tile after K tile.

Split over chips by columns (every chip has all of K and a share of N; nothing moves between
chips) or by rows of the second matrix (every chip has a share of K; the partial sums are added by
the node's tree on every chip).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chip.engine import Chip
from chip.isa import LANES, Op
from chip.scheduling import Operand, Pass, Schedule, program_of
from chip.spec import ChipSpec
from interconnect.collectives import ReducePlaces, exchange
from interconnect.wiring import node_cables
from programs.artifact import Artifact, Planes, planes_of
from programs.kernels import RowOperand, Rows, product, put_weights, store_results
from programs.matmul.places import (
    BUFFERS,
    EXCHANGED,
    GROUP,
    GridShape,
    MatmulPlan,
    MatmulShape,
    plan_matmul,
)
from programs.sram import Image, put_rows, read_words

ENTRY = "matmul"
#: Eastward stream group of the sum of all chips' words.
_SUM_CODE = 12


def read_matmul(plan: MatmulPlan, chips: Sequence[Chip]) -> NDArray[np.generic]:
    """C [m, n] (int32 or float32) after a launch, from all chips in order."""
    shape = plan.shape
    dtype = np.dtype(np.int32 if shape.dtype == "int8" else np.float32)
    row_starts = np.cumsum([0, *plan.chunks])
    column_starts = GROUP * np.cumsum([0, *plan.blocks])
    c = np.zeros((plan.streamed, column_starts[-1]), dtype)
    whole = np.zeros((shape.m, shape.chips * shape.chip_columns), dtype)
    for number, chip in enumerate(chips):
        at = 0
        for block in range(len(plan.blocks)):
            for chunk, rows in enumerate(plan.chunks):
                place = plan.results[block, chunk] if plan.total is None else plan.total.at(at)
                at += rows
                width = GROUP * plan.blocks[block]
                c[
                    row_starts[chunk] : row_starts[chunk + 1],
                    column_starts[block] : column_starts[block + 1],
                ] = read_words(chip, place, rows).view(dtype)[:, :width, 0]
        first = number * shape.chip_columns
        own = c[:, : shape.m].T if plan.turned else c[:, : shape.chip_columns]
        whole[:, first : first + shape.chip_columns] = own
        if plan.total is not None:
            break
    return whole[:, : shape.n]


def compile_matmul(
    shape: MatmulShape,
    spec: ChipSpec,
    a: NDArray[np.generic] | None = None,
    b: NDArray[np.generic] | None = None,
) -> Artifact:
    """Compile a product; ``a`` [m, k] and ``b`` [k, n] (int8, or fp16 as float16) are its data.

    Without data the artifact has no memory image (timing only).  Raises CompileError when the
    product does not fit and ValueError for data of another shape or type.
    """
    plan = plan_matmul(shape, spec)
    schedule = Schedule()
    done = schedule_items(schedule, spec, plan)
    if plan.total is not None:
        done = _add_partials(schedule, spec, plan, done)
    table, _, gangs = schedule.blocks()
    first = int(table["cycle"].min())
    table["cycle"] -= first
    end = done - first
    program = program_of([table], gangs, end)
    memory: list[Image] = [[] for _ in range(shape.chips)]
    if a is not None and b is not None:
        require_data(shape, a, b)
        memory = [_image(plan, a, b, chip) for chip in range(shape.chips)]
    return Artifact(
        spec=spec,
        topology="single" if shape.chips == 1 else f"node-{shape.chips}",
        chips=shape.chips,
        cables=node_cables(shape.chips),
        programs={ENTRY: [program]},
        program_of_chip=[0] * shape.chips,
        memory=memory,
        bindings={"outputs": _outputs(plan)},
        model={
            "workload": "matmul",
            "m": shape.m,
            "k": shape.k,
            "n": shape.n,
            "dtype": shape.dtype,
            "split": shape.split,
            "sram_used_bytes": plan.used_bytes,
        },
        predicted_cycles={ENTRY: end},
    )


def schedule_items(schedule: Schedule, spec: ChipSpec, plan: MatmulPlan) -> int:
    """A chip's own product; returns the cycle from which all results are readable."""
    clock = dict.fromkeys((0, 1, 2, 3), 0)
    done = 0
    for item in plan.items:
        operand = RowOperand(
            plan.rows[item.plane, item.chunk],
            Rows(plan.chunks[item.chunk], dx=plan.k_tiles),
            tuple(range(plan.k_tiles)),
        )
        target = plan.results[item.block, item.chunk]
        finish = store_results(target, Rows(plan.chunks[item.chunk]))
        placed = product(
            schedule,
            spec,
            item.plane,
            plan.weights[item.plane, item.block],
            operand,
            clock[item.plane],
            0,
            finish,
        )
        clock[item.plane] = placed.next_read
        done = max(done, placed.ready)
    return done


def _add_partials(schedule: Schedule, spec: ChipSpec, plan: MatmulPlan, ready: int) -> int:
    """All-reduce of every result, a batch of words at a time, into ``plan.total``."""
    assert plan.total is not None
    add = Op.ADD_I32 if plan.shape.dtype == "int8" else Op.ADD_F32
    at = there = 0
    free = [ready] * BUFFERS  # cycles from which the halves of the received words may be written
    for block in range(len(plan.blocks)):
        for chunk, rows in enumerate(plan.chunks):
            for first in range(0, rows, EXCHANGED):
                words = min(EXCHANGED, rows - first)
                buffer = (len(free) % BUFFERS) * min(EXCHANGED, max(plan.chunks))
                received = {k: place.at(buffer) for k, place in plan.received.items()}
                places = ReducePlaces(
                    plan.results[block, chunk].at(first), plan.total.at(at), received
                )
                # A link's vectors of two exchanges must not interleave: the last one is sent a hop
                # (at least) before it is readable.
                sent = there - spec.hop_cycles + spec.send_spacing_cycles
                there = exchange(
                    schedule, spec, plan.shape.chips, words, max(free[-BUFFERS], sent), places
                )
                free.append(_add_by_tree(schedule, spec, words, there, places, add))
                at += words
    return max(free)


def _add_by_tree(
    schedule: Schedule, spec: ChipSpec, words: int, ready: int, places: ReducePlaces, add: Op
) -> int:
    """Own and received words added by the node's tree into ``residual``; returns when readable."""
    p = Pass(schedule, spec)
    when = 40
    sources = [places.partial, *(places.received[k] for k in sorted(places.received))]
    terms: list[Operand] = [
        p.load(place, 4 * k + place.inward, when, n=words, da=1) for k, place in enumerate(sources)
    ]
    first_read = p.first_read()
    while len(terms) > 1:
        out = _SUM_CODE if len(terms) == 2 else -1
        results = [
            p.op(add, when, a, b, n=words, out=out)
            for a, b in zip(terms[::2], terms[1::2], strict=True)
        ]
        terms = [alu for alu, _ in results]
        if out >= 0:
            p.keep(places.residual, results[0][1], when, n=words)
        when += spec.alu_cycles
    return schedule.place(p, ready - first_read, "add by tree") + p.ready


def _outputs(plan: MatmulPlan) -> dict[str, Planes]:
    """Results by block and chunk; after a row split the totals, in the same order."""
    if plan.total is not None:
        words = len(plan.blocks) * plan.streamed
        return {"c": planes_of(plan.total, words)}
    return {
        f"c{block}.{chunk}": planes_of(place, plan.chunks[chunk])
        for (block, chunk), place in plan.results.items()
    }


def _bytes_of(values: NDArray[np.generic], dtype: str) -> list[NDArray[np.uint8]]:
    """The byte planes of int8 or float16 values, low byte first."""
    wanted = np.int8 if dtype == "int8" else np.float16
    if values.dtype != wanted:
        raise ValueError(f"data are {values.dtype}: a {dtype} product takes {np.dtype(wanted)}")
    raw = np.ascontiguousarray(values).view(np.uint8).reshape(*values.shape, -1)
    return [np.ascontiguousarray(raw[..., i]) for i in range(raw.shape[-1])]


def require_data(
    shape: MatmulShape | GridShape, a: NDArray[np.generic], b: NDArray[np.generic]
) -> None:
    """Raise ValueError for data of another shape than the product's."""
    if a.shape != (shape.m, shape.k) or b.shape != (shape.k, shape.n):
        raise ValueError(f"data are {a.shape} and {b.shape}: the product is {shape}")


def _image(plan: MatmulPlan, a: NDArray[np.generic], b: NDArray[np.generic], chip: int) -> Image:
    """One chip's memory before the launch."""
    shape = plan.shape
    terms = slice(chip * shape.chip_terms, (chip + 1) * shape.chip_terms)
    columns = slice(chip * shape.chip_columns, (chip + 1) * shape.chip_columns)
    if shape.split == "columns":
        terms = slice(None)
    else:
        columns = slice(None)
    return image_of(plan, a[:, terms], b[terms, columns])


def image_of(plan: MatmulPlan, a: NDArray[np.generic], b: NDArray[np.generic]) -> Image:
    """The memory of a chip that multiplies ``a`` by ``b``, which may be smaller than planned."""
    shape, k_tiles = plan.shape, plan.k_tiles
    streamed, installed = a, b.T
    if plan.turned:
        streamed, installed = installed, streamed
    padded_rows = np.zeros((plan.streamed, k_tiles * LANES), a.dtype)
    padded_rows[: len(streamed), : streamed.shape[1]] = streamed
    padded_columns = np.zeros((sum(plan.blocks) * GROUP, k_tiles * LANES), b.dtype)
    padded_columns[: len(installed), : installed.shape[1]] = installed
    image: Image = []
    row_starts = np.cumsum([0, *plan.chunks])
    for (_, chunk), place in plan.rows.items():
        rows = padded_rows[row_starts[chunk] : row_starts[chunk + 1]]
        put_rows(image, place, _bytes_of(rows, shape.dtype))
    column_starts = GROUP * np.cumsum([0, *plan.blocks])
    for (_, block), weights in plan.weights.items():
        rows = padded_columns[column_starts[block] : column_starts[block + 1]]
        by_step = np.ascontiguousarray(rows.reshape(len(rows), k_tiles, LANES).swapaxes(0, 1))
        put_weights(image, weights, _bytes_of(by_step, shape.dtype))
    return image
