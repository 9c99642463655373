"""The emulated model as a forward: computed by the golden model, or by chips in this process.

Both give the same bits; the golden model computes many positions at once, and sees into layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chip.saturation import KINDS
from chip.spec import ChipSpec
from programs.decoder import GoldenDecoder, PartitionedModel, compile_decoder
from programs.evaluation.float32 import Watch
from programs.running import LpuSession, Saturations, joined_saturations

__all__ = ["ChipsForward", "GoldenForward"]

F32 = NDArray[np.float32]


class GoldenForward:
    """A partitioned model, computed by the golden model.

    context: positions a text has at most.
    """

    computed_by = "golden model (the chips' bits)"

    def __init__(self, model: PartitionedModel, context: int) -> None:
        self._golden = GoldenDecoder(model)
        self._context = max(context, 3)
        self._used = model.layout.x_axis() >= 0

    def reset(self) -> None:
        """Forget the text."""
        self._golden.reset()

    def block(self, tokens: Sequence[int], position: int, watch: Watch | None = None) -> F32:
        """Read ``tokens`` from ``position`` on: logits after each, float32 [tokens, vocab]."""

        def see(layer: int, part: str, x: F32) -> None:
            assert watch is not None
            watch(layer, part, x[:, self._used])  # lanes in use hold the elements in order

        return self._golden.block(tokens, position, self._context, None if watch is None else see)

    @property
    def saturations(self) -> Saturations:
        """What conversions lost so far, as often as the chips would have."""
        counts = self._golden.tally.counts
        return joined_saturations(
            {place: {kind: int(n) for kind, n in zip(KINDS, own, strict=True) if n}}
            for place, own in counts.items()
        )


class ChipsForward:
    """A partitioned model, compiled for chips of ``spec`` that run in this process token by token.

    context: positions a text has at most.
    """

    computed_by = "chips (in this process)"

    def __init__(self, model: PartitionedModel, context: int, spec: ChipSpec) -> None:
        self._session = LpuSession(compile_decoder(model, spec, context), model)

    def reset(self) -> None:
        """Forget the text: later positions are hidden, and written over."""

    def block(self, tokens: Sequence[int], position: int, watch: Watch | None = None) -> F32:
        """Read ``tokens`` from ``position`` on: logits after each, float32 [tokens, vocab]."""
        assert watch is None  # chips show no layer
        return np.stack(
            [self._session.logits(token, position + at) for at, token in enumerate(tokens)]
        )

    @property
    def saturations(self) -> Saturations:
        """What conversions lost in all launches so far."""
        return self._session.saturations
