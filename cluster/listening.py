"""Who hears of a run while it goes on; light, so that a command that computes nothing loads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Listener:
    """What the driver tells while it works; this one is silent."""

    def begin(self, prompt: Sequence[int], decode: Callable[[list[int]], str]) -> None:
        """A text begins with these token ids; ``decode`` turns ids into text."""

    def phase(self, text: str) -> None:
        """The driver begins something that takes a while."""

    def token(self, token: int) -> None:
        """One more token."""
