"""What every functional unit of a chip does in which cycle, from the program alone.

Execution is static, so the blocks of a program say when each unit works; nothing is recorded while
a chip runs.  ``timeline`` gives every block its unit, its first cycle, its end and its number of
instructions; ``busy_cycles`` counts, per unit and interval, the cycles in which it worked.

A *unit* is a row of a picture: a MEM hemisphere (all its slices), an ALU, one queue of an MXM
plane, an SXM unit, or one direction of a C2C link.  A ganged block belongs to the hemisphere of
its first member.  An instruction keeps its unit busy for the cycle in which it is dispatched; a
Send keeps its link for as long as the vector is on the wire.  This module knows programs and time;
it knows neither files nor whether a program ever ran.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from chip.isa import (
    C2C_QUEUE,
    EAST_STREAMS,
    LINKS,
    MXM_QUEUE,
    QUEUES,
    SLICES_PER_HEMISPHERE,
    SXM_QUEUE,
    VXM_QUEUE,
    Op,
    queue_name,
)
from chip.program import Program, expand_columns, gang_skew
from chip.spec import ChipSpec

I64 = NDArray[np.int64]

MEM_WEST, MEM_EAST = 0, 1
#: Unit of queue q from the first ALU on: q - VXM_QUEUE + _FIRST_ALU; Sends of link k are the last.
_FIRST_ALU = 2
RECEIVE_UNIT = _FIRST_ALU + C2C_QUEUE - VXM_QUEUE
SEND_UNIT = RECEIVE_UNIT + LINKS
UNITS = SEND_UNIT + LINKS

#: Families of units, in the order of their numbers: name, first unit, one past the last.
FAMILIES = (
    ("MEM west", MEM_WEST, MEM_WEST + 1),
    ("MEM east", MEM_EAST, MEM_EAST + 1),
    ("VXM", _FIRST_ALU, _FIRST_ALU + MXM_QUEUE - VXM_QUEUE),
    ("MXM", _FIRST_ALU + MXM_QUEUE - VXM_QUEUE, _FIRST_ALU + SXM_QUEUE - VXM_QUEUE),
    ("SXM", _FIRST_ALU + SXM_QUEUE - VXM_QUEUE, RECEIVE_UNIT),
    ("C2C receive", RECEIVE_UNIT, SEND_UNIT),
    ("C2C send", SEND_UNIT, UNITS),
)

_INSTRUCTIONS_AT_ONCE = 1 << 21


def unit_name(unit: int) -> str:
    """Readable name of a unit, for instance ``MEM west``, ``alu[5]``, ``link[3] send``."""
    if unit < _FIRST_ALU:
        return FAMILIES[unit][0]
    if unit < RECEIVE_UNIT:
        return queue_name(unit - _FIRST_ALU + VXM_QUEUE)
    link, way = (unit - RECEIVE_UNIT) % LINKS, "send" if unit >= SEND_UNIT else "receive"
    return f"link[{link}] {way}"


def _unit_of_queue() -> I64:
    queues = np.arange(QUEUES)
    units = np.where(queues < SLICES_PER_HEMISPHERE, MEM_WEST, MEM_EAST)
    return np.where(queues < VXM_QUEUE, units, queues - VXM_QUEUE + _FIRST_ALU).astype(np.int64)


@dataclass(frozen=True)
class Timeline:
    """int64 [blocks] each: unit, first cycle, the cycle after the last, and instructions."""

    unit: I64
    first: I64
    end: I64
    instructions: I64


def wire_cycles(spec: ChipSpec) -> int:
    """Whole cycles in which a vector is on its link, rounded up."""
    return -(-spec.cycles_per_vector.numerator // spec.cycles_per_vector.denominator)


def _occupied(op: I64, spec: ChipSpec) -> I64:
    """Cycles for which one instruction keeps its unit."""
    return np.where(op == Op.SEND, wire_cycles(spec), 1).astype(np.int64)


@lru_cache(maxsize=4096)
def _late(queues: tuple[int, ...], dcg: int, westward: bool) -> tuple[int, int]:
    """How much later than member 0 the first and the last member of a gang work."""
    late = np.arange(len(queues)) * dcg + gang_skew(queues, EAST_STREAMS * westward)
    return int(late.min()), int(late.max())


def _gang_bounds(program: Program) -> tuple[I64, I64]:
    """Per block, how much earlier and later than member 0 the members of its gang work."""
    blocks = program.blocks
    bounds = np.zeros((2, len(blocks)), np.int64)
    consumer = np.isin(blocks["op"], (Op.WRITE, Op.SCATTER))
    west = (np.where(consumer, blocks["s0"], blocks["out"]) >= EAST_STREAMS).astype(np.int64)
    ganged = np.flatnonzero(blocks["gang"] >= 0)
    delays, delay = np.unique(blocks["dcg"][ganged], return_inverse=True)
    kind = (blocks["gang"][ganged].astype(np.int64) * 2 + west[ganged]) * len(delays) + delay
    _, examples, which = np.unique(kind, return_index=True, return_inverse=True)
    of_kind = np.zeros((2, len(examples)), np.int64)
    for number, block in enumerate(ganged[examples].tolist()):
        queues = program.gangs[int(blocks["gang"][block])]
        of_kind[:, number] = _late(queues, int(blocks["dcg"][block]), bool(west[block]))
    bounds[:, ganged] = of_kind[:, which]
    return bounds[0], bounds[1]


def timeline(program: Program, spec: ChipSpec) -> Timeline:
    """When each block of ``program`` keeps its unit; the program is inside its limits."""
    blocks = program.blocks
    column = {name: blocks[name].astype(np.int64) for name in ("cycle", "queue", "op", "gang")}
    lead = np.zeros(len(blocks), np.int64)
    lag = np.zeros(len(blocks), np.int64)
    for n, dc in (("n1", "dc1"), ("n2", "dc2")):
        last = (blocks[n].astype(np.int64) - 1) * blocks[dc]
        lead += np.minimum(last, 0)
        lag += np.maximum(last, 0)
    earlier, later = _gang_bounds(program)
    lead += earlier
    lag += later
    heads = np.array([gang[0] if gang else 0 for gang in program.gangs] or [0], np.int64)
    queue = np.where(column["gang"] >= 0, heads[column["gang"]], column["queue"])
    unit = _unit_of_queue()[queue]
    unit[(queue >= C2C_QUEUE) & (column["op"] == Op.SEND)] += LINKS
    sizes = np.array([len(gang) for gang in program.gangs] or [1], np.int64)
    members = np.where(column["gang"] >= 0, sizes[column["gang"]], 1)
    return Timeline(
        unit,
        column["cycle"] + lead,
        column["cycle"] + lag + _occupied(column["op"], spec),
        blocks["n1"].astype(np.int64) * blocks["n2"] * members,
    )


def busy_cycles(program: Program, spec: ChipSpec, edges: I64) -> NDArray[np.float64]:
    """Instruction-cycles of every unit in the intervals between ``edges``, [UNITS, intervals].

    A MEM hemisphere counts all its slices (at most one instruction each per cycle and port), so it
    may exceed the interval's length; a link counts the cycles in which it carries a vector.
    edges: ascending int64 cycles, one more than intervals.
    """
    lines = timeline(program, spec)
    busy = np.zeros((UNITS, len(edges) - 1))
    ends = np.cumsum(lines.instructions)
    at = 0
    while at < len(ends):
        done = int(ends[at - 1]) if at else 0
        stop = max(int(np.searchsorted(ends, done + _INSTRUCTIONS_AT_ONCE, "right")), at + 1)
        part = expand_columns(Program(program.blocks[at:stop], program.gangs))
        unit, sends = lines.unit[at:stop][part.block], part.op == Op.SEND
        _count(busy, unit[~sends], part.cycle[~sends], edges)
        _spread(busy, unit[sends], part.cycle[sends], float(spec.cycles_per_vector), edges)
        at = stop
    return busy


def _count(busy: NDArray[np.float64], unit: I64, cycle: I64, edges: I64) -> None:
    at = np.searchsorted(edges, cycle, "right") - 1
    inside = (at >= 0) & (at < busy.shape[1])
    np.add.at(busy, (unit[inside], at[inside]), 1.0)


def _spread(busy: NDArray[np.float64], unit: I64, cycle: I64, span: float, edges: I64) -> None:
    """Add ``span`` cycles from ``cycle`` on, shared among the intervals they fall into."""
    for i in range(busy.shape[1]):
        share = np.minimum(cycle + span, edges[i + 1]) - np.maximum(cycle, edges[i])
        np.add.at(busy[:, i], unit, np.maximum(share, 0.0))
