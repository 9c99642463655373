"""Node wiring and the compiled collectives, run on the engine against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from chip.checker import check
from chip.engine import Chip, Rings, Status
from chip.isa import Op
from chip.linking import link
from chip.scheduling import Place
from chip.spec import ChipSpec
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
    rings = Rings.allocate(2 * len(cables))
    machines = [Chip(SPEC, c) for c in range(chips)]
    for c, chip in enumerate(machines):
        wire(chip, cables)
        _put(chip, done.source, data[c])
        chip.begin(link(done.programs[c], SPEC), 0)
    pending = list(machines)
    for _ in range(1000):
        pending = [chip for chip in pending if chip.run(rings) != Status.DONE]
        if not pending:
            break
    assert not pending
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
