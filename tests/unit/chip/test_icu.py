"""Instruction memory: encoding to 16-byte words and back loses nothing an executor needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip.encoding.instruction_words import (
    NOP_MAX,
    WORD_BYTES,
    decode,
    describe,
    encode,
    instruction_bytes,
)
from chip.isa import IMM, MAX_WORDS_PER_SLICE, NONE, Op
from chip.program import BLOCK_DTYPE, Program, expand, new_blocks
from tests import examples


def program(*rows: dict[str, Any]) -> Program:
    """A program of blocks given by their column values."""
    blocks = new_blocks(len(rows))
    for i, row in enumerate(rows):
        for name, value in row.items():
            blocks[name][i] = value
    return Program(blocks, [(0, 1, 9, 50)], [np.arange(320, dtype=np.int16)], 77)


def instructions(table: Program) -> list[tuple[int, ...]]:
    """The expansion without what takes no room on the chip: tags, wants, gang columns."""
    rows = expand(table)
    for name in ("tag", "want0", "want1"):
        rows[name] = 0
    return [tuple(row) for row in rows[list(BLOCK_DTYPE.names or ())].tolist()]


OPERAND = st.sampled_from([NONE, 0, 5, 31, 32, 63, 64, 80, IMM])
BLOCK = st.fixed_dictionaries(
    {
        "queue": st.integers(0, 7).map(lambda q: q * 20),
        "n1": st.integers(1, 5),
        "dc1": st.integers(1, 4),
        "da1": st.integers(-3, 200),
        "n2": st.integers(1, 3),
        "dc2": st.sampled_from([25, 70_000]),
        "da2": st.integers(-3, 3),
        "s0": OPERAND,
        "s1": OPERAND,
        "out": OPERAND,
        "w0": st.sampled_from([0, 1, 2, 4, 8, 16]),
        "w1": st.sampled_from([0, 1, 2, 4]),
        "wo": st.sampled_from([0, 1, 2, 4]),
        "mode": st.integers(0, 3),
        "imm": st.integers(-(2**31), 2**31 - 1),
        "lo": st.integers(0, MAX_WORDS_PER_SLICE - 1),
        "hi": st.integers(0, MAX_WORDS_PER_SLICE - 1),
        "tag": st.integers(0, 9),
        "want0": st.integers(0, 9),
    }
)


@settings(max_examples=examples(150), deadline=None)
@given(
    st.lists(st.tuples(BLOCK, st.integers(0, 70_000), st.sampled_from(list(Op))), max_size=8),
    st.booleans(),
)
def test_decode_of_encode_is_the_same_program(
    parts: list[tuple[dict[str, int], int, Op]], paired: bool
) -> None:
    rows: list[dict[str, int]] = []
    start = 0
    for columns, gap, op in parts:  # one after the other: a queue issues in order
        start += gap
        first = {**columns, "cycle": start, "op": int(op), "a": 1000}
        rows.append(first)
        if paired:
            fewer = max(1, columns["n1"] - gap % 3)  # the pair may end before the run does
            rows.append({**first, "op": int(Op.DESKEW), "n1": fewer, "da1": 7, "out": 3})
        start += 2 * columns["dc2"] + 25
    table = program(*rows)
    again = decode(encode(table))
    assert instructions(again) == instructions(table)
    assert (again.cycles, len(again.maps)) == (77, 1)


def test_repeat_makes_a_run_two_words() -> None:
    run = {"op": Op.READ, "queue": 4, "cycle": 9, "n1": 20, "dc1": 3, "da1": 2, "a": 40, "out": 1}
    table = program(run)
    memory = encode(table)
    assert describe(memory, 4) == ["NOP 9", "READ out=1 a=40", "Repeat 19, 3"]
    assert instruction_bytes(table) == memory.size == 3 * WORD_BYTES


def test_a_pair_repeats_together() -> None:
    read = {"op": Op.READ, "queue": 4, "n1": 20, "dc1": 1, "da1": 1, "out": 1}
    write = {"op": Op.WRITE, "queue": 4, "n1": 20, "dc1": 1, "da1": 0, "a": 4096, "s0": 40}
    table = program(read, write)
    assert instruction_bytes(table) == 3 * WORD_BYTES
    assert instructions(decode(encode(table))) == instructions(table)


def test_gangs_are_encoded_per_queue() -> None:
    table = program({"op": Op.READ, "cycle": 20, "gang": 0, "dsg": 1, "n1": 3, "dc1": 1})
    memory = encode(table)
    assert sorted(memory.queues) == [0, 1, 9, 50]
    assert instructions(decode(memory)) == instructions(table)


@pytest.mark.parametrize(("gap", "nops"), [(0, 0), (1, 1), (NOP_MAX, 1), (NOP_MAX + 1, 2)])
def test_nop_counts_to_65535(gap: int, nops: int) -> None:
    table = program({"op": Op.READ, "queue": 4, "cycle": gap, "out": 0})
    lines = describe(encode(table), 4)
    assert sum(line.startswith("NOP") for line in lines) == nops
    assert instructions(decode(encode(table))) == instructions(table)


def test_what_a_queue_cannot_issue_is_refused() -> None:
    one = {"op": Op.READ, "queue": 4, "cycle": 5, "out": 0}
    with pytest.raises(ValueError, match="cannot issue 3"):
        encode(program(one, one, one))
    with pytest.raises(ValueError, match="does not fit"):
        encode(program({**one, "a": 1 << 16}))
