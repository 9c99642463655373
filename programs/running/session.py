"""``LpuSession``: a compiled decoder on emulated LPUs, one launch at a time.

All chips run in this process.  Where ``generate`` feeds a prompt and picks tokens itself, a session
launches whatever token at whatever position it is told to, which is what a drafter beside a
verifier needs.

Rolling back takes no launch: the one at a position overwrites that position's keys and values, and
its mask hides every later one.  So after a rejection the caller just feeds the right token at the
earlier position.  Where attention is on the planes, the host first restores the values beside that
position, which the chip keeps apart; it is charged for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from programs.artifact import Artifact, decoder_of
from programs.decoder import Host, PartitionedModel, entry_at
from programs.running.feeding import Feeder, Feeding, prompt_feedings
from programs.running.runner import Runner
from programs.running.saturation import Saturations, saturations_of
from programs.running.stepping import LOOKAHEAD, StuckError

F32 = NDArray[np.float32]


class LpuSession:
    """The chips of ``artifact``, loaded once and launched token by token.

    last_cycles, last_io_seconds: of the latest launch, the exact cycles at which its chips
    retired and the estimated seconds of host transfers.  cycles, io_seconds, launches: of all.
    """

    def __init__(self, artifact: Artifact, model: PartitionedModel | None = None) -> None:
        """``model``: as for ``Host``, the partitioned model if it is in no directory."""
        self.artifact = artifact
        self._host = Host(artifact, model)
        self._runner = Runner.alone(artifact, self._host)
        self.launches = 0
        self.cycles = 0
        self.last_cycles = 0
        self.last_io_seconds = 0.0

    @property
    def context(self) -> int:
        """Positions the KV cache holds."""
        return decoder_of(self.artifact).context

    @property
    def io_seconds(self) -> float:
        """Estimated seconds of all host transfers."""
        return self._host.virtual_io_seconds

    @property
    def seconds(self) -> float:
        """Virtual seconds of all launches with their host transfers."""
        return self.cycles / self.artifact.spec.clock_hz + self.io_seconds

    @property
    def saturations(self) -> Saturations:
        """What conversions of all chips lost in all launches."""
        return saturations_of(self.artifact, self._runner.chips)

    def logits(self, token: int, position: int) -> F32:
        """Feed ``token`` at ``position``; the logits of the next token, float32 [vocab].

        Every position before must have been fed since the text there last changed.
        """
        before = self.io_seconds
        self._launch(token, position, prefill=False)
        values = self._logits()
        self.last_io_seconds = self.io_seconds - before
        return values

    def feed(self, token: int, position: int) -> None:
        """Feed ``token`` at ``position`` for its KV only: the program without the head."""
        before = self.io_seconds
        self._launch(token, position, prefill=True)
        self.last_io_seconds = self.io_seconds - before

    def read(self, tokens: Sequence[int], position: int = 0) -> F32:
        """Feed ``tokens`` from ``position`` on; the logits after the last, float32 [vocab].

        They follow each other through the stages where that is sooner.  Raises ValueError where
        there is none.
        """
        if not len(tokens):
            raise ValueError("no tokens to read")
        for feeding in prompt_feedings(self.artifact, position, len(tokens)):
            before = self.io_seconds
            self._feed(feeding, {position + n: token for n, token in enumerate(tokens)})
            values = self._logits() if feeding.logits else np.zeros(0, np.float32)
            self.last_io_seconds = self.io_seconds - before
        return values

    def verify(self, tokens: Sequence[int], position: int) -> F32:
        """Feed ``tokens`` from ``position`` on; the logits after each, float32 [tokens, vocab].

        Together where there is a program for it (``every_logit``), the tokens are no more than its
        chunk and it is sooner than one by one, the host's transfers included.  The chunk is filled
        with others: what is after them in the caches nobody sees before it is written over.  Raises
        ValueError where there is none.
        """
        if not len(tokens):
            raise ValueError("no tokens to verify")
        count, feeder = len(tokens), Feeder.of(self.artifact)
        every = decoder_of(self.artifact).every_logit
        way = feeder.verifies_together(position, count) if every else None
        known = {position + n: token for n, token in enumerate(tokens)}
        if way is None:
            return np.stack([self.logits(token, at) for at, token in known.items()])
        before = self.io_seconds
        (feeding,) = feeder.feedings(way)
        others = dict.fromkeys(range(position, position + feeding.tokens), 0)
        self._feed(feeding, others | known)
        rows = [self._host.read_rows(chip, count) for chip in self._runner.chips]
        self.last_io_seconds = self.io_seconds - before
        return np.concatenate(rows, axis=1)

    def _logits(self) -> F32:
        return np.concatenate([self._host.read_logits(chip) for chip in self._runner.chips])

    def _launch(self, token: int, position: int, prefill: bool) -> None:
        stages = decoder_of(self.artifact).pp
        entry = entry_at(self.artifact, position, prefill)
        self._feed(Feeding(entry, (position,) * stages, not prefill), {position: token})

    def _feed(self, feeding: Feeding, tokens: Mapping[int, int]) -> None:
        """One launch; tokens: by position."""
        resting = self._runner.prepare(feeding, tokens)
        entry = feeding.entry
        retired = self._runner.launch(entry, self.launches, LOOKAHEAD, resting=resting)
        expected = self.artifact.predicted_cycles[entry]
        wrong = {chip: cycle for chip, cycle in retired.items() if cycle != expected}
        if wrong:
            raise StuckError(f"{entry}: chips retired at {wrong}, predicted {expected}")
        self.launches += 1
        self.last_cycles = expected
        self.cycles += expected
