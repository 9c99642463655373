"""The latency of a cable: how it jitters, and what two chips can find out about it.

The first half is the hidden truth: a latency for every crossing, drawn by a counter-based stream
keyed by (seed, purpose, cable, crossing), so no draw depends on another or on the machine.  The
second half knows only counter values.  A chip sends the value of its hardware-aligned counter
(HAC), the neighbour reflects it, and what the counter shows when the value is back, less that
value, is two crossings of the cable modulo the period.  :class:`Estimator` turns pairs of counter
values into min, mean, max and std and never sees a latency.

Published (ISCA'22): the exchange, 100,000 iterations, table 2, a period below 256 cycles.
Assumed: the period, the shape of the jitter between its published moments, that both crossings of
one exchange take the same time, which cable has which row of the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import cache

import numpy as np
from numpy.typing import NDArray

from chip.digest import splitmix64
from chip.errors import LpuError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: One cycle in the fixed point of every clock: phases and drifts are integers of 1e-9 cycles.
NANO = 1_000_000_000
#: Cycles of one epoch.  ISCA'22 publishes "<256", a survey of it says "every 256", which is not
#: below 256; 252 is recalled and taken.  Assumed, so every function takes another.
HAC_PERIOD_CYCLES = 252
#: Mean of table 2 to a cycle: the latency the estimator unwraps around (published).
NOMINAL_LATENCY_CYCLES = 217
#: Purposes of draws: the stream of a cable or chip is keyed by (seed, purpose, number).
CHARACTERISE, PHASE, ALIGN, START, DRIFT = 1, 2, 3, 4, 5

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TABLE = 1 << 16
_BLOCK = 1 << 18


class ClockError(LpuError, ValueError):
    """Clocks or cables that cannot be: object, rule, value and mend in one sentence."""


def stream(seed: int, purpose: int, numbers: Ints) -> NDArray[np.uint64]:
    """Start of the random stream of each cable or chip, uint64 [n]."""
    start = splitmix64(np.array([(seed ^ purpose << 56) & (1 << 64) - 1], np.uint64) + _GOLDEN)
    return splitmix64(start + (numbers.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def draws(streams: NDArray[np.uint64], first: int, count: int) -> NDArray[np.uint64]:
    """Draws ``first`` .. ``first + count - 1`` of each stream, uint64 [n, count]."""
    counters = np.arange(first + 1, first + count + 1, dtype=np.uint64) * _GOLDEN
    return splitmix64(streams[:, None] + counters)


@dataclass(frozen=True)
class LinkJitter:
    """Latency of one crossing in cycles; the shape is the one of largest entropy (assumed)."""

    name: str
    min_cycles: int
    mean_cycles: float
    max_cycles: int
    std_cycles: float

    def __post_init__(self) -> None:
        if not 0 <= self.min_cycles <= self.mean_cycles <= self.max_cycles:
            raise ClockError(f"jitter {self.name}: min <= mean <= max must hold: {self}")
        if (self.std_cycles > 0) == (self.min_cycles == self.max_cycles):
            raise ClockError(f"jitter {self.name}: std must be positive, or min, mean, max equal")

    def shifted(self, cycles: int) -> LinkJitter:
        """The same jitter on a cable that is longer by ``cycles``."""
        return LinkJitter(
            self.name,
            self.min_cycles + cycles,
            float(Decimal(str(self.mean_cycles)) + cycles),
            self.max_cycles + cycles,
            self.std_cycles,
        )


#: Published (ISCA'22 table 2): seven links inside a node, 100,000 iterations, in cycles.
TABLE_2 = (
    LinkJitter("A", 209, 216.87, 228, 2.93),
    LinkJitter("B", 210, 216.87, 227, 2.88),
    LinkJitter("C", 209, 216.41, 226, 2.66),
    LinkJitter("D", 210, 216.47, 226, 2.71),
    LinkJitter("E", 209, 216.27, 226, 2.78),
    LinkJitter("F", 209, 216.48, 225, 2.63),
    LinkJitter("G", 211, 217.35, 228, 2.84),
)


@cache
def _probabilities(jitter: LinkJitter) -> tuple[int, ...]:
    """Parts in 65,536 of each whole latency min..max: exp(u*x + v*x*x) with the given moments.

    Newton's method in decimal arithmetic, which is correctly rounded: the same on every machine.
    """
    if jitter.min_cycles == jitter.max_cycles:
        return (_TABLE,)
    with localcontext(Context(prec=40)):
        mean, std = Decimal(str(jitter.mean_cycles)), Decimal(str(jitter.std_cycles))
        x = [(k - mean) / std for k in range(jitter.min_cycles, jitter.max_cycles + 1)]
        u, v = Decimal(0), Decimal("-0.5")
        try:
            for _ in range(50):
                weights = [(u * a + v * a * a).exp() for a in x]
                total = sum(weights, Decimal(0))
                m1, m2, m3, m4 = (
                    sum((w * a**n for w, a in zip(weights, x, strict=True)), Decimal(0)) / total
                    for n in (1, 2, 3, 4)
                )
                if abs(m1) + abs(m2 - 1) < Decimal("1e-20"):
                    break
                c11, c12, c22 = m2 - m1 * m1, m3 - m1 * m2, m4 - m2 * m2
                det = c11 * c22 - c12 * c12
                u -= (c22 * m1 - c12 * (m2 - 1)) / det
                v -= (c11 * (m2 - 1) - c12 * m1) / det
            else:
                raise ArithmeticError
        except ArithmeticError:
            raise ClockError(
                f"jitter {jitter.name}: no latencies in {jitter.min_cycles}..{jitter.max_cycles} "
                f"have mean {mean} and std {std}: widen the range or lower the std"
            ) from None
        exact = [w / total * (_TABLE - len(x)) for w in weights]
        parts = [1 + int(e) for e in exact]
        rest = sorted(range(len(x)), key=lambda k: (int(exact[k]) - exact[k], k))
        for k in rest[: _TABLE - sum(parts)]:
            parts[k] += 1
    return tuple(parts)


@cache
def _latency_table(jitters: tuple[LinkJitter, ...]) -> Ints:
    """Latency for a row of jitter and a 16-bit draw, at ``row * 65536 + draw``."""
    return np.concatenate(
        [np.repeat(np.arange(j.min_cycles, j.max_cycles + 1), _probabilities(j)) for j in jitters]
    )


@dataclass(frozen=True)
class Links:
    """Cables under test: their rows in the cable array, int64 [n], and the jitters they share."""

    cable: Ints
    jitters: tuple[LinkJitter, ...] = TABLE_2

    def __len__(self) -> int:
        return len(self.cable)

    @property
    def jitter_row(self) -> Ints:
        """Row of ``jitters`` of each link: cable i has row i mod the number of rows (assumed)."""
        rows: Ints = self.cable % len(self.jitters)
        return rows

    @property
    def longest_cycles(self) -> int:
        """The longest latency any of the rows allows."""
        return max(j.max_cycles for j in self.jitters)

    def part(self, rows: slice) -> Links:
        """Some of the links."""
        return Links(self.cable[rows], self.jitters)

    def latencies(self, seed: int, purpose: int, first: int, count: int) -> Ints:
        """Latency in cycles of crossings ``first`` (a multiple of 4) and on, int64 [n, count]."""
        words = draws(stream(seed, purpose, self.cable), first // 4, -(-count // 4))
        drawn = words.astype("<u8").view("<u2")[:, :count].astype(np.int64)
        taken: Ints = _latency_table(self.jitters)[self.jitter_row[:, None] * _TABLE + drawn]
        return taken


def exchange(
    links: Links, first: int, count: int, seed: int, period: int, drift_ppb: Ints
) -> tuple[Ints, Ints]:
    """Counter values of exchanges ``first`` and on: (reflected, local), int64 [n, count].

    ``reflected`` is the value that left and came back, ``local`` the counter of the same chip at
    that moment; ``drift_ppb`` int64 [n] is the oscillator error of that chip in 1e-9.
    """
    # a new exchange every so many whole periods: only the drift moves the counter between them
    interval = (2 * links.longest_cycles // period + 1) * period
    start = np.arange(first, first + count, dtype=np.int64) * interval
    phase = draws(stream(seed, PHASE, links.cable), 0, 1) % np.uint64(period * NANO)
    sent = phase.astype(np.int64) + start * drift_ppb[:, None]
    flight = 2 * links.latencies(seed, CHARACTERISE, first, count)
    back = sent + flight * (NANO + drift_ppb[:, None])
    return sent // NANO % period, back // NANO % period


@dataclass(frozen=True)
class LinkEstimates:
    """What the exchanges tell of each link: cable int64 [n], the rest float64 [n] in cycles."""

    cable: Ints
    min_cycles: Floats
    mean_cycles: Floats
    max_cycles: Floats
    std_cycles: Floats
    iterations: int


class Estimator:
    """Latency statistics of n links from counter values alone; integer sums, so order is free.

    Twice the latency is known modulo ``period``; the value nearest twice ``nominal`` is taken, so
    a latency must lie within a quarter of a period of ``nominal``.
    """

    def __init__(self, links: int, period: int, nominal: int = NOMINAL_LATENCY_CYCLES) -> None:
        self._period, self._nominal, self._count = period, nominal, 0
        self._sum, self._squares = np.zeros(links, np.int64), np.zeros(links, np.int64)
        self._least = np.full(links, period, np.int64)
        self._most = np.full(links, -period, np.int64)

    def add(self, reflected: Ints, local: Ints) -> None:
        """Take counter values, both int64 [n, count]."""
        half = self._period // 2
        excess = (local - reflected - 2 * self._nominal + half) % self._period - half
        self._count += excess.shape[1]
        self._sum += excess.sum(axis=1)
        self._squares += (excess * excess).sum(axis=1)
        self._least = np.minimum(self._least, excess.min(axis=1))
        self._most = np.maximum(self._most, excess.max(axis=1))

    def result(self, cable: Ints) -> LinkEstimates:
        """Estimates after all exchanges taken so far; std is of the population."""
        count = self._count
        variance = count * self._squares - self._sum * self._sum
        return LinkEstimates(
            cable,
            self._nominal + self._least / 2,
            self._nominal + self._sum / (2 * count),
            self._nominal + self._most / 2,
            np.sqrt(variance.astype(np.float64)) / (2 * count),
            count,
        )


def _blocks(total: int, size: int) -> Iterator[tuple[int, int]]:
    yield from ((first, min(size, total - first)) for first in range(0, total, size))


def characterise(
    links: Links,
    iterations: int = 100_000,
    seed: int = 0,
    *,
    period: int = HAC_PERIOD_CYCLES,
    nominal: int = NOMINAL_LATENCY_CYCLES,
    drift_ppb: Ints | None = None,
) -> LinkEstimates:
    """Latency of each link from ``iterations`` exchanges of counter values (ISCA'22 table 2).

    ``drift_ppb`` int64 [n]: oscillator error of the chip that measures; none without it.
    """
    if not 1 <= iterations <= 10_000_000:
        raise ClockError(f"{iterations} iterations: take 1 to 10,000,000")
    if period <= 2 * (max(j.max_cycles - j.min_cycles for j in links.jitters) + 1):
        raise ClockError(f"period {period}: a jitter as wide as the links' needs a longer one")
    drift = np.zeros(len(links), np.int64) if drift_ppb is None else drift_ppb
    rows_at_once = max(1, _BLOCK // iterations)
    parts = []
    for row, rows in _blocks(len(links), rows_at_once):
        some, own = links.part(slice(row, row + rows)), drift[row : row + rows]
        estimator = Estimator(rows, period, nominal)
        for first, count in _blocks(iterations, _BLOCK):
            estimator.add(*exchange(some, first, count, seed, period, own))
        parts.append(estimator.result(some.cable))
    none = np.zeros(0)
    return LinkEstimates(
        links.cable,
        np.concatenate([none, *(part.min_cycles for part in parts)]),
        np.concatenate([none, *(part.mean_cycles for part in parts)]),
        np.concatenate([none, *(part.max_cycles for part in parts)]),
        np.concatenate([none, *(part.std_cycles for part in parts)]),
        iterations,
    )
