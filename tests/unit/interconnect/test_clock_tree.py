"""Alignment against a tick-by-tick simulation, and row 15: the start of all programs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interconnect.clocks import (
    AlignmentError,
    ClockError,
    draw_drift,
    spanning_tree,
    start_cost_epochs,
)
from interconnect.clocks.links import NANO, Ints, LinkEstimates, Links, characterise
from interconnect.clocks.tree import (
    HOLD_EXCHANGES,
    SLEW_NANO,
    Alignment,
    Tree,
    align,
    initial_phases,
    simulate_start,
)
from interconnect.wiring import node_cables


def _chain(chips: int) -> Ints:
    return np.array([(c, 8, c + 1, 0) for c in range(chips - 1)])


def _random_tree(parents: list[int]) -> Ints:
    """Chip i + 1 hangs at chip parents[i] % (i + 1); links do not matter here."""
    return np.array([(p % (i + 1), i % 16, i + 1, 0) for i, p in enumerate(parents)]).reshape(-1, 4)


def test_the_tree_is_breadth_first_with_the_lowest_parent_and_cable() -> None:
    tree = spanning_tree(node_cables(8), 8)
    assert tree.height == 1 and (tree.parent[1:] == 0).all()
    square = [(2, 0, 3, 0), (1, 0, 3, 1), (1, 2, 3, 2), (0, 0, 2, 1), (1, 1, 0, 1)]
    tree = spanning_tree(square, 4)
    assert tree.parent.tolist() == [-1, 0, 0, 1]
    assert tree.cable.tolist() == [-1, 4, 3, 1]
    assert tree.depth.tolist() == [0, 1, 1, 2]
    with pytest.raises(ClockError, match="chip 4 and 1 more have no way"):
        spanning_tree([*square, (4, 0, 5, 0)], 6)
    with pytest.raises(ClockError, match=r"cable 1 .* 0\.\.1"):
        spanning_tree([(0, 0, 1, 0), (0, 1, 2, 0)], 2)


def _aligned(
    cables: Ints, chips: int, ppm: float, seed: int, slew: int = SLEW_NANO
) -> tuple[Tree, Links, LinkEstimates, Ints, Alignment]:
    tree, drift = spanning_tree(cables, chips), draw_drift(chips, ppm, seed)
    links = Links(tree.cable[1:])
    found = characterise(links, 20_000, seed, drift_ppb=drift[1:])
    return tree, links, found, drift, align(tree, links, found, drift, seed=seed, slew_nano=slew)


def _tick_by_tick(
    tree: Tree,
    links: Links,
    found: LinkEstimates,
    drift: Ints,
    seed: int,
    slew: int,
    intervals: int,
) -> list[list[int]]:
    """Phases less chip 0's after every interval: one tick of true time after the other."""
    period, interval = 252, 252
    chips = len(drift)
    half = period * NANO // 2
    phase = [int(p) for p in initial_phases(chips, seed, period)]
    latency = links.latencies(seed, 3, 0, intervals)
    flying: dict[int, list[tuple[int, int]]] = {}
    pending = [0] * chips
    history = []
    for tick in range(intervals * interval):
        if tick % interval == 0:
            for child in range(1, chips):
                parent = int(tree.parent[child])
                arrival = tick + int(latency[child - 1, tick // interval])
                flying.setdefault(arrival, []).append((child, phase[parent] // NANO % period))
        for child, received in flying.pop(tick, []):
            mean = round(found.mean_cycles[child - 1] * NANO)
            error = (phase[child] // NANO % period - received) * NANO - mean
            error = (error + half) % (2 * half) - half
            pending[child] = max(-slew, min(slew, error))
        for chip in range(chips):
            phase[chip] = (phase[chip] + NANO + int(drift[chip])) % (period * NANO)
        if (tick + 1) % interval == 0:
            phase = [(p - s) % (period * NANO) for p, s in zip(phase, pending, strict=True)]
            pending = [0] * chips
            history.append([(p - phase[0] + half) % (2 * half) - half for p in phase])
    return history


@pytest.mark.parametrize(
    ("cables", "chips"),
    [(_chain(3), 3), (np.array(node_cables(4)), 4), (_random_tree([0, 0, 1]), 4)],
)
def test_alignment_agrees_with_the_tick_by_tick_simulation(cables: Ints, chips: int) -> None:
    slew = 2 * NANO
    tree, links, found, drift, fast = _aligned(cables, chips, 100, 5, slew)
    hold = HOLD_EXCHANGES * (tree.height + 1)
    slow = _tick_by_tick(tree, links, found, drift, 5, slew, fast.exchanges + hold - 1)
    assert slow[-1] == fast.offset_nano.tolist()
    last = np.array(slow[-HOLD_EXCHANGES:])
    assert int(np.abs(last).max()) == fast.worst_residual_nano
    half = 126 * NANO
    hops = np.array(slow)[:, 1:] - np.array(slow)[:, tree.parent[1:]]
    inside = (np.abs((hops + half) % (2 * half) - half) <= fast.hop_bound_nano).all(axis=1)
    assert inside[fast.exchanges - 1 :].all() and not inside[fast.exchanges - 2]


@pytest.mark.parametrize("ppm", [0, 100])
@pytest.mark.parametrize("seed", range(4))
def test_alignment_converges_within_the_jitter(ppm: float, seed: int) -> None:
    """Published: the child slews at a bounded rate, so what is left is bounded by the jitter."""
    for cables, chips in ((np.array(node_cables(8)), 8), (_chain(6), 6)):
        tree, _, found, _, done = _aligned(cables, chips, ppm, seed)
        jitter = max(np.max(found.max_cycles - found.mean_cycles), 0)
        assert done.worst_hop_nano <= done.hop_bound_nano.max() < (jitter + 2) * NANO
        assert done.worst_residual_nano <= tree.height * done.hop_bound_nano.max()
        # half a period at a quarter of a cycle an exchange is 504; chains follow one another
        assert 0 < done.exchanges < 504 * (tree.height + 1)


def test_a_biased_latency_shows_in_the_residual() -> None:
    tree, links, found, drift, _ = _aligned(np.array(node_cables(8)), 8, 10, 1)
    late = replace(found, mean_cycles=found.mean_cycles + 20)
    apart = align(tree, links, late, drift, seed=1).offset_nano[1:]
    assert (apart < -17 * NANO).all() or (apart > 17 * NANO).all()


def test_a_slew_slower_than_the_drift_is_refused() -> None:
    with pytest.raises(AlignmentError, match=r"chip \d may drift .* slew faster"):
        _aligned(np.array(node_cables(4)), 4, 100, 1, slew=NANO // 1000)


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(0, 800), st.sampled_from([252, 256]))
def test_row_15_program_alignment(parents: list[int], latency: int, period: int) -> None:
    """Published: (floor(L / period) + 1) * h; "cycles" in the notes, epochs taken here."""
    chips = len(parents) + 1
    tree = spanning_tree(_random_tree(parents), chips)
    start = simulate_start(tree, np.full(chips - 1, latency), period)
    published = (latency // period + 1) * tree.height
    assert start.epochs == published == start_cost_epochs(latency, period, tree.height)
    assert (start.woken_epoch + start.deskews == published).all()


def test_row_15_at_the_figures_of_the_node() -> None:
    """L = 217, period 252 or 256: one epoch a hop, five for the 10,440-chip diameter."""
    for period in (252, 256):
        assert simulate_start(spanning_tree(_chain(6), 6), np.full(5, 217), period).epochs == 5
    edges = {251: 1, 252: 2, 503: 2, 504: 3}
    for latency, epochs in edges.items():
        tree = spanning_tree(_chain(2), 2)
        assert simulate_start(tree, np.array([latency]), 252).epochs == epochs


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 900)), min_size=1, max_size=30))
def test_cables_of_different_length_wake_chips_along_their_paths(
    hops: list[tuple[int, int]],
) -> None:
    tree = spanning_tree(_random_tree([p for p, _ in hops]), len(hops) + 1)
    start = simulate_start(tree, np.array([latency for _, latency in hops]), 252)
    for chip in range(1, len(hops) + 1):
        wait = hops[chip - 1][1] // 252 + 1
        assert start.woken_epoch[chip] == start.woken_epoch[tree.parent[chip]] + wait
    assert start.epochs == start.woken_epoch.max()


def test_misaligned_edges_move_the_start() -> None:
    tree = spanning_tree(_chain(2), 2)
    ahead = np.array([0, 40 * NANO])  # the child's edge comes before the message of 217 cycles
    assert simulate_start(tree, np.array([217]), 252, ahead).epochs == 2
    assert simulate_start(tree, np.array([217]), 252, -ahead).epochs == 1
    chain = spanning_tree(_chain(3), 3)  # the middle chip's edges are early for sending as well
    early = np.array([0, 30 * NANO, 30 * NANO])
    assert simulate_start(chain, np.array([217, 217]), 252, early).woken_epoch.tolist() == [0, 1, 2]
