"""When a chip spreads what another stage sent: its Reads and Writes of the inbox never meet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chip.scheduling import CompileError, Place
from chip.spec import ChipSpec
from interconnect.collectives.handover import _turn

INBOX = Place((52, 53, 54, 55), 0)


def test_vectors_as_close_as_their_writes_and_reads_cannot_be_spread() -> None:
    with pytest.raises(CompileError, match="send_spacing_cycles is 1: too short to spread"):
        _turn(replace(ChipSpec(), send_spacing_cycles=1), 1, INBOX)


@pytest.mark.parametrize("spacing", [12, 24, 30])
def test_the_turn_grows_by_less_than_a_spacing(spacing: int) -> None:
    """A slice does one thing a cycle, so that some cycle of every spacing is free."""
    spec = ChipSpec()
    least = _turn(spec, 1_000_000, INBOX)
    assert least <= _turn(spec, spacing, INBOX) < least + spacing
