"""Drafted tokens verified together: logits of each, those of one token after another."""

from __future__ import annotations

from dataclasses import replace

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
def test_together_where_it_is_sooner_and_what_it_costs() -> None:
    """The host's transfers count: five tokens take fewer cycles one by one, but more time.

    Only the rows of logits that are asked for are charged.
    """
    model = partition_model(random_checkpoint(SMALL, 0), 1)
    artifact = compile_decoder(model, SPEC, 64, chunk=16, every_logit=True)
    cycles = artifact.predicted_cycles
    assert 5 * cycles["decode-64"] < cycles["chunk-64-end"]
    row = 4 * 320 * model.layout.vocab_blocks / SPEC.pcie_bytes_per_s
    session, plain = (
        LpuSession(artifact, model),
        LpuSession(compile_decoder(model, SPEC, 64), model),
    )
    for at in range(5):
        session.logits(7, at)
        plain.logits(7, at)
    assert session.io_seconds == pytest.approx(plain.io_seconds)
    into = plain.last_io_seconds - 2 * SPEC.pcie_latency_s - row
    for count in (2, 5, 16):
        session = LpuSession(artifact, model)
        session.read([7] * 5)
        before = session.launches, session.io_seconds, session.seconds
        session.verify([7] * count, 5)
        together = session.launches == before[0] + 1
        token = cycles["decode-64"] / SPEC.clock_hz + plain.last_io_seconds
        charged = 2 * SPEC.pcie_latency_s + 16 * into + count * row
        whole = cycles["chunk-64-end"] / SPEC.clock_hz + charged
        assert together == (whole < count * token)
        assert session.seconds - before[2] == pytest.approx(min(whole, count * token))
    assert together


@pytest.mark.long
@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize("positions", [4096, 256])
def test_across_a_bucket_and_to_the_end_of_the_context(positions: int, window: int) -> None:
    """Runs of six over positions 63 and 64 of 100, on planes and on the VXM, on two stages."""
    config = replace(SMALL, layers=2, max_position=positions, sliding_window=window)
    model = partition_model(random_checkpoint(config, 0), 1)
    artifact = compile_decoder(model, SPEC, 100, pp=2, chunk=6, every_logit=True)
    session, golden = LpuSession(artifact, model), GoldenDecoder(model)
    tokens = np.random.default_rng(1).integers(0, 61, 100).tolist()
    wanted = [golden.step(token, at, 128) for at, token in enumerate(tokens)]
    session.read(tokens[:58])
    for first in range(58, 100, 6):
        before = session.launches
        rows = session.verify(tokens[first : first + 6], first)
        assert session.launches == before + 1
        np.testing.assert_array_equal(
            rows.view(np.uint32), np.stack(wanted[first : first + 6]).view(np.uint32)
        )


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
