"""Decoding speed is that of the launches that give tokens, however many were asked for."""

from __future__ import annotations

import pytest

from cluster import GenerateSettings, generate
from programs.artifact import Bindings

LANES, FP32_BYTES = 320, 4


def test_rate_does_not_depend_on_the_number_of_tokens() -> None:
    """A prompt's launches return no logits: spread evenly, their transfers flattered decoding."""
    seconds = {}
    for count in (1, 4):
        settings = GenerateSettings(
            model="draft",
            prompt="def fibonacci(n):\n    if n",
            max_new_tokens=count,
            tp=1,
            context=64,
            in_process=True,
            ignore_eos=True,
        )
        done = generate(settings)
        assert len(done.prompt) > 3 and len(set(done.cycles)) == 1
        seconds[count] = done.result.decode_seconds / count
        spec, bound = done.artifact.spec, Bindings.of(done.artifact)
        words = sum(n for planes in bound.inputs.values() for _, _, n in planes)
        moved = LANES * (words + FP32_BYTES * bound.outputs["logits"][0][2])
        transfers = 2 * spec.pcie_latency_s + moved / spec.pcie_bytes_per_s
        assert seconds[count] == pytest.approx(done.cycles[0] / spec.clock_hz + transfers)
        assert done.decode_tokens_per_second == pytest.approx(1 / seconds[count])
    assert seconds[1] == pytest.approx(seconds[4], rel=1e-12)
