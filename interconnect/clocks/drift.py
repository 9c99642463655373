"""Plesiochronous clocks: drift, what it costs to keep it small, and when it is too much.

Each chip runs on its own oscillator.  Its hardware-aligned counter (HAC) is kept at chip 0's time
by ``clock_tree``; its software-aligned counter (SAC) counts the cycles of the program.  SAC less
HAC is the drift since they were last equal: 1 ppm is one cycle in a million.  RUNTIME_DESKEW makes
them equal again and costs about one epoch.  Between two of them the ends of a cable may drift no
further apart than the slack between a scheduled arrival and the receive window: one cycle more
raises :class:`DriftError`.  All clocks are integers of 1e-9 cycles.

Published (ISCA'22): HAC, SAC, RUNTIME_DESKEW and its cost.  Assumed: drift constant over a run and
uniform in plus or minus ``ppm``, products of two drifts left out, deskews at fixed program cycles,
everything in ``clock_links`` and ``clock_tree`` that says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from chip.errors import ErrorKind, LpuError
from chip.spec import ChipSpec
from interconnect.clocks.links import (
    DRIFT,
    HAC_PERIOD_CYCLES,
    NANO,
    NOMINAL_LATENCY_CYCLES,
    START,
    TABLE_2,
    ClockError,
    Ints,
    LinkEstimates,
    Links,
    characterise,
    draws,
    stream,
)
from interconnect.clocks.tree import (
    Alignment,
    AlignmentError,
    Tree,
    align,
    cable_array,
    simulate_start,
    spanning_tree,
    start_cost_epochs,
)

#: Longest run in cycles (phases of 1e-9 cycles stay far inside 64 bits), most deskews of one.
MOST_RUN_CYCLES, MOST_DESKEWS = 10**12, 10**7
#: Links printed one by one in a report; beyond them the summary speaks.
ROWS_SHOWN = 64


class DriftError(LpuError, RuntimeError):
    """The two ends of a cable drifted further apart than the run's budget."""

    kind = ErrorKind.PROBLEM

    def __init__(self, cable: tuple[int, int, int, int], cycle: int, nano: int, budget: int):
        self.chip_a, self.link_a, self.chip_b, self.link_b = cable
        self.cycle, self.drift_nano, self.budget_cycles = cycle, nano, budget
        super().__init__(
            f"chip {cable[0]} link {cable[1]} and chip {cable[2]} link {cable[3]} are "
            f"{Decimal(nano) / NANO} cycles apart at cycle {cycle}, the budget is {budget}: "
            "deskew more often or widen the receive windows"
        )


def ppb(ppm: float) -> int:
    """Parts per billion of a drift in ppm, rounded to whole ones."""
    return round(Decimal(str(ppm)) * 1000)


def drift_nano(drift_ppb: int, cycles: int) -> int:
    """Drift after ``cycles`` in 1e-9 cycles, exactly: 1 ppm is one cycle in 1,000,000."""
    return drift_ppb * cycles


def draw_drift(chips: int, ppm: float, seed: int) -> Ints:
    """Oscillator error of each chip in 1e-9, int64 [chips], uniform in -ppm..ppm (assumed)."""
    if not 0 <= ppm < 1000 or (width := ppb(ppm)) >= 1_000_000:
        raise ClockError(f"{ppm} ppm: an oscillator is off by 0 to 999")
    drawn = draws(stream(seed, DRIFT, np.arange(chips, dtype=np.int64)), 0, 1)[:, 0]
    return (drawn % np.uint64(2 * width + 1)).astype(np.int64) - width


@dataclass(frozen=True)
class RunDrift:
    """A run that stayed inside its budget.

    ``virtual_cycles`` is the program plus one epoch per deskew; ``worst_nano`` the largest distance
    of two ends of a cable, met at program cycle ``worst_cycle`` on row ``worst_cable``.
    """

    deskews: int
    deskew_cycles: int
    virtual_cycles: int
    worst_nano: int
    worst_cable: int
    worst_cycle: int
    largest_delta_cycles: int


def simulate_run(
    cables: ArrayLike,
    drift_ppb: Ints,
    run_cycles: int,
    deskew_interval_cycles: int,
    budget_cycles: int,
    *,
    period: int = HAC_PERIOD_CYCLES,
    offset_nano: Ints | None = None,
) -> RunDrift:
    """Run ``run_cycles``, deskewing every ``deskew_interval_cycles`` (0: never), or DriftError.

    ``drift_ppb`` int64 [chips] is each oscillator's error in 1e-9 (:func:`ppb`); ``offset_nano``
    int64 [chips] the misalignment of the counters at the start.  A deskew reads delta(HAC, SAC) in
    whole cycles and removes it; the fraction of a cycle stays.
    """
    chips = len(drift_ppb)
    table = cable_array(cables, chips)
    if run_cycles < 0 or deskew_interval_cycles < 0 or budget_cycles < 0:
        raise ClockError("run, deskew interval and budget must not be negative")
    if not 2 * budget_cycles < period:
        raise ClockError(
            f"budget {budget_cycles}: counters of {period} cycles tell less than half that apart"
        )
    interval = min(deskew_interval_cycles or run_cycles, run_cycles) or 1
    if run_cycles > MOST_RUN_CYCLES:
        raise ClockError(f"a run of {run_cycles} cycles: take {MOST_RUN_CYCLES} or fewer")
    if run_cycles // interval > MOST_DESKEWS:
        raise ClockError(
            f"a deskew every {interval} of {run_cycles} cycles: deskew {MOST_DESKEWS} times or less"
        )
    relative = drift_ppb - drift_ppb[0]
    offset = np.zeros(chips, np.int64) if offset_nano is None else offset_nano
    a, b = table[:, 0], table[:, 2]
    rows = np.arange(len(table))
    limit = budget_cycles * NANO
    sac = np.zeros(chips, np.int64)  # SAC less HAC
    worst, worst_row, worst_cycle, largest = 0, -1, 0, 0
    done = deskews = 0
    while True:
        length = min(interval, run_cycles - done)
        before = offset + sac
        sac = sac + length * relative
        start = before[a] - before[b]
        rate = relative[a] - relative[b]
        end = start + length * rate
        # the distance is linear between deskews, so its largest value is at one end
        for distance, cycle in ((np.abs(start), done), (np.abs(end), done + length)):
            at = int(distance.argmax()) if len(distance) else -1
            if at >= 0 and distance[at] > worst:
                worst, worst_row, worst_cycle = int(distance[at]), int(rows[at]), cycle
        if worst > limit:
            _raise_drift(table, rows, start, rate, limit, done, budget_cycles)
        if done == 0:  # cables that cannot become the worst, fractions included, are left out
            near = np.abs(start) + np.abs(rate) * interval + 2 * NANO >= worst
            rows, a, b = rows[near], a[near], b[near]
        done += length
        if done >= run_cycles:
            break
        delta = np.sign(sac) * (np.abs(sac) // NANO)
        chip = int(np.abs(delta).argmax())
        largest = max(largest, abs(int(delta[chip])))
        if 2 * largest >= period:
            raise AlignmentError(
                f"chip {chip} is {delta[chip]} cycles from the common time at cycle {done}: a "
                f"counter of {period} cycles cannot tell which way; deskew more often"
            )
        sac = sac - delta * NANO
        deskews += 1
    cost = deskews * period
    return RunDrift(deskews, cost, run_cycles + cost, worst, worst_row, worst_cycle, largest)


def _raise_drift(
    table: Ints, rows: Ints, start: Ints, rate: Ints, limit: int, done: int, budget: int
) -> None:
    """Raise for the first cable, by cycle and then by row, to leave the budget."""
    room = np.where(rate > 0, limit - start, limit + start)
    steps = np.where(rate == 0, np.iinfo(np.int64).max, room // np.maximum(np.abs(rate), 1) + 1)
    steps = np.where(np.abs(start) > limit, 0, steps)
    at = int(steps.argmin())
    cycles = int(steps[at])
    chip_a, link_a, chip_b, link_b = (int(v) for v in table[rows[at]])
    apart = abs(int(start[at]) + cycles * int(rate[at]))
    raise DriftError((chip_a, link_a, chip_b, link_b), done + cycles, apart, budget)


@dataclass(frozen=True)
class LinkRow:
    """One characterised cable: its ends, the input row of table 2, the estimate in cycles."""

    chip_a: int
    link_a: int
    chip_b: int
    link_b: int
    row: str
    min_cycles: float
    mean_cycles: float
    max_cycles: float
    std_cycles: float


@dataclass(frozen=True)
class ClockReport:
    """All that is known of the clocks of a fabric and of one run; cycles unless the name says."""

    chips: int
    cables: int
    seed: int
    ppm: float
    period_cycles: int
    iterations: int
    links: int
    link_min_cycles: float
    link_mean_cycles: tuple[float, float]
    link_max_cycles: float
    link_std_cycles: tuple[float, float]
    link_rows: tuple[LinkRow, ...]
    tree_height: int
    exchanges: int
    alignment_cycles: int
    worst_hop_cycles: float
    worst_hop_bound_cycles: float
    worst_residual_cycles: float
    start_epochs: int
    start_cycles: int
    largest_drift_ppm: float
    program_cycles: int
    deskew_interval_cycles: int
    budget_cycles: int
    deskews: int
    deskew_cycles: int
    virtual_cycles: int
    worst_drift_cycles: float
    worst_drift_cable: tuple[int, int, int, int] | None
    worst_drift_cycle: int
    largest_delta_cycles: int
    virtual_seconds: float

    def as_json(self) -> dict[str, Any]:
        """The report as plain numbers, lists and strings."""
        return asdict(self)


def _link_rows(table: Ints, links: Links, found: LinkEstimates) -> tuple[LinkRow, ...]:
    rows = []
    for i in range(min(len(links), ROWS_SHOWN)):
        chip_a, link_a, chip_b, link_b = (int(v) for v in table[links.cable[i]])
        rows.append(
            LinkRow(
                chip_a=chip_a,
                link_a=link_a,
                chip_b=chip_b,
                link_b=link_b,
                row=links.jitters[int(links.jitter_row[i])].name,
                min_cycles=float(found.min_cycles[i]),
                mean_cycles=float(found.mean_cycles[i]),
                max_cycles=float(found.max_cycles[i]),
                std_cycles=float(found.std_cycles[i]),
            )
        )
    return tuple(rows)


def _start_epochs(
    tree: Tree, links: Links, found: LinkEstimates, aligned: Alignment, seed: int, period: int
) -> int:
    """Epochs until all start; every chip must be woken in the epoch the schedule gives it."""
    latency = links.latencies(seed, START, 0, 1)[:, 0]
    start = simulate_start(tree, latency, period, aligned.offset_nano)
    longest = int(found.max_cycles.max(initial=0.0))
    planned = start_cost_epochs(longest, period, 1) * tree.depth
    late = np.flatnonzero(start.woken_epoch != planned)
    if len(late):
        chip = int(late[0])
        raise AlignmentError(
            f"chip {chip} took its start in epoch {start.woken_epoch[chip]}, scheduled was "
            f"{planned[chip]}: the latencies straddle a multiple of the period of {period} cycles"
        )
    return start.epochs


def run_clocks(
    cables: ArrayLike,
    chips: int,
    spec: ChipSpec,
    *,
    seed: int,
    ppm: float,
    iterations: int,
    program_cycles: int,
    deskew_interval_cycles: int,
    budget_cycles: int,
    period_cycles: int = HAC_PERIOD_CYCLES,
) -> ClockReport:
    """Characterise the tree's cables, align, start and run; AlignmentError or DriftError if not.

    ``cables`` int [n, 4].  Latencies are table 2, moved to ``spec.link_wire_cycles``.  The run
    starts with the misalignment that alignment left, which the budget must hold as well.
    """
    table = cable_array(cables, chips)
    tree = spanning_tree(table, chips)
    drift = draw_drift(chips, ppm, seed)
    nominal = spec.link_wire_cycles
    rows = tuple(row.shifted(nominal - NOMINAL_LATENCY_CYCLES) for row in TABLE_2)
    links = Links(tree.cable[1:], rows)
    found = characterise(
        links, iterations, seed, period=period_cycles, nominal=nominal, drift_ppb=drift[1:]
    )
    aligned = align(tree, links, found, drift, seed=seed, period=period_cycles)
    epochs = _start_epochs(tree, links, found, aligned, seed, period_cycles)
    run = simulate_run(
        table,
        drift,
        program_cycles,
        deskew_interval_cycles,
        budget_cycles,
        period=period_cycles,
        offset_nano=aligned.offset_nano,
    )
    means, stds = ((c if len(c) else np.zeros(1)) for c in (found.mean_cycles, found.std_cycles))
    ends = [int(v) for v in table[run.worst_cable]] if run.worst_cable >= 0 else None
    return ClockReport(
        chips=chips,
        cables=len(table),
        seed=seed,
        ppm=ppm,
        period_cycles=period_cycles,
        iterations=iterations,
        links=len(links),
        link_min_cycles=float(found.min_cycles.min()) if len(links) else 0.0,
        link_mean_cycles=(float(means.min()), float(means.max())),
        link_max_cycles=float(found.max_cycles.max(initial=0.0)),
        link_std_cycles=(float(stds.min()), float(stds.max())),
        link_rows=_link_rows(table, links, found),
        tree_height=tree.height,
        exchanges=aligned.exchanges,
        alignment_cycles=aligned.exchanges * aligned.interval_cycles,
        worst_hop_cycles=aligned.worst_hop_nano / NANO,
        worst_hop_bound_cycles=int(aligned.hop_bound_nano.max(initial=0)) / NANO,
        worst_residual_cycles=aligned.worst_residual_nano / NANO,
        start_epochs=epochs,
        start_cycles=epochs * period_cycles,
        largest_drift_ppm=int(np.abs(drift).max()) / 1000,
        program_cycles=program_cycles,
        deskew_interval_cycles=deskew_interval_cycles,
        budget_cycles=budget_cycles,
        deskews=run.deskews,
        deskew_cycles=run.deskew_cycles,
        virtual_cycles=run.virtual_cycles,
        worst_drift_cycles=run.worst_nano / NANO,
        worst_drift_cable=(ends[0], ends[1], ends[2], ends[3]) if ends else None,
        worst_drift_cycle=run.worst_cycle,
        largest_delta_cycles=run.largest_delta_cycles,
        virtual_seconds=(epochs * period_cycles + run.virtual_cycles) / spec.clock_hz,
    )
