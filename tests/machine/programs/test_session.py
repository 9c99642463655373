"""A session rolls back without a launch: old keys and values are overwritten or masked, bit for
bit; on the planes the host restores those beside the position (``test_on_planes``).
"""

from __future__ import annotations

import numpy as np
import pytest

from chip.spec import ChipSpec
from programs.artifact import Artifact
from programs.decoder import compile_decoder, partition_model
from programs.models import load_checkpoint, shipped_model
from programs.running import LpuSession, generate

PROMPT = (70, 221, 304)


@pytest.fixture(scope="module", params=[1, 2], ids=["1 chip", "2 chips"])
def drafter(request: pytest.FixtureRequest) -> Artifact:
    checkpoint = load_checkpoint(shipped_model("draft"))
    return compile_decoder(partition_model(checkpoint, request.param), ChipSpec(), 128)


def test_a_session_picks_the_runners_tokens(drafter: Artifact) -> None:
    expected = generate(drafter, PROMPT, 6)
    session = LpuSession(drafter)
    tokens = [int(np.argmax(session.read(PROMPT)))]
    for position in range(len(PROMPT), len(PROMPT) + 5):
        tokens.append(int(np.argmax(session.logits(tokens[-1], position))))
    assert tokens == expected.tokens
    assert session.cycles == sum(expected.retired[0])
    assert session.io_seconds == expected.io_seconds
    assert session.launches == len(expected.entries)


def test_rolling_back_is_free(drafter: Artifact) -> None:
    """Decode across a bucket boundary, go back before it, decode another text: as if fresh."""
    used, fresh = LpuSession(drafter), LpuSession(drafter)
    used.read(range(1, 71))  # 70 positions: also the larger bucket's
    text = [int(t) for t in range(100, 100 + 68)]
    for position in range(40):
        assert np.array_equal(
            used.logits(text[position], position), fresh.logits(text[position], position)
        )
    for wrong in (900, 901, 902):  # a rejected draft
        used.logits(wrong, 40 + wrong - 900)
    for position in range(40, 68):
        again = used.logits(text[position], position)
        assert np.array_equal(again, fresh.logits(text[position], position))
        assert used.last_cycles == fresh.last_cycles


def test_feeding_without_the_head_leaves_the_same_kv(drafter: Artifact) -> None:
    one, other = LpuSession(drafter), LpuSession(drafter)
    for position, token in enumerate(PROMPT[:-1]):
        one.logits(token, position)
        with_head = one.last_cycles
        other.feed(token, position)
        assert 0 < other.last_cycles < with_head
    last = len(PROMPT) - 1
    assert np.array_equal(one.logits(PROMPT[-1], last), other.logits(PROMPT[-1], last))
    assert other.seconds < one.seconds


def test_beyond_the_context(drafter: Artifact) -> None:
    session = LpuSession(drafter)
    assert session.context == 128
    with pytest.raises(ValueError, match="compiled for 128 positions"):
        session.logits(1, 128)


def test_nothing_to_read_is_refused(drafter: Artifact) -> None:
    session = LpuSession(drafter)
    with pytest.raises(ValueError, match="no tokens to read"):
        session.read([])
    assert session.launches == 0
