"""Random single edits of a program: most of them break a rule, some only change what it does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from chip.isa import Op
from chip.program import Program
from chip.spec import ChipSpec


def mutate(rng: Generator, program: Program, spec: ChipSpec) -> Program:
    """A copy with one random edit of one block."""
    bank = spec.words_per_bank
    blocks = program.blocks.copy()
    rare = np.flatnonzero(~np.isin(blocks["op"], (Op.READ, Op.WRITE)))
    pool = rare if len(rare) and rng.random() < 0.5 else np.arange(len(blocks))
    i = int(rng.choice(pool))
    block = blocks[i]
    step = int(rng.choice([-1, 1]))
    kind = str(
        rng.choice(
            [
                "cycle",
                "cycle",
                "stream",
                "bank",
                "address",
                "queue",
                "drop",
                "want",
                "stride",
                "count",
                "width",
                "mode",
                "window",
                "gang",
                "op",
                "twice",
                "meet",
                "meet",
                "earlier",
            ]
        )
    )
    if kind == "cycle":
        block["cycle"] += step
    elif kind == "earlier":
        block["cycle"] -= int(rng.integers(2, 40))
    elif kind == "stream":
        name = str(rng.choice(["s0", "s1", "out"]))
        block[name] = block[name] + step * int(rng.choice([1, 1, 4, 32]))
    elif kind == "bank":
        block["a"] += -bank if block["a"] >= bank else bank
    elif kind == "address":
        block["a"] += step * int(rng.choice([1, 2, 2 * bank + 808]))
    elif kind == "queue":
        block["queue"] = (int(block["queue"]) + step * int(rng.choice([1, 2, 8, 60]))) % 144
    elif kind == "drop":
        blocks = np.delete(blocks, i)
    elif kind == "want":
        block["want0"], block["want1"] = int(block["want1"]) + 1, int(block["want0"])
    elif kind == "stride":
        block["dc1"] += step
    elif kind == "count":
        block[str(rng.choice(["n1", "n2"]))] += 1
    elif kind == "width":
        block[str(rng.choice(["w0", "w1", "wo"]))] = int(rng.choice([0, 1, 2, 3, 4, 8]))
    elif kind == "mode":
        block["mode" if block["op"] == Op.ACC else "imm"] += step
    elif kind == "window":
        block["lo"], block["hi"] = int(block["lo"]) + step * 5, int(block["hi"]) + step * (bank + 4)
    elif kind == "gang":
        block["dsg"] = int(rng.choice([0, 2, -1]))
    elif kind == "op":
        block["op"] = int(rng.choice([int(op) for op in Op]))
    elif kind == "twice":
        again = blocks[i : i + 1].copy()
        again["cycle"] += int(rng.choice([0, 1, 2, 24]))
        blocks = np.concatenate([blocks, again])
    else:  # a new reader or repetition of another block's instruction, just after it
        again = blocks[i : i + 1].copy()
        again["cycle"] += int(rng.integers(0, 4))
        if block["op"] in (Op.WRITE, Op.SCATTER) and block["gang"] < 0:
            again["op"], again["s0"], again["want0"] = Op.READ, -1, 0
            again["out"] = int(rng.integers(64))
            again["tag"] = 1 << 20
        blocks = np.concatenate([blocks, again])
    return replace(program, blocks=blocks)
