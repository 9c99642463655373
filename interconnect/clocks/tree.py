"""One reference time for many chips: spanning tree, alignment of counters, common start.

Knows cables as an int array [n, 4] (chip, link, chip, link) and clocks as integers of 1e-9 cycles;
knows nothing of topologies, vectors or programs.  Phases are int64 [chips], modulo one period; a
chip's *offset* is its phase less that of chip 0, the root, wrapped to half a period either side.

Published (ISCA'22): the child compares the parent's counter plus the latency with its own and
slews at a bounded rate; a spanning tree carries it over hops; DESKEW, TRANSMIT, RECV, NOTIFY.
Assumed: one comparison per interval, the rate, the order of the breadth-first search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from chip.errors import ErrorKind, LpuError
from interconnect.clocks.links import (
    ALIGN,
    HAC_PERIOD_CYCLES,
    NANO,
    PHASE,
    ClockError,
    Ints,
    LinkEstimates,
    Links,
    draws,
    stream,
)

#: Most a child moves its counter for one comparison: a quarter of a cycle (assumed).
SLEW_NANO = NANO // 4
#: Exchanges that every hop must stay inside its bound to count as converged, per level of the
#: tree and once more; the worst figures are taken over the last so many.
HOLD_EXCHANGES = 64
_NEVER = np.iinfo(np.int64).max


class AlignmentError(LpuError, RuntimeError):
    """Counters that do not come, or do not stay, together."""

    kind = ErrorKind.PROBLEM


def cable_array(cables: ArrayLike, chips: int) -> Ints:
    """Cables as int64 [n, 4], each end at a chip 0..chips-1."""
    table = np.asarray(cables, np.int64).reshape(-1, 4)
    if chips < 1:
        raise ClockError(f"{chips} chips: there must be at least one")
    bad = np.flatnonzero(((table[:, ::2] < 0) | (table[:, ::2] >= chips)).any(axis=1))
    if len(bad):
        raise ClockError(
            f"cable {bad[0]} is {table[bad[0]].tolist()}: its chips must be 0..{chips - 1}"
        )
    return table


@dataclass(frozen=True)
class Tree:
    """Spanning tree from chip 0: int64 [chips] each; chip 0 has parent and cable -1, depth 0."""

    parent: Ints
    cable: Ints
    depth: Ints

    @property
    def height(self) -> int:
        """Hops from chip 0 to the farthest chip."""
        return int(self.depth.max())


def spanning_tree(cables: ArrayLike, chips: int) -> Tree:
    """Breadth-first from chip 0; a chip's parent is the lowest-numbered chip one level nearer.

    Of parallel cables the first in the array is taken.
    """
    table = cable_array(cables, chips)
    source, target = np.r_[table[:, 0], table[:, 2]], np.r_[table[:, 2], table[:, 0]]
    row = np.tile(np.arange(len(table)), 2)
    order = np.lexsort((row, source, target))
    source, target, row = source[order], target[order], row[order]
    parent, cable, depth = (np.full(chips, -1, np.int64) for _ in range(3))
    depth[0] = level = 0
    while True:
        reached = (depth[source] == level) & (depth[target] < 0)
        found, at = np.unique(target[reached], return_index=True)
        if not len(found):
            break
        parent[found], cable[found] = source[reached][at], row[reached][at]
        level += 1
        depth[found] = level
    lost = np.flatnonzero(depth < 0)
    if len(lost):
        raise ClockError(
            f"chip {lost[0]} and {len(lost) - 1} more have no way of cables to chip 0, which gives "
            "the time: add a cable or leave the chips out"
        )
    return Tree(parent, cable, depth)


def wrapped(nano: Ints, period: int) -> Ints:
    """Phase differences as int64 in [-period / 2, period / 2) of 1e-9 cycles."""
    half = period * NANO // 2
    return (nano + half) % (period * NANO) - half


def initial_phases(chips: int, seed: int, period: int) -> Ints:
    """Where each counter stands at power-on, int64 [chips] in 0 .. period * 1e9 - 1."""
    streams = stream(seed, PHASE, -1 - np.arange(chips, dtype=np.int64))
    return (draws(streams, 0, 1)[:, 0] % np.uint64(period * NANO)).astype(np.int64)


@dataclass(frozen=True)
class Alignment:
    """How the counters came together.

    ``exchanges`` is the number of comparisons, one per ``interval_cycles``, after which every hop
    was inside ``hop_bound_nano`` int64 [chips - 1] and stayed there; the worst figures are over the
    last HOLD_EXCHANGES that were simulated, when the approach is over; ``offset_nano`` int64
    [chips] is where they ended.
    """

    exchanges: int
    interval_cycles: int
    hop_bound_nano: Ints
    worst_hop_nano: int
    worst_residual_nano: int
    offset_nano: Ints


def align(
    tree: Tree,
    links: Links,
    estimates: LinkEstimates,
    drift_ppb: Ints,
    *,
    seed: int,
    period: int = HAC_PERIOD_CYCLES,
    slew_nano: int = SLEW_NANO,
) -> Alignment:
    """Slew every counter to its parent's; entry i of links and estimates is chip i + 1's cable.

    In interval k every parent sends its counter; after the latency drawn for that crossing the
    child's counter, less the parent's and the estimated mean, is the error in whole cycles and the
    fraction of the mean.  The child takes the error, but at most ``slew_nano``, off its counter at
    the end of the interval.
    """
    interval = (links.longest_cycles // period + 1) * period
    parent = tree.parent[1:]
    expected = np.rint(estimates.mean_cycles * NANO).astype(np.int64)
    wander = interval * (np.abs(drift_ppb[1:]) + np.abs(drift_ppb[parent]))
    slow = np.flatnonzero(wander >= slew_nano)
    if len(slow):
        chip = int(slow[0]) + 1
        raise AlignmentError(
            f"chip {chip} may drift {wander[chip - 1] / NANO} cycles from chip "
            f"{parent[chip - 1]} between comparisons and slews {slew_nano / NANO}: slew faster "
            "or use oscillators of fewer ppm"
        )
    reach = np.maximum(
        estimates.max_cycles - estimates.mean_cycles, estimates.mean_cycles - estimates.min_cycles
    )
    bound = np.ceil(reach * NANO).astype(np.int64) + wander + 2 * slew_nano + NANO

    phase = initial_phases(len(tree.parent), seed, period)
    hold = HOLD_EXCHANGES * (tree.height + 1)
    limit = 4 * (tree.height + 1) * (period * NANO // slew_nano) + hold
    kept = worst_hop = worst_residual = done = 0
    latency = np.zeros((len(links), 0), np.int64)
    while kept < hold:
        if done == limit:
            raise AlignmentError(
                f"counters not aligned after {limit} exchanges: slew faster, or characterise the "
                "links with more iterations"
            )
        if done % 64 == 0:
            latency = links.latencies(seed, ALIGN, done, 64)
        sent = phase[parent] // NANO
        seen = (phase[1:] + latency[:, done % 64] * (NANO + drift_ppb[1:])) // NANO
        error = wrapped((seen - sent) * NANO - expected, period)
        phase[1:] -= np.clip(error, -slew_nano, slew_nano)
        phase = (phase + interval * drift_ppb) % (period * NANO)
        done += 1
        hop = np.abs(wrapped(phase[1:] - phase[parent], period))
        kept = kept + 1 if (hop <= bound).all() else 0
        if kept > hold - HOLD_EXCHANGES:
            residual = np.abs(wrapped(phase - phase[0], period))
            worst_hop = max(worst_hop, int(hop.max(initial=0)))
            worst_residual = max(worst_residual, int(residual.max()))
    exchanges = done - hold + 1 if len(links) else 0
    offset = wrapped(phase - phase[0], period)
    return Alignment(exchanges, interval, bound, worst_hop, worst_residual, offset)


@dataclass(frozen=True)
class ProgramStart:
    """Epoch in which each chip took its notification, int64 [chips], and in which all NOTIFY."""

    woken_epoch: Ints
    epochs: int

    @property
    def deskews(self) -> Ints:
        """DESKEWs each chip still waits after being woken, int64 [chips]."""
        return self.epochs - self.woken_epoch


def start_cost_epochs(latency_cycles: int, period: int, height: int) -> int:
    """The published cost of a start: (floor(L / period) + 1) * h.

    The notes on ISCA'22 call the unit cycles; it counts periods, and epochs are taken here.
    """
    return (latency_cycles // period + 1) * height


def simulate_start(
    tree: Tree,
    latency_cycles: Ints,
    period: int = HAC_PERIOD_CYCLES,
    offset_nano: Ints | None = None,
) -> ProgramStart:
    """Start all programs together, epoch by epoch; chip i + 1's cable takes latency_cycles[i].

    Every chip DESKEWs to its counter's overflow.  A woken chip TRANSMITs to its children at that
    edge; the others poll RECV at each of their edges and take what arrived before it.  When the
    last is woken, all NOTIFY at that edge.  ``offset_nano`` moves each chip's edges (ahead: early).
    """
    chips = len(tree.parent)
    offset = np.zeros(chips, np.int64) if offset_nano is None else offset_nano
    woken = np.full(chips, -1, np.int64)
    arrival = np.full(chips, _NEVER, np.int64)
    parent = tree.parent[1:]
    epoch = 0
    woken[0] = 0
    while (woken < 0).any():
        edge = epoch * period * NANO - offset
        sends = woken[parent] == epoch
        arrival[1:][sends] = (edge[parent] + latency_cycles * NANO)[sends]
        epoch += 1
        woken[(woken < 0) & (arrival < epoch * period * NANO - offset)] = epoch
    return ProgramStart(woken, epoch)
