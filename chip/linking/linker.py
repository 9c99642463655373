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
    QUEUES,
    STREAMS,
    VXM_ARITY,
    Op,
    drive_position,
    queue_name,
    sample_position,
    stream_name,
)
from chip.linking import elements
from chip.linking.layout import lay_out
from chip.linking.order import collect_edges, cut_blocks, find_uses
from chip.linking.resolve import resolve
from chip.linking.shortcuts import see_through_moves, straight_from_links
from chip.linking.static import MAX_ELEMENTS, check_blocks
from chip.program import BLOCK_DTYPE, Program, gang_skew
from chip.spec import ChipSpec

Array = NDArray[Any]

#: Columns of ``LinkedProgram.table``.
OP, QUEUE, ELEMENTS, FIRST, STRIDE, IMM, BLOCK = range(7)


@dataclass(frozen=True)
class LinkedProgram:
    """An executable program; immutable, shared by all chips that run it.

    table int32 [pieces, 7] and starts int64 [pieces] in execution order; arguments int32, rows
    of each executed element; weights int32, SRAM or scratch rows of installed columns; maps
    int16 [n, 320]; byte_rows and word_rows: scratch rows (320 B and 320 x 32 bit) needed; cycles:
    the launch's length, at least the cycle of the last effect.
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


def _positions(position: Any) -> NDArray[np.int64]:
    rows = [[position(q, s) for s in range(STREAMS)] for q in range(QUEUES)]
    return np.array(rows, np.int64)


_UNARY = [int(op) for op, arity in VXM_ARITY.items() if arity == 1]
_SAMPLE = _positions(sample_position)
_DRIVE = _positions(drive_position)


def _matrix(program: Program, spec: ChipSpec) -> Array:
    """The block table as int64 [blocks, COLUMNS] with stream counts and latencies."""
    r = elements
    m = np.zeros((len(program.blocks), r.COLUMNS), np.int64)
    for i, name in enumerate(BLOCK_DTYPE.names or ()):
        m[:, i] = program.blocks[name]
    op = m[:, r.OP]
    fixed = {  # op: (streams from s0, from s1, out, latency)
        Op.READ: (0, 0, 1, spec.read_cycles),
        Op.WRITE: (1, 0, 0, 0),
        Op.GATHER: (0, 2, 1, spec.gather_cycles),
        Op.SCATTER: (1, 2, 0, 0),
        Op.LW: (16, 0, 0, 0),
        Op.TRANSPOSE: (16, 0, 16, spec.transpose_cycles),
        Op.PERMUTE: (1, 0, 1, spec.permute_cycles),
        Op.SHIFT: (1, 0, 1, spec.shift_cycles),
        Op.SEND: (1, 0, 0, 0),
        Op.RECEIVE: (0, 0, 1, spec.receive_cycles),
    }
    for code, columns in fixed.items():
        m[op == code, r.N_IN0 : r.LATENCY + 1] = columns
    w0 = m[:, r.W0]
    vxm = (op >= 64) & (op < 128)
    m[np.isin(op, _UNARY), r.S1] = -1
    m[:, r.N_IN0] = np.where(vxm & (m[:, r.S0] >= 0) & (m[:, r.S0] < 64), w0, m[:, r.N_IN0])
    has1 = vxm & (m[:, r.S1] >= 0) & (m[:, r.S1] < 64)
    m[:, r.N_IN1] = np.where(has1, m[:, r.W1], m[:, r.N_IN1])
    m[vxm, r.N_OUT] = m[vxm, r.WO]
    m[vxm, r.LATENCY] = spec.alu_entry_cycles + spec.alu_cycles
    abc = op == Op.ABC
    m[abc, r.N_IN0] = w0[abc]
    acc = op == Op.ACC
    m[acc, r.N_OUT] = np.where(m[acc, r.MODE] >= 2, 4, 0)
    m[acc, r.LATENCY] = spec.mxm_accumulate_cycles
    spread = op == Op.DISTRIBUTE
    m[spread, r.N_IN0] = w0[spread]
    m[spread, r.N_IN1] = 1
    m[spread, r.N_OUT] = w0[spread]
    m[spread, r.LATENCY] = spec.distribute_cycles
    rotate = op == Op.ROTATE
    m[rotate, r.N_IN0] = 1
    m[rotate, r.N_OUT] = m[rotate, r.IMM] ** 2
    m[rotate, r.LATENCY] = spec.rotate_cycles
    return m


def _last_effect(m: Array, spec: ChipSpec, block_of: Array, cycle_of: Array) -> int:
    """Cycle at which the last effect of any element has taken place."""
    op = m[:, elements.OP]
    after = np.where(m[:, elements.N_OUT] > 0, m[:, elements.LATENCY], 0)
    after[(op >= 64) & (op < 128) & (m[:, elements.WO] == 0)] = spec.alu_cycles
    for code, delay in (
        (Op.WRITE, spec.write_cycles),
        (Op.SCATTER, spec.write_cycles),
        (Op.IW, spec.mxm_install_cycles),
        (Op.ABC, spec.mxm_multiply_cycles),
        (Op.NOTIFY, spec.notify_cycles),
    ):
        after[op == code] = delay
    return int((cycle_of + after[block_of]).max()) if len(cycle_of) else 0


_MXM_RULES = (
    "LW of column group 0 comes before the reload gap is over",
    "IW of a column group that was not loaded since the last IW",
    "fp16 ABC on an odd plane",
    "ABC on a plane nothing was installed on",
    "ABC before the install is in force",
    "ABC overlaps another one on the plane pair",
    "fp16 ABC on planes with different installed group counts",
    "ADD on an accumulator row not SET with this number type",
)


def _raise(
    fault: Array, m: Array, block_of: Array, cycle_of: Array, queue_of: Array, slice_words: int
) -> None:
    number, element, detail = (int(x) for x in fault)
    code = CODES[number]
    if element < 0:
        queue = -1 - element
        raise ProgramFault(code, detail, queue, "SYNC is never released: add a NOTIFY")
    cycle, queue = int(cycle_of[element]), int(queue_of[element])
    block = int(block_of[element])
    name = Op(int(m[block, elements.OP])).name
    what = {
        "queue": "two instructions in one cycle on the queue",
        "sync": "issued while the queue is parked",
        "bank": "reads and writes one bank in one cycle",
        "in-flight": f"word {detail % slice_words} is still being written",
        "driver": f"{stream_name(detail) if detail >= 0 else ''} already driven here",
        "missing": f"no producer of {stream_name(detail)}" if detail >= 0 else "ABC or ACC alone",
        "want": f"{stream_name(detail)} carries another value than the wanted one",
        "mxm": _MXM_RULES[detail] if 0 <= detail < len(_MXM_RULES) else "",
        "link": "two SENDs closer than the link's spacing",
    }.get(code, "")
    raise ProgramFault(code, cycle, queue, f"{name} of block {block}: {what}")


def link(
    program: Program, spec: ChipSpec, *, max_span_cycles: int | None = None
) -> LinkedProgram:
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
            skews[gang_start[i] : gang_start[i + 1], east] = gang_skew(gang, 0 if east else 32)
        if len(set(gang)) < len(gang):
            m[m[:, elements.GANG] == i, elements.UNGANGED] = 1
    while True:
        linked = _attempt(program, spec, max(1, span), m, gangs, gang_start, skews)
        if linked is not None:
            return linked


def _attempt(
    program: Program, spec: ChipSpec, span: int, m: Array, gangs: Array, gang_start: Array,
    skews: Array,
) -> LinkedProgram | None:  # fmt: skip
    """One round; None when a gang had to be marked as taken apart in ``m``."""
    r = elements
    sizes = np.where(m[:, r.GANG] >= 0, np.diff(gang_start, append=0)[m[:, r.GANG]], 1)
    total = int((m[:, r.N1] * m[:, r.N2] * sizes).sum())
    if total > MAX_ELEMENTS:
        raise ProgramFault("bounds", 0, -1, f"{total} instructions: at most {MAX_ELEMENTS}")
    block_of, cycle_of, queue_of, a_of, stream_of, units = r.expand(
        m, gangs, gang_start, skews, total
    )
    if total and cycle_of.min() < 0:
        e = int(cycle_of.argmin())
        raise ProgramFault("bounds", int(cycle_of[e]), int(queue_of[e]), "negative cycle")
    vxm = (m[:, r.OP] >= 64) & (m[:, r.OP] < 128)
    slots = np.where(vxm, 8, m[:, r.N_IN0] + m[:, r.N_IN1])
    slot_of = np.zeros(total + 1, np.int64)
    np.cumsum(slots[block_of], out=slot_of[1:])
    out_of = np.zeros(total + 1, np.int64)
    np.cumsum(m[block_of, r.N_OUT], out=out_of[1:])
    timing = np.array(
        [
            spec.write_cycles, spec.alu_cycles, spec.mxm_install_cycles,
            spec.mxm_reload_gap_cycles, spec.mxm_multiply_cycles, spec.notify_cycles,
            spec.send_spacing_cycles,
        ],
        np.int64,
    )  # fmt: skip
    (fault, sources, prev_write, next_write, known, abc_of, install_of, _, loads) = resolve(
        m, block_of, cycle_of, queue_of, a_of, stream_of, slot_of, int(slot_of[-1]), _SAMPLE,
        _DRIVE, timing, spec.mxm_accumulator_rows, spec.words_per_bank,
    )  # fmt: skip
    if fault[0] >= 0:
        _raise(fault, m, block_of, cycle_of, queue_of, spec.words_per_slice)
    idle = see_through_moves(m, block_of, slot_of, sources)
    executed = find_uses(
        m, block_of, cycle_of, slot_of, sources, next_write, abc_of, install_of, loads, idle
    )
    edges = collect_edges(
        m, block_of, slot_of, sources, executed, prev_write, next_write, abc_of, install_of,
        loads, known,
    )  # fmt: skip
    first_cycles = cycle_of[units[:, 0]] if total else np.zeros(0, np.int64)
    unit_order = np.argsort(first_cycles, kind="stable")
    batched = m[units[:, 3], r.OP] == Op.ACC
    pieces, _, apart = cut_blocks(
        units, cycle_of, executed, edges, unit_order, batched, len(known), span
    )
    if apart.any():
        m[units[apart, 3], r.UNGANGED] = 1
        return None
    block = units[pieces[:, 1], 3]
    order = np.lexsort((pieces[:, 2], pieces[:, 1], m[block, r.QUEUE], pieces[:, 0]))
    pieces = pieces[order]
    block = block[order]
    write_of = straight_from_links(
        m, block_of, slot_of, sources, executed, edges, units, pieces
    )
    executed[write_of[write_of >= 0]] = False
    rows, arguments, weights, byte_rows, word_rows = lay_out(
        m, block_of, cycle_of, queue_of, a_of, slot_of, out_of, sources, executed, abc_of,
        install_of, loads, units, pieces, write_of, spec.words_per_slice,
    )  # fmt: skip
    kept = rows[:, 1] > 0
    rows, pieces, block = rows[kept], pieces[kept], block[kept]
    table = np.zeros((len(pieces), 7), np.int32)
    table[:, OP] = m[block, r.OP]
    table[:, QUEUE] = queue_of[units[pieces[:, 1], 0]]
    table[:, ELEMENTS] = rows[:, 1]
    table[:, FIRST] = rows[:, 0]
    table[:, STRIDE] = rows[:, 2]
    table[:, IMM] = m[block, r.IMM]
    table[:, BLOCK] = block
    maps = np.array(program.maps, np.int16).reshape(-1, 320)
    return LinkedProgram(
        table, pieces[:, 0].copy(), arguments, weights, maps, int(byte_rows), int(word_rows),
        max(program.cycles, _last_effect(m, spec, block_of, cycle_of)), total, spec,
    )  # fmt: skip


def describe(linked: LinkedProgram, piece: int) -> str:
    """A piece in words, for messages: opcode, queue, start cycle and block number."""
    row = linked.table[piece]
    name = Op(int(row[OP])).name
    return f"{name} on {queue_name(int(row[QUEUE]))} at {linked.starts[piece]}, block {row[BLOCK]}"
