"""One line of the performance table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A measured value beside its baseline; ``baseline_is`` says what that is."""

    name: str
    value: float
    unit: str
    baseline: float
    baseline_is: str

    @property
    def ratio(self) -> float:
        """value / baseline"""
        return self.value / self.baseline
