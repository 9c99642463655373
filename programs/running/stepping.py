"""Chips kept in step: how they are run to the end of a launch, and who is asked to wait.

Who runs the other chips of a machine (waiting for them, a barrier, their logits) is ``Peers``;
``Alone`` is for whoever runs every chip himself.

Two independent ways to keep chips in step, which must give the same digest:

- ``lookahead``: a chip runs until it lacks a vector; the schedule is the synchronisation.
- ``barrier``: every chip runs the blocks that start in one window before any chip starts the next
  window.  With L the cycles from Send to Receive, linked blocks span less than L/2 and a window is
  L/2 long, so a vector received in a window was sent by a block of an earlier window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from chip.engine import Chip, Rings, Status, run_chips
from chip.errors import ErrorKind, LpuError
from chip.isa import C2C_QUEUE, queue_name
from chip.spec import ChipSpec

LOOKAHEAD, BARRIER = "lookahead", "barrier"
SYNC_MODES = (LOOKAHEAD, BARRIER)
#: Barrier marks are ``launches so far * LAUNCH_MARK + window``, so they ascend over a run.
LAUNCH_MARK = 1 << 32

Logits = NDArray[np.float32]


class StuckError(LpuError):
    """Chips that cannot continue, as their schedule waits for itself, or end at other cycles than
    predicted; named chip by chip.
    """

    kind = ErrorKind.PROBLEM


class Peers(Protocol):
    """The rest of the machine, as seen by one runner.

    sleeps: how often the runner may sleep for a vector before it says that it ``progressed``.
    """

    sleeps: int

    def progressed(self) -> None:
        """Some chip of the runner went on."""

    def idle(self, chips: Sequence[Chip], rings: Rings) -> None:
        """No clock of ``chips`` moved, so they need a vector from elsewhere: wait a moment.

        A runner of one thread that may sleep has slept, where Linux can.
        """

    def gate(self, mark: int) -> None:
        """Return when every runner has reached ``mark``; marks ascend."""

    def exchange(self, sequence: int, own: dict[int, Logits]) -> list[Logits]:
        """Give the own chips' logits, get those of all chips in the order of chips."""

    def report(self, cycle: int, tokens: Sequence[int]) -> None:
        """Progress: virtual cycles since the first launch, all tokens so far."""


class Alone:
    """Peers of a runner that runs every chip itself."""

    def __init__(self, on_token: Callable[[int], None] | None = None) -> None:
        self._on_token = on_token
        self._told = 0
        self._vectors = -1
        self.sleeps = 0

    def progressed(self) -> None:
        """Nothing to note."""

    def idle(self, chips: Sequence[Chip], rings: Rings) -> None:
        """Nobody else could help: without a vector moved since last time the chips are stuck."""
        vectors = int(rings.counts.sum())
        if vectors == self._vectors:
            raise StuckError("no chip can continue: " + "; ".join(_wait_of(chip) for chip in chips))
        self._vectors = vectors

    def gate(self, mark: int) -> None:
        """Everybody is here."""

    def exchange(self, sequence: int, own: dict[int, Logits]) -> list[Logits]:
        """All logits are our own."""
        return [own[number] for number in sorted(own)]

    def report(self, cycle: int, tokens: Sequence[int]) -> None:
        """Hand new tokens to the callback."""
        if self._on_token is not None:
            for token in tokens[self._told :]:
                self._on_token(token)
        self._told = len(tokens)


def _wait_of(chip: Chip) -> str:
    """Where a chip stands: who should have sent, and when."""
    queue, cycle = chip.waiting
    text = f"chip {chip.chip_id} waits on {queue_name(queue)} at cycle {cycle}"
    peer = chip.peer(queue - C2C_QUEUE) if queue >= C2C_QUEUE else -1
    if peer < 0:
        return text
    if not chip.receives:
        return f"{text} for chip {peer} to take what was sent before"
    sent = cycle - chip.spec.send_to_receive_cycles
    return f"{text} for the vector that chip {peer} should have sent at cycle {sent}"


def window_cycles(spec: ChipSpec) -> int:
    """Length of a barrier window: half the cycles between a Send and its Receive."""
    return spec.send_to_receive_cycles // 2


def step_lookahead(chips: Sequence[Chip], rings: Rings, peers: Peers, threads: int = 1) -> None:
    """Run begun ``chips`` to the end of the launch, each as far as its vectors allow."""
    pending = list(chips)
    while pending:
        before = [chip.clock for chip in pending]
        status = run_chips(pending, rings, threads=threads, sleeps=peers.sleeps)
        moved = any(
            s == Status.DONE or chip.clock != b
            for s, chip, b in zip(status, pending, before, strict=True)
        )
        pending = [c for c, s in zip(pending, status, strict=True) if s != Status.DONE]
        if moved:
            peers.progressed()
        elif pending:
            peers.idle(pending, rings)


def step_windows(
    chips: Sequence[Chip], rings: Rings, peers: Peers, window: int, launch: int
) -> None:
    """Run begun ``chips`` to the end of the launch in windows of ``window`` cycles."""
    pending = list(chips)
    number = 0
    while pending:
        peers.gate(launch * LAUNCH_MARK + number)
        number += 1
        status = run_chips(pending, rings, number * window, rounds=1)
        for chip, state in zip(pending, status, strict=True):
            if state not in (Status.DONE, Status.WINDOW):
                raise StuckError(
                    f"{_wait_of(chip)} inside the window that ends at {number * window}: a vector "
                    "is later than its link allows"
                )
        pending = [c for c, s in zip(pending, status, strict=True) if s != Status.DONE]
    peers.gate((launch + 1) * LAUNCH_MARK)
