"""The reference executor: what every opcode does, bit for bit, and every rule it enforces."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from chip.faults import ProgramFault
from chip.isa import ALU0, IMM, SELF, AccMode, Op, slice_position
from chip.reference.chip import ReferenceResult, run_together
from tests.stands.unit_bench import (
    ACTIVATIONS,
    ALU,
    EAST_SXM,
    SPEC,
    Bench,
    load,
    offsets,
    planes,
    vector,
    words,
)

NAN = 0x7FC00000


# ---- MEM ------------------------------------------------------------------------------------


def test_read_write_and_lifetime_of_sram() -> None:
    bench = Bench()
    data = vector(1)
    bench.feed(50, 3, 20, data)
    bench.add(Op.WRITE, 20, 50, a=9, s0=3)
    assert bench.run() == ReferenceResult(22, bench.run().digest_sums, 2)
    assert (bench.chip.sram[50, 9] == data).all()


def test_read_takes_the_word_as_it_is_when_the_write_lands() -> None:
    bench = Bench()
    old, new = vector(1), vector(2)
    bench.chip.sram[50, 9] = old
    bench.feed(50, 3, 20, new)
    bench.add(Op.WRITE, 20, 50, a=9, s0=3)
    bench.add(Op.READ, 19, 50, a=9, out=40)
    bench.add(Op.READ, 22, 50, a=9, out=41)
    before = bench.catch(50, 40, 19 + SPEC.read_cycles)
    after = bench.catch(50, 41, 22 + SPEC.read_cycles)
    bench.run()
    assert (bench.got(before) == old).all()
    assert (bench.got(after) == new).all()


def test_gather_takes_one_word_per_superlane() -> None:
    bench = Bench()
    pick = np.random.default_rng(3).integers(0, 3000, 20)
    bench.chip.sram[60, 4096:] = np.random.default_rng(4).integers(0, 256, (4096, 320))
    bench.feed(60, 6, 30, offsets(pick))
    bench.add(Op.GATHER, 30, 60, a=4100, s1=6, out=33, lo=4100, hi=7100)
    place = bench.catch(60, 33, 30 + SPEC.gather_cycles)
    table = bench.chip.sram[60].copy()
    bench.run()
    expected = np.concatenate([table[4100 + pick[k], 16 * k : 16 * k + 16] for k in range(20)])
    assert (bench.got(place)[0] == expected).all()


def test_scatter_puts_one_word_per_superlane() -> None:
    bench = Bench()
    pick = np.random.default_rng(5).integers(0, 700, 20)
    data = vector(6)
    bench.feed(60, 6, 30, offsets(pick))
    bench.feed(60, 9, 30, data)
    bench.add(Op.SCATTER, 30, 60, a=4200, s0=9, s1=6, lo=4200, hi=5000)
    expected = bench.chip.sram[60].copy()
    bench.run()
    for k in range(20):
        expected[4200 + pick[k], 16 * k : 16 * k + 16] = data[16 * k : 16 * k + 16]
    assert (bench.chip.sram[60] == expected).all()


def test_gang_members_share_one_diagonal() -> None:
    bench = Bench()
    bench.gangs = [(70, 47, 60, 52)]
    data = np.stack([vector(s) for s in range(4)])
    for queue, row in zip(bench.gangs[0], data, strict=True):
        bench.chip.sram[queue, 5] = row
    bench.add(Op.READ, 30, -1, gang=0, dsg=1, a=5, out=36)
    cycle = 31 + slice_position(70) - 24  # member 0's value at the VXM
    bench.add(Op.MOV, cycle, ALU, s0=36, w0=4, out=4, wo=4)
    place = bench.catch(ALU, 4, cycle + 7, 4)
    bench.run()
    assert (bench.got(place) == data).all()


def test_nearest_upstream_producer_wins() -> None:
    bench = Bench()
    far, near = vector(1), vector(2)
    bench.chip.sram[44, 0], bench.chip.sram[60, 0] = far, near
    bench.add(Op.READ, 10, 44, a=0, out=0)  # position 25
    bench.add(Op.READ, 14, 60, a=0, out=0)  # position 29, same diagonal
    bench.add(Op.WRITE, 15, 60, a=4096, s0=0)  # its own position: sees the far one
    bench.add(Op.WRITE, 16, 64, a=4096, s0=0)
    bench.run()
    assert (bench.chip.sram[60, 4096] == far).all()
    assert (bench.chip.sram[64, 4096] == near).all()


# ---- VXM ------------------------------------------------------------------------------------


def _float(bits: int) -> np.float32:
    return np.array(bits, np.uint32).view(np.float32)[()]


def _bits(value: Any) -> int:
    value = np.float32(value)
    return NAN if np.isnan(value) else int(value.view(np.uint32))


def _signed(bits: int) -> int:
    return bits - 2**32 if bits >= 2**31 else bits


def _extreme(x: int, y: int, greatest: bool) -> int:
    a, b = _float(x), _float(y)
    if np.isnan(a) or np.isnan(b):
        return _bits(b if np.isnan(a) else a)
    if a == b == 0:
        return (x & y) if greatest else (x | y)
    return _bits(max(a, b) if greatest else min(a, b))


def _to_i32(x: int) -> int:
    value = float(_float(x))
    if np.isnan(value):
        return 0
    if np.isinf(value):
        return 2**31 - 1 if value > 0 else -(2**31)
    return min(max(round(value), -(2**31)), 2**31 - 1)


def _to_f16(x: int) -> int:
    value = _float(x)
    if np.isnan(value):
        return 0x7E00
    return int(np.float16(np.clip(value, -65504, 65504)).view(np.uint16))


def _from_f16(x: int) -> int:
    return _bits(np.uint16(x & 0xFFFF).view(np.float16))


ALU_MODEL: dict[Op, Callable[[int, int], int]] = {
    Op.MOV: lambda x, y: x,
    Op.ADD_F32: lambda x, y: _bits(_float(x) + _float(y)),
    Op.SUB_F32: lambda x, y: _bits(_float(x) - _float(y)),
    Op.MUL_F32: lambda x, y: _bits(_float(x) * _float(y)),
    Op.MAX_F32: lambda x, y: _extreme(x, y, True),
    Op.MIN_F32: lambda x, y: _extreme(x, y, False),
    Op.ADD_I32: lambda x, y: x + y,
    Op.SUB_I32: lambda x, y: x - y,
    Op.MUL_I32: lambda x, y: x * y,
    Op.SHL: lambda x, y: x << (y & 31),
    Op.ASR: lambda x, y: _signed(x) >> (y & 31),
    Op.AND: lambda x, y: x & y,
    Op.OR: lambda x, y: x | y,
    Op.XOR: lambda x, y: x ^ y,
    Op.EXP: lambda x, y: _bits(np.exp(np.float64(_float(x)))),
    Op.TANH: lambda x, y: _bits(np.tanh(np.float64(_float(x)))),
    Op.RSQRT: lambda x, y: _bits(1 / np.sqrt(np.float64(_float(x)))),
    Op.RELU: lambda x, y: NAN if np.isnan(_float(x)) else (x if _float(x) > 0 else 0),
    Op.NEG_F32: lambda x, y: _bits(-_float(x)),
    Op.CVT_F32_I32: lambda x, y: _to_i32(x),
    Op.CVT_I32_F32: lambda x, y: _bits(np.float32(_signed(x))),
    Op.CVT_F32_F16: lambda x, y: _to_f16(x),
    Op.CVT_F16_F32: lambda x, y: _from_f16(x),
    Op.CVT_I32_I8: lambda x, y: min(max(_signed(x), -128), 127) & 0xFF,
    Op.CVT_I8_I32: lambda x, y: (x & 0xFF) - 256 if x & 0x80 else x & 0xFF,
    Op.MASK: lambda x, y: x if y & 0xFF else 0,
    Op.MASK_BAR: lambda x, y: 0 if y & 0xFF else x,
    Op.EQ: lambda x, y: int(x == y),
    Op.NE: lambda x, y: int(x != y),
    Op.GT_F32: lambda x, y: int(_float(x) > _float(y)),
    Op.GE_F32: lambda x, y: int(_float(x) >= _float(y)),
}

SPECIAL = [
    0,
    0x80000000,
    1,
    0x80000001,
    0x007FFFFF,
    0x3F800000,
    0xBF800000,
    0x7F800000,
    0xFF800000,
    0x7FC00000,
    0xFFC12345,
    0x7F800001,
    0x7F7FFFFF,
    0x4F000000,
    0xCF000000,
    0x477FE000,
    0x477FF000,
    0x3F000000,
    0x3FC00000,
    0x40200000,
    0x33000000,
    0x33000001,
    0x42B17218,
    0xC2CFF1B5,
    0xFF,
    0x100,
    0x7FFFFFFF,
    0xFFFFFFFF,
    0x7C01,
    0x7C00,
    0x03FF,
    0xFC00,
    128,
    0xFFFFFF7F,
    31,
    33,
]


@pytest.mark.parametrize("op", list(ALU_MODEL), ids=lambda op: op.name)
def test_alu_operation(op: Op) -> None:
    rng = np.random.default_rng(int(op))
    x = rng.integers(0, 2**32, 320, dtype=np.uint64).astype(np.uint32)
    y = rng.integers(0, 2**32, 320, dtype=np.uint64).astype(np.uint32)
    x[:160] = rng.choice(np.array(SPECIAL, np.uint32), 160)
    y[80:240] = rng.choice(np.array(SPECIAL, np.uint32), 160)
    x[240:] = rng.normal(0, 4, 80).astype(np.float32).view(np.uint32)
    y[240:] = rng.normal(0, 4, 80).astype(np.float32).view(np.uint32)
    bench = Bench()
    bench.feed(ALU, 0, 30, planes(x))
    bench.feed(ALU, 36, 30, planes(y))
    bench.add(op, 30, ALU, s0=0, w0=4, s1=36, w1=4, out=8, wo=4)
    place = bench.catch(ALU, 8, 30 + SPEC.alu_entry_cycles + SPEC.alu_cycles, 4)
    bench.run()
    with np.errstate(all="ignore"):
        expected = [ALU_MODEL[op](int(a), int(b)) & 0xFFFFFFFF for a, b in zip(x, y, strict=True)]
    got = words(bench.got(place))
    wrong = [i for i in range(320) if got[i] != expected[i]]
    assert not wrong, [(hex(x[i]), hex(y[i]), hex(got[i]), hex(expected[i])) for i in wrong[:3]]


def test_every_alu_opcode_is_tested() -> None:
    assert set(ALU_MODEL) == {op for op in Op if 64 <= op < 128}


def test_chain_self_immediate_and_narrow_operands() -> None:
    bench = Bench()
    byte, half = vector(1), np.stack([vector(2), vector(3)])
    bench.feed(ALU, 2, 30, byte)
    bench.feed(ALU + 3, 34, 33, half)
    bench.add(Op.ADD_I32, 30, ALU, s0=2, w0=1, s1=IMM, imm=-5)
    bench.add(Op.ADD_I32, 33, ALU + 3, s0=ALU0, s1=34, w1=2)
    bench.add(Op.MUL_I32, 36, ALU + 3, s0=SELF, s1=SELF)
    bench.add(Op.XOR, 38, ALU + 3, s0=SELF, s1=IMM, imm=0, out=4, wo=2)  # SELF: still cycle 33's
    bench.add(Op.MOV, 40, ALU + 3, s0=SELF, out=8, wo=4)  # SELF: cycle 36's
    first = bench.catch(ALU, 4, 45, 2)
    second = bench.catch(ALU, 8, 47, 4)
    bench.run()
    total = byte.astype(np.uint32) - 5 + half[0] + 256 * half[1].astype(np.uint32)
    assert (bench.got(first) == planes(total)[:2]).all()
    assert (words(bench.got(second)) == total * total).all()


# ---- MXM ------------------------------------------------------------------------------------


def test_int8_matmul_zero_columns_and_accumulators() -> None:
    bench = Bench()
    rng = np.random.default_rng(1)
    matrix = rng.integers(-128, 128, (48, 320)).astype(np.int8)
    rows = rng.integers(-128, 128, (3, 320)).astype(np.int8)
    installed = load(bench, 2, 40, matrix.view(np.uint8))
    start = installed + SPEC.mxm_install_cycles
    modes = [AccMode.SET, AccMode.ADD_EMIT, AccMode.SET_EMIT]
    places = []
    for i, mode in enumerate(modes):
        bench.feed(ACTIVATIONS, 5, start + i, rows[i].view(np.uint8))
        bench.add(Op.ABC, start + i, ACTIVATIONS, s0=5, w0=1)
        done = start + i + SPEC.mxm_multiply_cycles
        bench.add(Op.ACC, done, ACTIVATIONS, a=319 if i < 2 else 0, mode=mode, out=36)
        if i:
            emitted = done + SPEC.mxm_accumulate_cycles
            places.append(bench.catch(ACTIVATIONS, 36, emitted, 4))
    bench.run()
    full = np.zeros((320, 320), np.int64)
    full[:48] = matrix
    products = full @ rows.astype(np.int64).T
    assert (words(bench.got(places[0])).view(np.int32) == products[:, 0] + products[:, 1]).all()
    assert (words(bench.got(places[1])).view(np.int32) == products[:, 2]).all()


def _round_f32(value: Fraction) -> np.float32:
    """A fraction rounded once, by comparing the neighbours of the double-rounded value."""
    guess = np.float32(float(value))
    near = [
        np.nextafter(guess, np.float32(-np.inf)),
        guess,
        np.nextafter(guess, np.float32(np.inf)),
    ]
    return min(near, key=lambda g: (abs(Fraction(float(g)) - value), int(g.view(np.uint32)) & 1))


def test_fp16_matmul_is_exact_and_rounded_once() -> None:
    bench = Bench()
    rng = np.random.default_rng(2)
    matrix = (rng.normal(0, 1, (32, 320)) * 2.0 ** rng.integers(-24, 14, (32, 320))).astype("<f2")
    activation = (rng.normal(0, 1, 320) * 2.0 ** rng.integers(-20, 10, 320)).astype("<f2")
    matrix[0, 1:] = 0
    matrix[1] = 0
    matrix[2, 7] = np.inf
    matrix[3, 9] = np.nan
    matrix[4, 0:3], activation[0:3] = [2048, 1, 2.0**-24], [2048, 0.25, 2.0**-24]  # a near tie
    matrix[4, 3:] = 0
    installed = load(bench, 2, 40, matrix.view(np.uint8)[:, ::2])
    assert installed == load(bench, 3, 40, matrix.view(np.uint8)[:, 1::2], 16)
    start = installed + SPEC.mxm_install_cycles
    done = start + SPEC.mxm_multiply_cycles
    bench.feed(ACTIVATIONS, 6, start, activation.view(np.uint8).reshape(320, 2).T)
    bench.add(Op.ABC, start, ACTIVATIONS, s0=6, w0=2)
    bench.add(Op.ACC, done, ACTIVATIONS, a=1, mode=AccMode.SET_EMIT, out=40)
    place = bench.catch(ACTIVATIONS, 40, done + SPEC.mxm_accumulate_cycles, 4)
    bench.run()
    got = words(bench.got(place))
    for n in range(32):
        if n in (2, 3):
            assert got[n] == NAN
            continue
        pairs = zip(matrix[n].tolist(), activation.tolist(), strict=True)
        exact = sum((Fraction(w) * Fraction(a) for w, a in pairs), Fraction(0))
        assert got[n] == _round_f32(exact).view(np.uint32), n
    assert (got[32:] == 0).all()


# ---- SXM ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_distribute_remaps_and_zero_fills(width: int) -> None:
    bench = Bench()
    data = np.stack([vector(i) for i in range(width)])
    lanes = np.random.default_rng(9).integers(0, 24, 320).astype(np.uint8)
    lanes[5] = 0xFF
    bench.feed(EAST_SXM + 1, 8, 40, data)
    bench.feed(EAST_SXM + 1, 30, 40, lanes)
    bench.add(Op.DISTRIBUTE, 40, EAST_SXM + 1, s0=8, w0=width, s1=30, out=56, imm=0)
    place = bench.catch(EAST_SXM + 1, 56, 40 + SPEC.distribute_cycles, width)
    bench.run()
    tiles, maps = data.reshape(width, 20, 16), lanes.reshape(20, 16)
    padded = np.concatenate([tiles, np.zeros((width, 20, 240), np.uint8)], axis=2)
    index = np.broadcast_to(maps[None], (width, 20, 16)).astype(np.int64)
    expected = np.take_along_axis(padded, index, axis=2).reshape(width, 320)
    assert (bench.got(place) == expected).all()


def test_transpose_exchanges_streams_and_lanes() -> None:
    bench = Bench()
    data = np.stack([vector(i) for i in range(16)])
    bench.feed(EAST_SXM + 5, 16, 40, data)
    bench.add(Op.TRANSPOSE, 40, EAST_SXM + 5, s0=16, out=32)
    place = bench.catch(EAST_SXM + 5, 32, 40 + SPEC.transpose_cycles, 16)
    bench.run()
    for k in range(20):
        tile = slice(16 * k, 16 * k + 16)
        assert (bench.got(place)[:, tile] == data[:, tile].T).all()


def test_permute_shift_and_rotate() -> None:
    bench = Bench()
    data = vector(1)
    bench.maps = [np.arange(320), np.random.default_rng(2).permutation(320)]
    queue = EAST_SXM + 6
    expected, places = [], []
    bench.feed(queue, 0, 40, data)
    bench.add(Op.PERMUTE, 40, queue, s0=0, imm=1, out=33)
    places += bench.catch(queue, 33, 40 + SPEC.permute_cycles)
    expected.append(data[bench.maps[1]])
    for i, lanes in enumerate((160, -37, 0, 400)):
        bench.feed(queue, 0, 41 + i, data)
        bench.add(Op.SHIFT, 41 + i, queue, s0=0, imm=lanes, out=32)
        places += bench.catch(queue, 32, 41 + i + SPEC.shift_cycles)
        source = np.arange(320) - lanes
        inside = (source >= 0) & (source < 320)
        expected.append(np.where(inside, data[np.clip(source, 0, 319)], 0))
    bench.run()
    assert (bench.got(places) == np.stack(expected)).all()


@pytest.mark.parametrize("n", [3, 4])
def test_rotate_gives_all_rotations(n: int) -> None:
    bench = Bench()
    data = vector(n)
    bench.feed(EAST_SXM + 7, 0, 40, data)
    bench.add(Op.ROTATE, 40, EAST_SXM + 7, s0=0, imm=n, out=35)
    place = bench.catch(EAST_SXM + 7, 35, 40 + SPEC.rotate_cycles, n * n)
    bench.run()
    got = bench.got(place).reshape(n * n, 20, 16)
    for k in range(20):
        square = data[16 * k : 16 * k + n * n].reshape(n, n)
        for i in range(n):
            for j in range(n):
                turned = np.roll(square, (-i, -j), (0, 1)).reshape(-1)
                assert (got[i * n + j, k, : n * n] == turned).all()
    assert (got[:, :, n * n :] == 0).all()


# ---- C2C and ICU ----------------------------------------------------------------------------


def test_vectors_cross_a_cable_and_back() -> None:
    hop = SPEC.send_to_receive_cycles
    left, right = Bench(), Bench()
    data = [vector(1), vector(2)]
    for i in range(2):
        left.feed(136, 3, 30 + 24 * i, data[i])
        left.add(Op.SEND, 30 + 24 * i, 136, s0=3)
        right.add(Op.RECEIVE, 30 + 24 * i + hop, 128, out=1)
    places = [p for i in range(2) for p in right.catch(128, 1, 31 + 24 * i + hop)]
    right.feed(128, 32, 50, data[1])
    right.add(Op.SEND, 50, 128, s0=32)
    left.add(Op.RECEIVE, 50 + hop, 136, out=60)
    back = left.catch(136, 60, 51 + hop)
    right.chip.chip_id = 1
    cables = [(0, 8, 1, 0)]
    programs = [left.program(), right.program()]
    run_together([left.chip, right.chip], programs, cables)
    assert (right.got(places) == np.stack(data)).all()
    assert (left.got(back)[0] == data[1]).all()


def test_hop_from_send_to_readable_is_the_published_one() -> None:
    left, right = Bench(), Bench()
    left.feed(136, 3, 30, vector(1))
    left.add(Op.SEND, 30, 136, s0=3)
    arrival = 30 + SPEC.send_to_receive_cycles
    right.add(Op.RECEIVE, arrival, 128, out=1)
    right.add(Op.WRITE, arrival + 11, 43, a=0, s0=1)  # MEM43 west: ten hops from the edge
    right.add(Op.READ, 30 + SPEC.hop_cycles, 43, a=0, out=2)
    programs = [left.program(), right.program()]
    run_together([left.chip, right.chip], programs, [(0, 8, 1, 0)])
    assert (right.chip.sram[43, 0] == vector(1)).all()


def test_sram_survives_a_launch_and_nothing_else_does() -> None:
    bench = Bench()
    bench.feed(ALU, 0, 30, vector(1))
    bench.add(Op.MOV, 30, ALU, s0=0, w0=1)
    bench.run()
    later = Bench()
    later.chip = bench.chip
    later.add(Op.MOV, 40, ALU, s0=SELF)
    with pytest.raises(ProgramFault, match="missing"):
        later.run()


def test_digest_depends_on_cycle_launch_chip_and_data() -> None:
    def sums(cycle: int = 20, launch: int = 0, chip: int = 0, seed: int = 1) -> tuple[int, int]:
        bench = Bench()
        bench.chip.chip_id = chip
        bench.feed(50, 3, cycle, vector(seed))
        bench.add(Op.WRITE, cycle, 50, a=9, s0=3)
        return bench.chip.run(bench.program(), launch).digest_sums

    values = {sums(), sums(cycle=21), sums(launch=1), sums(chip=1), sums(seed=2)}
    assert len(values) == 5
    assert sums() == sums()
