"""Matrix products of many rows: weights stay on a plane while activation rows stream past.

One *item* is one column block (up to 320 columns) times up to 320 rows on one plane (int8) or one
plane pair (fp16).  For every K step the next weights are loaded in the shadow of the rows that
stream through the installed ones, so a step costs one cycle (fp16: two) per row and the three of
the install.  The rows' sums stay in the plane's accumulators; the last step emits them, and a
callback takes them from there: to SRAM as they are, or through the VXM.

Weights travel on outward streams 0..15 of their hemisphere, the two halves of an fp16 matrix one
after the other; activations on 16 and above; results come back on stream group 0 or 1 (even or odd
plane) in the east and 4 or 5 in the west, so that either half of the VXM serves one hemisphere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from chip import isa
from chip.isa import AccMode, Op
from chip.scheduling import CompileError, Pass, Place, Schedule, Stream
from chip.spec import ChipSpec
from programs.kernels.planes import Weights, accumulate, drive_sums, install_weights

WEST, EAST = 0, 1
#: What schedules int8 work, and fp16 work (a pair is named by its even plane): east first.
PLANES = (2, 0, 3, 1)
PAIRS = (2, 0)
#: First stream group of the results of a hemisphere's even plane, inward (west, east).
RESULT_GROUP = (4, 0)
_ACTIVATIONS = 16
#: Cycles of a pass before its first install: room for reads that cross the chip.
_LEAD = 70


@dataclass(frozen=True)
class Rows:
    """nx * ny rows: row (x, y) lies x * dx + y * dy words behind the first."""

    nx: int
    ny: int = 1
    dx: int = 1
    dy: int = 0

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.nx * self.ny

    def repeats(self, spacing: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """(n, dc, da) of a block that takes the rows in order, one each ``spacing`` cycles."""
        return (self.nx, self.ny), (spacing, spacing * self.nx), (self.dx, self.dy)


@dataclass(frozen=True)
class RowOperand:
    """Activation rows on one slice (int8) or two (fp16: low, high bytes).

    offsets: first word of each K step.  ``joined``: every row adds to one sum (int8 pooling).
    places: of each K step, where they are not all on the slices of ``place``.
    """

    place: Place
    rows: Rows
    offsets: tuple[int, ...]
    joined: bool = False
    places: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Emitted:
    """The results of an item: ``stream`` passes the hemisphere's edge at ``edge_cycle`` + i *
    ``spacing`` and reaches the VXM at ``vxm_cycle`` + i * ``spacing``, i < ``count``."""

    stream: Stream
    side: int
    edge_cycle: int
    vxm_cycle: int
    count: int
    spacing: int


Finish = Callable[[Pass, Emitted], None]


@dataclass(frozen=True)
class Placed:
    """An item in the schedule: when its rows are read (first, last), when its results are there.

    last_result: the cycle at which the last result reaches the VXM; next_read: the earliest cycle
    at which an item after it on the same plane can read its first row.
    """

    first_read: int
    last_read: int
    last_result: int
    ready: int
    next_read: int


def step_cycles(spec: ChipSpec, rows: int, groups: int, halves: int) -> int:
    """Cycles from one K step of an item to the next."""
    streaming = spec.mxm_install_cycles + halves * rows
    return max(streaming, halves * groups + 1, groups + spec.mxm_reload_gap_cycles)


def result_code(plane: int) -> int:
    """First inward stream code on which ``plane`` returns its results."""
    side = plane // 2
    return 32 * side + 4 * (RESULT_GROUP[side] + plane % 2)


def product(
    schedule: Schedule,
    spec: ChipSpec,
    plane: int,
    weights: Weights,
    operand: RowOperand,
    earliest_read: int,
    earliest_weights: int,
    finish: Finish,
    earliest_result: int = 0,
) -> Placed:
    """Schedule one item on ``plane`` (fp16: the pair of that even plane).

    earliest_read, earliest_weights: cycles from which activations and weights are readable;
    earliest_result: cycle before which no result may reach the VXM.
    Raises CompileError for more rows than the plane has accumulators.
    """
    p = Pass(schedule, spec)
    side = plane // 2
    halves = len(weights.halves)
    count, steps, groups = operand.rows.count, len(operand.offsets), weights.groups
    if (1 if operand.joined else count) > spec.mxm_accumulator_rows:
        raise CompileError(
            f"{count} rows in one product: a plane has {spec.mxm_accumulator_rows} accumulators"
        )
    install, queue = spec.mxm_install_cycles, isa.MXM_QUEUE + 2 * plane
    outward = 32 if side == WEST else 0
    period = step_cycles(spec, count, groups, halves)
    end = _LEAD + halves * groups
    for half in range(halves):
        loaded = end - (halves - half) * groups
        lw_queue = queue + 2 * half
        install_weights(p, weights, half, outward, lw_queue, (loaded, end), steps, period)
        reloadable = max(end, loaded + groups + spec.mxm_reload_gap_cycles - 1)
        for step in range(steps):
            p.hold_buffer(plane + half, loaded + step * period, reloadable + step * period)
        last = end + (steps - 1) * period + install + halves * count - 1
        p.hold_plane(plane + half, end, last)
        if half:
            p.hold(lw_queue + 1, end + install, last)
    first_weights = p.first_read()
    meet = end + install
    code = outward + _ACTIVATIONS + (plane % 2 if halves == 1 else 0)
    tag, before = schedule.tag(), len(p.blocks)
    _read_rows(p, operand, code, meet, queue, period, halves, tag)
    first_row = p.first_read(since=before)
    p.emit(
        Op.ABC,
        queue + 1,
        meet,
        n=(count, steps),
        dc=(halves, period),
        s0=code,
        w0=halves,
        want0=tag,
    )
    emitted = _accumulate(p, operand, plane, meet + spec.mxm_multiply_cycles, period, halves)
    finish(p, emitted)
    earliest = max(
        earliest_read - first_row,
        earliest_weights - first_weights,
        earliest_result - emitted.vxm_cycle,
    )
    start = schedule.place(p, earliest, "product")
    return Placed(
        first_read=start + first_row,
        last_read=start + first_row + steps * period,
        last_result=start + emitted.vxm_cycle + (emitted.count - 1) * emitted.spacing,
        ready=start + p.ready,
        next_read=start + first_row + steps * period,
    )


def _read_rows(
    p: Pass,
    operand: RowOperand,
    code: int,
    meet: int,
    queue: int,
    period: int,
    spacing: int,
    tag: int,
) -> None:
    """Read every K step's rows: one block for all steps where the words allow it."""
    n, dc, da = operand.rows.repeats(spacing)
    offsets = operand.offsets
    stride = offsets[1] - offsets[0] if len(offsets) > 1 else 0
    even = all(b - a == stride for a, b in pairwise(offsets))
    flat = operand.rows.ny == 1 or operand.rows.dy == operand.rows.nx * operand.rows.dx
    if even and flat and not operand.places:
        every = (operand.rows.count, len(offsets))
        p.load(
            operand.place.at(offsets[0]),
            code,
            meet,
            queue,
            n=every,
            dc=(spacing, period),
            da=(operand.rows.dx, stride),
            tag=tag,
        )
        return
    places = operand.places or (operand.place,) * len(offsets)
    for step, (place, offset) in enumerate(zip(places, offsets, strict=True)):
        p.load(place.at(offset), code, meet + step * period, queue, n=n, dc=dc, da=da, tag=tag)


def _accumulate(
    p: Pass, operand: RowOperand, plane: int, start: int, period: int, spacing: int
) -> Emitted:
    """ACC of all steps: SET the first product of every row, ADD the others, emit the last."""
    side, queue = plane // 2, isa.MXM_QUEUE + 2 * plane + 1
    count, steps = operand.rows.count, len(operand.offsets)
    out = Stream(result_code(plane), 4, p.schedule.tag())
    if operand.joined:
        at, count = _join(p, queue, start, operand, period, spacing, out), 1
    else:
        at = accumulate(p, queue, start, count, spacing, steps, period, out)
    edge, border = drive_sums(p, out, at, count, spacing)
    return Emitted(out, side, at, at + abs(edge - border), count, spacing)


def _join(
    p: Pass, queue: int, start: int, operand: RowOperand, period: int, spacing: int, out: Stream
) -> int:
    """As ``accumulate``, all rows of all steps into one sum."""
    count, steps = operand.rows.count, len(operand.offsets)
    final = start + (steps - 1) * period
    emits: dict[str, Any] = {"out": out.code, "wo": out.width, "tag": out.tag}
    rest = count * steps > 1
    mode = AccMode.SET if rest else AccMode.SET_EMIT
    p.emit(Op.ACC, queue, start, mode=int(mode), **({} if rest else emits))
    p.emit(
        Op.ACC,
        queue,
        start + spacing,
        n=count - 1 - (steps == 1),
        dc=spacing,
        mode=int(AccMode.ADD),
    )
    p.emit(
        Op.ACC,
        queue,
        start + period,
        n=(count, steps - 2),
        dc=(spacing, period),
        mode=int(AccMode.ADD),
    )
    if steps > 1:
        p.emit(Op.ACC, queue, final, n=count - 1, dc=spacing, mode=int(AccMode.ADD))
    final += spacing * (count - 1)
    if rest:
        p.emit(Op.ACC, queue, final, mode=int(AccMode.ADD_EMIT), **emits)
    return final + p.spec.mxm_accumulate_cycles


def store_results(target: Place, rows: Rows) -> Finish:
    """A finish that writes the 4-byte results to ``target`` (four slices of the hemisphere)."""

    def finish(p: Pass, emitted: Emitted) -> None:
        n, dc, da = rows.repeats(emitted.spacing)
        edge = isa.EAST_EDGE if emitted.side == EAST else isa.WEST_EDGE
        p.store(target, emitted.stream, emitted.edge_cycle, edge, n=n, dc=dc, da=da)

    return finish


def cut(total: int, most: int) -> list[int]:
    """``total`` cut into the fewest parts of at most ``most``, sizes as equal as can be."""
    parts = -(-total // most)
    return [total // parts + (i < total % parts) for i in range(parts)]


def tiles_of(values: int) -> int:
    """Words of 320 lanes that ``values`` values take."""
    return -(-values // isa.LANES)
