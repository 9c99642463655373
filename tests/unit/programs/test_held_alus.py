"""A ``self`` operand is the ALU's latest result: nobody else may use the ALU in between."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from chip import isa
from chip.scheduling import Pass, Schedule
from chip.spec import ChipSpec
from programs.decoder import compile_decoder, partition_model
from programs.models import ModelConfig, random_checkpoint

CONFIGS = {
    "llama": ModelConfig(100, 1, 4, 2, 24, 700, 331),
    "qwen": ModelConfig(100, 1, 8, 2, 24, 130, 331, head_norms=True),
    "gemma 2": ModelConfig(100, 1, 4, 2, 24, 130, 331, post_norms=True, score_cap=5, logit_cap=3),
    "olmo 2": ModelConfig(
        100, 1, 8, 4, 72, 130, 331, pre_norms=False, post_norms=True, wide_norms=True
    ),
    "mixtral": ModelConfig(100, 1, 4, 2, 24, 330, 331, experts=3, experts_per_token=2),
}


def unheld(p: Pass) -> list[tuple[int, int]]:
    """(ALU, cycle) of every cycle between a ``self`` and the result it means that is not held."""
    held: dict[int, set[int]] = {}
    for row, first, last in p.held:
        held.setdefault(row, set()).update(range(first, last + 1))
    dispatched: dict[int, dict[int, bool]] = {}
    for block in p.blocks:
        if not isa.VXM_QUEUE <= block["queue"] < isa.VXM_QUEUE + isa.ALUS:
            continue
        own = isa.SELF in (block["s0"], block["s1"])
        for outer, inner in np.ndindex(block["n2"], block["n1"]):
            cycle = block["cycle"] + inner * block["dc1"] + outer * block["dc2"]
            dispatched.setdefault(block["queue"], {})[cycle] = own
    found = []
    for queue, cycles in dispatched.items():
        for before, after in itertools.pairwise(sorted(cycles)):
            if cycles[after]:
                between = set(range(before + 1, after)) - held.get(queue, set())
                found += [(queue - isa.VXM_QUEUE, cycle) for cycle in sorted(between)]
    return found


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_alus_are_held_from_a_result_to_its_use(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[Pass] = []
    place = Schedule.place

    def recorded(schedule: Schedule, group: Pass, earliest: int, name: str = "") -> int:
        passes.append(group)
        return place(schedule, group, earliest, name)

    monkeypatch.setattr(Schedule, "place", recorded)
    compile_decoder(partition_model(random_checkpoint(CONFIGS[name], 1), 2, dtype), ChipSpec(), 16)
    assert len(passes) > 10
    assert {number: found for number, p in enumerate(passes) if (found := unheld(p))} == {}
