"""The virtual global clock: the cycle that every chip of a run has reached.

Chips report in passing and nobody waits for the clock.  It is for people and for the closing
check; the chips stay in step without it.  What this module imports is all that the clock's process
loads: no compiled kernels are among it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunProgress:
    """What the clock knows: cycles all groups have reached, tokens picked so far."""

    cycle: int
    tokens: tuple[int, ...]


class VirtualClock:
    """Collects the reports of a run's groups."""

    def __init__(self, groups: int) -> None:
        self._cycles = [0] * groups
        self._tokens: list[list[int]] = [[] for _ in range(groups)]

    def report(self, group: int, cycle: int, tokens: list[int]) -> None:
        """Group ``group`` has reached ``cycle`` and picked ``tokens``, all of them so far.

        A group that was rolled back reports again what was known; nothing known is forgotten.
        """
        self._cycles[group] = max(self._cycles[group], cycle)
        self._tokens[group] = max(self._tokens[group], tokens, key=len)

    def progress(self) -> RunProgress:
        """The slowest group's cycle; the tokens any group has told (they are the same)."""
        longest = max(self._tokens, key=len)
        return RunProgress(min(self._cycles), tuple(longest))


class ClockActor:
    """``VirtualClock`` as an actor, for one run of its groups after another."""

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._run = 0
        self._clock = VirtualClock(groups)

    def report(self, run: int, group: int, cycle: int, tokens: list[int]) -> None:
        """See ``VirtualClock.report``; a late report of an earlier run is not heard."""
        if run > self._run:
            self._run, self._clock = run, VirtualClock(self._groups)
        if run == self._run:
            self._clock.report(group, cycle, tokens)

    def progress(self, run: int) -> RunProgress:
        """See ``VirtualClock.progress``; that of a run nobody reported on yet is nothing."""
        return self._clock.progress() if run == self._run else RunProgress(0, ())


def start_clock(groups: int, placement: Any) -> Any:
    """A clock actor on the driver's host; Ray starts it again when it dies.

    It has nothing to lose: every report says all there is to know.
    """
    import ray

    remote: Any = ray.remote(num_cpus=0, max_restarts=-1)(ClockActor)
    return remote.options(scheduling_strategy=placement).remote(groups)


def unexpected_retirements(
    entries: Sequence[str],
    retired: Mapping[int, Sequence[int]],
    predicted: Mapping[str, int],
) -> list[str]:
    """One line for every launch of a chip that did not end at its predicted cycle, if it has one.

    entries: the entry point of each launch.  retired: per chip the cycle at which each ended.
    """
    lines = []
    for chip, cycles in sorted(retired.items()):
        for launch, (entry, cycle) in enumerate(zip(entries, cycles, strict=True)):
            if cycle != predicted.get(entry, cycle):
                lines.append(
                    f"chip {chip} retired launch {launch} ({entry}) at cycle {cycle}, "
                    f"predicted {predicted[entry]}"
                )
    return lines
