"""``touched_words`` covers every word that a launch changes: shown by running programs."""

from __future__ import annotations

import numpy as np
import pytest

from chip.engine import Chip, Rings
from chip.linking import link, touched_words
from chip.spec import ChipSpec
from tests.stands.programs_random import WORDS, fill_words, random_program

SPEC = ChipSpec()


@pytest.mark.parametrize(
    ("seeds", "least"),
    [(range(2), 10), pytest.param(range(2, 60), 500, marks=pytest.mark.long)],
    ids=["few", "many"],
)
def test_nothing_else_changes(seeds: range, least: int) -> None:
    bank = SPEC.words_per_bank
    used = np.r_[0:WORDS, bank : bank + WORDS]  # all that random programs reach
    rows = (np.arange(88)[:, None] * SPEC.words_per_slice + used).reshape(-1)
    rings = Rings.allocate(16, 4096)
    changed_in_all = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        linked = link(random_program(rng, SPEC), SPEC)
        chip = Chip(SPEC, 0)
        chip.wire(list(range(16)), [-1] * 16)
        words = fill_words(rng)
        chip.sram[:, :WORDS], chip.sram[:, bank : bank + WORDS] = words[:, 0], words[:, 1]
        flat = chip.sram.reshape(-1, 320)
        before = flat[rows]
        rings.clear()
        chip.begin(linked, 0)
        chip.run(rings)
        changed = rows[(flat[rows] != before).any(axis=1)]
        touched = touched_words(linked)
        assert (np.diff(touched) > 0).all()
        assert np.isin(changed, touched).all(), f"seed {seed}"
        changed_in_all += len(changed)
    assert changed_in_all > least
