"""What kernels keep of the machine for themselves is what their instructions need, cycle by cycle.

Counted from the instructions of each pass: where a value flies from its unit to the last that
takes it, which plane's weights are loaded or in force, which ALU holds a result that its ``self``
operand takes up.  Less would let other passes in between, more would make them wait for nothing.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from chip import isa
from chip.isa import Op
from chip.program import gang_skew
from chip.scheduling import Pass, Schedule
from chip.scheduling.groups import BUFFER, LINK, MARGIN, PLANE, STREAM
from chip.spec import ChipSpec
from interconnect.collectives.node import compile_collective
from programs.cholesky import CholeskyShape, compile_cholesky
from programs.convnet import compile_network, mlp
from programs.decoder import compile_decoder, partition_model
from programs.encoder import EncoderShape, compile_encoder
from programs.matmul import MatmulShape, compile_matmul
from programs.models import ModelConfig, random_checkpoint

SPEC = ChipSpec()
CONFIGS = {
    "llama": ModelConfig(100, 1, 4, 2, 24, 700, 331),
    "qwen": ModelConfig(100, 1, 8, 2, 24, 130, 331, head_norms=True),
    "gemma 2": ModelConfig(100, 1, 4, 2, 24, 130, 331, post_norms=True, score_cap=5, logit_cap=3),
    "olmo 2": ModelConfig(
        100, 1, 8, 4, 72, 130, 331, pre_norms=False, post_norms=True, wide_norms=True
    ),
    "mixtral": ModelConfig(100, 1, 4, 2, 24, 330, 331, experts=3, experts_per_token=2),
}
LONG = ModelConfig(100, 1, 8, 4, 24, 130, 331, max_position=768)
Cells = dict[tuple[int, int], int]


@contextmanager
def recorded() -> Iterator[list[tuple[str, Pass]]]:
    """Every pass that is placed meanwhile, with its kernel's name."""
    passes: list[tuple[str, Pass]] = []
    place = Schedule.place

    def keeping(schedule: Schedule, group: Pass, earliest: int, name: str = "") -> int:
        passes.append((name, group))
        return place(schedule, group, earliest, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Schedule, "place", keeping)
        yield passes


def unheld(p: Pass) -> list[tuple[int, int]]:
    """(ALU, cycle) of every cycle between a ``self`` and the result it means that is not held."""
    kept, needed = held(p), waiting(p)
    return sorted((row - isa.VXM_QUEUE, cycle) for row, cycle in needed - kept)


def held(p: Pass) -> set[tuple[int, int]]:
    """(row, cycle) of all that the pass says it holds."""
    return {(row, cycle) for row, a, b in p.held for cycle in range(a, b + 1)}


def dispatches(p: Pass) -> Iterator[tuple[dict[str, int], int, int, list[int]]]:
    """Each block with each of its queues, that one's number in the gang, and its cycles."""
    for block, gang in zip(p.blocks, p.gang_of, strict=True):
        first = np.array(
            [
                block["cycle"] + inner * block["dc1"] + outer * block["dc2"]
                for outer, inner in np.ndindex(block["n2"], block["n1"])
            ]
        )
        if gang is None:
            yield block, block["queue"], 0, first.tolist()
            continue
        takes = block["op"] in (Op.WRITE, Op.SCATTER)
        skews = gang_skew(gang, block["s0"] if takes else block["out"])
        for member, (queue, skew) in enumerate(zip(gang, skews.tolist(), strict=True)):
            yield block, queue, member, (first + skew + member * block["dcg"]).tolist()


def waiting(p: Pass) -> set[tuple[int, int]]:
    """(row, cycle) of the cycles between a result and the ``self`` that takes it."""
    dispatched: dict[int, dict[int, bool]] = defaultdict(dict)
    for block, queue, _, cycles in dispatches(p):
        if isa.VXM_QUEUE <= queue < isa.VXM_QUEUE + isa.ALUS:
            own = isa.SELF in (block["s0"], block["s1"])
            dispatched[queue].update(dict.fromkeys(cycles, own))
    return {
        (queue, cycle)
        for queue, own in dispatched.items()
        for before, after in itertools.pairwise(sorted(own))
        if own[after]
        for cycle in range(before + 1, after)
    }


def driven(block: dict[str, int]) -> tuple[int, int]:
    """How many streams an instruction drives, and how many cycles after its dispatch."""
    one = {
        Op.READ: SPEC.read_cycles,
        Op.GATHER: SPEC.gather_cycles,
        Op.RECEIVE: SPEC.receive_cycles,
        Op.PERMUTE: SPEC.permute_cycles,
        Op.SHIFT: SPEC.shift_cycles,
    }
    op = Op(block["op"])
    if block["out"] < 0:
        return 0, 0
    if op in one:
        return 1, one[op]
    if op == Op.ACC:
        return 4, SPEC.mxm_accumulate_cycles
    if op == Op.TRANSPOSE:
        return 16, SPEC.transpose_cycles
    if op == Op.DISTRIBUTE:
        return block["w0"], SPEC.distribute_cycles
    if op == Op.ROTATE:
        return block["imm"] ** 2, SPEC.rotate_cycles
    return block["wo"], SPEC.alu_entry_cycles + SPEC.alu_cycles


def flights(p: Pass) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """By stream and diagonal, the ways (from position, to the last that takes the value)."""
    takers: dict[tuple[int, bool], set[int]] = defaultdict(set)
    for block, queue, _, _ in dispatches(p):
        for operand in "01":
            code, tag = block["s" + operand], block.get("want" + operand, 0)
            if tag:
                takers[tag, code < 32].add(isa.sample_position(queue, code))
    found: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for block, queue, member, cycles in dispatches(p):
        width, after = driven(block)
        if not width:
            continue
        code = block["out"] + member * block["dsg"]
        east = code < 32
        start = isa.drive_position(queue, code)
        ends = takers.get((block.get("tag", 0), east), {start})
        way = (start, max(ends) if east else min(ends))
        for stream in range(code, code + width):
            for cycle in cycles:
                at = cycle + after
                found[stream, at - start if east else at + start].append(way)
    return found


def claimed_streams(p: Pass) -> Cells:
    claim = p.claim()
    rows, cycles = claim.rows - STREAM, claim.cycles - MARGIN
    own = (rows >= 0) & (rows < isa.STREAMS)
    keys = zip(rows[own].tolist(), cycles[own].tolist(), strict=True)
    return dict(zip(keys, claim.parts[own].tolist(), strict=True))


#: Where the eight parts of a stream's way end, from west to east.
ENDS = (9, 13, 18, 22, 26, 30, 35, 45)


def parts_of(low: int, high: int) -> int:
    """The parts, one bit each, that a way from ``low`` to ``high`` passes through."""
    begins = (isa.WEST_EDGE, *ENDS[:-1])
    return sum(
        1 << number
        for number, (begin, end) in enumerate(zip(begins, ENDS, strict=True))
        if low < end and high > begin
    )


def plane_needs(p: Pass) -> set[tuple[int, int]]:
    """(row, cycle): a plane's buffer from the first weights until it may be loaded anew, and its
    weights from their install to the last activation that meets them.

    A product of two bytes takes both planes of a pair for two cycles, and the other's queue.
    """
    loads: dict[int, list[tuple[int, int]]] = defaultdict(list)
    installs: dict[int, list[int]] = defaultdict(list)
    uses: dict[int, set[int]] = defaultdict(set)
    needs = set()
    for block, queue, _, cycles in dispatches(p):
        plane = (queue - isa.MXM_QUEUE) // 2
        if block["op"] == Op.LW:
            steps = np.ndindex(block["n2"], block["n1"])
            groups = [block.get("a", 0) + i * block["da1"] + j * block["da2"] for j, i in steps]
            loads[plane] += zip(cycles, groups, strict=True)
        elif block["op"] == Op.IW:
            installs[plane] += cycles
        elif block["op"] == Op.ABC:
            for cycle in cycles:
                for both in range(block["w0"]):
                    uses[plane + both].update(range(cycle, cycle + block["w0"]))
            if block["w0"] == 2:
                needs |= {(queue + 2, cycle) for cycle in range(min(cycles), max(cycles) + 2)}
    for plane, own in loads.items():
        firsts = sorted(cycle for cycle, group in own if group == 0)
        for first, following in itertools.zip_longest(firsts, firsts[1:]):
            size = sum(first <= c and (following is None or c < following) for c, _ in own)
            until = first + size + SPEC.mxm_reload_gap_cycles
            needs |= {(BUFFER + plane, cycle) for cycle in range(first, until)}
    for plane, cycles in installs.items():
        ordered = sorted(cycles)
        for begin, after in itertools.zip_longest(ordered, ordered[1:]):
            met = [c for c in uses[plane] if c > begin and (after is None or c <= after)]
            needs |= {(PLANE + plane, cycle) for cycle in range(begin, max(met, default=begin) + 1)}
    return needs


def decoder(name: str, dtype: str) -> Callable[[], object]:
    model = random_checkpoint(CONFIGS[name], 1)
    return lambda: compile_decoder(partition_model(model, 2, dtype), SPEC, 16)


KERNELS: dict[str, Callable[[], object]] = {
    **{f"{name}, {dtype}": decoder(name, dtype) for name in CONFIGS for dtype in ("int8", "fp16")},
    "on the planes": lambda: compile_decoder(
        partition_model(random_checkpoint(LONG, 1), 4, "int8"), SPEC, 768
    ),
    "encoder": lambda: compile_encoder(EncoderShape(1, 128, 2, 256, 32), SPEC),
    "network": lambda: compile_network(mlp(40, (330, 40, 20)), SPEC),
    "product, int8": lambda: compile_matmul(MatmulShape(40, 660, 330, "int8"), SPEC),
    "product, fp16": lambda: compile_matmul(MatmulShape(40, 660, 330, "fp16"), SPEC),
    "factorisation": lambda: compile_cholesky(CholeskyShape(5, 1), SPEC, None),
    "collective": lambda: compile_collective("all-reduce", 8, 20, SPEC),
}


#: Slow ones, of kernels that others have too.
SLOW = ("qwen, int8", *(f"{name}, fp16" for name in CONFIGS if name != "mixtral"))
#: Cycles of planes and ALUs that a pass keeps beyond what it needs, by kernel, at most.
LOOSE = {
    "": 3,
    "norm factor": 5,
    "dynamic factor": 5,
    "factor of sum": 3,
    "norm heads": 25,
    "matmul round": 7,
    "matmul16 round": 12,
    "new values": 2,
    "scores": 108,
    "weights and values": 112,
    "product": 66,
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.long] * (n in SLOW)) for n in KERNELS]
)
def test_what_is_held_is_what_is_needed(name: str) -> None:
    """Of streams no diagonal more or less; only attention reserves some farther than they go."""
    with recorded() as passes:
        KERNELS[name]()
    assert passes
    for kernel, p in passes:
        ways, claims = flights(p), claimed_streams(p)
        assert set(claims) == set(ways), kernel
        for cell, parts in claims.items():
            needed = 0
            for start, end in ways[cell]:
                needed |= parts_of(min(start, end), max(start, end))
            assert needed == parts or (not kernel and not needed & ~parts), (kernel, cell)
        kept, needs = held(p), plane_needs(p) | waiting(p)
        assert needs <= kept, (kernel, sorted(needs - kept)[:9])
        issued = {(queue, cycle) for _, queue, _, cycles in dispatches(p) for cycle in cycles}
        more = {cell for cell in kept - needs - issued if cell[0] < LINK}
        assert len(more) <= LOOSE.get(kernel, 0), (kernel, sorted(more)[:9])


def test_a_link_is_held_until_its_last_vector_has_left() -> None:
    with recorded() as passes:
        compile_collective("all-reduce", 8, 20, SPEC)
    for _, p in passes:
        sent = [(q, c) for b, q, _, cycles in dispatches(p) for c in cycles if b["op"] == Op.SEND]
        spacing = SPEC.send_spacing_cycles
        needs = {
            (LINK + queue - isa.C2C_QUEUE, cycle)
            for queue, sends in sent
            for cycle in range(sends, sends + spacing)
        }
        assert needs == {cell for cell in held(p) if cell[0] >= LINK}
