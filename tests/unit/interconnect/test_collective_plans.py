"""Collectives of any fabric as plans: legal, no better than their bounds, and published figures."""

from __future__ import annotations

import time
from functools import lru_cache

import numpy as np
import pytest

from chip.checker import check
from chip.spec import PRESETS
from interconnect.collectives import OPERATIONS, collective_steps, plan_collective
from interconnect.collectives.algorithms import algorithms_for
from interconnect.collectives.bounds import collective_bounds
from interconnect.collectives.plan import BUFFER_WORDS
from interconnect.wiring import Topology, diameter, hop_distances, named_topology, topology_of
from interconnect.wiring.topology import lpx_rack
from tests.stands.wires import SPEC, faults_of

where = lru_cache(topology_of)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("chips", [1, 2, 8, 16, 72])
def test_plans_are_legal_and_no_better_than_their_bounds(operation: str, chips: int) -> None:
    if chips == 1 and operation == "point-to-point":
        return
    for nbytes in (1, 5000, 50_000):
        plan = plan_collective(where(chips), operation, nbytes, SPEC, window=100)
        assert plan.findings == [] and plan.link_conflicts == 0
        if chips <= 16:
            assert faults_of(plan.schedule, where(chips)) == set()
        assert plan.vector_hops == plan.run.vector_hops == plan.schedule.vector_hops
        assert chips == 1 or plan.latency_cycles >= max(b.cycles for b in plan.bounds.values())
        assert plan.digest == plan_collective(where(chips), operation, nbytes, SPEC).digest


@pytest.mark.parametrize("operation", ["all-reduce", "broadcast", "all-to-all"])
def test_the_algorithm_with_fewest_cycles_is_taken(operation: str) -> None:
    fabric, taken = where(72), set()
    for nbytes in (1280, 20_000, 300_000):
        names = algorithms_for(operation, fabric)
        all_plans = {
            n: plan_collective(fabric, operation, nbytes, SPEC, algorithm=n) for n in names
        }
        best = plan_collective(fabric, operation, nbytes, SPEC)
        assert best.latency_cycles == min(p.latency_cycles for p in all_plans.values())
        taken.add(best.algorithm)
    assert len(names) == 2 and (operation == "all-to-all" or taken == set(names))


@pytest.mark.parametrize("algorithm", ["hierarchical", "one-shot"])
def test_steps_wait_for_the_sums(algorithm: str) -> None:
    """No chip sends in a step before what came in the step before has arrived and is added."""
    plan = plan_collective(where(72), "all-reduce", 12_800, SPEC, algorithm=algorithm)
    steps = collective_steps(where(72), "all-reduce", algorithm, 10)
    schedule, first, ready = plan.schedule, 0, 0
    for step, ended in zip(steps, plan.step_cycles, strict=True):
        rows = (schedule.message >= first) & (schedule.message < first + len(step.messages))
        first += len(step.messages)
        start = rows & (schedule.hop == 0)
        assert (schedule.cycle[start] >= ready + 11).all()
        arrived = int(schedule.last_send()[rows].max()) + SPEC.hop_cycles
        # one ALU adds: a term a cycle, or four cycles where it waits for its own last sum
        adds = int(np.bincount(step.jobs[:, 0], step.jobs[:, 2] * step.jobs[:, 5]).max())
        assert ended >= arrived + adds
        ready = ended
    assert plan.latency_cycles == ready


def test_tensors_larger_than_the_buffers_go_in_launches() -> None:
    words = 2 * BUFFER_WORDS + 11
    plan = plan_collective(where(4), "all-reduce", 1280 * words, SPEC)
    assert plan.launch_words == [5465, 5465, 5465] and sum(plan.launch_words) == words
    odd = plan_collective(where(4), "all-reduce", 1280 * (words + 1), SPEC)
    assert odd.launch_words == [5466, 5465, 5465]
    one = plan_collective(where(4), "all-reduce", 1280 * 5465, SPEC)
    assert plan.latency_cycles == 3 * one.latency_cycles
    assert plan.vector_hops == 3 * one.vector_hops


def test_other_fabrics(tmp_path: object) -> None:
    """The rack of 32 trays with its own chip, and a ring of five chips from a file."""
    spec = PRESETS["groq-3-lp30"]
    plan = plan_collective(lpx_rack(), "all-reduce", 100_000, spec)
    assert plan.findings == [] and plan.chips == 256
    ring = tmp_path / "ring.toml"  # type: ignore[operator]
    cables = [[c, 0, (c + 1) % 5, 8] for c in range(5)]
    ring.write_text(f"chips = 5\ncables = {cables}\n")
    fabric: Topology = named_topology(ring)
    assert algorithms_for("all-reduce", fabric) == ("hierarchical",)
    plan = plan_collective(fabric, "all-reduce", 100_000, SPEC)
    assert plan.findings == [] and faults_of(plan.schedule, fabric) == set()


def test_a_collective_moves_at_least_a_byte() -> None:
    with pytest.raises(ValueError, match="at least one"):
        plan_collective(where(8), "all-reduce", 0, SPEC)


# -- bars and published figures ------------------------------------------------------------------


def test_one_gibibyte_over_the_seven_links_of_a_node() -> None:
    """At least 90 % of 2 * (V / 8) * 2952/125 cycles over each link; 94 % measured."""
    plan = plan_collective(where(8), "all-reduce", 1 << 30, SPEC)
    vectors = 4 * -(-(1 << 30) // 1280)
    bound = plan.bounds["bandwidth"]
    assert bound.cycles == -(-2 * vectors * 2952 // (8 * 125)), bound.formula
    assert len(plan.launch_words) == 103 and plan.link_conflicts == 0
    assert bound.cycles / plan.latency_cycles >= 0.90
    busy = [float(plan.run.busy_ratio(int(link))) for link in plan.run.links]
    assert len(busy) == 56 and min(busy) >= 0.90


def test_one_word_is_within_a_tenth_of_the_latency_bound() -> None:
    """8 chips, 320 B: one hop, three more vectors of the word, three sums on the way from SRAM to
    SRAM.  The programs are there, proven legal, and fit each other.
    """
    plan = plan_collective(where(8), "all-reduce", 320, SPEC)
    bound = plan.bounds["latency"]
    assert bound.cycles == 650 + 3 * 24 + 12 + 2 * 3, bound.formula
    assert plan.algorithm == "one-shot" and plan.latency_cycles <= 1.1 * bound.cycles
    assert plan.tree is not None and plan.latency_cycles == plan.tree.cycles
    assert plan.link_conflicts == 0
    assert check(plan.tree.programs[0], SPEC) == []


def test_calibration_row_18_all_reduce_of_256_chips() -> None:
    """ISCA'22: 256 chips, 3 hops of 722 ns: 2,166 ns.  Emulated: 2,706 ns for a word.

    Three hops of 650 cycles are 2,167 ns here too.  The rest is what three steps of a word cost
    beside the hops: three more vectors (80 ns), and the Read, the wait for a frame and the sums
    (about 100 ns), each time.  Nothing is fitted.
    """
    plan = plan_collective(where(256), "all-reduce", 320, SPEC)
    assert plan.algorithm == "one-shot" and len(plan.step_cycles) == 3
    assert round(plan.latency_ns) == 2706
    assert round(3 * SPEC.hop_cycles / SPEC.clock_hz * 1e9) == 2167
    bound = collective_bounds(where(256), "all-reduce", 1, SPEC)["latency"]
    assert bound.cycles == 3 * 650 + 3 * 24 + 18


def test_calibration_row_19_end_to_end_of_10440_chips() -> None:
    """ISCA'22 abstract: 10,440 chips, less than 3 us end to end.  Emulated: 4.65 us for a word.

    The published hop of 722 ns gives 3.6 us for the published five hops, which is above 3 us
    already (a contradiction of the sources).  Over the cables as assumed here two chips are up to
    six hops apart; store-and-forward adds the wait for a frame at every hop.
    """
    fabric = where(10_440)
    hops = hop_distances(fabric, [0])[0]
    farthest = int(hops.argmax())
    assert int(hops.max()) == 6 == diameter(fabric)
    plan = plan_collective(fabric, "point-to-point", 320, SPEC, root=0, destination=farthest)
    assert plan.bounds["latency"].cycles == 6 * 650 + 3 * 24
    assert round(plan.latency_ns) == 4654
    assert round(5 * SPEC.hop_cycles / SPEC.clock_hz * 1e9) == 3611


@pytest.mark.long
def test_all_reduce_of_10440_chips_in_a_minute() -> None:
    """1 MiB on every chip, scheduled, checked and simulated: 82.6 million vector-hops; 11 s."""
    began = time.perf_counter()
    plan = plan_collective(where(10_440), "all-reduce", 1 << 20, SPEC, clock=time.perf_counter)
    assert time.perf_counter() - began < 60
    assert plan.findings == [] and plan.link_conflicts == 0
    assert plan.vector_hops > 80_000_000
    assert set(plan.wall_seconds) == {"traffic", "routes", "slots", "check", "simulate"}
