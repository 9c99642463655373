"""Drafted tokens verified together: logits of each, those of one token after another."""

from __future__ import annotations

import numpy as np
import pytest

from chip.spec import ChipSpec
from programs.artifact import decoder_of
from programs.decoder import GoldenDecoder, compile_decoder, partition_model
from programs.models import ModelConfig, random_checkpoint
from programs.running import LpuSession
from tests.machine.programs.test_pipeline import assert_legal

SPEC = ChipSpec()
LONG = {"max_position": 4096}
SMALL = ModelConfig(40, 1, 4, 2, 16, 50, 61, **LONG)
SHAPES = {
    "vxm": ModelConfig(100, 2, 8, 2, 24, 130, 331),
    "planes": ModelConfig(100, 2, 4, 4, 24, 130, 331, **LONG),
}


def follow(config: ModelConfig, tp: int, pp: int, dtype: str, chunk: int, steps: int) -> None:
    """A text verified in runs of random lengths, some of whose tokens are then rejected.

    Every row is the golden model's at its position of the text with its proposals.
    """
    checkpoint = random_checkpoint(config, 0)
    model = partition_model(checkpoint, tp, dtype)
    artifact = compile_decoder(model, SPEC, 64, pp=pp, chunk=chunk, every_logit=True)
    assert decoder_of(artifact).every_logit and decoder_of(artifact).chunk == chunk
    assert_legal(artifact)
    rng = np.random.default_rng(chunk)
    session = LpuSession(artifact, model)
    text = rng.integers(0, config.vocab, 2 * chunk + 1).tolist()
    first = session.read(text)  # in chunks, whose last one ends in the logits of its last token
    rows = [first]
    together = 0
    for number in range(steps):
        proposed = rng.integers(0, config.vocab, rng.integers(1, chunk + 1)).tolist()
        before = session.launches
        rows = list(session.verify(proposed, len(text)))
        together += len(proposed) > 1 and session.launches == before + 1
        golden, own = GoldenDecoder(model), [*text, *proposed]
        wanted = [golden.step(token, at, 64) for at, token in enumerate(own)][len(text) :]
        if number == 0:
            golden.reset()
            last = [golden.step(token, at, 64) for at, token in enumerate(text)][-1]
            np.testing.assert_array_equal(first.view(np.uint32), last.view(np.uint32))
        for found, row in zip(rows, wanted, strict=True):
            np.testing.assert_array_equal(found.view(np.uint32), row.view(np.uint32))
        text += proposed[: rng.integers(0, len(proposed) + 1)]
    assert together > 0


def test_a_run_of_two() -> None:
    follow(SMALL, 1, 1, "int8", 2, 2)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "tp", "pp", "dtype", "chunk"),
    [
        ("planes", 1, 1, "int8", 5),
        ("planes", 2, 2, "fp16", 3),
        ("vxm", 1, 1, "fp16", 4),
        ("vxm", 2, 2, "int8", 8),
    ],
)
def test_runs_of_drafted_tokens(name: str, tp: int, pp: int, dtype: str, chunk: int) -> None:
    follow(SHAPES[name], tp, pp, dtype, chunk, 6)


@pytest.mark.long
def test_where_no_chunk_fits_tokens_are_verified_one_by_one() -> None:
    """Longer runs than the chunk, and the end of the context."""
    model = partition_model(random_checkpoint(SMALL, 0), 1)
    artifact = compile_decoder(model, SPEC, 64, chunk=4, every_logit=True)
    session, golden = LpuSession(artifact, model), GoldenDecoder(model)
    tokens = np.random.default_rng(0).integers(0, 61, 64).tolist()
    wanted = [golden.step(token, at, 64) for at, token in enumerate(tokens)]
    for first, end, launches in ((0, 4, 1), (4, 9, 5), (9, 61, 52), (61, 63, 2), (63, 64, 1)):
        before = session.launches
        rows = session.verify(tokens[first:end], first)
        assert session.launches == before + launches
        np.testing.assert_array_equal(
            rows.view(np.uint32), np.stack(wanted[first:end]).view(np.uint32)
        )
    with pytest.raises(ValueError, match="no tokens to verify"):
        session.verify([], 3)
