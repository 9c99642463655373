"""Node wiring and the compiled collectives, run on the engine against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from chip.checker import check
from chip.engine import Chip, Rings, Status
from chip.isa import Op
from chip.linking import link
from chip.program import Program
from chip.scheduling import Place, Schedule, program_of
from chip.spec import ChipSpec
from interconnect.collectives import (
    RECEIVED_QUADS,
    ReducePlaces,
    SharePlaces,
    all_reduce_cycles,
    all_reduce_in_shares,
    exchange,
    reduce,
    scatter_offsets,
    share_of,
    word_order,
)
from interconnect.collectives.node import OPERATIONS, compile_collective
from interconnect.vectors import check_fabric
from interconnect.wiring import link_to, node_cables, wire

SPEC = ChipSpec()


def test_a_node_of_eight_has_28_cables_and_seven_links_a_chip() -> None:
    """ISCA'22: 28 internal cables, 7 local links per chip."""
    cables = node_cables(8)
    assert len(cables) == 28
    for chip in range(8):
        ends = [(a, la) for a, la, _, _ in cables] + [(b, lb) for _, _, b, lb in cables]
        own = [lk for c, lk in ends if c == chip]
        assert len(own) == len(set(own)) == 7
    assert {a ^ b for a, la, b, lb in cables if la == lb == link_to(a ^ b)} == set(range(1, 8))


def _put(chip: Chip, place: Place, values: np.ndarray) -> None:
    planes = np.moveaxis(values.view(np.uint8).reshape(*values.shape, 4), -1, 0)
    for queue, plane in zip(place.queues, planes, strict=True):
        chip.write_words(queue, place.address, np.ascontiguousarray(plane))


def _get(chip: Chip, place: Place, words: int, dtype: type) -> np.ndarray:
    planes = np.stack([chip.read_words(q, place.address, words) for q in place.queues])
    return np.ascontiguousarray(np.moveaxis(planes, 0, -1)).view(dtype)[..., 0]


def _tree(values: list[np.ndarray]) -> np.ndarray:
    """The fixed tree in chip order."""
    while len(values) > 1:
        values = [a + b for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _run(machines: list[Chip], programs: list[Program]) -> None:
    """One launch of a node of chips, each with its program."""
    cables = node_cables(len(machines))
    rings = Rings.allocate(2 * len(cables))
    for chip, program in zip(machines, programs, strict=True):
        wire(chip, cables)
        chip.begin(link(program, SPEC), 0)
    pending = list(machines)
    for _ in range(1000):
        pending = [chip for chip in pending if chip.run(rings) != Status.DONE]
        if not pending:
            return
    raise AssertionError("the chips wait for each other")


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("chips", [2, 4, 8])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_collective_equals_numpy(operation: str, chips: int, dtype: type) -> None:
    words = 5
    add = Op.ADD_F32 if dtype is np.float32 else Op.ADD_I32
    done = compile_collective(operation, chips, words, SPEC, add=add, root=1)
    for program in done.programs:
        assert [str(f) for f in check(program, SPEC)] == []
    cables = node_cables(chips)
    assert check_fabric(done.programs, range(chips), cables, SPEC) == []
    rng = np.random.default_rng(chips)
    count = words * (chips if operation == "reduce-scatter" else 1)
    data = [rng.integers(-(2**31), 2**31, (count, 320)).astype(np.int32) for _ in range(chips)]
    if dtype is np.float32:
        data = [(d * 1e-6).astype(np.float32) for d in data]
    machines = [Chip(SPEC, c) for c in range(chips)]
    for c, chip in enumerate(machines):
        _put(chip, done.source, data[c])
    _run(machines, done.programs)
    with np.errstate(over="ignore"):
        total = _tree(list(data))
    for c, chip in enumerate(machines):
        if operation == "all-reduce":
            assert np.array_equal(_get(chip, done.result, words, dtype), total)
        elif operation == "reduce-scatter":
            own = total[c * words : (c + 1) * words]
            assert np.array_equal(_get(chip, done.result, words, dtype), own)
        elif operation == "all-gather":
            for k, place in done.received.items():
                assert np.array_equal(_get(chip, place, words, dtype), data[c ^ k])
        elif c != 1:
            assert np.array_equal(_get(chip, done.result, words, dtype), data[1])


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    ("chips", "words", "share", "ascending"),
    [
        (8, 26, 3, True),
        (8, 13, 1, True),
        (8, 8, 1, True),
        (4, 13, 2, True),
        (2, 7, 3, True),
        (8, 26, 2, False),
        (4, 13, 2, False),
    ],
)
def test_sums_in_two_steps_are_those_of_one(
    chips: int, words: int, share: int, ascending: bool, alone: bool
) -> None:
    """One program for all chips; each adds its share of the words, and all get the tree's bits."""
    top = 2 * SPEC.words_per_bank - words
    partial, residual = Place((52, 53, 54, 55), 60), Place((44, 45, 46, 47), top)
    target = None if alone else Place((48, 49, 50, 51), 40)
    received = {k: Place(RECEIVED_QUADS[k], top) for k in range(1, chips)}
    shares = SharePlaces(share, Place((44, 45, 46, 47), 100), Place((4, 5), 7))
    places = ReducePlaces(partial, residual, received)
    schedule, ready = Schedule(), [150 * (word // 4) for word in range(words)]
    if not ascending:
        np.random.default_rng(chips).shuffle(ready)
    known, end, _ = all_reduce_in_shares(schedule, SPEC, chips, ready, places, shares, target, 27)
    at_last = all_reduce_in_shares(
        Schedule(), SPEC, chips, [max(ready)] * words, places, shares, target
    )
    assert max(ready) + SPEC.hop_cycles < known < end
    assert end < at_last[1] or not ascending
    table, _, gangs = schedule.blocks()
    program = program_of([table], gangs, end)
    assert [str(f) for f in check(program, SPEC)] == []
    assert check_fabric([program], [0] * chips, node_cables(chips), SPEC) == []
    rng = np.random.default_rng(words)
    data = [rng.normal(size=(words, 320)).astype(np.float32) for _ in range(chips)]
    x = rng.normal(size=(words, 320)).astype(np.float32)
    machines = [Chip(SPEC, c) for c in range(chips)]
    for c, chip in enumerate(machines):
        _put(chip, partial, data[c][word_order(chips, c, share, words)])
        _put(chip, residual, x)
        offsets = np.array(scatter_offsets(chips, c))
        for byte, queue in enumerate(shares.map.queues):
            row = np.repeat((offsets[:, None] >> 8 * byte).astype(np.uint8), 320, axis=1)
            chip.write_words(queue, shares.map.address, row)
    _run(machines, [program] * chips)
    expected = _tree(list(data)) + (0 if alone else x)
    for chip in machines:
        assert np.array_equal(_get(chip, target or residual, words, np.float32), expected)


@pytest.mark.parametrize("chips", [4, 8])
def test_the_shorter_way_to_sum_is_taken(chips: int) -> None:
    """Where a share is chosen it is the soonest of all shares, within the estimate's error."""

    def cycles(words: int, share: int) -> int:
        received = {k: Place(RECEIVED_QUADS[k], 0) for k in range(1, chips)}
        places = ReducePlaces(Place((52, 53, 54, 55), 0), Place((44, 45, 46, 47), 0), received)
        schedule, target = Schedule(), Place((48, 49, 50, 51), 40)
        if not share:
            ready = exchange(schedule, SPEC, chips, words, 0, places)
            return reduce(schedule, SPEC, chips, words, ready, places, target=target)
        shares = SharePlaces(share, Place((44, 45, 46, 47), 100), Place((4, 5), 7))
        return all_reduce_in_shares(schedule, SPEC, chips, [0] * words, places, shares, target)[1]

    chosen = {words: share_of(SPEC, chips, words) for words in (1, 7, 13, 26)}
    assert chosen[1] == 0 and chosen[26] > 0
    for words, share in chosen.items():
        each = {other: cycles(words, other) for other in range(words // chips + 1)}
        assert each[share] <= min(each.values()) + 60
        assert abs(each[share] - all_reduce_cycles(SPEC, chips, words, share)) < 100


@pytest.mark.parametrize(
    ("operation", "chips", "words"),
    [("all-to-one", 8, 1), ("all-reduce", 3, 1), ("broadcast", 8, 0)],
)
def test_impossible_collectives_say_so(operation: str, chips: int, words: int) -> None:
    with pytest.raises(ValueError, match=r"known are|takes"):
        compile_collective(operation, chips, words, SPEC)


def test_calibration_row_13_packet_efficiency() -> None:
    """ISCA'22: 320 of 328 bytes are payload (97.5 %), 23.6 cycles per vector at 900 MHz."""
    assert round(320 / SPEC.packet_bytes, 4) == 0.9756
    assert float(SPEC.cycles_per_vector) == pytest.approx(23.616)
    program = compile_collective("all-gather", 8, 64, SPEC).programs[0]
    sends = program.blocks[program.blocks["op"] == Op.SEND]
    assert len(sends) == 7
    span = (sends["n1"] - 1) * sends["dc1"] + SPEC.send_spacing_cycles
    busy = sends["n1"] * float(SPEC.cycles_per_vector) / span
    assert np.all(busy > 0.98) and np.all(busy <= 1)
