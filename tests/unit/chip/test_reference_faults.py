"""Every rule of the "illegal" table of docs/machine.md, broken once, at run time.

Each case has legal company: the same program without the offence runs, so the fault is the
offence's and nothing else's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from chip.faults import ProgramFault
from chip.isa import ALU0, IMM, NONE, SELF, AccMode, Op
from chip.reference.chip import run_together
from tests.stands.unit_bench import (
    ACTIVATIONS,
    ALU,
    EAST_SXM,
    SPEC,
    WEIGHTS,
    Bench,
    load,
    offsets,
    vector,
)

Case = Callable[[Bench], None]
CASES: list[Any] = []


def case(code: str) -> Callable[[Case], Case]:
    """Register a function that adds one offence to a bench."""

    def register(function: Case) -> Case:
        CASES.append(pytest.param(code, function, id=f"{code}-{function.__name__}"))
        return function

    return register


def one(code: str, name: str, op: Op, queue: int, cycle: int = 40, **columns: Any) -> None:
    """Register a single offending instruction."""

    def offence(bench: Bench) -> None:
        bench.add(op, cycle, queue, **columns)

    offence.__name__ = name
    case(code)(offence)


def mxm(bench: Bench, plane: int = 2, start: int = 40, groups: int = 1, stream: int = 0) -> int:
    """Install ``groups`` random column groups; returns the cycle they are in force from."""
    matrix = np.stack([vector(i) for i in range(16 * groups)])
    return load(bench, plane, start, matrix, stream) + SPEC.mxm_install_cycles


def abc(
    bench: Bench, cycle: int, queue: int = ACTIVATIONS, width: int = 1, stream: int = 4
) -> None:
    """An activation and the ACC of its product (SET on row 0)."""
    bench.feed(queue, stream, cycle, np.stack([vector(9)] * width))
    bench.add(Op.ABC, cycle, queue, s0=stream, w0=width)
    bench.add(Op.ACC, cycle + SPEC.mxm_multiply_cycles, queue | 1, a=0, mode=AccMode.SET)


# ---- form: one instruction is enough --------------------------------------------------------

one("queue", "read_on_an_alu", Op.READ, ALU, out=0)
one("queue", "mov_on_mem", Op.MOV, 3, s0=IMM)
one("queue", "abc_on_weights", Op.ABC, WEIGHTS, s0=0, w0=1)
one("queue", "lw_on_activations", Op.LW, ACTIVATIONS, s0=0)
one("queue", "shift_on_rotator", Op.SHIFT, EAST_SXM + 7, s0=0, out=0)
one("queue", "send_on_sxm", Op.SEND, EAST_SXM, s0=0)
one("queue", "no_queue", Op.READ, 144, out=0)
one("bounds", "address", Op.READ, 3, a=8192, out=0)
one("bounds", "negative_address", Op.READ, 3, a=-1, out=0)
one("bounds", "stream", Op.READ, 3, out=64)
one("bounds", "no_stream", Op.READ, 3, out=-1)
one("bounds", "negative_cycle", Op.READ, 3, cycle=-1, out=0)
one("bounds", "window_in_both_banks", Op.GATHER, 3, a=4000, s1=0, out=0, lo=4000, hi=4096)
one("bounds", "window_reversed", Op.GATHER, 3, a=4000, s1=0, out=0, lo=40, hi=30)
one("bounds", "group_across_the_border", Op.MOV, ALU + 12, s0=31, w0=2)
one("bounds", "operand_code", Op.MOV, ALU, s0=82)
one("bounds", "no_operand", Op.ADD_F32, ALU, s0=IMM, s1=NONE)
one("bounds", "load_group", Op.LW, WEIGHTS, a=20, s0=0)
one("bounds", "install_nothing", Op.IW, WEIGHTS, a=0)
one("bounds", "install_too_much", Op.IW, WEIGHTS, a=21)
one("bounds", "accumulator_row", Op.ACC, ACTIVATIONS, a=320)
one("bounds", "gang_of_alus", Op.MOV, ALU, gang=0, s0=IMM)
one("bounds", "repeat_count", Op.MOV, ALU, n1=0, s0=IMM)
one("align", "half_operand", Op.MOV, ALU, s0=3, w0=2)
one("align", "word_output", Op.MOV, ALU, s0=IMM, out=34, wo=4)
one("align", "width", Op.MOV, ALU, s0=0, w0=3)
one("align", "load", Op.LW, WEIGHTS, s0=8)
one("align", "transpose", Op.TRANSPOSE, EAST_SXM + 4, s0=0, out=8)
one("align", "map_pair", Op.GATHER, 3, s1=1, out=0)
one("align", "emitted_row", Op.ACC, ACTIVATIONS, mode=AccMode.SET_EMIT, out=2)
one("align", "fp16_activation", Op.ABC, ACTIVATIONS, s0=3, w0=2)
one("align", "rotations_across_the_border", Op.ROTATE, EAST_SXM + 7, s0=0, out=20, imm=4)
one("alu", "input_row", Op.MOV, ALU, s0=16, w0=1)
one("alu", "output_row", Op.MOV, ALU + 4, s0=IMM, out=32, wo=1)
one("alu", "one_sg4_from_both_sides", Op.ADD_I32, ALU, s0=0, w0=1, s1=33, w1=1)
one("mxm", "activation_width", Op.ABC, ACTIVATIONS, s0=0, w0=4)
one("mxm", "fp16_on_the_odd_plane", Op.ABC, ACTIVATIONS + 2, s0=0, w0=2)
one("mxm", "install_of_nothing_loaded", Op.IW, WEIGHTS, a=1)
one("sxm", "wrong_distributor", Op.DISTRIBUTE, EAST_SXM, s0=8, w0=1, s1=0, out=0)
one("sxm", "distribute_width", Op.DISTRIBUTE, EAST_SXM, s0=0, w0=3, s1=0, out=0)
one("sxm", "distribute_across_sg8", Op.DISTRIBUTE, EAST_SXM, s0=6, w0=4, s1=0, out=0)
one("sxm", "distribute_out_across_sg8", Op.DISTRIBUTE, EAST_SXM, s0=0, w0=4, s1=0, out=45)
one("sxm", "wrong_transposer", Op.TRANSPOSE, EAST_SXM + 4, s0=16, out=0)
one("sxm", "no_map", Op.PERMUTE, EAST_SXM + 6, s0=0, out=32, imm=1)
one("sxm", "map_is_no_permutation", Op.PERMUTE, EAST_SXM + 6, s0=0, out=32, imm=0)
one("sxm", "rotation_size", Op.ROTATE, EAST_SXM + 7, s0=0, out=32, imm=2)
one("missing", "nothing_to_write", Op.WRITE, 50, s0=0)
one("missing", "no_alu_result", Op.MOV, ALU, s0=ALU0 + 5)
one("missing", "no_own_result", Op.MOV, ALU, s0=SELF)
one("missing", "no_activation", Op.ACC, ACTIVATIONS, a=0)
one("missing", "no_vector", Op.RECEIVE, 136, out=40)
one("sync", "never_released", Op.SYNC, 7)


# ---- queues and banks -----------------------------------------------------------------------


@case("queue")
def two_reads(bench: Bench) -> None:
    bench.add(Op.READ, 40, 3, a=0, out=0)
    bench.add(Op.READ, 40, 3, a=4096, out=1)


@case("queue")
def read_and_gather(bench: Bench) -> None:
    bench.add(Op.READ, 40, 50, a=0, out=0)
    bench.feed(50, 2, 40, offsets(np.zeros(20, int)))
    bench.add(Op.GATHER, 40, 50, a=4096, s1=2, lo=4096, hi=4096, out=1)


@case("queue")
def alu_twice(bench: Bench) -> None:
    bench.add(Op.MOV, 40, ALU, s0=IMM)
    bench.add(Op.ADD_I32, 40, ALU, s0=IMM, s1=IMM)


@case("bank")
def read_and_write_one_bank(bench: Bench) -> None:
    bench.feed(50, 2, 40, vector(1))
    bench.add(Op.WRITE, 40, 50, a=7, s0=2)
    bench.add(Op.READ, 40, 50, a=8, out=1)


@case("in-flight")
def read_of_a_write_under_way(bench: Bench) -> None:
    bench.feed(50, 2, 40, vector(1))
    bench.add(Op.WRITE, 40, 50, a=7, s0=2)
    bench.add(Op.READ, 41, 50, a=7, out=1)


@case("in-flight")
def read_of_a_scatter_window(bench: Bench) -> None:
    bench.feed(50, 2, 40, offsets(np.zeros(20, int)))
    bench.feed(50, 4, 40, vector(1))
    bench.add(Op.SCATTER, 40, 50, a=7, s0=4, s1=2, lo=7, hi=90)
    bench.add(Op.READ, 41, 50, a=90, out=1)


@case("in-flight")
def gather_window_over_a_write(bench: Bench) -> None:
    bench.feed(50, 2, 41, offsets(np.zeros(20, int)))
    bench.feed(50, 4, 40, vector(1))
    bench.add(Op.WRITE, 40, 50, a=90, s0=4)
    bench.add(Op.GATHER, 41, 50, a=7, s1=2, lo=7, hi=90, out=33)


@case("offset")
def gather_above_its_window(bench: Bench) -> None:
    bench.feed(50, 2, 40, offsets(np.arange(20)))
    bench.add(Op.GATHER, 40, 50, a=0, s1=2, lo=0, hi=18, out=1)


@case("offset")
def scatter_below_its_window(bench: Bench) -> None:
    bench.feed(50, 2, 40, offsets(np.arange(20)))
    bench.feed(50, 4, 40, vector(1))
    bench.add(Op.SCATTER, 40, 50, a=0, s0=4, s1=2, lo=1, hi=30)


# ---- streams --------------------------------------------------------------------------------


@case("driver")
def two_slices_of_a_group(bench: Bench) -> None:
    bench.add(Op.READ, 40, 50, out=1)
    bench.add(Op.READ, 40, 51, out=1)


@case("driver")
def alu_and_alu(bench: Bench) -> None:
    bench.add(Op.MOV, 40, ALU, s0=IMM, out=0, wo=4)
    bench.add(Op.MOV, 40, ALU + 1, s0=IMM, out=3, wo=1)


@case("missing")
def own_position_is_not_upstream(bench: Bench) -> None:
    bench.add(Op.READ, 40, 50, out=1)
    bench.add(Op.WRITE, 41, 51, a=4096, s0=1)


@case("missing")
def one_stream_of_four(bench: Bench) -> None:
    bench.feed(ALU, 0, 40, np.stack([vector(i) for i in range(3)]))
    bench.add(Op.MOV, 40, ALU, s0=0, w0=4)


@case("missing")
def alu_result_at_another_cycle(bench: Bench) -> None:
    bench.add(Op.MOV, 40, ALU, s0=IMM)
    bench.add(Op.MOV, 44, ALU + 1, s0=ALU0)


@case("missing")
def own_result_too_young(bench: Bench) -> None:
    bench.add(Op.MOV, 40, ALU, s0=IMM)
    bench.add(Op.MOV, 42, ALU, s0=SELF)


@case("missing")
def activation_without_acc(bench: Bench) -> None:
    start = mxm(bench)
    bench.feed(ACTIVATIONS, 4, start, vector(1))
    bench.add(Op.ABC, start, ACTIVATIONS, s0=4, w0=1)


@case("want")
def another_tag(bench: Bench) -> None:
    bench.feed(ALU, 0, 40, vector(1), tag=6)
    bench.add(Op.MOV, 40, ALU, s0=0, w0=1, want0=5)


@case("want")
def untagged_map(bench: Bench) -> None:
    bench.feed(50, 2, 40, offsets(np.zeros(20, int)))
    bench.add(Op.GATHER, 40, 50, s1=2, out=1, want1=5)


# ---- MXM ------------------------------------------------------------------------------------


@case("mxm")
def reload_too_soon(bench: Bench) -> None:
    mxm(bench, groups=3)
    bench.feed(WEIGHTS, 0, 49, np.stack([vector(i) for i in range(16)]))
    bench.add(Op.LW, 49, WEIGHTS, a=0, s0=0)


@case("mxm")
def install_of_a_stale_group(bench: Bench) -> None:
    mxm(bench, groups=2)
    mxm(bench, start=60)
    bench.rows[-1]["a"] = 2


@case("mxm")
def activation_during_an_install(bench: Bench) -> None:
    mxm(bench)
    abc(bench, mxm(bench, start=60) - 1)


@case("mxm")
def activation_before_an_install(bench: Bench) -> None:
    abc(bench, mxm(bench) - 3)


@case("mxm")
def pair_with_different_groups(bench: Bench) -> None:
    mxm(bench, groups=2)
    abc(bench, mxm(bench, plane=3, start=41, stream=16), width=2)


@case("mxm")
def fp16_then_int8(bench: Bench) -> None:
    mxm(bench)
    start = mxm(bench, plane=3, stream=16)
    abc(bench, start, width=2)
    abc(bench, start + 1, queue=ACTIVATIONS + 2)


@case("mxm")
def fp16_with_int8_on_the_odd_plane(bench: Bench) -> None:
    mxm(bench)
    start = mxm(bench, plane=3, stream=16)
    abc(bench, start, width=2)
    abc(bench, start, queue=ACTIVATIONS + 2, stream=8)


@case("mxm")
def add_to_a_row_never_set(bench: Bench) -> None:
    abc(bench, mxm(bench))
    bench.rows[-1].update(mode=AccMode.ADD, a=1)


@case("mxm")
def add_to_a_row_of_the_other_type(bench: Bench) -> None:
    mxm(bench)
    start = mxm(bench, plane=3, stream=16)
    abc(bench, start)
    abc(bench, start + 1, width=2)
    bench.rows[-1]["mode"] = AccMode.ADD


# ---- links and barriers ---------------------------------------------------------------------


@case("link")
def sends_too_close(bench: Bench) -> None:
    for cycle in (40, 40 + SPEC.send_spacing_cycles - 1):
        bench.feed(136, 3, cycle, vector(1))
        bench.add(Op.SEND, cycle, 136, s0=3)


@case("sync")
def parked_queue_issues(bench: Bench) -> None:
    bench.add(Op.SYNC, 40, 7)
    bench.add(Op.NOTIFY, 40, 8)
    bench.add(Op.READ, 40 + SPEC.notify_cycles - 1, 7, out=0)


@case("sync")
def notify_came_before(bench: Bench) -> None:
    bench.add(Op.NOTIFY, 39, 8)
    bench.add(Op.SYNC, 40, 7)


@pytest.mark.parametrize(("code", "offence"), CASES)
def test_fault(code: str, offence: Case) -> None:
    bench = Bench()
    bench.gangs = [(1, 2)]
    bench.maps = [np.zeros(320, int)]
    offence(bench)
    with pytest.raises(ProgramFault) as caught:
        bench.run()
    fault = caught.value
    assert (fault.code, fault.chip) == (code, 0), fault
    assert any(fault.cycle == row["cycle"] for row in bench.rows)
    assert fault.message


@pytest.mark.parametrize("late", [-1, 1])
def test_receive_at_another_cycle(late: int) -> None:
    left, right = Bench(), Bench()
    left.feed(136, 3, 30, vector(1))
    left.add(Op.SEND, 30, 136, s0=3)
    right.add(Op.RECEIVE, 30 + SPEC.send_to_receive_cycles + late, 128, out=1)
    right.chip.chip_id = 1
    with pytest.raises(ProgramFault) as caught:
        run_together([left.chip, right.chip], [left.program(), right.program()], [(0, 8, 1, 0)])
    assert (caught.value.code, caught.value.chip, caught.value.queue) == ("link", 1, 128)


def test_legal_neighbours_of_the_faults() -> None:
    bench = Bench()
    bench.feed(50, 2, 40, vector(1))
    bench.add(Op.WRITE, 40, 50, a=7, s0=2)
    bench.add(Op.READ, 40, 50, a=4096, out=1)
    bench.add(Op.READ, 42, 50, a=7, out=1)
    bench.add(Op.READ, 42, 54, a=7, out=1)
    bench.add(Op.SYNC, 60, 7)
    bench.add(Op.NOTIFY, 60, 8)
    bench.add(Op.READ, 60 + SPEC.notify_cycles, 7, out=0)
    first = mxm(bench, groups=3, start=100)
    abc(bench, first)
    second = mxm(bench, start=100 + 3 + SPEC.mxm_reload_gap_cycles)
    abc(bench, second - SPEC.mxm_install_cycles)  # with the IW: still the old weights
    abc(bench, second)
    for cycle in (200, 200 + SPEC.send_spacing_cycles):
        bench.feed(136, 3, cycle, vector(1))
        bench.add(Op.SEND, cycle, 136, s0=3)
    bench.add(Op.DESKEW, 300, 136)
    assert bench.run().retired == len(bench.rows)
    codes = {param.values[0] for param in CASES}
    assert codes == {
        "queue",
        "bank",
        "in-flight",
        "bounds",
        "align",
        "driver",
        "missing",
        "want",
        "alu",
        "mxm",
        "sxm",
        "link",
        "sync",
        "offset",
    }
