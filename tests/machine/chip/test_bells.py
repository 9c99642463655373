"""Who waits for another process sleeps, and is woken when all it waits for is there, no later."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from threading import Event, Thread
from time import perf_counter, thread_time

import numpy as np
import pytest
from numpy.typing import NDArray

from chip.engine import Chip, Rings, Status, run_chips
from chip.engine.bells import FUTEX, sleep, tell
from chip.engine.frames import WAIT_SEND
from chip.engine.ring import HEAD, TAIL
from chip.isa import C2C_QUEUE, Op
from chip.linking import link
from chip.program import Program, new_blocks
from chip.spec import ChipSpec
from tests.cluster.test_lockstep import VECTORS, chips, passing_program, received

pytestmark = pytest.mark.skipif(
    not FUTEX, reason="only Linux wakes a process that sleeps on memory"
)

SPEC = ChipSpec()
#: As bells.py lays out a line behind its count.
WANT, NEXT, DOOR, WORD = range(1, 5)
SENDER, RECEIVER = TAIL, HEAD
UNWIRED = [-1] * 16
SLEEP_SECONDS = 0.02


def asleep_at(counts: NDArray[np.int64], lines: Sequence[int], wants: Sequence[int]) -> None:
    """As a process leaves it that sleeps for all of ``lines``, at the word of the first."""
    for number, (line, want) in enumerate(zip(lines, wants, strict=True)):
        own = counts[line // 2, 8 * (line % 2) :]
        own[WANT], own[NEXT], own[DOOR] = want, lines[(number + 1) % len(lines)], lines[0]


def receiver(links: Sequence[int], vectors: int = 1) -> Chip:
    """A chip that is to receive on ``links``, one after another, by ring of the same number."""
    blocks = new_blocks(len(links))
    blocks["op"] = Op.RECEIVE
    blocks["queue"] = [C2C_QUEUE + number for number in links]
    blocks["n1"] = vectors
    blocks["dc1"] = SPEC.send_spacing_cycles
    blocks["cycle"] = [SPEC.send_to_receive_cycles + 1000 * n for n in range(len(links))]
    blocks["out"] = 0
    chip = Chip(SPEC, 0)
    chip.wire(UNWIRED, list(range(16)))
    chip.begin(link(Program(blocks, [], []), SPEC), 0)
    return chip


def circle(rings: Rings, line: int) -> list[int]:
    """Lines that a chip waited at together, as they are left behind, the first one first."""
    lines = [line]
    while (after := int(rings.counts[lines[-1] // 2, 8 * (lines[-1] % 2) + NEXT])) != line:
        lines.append(after)
    return lines


def test_all_that_is_wanted_wakes() -> None:
    counts = np.zeros((3, 16), np.int64)
    lines = [5, 1, 3]  # a receiver waits on all three rings
    asleep_at(counts, lines, [4, 7, 1])
    word = counts[2, RECEIVER:]
    for ring, there in ((0, 7), (2, 9), (1, 0)):
        counts[ring, TAIL] = there
        tell(counts, 2 * ring)
        assert word[WORD] == 0
    counts[1, TAIL] = 1
    tell(counts, 3)  # the receiver's own line: nobody waits for it
    assert word[WORD] == 0
    tell(counts, 2)
    assert word[WORD] == 1 and counts[:2, [WORD, 8 + WORD]].sum() == 0


def test_room_wakes_the_sender() -> None:
    counts = np.zeros((1, 16), np.int64)
    asleep_at(counts, [0], [3])
    for head in (2, 3):
        counts[0, HEAD] = head
        tell(counts, 1)
        assert counts[0, WORD] == (head == 3)


@pytest.mark.parametrize("wrong", [-1, 6, 1 << 40, -(1 << 62)])
@pytest.mark.parametrize("column", [NEXT, DOOR])
def test_what_a_stranger_wrote_leads_nowhere(column: int, wrong: int) -> None:
    counts = np.zeros((3, 16), np.int64)
    asleep_at(counts, [1], [1])
    counts[0, RECEIVER + column] = wrong
    counts[0, TAIL] = 1
    before = counts.copy()
    tell(counts, 0)
    assert (counts == before).all()


def test_a_circle_without_end_is_left() -> None:
    counts = np.zeros((2, 16), np.int64)
    asleep_at(counts, [1], [1])
    asleep_at(counts, [3], [1])
    counts[0, RECEIVER + NEXT] = 3  # which never leads back
    counts[:, TAIL] = 1
    tell(counts, 0)
    assert counts[0, RECEIVER + WORD] == 0


def test_a_sleep_in_vain_ends_and_costs_nothing() -> None:
    chip, rings = receiver([0]), Rings.allocate(16)
    assert run_chips([chip], rings) == [Status.WAIT_RECEIVE]
    assert not rings.counts.any()
    slept = []
    for _ in range(5):  # a signal ends a sleep, and a busy machine takes time of its own
        began, busy = perf_counter(), thread_time()
        assert run_chips([chip], rings, sleeps=99) == [Status.WAIT_RECEIVE]
        slept.append((perf_counter() - began, thread_time() - busy))
    assert any(took >= SLEEP_SECONDS and work < SLEEP_SECONDS / 2 for took, work in slept)
    assert circle(rings, 1) == [1]
    assert (rings.counts[:, [WANT, RECEIVER + WANT]] == 0).all()


def test_a_chip_waits_for_all_receives_before_its_next_send() -> None:
    rings = Rings.allocate(16)
    run_chips([receiver([3, 0, 7, 3])], rings, sleeps=1)
    assert sorted(circle(rings, 7)) == [1, 7, 15]
    chip = chips()[0]  # which waits on ring 1 for the vectors of the other
    chip.begin(link(passing_program(), SPEC), 0)
    pair = Rings.allocate(2)
    run_chips([chip], pair, sleeps=1)
    assert circle(pair, 3) == [3]


def test_whose_ring_is_full_wakes_its_reader_who_then_waits_for_one_ring_only() -> None:
    rings = Rings.allocate(16, 4)
    rings.counts[0, TAIL] = 4  # full, and its sender waits for room before it serves ring 3
    run_chips([receiver([3, 0])], rings, sleeps=1)
    assert circle(rings, 7) == [7]
    chip, pair = chips()[0], Rings.allocate(2, 4)
    chip.begin(link(passing_program(), SPEC), 0)
    asleep_at(pair.counts, [1], [99])
    assert run_chips([chip], pair, sleeps=1) == [Status.WAIT_SEND]
    assert pair.counts[0, TAIL] == 4 and pair.counts[0, RECEIVER + WORD] == 1


@pytest.mark.parametrize("taken", [1, 2, 3, 4])
def test_room_is_wanted_by_the_own_count(taken: int) -> None:
    """What was taken since the ring was found full is room, and never more can be wanted."""
    chip, rings = chips()[0], Rings.allocate(2, 4)
    chip.begin(link(passing_program(), SPEC), 0)
    assert run_chips([chip], rings) == [Status.WAIT_SEND]
    rings.counts[0, HEAD] = taken
    codes = np.array([WAIT_SEND], np.int64)
    assert sleep(chip._frame.reshape(1, -1), codes, rings.counts, 4) == (taken >= 2)


def test_a_ring_of_one_vector_is_slept_for() -> None:
    rings = Rings.allocate(16, 1)
    run_chips([receiver([3], vectors=3)], rings, sleeps=1)
    assert circle(rings, 7) == [7] and rings.counts[3, RECEIVER + DOOR] == 7
    pair, rings = chips(), Rings.allocate(2, 1)
    halves = [passing_program().blocks[:2], passing_program().blocks[2:]]
    for chip, blocks in zip(pair, halves, strict=True):
        chip.begin(link(Program(blocks, [], []), SPEC), 0)
    assert ended(pair, rings)


def test_who_is_woken_for_nothing_all_the_time_gives_up() -> None:
    """A stranger writes that it is awake, as fast as it can."""
    chip, rings = receiver([0]), Rings.allocate(16)
    run_chips([chip], rings, sleeps=1)
    over = Event()

    def disturb() -> None:
        while not over.is_set():
            rings.counts[0, RECEIVER + WORD] = 1

    stranger = Thread(target=disturb)
    stranger.start()
    try:
        assert run_chips([chip], rings, sleeps=sys.maxsize) == [Status.WAIT_RECEIVE]
    finally:
        over.set()
        stranger.join()


def test_no_more_is_wanted_than_a_ring_has_room_for() -> None:
    rings = Rings.allocate(16, 4)
    run_chips([receiver([3, 0], vectors=3)], rings, sleeps=1)
    assert sorted(circle(rings, 7)) == [1, 7]
    rings = Rings.allocate(16, 4)
    run_chips([receiver([3, 3, 0], vectors=3)], rings, sleeps=1)
    assert circle(rings, 7) == [7]


def ended(pair: Sequence[Chip], rings: Rings) -> bool:
    """Both run in a thread each, as two processes would; whether they came to their ends."""

    def run(chip: Chip) -> None:
        for _ in range(250):  # looks about after sleeps in vain
            if run_chips([chip], rings, sleeps=sys.maxsize) == [Status.DONE]:
                done.append(chip)
                return

    done: list[Chip] = []
    threads = [Thread(target=run, args=(chip,)) for chip in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(done) == len(pair)


def test_two_that_wait_for_each_other_compute_what_one_does() -> None:
    linked = link(passing_program(), SPEC)
    alone, own = chips(), Rings.allocate(2)
    pair, rings = chips(), Rings.allocate(2)
    for launch in range(20):
        for chip in (*alone, *pair):
            chip.begin(linked, launch)
        run_chips(alone, own)
        assert ended(pair, rings)
    for one, two in zip(alone, pair, strict=True):
        assert (one.digest_sums == two.digest_sums).all()
        assert (one.sram[43] == two.sram[43]).all()


def test_who_sends_more_than_a_ring_has_room_for_waits_and_goes_on() -> None:
    whole, pair, rings = passing_program(), chips(), Rings.allocate(2, 2)
    halves = [whole.blocks[:2], whole.blocks[2:]]
    for launch in range(5):
        for chip, blocks in zip(pair, halves, strict=True):
            chip.begin(link(Program(blocks, [], [], whole.cycles), SPEC), launch)
        assert ended(pair, rings)
        assert (received(pair[1]) == pair[0].read_words(43, 0, VECTORS)).all()
