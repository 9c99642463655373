"""Rules that need only a block's own columns, checked over all blocks at once.

They make every number that resolution uses as an index safe.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.faults import ProgramFault
from chip.isa import (
    ALU0,
    ALUS,
    EAST_STREAMS,
    IMM,
    LANES,
    QUEUES,
    STREAMS,
    SXM_QUEUE,
    VXM_QUEUE,
    AccMode,
    Op,
)
from chip.program import (
    ABC_WIDTHS,
    ALU_REACH,
    ANY_UNIT,
    ARITY,
    BY_MODE,
    BY_ROTATE,
    BY_W0,
    BY_W1,
    BY_WO,
    DISTRIBUTE_WIDTHS,
    EMITTED,
    GROUPS_RANGES,
    MAX_LINKED,
    MAX_WINDOW_WORDS,
    NO_UNIT,
    OPCODES,
    OUT_ALIGNED,
    OUT_STREAMS,
    ROTATE_SIZES,
    S0_ALIGNED,
    S0_STREAMS,
    S1_ALIGNED,
    S1_STREAMS,
    UNIT_OF_OP,
    UNIT_OF_QUEUE,
    VXM_WIDTHS,
    Program,
)
from chip.spec import ChipSpec

Array = NDArray[Any]
_MEM = (Op.READ, Op.WRITE, Op.GATHER, Op.SCATTER)
#: Cycles that leave room in int32 for everything linking adds to them.
_MOST_CYCLES, _MOST_GANG_CYCLES = 2**31 - 2**24, 2**16


class _Rules:
    """Raises for the first block (by number) at which a condition holds."""

    def __init__(self, blocks: Any) -> None:
        self.blocks = blocks

    def forbid(self, code: str, where: Array, message: str) -> None:
        hits = np.flatnonzero(where)
        if len(hits):
            block = self.blocks[hits[0]]
            name = Op(int(block["op"])).name if _known(block["op"]) else f"op {block['op']}"
            text = f"{name} of block {hits[0]}: {message}"
            raise ProgramFault(code, int(block["cycle"]), int(block["queue"]), text)


def _known(op: Any) -> bool:
    return 0 <= op < OPCODES and bool(UNIT_OF_OP[op] != NO_UNIT)


def _group_breaks(first: Array, width: Array) -> Array:
    """True where streams first..first+width-1 leave 0..63 or cross the 31/32 border."""
    last = first + width - 1
    outside = (first < 0) | (last >= STREAMS) | (first >= STREAMS) | (last < 0)
    return np.asarray(outside | ((first < EAST_STREAMS) != (last < EAST_STREAMS)))


def check_blocks(program: Program, spec: ChipSpec) -> None:
    """Raise ProgramFault for a block whose columns alone are illegal."""
    blocks = program.blocks
    if not len(blocks):
        return
    c: dict[str, Array] = {n: blocks[n].astype(np.int64) for n in blocks.dtype.names or ()}
    rules = _Rules(blocks)
    op, queue = c["op"], c["queue"]
    rules.forbid("queue", (op < 0) | (op >= OPCODES), "unknown opcode")
    unit = UNIT_OF_OP[op]
    rules.forbid("queue", unit == NO_UNIT, "unknown opcode")
    mem = np.isin(op, _MEM)
    gang = c["gang"]
    ganged = gang >= 0
    rules.forbid("bounds", (gang < -1) | (gang >= len(program.gangs)), "no such gang")
    rules.forbid("bounds", ganged & ~mem, "only MEM operations may be ganged")
    empty = np.array([len(g) == 0 or min(g) < 0 or max(g) >= VXM_QUEUE for g in program.gangs])
    if len(empty):
        rules.forbid("queue", ganged & empty[gang], "a gang needs MEM queues")
    rules.forbid("queue", ~ganged & ((queue < 0) | (queue >= QUEUES)), "no such queue")
    own = UNIT_OF_QUEUE[np.where(ganged, 0, queue)]  # a gang's queues are MEM's
    rules.forbid("queue", (unit != ANY_UNIT) & (unit != own), "the queue belongs to another unit")
    counts_bad = (c["n1"] < 1) | (c["n2"] < 1)
    rules.forbid("bounds", counts_bad, "n1 and n2 must be at least 1")
    sizes = np.array([len(g) for g in program.gangs] + [1], np.int64)[gang]
    total = int((c["n1"].astype(object) * c["n2"] * sizes).sum())
    if total > MAX_LINKED:
        raise ProgramFault("bounds", 0, -1, f"{total} instructions: at most {MAX_LINKED}")
    steps1, steps2 = c["n1"] - 1, c["n2"] - 1

    def extremes(base: str, d1: str, d2: str) -> tuple[Array, Array]:
        a, b = steps1 * c[d1], steps2 * c[d2]
        low = c[base] + np.minimum(a, 0) + np.minimum(b, 0)
        return low, c[base] + np.maximum(a, 0) + np.maximum(b, 0)

    low, high = extremes("cycle", "dc1", "dc2")
    far = (low < 0) | (high >= _MOST_CYCLES) | (np.abs(c["dcg"]) > _MOST_GANG_CYCLES)
    rules.forbid("bounds", far, "cycle outside 0..2^31")
    low, high = extremes("a", "da1", "da2")
    last = spec.words_per_slice - 1
    ranges = {
        **dict.fromkeys(_MEM, (0, last)),
        **GROUPS_RANGES,
        Op.ACC: (0, spec.mxm_accumulator_rows - 1),
    }
    for code, (least, most) in ranges.items():
        bad = (op == code) & ((low < least) | (high > most))
        rules.forbid("bounds", bad, f"a runs from {least} to {most} at most")
    window = (op == Op.GATHER) | (op == Op.SCATTER)
    lo, hi = c["lo"], c["hi"]
    bad_window = (lo < 0) | (hi > last) | (lo > hi)
    bad_window |= lo // spec.words_per_bank != hi // spec.words_per_bank
    rules.forbid("bounds", window & bad_window, "the window must lie in one bank")
    covered = int(((c["n1"] * c["n2"] * sizes) * (hi - lo + 1))[window].astype(object).sum())
    if covered > MAX_WINDOW_WORDS:
        text = f"windows cover {covered} words: at most {MAX_WINDOW_WORDS}, narrow them"
        raise ProgramFault("bounds", 0, -1, text)
    _check_gangs(c, rules, sizes, mem)
    _check_codes(c, op, rules)
    _check_widths(c, op, rules)
    _check_streams(c, op, rules)
    _check_alus(c, op, rules)
    _check_sxm(program, c, op, rules)


def _check_gangs(c: dict[str, Array], rules: _Rules, sizes: Array, mem: Array) -> None:
    """The streams of all members of MEM operations."""
    consumer = (c["op"] == Op.WRITE) | (c["op"] == Op.SCATTER)
    stream = np.where(consumer, c["s0"], c["out"])
    shift = (sizes - 1) * c["dsg"]
    lowest, highest = stream + np.minimum(shift, 0), stream + np.maximum(shift, 0)
    bad = mem & _group_breaks(lowest, highest - lowest + 1)
    rules.forbid("bounds", bad, "streams outside 0..63 or across the 31/32 border")


def _check_codes(c: dict[str, Array], op: Array, rules: _Rules) -> None:
    """Operands of the VXM, and modes of ACC."""
    for name, arity in (("s0", 1), ("s1", 2)):
        wrong = (ARITY[op] >= arity) & ((c[name] < 0) | (c[name] > IMM))
        rules.forbid("bounds", wrong, f"{name} is no operand")
    modes = (c["mode"] < AccMode.SET) | (c["mode"] > AccMode.ADD_EMIT)
    rules.forbid("bounds", (op == Op.ACC) & modes, "no such mode")


def _check_widths(c: dict[str, Array], op: Array, rules: _Rules) -> None:
    """Widths that an instruction says itself."""
    for name, width, arity in (("s0", "w0", 1), ("s1", "w1", 2)):
        stream = (ARITY[op] >= arity) & (c[name] < ALU0)
        rules.forbid("align", stream & ~np.isin(c[width], VXM_WIDTHS), f"{width} not 1, 2 or 4")
    rules.forbid(
        "align", (ARITY[op] > 0) & ~np.isin(c["wo"], (0, *VXM_WIDTHS)), "wo not 0, 1, 2 or 4"
    )
    rules.forbid(
        "align", (op == Op.ABC) & ~np.isin(c["w0"], ABC_WIDTHS), "w0 must be 1 (int8) or 2 (fp16)"
    )
    rules.forbid(
        "sxm", (op == Op.DISTRIBUTE) & ~np.isin(c["w0"], DISTRIBUTE_WIDTHS), "w0 not 1, 2, 4 or 8"
    )
    rules.forbid("sxm", (op == Op.ROTATE) & ~np.isin(c["imm"], ROTATE_SIZES), "imm must be 3 or 4")


def _check_streams(c: dict[str, Array], op: Array, rules: _Rules) -> None:
    """Every group of streams exists, flows one way and is aligned."""
    s0, s1, out = S0_STREAMS[op], S1_STREAMS[op], OUT_STREAMS[op]
    s0 = np.where(s0 == BY_W0, c["w0"], s0)
    s0[(ARITY[op] > 0) & (c["s0"] >= ALU0)] = 0
    s1 = np.where(s1 == BY_W1, np.where(c["s1"] < ALU0, c["w1"], 0), s1)
    emits = np.where(c["mode"] >= AccMode.SET_EMIT, EMITTED, 0)
    for marker, count in (
        (BY_W0, c["w0"]),
        (BY_WO, c["wo"]),
        (BY_ROTATE, c["imm"] ** 2),
        (BY_MODE, emits),
    ):
        out = np.where(out == marker, count, out)
    for name, width, aligned in (
        ("s0", s0, S0_ALIGNED),
        ("s1", s1, S1_ALIGNED),
        ("out", out, OUT_ALIGNED),
    ):
        used = width > 0
        breaks = used & _group_breaks(c[name], width)
        if name == "out":
            rules.forbid("align", breaks & (op == Op.ROTATE), "n*n streams from out")
        rules.forbid("bounds", breaks, f"streams of {name}")
        skewed = used & aligned[op] & (c[name] % np.maximum(width, 1) != 0)
        rules.forbid("align", skewed, f"{name} is not aligned to its width")


def _check_alus(c: dict[str, Array], op: Array, rules: _Rules) -> None:
    alu = np.clip(c["queue"] - VXM_QUEUE, 0, ALUS - 1)
    streams = []
    for name, arity in (("s0", 1), ("s1", 2), ("out", 0)):
        used = (ARITY[op] >= max(arity, 1)) & (c[name] >= 0) & (c[name] < ALU0)
        if name == "out":
            used &= c["wo"] > 0
        group = c[name] % EAST_STREAMS // 4
        wrong = used & ~ALU_REACH[alu, group]
        rules.forbid("alu", wrong, f"{name} lies outside the SG4s that the ALU's row reaches")
        streams.append((used, group, c[name] // EAST_STREAMS))
    (used0, group0, side0), (used1, group1, side1), _ = streams
    twice = used0 & used1 & (group0 == group1) & (side0 != side1)
    rules.forbid("alu", twice, "s0 and s1 are the same SG4 number from both directions")


def _check_sxm(program: Program, c: dict[str, Array], op: Array, rules: _Rules) -> None:
    s0, out, w0, imm = c["s0"], c["out"], c["w0"], c["imm"]
    unit = (c["queue"] - SXM_QUEUE) % 8
    spread = op == Op.DISTRIBUTE
    crosses = (s0 % 8 + w0 > 8) | (out % 8 + w0 > 8)
    rules.forbid("sxm", spread & crosses, "a group crosses its SG8")
    stream = s0 % EAST_STREAMS
    rules.forbid("sxm", spread & (unit != stream // 8), "not the distributor of s0's SG8")
    turned = op == Op.TRANSPOSE
    rules.forbid("sxm", turned & (unit != 4 + stream // 16), "not the transposer of s0's SG16")
    permute = op == Op.PERMUTE
    rules.forbid("sxm", permute & ((imm < 0) | (imm >= len(program.maps))), "no such map")
    for number in np.unique(imm[permute]):
        lanes = np.sort(np.asarray(program.maps[int(number)]))
        if not np.array_equal(lanes, np.arange(LANES)):
            rules.forbid("sxm", permute & (imm == number), "the map is no permutation")
