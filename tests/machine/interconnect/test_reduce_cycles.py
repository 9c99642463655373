"""Sums on the VXM: what the wire schedule assumes, beside the compiled kernel of a node."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chip.isa import C2C_QUEUE, Op
from chip.program import expand
from chip.spec import PRESETS, ChipSpec
from interconnect.collectives import RECEIVED_QUADS
from interconnect.collectives.node import compile_collective
from interconnect.collectives.plan import (
    REDUCE_LATENCY,
    collective_bounds,
    least_vxm_cycles,
    reduce_cycles,
)
from interconnect.wiring import topology_of

SPEC = ChipSpec()


def compiled_cycles(chips: int, words: int) -> int:
    """From the last received word readable to the last sum readable, by the program's Writes."""
    table = expand(compile_collective("all-reduce", chips, words, SPEC).programs[0])
    writes = table[table["op"] == Op.WRITE]
    received = {queue for quad in RECEIVED_QUADS.values() for queue in quad}
    taken = np.isin(writes["queue"], list(received))
    assert (table["queue"] >= C2C_QUEUE).any() and taken.any()
    return int(writes["cycle"].max() - writes["cycle"][taken].max())


@pytest.mark.parametrize("chips", [2, 4, 8])
@pytest.mark.parametrize("words", [1, 2, 8, 40])
def test_the_schedule_gives_a_sum_no_less_time_than_the_kernel_takes(
    chips: int, words: int
) -> None:
    assumed = int(reduce_cycles(np.array(words), np.array(chips), SPEC))
    assert assumed == REDUCE_LATENCY + words * (chips - 1)
    assert compiled_cycles(chips, words) <= assumed


def test_the_figure_beside_the_assumed_latency() -> None:
    assert compiled_cycles(8, 1) == 27 < REDUCE_LATENCY == 60


def test_without_terms_there_are_no_cycles() -> None:
    words, terms = np.array([0, 3, 3]), np.array([8, 1, 0])
    assert reduce_cycles(words, terms, SPEC).tolist() == [0, 0, 0]


def test_the_least_way_through_an_alu() -> None:
    """Published: 12 + 2*floor(s/4) cycles, s = 0 beside the VXM; it follows a chip's own fields."""
    assert [least_vxm_cycles(spec) for spec in PRESETS.values()] == [12, 12]
    slow = replace(SPEC, read_cycles=4, write_cycles=7, alu_cycles=5)
    assert least_vxm_cycles(slow) == 12 + 3 + 5 + 2
    node = topology_of(8)
    bounds = [collective_bounds(node, "all-reduce", 1, spec)["latency"] for spec in (SPEC, slow)]
    # a hop, three more vectors, and a tree of three sums: two more ALUs
    assert bounds[0].cycles == 650 + 3 * 24 + 12 + 2 * 3
    assert bounds[1].cycles == 650 + 3 * 24 + 22 + 2 * 5
