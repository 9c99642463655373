"""A text through two forwards, and the figures of how far they lie apart.

Both read the same true tokens (teacher forcing), in consecutive windows; every token of the text
but the first is predicted once, the first of a window from one token of context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from programs.evaluation.float32 import EvaluationError, Forward

__all__ = ["Comparison", "LayerErrors", "compare_text", "windows"]

F32 = NDArray[np.float32]
#: Positions whose logits and streams are held at once.
BLOCK = 128


def windows(tokens: int, context: int) -> Iterator[range]:
    """The positions of each window: consecutive, of ``context``, that have a next token."""
    for first in range(0, tokens - 1, context):
        yield range(first, min(first + context, tokens - 1))


@dataclass
class LayerErrors:
    """How far residual streams lie apart, by (layer, "attention" or "ffn").

    Every position is relative to its own stream: the first one's is often a thousand times larger
    than the others', and would hide them.
    """

    sums: dict[tuple[int, str], NDArray[np.float64]] = field(default_factory=dict)
    """[squares of the relative differences, positions]."""
    _reference: dict[tuple[int, str], NDArray[np.float64]] = field(default_factory=dict)

    def keep(self, layer: int, part: str, x: F32) -> None:
        """Remember the reference's residual stream [P, hidden] after a block of a layer."""
        self._reference[layer, part] = x.astype(np.float64)

    def compare(self, layer: int, part: str, x: F32) -> None:
        """Count the emulated model's residual stream there against it."""
        exact = self._reference.pop((layer, part))
        lengths = np.maximum(np.sum(exact**2, axis=1), np.finfo(np.float64).tiny)
        apart = np.sum(np.sum((x - exact) ** 2, axis=1) / lengths)
        both = np.array([apart, len(x)])
        self.sums[layer, part] = self.sums.get((layer, part), np.zeros(2)) + both

    def relative(self) -> list[tuple[int, str, float]]:
        """(layer, part, rms over positions of the relative difference), in order of computing."""
        return [(*place, math.sqrt(apart / n)) for place, (apart, n) in self.sums.items()]


@dataclass
class Comparison:
    """Sums over the predicted tokens of a text, and what follows from them."""

    tokens: int = 0
    """Predicted tokens."""
    nats: float = 0.0
    """Surprise of the emulated model, in all."""
    reference_nats: float = 0.0
    """Surprise of the reference, in all."""
    same: int = 0
    """Tokens for which both have the same most likely one, of equal ones the lowest id."""
    worst: float = 0.0
    """Largest difference of a logit."""
    worst_at: int = 0
    """Position in the text after which it is."""
    _squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))

    def add(self, at: int, reference: F32, emulated: F32, wanted: Sequence[int]) -> None:
        """Count logits [P, vocab] of both after the positions from ``at`` on; wanted: the tokens.

        Raises EvaluationError for logits that are no numbers.
        """
        for name, logits in (("float32", reference), ("emulated", emulated)):
            wrong = np.flatnonzero(~np.isfinite(logits).all(axis=1))
            if len(wrong):
                raise EvaluationError(
                    f"{name} logits after token {at + wrong[0]} of the text are no finite numbers; "
                    "evaluate another model or text"
                )
        exact, ours = reference.astype(np.float64), emulated.astype(np.float64)
        self.tokens += len(wanted)
        self.reference_nats += _surprise(exact, wanted)
        self.nats += _surprise(ours, wanted)
        self.same += int(np.sum(exact.argmax(axis=1) == ours.argmax(axis=1)))
        errors = np.abs(ours - exact)
        row = int(errors.max(axis=1).argmax())
        if errors[row].max() > self.worst:
            self.worst, self.worst_at = float(errors[row].max()), at + row
        self._squares += (np.sum(errors**2), np.sum(exact**2))

    @property
    def perplexity(self) -> float:
        """Of the emulated model: exp of its mean surprise."""
        return math.exp(self.nats / self.tokens)

    @property
    def reference_perplexity(self) -> float:
        """Of the reference."""
        return math.exp(self.reference_nats / self.tokens)

    @property
    def perplexity_change(self) -> float:
        """Emulated over reference, less 1."""
        return math.expm1((self.nats - self.reference_nats) / self.tokens)

    @property
    def agreement(self) -> float:
        """Share of tokens for which both have the same most likely one."""
        return self.same / self.tokens

    @property
    def relative_rms(self) -> float:
        """Rms of the difference of the logits over the rms of the reference's."""
        difference, reference = self._squares
        return math.sqrt(difference / reference)


def _surprise(logits: NDArray[np.float64], wanted: Sequence[int]) -> float:
    """Sum of -log softmax at ``wanted``, of logits [P, vocab]."""
    highest = logits.max(axis=1)
    whole = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return float(np.sum(whole - logits[np.arange(len(wanted)), list(wanted)]))


def compare_text(
    reference: Forward,
    emulated: Forward,
    tokens: Sequence[int],
    context: int,
    layers: LayerErrors | None = None,
    tell: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Read ``tokens`` through both, in windows of ``context`` (see ``windows``).

    layers: counts the residual streams as well.  tell: hears before each block how many
    tokens are done.
    """
    done = Comparison()
    keep = None if layers is None else layers.keep
    compare = None if layers is None else layers.compare
    for window in windows(len(tokens), context):
        reference.reset()
        emulated.reset()
        for first in range(window.start, window.stop, BLOCK):
            last = min(first + BLOCK, window.stop)
            at = first - window.start
            tell(done.tokens)
            exact = reference.block(tokens[first:last], at, keep)
            ours = emulated.block(tokens[first:last], at, compare)
            done.add(first, exact, ours, tokens[first + 1 : last + 1])
    return done
