"""The sizes that any program may have, to the last one that is allowed."""

from __future__ import annotations

import numpy as np
import pytest

from chip.program import Program, ProgramLimitError, new_blocks, validate_program

STRAIGHT = np.arange(320, dtype=np.int16)


def test_gangs_and_maps_are_numbered_by_sixteen_bits() -> None:
    most = 1 << 16
    validate_program(Program(new_blocks(0), [(0,)] * most, [STRAIGHT] * most))
    with pytest.raises(ProgramLimitError, match="65537 gangs; keep them within 65536"):
        validate_program(Program(new_blocks(0), [(0,)] * (most + 1), []))
    with pytest.raises(ProgramLimitError, match="65537 maps; keep them within 65536"):
        validate_program(Program(new_blocks(0), [], [STRAIGHT] * (most + 1)))


def test_a_gang_has_every_slice_of_a_chip_at_most() -> None:
    validate_program(Program(new_blocks(0), [tuple(range(88))], []))
    for gang in ((), (*range(88), 0)):
        with pytest.raises(ProgramLimitError, match=r"gang 0 is no tuple of 1\.\.88 queues"):
            validate_program(Program(new_blocks(0), [gang], []))


def test_a_launch_lasts_as_long_as_cycles_are_counted() -> None:
    """Twenty minutes at 900 MHz."""
    for cycles in (0, 1 << 40):
        validate_program(Program(new_blocks(0), [], [], cycles))
    assert 18 * 60 < (1 << 40) / 900e6 < 22 * 60
    for cycles in (-1, (1 << 40) + 1):
        with pytest.raises(ProgramLimitError, match=r"keep it within 0\.\.1099511627776"):
            validate_program(Program(new_blocks(0), [], [], cycles))
