"""What the linker spares the compiled loop changes nothing: the tick-by-tick chip is the oracle.

Random traffic of a chip that receives vectors, writes them over and over into a few words, reads
those words while they change, and passes values through MOVs.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest

from chip.engine import Chip, Rings, Status, run_chips
from chip.faults import ProgramFault
from chip.isa import (
    C2C_QUEUE,
    VXM_QUEUE,
    AccMode,
    Op,
    drive_position,
    sample_position,
    slice_position,
)
from chip.linking import link
from chip.linking.arguments import PIECE_ELEMENTS, PIECE_OP
from chip.program import Program, new_blocks
from chip.reference import ReferenceChip
from chip.reference.chip import Port
from chip.spec import ChipSpec
from tests.stands.unit_bench import ACTIVATIONS, WEIGHTS, Bench, vector

SPEC = ChipSpec()
ALU = VXM_QUEUE + 8  # its row reaches stream groups 4 to 7
IN, OUT = 16, 20  # streams to and from it
WEST, EAST = (3, 9, 21), (50, 61, 70)  # slices upstream and downstream of the VXM
WORDS = 4
OUTPUT = (8, 44)  # link and slice of the chip that sends
UNWIRED = [-1] * 16


def rows_to_program(rows: list[dict[str, Any]]) -> Program:
    blocks = new_blocks(len(rows))
    for i, row in enumerate(rows):
        for name, value in row.items():
            blocks[name][i] = value
    return Program(blocks, [], [])


def random_traffic(rng: np.random.Generator) -> tuple[Program, int, int]:
    """A receiving program; its vectors come every ``send_spacing_cycles`` from the cycle given."""
    vectors = int(rng.integers(1, 12))
    first = SPEC.send_to_receive_cycles + 200
    spacing = SPEC.send_spacing_cycles
    queue = C2C_QUEUE
    rows: list[dict[str, Any]] = []
    driven = drive_position(queue, IN)
    repeat = {"n1": vectors, "dc1": spacing}
    rows.append({"op": Op.RECEIVE, "cycle": first, "queue": queue, "out": IN, **repeat})
    there = first + SPEC.receive_cycles
    for _ in range(int(rng.integers(1, 4))):  # who takes the vectors as they pass
        if rng.random() < 0.6:
            q = int(rng.choice(WEST))
            rows.append(
                {
                    "op": Op.WRITE,
                    "cycle": there + slice_position(q) - driven,
                    "queue": q,
                    "a": int(rng.integers(WORDS)),
                    "da1": int(rng.integers(2)),
                    "s0": IN,
                    **repeat,
                }
            )
        else:
            _pass_through(rng, rows, there + sample_position(ALU, IN) - driven, repeat)
    span = vectors * spacing + 60
    for _ in range(int(rng.integers(0, 8))):  # reads of words that may change around then
        q = int(rng.choice(WEST))
        cycle = first + int(rng.integers(-30, span))
        word = int(rng.integers(WORDS))
        rows.append({"op": Op.READ, "cycle": cycle, "queue": q, "a": word, "out": IN})
        passed = cycle + SPEC.read_cycles + sample_position(ALU, IN) - slice_position(q)
        _pass_through(rng, rows, passed, {})
    return rows_to_program(rows), vectors, first


def _pass_through(
    rng: np.random.Generator, rows: list[dict[str, Any]], cycle: int, repeat: dict[str, int]
) -> None:
    """A MOV at ``cycle``, and one or two slices that keep what it passes."""
    rows.append(
        {
            "op": Op.MOV,
            "cycle": cycle,
            "queue": ALU,
            "s0": IN,
            "w0": 1,
            "s1": -1,
            "out": OUT,
            "wo": 1,
            **repeat,
        }
    )
    leaves = cycle + SPEC.alu_entry_cycles + SPEC.alu_cycles
    for q in rng.choice(EAST, int(rng.integers(1, 3)), replace=False).tolist():
        rows.append(
            {
                "op": Op.WRITE,
                "cycle": leaves + slice_position(q) - drive_position(ALU, OUT),
                "queue": q,
                "a": int(rng.integers(WORDS)),
                "da1": int(rng.integers(2)),
                "s0": OUT,
                **repeat,
            }
        )


def sending_program(vectors: int, first: int) -> Program:
    """Sends words 0.. of a slice so that they arrive from cycle ``first`` on."""
    link_number, q = OUTPUT
    queue = C2C_QUEUE + link_number
    send = first - SPEC.send_to_receive_cycles
    hops = sample_position(queue, 0) - slice_position(q)
    repeat = {"n1": vectors, "dc1": SPEC.send_spacing_cycles}
    return rows_to_program(
        [
            {
                "op": Op.READ,
                "cycle": send - SPEC.read_cycles - hops,
                "queue": q,
                "da1": 1,
                "out": 0,
                **repeat,
            },
            {"op": Op.SEND, "cycle": send, "queue": queue, "s0": 0, **repeat},
        ]
    )


class Pair:
    """The receiving chip tick by tick, and sender and receiver in the engine."""

    def __init__(self) -> None:
        self.reference = ReferenceChip(SPEC, 1)
        self.rings = Rings.allocate(2)
        self.sender, self.receiver = Chip(SPEC, 0), Chip(SPEC, 1)
        self.sender.wire([*UNWIRED[:8], 0, *UNWIRED[9:]], UNWIRED)
        self.receiver.wire(UNWIRED, [0, *UNWIRED[1:]])

    def compare(self, seed: int, threads: int = 1) -> Program | None:
        """The receiver's program, if it is legal: both executors agree on every byte and sum."""
        rng = np.random.default_rng(seed)
        p, vectors, first = random_traffic(rng)
        words = rng.integers(0, 256, (88, WORDS + 12, 320), np.uint8)
        for sram in (self.reference.sram, self.receiver.sram, self.sender.sram):
            sram[:, : WORDS + 12] = words
        spacing = SPEC.send_spacing_cycles
        coming = deque((first + k * spacing, words[OUTPUT[1], k]) for k in range(vectors))
        try:
            ran = self.reference.run(p, seed, {0: Port(coming=coming)})
        except ProgramFault:
            with pytest.raises(ProgramFault):
                link(p, SPEC)
            return None
        self.rings.clear()
        self.receiver.digest_sums[:] = 0
        self.sender.begin(link(sending_program(vectors, first), SPEC), seed)
        self.receiver.begin(link(p, SPEC), seed)
        chips = [self.receiver, self.sender]
        assert run_chips(chips, self.rings, threads=threads) == [Status.DONE, Status.DONE]
        assert tuple(self.receiver.digest_sums.tolist()) == ran.digest_sums, f"seed {seed}"
        np.testing.assert_array_equal(
            self.receiver.sram[:, : WORDS + 12], self.reference.sram[:, : WORDS + 12], f"{seed}"
        )
        return p


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair()


@pytest.mark.long
def test_traffic_through_few_words_is_what_the_ticks_say(pair: Pair) -> None:
    legal = [p for seed in range(400) if (p := pair.compare(seed)) is not None]
    assert len(legal) > 100
    # Both ways of every shortcut occur: taken and, for a hazard or a second use, not taken.
    counts = [elements_by_op(p) for p in legal]
    written = [int((p.blocks["op"] == Op.WRITE).sum()) for p in legal]
    assert any(n.get(Op.WRITE, 0) < w for n, w in zip(counts, written, strict=True))
    assert any(n.get(Op.WRITE, 0) > 0 for n in counts)
    assert not any(n.get(Op.MOV, 0) for n in counts)


def elements_by_op(p: Program) -> dict[int, int]:
    linked = link(p, SPEC)
    found: dict[int, int] = {}
    for row in linked.table.tolist():
        found[row[PIECE_OP]] = found.get(row[PIECE_OP], 0) + row[PIECE_ELEMENTS]
    return found


def test_threads_change_nothing(pair: Pair) -> None:
    assert sum(pair.compare(seed, threads=2) is not None for seed in range(60)) > 10


def test_a_vector_is_not_written_before_an_older_value_was_read() -> None:
    """A reader between the RECEIVE and its WRITE keeps the WRITE in its place."""
    q, first = 40, 900
    there = first + SPEC.receive_cycles + slice_position(q) - drive_position(C2C_QUEUE, IN)
    rows: list[dict[str, Any]] = [
        {"op": Op.RECEIVE, "cycle": first, "queue": C2C_QUEUE, "out": IN},
        {"op": Op.WRITE, "cycle": there, "queue": q, "a": 1, "s0": IN},
    ]
    assert elements_by_op(rows_to_program(rows)) == {Op.RECEIVE: 1}
    cycle = first + 3
    left = cycle + SPEC.read_cycles + slice_position(38) - slice_position(q)
    rows += [
        {"op": Op.READ, "cycle": cycle, "queue": q, "a": 1, "out": 2},
        {"op": Op.WRITE, "cycle": left, "queue": 38, "a": 0, "s0": 2},
    ]
    assert elements_by_op(rows_to_program(rows))[Op.WRITE] == 2


def test_chips_that_lack_a_vector_stop_with_any_number_of_threads() -> None:
    """Nobody sends: every thread gives up and says where its chips wait."""
    chips = [Chip(SPEC, number) for number in range(5)]
    rings = Rings.allocate(5)
    rows = [{"op": Op.RECEIVE, "cycle": 700, "queue": C2C_QUEUE, "out": IN}]
    for number, chip in enumerate(chips):
        chip.wire(UNWIRED, [number, *UNWIRED[1:]])
        chip.begin(link(rows_to_program(rows), SPEC), 0)
    assert run_chips(chips, rings, threads=3) == [Status.WAIT_RECEIVE] * 5
    assert {chip.waiting for chip in chips} == {(C2C_QUEUE, 700)}


def test_a_product_that_feeds_the_next_one_of_its_block() -> None:
    """Both ACCs are one block; the second multiplies a byte of the first, which a MOV returned."""
    bench = Bench()
    weights = np.random.default_rng(1).integers(-128, 128, (16, 320)).astype(np.int8)
    bench.feed(WEIGHTS, 0, 40, weights.view(np.uint8))
    bench.add(Op.LW, 40, WEIGHTS, s0=0)
    bench.add(Op.IW, 41, WEIGHTS, a=1)
    start = 41 + SPEC.mxm_install_cycles
    back = 32 + IN  # westward, to the ALU
    done = start + SPEC.mxm_multiply_cycles
    taken = (
        done
        + SPEC.mxm_accumulate_cycles
        + drive_position(ACTIVATIONS, back)
        - sample_position(ALU, back)
    )
    again = (
        taken
        + SPEC.alu_entry_cycles
        + SPEC.alu_cycles
        + sample_position(ACTIVATIONS, OUT)
        - drive_position(ALU, OUT)
    )
    twice = {"n1": 2, "dc1": again - start}
    bench.feed(ACTIVATIONS, OUT, start, vector(2))
    bench.add(Op.ABC, start, ACTIVATIONS, s0=OUT, w0=1, **twice)
    bench.add(Op.ACC, done, ACTIVATIONS, a=1, da1=1, mode=AccMode.SET_EMIT, out=back, **twice)
    bench.add(Op.MOV, taken, ALU, s0=back, w0=1, s1=-1, out=OUT, wo=1)
    last = done + again - start + SPEC.mxm_accumulate_cycles
    places = bench.catch(ACTIVATIONS, back, last, 4)
    p = bench.program()
    chip = Chip(SPEC, 0)
    chip.sram[:] = bench.chip.sram
    chip.begin(link(p, SPEC), 0)
    assert chip.run() == Status.DONE
    assert tuple(chip.digest_sums.tolist()) == bench.run().digest_sums
    first = weights.astype(np.int32) @ vector(2).view(np.int8).astype(np.int32)
    low = np.zeros(320, np.int8)
    low[:16] = (first & 255).astype(np.uint8).view(np.int8)
    second = weights.astype(np.int32) @ low.astype(np.int32)
    got = np.ascontiguousarray(np.stack([chip.sram[place] for place in places], axis=-1))
    np.testing.assert_array_equal(got.view("<i4")[:16, 0], second)
