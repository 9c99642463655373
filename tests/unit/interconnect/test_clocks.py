"""Row 16: drift and what a deskew costs, against a cycle-by-cycle simulation; the whole report."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chip.spec import ChipSpec
from interconnect.clocks import (
    HAC_PERIOD_CYCLES,
    AlignmentError,
    ClockError,
    DriftError,
    run_clocks,
    simulate_run,
)
from interconnect.clocks.drift import ClockReport, RunDrift, drift_nano, ppb
from interconnect.clocks.links import NANO, Ints
from interconnect.wiring import node_cables

ITERATIONS = 100_000


def _chain(chips: int) -> Ints:
    return np.array([(c, 8, c + 1, 0) for c in range(chips - 1)])


def test_row_16_drift() -> None:
    """Published: 1 ppm at 1 GHz is 1 cycle a ms; +-100 ppm at 0.9 GHz is 90; a deskew ~1 epoch."""
    assert drift_nano(ppb(1), 1_000_000) == 1 * NANO
    assert drift_nano(ppb(100), 900_000) == 90 * NANO
    pair = np.array([0, ppb(1)])
    run = simulate_run(_chain(2), pair, 10_000_000, 1_000_000, 1)
    assert run == RunDrift(9, 9 * HAC_PERIOD_CYCLES, 10_002_268, NANO, 0, 1_000_000, 1)


def test_the_longest_runs() -> None:
    """10**12 cycles and 10,000,000 deskews, and not one more; perfect clocks never part."""
    perfect = np.zeros(2, np.int64)
    longest = simulate_run(_chain(2), perfect, 10**12, 10**12, 0)
    assert (longest.deskews, longest.worst_nano) == (0, 0)
    with pytest.raises(ClockError, match="a run of 1000000000001 cycles: take 1000000000000 or"):
        simulate_run(_chain(2), perfect, 10**12 + 1, 10**12, 0)
    with pytest.raises(ClockError, match="a deskew every 1 of 10000001 cycles: deskew 10000000 ti"):
        simulate_run(_chain(2), perfect, 10**7 + 1, 1, 0)
    for wrong in ((-1, 1, 0), (1, -1, 0), (1, 1, -1)):
        with pytest.raises(ClockError, match="must not be negative"):
            simulate_run(_chain(2), perfect, *wrong)
    assert simulate_run(_chain(2), perfect, 0, 0, 0).worst_nano == 0


def test_row_16_drift_above_the_budget_is_caught() -> None:
    pair = np.array([0, ppb(1)])
    assert simulate_run(_chain(2), pair, 1_000_000, 0, 1).worst_nano == NANO
    with pytest.raises(DriftError) as caught:
        simulate_run(_chain(2), pair, 1_000_001, 0, 1)
    error = caught.value
    assert (error.chip_a, error.link_a, error.chip_b, error.link_b) == (0, 8, 1, 0)
    assert (error.cycle, error.drift_nano, error.budget_cycles) == (1_000_001, NANO + 1000, 1)
    assert str(error).startswith(
        "chip 0 link 8 and chip 1 link 0 are 1.000001 cycles apart at cycle 1000001, "
        "the budget is 1: "
    )
    with pytest.raises(DriftError) as caught:  # a thousandth of a ppm more, in the same million
        simulate_run(_chain(2), np.array([0, ppb(1.001)]), 1_000_000, 1_000_000, 1)
    assert caught.value.cycle == 999_001
    with pytest.raises(DriftError):  # the fraction that a deskew leaves counts as well
        simulate_run(_chain(2), np.array([0, ppb(0.9)]), 2_000_000, 1_000_000, 1)


def test_the_worst_cable_may_be_one_that_began_better() -> None:
    """1 ppm leaves no fraction behind at each deskew, 0.9 ppm does, and is then further apart."""
    star = np.array([(0, 0, 1, 0), (0, 1, 2, 0)])
    drift = np.array([0, ppb(1), ppb(0.9)])
    run = simulate_run(star, drift, 3_000_000, 1_000_000, 2)
    assert (run.worst_nano, run.worst_cable, run.worst_cycle) == (1_800_000_000, 1, 2_000_000)


def _cycle_by_cycle(
    cables: Ints, drift: list[int], run: int, interval: int, budget: int
) -> tuple[int, int, int] | tuple[int, int]:
    """(cycle, cable, nano) of the first cable out of budget, else (deskews, worst nano)."""
    sac = [0] * len(drift)
    worst = deskews = 0
    for cycle in range(1, run + 1):
        sac = [s + d - drift[0] for s, d in zip(sac, drift, strict=True)]
        for row, (a, _, b, _) in enumerate(cables.tolist()):
            apart = abs(sac[a] - sac[b])
            if apart > budget * NANO:
                return cycle, row, apart
            worst = max(worst, apart)
        if interval and cycle % interval == 0 and cycle < run:
            deskews += 1
            sac = [s - int(s / NANO) * NANO for s in sac]
    return deskews, worst


@settings(deadline=None)
@given(
    st.lists(st.integers(-900_000, 900_000), min_size=2, max_size=5),
    st.integers(1, 4_000),
    st.integers(0, 2_000),
    st.integers(1, 5),
)
def test_runs_agree_with_cycle_by_cycle(
    drift: list[int], run: int, interval: int, budget: int
) -> None:
    cables = np.array([(a, b, b, a) for b in range(len(drift)) for a in range(b)])
    slow = _cycle_by_cycle(cables, drift, run, interval, budget)
    try:
        fast = simulate_run(cables, np.array(drift), run, interval, budget)
    except DriftError as error:
        row = [tuple(c) for c in cables.tolist()].index(
            (error.chip_a, error.link_a, error.chip_b, error.link_b)
        )
        assert slow == (error.cycle, row, error.drift_nano)
    else:
        assert slow == (fast.deskews, fast.worst_nano)


def test_a_delta_beyond_half_a_period_is_not_absorbed() -> None:
    """Neighbours stay close, but the end of the chain is too far from chip 0 for its counter."""
    drift = np.arange(40) * ppb(4)
    with pytest.raises(AlignmentError, match="cannot tell which way"):
        simulate_run(_chain(40), drift, 2_000_000, 1_000_000, 5)
    with pytest.raises(ClockError, match="less than half"):
        simulate_run(_chain(2), drift[:2], 10, 10, 126)


def _node(seed: int = 1, budget: int = 20, **changes: float) -> ClockReport:
    arguments = {
        "ppm": 100,
        "program_cycles": 10_000_000,
        "deskew_interval_cycles": 50_000,
    } | changes
    return run_clocks(
        node_cables(8),
        8,
        ChipSpec(),
        seed=seed,
        iterations=ITERATIONS,
        budget_cycles=budget,
        ppm=arguments["ppm"],
        program_cycles=int(arguments["program_cycles"]),
        deskew_interval_cycles=int(arguments["deskew_interval_cycles"]),
    )


def test_a_node_from_power_on_to_the_end_of_a_run() -> None:
    report = _node()
    assert [row.row for row in report.link_rows] == list("ABCDEFG")
    assert report.tree_height == report.start_epochs == 1 and report.deskews == 199
    assert report.virtual_cycles == 10_000_000 + 199 * 252 == report.deskew_cycles + 10_000_000
    assert json.loads(json.dumps(report.as_json()))["worst_drift_cable"] == [5, 1, 7, 1]
    assert report == _node() and report != _node(seed=2)
    columns = [
        [getattr(row, f"{name}_cycles") for row in report.link_rows]
        for name in ("min", "mean", "max", "std")
    ]
    least, mean, most, std = ((min(column), max(column)) for column in columns)
    assert (report.link_min_cycles, report.link_max_cycles) == (least[0], most[1])
    assert (report.link_mean_cycles, report.link_std_cycles) == (mean, std)
    assert mean[0] < mean[1] and std[0] < std[1]
    ends = [(row.chip_a, row.link_a, row.chip_b, row.link_b) for row in report.link_rows]
    assert ends == [tuple(cable) for cable in node_cables(8) if 0 in (cable[0], cable[2])]
    # the same on every machine: integers, and floats that follow from integers by one division
    assert (report.exchanges, report.worst_residual_cycles) == (450, 1.630786283)
    assert report.link_rows[0].mean_cycles == 216.90024


def test_a_node_that_deskews_too_rarely_is_caught() -> None:
    worst = _node().worst_drift_cycles
    assert _node(budget=int(worst) + 1).worst_drift_cycles == worst
    with pytest.raises(DriftError, match="deskew more often"):
        _node(budget=int(worst))
    with pytest.raises(DriftError, match="chip 5 link 1 and chip 7 link 1"):
        _node(deskew_interval_cycles=500_000)


def test_the_largest_system_and_the_smallest() -> None:
    """10,440 chips, published as at most five hops apart, here a tree of that height."""
    chips = 10_440
    chip = np.arange(1, chips)
    cables = np.stack([(chip - 1) // 7, (chip - 1) % 7, chip, np.full(chips - 1, 7)], axis=1)
    report = run_clocks(
        cables,
        chips,
        ChipSpec(),
        seed=9,
        ppm=50,
        iterations=1_000,
        program_cycles=10_000_000,
        deskew_interval_cycles=50_000,
        budget_cycles=60,
    )
    assert report.tree_height == report.start_epochs == 5 and report.links == 10_439
    assert len(report.link_rows) == 64 and report.worst_residual_cycles < 5 * 13
    alone = run_clocks(
        [],
        1,
        ChipSpec(),
        seed=9,
        ppm=50,
        iterations=1_000,
        program_cycles=1_000,
        deskew_interval_cycles=0,
        budget_cycles=0,
    )
    assert alone.start_epochs == alone.exchanges == 0 and alone.virtual_cycles == 1_000
    assert (alone.link_min_cycles, alone.link_max_cycles, alone.link_rows) == (0.0, 0.0, ())
    assert alone.link_mean_cycles == alone.link_std_cycles == (0.0, 0.0)
    assert alone.worst_drift_cable is None


def test_latencies_that_straddle_a_period_are_caught_at_the_start() -> None:
    """209 to 228 cycles with epochs of 220: a chip may take its start an epoch early."""
    with pytest.raises(AlignmentError, match="straddle a multiple of the period of 220"):
        run_clocks(
            node_cables(8),
            8,
            ChipSpec(),
            seed=1,
            ppm=10,
            iterations=1_000,
            program_cycles=1_000,
            deskew_interval_cycles=0,
            budget_cycles=20,
            period_cycles=220,
        )
