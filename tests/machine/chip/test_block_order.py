"""The order of a program's blocks says nothing: whichever comes first, the same happens.

What the linker numbers from 0 on is by this each of a program's instructions in turn: weights
that are loaded, a word that is overwritten behind its last use, a vector that is received.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from chip.checker import ERROR, check
from chip.engine import Chip
from chip.isa import VXM_QUEUE, Op, alu_stream_groups
from chip.program import Program, new_blocks
from tests.machine.chip.test_engine import SPEC, W, as_bytes, hops, matmul, run, stored
from tests.machine.chip.test_property import Pair
from tests.stands.programs_random import WORDS, fill_words, random_program

#: An ALU that drives a stream which the products do not use.
SPOILER = VXM_QUEUE + next(alu for alu in range(16) if 7 in alu_stream_groups(alu))
STREAM = W + 28


def rolled(p: Program, by: int) -> Program:
    return replace(p, blocks=np.roll(p.blocks, by))


def spoiled(p: Program) -> Program:
    """``matmul`` while sevens are written over its weights and its activations, after they were
    read and before they are multiplied.
    """
    rows: list[dict[str, Any]] = []
    reads = [b for b in p.blocks if b["op"] == Op.READ]
    for number, read in enumerate(reads):
        count, apart = int(read["n1"]), int(read["dc1"])
        slice_ = p.gangs[int(read["gang"])][0]
        at = int(read["cycle"]) + (count - 1) * apart + 1 + 4 * number
        shape = {"n1": count, "dc1": apart}
        rows += [
            {
                "cycle": at - 7 - hops(SPOILER, slice_, STREAM),
                "queue": SPOILER,
                "op": Op.MOV,
                "s0": 81,
                "imm": 7,
                "out": STREAM,
                "wo": 1,
                **shape,
            },
            {
                "cycle": at,
                "queue": slice_,
                "op": Op.WRITE,
                "a": int(read["a"]),
                "da1": 1,
                "s0": STREAM,
                **shape,
            },
        ]
    blocks = new_blocks(len(rows))
    for i, row in enumerate(rows):
        for name, value in row.items():
            blocks[i][name] = value
    return replace(p, blocks=np.concatenate([p.blocks, blocks]))


@pytest.mark.parametrize("wide", [False, True])
def test_words_are_multiplied_as_they_were_when_they_were_read(wide: bool) -> None:
    """By whichever block is the first: its instructions are those with the lowest numbers."""
    m = 3
    p = spoiled(matmul(m, wide)[0])
    assert [f for f in check(p, SPEC) if f.severity == ERROR] == []
    rng = np.random.default_rng(3)
    dtype = np.float16 if wide else np.int8
    weights = rng.integers(-99, 99, (16 * m, 320)).astype(dtype)
    acts = rng.integers(-99, 99, (2, 320)).astype(dtype)
    expected = np.zeros((2, 320), np.float32 if wide else np.int32)
    expected[:, : 16 * m] = acts.astype(np.int64) @ weights.astype(np.int64).T
    for by in range(len(p.blocks)):
        chip = Chip(SPEC, 0)
        for c in range(16 * m):
            for byte, row in enumerate(as_bytes(weights[c])):
                chip.sram[16 * byte + c % 16, c // 16] = row
        for k in range(2):
            for byte, row in enumerate(as_bytes(acts[k])):
                chip.sram[40 + byte, 100 + k] = row
        run(rolled(p, by), chip)
        assert chip.sram[0, :m].tolist() == [[7] * 320] * m
        assert chip.sram[40, 100].tolist() == [7] * 320
        for k in range(2):
            got = stored(chip, range(44, 48), 2 + k, expected.dtype)
            np.testing.assert_array_equal(got, expected[k], f"{by}")


@pytest.mark.parametrize(
    "seeds", [range(2), pytest.param(range(2, 20), marks=pytest.mark.long)], ids=["few", "many"]
)
def test_random_programs_begin_with_any_block(seeds: range) -> None:
    pair, bank = Pair(SPEC), SPEC.words_per_bank
    for seed in seeds:
        p = random_program(np.random.default_rng(seed), SPEC)
        pair.fill(np.random.default_rng(seed))
        wanted = pair.run_reference(p, seed)
        words = fill_words(np.random.default_rng(seed))
        for by in range(0, len(p.blocks), 1 + len(p.blocks) // 10):
            for first, part in ((0, words[:, 0]), (bank, words[:, 1])):
                pair.engine.sram[:, first : first + WORDS] = part
            assert pair.run_engine(rolled(p, by), seed) == wanted, (seed, by)
            pair.assert_same_words(seed)
