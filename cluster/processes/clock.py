"""The virtual global clock: the cycle that every chip of a run has reached.

Chips report in passing and nobody waits for the clock.  It is for people and for the closing
check; the chips stay in step without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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
