"""The reference page's examples: each assembles to its instruction, and nothing is wrong with it
but that nobody feeds it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from chip.checker import check
from chip.encoding.assembly import assemble
from chip.isa import Op
from chip.spec import ChipSpec
from cluster.instruction_examples import example, when
from tests import ROOT

MACHINE = (ROOT / "docs" / "machine.md").read_text("utf-8")
#: What lacks its other half in a line alone: operands, ACC without ABC, planes never installed.
ALONE = {"missing", "mxm", "sync"}


@pytest.mark.parametrize("op", Op)
def test_example_is_the_instruction_and_lacks_only_its_partners(op: Op) -> None:
    program = assemble(example(op))
    assert [int(block) for block in program.blocks["op"]] == [op]
    if op == Op.PERMUTE:
        program.maps.append(np.arange(320, dtype=np.int16)[::-1].copy())
    assert {finding.code for finding in check(program, ChipSpec())} <= ALONE


@pytest.mark.parametrize("op", [op for op in Op if op >= Op.GATHER or op == Op.READ])
def test_time_is_that_of_the_machine_page(op: Op) -> None:
    """The latency the page names after "T +" in the row of the instruction."""
    name = "VXM ops" if Op.MOV <= op <= Op.GE_F32 else op.name
    names = (name, "ACC") if op == Op.ABC else (name,)  # the page has it from the ACC's side
    starts = tuple(f"| {name} |" for name in names)
    rows = [line for line in MACHINE.splitlines() if line.startswith(starts)]
    assert len(rows) == len(names)
    named = set(re.findall(r"[a-z_]+", " ".join(rows).lower()))
    told = re.findall(r"([0-9]+) \(`(\w+)_cycles`\)", when(op))
    assert {field for _, field in told} <= named
    assert bool(told) == (op not in (Op.LW, Op.SEND, Op.DESKEW))
    for number, field in told:
        assert int(number) == getattr(ChipSpec(), f"{field}_cycles")
