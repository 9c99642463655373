"""Normed int8 words: where their factor may lie beside the digits made of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chip.scheduling import Place, Schedule
from chip.spec import ChipSpec
from programs.kernels import Activations, clear_of_digits, quantise
from programs.sram import EAST_QUAD, KV_QUAD, WEST_QUAD

#: Slices of activations: high and low digits, west and east.
DIGITS = Activations((Place((5,), 40), Place((50,), 40)), (Place((6,), 40), Place((51,), 40)))
BESIDE, APART = Place(KV_QUAD, 30), Place((52, 53, 54, 55), 30)


def schedule_with(spec: ChipSpec, factor: Place, tiles: int) -> None:
    x, gains = Place(EAST_QUAD, 200), Place(WEST_QUAD, 300)
    quantise(Schedule(), spec, x, tiles, 100, factor, DIGITS, gains)


@pytest.mark.parametrize("changes", [{}, {"read_cycles": 7}, {"alu_entry_cycles": 1}])
def test_a_factor_is_clear_of_digits_where_its_reads_end_before(changes: dict[str, int]) -> None:
    """What is told is what the reservation table finds; a quad without digits always is clear."""
    spec = replace(ChipSpec(), **changes)
    most = max(n for n in range(1, 65) if clear_of_digits(spec, BESIDE, n, DIGITS))
    # read on position 26 from so long before on; digits come there 15 cycles, an ALU and a way on
    assert most == spec.read_cycles + 2 + 15 + spec.alu_entry_cycles + spec.alu_cycles + 2
    schedule_with(spec, BESIDE, most)
    with pytest.raises(ValueError, match="a group takes one resource twice: row 350"):
        schedule_with(spec, BESIDE, most + 1)
    assert clear_of_digits(spec, APART, 64, DIGITS)
    schedule_with(spec, APART, 64)
