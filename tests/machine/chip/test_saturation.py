"""Lanes that conversions lose: the engine and the reference count what NumPy says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chip.engine import Chip
from chip.isa import ALU0, Op
from chip.linking import link
from chip.program import Program, part_of_blocks
from tests import examples
from tests.stands.unit_bench import ALU, SPEC, Bench, planes

Words = NDArray[np.uint32]
#: As ``chip.saturation.KINDS`` has them.
CONVERSIONS = (Op.CVT_F32_F16, Op.CVT_F32_I32, Op.CVT_I32_I8)
#: Cycles between two conversions, more than the way of a vector through the chip.
APART = 60


def _near(rng: np.random.Generator, op: Op) -> Words:
    """Bits of 320 values, many of them next to the ends of the result's range, some beyond."""
    if op == Op.CVT_I32_I8:
        ends = rng.choice([127, -128, 0, 2**31 - 1, -(2**31)], 320)
        return (ends + rng.integers(-2, 3, 320)).astype(np.int64).astype(np.uint32)
    limit = np.float32(65504 if op == Op.CVT_F32_F16 else 2**31)
    bits = np.full(320, limit).view(np.uint32) + rng.integers(-2, 3, 320).astype(np.uint32)
    other = np.array([0, 1, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000], np.uint32)
    bits = np.where(rng.random(320) < 0.3, rng.choice(other, 320), bits)
    sign: Words = np.where(rng.random(320) < 0.5, np.uint32(1 << 31), np.uint32(0))
    return bits | sign


def _lost(op: Op, bits: Words) -> int:
    """How many values have no place in the result, from the definition, one by one."""
    lost = 0
    for word in bits:
        if op == Op.CVT_I32_I8:
            lost += not -128 <= int(word.view(np.int32)) <= 127
            continue
        value = float(word.view(np.float32))
        if op == Op.CVT_F32_F16:
            lost += value > 65504 or value < -65504  # a NaN stays one
        else:
            lost += not -(2**31) <= value <= 2**31 - 1
    return lost


def _engine_counts(bench: Bench, program: Program) -> NDArray[np.int64]:
    chip = Chip(SPEC, 0)
    chip.sram[:] = bench.chip.sram
    chip.begin(link(program, SPEC), 0)
    chip.run()
    return chip.saturated


@pytest.mark.long
@settings(max_examples=examples(100), deadline=None, derandomize=True)
@given(
    ops=st.lists(st.sampled_from(CONVERSIONS), min_size=1, max_size=4),
    seed=st.integers(0, 1 << 32),
    used=st.booleans(),
    parts=st.booleans(),
)
@example(ops=list(CONVERSIONS), seed=0, used=False, parts=True)
def test_counts_of_random_conversions(ops: list[Op], seed: int, used: bool, parts: bool) -> None:
    """Every conversion that is dispatched counts, whether somebody uses its result or nobody."""
    rng = np.random.default_rng(seed)
    bench = Bench()
    wanted = np.zeros((len(ops) if parts else 1, 3), np.int64)
    for number, op in enumerate(ops):
        cycle, bits = 50 + APART * number, _near(rng, op)
        bench.feed(ALU, 0, cycle, planes(bits), tag=(number << 16) + 1 if parts else 0)
        columns = {"out": 32, "wo": 4} if used else {}
        bench.add(op, cycle, ALU, s0=0, w0=4, **columns)
        if used:
            bench.catch(ALU, 32, cycle + SPEC.alu_entry_cycles + SPEC.alu_cycles, 4)
        if parts:
            bench.rows[-1 - 4 * used]["want0"] = (number << 16) + 1
        wanted[number if parts else 0, CONVERSIONS.index(op)] += _lost(op, bits)
    program = bench.program()
    assert bench.run().saturated == tuple(wanted.sum(axis=0))
    np.testing.assert_array_equal(_engine_counts(bench, program), wanted)


def test_a_chained_conversion_is_of_the_part_before_it() -> None:
    """Inside a chain of ALUs nothing has a tag: the part is that of the chain's first operand."""
    bench = Bench()
    for number in (0, 3):
        cycle = 50 + APART * number
        values = np.full(320, 1e30, np.float32).view(np.uint32)
        bench.feed(ALU, 0, cycle, planes(values), tag=(number << 16) + 9)
        bench.add(Op.MOV, cycle, ALU, s0=0, w0=4, want0=(number << 16) + 9)
        bench.add(Op.CVT_F32_I32, cycle + SPEC.alu_cycles, ALU + 1, s0=ALU0)
    program = bench.program()
    conversions = program.blocks["op"] == Op.CVT_F32_I32
    assert part_of_blocks(program.blocks)[conversions].tolist() == [0, 3]
    counts = _engine_counts(bench, program)
    assert counts.tolist() == [[0, 320, 0], [0, 0, 0], [0, 0, 0], [0, 320, 0]]


def test_counts_grow_over_launches() -> None:
    """As the digest sums do; a program of fewer parts leaves the others as they are."""
    bench = Bench()
    bench.feed(ALU, 0, 50, planes(np.full(320, 300, np.uint32)), tag=(2 << 16) + 1)
    bench.add(Op.CVT_I32_I8, 50, ALU, s0=0, w0=4, want0=(2 << 16) + 1)
    chip = Chip(SPEC, 0)
    chip.sram[:] = bench.chip.sram
    linked = link(bench.program(), SPEC)
    bench.rows[-1]["want0"] = 0
    for row in bench.rows:
        row["tag"] = 0
    plain = link(bench.program(), SPEC)
    for launch, program in enumerate((linked, plain, linked)):
        chip.begin(program, launch)
        chip.run()
    assert chip.saturated.tolist() == [[0, 0, 320], [0, 0, 0], [0, 0, 640]]


def test_without_data_nothing_is_counted() -> None:
    bench = Bench()
    bench.feed(ALU, 0, 50, planes(np.full(320, 300, np.uint32)))
    bench.add(Op.CVT_I32_I8, 50, ALU, s0=0, w0=4)
    chip = Chip(SPEC, 0, data=False)
    chip.begin(link(bench.program(), SPEC), 0)
    chip.run()
    assert not chip.saturated.any()
