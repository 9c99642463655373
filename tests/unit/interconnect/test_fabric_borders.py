"""Borders of the fabric's small rules: the last taken, the first refused, and defaults."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from chip.spec import PRESETS, ChipSpec
from interconnect.clocks.tree import spanning_tree
from interconnect.collectives import OPERATIONS, collective_steps, plan_collective
from interconnect.collectives.algorithms import MOST_DIRECT, algorithms_for
from interconnect.collectives.bounds import collective_bounds
from interconnect.collectives.quads import job_cycles
from interconnect.collectives.schedule import least_cycles, schedule_steps
from interconnect.fec import random_stream
from interconnect.wires import check_wires, spread
from interconnect.wires.frames import free_quads
from interconnect.wiring import FabricError, Topology, detours, named_topology, topology_of
from tests.stands.wires import SPEC, random_schedule

where = lru_cache(topology_of)


def of_cables(directory: Path, chips: int, cables: list[list[int]]) -> Topology:
    path = directory / "cables.json"
    path.write_text(json.dumps({"chips": chips, "cables": cables}))
    return named_topology(path)


@pytest.mark.parametrize("chips", [1, 2, 8, 16, 72, 1008, 1080])
def test_algorithms_that_there_are(chips: int) -> None:
    """All ways between nodes go by the node where there is one node, or where they are too many."""
    nodes = chips > 8
    several = {
        "point-to-point": ("direct",),
        "all-reduce": ("hierarchical", "one-shot"),
        "broadcast": ("hierarchical", "one-shot"),
        "all-to-all": ("hierarchical", "direct")[: 1 + (nodes and chips <= MOST_DIRECT)],
    }
    for operation in OPERATIONS:
        expected = several.get(operation, ("hierarchical",))
        assert algorithms_for(operation, where(chips)) == expected, operation


def test_a_broadcast_is_of_the_first_chip_unless_another_is_named() -> None:
    for algorithm in algorithms_for("broadcast", where(8)):
        (first, *_) = collective_steps(where(8), "broadcast", algorithm, 3)
        assert set(first.messages[:, 0].tolist()) == {0}


def test_a_collective_of_one_chip_takes_no_time_over_links() -> None:
    plan = plan_collective(where(1), "all-gather", 5000, SPEC)
    assert plan.vectors == plan.vector_hops == 0
    assert plan.bounds["bandwidth"].formula == "one chip sends nothing"
    assert plan.bounds["latency"].formula == "nothing crosses a cable"


def test_a_cut_has_the_links_of_the_chip_that_has_most(tmp_path: Path) -> None:
    """In a row of three the chip between has two links, the others one."""
    row = of_cables(tmp_path, 3, [[0, 0, 1, 0], [1, 8, 2, 8]])
    bound = collective_bounds(row, "broadcast", 10, SPEC)["bandwidth"]
    assert bound.cycles == -(-40 * Fraction(2952, 125) // 2)
    assert bound.formula.endswith("2 links of a chip")


def taken_one_by_one(words: int, terms: int, turn: int) -> int:
    """Cycles of an ALU that takes a term a cycle; a word's terms are ``turn`` cycles apart."""
    cycle = 0
    for first in range(0, words, turn if terms > 1 else 1):
        together = min(turn, words - first) if terms > 1 else 1
        begun = cycle
        for term in range(terms):
            for word in range(together):
                cycle = max(cycle, begun + term * turn + word) + 1
    return cycle


def test_jobs_keep_the_alu_for_as_long_as_terms_come() -> None:
    turn = SPEC.alu_cycles
    cases = [(w, g, t) for w in range(1, 9) for g in (1, 3) for t in (1, 2, 5)]
    words, groups, terms = np.array(cases, np.int64).T
    expected = [g * taken_one_by_one(w, t, turn) for w, g, t in cases]
    assert job_cycles(words, groups, terms, SPEC).tolist() == expected


@pytest.mark.parametrize("operation", ["all-reduce", "all-gather", "broadcast"])
def test_the_least_cycles_are_those_without_waiting(operation: str) -> None:
    """Two chips: every step has one message on a link of its own, which waits for a frame only."""
    steps = collective_steps(where(2), operation, "hierarchical", 50)
    taken = schedule_steps(where(2), steps, SPEC).cycles
    least = least_cycles(steps, SPEC)
    assert 0 <= taken - least < len(steps) * 3 * SPEC.send_spacing_cycles


def test_keys_of_random_streams_are_the_lowest_64_bits() -> None:
    for seed in (0, 1, 2**56 - 1, 2**56, 2**63, 2**64 - 1):
        key = np.array([(seed * 256 + 3) % 2**64, 5 * 2**32 + 7], np.uint64)
        expected = np.random.Generator(np.random.Philox(key=key)).integers(0, 2**63, 4)
        assert random_stream(seed, 3, 5, 7).integers(0, 2**63, 4).tolist() == expected.tolist()


def test_the_first_chip_that_there_is_not_is_out_of_bounds() -> None:
    """And a message without vectors misses none."""
    legal = random_schedule(where(8), 5, 60)
    assert (legal.message_vectors == 0).any()
    assert check_wires(legal, where(8), SPEC) == []
    for chip in (-1, 8, 9):
        chips = legal.chip.copy()
        chips[0] = chip
        found = check_wires(replace(legal, chip=chips), where(8), SPEC)
        assert "bounds" in {f.code for f in found}


def test_quads_are_whole_ones_then_what_is_left_over_four_by_four() -> None:
    for spec in (
        ChipSpec(),
        *PRESETS.values(),
        replace(SPEC, reserved_slices_west=(1, 2), reserved_slices_east=()),
        replace(SPEC, reserved_slices_west=(0, 4, 8, 12, 16, 20, 24), reserved_slices_east=(43,)),
    ):
        quads = free_quads(spec)
        used = [queue for quad in quads for queue in quad]
        free = []
        for base, reserved in ((0, spec.reserved_slices_west), (44, spec.reserved_slices_east)):
            side = [base + s for s in range(44) if s not in reserved]
            free.append(side)
            assert sum(queue in side for queue in used) == len(side) // 4 * 4
        assert len(used) == len(set(used)) and all(list(quad) == sorted(quad) for quad in quads)
        whole = [quad[0] % 4 == 0 and quad[3] == quad[0] + 3 for quad in quads]
        assert whole == sorted(whole, reverse=True)


def test_spreading_needs_two_chips_and_a_vector() -> None:
    for source, destination, vectors in ((3, 3, 10), (3, 4, 0), (3, 3, 0)):
        with pytest.raises(ValueError, match=f"^{vectors} vectors from chip {source} to"):
            spread(where(8), source, destination, vectors, SPEC)
    assert spread(where(8), 3, 4, 1, SPEC).vectors.tolist() == [1]


def test_detours_are_between_chips_that_exist() -> None:
    for source, destination, what in ((8, 1, "source 8"), (1, 8, "destination 8"), (-1, 1, "sour")):
        with pytest.raises(FabricError, match=what):
            detours(where(8), source, destination)


def test_the_cable_with_an_end_at_no_chip_is_named() -> None:
    with pytest.raises(ValueError, match=r"cable 2 is \[1, 2, 3, 0\]: its chips must be 0\.\.2"):
        spanning_tree([(0, 0, 1, 0), (1, 1, 2, 1), (1, 2, 3, 0)], 3)


@pytest.mark.parametrize(
    ("chips", "near"),
    [(3, "2 or 4"), (17, "16 or 24"), (265, "264 or 288"), (10_441, "10440")],
)
def test_the_sizes_on_both_sides_are_named_and_no_others(chips: int, near: str) -> None:
    with pytest.raises(FabricError, match=f"use {near}$"):
        topology_of(chips)


def test_files_of_one_chip_and_of_the_most(tmp_path: Path) -> None:
    assert of_cables(tmp_path, 1, []).chips == 1
    assert of_cables(tmp_path, 16_384, []).chips == 16_384
    for chips in (0, 16_385):
        with pytest.raises(FabricError, match=f"chips is {chips}; use a whole number from 1 to"):
            of_cables(tmp_path, chips, [])


def test_what_is_shown_of_a_value_is_short(tmp_path: Path) -> None:
    """Eighty signs at most, numbers of 64 bits and lists of eight whole."""
    for name, shown in (
        ("!" * 78, repr("!" * 78)),
        ("!" * 79, "'" + "!" * 76 + "..."),
        (2**63 - 1, str(2**63 - 1)),
        (2**63, "a number beyond 64 bits"),
        ([0] * 8, str([0] * 8)),
        ([0] * 9, "a list of 9"),
        ({"a": 1}, "a table of 1"),
    ):
        path = tmp_path / "t.json"
        path.write_text(json.dumps({"chips": 2, "cables": [], "name": name}))
        with pytest.raises(FabricError) as caught:
            named_topology(path)
        assert f": name is {shown}; use 1 to 64 of" in str(caught.value)
