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
    C2C_QUEUE,
    IMM,
    LANES,
    MXM_QUEUE,
    QUEUES,
    SELF,
    SXM_QUEUE,
    VXM_ARITY,
    VXM_QUEUE,
    Op,
    alu_stream_groups,
)  # fmt: skip
from chip.program import Program
from chip.spec import ChipSpec

Array = NDArray[Any]
MAX_ELEMENTS = 1 << 24  # instructions of one program
MAX_WINDOW_WORDS = 1 << 27  # words in the windows of all its gathers and scatters
_MEM = (Op.READ, Op.WRITE, Op.GATHER, Op.SCATTER)
_KNOWN = np.zeros(256, bool)
_KNOWN[[int(op) for op in Op]] = True
_ARITY = np.zeros(256, np.int64)
for _op, _count in VXM_ARITY.items():
    _ARITY[_op] = _count
_REACH = np.array([[g in alu_stream_groups(k) for g in range(8)] for k in range(ALUS)], bool)


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
    return 0 <= op < 256 and bool(_KNOWN[op])


def _group_breaks(first: Array, width: Array) -> Array:
    """True where streams first..first+width-1 leave 0..63 or cross the 31/32 border."""
    last = first + width - 1
    outside = (first < 0) | (last > 63) | (first > 63) | (last < 0)
    return np.asarray(outside | ((first < 32) != (last < 32)))


def check_blocks(program: Program, spec: ChipSpec) -> None:
    """Raise ProgramFault for a block whose columns alone are illegal."""
    blocks = program.blocks
    if not len(blocks):
        return
    c: dict[str, Array] = {n: blocks[n].astype(np.int64) for n in blocks.dtype.names or ()}
    rules = _Rules(blocks)
    op, queue = c["op"], c["queue"]
    rules.forbid("queue", (op < 0) | (op > 255), "unknown opcode")
    rules.forbid("queue", ~_KNOWN[op], "unknown opcode")
    mem = np.isin(op, _MEM)
    gang = c["gang"]
    ganged = gang >= 0
    rules.forbid("bounds", (gang < -1) | (gang >= len(program.gangs)), "no such gang")
    rules.forbid("bounds", ganged & ~mem, "only MEM operations may be ganged")
    empty = np.array([len(g) == 0 or min(g) < 0 or max(g) >= VXM_QUEUE for g in program.gangs])
    if len(empty):
        rules.forbid("queue", ganged & empty[gang], "a gang needs MEM queues")
    rules.forbid("queue", ~ganged & ((queue < 0) | (queue >= QUEUES)), "no such queue")
    vxm = (op >= 64) & (op < 128)
    odd = queue % 2 == 1
    link = queue - C2C_QUEUE
    unit_ok = np.select(
        [op < 32, mem, vxm, op < 130, op < 160, op < 192],
        [
            np.ones(len(op), bool), ganged | (queue < VXM_QUEUE),
            (queue >= VXM_QUEUE) & (queue < MXM_QUEUE),
            (queue >= MXM_QUEUE) & (queue < SXM_QUEUE) & ~odd,
            (queue >= MXM_QUEUE) & (queue < SXM_QUEUE) & odd,
            (queue >= SXM_QUEUE) & (queue < C2C_QUEUE),
        ],
        (link >= 0) & (link < 16),
    )  # fmt: skip
    rules.forbid("queue", ~unit_ok, "the queue belongs to another unit")
    counts_bad = (c["n1"] < 1) | (c["n2"] < 1)
    rules.forbid("bounds", counts_bad, "n1 and n2 must be at least 1")
    sizes = np.array([len(g) for g in program.gangs] + [1], np.int64)[gang]
    total = int((c["n1"].astype(object) * c["n2"] * sizes).sum())
    if total > MAX_ELEMENTS:
        raise ProgramFault("bounds", 0, -1, f"{total} instructions: at most {MAX_ELEMENTS}")
    steps1, steps2 = c["n1"] - 1, c["n2"] - 1

    def extremes(base: str, d1: str, d2: str) -> tuple[Array, Array]:
        a, b = steps1 * c[d1], steps2 * c[d2]
        low = c[base] + np.minimum(a, 0) + np.minimum(b, 0)
        return low, c[base] + np.maximum(a, 0) + np.maximum(b, 0)

    low, high = extremes("cycle", "dc1", "dc2")
    far = (low < 0) | (high >= 2**31 - 2**24) | (np.abs(c["dcg"]) > 2**16)
    rules.forbid("bounds", far, "cycle outside 0..2^31")
    low, high = extremes("a", "da1", "da2")
    last = spec.words_per_slice - 1
    ranges = {**dict.fromkeys(_MEM, last), Op.LW: 19, Op.IW: 20,
              Op.ACC: spec.mxm_accumulator_rows - 1}  # fmt: skip
    for code, top in ranges.items():
        bad = (op == code) & ((low < (1 if code == Op.IW else 0)) | (high > top))
        rules.forbid("bounds", bad, f"a runs from {'1' if code == Op.IW else '0'} to {top} at most")
    window = (op == Op.GATHER) | (op == Op.SCATTER)
    lo, hi = c["lo"], c["hi"]
    bad_window = (lo < 0) | (hi > last) | (lo > hi)
    bad_window |= lo // spec.words_per_bank != hi // spec.words_per_bank
    rules.forbid("bounds", window & bad_window, "the window must lie in one bank")
    covered = int(((c["n1"] * c["n2"] * sizes) * (hi - lo + 1))[window].astype(object).sum())
    if covered > MAX_WINDOW_WORDS:
        text = f"windows cover {covered} words: at most {MAX_WINDOW_WORDS}, narrow them"
        raise ProgramFault("bounds", 0, -1, text)
    _check_streams(c, op, rules, sizes, mem, vxm)
    _check_alus(c, op, rules)
    _check_sxm(program, c, op, rules)


def _check_streams(
    c: dict[str, Array], op: Array, rules: _Rules, sizes: Array, mem: Array, vxm: Array
) -> None:
    s0, s1, out = c["s0"], c["s1"], c["out"]
    consumer = (op == Op.WRITE) | (op == Op.SCATTER)
    stream = np.where(consumer, s0, out)
    shift = (sizes - 1) * c["dsg"]
    lowest, highest = stream + np.minimum(shift, 0), stream + np.maximum(shift, 0)
    bad = mem & _group_breaks(lowest, highest - lowest + 1)
    rules.forbid("bounds", bad, "streams outside 0..63 or across the 31/32 border")
    pair = (op == Op.GATHER) | (op == Op.SCATTER)
    rules.forbid("bounds", pair & _group_breaks(s1, np.full_like(s1, 2)), "map streams")
    rules.forbid("align", pair & (s1 % 2 != 0), "map streams are not an aligned SG2")
    for name, width_name, arity in (("s0", "w0", 1), ("s1", "w1", 2)):
        code, width = c[name], c[width_name]
        needed = vxm & (_ARITY[op] >= arity)
        wrong = (code < 0) | (code > IMM) | ((code >= 64 + 16) & (code != SELF) & (code != IMM))
        rules.forbid("bounds", needed & wrong, f"{name} is no operand")
        streams = vxm & (code >= 0) & (code < ALU0)
        rules.forbid("align", streams & ~np.isin(width, (1, 2, 4)), f"{width_name} not 1, 2 or 4")
        rules.forbid("bounds", streams & _group_breaks(code, width), f"streams of {name}")
        skewed = streams & (code % np.maximum(width, 1) != 0)
        rules.forbid("align", skewed, f"{name} is not aligned to its width")
    wo = c["wo"]
    rules.forbid("align", vxm & ~np.isin(wo, (0, 1, 2, 4)), "wo not 0, 1, 2 or 4")
    drives = vxm & (wo > 0)
    rules.forbid("bounds", drives & _group_breaks(out, wo), "streams of out")
    rules.forbid("align", drives & (out % np.maximum(wo, 1) != 0), "out is not aligned")
    sixteen = np.full_like(s0, 16)
    wide = (op == Op.LW) | (op == Op.TRANSPOSE)
    rules.forbid("bounds", wide & _group_breaks(s0, sixteen), "streams of s0")
    rules.forbid("align", wide & (s0 % 16 != 0), "s0 is not aligned to 16")
    turned = op == Op.TRANSPOSE
    rules.forbid("bounds", turned & _group_breaks(out, sixteen), "streams of out")
    rules.forbid("align", turned & (out % 16 != 0), "out is not aligned to 16")
    abc = op == Op.ABC
    rules.forbid("align", abc & ~np.isin(c["w0"], (1, 2)), "w0 must be 1 (int8) or 2 (fp16)")
    rules.forbid("bounds", abc & _group_breaks(s0, c["w0"]), "streams of s0")
    rules.forbid("align", abc & (s0 % np.maximum(c["w0"], 1) != 0), "s0 is not aligned")
    acc = op == Op.ACC
    rules.forbid("bounds", acc & ((c["mode"] < 0) | (c["mode"] > 3)), "no such mode")
    emits = acc & (c["mode"] >= 2)
    rules.forbid("bounds", emits & _group_breaks(out, np.full_like(out, 4)), "streams of out")
    rules.forbid("align", emits & (out % 4 != 0), "out is not aligned to 4")
    one = np.ones_like(s0)
    takes = np.isin(op, (Op.SEND, Op.PERMUTE, Op.SHIFT, Op.ROTATE))
    rules.forbid("bounds", takes & _group_breaks(s0, one), "stream s0")
    gives = np.isin(op, (Op.RECEIVE, Op.PERMUTE, Op.SHIFT))
    rules.forbid("bounds", gives & _group_breaks(out, one), "stream out")


def _check_alus(c: dict[str, Array], op: Array, rules: _Rules) -> None:
    alu = np.clip(c["queue"] - VXM_QUEUE, 0, ALUS - 1)
    streams = []
    for name, arity in (("s0", 1), ("s1", 2), ("out", 0)):
        used = (_ARITY[op] >= max(arity, 1)) & (c[name] >= 0) & (c[name] < ALU0)
        if name == "out":
            used &= c["wo"] > 0
        group = c[name] % 32 // 4
        wrong = used & ~_REACH[alu, group]
        rules.forbid("alu", wrong, f"{name} lies outside the SG4s that the ALU's row reaches")
        streams.append((used, group, c[name] // 32))
    (used0, group0, side0), (used1, group1, side1), _ = streams
    twice = used0 & used1 & (group0 == group1) & (side0 != side1)
    rules.forbid("alu", twice, "s0 and s1 are the same SG4 number from both directions")


def _check_sxm(program: Program, c: dict[str, Array], op: Array, rules: _Rules) -> None:
    s0, out, w0, imm = c["s0"], c["out"], c["w0"], c["imm"]
    unit = (c["queue"] - SXM_QUEUE) % 8
    spread = op == Op.DISTRIBUTE
    rules.forbid("sxm", spread & ~np.isin(w0, (1, 2, 4, 8)), "w0 not 1, 2, 4 or 8")
    rules.forbid("bounds", spread & _group_breaks(s0, w0), "streams of s0")
    rules.forbid("bounds", spread & _group_breaks(out, w0), "streams of out")
    rules.forbid("bounds", spread & _group_breaks(c["s1"], np.ones_like(s0)), "map stream s1")
    crosses = (s0 % 8 + w0 > 8) | (out % 8 + w0 > 8)
    rules.forbid("sxm", spread & crosses, "a group crosses its SG8")
    rules.forbid("sxm", spread & (unit != s0 % 32 // 8), "not the distributor of s0's SG8")
    turned = op == Op.TRANSPOSE
    rules.forbid("sxm", turned & (unit != 4 + s0 % 32 // 16), "not the transposer of s0's SG16")
    rules.forbid("sxm", ((op == Op.PERMUTE) | (op == Op.SHIFT)) & (unit != 6), "not the permutor")
    rotate = op == Op.ROTATE
    rules.forbid("sxm", rotate & (unit != 7), "not the rotator")
    rules.forbid("sxm", rotate & ~np.isin(imm, (3, 4)), "imm must be 3 or 4")
    rules.forbid("align", rotate & _group_breaks(out, imm * imm), "n*n streams from out")
    permute = op == Op.PERMUTE
    rules.forbid("sxm", permute & ((imm < 0) | (imm >= len(program.maps))), "no such map")
    for number in np.unique(imm[permute]):
        lanes = np.sort(np.asarray(program.maps[int(number)]))
        if not np.array_equal(lanes, np.arange(LANES)):
            rules.forbid("sxm", permute & (imm == number), "the map is no permutation")
