"""The linker: a block program becomes a flat table that runs in order without any look-up.

``link`` resolves every operand of every instruction to its producer in true time order, rejects
what breaks a rule that resolution sees, cuts blocks until start order is a correct order, and
numbers the rows: row ``slice * words_per_slice + word`` is an SRAM word (never copied), those after
the last slice are scratch.  Weight loads, installs and activations leave no trace in the table but
row numbers; an ACC points at its weight rows.  It does not know numbers, chips or links' other
ends; ``chip.checker`` proves more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.faults import CODES, ProgramFault
from chip.isa import (
    EAST_STREAMS,
    LANES,
    NONE,
    QUEUES,
    STREAMS,
    AccMode,
    Op,
    drive_position,
    queue_name,
    sample_position,
    stream_name,
)
from chip.linking import elements
from chip.linking.arguments import (
    OPERAND_BYTES,
    PIECE_BLOCK,
    PIECE_COLUMNS,
    PIECE_COUNTER,
    PIECE_ELEMENTS,
    PIECE_FIRST,
    PIECE_IMM,
    PIECE_OP,
    PIECE_QUEUE,
    PIECE_STRIDE,
)
from chip.linking.elements import Elements, Resolved, UnitRules
from chip.linking.layout import lay_out
from chip.linking.order import collect_edges, cut_blocks, find_uses
from chip.linking.planes import MXM_RULES
from chip.linking.resolve import resolve
from chip.linking.shortcuts import see_through_moves, straight_from_links
from chip.linking.static import check_blocks
from chip.program import (
    ARITY,
    BLOCK_DTYPE,
    BY_MODE,
    BY_ROTATE,
    BY_W0,
    BY_W1,
    BY_WO,
    EMITTED,
    MAX_LINKED,
    OUT_STREAMS,
    S0_STREAMS,
    S1_STREAMS,
    Program,
    counter_of_blocks,
    gang_skew,
)
from chip.spec import ChipSpec

Array = NDArray[Any]


@dataclass(frozen=True)
class LinkedProgram:
    """An executable program; immutable, shared by all chips that run it.

    table int32 [pieces, PIECE_COLUMNS] and starts int64 [pieces] in execution order; arguments
    int32, of each executed element, as of ``chip.linking.arguments``; weights int32, SRAM or
    scratch rows of installed columns; maps int16 [n, 320]; byte_rows and word_rows: scratch rows
    (320 B and 320 x 32 bit) needed; cycles: the launch's length, at least the cycle of the last
    effect; counters: of saturations, as of ``chip.program.counter_of_blocks``.
    """

    table: NDArray[np.int32]
    starts: NDArray[np.int64]
    arguments: NDArray[np.int32]
    weights: NDArray[np.int32]
    maps: NDArray[np.int16]
    byte_rows: int
    word_rows: int
    cycles: int
    elements: int
    spec: ChipSpec
    counters: int = 0


def _positions(position: Any) -> NDArray[np.int64]:
    rows = [[position(q, s) for s in range(STREAMS)] for q in range(QUEUES)]
    return np.array(rows, np.int64)


_SAMPLE = _positions(sample_position)
_DRIVE = _positions(drive_position)


def _matrix(program: Program, spec: ChipSpec) -> Array:
    """The block table as int64 [blocks, COLUMNS] with stream counts and latencies."""
    r = elements
    m = np.zeros((len(program.blocks), r.COLUMNS), np.int64)
    for i, name in enumerate(BLOCK_DTYPE.names or ()):
        m[:, i] = program.blocks[name]
    op = m[:, r.OP]
    vxm = ARITY[op] > 0
    m[ARITY[op] == 1, r.S1] = NONE
    s0, s1, out = S0_STREAMS[op], S1_STREAMS[op], OUT_STREAMS[op]
    s0[vxm & ((m[:, r.S0] < 0) | (m[:, r.S0] >= STREAMS))] = 0
    s1[vxm & ((m[:, r.S1] < 0) | (m[:, r.S1] >= STREAMS))] = 0
    emits = np.where(m[:, r.MODE] >= AccMode.SET_EMIT, EMITTED, 0)
    m[:, r.N_IN0] = np.where(s0 == BY_W0, m[:, r.W0], s0)
    m[:, r.N_IN1] = np.where(s1 == BY_W1, m[:, r.W1], s1)
    for marker, count in (
        (BY_W0, m[:, r.W0]),
        (BY_WO, m[:, r.WO]),
        (BY_ROTATE, m[:, r.IMM] ** 2),
        (BY_MODE, emits),
    ):
        out = np.where(out == marker, count, out)
    m[:, r.N_OUT] = out
    for code, cycles in (
        (Op.READ, spec.read_cycles),
        (Op.GATHER, spec.gather_cycles),
        (Op.ACC, spec.mxm_accumulate_cycles),
        (Op.DISTRIBUTE, spec.distribute_cycles),
        (Op.TRANSPOSE, spec.transpose_cycles),
        (Op.PERMUTE, spec.permute_cycles),
        (Op.SHIFT, spec.shift_cycles),
        (Op.ROTATE, spec.rotate_cycles),
        (Op.RECEIVE, spec.receive_cycles),
    ):
        m[op == code, r.LATENCY] = cycles
    m[vxm, r.LATENCY] = spec.alu_entry_cycles + spec.alu_cycles
    return m


def _last_effect(c: Elements, spec: ChipSpec) -> int:
    """Cycle at which the last effect of any element has taken place."""
    m = c.blocks
    op = m[:, elements.OP]
    after = np.where(m[:, elements.N_OUT] > 0, m[:, elements.LATENCY], 0)
    after[(ARITY[op] > 0) & (m[:, elements.WO] == 0)] = spec.alu_cycles
    for code, delay in (
        (Op.WRITE, spec.write_cycles),
        (Op.SCATTER, spec.write_cycles),
        (Op.IW, spec.mxm_install_cycles),
        (Op.ABC, spec.mxm_multiply_cycles),
        (Op.NOTIFY, spec.notify_cycles),
    ):
        after[op == code] = delay
    return int((c.cycle + after[c.block]).max()) if len(c.cycle) else 0


def _raise(fault: Array, c: Elements, slice_words: int) -> None:
    """Raise the ProgramFault that resolving found."""
    number, element, detail = (int(x) for x in fault)
    code = CODES[number]
    if element < 0:
        queue = -1 - element
        raise ProgramFault(code, detail, queue, "SYNC is never released: add a NOTIFY")
    cycle, queue = int(c.cycle[element]), int(c.queue[element])
    block = int(c.block[element])
    name = Op(int(c.blocks[block, elements.OP])).name
    what = {
        "queue": "two instructions in one cycle on the queue",
        "sync": "issued while the queue is parked",
        "bank": "reads and writes one bank in one cycle",
        "in-flight": f"word {detail % slice_words} is still being written",
        "driver": f"{stream_name(detail) if detail >= 0 else ''} already driven here",
        "missing": f"no producer of {stream_name(detail)}" if detail >= 0 else "ABC or ACC alone",
        "want": f"{stream_name(detail)} carries another value than the wanted one",
        "mxm": MXM_RULES[detail] if 0 <= detail < len(MXM_RULES) else "",
        "link": "two SENDs closer than the link's spacing",
    }.get(code, "")
    raise ProgramFault(code, cycle, queue, f"{name} of block {block}: {what}")


def link(program: Program, spec: ChipSpec, *, max_span_cycles: int | None = None) -> LinkedProgram:
    """Resolve, order and lay out ``program``; raises ProgramFault where it breaks a rule.

    max_span_cycles: no piece of a block spans as many cycles; half the Send-to-Receive time
    unless given, so that chips waiting for each other's vectors always make progress.
    """
    check_blocks(program, spec)
    span = spec.send_to_receive_cycles // 2 if max_span_cycles is None else max_span_cycles
    m = _matrix(program, spec)
    gangs = np.array([q for gang in program.gangs for q in gang] or [0], np.int64)
    gang_start = np.cumsum([0] + [len(g) for g in program.gangs]).astype(np.int64)
    skews = np.zeros((len(gangs), 2), np.int64)
    for i, gang in enumerate(program.gangs):
        for east in (0, 1):
            stream = 0 if east else EAST_STREAMS
            skews[gang_start[i] : gang_start[i + 1], east] = gang_skew(gang, stream)
        if len(set(gang)) < len(gang):
            m[m[:, elements.GANG] == i, elements.UNGANGED] = 1
    while True:
        linked = _attempt(program, spec, max(1, span), m, gangs, gang_start, skews)
        if linked is not None:
            return linked


def _expand(m: Array, gangs: Array, gang_start: Array, skews: Array) -> Elements:
    """The elements of the block matrix; raises ProgramFault if there are too many."""
    r = elements
    sizes = np.where(m[:, r.GANG] >= 0, np.diff(gang_start, append=0)[m[:, r.GANG]], 1)
    total = int((m[:, r.N1] * m[:, r.N2] * sizes).sum())
    if total > MAX_LINKED:
        raise ProgramFault("bounds", 0, -1, f"{total} instructions: at most {MAX_LINKED}")
    block, cycle, queue, a, stream, units = r.expand(m, gangs, gang_start, skews, total)
    if total and cycle.min() < 0:
        e = int(cycle.argmin())
        raise ProgramFault("bounds", int(cycle[e]), int(queue[e]), "negative cycle")
    slots = np.where(ARITY[m[:, r.OP]] > 0, 2 * OPERAND_BYTES, m[:, r.N_IN0] + m[:, r.N_IN1])
    slot, out = np.zeros((2, total + 1), np.int64)
    np.cumsum(slots[block], out=slot[1:])
    np.cumsum(m[block, r.N_OUT], out=out[1:])
    return Elements(m, block, cycle, queue, a, stream, units, slot, out)


def _rules(spec: ChipSpec) -> UnitRules:
    return UnitRules(
        write_cycles=spec.write_cycles,
        alu_cycles=spec.alu_cycles,
        install_cycles=spec.mxm_install_cycles,
        reload_gap_cycles=spec.mxm_reload_gap_cycles,
        multiply_cycles=spec.mxm_multiply_cycles,
        notify_cycles=spec.notify_cycles,
        send_spacing_cycles=spec.send_spacing_cycles,
        accumulator_rows=spec.mxm_accumulator_rows,
        words_per_bank=spec.words_per_bank,
    )


def _cut(c: Elements, resolved: Resolved, executed: Array, edges: Array, span: int) -> Any:
    """Pieces in execution order, int64 [n, 4], and the units to take apart, bool [units]."""
    m, units = c.blocks, c.units
    first_cycles = c.cycle[units[:, 0]] if len(units) else np.zeros(0, np.int64)
    unit_order = np.argsort(first_cycles, kind="stable")
    batched = m[units[:, 3], elements.OP] == Op.ACC
    pieces, apart = cut_blocks(c, executed, edges, unit_order, batched, len(resolved.edges), span)
    queue = m[units[pieces[:, 1], 3], elements.QUEUE]
    return pieces[np.lexsort((pieces[:, 2], pieces[:, 1], queue, pieces[:, 0]))], apart


def _attempt(
    program: Program,
    spec: ChipSpec,
    span: int,
    m: Array,
    gangs: Array,
    gang_start: Array,
    skews: Array,
) -> LinkedProgram | None:
    """One round; None when a gang had to be marked as taken apart in ``m``."""
    c = _expand(m, gangs, gang_start, skews)
    fault, resolved = resolve(c, _rules(spec), _SAMPLE, _DRIVE)
    if fault[0] >= 0:
        _raise(fault, c, spec.words_per_slice)
    idle = see_through_moves(c, resolved.sources)
    executed = find_uses(c, resolved, idle)
    edges = collect_edges(c, resolved, executed)
    pieces, apart = _cut(c, resolved, executed, edges, span)
    if apart.any():
        m[c.units[apart, 3], elements.UNGANGED] = 1
        return None
    write_of = straight_from_links(c, resolved, executed, edges, pieces)
    executed[write_of[write_of >= 0]] = False
    rows, arguments, weights, byte_rows, word_rows = lay_out(
        c, resolved, executed, pieces, write_of, spec.words_per_slice
    )
    kept = rows[:, 1] > 0
    rows, pieces = rows[kept], pieces[kept]
    block = c.units[pieces[:, 1], 3]
    table = np.zeros((len(pieces), PIECE_COLUMNS), np.int32)
    table[:, PIECE_OP] = m[block, elements.OP]
    table[:, PIECE_QUEUE] = c.queue[c.units[pieces[:, 1], 0]]
    table[:, PIECE_ELEMENTS] = rows[:, 1]
    table[:, PIECE_FIRST] = rows[:, 0]
    table[:, PIECE_STRIDE] = rows[:, 2]
    table[:, PIECE_IMM] = m[block, elements.IMM]
    table[:, PIECE_BLOCK] = block
    counters = counter_of_blocks(program.blocks)
    table[:, PIECE_COUNTER] = counters[block]
    maps = np.array(program.maps, np.int16).reshape(-1, LANES)
    return LinkedProgram(
        table,
        pieces[:, 0].copy(),
        arguments,
        weights,
        maps,
        int(byte_rows),
        int(word_rows),
        max(program.cycles, _last_effect(c, spec)),
        len(c.cycle),
        spec,
        int(counters.max(initial=-1)) + 1,
    )


def describe(linked: LinkedProgram, piece: int) -> str:
    """A piece in words, for messages: opcode, queue, start cycle and block number."""
    row = linked.table[piece]
    name = Op(int(row[PIECE_OP])).name
    queue = queue_name(int(row[PIECE_QUEUE]))
    return f"{name} on {queue} at {linked.starts[piece]}, block {row[PIECE_BLOCK]}"
