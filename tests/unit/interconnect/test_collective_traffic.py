"""Collectives of any fabric: who adds what (symbolically), bounds, and published figures."""

from __future__ import annotations

import time
from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip.checker import check
from chip.spec import PRESETS
from interconnect.collectives import OPERATIONS, CollectivePlan, plan_collective
from interconnect.collectives.plan import BUFFER_WORDS, collective_bounds, reduce_cycles
from interconnect.collectives.traffic import (
    Traffic,
    algorithms_for,
    collective_traffic,
    group_sizes,
)
from interconnect.wiring import Topology, diameter, hop_distances, named_topology, topology_of
from interconnect.wiring.topology import lpx_rack
from tests.stands.wires import SPEC, faults_of

where = lru_cache(topology_of)
Shares = list[tuple[int, int]]


def _shares(sizes: tuple[int, ...], words: int) -> Shares:
    """The nested share (first word, end) of every chip, innermost groups first."""
    chips = int(np.prod(sizes))
    shares = []
    for chip in range(chips):
        first, end, rest = 0, words, chip
        for parts in sizes:
            rest, part = divmod(rest, parts)
            base, extra = divmod(end - first, parts)
            longer = {(first + i) % parts for i in range(extra)}
            lengths = [base + (p in longer) for p in range(parts)]
            first += sum(lengths[:part])
            end = first + lengths[part]
        shares.append((first, end))
    return shares


def _play(traffic: Traffic, state: list[dict[int, Counter[int]]]) -> list[dict[int, Counter[int]]]:
    """Buffer 0 of every chip after the collective: word -> contributions, as multisets.

    ``state``: buffer 0 before.  Every chip sends what its buffer held when the step began.
    """
    chips = len(state)
    buffers: dict[int, list[dict[int, Counter[int]]]] = {0: state}
    for number, step in enumerate(traffic.steps):
        for b in (step.send, step.into):
            buffers.setdefault(b, [{} for _ in range(chips)])
        before = [dict(words) for words in buffers[step.send]]
        for m in np.flatnonzero(traffic.step == number).tolist():
            target = buffers[step.into][int(traffic.destination[m])]
            held = before[int(traffic.source[m])]
            for w in range(int(traffic.first[m]), int(traffic.first[m] + traffic.words[m])):
                terms = held.get(w, Counter())
                target[w] = target.get(w, Counter()) + terms if step.add else terms
        for into, other in step.merge:
            for chip in range(chips):
                mine = buffers[into][chip]
                for w, terms in buffers[other][chip].items():
                    mine[w] = mine.get(w, Counter()) + terms
    return buffers[0]


SYMBOLIC = [2, 4, 8, 16, 24, 72]  # and four racks of 72, three levels of groups


@pytest.mark.parametrize(
    ("chips", "words"), [(c, w) for c in SYMBOLIC for w in (1, 3, 23)] + [(288, 2)]
)
def test_every_chip_contributes_to_every_word_exactly_once(chips: int, words: int) -> None:
    fabric = where(chips)
    everyone = Counter(range(chips))
    shares = _shares(group_sizes(fabric), words)
    for algorithm in algorithms_for("all-reduce", fabric):
        own = [{w: Counter([c]) for w in range(words)} for c in range(chips)]
        done = _play(collective_traffic(fabric, "all-reduce", algorithm, words), own)
        assert all(done[c][w] == everyone for c in range(chips) for w in range(words)), algorithm
    own = [{w: Counter([c]) for w in range(words)} for c in range(chips)]
    done = _play(collective_traffic(fabric, "reduce-scatter", "hierarchical", words), own)
    assert all(done[c][w] == everyone for c in range(chips) for w in range(*shares[c]))
    part = [{w: Counter([c]) for w in range(*shares[c])} for c in range(chips)]
    done = _play(collective_traffic(fabric, "all-gather", "hierarchical", words), part)
    owner = {w: c for c in range(chips) for w in range(*shares[c])}
    assert all(done[c] == {w: Counter([owner[w]]) for w in range(words)} for c in range(chips))
    root = chips - 2
    for algorithm in algorithms_for("broadcast", fabric):
        held = [{w: Counter([w]) for w in range(words) if c == root} for c in range(chips)]
        traffic = collective_traffic(fabric, "broadcast", algorithm, words, root=root)
        assert all(h == {w: Counter([w]) for w in range(words)} for h in _play(traffic, held))


@pytest.mark.parametrize("chips", [*SYMBOLIC, 288])
def test_all_to_all_brings_everything_to_its_chip(chips: int) -> None:
    """Tokens (source, destination) move in whole; message sizes are the tokens they carry."""
    fabric, words = where(chips), 3 * chips + 5
    sizes = group_sizes(fabric)
    share = [end - first for first, end in _shares(sizes, words)]
    at = {(s, d): s for s in range(chips) for d in range(chips)}
    traffic = collective_traffic(fabric, "all-to-all", "hierarchical", words)
    stride = 1
    for level, size in enumerate(sizes):
        moved: Counter[tuple[int, int]] = Counter()
        for (s, d), chip in at.items():
            place = chip // stride % size
            there = chip + (d // stride % size - place) * stride
            at[s, d] = there
            if there != chip:
                moved[chip, there] += share[d]
        rows = np.flatnonzero(traffic.step == level)
        sent = {
            (int(traffic.source[m]), int(traffic.destination[m])): int(traffic.words[m])
            for m in rows
        }
        assert sent == {pair: n for pair, n in moved.items() if n}
        stride *= size
    assert all(chip == d for (_, d), chip in at.items())
    for algorithm in algorithms_for("all-to-all", fabric)[1:]:
        direct = collective_traffic(fabric, "all-to-all", algorithm, words)
        assert int(direct.words.sum()) == (chips - 1) * words


@given(st.sampled_from([8, 16, 72, 264, 10_440]), st.integers(1, 40_000))
@settings(max_examples=30, deadline=None)
def test_shards_are_whole_words_as_even_as_possible(chips: int, words: int) -> None:
    """Every word has one owner; owners differ by a word for each level of groups at most."""
    fabric = where(chips)
    traffic = collective_traffic(fabric, "all-gather", "hierarchical", words)
    last = traffic.step == 0
    held = np.zeros(chips, np.int64)
    held[traffic.source[last]] = traffic.words[last]
    assert held.sum() == words
    assert held.max() - held.min() <= len(group_sizes(fabric))


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


def _reads_after_sums(plan: CollectivePlan, traffic: Traffic) -> None:
    """No chip sends in a step before what it received in the step before is added."""
    ready = np.zeros(plan.chips, np.int64)
    schedule = plan.schedule
    for number, step in enumerate(traffic.steps):
        rows = traffic.step[schedule.message] == number
        first = rows & (schedule.hop == 0)
        assert (schedule.cycle[first] >= ready[schedule.chip[first]] + 11).all()
        arrived = ready.copy()
        far = schedule.destination[schedule.message]
        for r in np.flatnonzero(rows).tolist():
            end = int(schedule.last_send()[r]) + SPEC.hop_cycles
            arrived[far[r]] = max(arrived[far[r]], end)
        ready = arrived + reduce_cycles(step.words, step.terms, SPEC)
    assert plan.latency_cycles >= int(ready.max())


@pytest.mark.parametrize("algorithm", ["hierarchical", "one-shot"])
def test_steps_wait_for_the_sums(algorithm: str) -> None:
    plan = plan_collective(where(72), "all-reduce", 12_800, SPEC, algorithm=algorithm)
    traffic = collective_traffic(where(72), "all-reduce", algorithm, 10)
    _reads_after_sums(plan, traffic)


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


@pytest.mark.parametrize(
    ("operation", "algorithm", "words", "root", "says"),
    [
        ("gather", "direct", 1, 0, "known are"),
        ("all-reduce", "direct", 1, 0, "'direct'"),
        ("broadcast", "one-shot", 0, 0, "at least 1"),
        ("broadcast", "one-shot", 1, 8, "of 8 chips"),
    ],
)
def test_what_does_not_exist_is_said(
    operation: str, algorithm: str, words: int, root: int, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        collective_traffic(where(8), operation, algorithm, words, root=root)
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
    assert plan.compiled is not None and plan.latency_cycles == plan.compiled.cycles
    assert plan.link_conflicts == 0
    assert check(plan.compiled.programs[0], SPEC) == []


def test_calibration_row_18_all_reduce_of_256_chips() -> None:
    """ISCA'22: 256 chips, 3 hops of 722 ns: 2,166 ns.  Emulated: 2,728 ns for a word.

    Three hops of 650 cycles are 2,167 ns here too.  The rest is what three steps of a word cost
    beside the hops: three more vectors (80 ns), the Read and the wait for a frame (29 to 37 ns)
    and the sums (70 to 76 ns), each time.  Nothing is fitted.
    """
    plan = plan_collective(where(256), "all-reduce", 320, SPEC)
    assert plan.algorithm == "one-shot" and len(plan.step_cycles) == 3
    assert round(plan.latency_ns) == 2728
    assert round(3 * SPEC.hop_cycles / SPEC.clock_hz * 1e9) == 2167
    bound = collective_bounds(where(256), "all-reduce", 1, SPEC)["latency"]
    assert bound.cycles == 3 * 650 + 3 * 24 + 18


def test_calibration_row_19_end_to_end_of_10440_chips() -> None:
    """ISCA'22 abstract: 10,440 chips, less than 3 us end to end.  Emulated: 4.62 us for a word.

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
    assert round(plan.latency_ns) == 4623
    assert round(5 * SPEC.hop_cycles / SPEC.clock_hz * 1e9) == 3611


@pytest.mark.long
def test_all_reduce_of_10440_chips_in_a_minute() -> None:
    """1 MiB on every chip, scheduled, checked and simulated: 82.6 million vector-hops; 11 s."""
    began = time.perf_counter()
    plan = plan_collective(
        where(10_440), "all-reduce", 1 << 20, SPEC, clock=time.perf_counter
    )
    assert time.perf_counter() - began < 60
    assert plan.findings == [] and plan.link_conflicts == 0
    assert plan.vector_hops > 80_000_000
    assert set(plan.wall_seconds) == {"traffic", "routes", "slots", "check", "simulate"}
