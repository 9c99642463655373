"""A wait climbs from spinning over giving way to sleeping, and sleeps longer the more crowd."""

from __future__ import annotations

import os
import time
from fractions import Fraction

import pytest

from cluster.processes import chips_per_actor
from cluster.processes.waiting import Wait

SHORTEST, LONGEST = 30e-6, 100e-6


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str | float]:
    """What the pauses did on a machine of four cores: "yield", or the seconds slept."""
    found: list[str | float] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_yield", lambda: found.append("yield"))
    monkeypatch.setattr(time, "sleep", found.append)
    return found


@pytest.mark.parametrize(
    ("cores", "chips", "each"),
    [(2, 8, 4), (1, 8, 8), (3, 8, 3), (8, 8, 1), (64, 8, 1), (2, 1, 1), (2, 7, 4), (16, 504, 32)],
)
def test_no_more_actors_than_cores(
    cores: int, chips: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert chips_per_actor(chips, None) == each
    assert chips_per_actor(chips, 1) == 1 and chips_per_actor(chips, 9999) == chips


def slept(number: int, crowding: int) -> float:
    """The ``number``-th sleep: 30 equal steps, the last of them and all further the longest."""
    share = min(Fraction(number, 30), Fraction(1))
    return crowding * (SHORTEST + float(share) * (LONGEST - SHORTEST))


@pytest.mark.parametrize(
    ("processes", "spins", "crowding"),
    [
        (1, 4, 1),  # fewer than cores: no less than one
        (4, 4, 1),
        (8, 0, 2),  # two a core: whoever spins takes the core of a peer
    ],
)
def test_the_climb(processes: int, spins: int, crowding: int, done: list[str | float]) -> None:
    wait = Wait(processes)
    for _ in range(spins + 4 + 33):
        wait.pause()
    assert done[:4] == ["yield"] * 4
    assert done[4:] == pytest.approx([slept(n, crowding) for n in range(1, 34)])


def test_progress_starts_it_again(done: list[str | float]) -> None:
    wait = Wait()
    for _ in range(9):
        wait.pause()
    assert done[4:] == pytest.approx([slept(1, 1)])
    done.clear()
    wait.reset()
    for _ in range(4):
        wait.pause()
    assert done == []


def test_the_caller_looks_every_64_pauses(done: list[str | float]) -> None:
    wait = Wait(8)
    assert [n for n in range(1, 200) if wait.pause()] == [64, 128, 192]


def test_cores_that_nobody_knows_are_one(
    done: list[str | float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    wait = Wait(3)
    for _ in range(5):
        wait.pause()
    assert done[4:] == pytest.approx([slept(1, 3)])
