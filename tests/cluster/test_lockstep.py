"""Chips in step without a model: two hand-written chips pass vectors both ways."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from threading import Timer
from time import perf_counter, thread_time

import numpy as np
import pytest

from chip.engine import Chip, Rings
from chip.isa import C2C_QUEUE, Op
from chip.linking import link
from chip.program import Program, new_blocks
from chip.spec import ChipSpec
from cluster.processes import MappingError, SharedMapping, chips_per_actor, unexpected_retirements
from cluster.processes.clock import VirtualClock
from cluster.processes.group import AbandonedError, MappedPeers, split_chips
from cluster.processes.mapping import MappingLayout
from interconnect.wiring import wire
from programs.running import Alone, StuckError, step_lookahead, step_windows, window_cycles

SPEC = ChipSpec()
CABLES = [(0, 0, 1, 0)]
VECTORS = 6


def passing_program() -> Program:
    """Read six words, send them on link 0, receive six and write them to other words."""
    blocks = new_blocks(4)
    slice_ = 43
    blocks["queue"] = (slice_, C2C_QUEUE, C2C_QUEUE, slice_)
    blocks["op"] = (Op.READ, Op.SEND, Op.RECEIVE, Op.WRITE)
    blocks["n1"] = VECTORS
    blocks["dc1"] = SPEC.send_spacing_cycles
    blocks["da1"] = (1, 0, 0, 1)
    blocks["a"] = (0, 0, 0, 4096)
    send = SPEC.read_cycles + 10
    receive = send + SPEC.send_to_receive_cycles
    blocks["cycle"] = (0, send, receive, receive + SPEC.receive_cycles + 10)
    blocks["out"] = (32, -1, 0, -1)
    blocks["s0"] = (-1, 32, -1, 0)
    blocks["wo"] = (1, 0, 1, 0)
    blocks["w0"] = (0, 1, 0, 1)
    return Program(blocks, [], [], receive + 200)


def chips() -> list[Chip]:
    pair = []
    for number in range(2):
        chip = Chip(SPEC, number)
        wire(chip, CABLES)
        rows = np.arange(VECTORS * 320, dtype=np.uint8).reshape(VECTORS, 320) + number
        chip.write_words(43, 0, rows.astype(np.uint8))
        pair.append(chip)
    return pair


def received(chip: Chip) -> np.ndarray:
    return chip.read_words(43, 4096, VECTORS)


@pytest.mark.parametrize("windows", [False, True])
def test_two_chips_pass_vectors(windows: bool) -> None:
    pair, rings = chips(), Rings.allocate(2)
    linked = link(passing_program(), SPEC)
    for launch in range(2):
        for chip in pair:
            chip.begin(linked, launch)
        if windows:
            step_windows(pair, rings, Alone(), window_cycles(SPEC), launch)
        else:
            step_lookahead(pair, rings, Alone())
    assert (received(pair[0]) == pair[1].read_words(43, 0, VECTORS)).all()
    assert (received(pair[1]) == pair[0].read_words(43, 0, VECTORS)).all()


def test_a_missing_vector_is_named() -> None:
    pair, rings = chips(), Rings.allocate(2)
    pair[0].begin(link(passing_program(), SPEC), 0)
    with pytest.raises(StuckError, match=r"chip 0 waits on c2c\[0\]"):
        step_lookahead(pair[:1], rings, Alone())


def _other_process(path: str, layout: MappingLayout, token: bytes, windows: bool) -> None:
    mapping = SharedMapping.attach(Path(path), layout, token)
    _run_mapped(1, mapping, windows)


def _run_mapped(number: int, mapping: SharedMapping, windows: bool) -> Chip:
    chip = chips()[number]
    peers = MappedPeers(number, mapping, None)
    linked = link(passing_program(), SPEC)
    for launch in range(3):
        chip.begin(linked, launch)
        if windows:
            step_windows([chip], mapping.rings(), peers, window_cycles(SPEC), launch)
        else:
            step_lookahead([chip], mapping.rings(), peers)
        sums = chip.digest_sums.astype(np.float32)
        assert len(peers.exchange(launch + 1, {number: sums})) == 2
    return chip


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.long
def test_two_processes_pass_vectors(windows: bool) -> None:
    layout = MappingLayout(processes=2, chips=2, values=4, rings=2)
    mapping = SharedMapping.create(layout)
    assert mapping.path is not None
    try:
        assert mapping.path.stat().st_mode & 0o777 == 0o600
        arguments = (str(mapping.path), layout, mapping.token, windows)
        other = multiprocessing.get_context("spawn").Process(target=_other_process, args=arguments)
        other.start()
        chip = _run_mapped(0, mapping, windows)
        other.join(60)
        assert other.exitcode == 0
    finally:
        mapping.unlink()
    assert (received(chip) == chips()[1].read_words(43, 0, VECTORS)).all()


def test_who_waits_for_a_run_that_was_given_up_ends() -> None:
    mapping = SharedMapping.private(MappingLayout(processes=2, chips=2, values=4, rings=2))
    chip = chips()[0]
    chip.begin(link(passing_program(), SPEC), 0)
    peers = MappedPeers(0, mapping, None)
    began = perf_counter()
    Timer(0.1, mapping.abandon).start()
    with pytest.raises(AbandonedError, match="given up: another process failed"):
        step_lookahead([chip], mapping.rings(), peers)
    assert perf_counter() >= began + 0.1


def _receiver(links: Sequence[int]) -> Chip:
    """Chip 0, which receives a vector each on ``links`` by the ring of that number."""
    blocks = new_blocks(len(links))
    blocks["op"] = Op.RECEIVE
    blocks["queue"] = [C2C_QUEUE + number for number in links]
    blocks["dc1"] = SPEC.send_spacing_cycles
    blocks["cycle"] = [SPEC.send_to_receive_cycles + 1000 * n for n in range(len(links))]
    blocks["out"] = 0
    chip = Chip(SPEC, 0)
    chip.wire([-1] * 16, list(range(16)))
    chip.begin(link(Program(blocks, [], []), SPEC), 0)
    return chip


@pytest.mark.parametrize("reverse", [False, True])
def test_chips_of_one_process_do_not_wake_each_other_for_ever(reverse: bool) -> None:
    """One waits for another process, the other for room in its ring to the first.

    Whatever else the thread has to do for its first chips takes no second time.
    """
    assert min(_seconds_of_waiting(reverse) for _ in range(3)) < 0.05


def _seconds_of_waiting(reverse: bool) -> float:
    """CPU seconds of a pair that nobody serves, until their run is given up."""
    layout = MappingLayout(processes=2, chips=2, values=4, rings=16, capacity=4)
    mapping = SharedMapping.private(layout)
    blocks = passing_program().blocks[:2]
    blocks["n1"] = 8
    sender = Chip(SPEC, 1)
    sender.wire([0] + [-1] * 15, [-1] * 16)
    sender.begin(link(Program(blocks, [], []), SPEC), 0)
    pair = [_receiver([3, 0]), sender]
    if reverse:
        pair.reverse()
    peers = MappedPeers(0, mapping, None)
    began, busy = perf_counter(), thread_time()
    Timer(0.1, mapping.abandon).start()
    with pytest.raises(AbandonedError):
        step_lookahead(pair, mapping.rings(), peers)
    assert perf_counter() >= began + 0.1
    return thread_time() - busy


def test_who_is_watched_tells_its_clock_after_every_sleep() -> None:
    mapping = SharedMapping.private(MappingLayout(processes=1, chips=2, values=4, rings=2))
    peers = MappedPeers(0, mapping, None)
    peers.begin([], None)
    assert peers.sleeps > 1 << 30
    mapping.watch()
    peers.begin([], None)
    assert peers.sleeps == 1


def test_mapping_of_another_run_is_refused(tmp_path: Path) -> None:
    layout = MappingLayout(processes=1, chips=1, values=4, rings=0)
    mapping = SharedMapping.create(layout, tmp_path)
    assert mapping.path is not None
    with pytest.raises(MappingError, match="another run"):
        SharedMapping.attach(mapping.path, layout, b"0" * 16)
    with pytest.raises(MappingError, match="share one host"):
        SharedMapping.attach(tmp_path / "none", layout, mapping.token)
    with open(mapping.path, "r+b") as file:
        file.write(b"LPUMAP1")  # the form without wakes
    with pytest.raises(MappingError, match="another run"):
        SharedMapping.attach(mapping.path, layout, mapping.token)
    mapping.unlink()
    assert not mapping.path.exists()


def test_mailbox_keeps_sequences_apart() -> None:
    mapping = SharedMapping.private(MappingLayout(processes=1, chips=2, values=4, rings=0))
    assert mapping.peek(1, 1) is None
    for sequence in (1, 2, 3):
        mapping.post(1, sequence, np.full(sequence, sequence, np.float32))
        seen = mapping.peek(1, sequence)
        assert seen is not None and seen.tolist() == [sequence] * sequence
        assert mapping.peek(1, sequence + 1) is None
        assert mapping.peek(0, sequence) is None


def test_virtual_clock_is_the_slowest_group() -> None:
    clock = VirtualClock(2)
    clock.report(0, 500, [7])
    assert clock.progress().cycle == 0 and clock.progress().tokens == (7,)
    clock.report(1, 300, [])
    assert clock.progress().cycle == 300
    assert unexpected_retirements(["a", "a"], {3: [10, 11]}, {"a": 10}) == [
        "chip 3 retired launch 1 (a) at cycle 11, predicted 10"
    ]


def test_packing() -> None:
    assert [list(r) for r in split_chips(8, 3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert chips_per_actor(2, 8) == 2 and chips_per_actor(8, 3) == 3
