"""What conversions lose is counted: chips as the golden model, layer by layer, in both modes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from chip.saturation import KINDS
from chip.spec import ChipSpec
from programs.decoder import GoldenDecoder, Host, compile_decoder, partition_model
from programs.models import Checkpoint, ModelConfig, random_checkpoint
from programs.models.tensors import TensorSource
from programs.running import (
    BARRIER,
    LOOKAHEAD,
    Runner,
    Saturations,
)

F32 = NDArray[np.float32]
Index = NDArray[np.int64]

SPEC = ChipSpec()
CONTEXT = 64
TOKENS = (3, 41, 59)
GROUPED = ModelConfig(100, 2, 8, 2, 24, 130, 331)
WIDE = ModelConfig(700, 2, 4, 4, 40, 900, 97, head_norms=True)
EXPERTS = ModelConfig(100, 2, 4, 2, 24, 700, 331, experts=8, experts_per_token=2)


class Loud:
    """A model's tensors, those of which ``factors`` names the end times a factor.

    A pair (channel, value) for the embedding instead: every token has ``value`` in ``channel``.
    """

    def __init__(self, source: TensorSource, factors: dict[str, float], value: float) -> None:
        self._source, self._factors, self._value = source, factors, value

    def read(self, name: str, rows: Index | None, columns: Index | None) -> F32:
        values = self._source.read(name, rows, columns)
        for end, factor in self._factors.items():
            if name.endswith(end):
                values = values * np.float32(factor)
        if name.endswith("embed_tokens.weight") and columns is None and self._value:
            values = values.copy()
            values[:, 7] = self._value
        return values


def loud(config: ModelConfig, value: float = 0.0, **factors: float) -> Checkpoint:
    ends = {f"{name}.weight": factor for name, factor in factors.items()}
    return Checkpoint(config, Loud(random_checkpoint(config, 0).source, ends, value))


def counted(
    checkpoint: Checkpoint, tp: int, dtype: str, pp: int = 1, sync: str = LOOKAHEAD
) -> tuple[Saturations, Saturations]:
    """What the chips and what the golden model count over a few tokens, all logits read."""
    model = partition_model(checkpoint, tp, dtype)
    artifact = compile_decoder(model, SPEC, CONTEXT, pp=pp)
    runner, golden = Runner.alone(artifact, Host(artifact, model)), GoldenDecoder(model)
    for position, token in enumerate(TOKENS):
        for chip in runner.chips:
            runner.host.prepare(chip, token, position)
        runner.launch(f"decode-{CONTEXT}", position, sync)
        golden.step(token, position, CONTEXT)
    wanted = {
        place: {kind: n for kind, n in zip(KINDS, counts.tolist(), strict=True) if n}
        for place, counts in golden.tally.counts.items()
    }
    return runner.saturations, wanted


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize(
    ("config", "tp", "pp"), [(GROUPED, 1, 1), (GROUPED, 2, 2), (WIDE, 2, 1), (EXPERTS, 1, 1)]
)
def test_one_loud_channel(config: ModelConfig, tp: int, pp: int, dtype: str) -> None:
    """A channel of the embedding at 1e5, ten times that and more: chips as the golden model."""
    found, wanted = counted(loud(config, 1e5), tp, dtype, pp)
    assert found == wanted
    found, wanted = counted(loud(config, 3e9, down_proj=1e6), tp, dtype, pp)
    assert found == wanted and found, "so much saturates in any scheme"
    assert list(found) == ["0", "1", "head"]


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize(("config", "tp"), [(GROUPED, 1), (GROUPED, 4), (WIDE, 2), (EXPERTS, 2)])
def test_loud_weights(config: ModelConfig, tp: int, dtype: str) -> None:
    """Queries, keys, values and the inputs of O and down beyond fp16."""
    factors = dict.fromkeys(("q_proj", "k_proj", "v_proj", "up_proj", "w3"), 1e5)
    found, wanted = counted(loud(config, **factors), tp, dtype)
    assert found == wanted and found["0"]["fp16"] > 0


def test_ordinary_activations_lose_nothing() -> None:
    for dtype in ("int8", "fp16"):
        assert counted(loud(GROUPED), 2, dtype) == ({}, {})


def test_barriers_count_as_lookahead() -> None:
    loud_model = loud(GROUPED, 3e9)
    assert counted(loud_model, 2, "fp16", 2, BARRIER)[0] == counted(loud_model, 2, "fp16", 2)[0]
