"""The published figures of the machine, rows 1-12 of the calibration table, measured.

Each test runs real programs and reads the figure off what they do.  Sources: S20 = ISCA 2020
"Think Fast", S22 = ISCA 2022 "A Software-defined Tensor Streaming Multiprocessor", MORSE =
programs in the public repositories of G. Morse and of the SQUANDER project that ran on hardware,
memory = recalled from first-party documents, not read again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from chip.encoding.instruction_words import instruction_bytes
from chip.engine import Chip, Status
from chip.faults import ProgramFault
from chip.isa import IMM, LINKS, QUEUES, AccMode, Op, alu_stream_groups, slice_position
from chip.linking import link
from chip.reference import ReferenceChip
from tests.stands.unit_bench import ALU, EAST_SXM, SPEC, Bench, load, offsets, planes, vector, words

Runner = Callable[[Bench], int]


@cache
def _engine_chip() -> Chip:
    return Chip(SPEC, 0)


def _run_engine(bench: Bench) -> int:
    """Run a bench's program on the engine, its SRAM words carried there and back."""
    linked = link(bench.program(), SPEC)
    chip = _engine_chip()
    words_used = {(r["queue"], r["a"]) for r in bench.rows if r["op"] in (Op.READ, Op.WRITE)}
    for row in bench.rows:
        if row["op"] in (Op.GATHER, Op.SCATTER):
            words_used |= {(row["queue"], word) for word in range(row["lo"], row["hi"] + 1)}
    for place in words_used:
        chip.sram[place] = bench.chip.sram[place]
    chip.begin(linked, 0)
    assert chip.run() == Status.DONE
    for place in words_used:
        bench.chip.sram[place] = chip.sram[place]
    return int(chip.retired_cycles)


@pytest.fixture(params=["reference", "engine"])
def run(request: pytest.FixtureRequest) -> Runner:
    """Runs a bench's program on one of the executors; returns the launch's cycles."""
    if request.param == "engine":
        return _run_engine
    return lambda bench: bench.run().cycles


def legal(run: Runner, bench: Bench) -> str:
    """The code of the fault a bench's program ends with, or ''."""
    try:
        run(bench)
    except ProgramFault as fault:
        return fault.code
    return ""


def test_row_1_capacity_and_addressing(run: Runner) -> None:
    """230,686,720 bytes at [hemisphere 2, slice 44, bank 2, word 4096] x 320 B; 176-way (S20)."""
    assert ReferenceChip(SPEC).sram.nbytes == SPEC.sram_bytes == 230_686_720
    bench = Bench()
    corners = [(h, s, b, w) for h in (0, 1) for s in (0, 43) for b in (0, 1) for w in (0, 4095)]
    for i, (hemisphere, number, bank, word) in enumerate(corners):
        bench.feed(44 * hemisphere + number, 40 - 32 * hemisphere, 20 + 3 * i, vector(i))
        address = {"a": 4096 * bank + word, "s0": 40 - 32 * hemisphere}
        bench.add(Op.WRITE, 20 + 3 * i, 44 * hemisphere + number, **address)
    for row in bench.rows:  # operands come from the middle of a bank
        if row["op"] == Op.READ:
            source = row["queue"], row["a"]
            bench.chip.sram[row["queue"], 2000 + row["a"]] = bench.chip.sram[source]
            bench.chip.sram[source] = 0
            row["a"] += 2000
    run(bench)
    for i, (hemisphere, number, bank, word) in enumerate(corners):
        tensor = bench.chip.sram.reshape(2, 44, 2, 4096, 320)
        assert (tensor[hemisphere, number, bank, word] == vector(i)).all()


def test_row_2_stream_bandwidth(run: Runner) -> None:
    """Streams carry 2 x 32 x 320 B = 20,480 bytes per cycle (S20)."""
    bench, cycles = Bench(), 20
    for i in range(32):  # both hemispheres exchange 32 vectors per cycle through the VXM
        west, east = i, 44 + i
        meet = 60
        for queue, stream, other in ((west, i, east), (east, 32 + i, west)):
            away = abs(slice_position(queue) - 22)
            home = abs(slice_position(other) - 22)
            for t in range(cycles):
                bench.chip.sram[queue, t] = vector(1000 * queue + t)
                bench.add(Op.READ, meet + t - away - 1, queue, a=t, out=stream)
                bench.add(Op.WRITE, meet + t + home, other, a=4096 + t, s0=stream)
    run(bench)
    sram = bench.chip.sram
    moved = 0
    for i in range(32):
        for here, there in ((i, 44 + i), (44 + i, i)):
            same = (sram[there, 4096 : 4096 + cycles] == sram[here, :cycles]).all(axis=1)
            moved += 320 * int(same.sum())
    assert moved / cycles == 20_480


def test_row_2_sram_bandwidth(run: Runner) -> None:
    """SRAM: 2 x 44 x 2 x 320 B = 56,320 bytes per cycle, one read and one write per slice (S20)."""
    bench, cycles, start = Bench(), 12, 40
    for queue in range(88):
        bench.chip.sram[queue, : cycles + 40] = 1
        number, position = queue % 4, slice_position(queue)
        westward = 32 * (number // 2)
        for t in range(-30, cycles):  # before the window: streams fill up
            stream = westward + number
            bench.add(Op.READ, start + t, queue, a=t + 30, out=stream)
        seen = 34 if position == 9 else 0  # nothing lies upstream of the outermost group
        for t in range(cycles):
            bench.add(Op.WRITE, start + t, queue, a=4096 + t, s0=seen)
    reads = sum(start <= r["cycle"] < start + cycles for r in bench.rows if r["op"] == Op.READ)
    run(bench)
    written = int(bench.chip.sram[:, 4096:].sum())
    assert (320 * reads + written) / cycles == 56_320


def test_row_2_and_10_instruction_bandwidth_and_barrier(run: Runner) -> None:
    """144 queues x 16 B = 2,304 B per cycle (S20); Notify to Sync retire: 35 cycles (memory)."""
    bench = Bench()
    for queue in range(QUEUES - 1):
        bench.add(Op.SYNC, 0, queue)
    bench.add(Op.NOTIFY, 0, QUEUES - 1)
    assert instruction_bytes(bench.program()) == 2_304
    run(bench)

    def released(delay: int) -> bool:
        """Whether every queue may issue ``delay`` cycles after the barrier."""
        bench = Bench()
        for queue in range(QUEUES - 1):
            bench.add(Op.SYNC, 0, queue)
        bench.add(Op.NOTIFY, 0, QUEUES - 1)
        for alu in range(16):
            bench.add(Op.MOV, delay, ALU + alu, s0=IMM)
        return legal(run, bench) == ""

    assert next(delay for delay in range(1, 60) if released(delay)) == 35


def test_row_3_bank_rule(run: Runner) -> None:
    """A slice reads and writes in one cycle only if the banks differ (S20)."""
    for read_bank in (0, 1):
        for write_bank in (0, 1):
            bench = Bench()
            bench.feed(50, 2, 40, vector(1))
            bench.add(Op.WRITE, 40, 50, a=4096 * write_bank + 7, s0=2)
            bench.add(Op.READ, 40, 50, a=4096 * read_bank + 8, out=1)
            assert legal(run, bench) == ("bank" if read_bank == write_bank else "")


def test_row_4_skew_and_nop() -> None:
    """20 cycles from the southmost to the northmost superlane (S20); NOP <= 65,535 (memory)."""
    assert SPEC.superlane_skew_cycles == 20
    sizes = []
    for gap in (65_535, 65_536, 131_070, 131_071):
        bench = Bench()
        bench.add(Op.READ, 0, 3, out=0)
        bench.add(Op.WRITE, gap + 1, 3, a=4096, s0=32)
        sizes.append(instruction_bytes(bench.program()) // 16)
    assert sizes == [3, 4, 4, 5]


def round_trip(queue: int, readable: int) -> Bench:
    """Read, one ALU op and the write back so that the word is read again at ``readable``."""
    bench = Bench()
    hops = abs(slice_position(queue) - (20 if queue < 44 else 24))
    out, back = (0, 32) if queue < 44 else (32, 0)
    bench.chip.sram[queue, 7] = vector(queue)
    written = readable - SPEC.write_cycles
    bench.add(Op.READ, 0, queue, a=7, out=out)
    bench.add(Op.MOV, 1 + hops, ALU, s0=out, w0=1, out=back, wo=1)
    bench.add(Op.WRITE, written, queue, a=4096, s0=back)
    bench.add(Op.READ, readable, queue, a=4096, out=out + 1)
    return bench


@pytest.mark.parametrize("number", range(44))
def test_row_5_round_trip_of_one_alu_operation(run: Runner, number: int) -> None:
    """slice s -> one VXM op -> slice s: 12 + 2*floor(s/4) cycles, both hemispheres (MORSE)."""
    expected = 12 + 2 * (number // 4)
    for queue in (number, 44 + number):
        for readable in range(expected - 3, expected + 1):
            bench = round_trip(queue, readable)
            if readable < expected:
                assert legal(run, bench) == "missing", readable
            else:
                assert legal(run, bench) == ""
                assert (bench.chip.sram[queue, 4096] == vector(queue)).all()
        early = round_trip(queue, expected)
        early.rows[-1]["cycle"] -= 1
        assert legal(run, early) == "in-flight"


@pytest.mark.parametrize("operations", [1, 2, 4, 8])
def test_row_6_alu_chain(run: Runner, operations: int) -> None:
    """k chained ALU ops on slice s: 1 + floor(s/4) + (6+3k) + floor(s/4) + 2; 3 per op (MORSE)."""
    number = 7
    bench = Bench()
    bench.chip.sram[number, 7] = 1
    bench.add(Op.READ, 0, number, a=7, out=0)
    hops = 20 - slice_position(number)
    for k in range(operations):
        operand = {"s0": 0, "w0": 1} if k == 0 else {"s0": 64 + k - 1}
        last = {"out": 40, "wo": 1} if k == operations - 1 else {}
        cycle = 1 + hops + 3 * k
        bench.add(Op.ADD_I32, cycle, ALU + k, **operand, s1=IMM, imm=1, **last)
    total = 1 + number // 4 + (6 + 3 * operations) + number // 4 + 2
    bench.add(Op.WRITE, total - SPEC.write_cycles, number, a=4096, s0=40)
    run(bench)
    assert (bench.chip.sram[number, 4096] == 1 + operations).all()


def transposed_loop(arrival: int) -> Bench:
    """The path of row 6, the distributor's result being at its output register at ``arrival``."""
    bench = Bench()
    start = 20  # the values pass the MEM edge (position 35) at this cycle
    distributor, transposer = EAST_SXM + 1, EAST_SXM + 4
    for i in range(16):
        queue = 44 + 24 + i  # sixteen slices, delivered on one diagonal
        bench.chip.sram[queue, 7] = vector(i)
        hops = 35 - slice_position(queue)
        bench.add(Op.READ, start - hops - 1, queue, a=7, out=i)
    turned = start + 4  # four hops to the transposer
    bench.add(Op.TRANSPOSE, turned, transposer, s0=0, out=32)
    entered = turned + SPEC.transpose_cycles + 12  # eleven hops of MEM, one to the ALUs
    bench.add(Op.MOV, entered, ALU, s0=32, w0=1)
    bench.add(Op.ADD_I32, entered + 3, ALU + 1, s0=64, s1=IMM, imm=1)
    bench.add(Op.SHL, entered + 6, ALU + 2, s0=65, s1=IMM, imm=1, out=8, wo=1)
    mapped = arrival - SPEC.distribute_cycles
    bench.feed(distributor, 30, mapped, np.tile(np.arange(15, -1, -1, np.uint8), 20))
    bench.rows[-1].update(queue=44 + 40, cycle=mapped - 5)
    bench.chip.sram[84, bench.rows[-1]["a"]] = np.tile(np.arange(16, dtype=np.uint8)[::-1], 20)
    bench.add(Op.DISTRIBUTE, mapped, distributor, s0=8, w0=1, s1=30, out=32)
    return bench


def test_row_6_sxm_path_of_50_cycles(run: Runner) -> None:
    """Gather-transposed loop: 4+4+11+5+3*3+11+4+2 = 50 cycles (MORSE)."""
    found = [total for total in range(40, 60) if legal(run, transposed_loop(20 + total)) == ""]
    assert found == [50]
    bench = transposed_loop(20 + 50)
    place = bench.catch(EAST_SXM + 1, 32, 70)
    run(bench)
    column = np.stack([vector(i) for i in range(16)])[:, ::16].T.reshape(320)  # lane 0 of each
    expected = ((column.astype(int) + 1) * 2 % 256).reshape(20, 16)[:, ::-1].reshape(320)
    assert (bench.got(place)[0] == expected).all()


def matmul(total: int) -> Bench:
    """A matmul of plane 2 whose result an ALU samples ``total`` cycles after the Read."""
    bench = Bench()
    matrix = np.random.default_rng(1).integers(-128, 128, (16, 320)).astype(np.int8)
    load(bench, 2, 60, matrix.view(np.uint8))
    bench.chip.sram[87, 4000] = vector(3)
    start = 100
    bench.add(Op.READ, start, 87, a=4000, out=20)  # slice 43: group 10
    bench.add(Op.ABC, start + 1 + 10, 109, s0=20, w0=1)
    done = start + 11 + SPEC.mxm_multiply_cycles
    bench.add(Op.ACC, done, 109, a=0, mode=AccMode.SET_EMIT, out=48)  # SG4 4, westward
    bench.add(Op.MOV, start + total, ALU + 8, s0=48, w0=4, out=16, wo=4)
    return bench


def test_row_7_matmul_read_to_vxm(run: Runner) -> None:
    """MEM -> MXM -> VXM: 4 + 9 + 3 + 13 + 34 + 19 - 6 = 76 cycles (MORSE MATMULDELAY)."""
    assert [n for n in range(70, 82) if legal(run, matmul(n)) == ""] == [76]
    bench = matmul(76)
    place = bench.catch(ALU + 8, 16, 100 + 76 + 7, 4)
    run(bench)
    matrix = np.random.default_rng(1).integers(-128, 128, (16, 320))
    expected = matrix @ vector(3).view(np.int8).astype(np.int64)
    assert (words(bench.got(place)).view(np.int32)[:16] == expected).all()


PUBLISHED_SLICES = [*range(25, 28), *range(29, 38), *range(39, 43)]  # S16(25-27,29-37,39-42)
OUTER_SLICES = list(range(12, 44))


def weight_load(sets: dict[int, list[int]], in_force: int, shared: bool = False) -> Bench:
    """Load every plane of ``sets`` from its 16 slices, first Read at cycle 0; use at ``in_force``.

    sets: plane -> slices within its hemisphere.  ``shared``: both planes of a hemisphere take
    the same streams.  All activations are ones and read-outs are left to the accumulators.
    """
    bench = Bench()
    starts = {
        plane: max(abs(_edge(plane) - slice_position(_queue(plane, s))) for s in slices) + 1
        for plane, slices in sets.items()
    }
    for plane, slices in sets.items():
        stream = (0 if plane > 1 else 32) + (0 if shared else 16 * (plane % 2))
        for j, number in enumerate(slices):
            queue = _queue(plane, number)
            hops = abs(_edge(plane) - slice_position(queue))
            for group in range(20):
                bench.chip.sram[queue, group] = vector(10_000 * plane + 100 * number + group)
                if not (shared and plane % 2):
                    cycle = starts[plane] + group - hops - 1
                    bench.add(Op.READ, cycle, queue, a=group, out=stream + j)
        for group in range(20):
            bench.add(Op.LW, starts[plane] + group, 104 + 2 * plane, a=group, s0=stream)
        bench.add(Op.IW, starts[plane] + 20, 104 + 2 * plane, a=20)
        free = _queue(plane, 10 + plane % 2)
        home = 40 if plane > 1 else 8  # results come back inward
        bench.chip.sram[free, 4000] = 1
        outward = (4 if plane > 1 else 36) + plane % 2
        hops = abs(_edge(plane) - slice_position(free))
        bench.add(Op.READ, in_force - hops - 1, free, a=4000, out=outward)
        bench.add(Op.ABC, in_force, 105 + 2 * plane, s0=outward, w0=1)
        done = in_force + SPEC.mxm_multiply_cycles
        out = home + 4 * (plane % 2)
        columns = {"a": 0, "mode": AccMode.SET_EMIT, "out": out}
        bench.add(Op.ACC, done, 105 + 2 * plane, **columns)
        emitted = done + SPEC.mxm_accumulate_cycles
        bench.places = getattr(bench, "places", {})
        bench.places[plane] = bench.catch(105 + 2 * plane, out, emitted, 4)
    assert min(r["cycle"] for r in bench.rows if r["op"] == Op.READ) == 0
    return bench


def _edge(plane: int) -> int:
    return 45 if plane > 1 else -1


def _queue(plane: int, number: int) -> int:
    return number + (44 if plane > 1 else 0)


def earliest(build: Callable[[int], Bench], run: Runner) -> tuple[int, Bench]:
    """The earliest cycle at which all planes multiply with the weights just loaded."""
    for cycle in range(30, 60):
        bench = build(cycle)
        if legal(run, bench) == "":
            return cycle, bench
    raise AssertionError("never in force")


def sums_are_right(bench: Bench, sets: dict[int, list[int]], shared: bool) -> bool:
    """Each plane's product with ones is the sum of its columns' weights."""
    for plane, slices in sets.items():
        source = plane - plane % 2 if shared else plane
        base = 10_000 * (plane if not shared else max(source, source + 1))
        columns = [vector(base + 100 * s + g).view(np.int8) for g in range(20) for s in slices]
        expected = np.stack(columns).astype(np.int64).sum(axis=1)
        if (words(bench.got(bench.places[plane])).view(np.int32) != expected).any():
            return False
    return True


@pytest.mark.long
def test_row_8_weight_load_as_in_the_published_programs(run: Runner) -> None:
    """409,600 weights into four planes in < 40 cycles, Read and transit included (S20, MORSE).

    The published programs' 16 slices of each hemisphere feed both of its planes.
    """
    sets = dict.fromkeys(range(4), PUBLISHED_SLICES)
    cycle, bench = earliest(lambda at: weight_load(sets, at, shared=True), run)
    assert cycle == 38
    assert cycle < 40
    assert sums_are_right(bench, sets, shared=True)


@pytest.mark.long
def test_row_8_weight_load_of_four_different_matrices(run: Runner) -> None:
    """409,600 different weights need 32 slices per hemisphere, so some lie further in.

    All are in the planes' buffers 38 cycles after the first Read, inside the published 40 (S20);
    the three cycles of the install bring them in force at 41.
    """
    sets = {plane: OUTER_SLICES[16 * (plane % 2) :][:16] for plane in range(4)}
    for plane in (0, 2):  # the outer plane starts first; shift the inner one's first Read to 0
        assert min(sets[plane]) == 12
    cycle, bench = earliest(lambda at: weight_load(sets, at), run)
    last_load = max(r["cycle"] for r in bench.rows if r["op"] == Op.LW)
    assert last_load < 40
    assert cycle == 41
    assert sums_are_right(bench, sets, shared=False)


@pytest.mark.parametrize(("bytes_", "published"), [(1, 409_600), (2, 102_400)])
def test_row_9_peak_rate(run: Runner, bytes_: int, published: int) -> None:
    """int8 409,600 and fp16 102,400 multiply-accumulates per cycle (S20, S22).

    Weights and activations are ones, so that every sum counts its own products.
    """
    bench, cycles, start = Bench(), 12, 100
    one = np.array([1], np.int8 if bytes_ == 1 else "<f2").view(np.uint8)
    for plane in range(4):
        value = one[0] if bytes_ == 1 else one[plane % 2]
        matrix = np.full((320, 320), value, np.uint8)
        bench.chip.sram[:, 4000] = value
        stream = (0 if plane > 1 else 32) + 16 * (plane % 2)
        load(bench, plane, 60 if plane % 2 else 30, matrix, stream)
    for plane in range(0, 4, bytes_):
        queue, stream = 105 + 2 * plane, (0 if plane > 1 else 32) + 4 * (plane % 2)
        out = (48 if plane > 1 else 16) + 4 * (plane % 2)
        for i, t in enumerate(range(0, cycles, bytes_)):
            bench.feed(queue, stream, start + t, np.stack([np.full(320, b, np.uint8) for b in one]))
            bench.add(Op.ABC, start + t, queue, s0=stream, w0=bytes_)
            done = start + t + SPEC.mxm_multiply_cycles
            mode = AccMode.ADD if i else AccMode.SET
            if t + bytes_ >= cycles:
                mode = AccMode.ADD_EMIT
            bench.add(Op.ACC, done, queue, a=0, mode=mode, out=out)
        emitted = done + SPEC.mxm_accumulate_cycles
        bench.places = getattr(bench, "places", [])
        bench.places.append(bench.catch(queue, out, emitted, 4))
    run(bench)
    kind = np.int32 if bytes_ == 1 else np.float32
    total = sum(float(words(bench.got(p)).view(kind).sum()) for p in bench.places)
    assert total / cycles == published


def test_row_11_gather_transpose_permute_distribute(run: Runner) -> None:
    """Table I (S20); offsets are 16-bit little-endian, one per superlane (MORSE)."""
    bench = Bench()
    pick = np.random.default_rng(3).integers(0, 300, 20)
    bench.chip.sram[60, 4096:4396] = np.random.default_rng(4).integers(0, 256, (300, 320))
    bench.feed(60, 6, 30, offsets(pick))
    bench.add(Op.GATHER, 30, 60, a=4096, s1=6, out=0, lo=4096, hi=4395)
    bench.maps = [np.random.default_rng(5).permutation(320)]
    arrival = 31 + 39 - slice_position(60)
    lanes = np.tile(np.array([15, 200, *range(14)], np.uint8), 20)
    bench.feed(EAST_SXM, 30, arrival, lanes)
    bench.add(Op.DISTRIBUTE, arrival, EAST_SXM, s0=0, w0=1, s1=30, out=32)
    bench.add(Op.PERMUTE, arrival, EAST_SXM + 6, s0=0, imm=0, out=33)
    first = bench.catch(EAST_SXM, 32, arrival + SPEC.distribute_cycles)
    second = bench.catch(EAST_SXM + 6, 33, arrival + SPEC.permute_cycles)
    table = bench.chip.sram[60].copy()
    run(bench)
    gathered = np.stack([table[4096 + pick[k], 16 * k : 16 * k + 16] for k in range(20)])
    moved = gathered[:, lanes[:16] % 16]
    moved[:, 1] = 0
    assert (bench.got(first)[0] == moved.reshape(320)).all()
    assert (bench.got(second)[0] == gathered.reshape(320)[bench.maps[0]]).all()


def test_row_12_vxm_stream_groups(run: Runner) -> None:
    """Row r reaches SG4[2r .. 2r+3 mod 8]; not the same SG4 from both directions (MORSE)."""
    published = [{0, 1, 2, 3}, {2, 3, 4, 5}, {4, 5, 6, 7}, {6, 7, 0, 1}]
    for alu in (0, 5, 10, 15):
        assert set(alu_stream_groups(alu)) == published[alu // 4]
        for group in range(8):
            for base in (0, 32):
                entering, leaving = Bench(), Bench()
                entering.feed(ALU + alu, base + 4 * group, 40, planes(np.arange(320)))
                entering.add(Op.MOV, 40, ALU + alu, s0=base + 4 * group, w0=4)
                leaving.add(Op.MOV, 40, ALU + alu, s0=IMM, out=base + 4 * group, wo=4)
                expected = "" if group in published[alu // 4] else "alu"
                assert legal(run, entering) == legal(run, leaving) == expected
    for other, expected in ((0, "alu"), (1, "")):
        both = Bench()
        both.feed(ALU, 0, 40, vector(1))
        both.feed(ALU, 32 + 4 * other, 40, vector(2))
        columns: dict[str, Any] = {"s0": 0, "w0": 1, "s1": 32 + 4 * other, "w1": 1}
        both.add(Op.ADD_I32, 40, ALU, **columns)
        assert legal(run, both) == expected


def test_links_and_queues_are_as_many_as_published() -> None:
    """16 C2C links, 144 queues (S20)."""
    assert (SPEC.links, LINKS, QUEUES) == (16, 16, 144)
