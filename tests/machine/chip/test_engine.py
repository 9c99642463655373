"""Small hand-written programs through the linker and the fast executor, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chip.digest import mix_effect, scatter_address
from chip.engine import Chip, Rings, Status
from chip.faults import LockstepViolation, ProgramFault
from chip.isa import AccMode, Op, drive_position, sample_position
from chip.linking import LinkedProgram, link
from chip.program import Program, new_blocks
from chip.spec import ChipSpec

SPEC = ChipSpec()
E, W = 0, 32
ALU = 88


def program(
    rows: list[dict[str, Any]],
    gangs: list[tuple[int, ...]] | None = None,
    maps: list[Any] | None = None,
) -> Program:
    blocks = new_blocks(len(rows))
    for i, row in enumerate(rows):
        for name, value in row.items():
            blocks[i][name] = value
    return Program(blocks, gangs or [], maps or [], 5000)


def hops(producer: int, consumer: int, stream: int) -> int:
    """Cycles between driving ``stream`` at one queue and sampling it at another."""
    distance = sample_position(consumer, stream) - drive_position(producer, stream)
    return distance if stream < 32 else -distance


def run(p: Program, chip: Chip | None = None, **options: Any) -> Chip:
    chip = chip or Chip(SPEC, 0)
    chip.begin(link(p, SPEC, **options), 0)
    assert chip.run() == Status.DONE
    return chip


def as_bytes(values: np.ndarray) -> np.ndarray:
    """Byte rows [width, 320] of one 320-lane vector."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(320, -1).T.copy()


def word_of(rows: np.ndarray, dtype: Any) -> np.ndarray:
    """The 320-lane vector of byte rows [width, 320]."""
    return np.ascontiguousarray(rows.T).view(dtype).reshape(320)


def stored(chip: Chip, slices: range, address: int, dtype: Any) -> np.ndarray:
    return word_of(np.stack([chip.sram[s, address] for s in slices]), dtype)


RNG = np.random.default_rng(7)


def unary_chain(ops: list[tuple[int, dict[str, Any]]], x: np.ndarray) -> Chip:
    """West slices 0-3 -> ALU chain 0, 1, ... -> east slices 0-3 (queues 44-47), as SG4 0."""
    chip = Chip(SPEC, 0)
    for i, row in enumerate(as_bytes(x)):
        chip.sram[i, 5] = row
    t = 10 + 1 + hops(0, ALU, E)
    rows: list[dict[str, Any]] = [
        {"cycle": 10, "op": Op.READ, "gang": 0, "dsg": 1, "a": 5, "out": E}
    ]
    for k, (op, extra) in enumerate(ops):
        row = {"cycle": t + 3 * k, "queue": ALU + k, "op": op, "w0": 4}
        row["s0"] = E if k == 0 else 64 + k - 1
        if k == len(ops) - 1:
            row |= {"out": E, "wo": 4}
        rows.append(row | extra)
    end = t + 3 * (len(ops) - 1) + 7 + hops(ALU, 44, E)
    rows.append({"cycle": end, "op": Op.WRITE, "gang": 1, "dsg": 1, "a": 9, "s0": E})
    return run(program(rows, [(0, 1, 2, 3), (44, 45, 46, 47)]), chip)


def test_read_alu_write() -> None:
    x = RNG.standard_normal(320).astype(np.float32)
    imm = int(np.float32(2.5).view(np.int32))
    chip = unary_chain([(Op.MUL_F32, {"s1": 81, "imm": imm})], x)
    np.testing.assert_array_equal(stored(chip, range(44, 48), 9, np.float32), x * np.float32(2.5))


def test_chained_alus() -> None:
    x = RNG.standard_normal(320).astype(np.float32)
    x[3] = np.nan
    one = int(np.float32(1).view(np.int32))
    chip = unary_chain([(Op.ADD_F32, {"s1": 81, "imm": one}), (Op.NEG_F32, {}), (Op.RELU, {})], x)
    expected = np.maximum(-(x + np.float32(1)), np.float32(0))
    got = stored(chip, range(44, 48), 9, np.float32)
    np.testing.assert_array_equal(np.delete(got, 3), np.delete(expected, 3))
    assert got.view(np.uint32)[3] == 0x7FC00000


def test_a_byte_goes_to_the_first_word_of_the_first_slice() -> None:
    """Row 0 of the machine's memory is a row like any other."""
    rows = [
        {"cycle": 10, "queue": ALU, "op": Op.MOV, "s0": 81, "imm": 7, "out": W, "wo": 1},
        {"cycle": 17 + hops(ALU, 0, W), "queue": 0, "op": Op.WRITE, "a": 0, "s0": W},
    ]
    chip = run(program(rows))
    assert chip.sram[0, 0].tolist() == [7] * 320


def test_a_queue_that_is_never_released_is_named() -> None:
    """By the linker; the checker, which finds it first, is not asked here."""
    with pytest.raises(ProgramFault, match="SYNC is never released") as caught:
        link(program([{"cycle": 4, "queue": 5, "op": Op.SYNC}]), SPEC)
    assert caught.value.queue == 5


def test_self_accumulates_every_third_cycle() -> None:
    chip = Chip(SPEC, 0)
    chip.sram[0, 0:4] = RNG.integers(0, 256, (4, 320), np.uint8)
    t = 11 + hops(0, ALU, E)
    chip = run(
        program(
            [
                {"cycle": 10, "queue": 0, "op": Op.READ, "n1": 4, "dc1": 3, "da1": 1, "out": E},
                {"cycle": t, "queue": ALU, "op": Op.MOV, "s0": E, "w0": 1},
                {
                    "cycle": t + 3,
                    "queue": ALU,
                    "op": Op.ADD_I32,
                    "n1": 3,
                    "dc1": 3,
                    "s0": E,
                    "w0": 1,
                    "s1": 80,
                    "out": E + 4,
                    "wo": 2,
                },
                {
                    "cycle": t + 9 + 7 + hops(ALU, 48, E),
                    "op": Op.WRITE,
                    "gang": 0,
                    "dsg": 1,
                    "a": 1,
                    "s0": E + 4,
                },
            ],
            [(48, 49)],
        ),
        chip,
    )
    total = chip.sram[0, 0:4].astype(np.uint16).sum(axis=0, dtype=np.uint16)
    np.testing.assert_array_equal(stored(chip, range(48, 50), 1, np.uint16), total)


def matmul(m: int, wide: bool) -> tuple[Program, Any, Any]:
    """Two activations on plane 0 (and 1): weights of west slices 0-15 (and 16-31) at word 0..m.

    Activations at words 100, 101 of slice 40 (and 41); int32 or fp32 sums to east slices 0-3.
    """
    gangs: list[tuple[int, ...]] = [tuple(range(16)), tuple(range(16, 32)), (40, 41)]
    gangs.append((44, 45, 46, 47))
    rows: list[dict[str, Any]] = []
    for plane in range(2 if wide else 1):
        q, out = 104 + 2 * plane, W + 16 * plane
        base = 16 * plane
        start = 50 - hops(base, q, out) - 1
        rows += [
            {
                "cycle": start,
                "op": Op.READ,
                "gang": plane,
                "dsg": 1,
                "n1": m,
                "dc1": 1,
                "da1": 1,
                "out": out,
            },
            {"cycle": 50, "queue": q, "op": Op.LW, "n1": m, "dc1": 1, "da1": 1, "s0": out},
            {"cycle": 50 + m, "queue": q, "op": Op.IW, "a": m},
        ]
    t = 50 + m + 3
    step = 2 if wide else 1
    act = {"n1": 2, "dc1": step}
    read = t - hops(40, 105, W) - 1
    rows.append(
        {"cycle": read, "op": Op.READ, "gang": 2, "dsg": 1, "a": 100, "da1": 1, "out": W} | act
    )
    rows.append({"cycle": t, "queue": 105, "op": Op.ABC, "s0": W, "w0": step} | act)
    rows.append(
        {
            "cycle": t + 13,
            "queue": 105,
            "op": Op.ACC,
            "a": 7,
            "da1": 1,
            "mode": AccMode.SET_EMIT,
            "out": E,
        }
        | act
    )
    end = t + 13 + 31 + hops(105, 44, E)
    rows.append(
        {"cycle": end, "op": Op.WRITE, "gang": 3, "dsg": 1, "a": 2, "da1": 1, "s0": E} | act
    )
    return program(rows, gangs), None, None


@pytest.mark.parametrize("m", [20, 3])
def test_matmul_int8(m: int) -> None:
    p, _, _ = matmul(m, wide=False)
    chip = Chip(SPEC, 0)
    weights = RNG.integers(-128, 128, (16 * m, 320)).astype(np.int8)
    for c in range(16 * m):
        chip.sram[c % 16, c // 16] = weights[c].view(np.uint8)
    acts = RNG.integers(-128, 128, (2, 320)).astype(np.int8)
    chip.sram[40, 100:102] = acts.view(np.uint8)
    linked = link(p, SPEC)
    assert len(linked.table) <= 4  # references cost nothing; ACC and WRITE remain
    run(p, chip)
    for k in range(2):
        expected = np.zeros(320, np.int32)
        expected[: 16 * m] = weights.astype(np.int32) @ acts[k].astype(np.int32)
        np.testing.assert_array_equal(stored(chip, range(44, 48), 2 + k, np.int32), expected)


@pytest.mark.parametrize("scale", [1.0, 6e4, 1e-6])
def test_matmul_fp16(scale: float) -> None:
    m = 4
    p, _, _ = matmul(m, wide=True)
    chip = Chip(SPEC, 0)
    weights = (RNG.uniform(-1, 1, (16 * m, 320)) * scale).astype(np.float16)
    acts = (RNG.uniform(-1, 1, (2, 320)) * scale).astype(np.float16)
    weights[5, 160:] = -weights[5, :160]  # cancels exactly with a symmetric activation
    acts[1, 160:] = acts[1, :160]
    weights[6, 17] = np.inf
    for c in range(16 * m):
        low, high = as_bytes(weights[c])
        chip.sram[c % 16, c // 16] = low
        chip.sram[16 + c % 16, c // 16] = high
    for k in range(2):
        chip.sram[40, 100 + k], chip.sram[41, 100 + k] = as_bytes(acts[k])
    run(p, chip)
    fixed = np.vectorize(lambda v: int(float(v) * 2**24), otypes=[object])
    finite = np.where(np.isfinite(weights), weights, 0)
    exact = fixed(finite) @ fixed(acts).T  # integers in units of 2^-48
    for k in range(2):
        expected = np.zeros(320, np.float32)
        expected[: 16 * m] = [_round_f32(int(v)) for v in exact[:, k]]
        expected[6] = np.nan
        got = stored(chip, range(44, 48), 2 + k, np.float32)
        np.testing.assert_array_equal(got, expected)
        assert got.view(np.uint32)[6] == 0x7FC00000
    assert stored(chip, range(44, 48), 3, np.uint32)[5] == 0


def test_one_plane_of_a_pair_is_reloaded_between_activations() -> None:
    """Between two fp16 activations of one block, the high bytes or the low ones alone."""
    m, later = 2, 60
    for plane in range(2):
        p, _, _ = matmul(m, wide=True)
        rows = [{name: block[name] for name in block.dtype.names} for block in p.blocks]
        for row in rows:
            if row["queue"] == 105 or row["op"] == Op.WRITE or row["gang"] == 2:
                row["dc1"] = later
        q, out, load = 104 + 2 * plane, W + 16 * plane, 50 + m + 3 + 15
        read = load - hops(16 * plane, q, out) - 1
        again = {"n1": m, "dc1": 1, "da1": 1}
        rows += [
            {"cycle": read, "op": Op.READ, "gang": plane, "dsg": 1, "a": 50, "out": out} | again,
            {"cycle": load, "queue": q, "op": Op.LW, "s0": out} | again,
            {"cycle": load + m, "queue": q, "op": Op.IW, "a": m},
        ]
        chip = Chip(SPEC, 0)
        weights = RNG.uniform(-1, 1, (2, 16 * m, 320)).astype(np.float16)
        halves = weights.view(np.uint8).reshape(2, 16 * m, 320, 2)
        halves[1, ..., 1 - plane] = halves[0, ..., 1 - plane]
        acts = RNG.uniform(-1, 1, (2, 320)).astype(np.float16)
        for c in range(16 * m):
            for half in range(2):
                for word in range(2):
                    address = 50 * word + c // 16
                    chip.sram[16 * half + c % 16, address] = halves[word, c, :, half]
        for k in range(2):
            chip.sram[40, 100 + k], chip.sram[41, 100 + k] = as_bytes(acts[k])
        run(program(rows, p.gangs), chip)
        for k in range(2):
            expected = weights[k].astype(np.float64) @ acts[k].astype(np.float64)
            found = stored(chip, range(44, 48), 2 + k, np.float32)[: 16 * m]
            assert np.allclose(found, expected, atol=1e-3), (plane, k)


def _round_f32(value: int) -> np.float32:
    """value * 2^-48 rounded once, nearest even."""
    size = abs(value)
    shift = max(0, size.bit_length() - 24)
    kept, rest = size >> shift, size & ((1 << shift) - 1)
    half = 1 << shift >> 1
    kept += shift > 0 and (rest > half or (rest == half and kept & 1 == 1))
    return np.float32(np.copysign(float(kept) * 2.0 ** (shift - 48), value if size else 1))


def test_distribute() -> None:
    chip = Chip(SPEC, 0)
    chip.sram[44:46, 0] = RNG.integers(0, 256, (2, 320), np.uint8)
    lanes = RNG.integers(0, 20, 320).astype(np.uint8)
    chip.sram[46, 0] = lanes
    q = 120  # east distributor 0
    t = 11 + hops(44, q, E)
    run(
        program(
            [
                {"cycle": 10, "op": Op.READ, "gang": 0, "dsg": 1, "out": E},
                {
                    "cycle": t,
                    "queue": q,
                    "op": Op.DISTRIBUTE,
                    "s0": E,
                    "w0": 2,
                    "s1": E + 2,
                    "out": W + 4,
                },
                {
                    "cycle": t + 2 + hops(q, 48, W + 4),
                    "op": Op.WRITE,
                    "gang": 1,
                    "dsg": 1,
                    "s0": W + 4,
                },
            ],
            [(44, 45, 46), (48, 49)],
        ),
        chip,
    )
    base = np.arange(320) // 16 * 16
    for j in range(2):
        source = chip.sram[44 + j, 0]
        expected = np.where(lanes < 16, source[np.minimum(base + lanes, 319)], 0)
        np.testing.assert_array_equal(chip.sram[48 + j, 0], expected)


def test_permute_shift_transpose_rotate() -> None:
    chip = Chip(SPEC, 0)
    data = RNG.integers(0, 256, (16, 320), np.uint8)
    chip.sram[44:60, 0] = data
    order = RNG.permutation(320).astype(np.int16)
    rows: list[dict[str, Any]] = []
    cycle = 10
    units = [
        (126, Op.PERMUTE, 52, 1, {"imm": 0}),
        (126, Op.SHIFT, 28, 1, {"imm": 5}),
        (126, Op.SHIFT, 28, 1, {"imm": -7}),
        (127, Op.ROTATE, 4, 9, {"imm": 3}),
        (124, Op.TRANSPOSE, 4, 16, {}),
    ]
    for i, (q, op, latency, _, extra) in enumerate(units):
        t = cycle + 1 + hops(44, q, E)
        end = t + latency + hops(q, 60, W)
        rows += [
            {"cycle": cycle, "op": Op.READ, "gang": 0, "dsg": 1, "out": E},
            {"cycle": t, "queue": q, "op": op, "s0": E, "out": W} | extra,
            {"cycle": end, "op": Op.WRITE, "gang": 1 + i, "dsg": 1, "s0": W, "a": 100 + i},
        ]
        cycle += 200
    gangs = [tuple(range(44, 60))] + [tuple(range(60, 60 + u[3])) for u in units]
    run(program(rows, gangs, [order]), chip)
    np.testing.assert_array_equal(chip.sram[60, 100], data[0][order])
    np.testing.assert_array_equal(chip.sram[60, 101], np.r_[np.zeros(5), data[0][:-5]])
    np.testing.assert_array_equal(chip.sram[60, 102], np.r_[data[0][7:], np.zeros(7)])
    squares = data[0].reshape(20, 16)[:, :9].reshape(20, 3, 3)
    for i in range(3):
        for j in range(3):
            expected = np.zeros((20, 16), np.uint8)
            expected[:, :9] = np.roll(squares, (-i, -j), (1, 2)).reshape(20, 9)
            np.testing.assert_array_equal(chip.sram[60 + 3 * i + j, 103], expected.reshape(-1))
    cube = data.reshape(16, 20, 16)
    for i in range(16):
        np.testing.assert_array_equal(chip.sram[60 + i, 104].reshape(20, 16), cube[:, :, i].T)


def scatter_gather(offsets: np.ndarray, hi: int) -> tuple[Chip, np.ndarray]:
    """Scatter a row to slice 48 around word 16, gather it back from there to slice 60."""
    chip = Chip(SPEC, 0)
    payload = RNG.integers(0, 256, 320, np.uint8)
    chip.sram[44, 0] = payload
    maps = np.zeros((2, 20, 16), np.uint8)
    maps[0, :, 0], maps[1, :, 0] = offsets & 255, offsets >> 8
    chip.sram[45:47, 0] = maps.reshape(2, 320)
    t = 11 + hops(44, 48, E)
    again = 60
    back = again + 1 + hops(44, 48, E)
    rows = [
        {"cycle": 10, "op": Op.READ, "gang": 0, "dsg": 1, "out": E + 1},
        {
            "cycle": t,
            "queue": 48,
            "op": Op.SCATTER,
            "a": 16,
            "lo": 16,
            "hi": hi,
            "s0": E + 1,
            "s1": E + 2,
        },
        {"cycle": again, "op": Op.READ, "gang": 0, "dsg": 1, "out": E + 1},
        {
            "cycle": back,
            "queue": 48,
            "op": Op.GATHER,
            "a": 16,
            "lo": 16,
            "hi": hi,
            "s1": E + 2,
            "out": E + 8,
        },
        {"cycle": back + 1 + hops(48, 60, E), "queue": 60, "op": Op.WRITE, "s0": E + 8},
    ]
    run(program(rows, [(44, 45, 46)]), chip)
    return chip, payload


def test_scatter_then_gather() -> None:
    offsets = RNG.integers(0, 300, 20)
    chip, payload = scatter_gather(offsets, 400)
    np.testing.assert_array_equal(chip.sram[60, 0], payload)
    for k in range(20):
        row = chip.sram[48, 16 + offsets[k], 16 * k : 16 * k + 16]
        np.testing.assert_array_equal(row, payload[16 * k : 16 * k + 16])


def test_offset_outside_the_window_faults() -> None:
    with pytest.raises(ProgramFault) as caught:
        scatter_gather(np.full(20, 300), 200)
    assert caught.value.code == "offset"
    assert caught.value.queue == 48


def test_overwritten_word_is_copied_at_read_time() -> None:
    """Slices 0 and 1 swap words that are read before either write and used after."""
    chip = Chip(SPEC, 0)
    chip.sram[0, 0], chip.sram[44, 0] = 1, 2
    rows = [
        {"cycle": 20, "queue": 0, "op": Op.READ, "n1": 3, "dc1": 40, "out": E},
        {"cycle": 20, "queue": 44, "op": Op.READ, "n1": 3, "dc1": 40, "out": W},
        {"cycle": 21 + hops(0, 44, E), "queue": 44, "op": Op.WRITE, "n1": 3, "dc1": 40, "s0": E},
        {"cycle": 21 + hops(44, 0, W), "queue": 0, "op": Op.WRITE, "n1": 3, "dc1": 40, "s0": W},
    ]
    run(program(rows), chip)
    assert chip.sram[0, 0, 0] == 2
    assert chip.sram[44, 0, 0] == 1


def pair_programs() -> tuple[Program, Program, int]:
    """Chip 0 sends five words over east link 0; chip 1 stores them."""
    send = 11 + hops(44, 136, E)
    receive = send + SPEC.send_to_receive_cycles
    many = {"n1": 5, "dc1": 24}
    a = program(
        [
            {"cycle": 10, "queue": 44, "op": Op.READ, "da1": 1, "out": E} | many,
            {"cycle": send, "queue": 136, "op": Op.SEND, "s0": E} | many,
        ]
    )
    b = program(
        [
            {"cycle": receive, "queue": 128, "op": Op.RECEIVE, "out": E} | many,
            {
                "cycle": receive + 1 + hops(128, 43, E),
                "queue": 43,
                "op": Op.WRITE,
                "da1": 1,
                "s0": E,
            }
            | many,
        ]
    )
    return a, b, receive


def test_two_chips_exchange() -> None:
    pa, pb, receive = pair_programs()
    rings = Rings.allocate(2, 2)
    a, b = Chip(SPEC, 0), Chip(SPEC, 1)
    none = [-1] * 16
    a.wire([*none[:8], 0, *none[9:]], none)
    b.wire(none, [0, *none[1:]])
    a.sram[44, :5] = RNG.integers(0, 256, (5, 320), np.uint8)
    a.begin(link(pa, SPEC), 3)
    b.begin(link(pb, SPEC), 3)
    assert b.run(rings) == Status.WAIT_RECEIVE
    assert b.waiting == (128, receive)
    assert a.run(rings) == Status.WAIT_SEND
    for _ in range(4):
        last_b = b.run(rings)
        last_a = a.run(rings)
    assert (last_a, last_b) == (Status.DONE, Status.DONE)
    np.testing.assert_array_equal(b.sram[43, :5], a.sram[44, :5])
    send = receive - SPEC.send_to_receive_cycles
    sums = mix_effect(a.sram[44, :5], 0, 3, send + 24 * np.arange(5), Op.SEND, 136, np.full(5, 8))
    np.testing.assert_array_equal(a.digest_sums, sums)


def test_a_late_vector_is_a_lockstep_violation() -> None:
    pa, pb, _ = pair_programs()
    pa.blocks["cycle"] += 1
    rings = Rings.allocate(1)
    a, b = Chip(SPEC, 0), Chip(SPEC, 1)
    none = [-1] * 16
    a.wire([*none[:8], 0, *none[9:]], none)
    b.wire(none, [0, *none[1:]], [0, *none[1:]])
    a.begin(link(pa, SPEC), 0)
    b.begin(link(pb, SPEC), 0)
    assert a.run(rings) == Status.DONE
    with pytest.raises(LockstepViolation, match=r"chip 1.*SEND of chip 0"):
        b.run(rings)


def test_window_stops_before_a_cycle() -> None:
    chip = Chip(SPEC, 0)
    rows = [{"cycle": 100 * k, "queue": 0, "op": Op.READ, "a": k, "out": E} for k in range(3)] + [
        {"cycle": 100 * k + 1 + hops(0, 44, E), "queue": 44, "op": Op.WRITE, "a": k, "s0": E}
        for k in range(3)
    ]
    chip.begin(link(program(rows), SPEC), 0)
    assert chip.run(until_cycle=100) == Status.WINDOW
    assert chip.clock == 101 + hops(0, 44, E)
    assert chip.run() == Status.DONE
    assert chip.retired_cycles == 5000


def test_missing_and_wanted_producers() -> None:
    rows = [
        {"cycle": 10, "queue": 0, "op": Op.READ, "out": E, "tag": 4},
        {"cycle": 11 + hops(0, 44, E), "queue": 44, "op": Op.WRITE, "s0": E, "want0": 4},
    ]
    link(program(rows), SPEC)
    rows[1]["want0"] = 5
    with pytest.raises(ProgramFault) as caught:
        link(program(rows), SPEC)
    assert caught.value.code == "want"
    rows[1]["cycle"] += 1
    with pytest.raises(ProgramFault) as caught:
        link(program(rows), SPEC)
    assert caught.value.code == "missing"


def test_splitting_changes_neither_memory_nor_digest() -> None:
    rows = [
        {"cycle": 10, "queue": 0, "op": Op.READ, "n1": 40, "dc1": 1, "da1": 1, "out": E},
        {
            "cycle": 11 + hops(0, 44, E),
            "queue": 44,
            "op": Op.WRITE,
            "n1": 40,
            "dc1": 1,
            "da1": 1,
            "s0": E,
        },
        {
            "cycle": 30,
            "queue": 44,
            "op": Op.READ,
            "n1": 40,
            "dc1": 1,
            "da1": 1,
            "a": 4096,
            "out": E + 1,
        },
        {
            "cycle": 31 + hops(44, 60, E + 1),
            "queue": 60,
            "op": Op.WRITE,
            "n1": 40,
            "dc1": 1,
            "da1": 1,
            "s0": E + 1,
        },
    ]
    p = program(rows)
    data = RNG.integers(0, 256, (40, 320), np.uint8)
    seen: list[tuple[LinkedProgram, Chip]] = []
    for span in (1000, 7, 1):
        chip = Chip(SPEC, 0)
        chip.sram[0, :40] = data
        chip.sram[44, 4096:4136] = data[::-1]
        seen.append((link(p, SPEC, max_span_cycles=span), run(p, chip, max_span_cycles=span)))
    assert [len(linked.table) for linked, _ in seen] == [2, 12, 80]
    for _, chip in seen[1:]:
        np.testing.assert_array_equal(chip.sram[[44, 60], :64], seen[0][1].sram[[44, 60], :64])
        np.testing.assert_array_equal(chip.digest_sums, seen[0][1].digest_sums)


def test_scatter_digest_covers_the_addresses() -> None:
    offsets = np.arange(20)
    chip, payload = scatter_gather(offsets, 400)
    t = 11 + hops(44, 48, E)
    end = 61 + hops(44, 48, E) + 1 + hops(48, 60, E)
    address = scatter_address(16 + offsets)
    sums = mix_effect(payload[None], 0, 0, t, Op.SCATTER, 48, np.array([address], np.uint64))
    sums += mix_effect(chip.sram[60, :1], 0, 0, end, Op.WRITE, 60, 0)
    np.testing.assert_array_equal(chip.digest_sums, sums)
