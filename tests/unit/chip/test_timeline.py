"""When units work, by formula, against the expansion into single instructions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip.isa import C2C_QUEUE, QUEUES, VXM_QUEUE, Op
from chip.program import Program, expand, new_blocks
from chip.spec import PRESETS, ChipSpec
from chip.timeline import (
    FAMILIES,
    MEM_EAST,
    MEM_WEST,
    SEND_UNIT,
    UNITS,
    busy_cycles,
    timeline,
    unit_name,
    wire_cycles,
)
from tests import examples

SPEC = ChipSpec()
MEM_OPS = (Op.READ, Op.WRITE, Op.GATHER, Op.SCATTER)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Blocks with any repeats, backward ones too, on any queue or gang of MEM slices."""
    gangs = draw(
        st.lists(st.lists(st.integers(0, 87), min_size=1, max_size=5).map(tuple), max_size=3)
    )
    blocks = new_blocks(draw(st.integers(0, 6)))
    for block in blocks:
        block["cycle"] = draw(st.integers(1000, 1200))
        for name in ("n1", "n2"):
            block[name] = draw(st.integers(1, 5))
        for name in ("dc1", "dc2", "dcg"):
            block[name] = draw(st.integers(-30, 40))
        block["s0"], block["out"] = draw(st.integers(0, 63)), draw(st.integers(0, 63))
        block["gang"] = draw(st.integers(-1, len(gangs) - 1))
        if block["gang"] >= 0:
            block["op"] = draw(st.sampled_from(MEM_OPS))
            block["queue"] = gangs[block["gang"]][0]
        else:
            block["op"] = draw(st.sampled_from([Op.READ, Op.MOV, Op.ACC, Op.SHIFT, Op.RECEIVE]))
            block["queue"] = draw(st.integers(0, QUEUES - 1))
            if block["queue"] >= C2C_QUEUE and draw(st.booleans()):
                block["op"] = Op.SEND
    return Program(blocks, gangs, [], 5000)


def alone(program: Program, block: int) -> np.ndarray:  # type: ignore[type-arg]
    return expand(Program(program.blocks[block : block + 1], program.gangs))


@settings(max_examples=examples(150), deadline=None)
@given(programs())
def test_timeline_is_that_of_the_expansion(program: Program) -> None:
    lines = timeline(program, SPEC)
    for block in range(len(program.blocks)):
        rows = alone(program, block)
        on_wire = wire_cycles(SPEC) if program.blocks["op"][block] == Op.SEND else 1
        assert lines.first[block] == rows["cycle"].min()
        assert lines.end[block] == rows["cycle"].max() + on_wire
        assert lines.instructions[block] == len(rows)
        gang = program.blocks["gang"][block]
        queue = program.gangs[gang][0] if gang >= 0 else program.blocks["queue"][block]
        name = unit_name(int(lines.unit[block]))
        if queue < VXM_QUEUE:
            assert lines.unit[block] == (MEM_WEST if queue < 44 else MEM_EAST)
        elif queue >= C2C_QUEUE:
            way = "send" if program.blocks["op"][block] == Op.SEND else "receive"
            assert name == f"link[{queue - C2C_QUEUE}] {way}"


@settings(max_examples=examples(100), deadline=None)
@given(programs(), st.lists(st.integers(700, 1800), min_size=2, max_size=9, unique=True))
def test_busy_cycles_count_every_instruction_once(program: Program, cuts: list[int]) -> None:
    edges = np.array(sorted(cuts), np.int64)
    busy = busy_cycles(program, SPEC, edges)
    expected = np.zeros((UNITS, len(edges) - 1))
    lines = timeline(program, SPEC)
    for block in range(len(program.blocks)):
        for cycle in alone(program, block)["cycle"].tolist():
            span = float(SPEC.cycles_per_vector) if lines.unit[block] >= SEND_UNIT else None
            for i, (low, high) in enumerate(pairwise(edges)):
                if span is None:
                    expected[lines.unit[block], i] += low <= cycle < high
                else:
                    share = min(cycle + span, high) - max(cycle, low)
                    expected[lines.unit[block], i] += max(share, 0)
    np.testing.assert_allclose(busy, expected)


def test_units_have_names_and_families_of_their_own() -> None:
    names = [unit_name(unit) for unit in range(UNITS)]
    assert len(set(names)) == UNITS
    assert [first for _, first, _ in FAMILIES] == [0, *(end for _, _, end in FAMILIES[:-1])]
    assert FAMILIES[-1][2] == UNITS


@pytest.mark.parametrize("spec", [ChipSpec(), *PRESETS.values()], ids=lambda spec: spec.name)
def test_a_vector_is_on_its_link_for_whole_cycles(spec: ChipSpec) -> None:
    assert wire_cycles(spec) - 1 < spec.cycles_per_vector <= wire_cycles(spec)
