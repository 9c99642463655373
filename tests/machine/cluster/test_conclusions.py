"""What ends a generation whose processes do not agree, or whose launches took other cycles."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import RunError
from cluster.processes import GroupResult, conclude
from cluster.processes.conclusion import ChipsPart
from cluster.runs.generation import _conclude
from programs.artifact import Artifact
from programs.running import Generation, RunResult

PREDICTED = {"prefill-64": 900, "decode-64": 1000}
FINE = RunResult([7], ["prefill-64", "decode-64"], [1], {0: [900, 1000]}, {}, 0.5)


def concluded(*results: RunResult) -> tuple[str, list[int]]:
    """The error, and what the watch was told of launches with other cycles."""
    told: list[int] = []
    artifact: Any = SimpleNamespace(predicted_cycles=PREDICTED)
    stopwatch: Any = SimpleNamespace(watch=SimpleNamespace(retired_unexpectedly=told.append))
    groups = [GroupResult(result, [], {}) for result in results]
    with pytest.raises(RunError) as caught:
        _conclude(artifact, Generation((1,), 1), groups, stopwatch, 2, [])
    return str(caught.value), told


def test_processes_that_do_not_agree() -> None:
    other = replace(FINE, retired={1: [900, 1000]})
    picked = "processes picked different tokens: the run is not deterministic"
    assert concluded(FINE, replace(other, tokens=[8])) == (picked, [])
    assert concluded(FINE, replace(other, entries=["decode-64"] * 2)) == (picked, [])
    met = "processes met different faults: the run is not deterministic"
    assert concluded(FINE, replace(other, faults={"replays": 1})) == (met, [])


def test_launches_of_other_entry_points_do_not_agree() -> None:
    parts = [ChipsPart([entry], {}, {}, {}, {}) for entry in PREDICTED]
    artifact: Any = SimpleNamespace(predicted_cycles=PREDICTED)
    ran = "processes ran different entry points: the run is not deterministic"
    with pytest.raises(RunError, match=ran):
        conclude(parts, artifact, None)


def test_launches_of_other_cycles_are_counted() -> None:
    """Two of four launches; the first one is named."""
    late = replace(FINE, retired={1: [901, 999]})
    said, told = concluded(FINE, late)
    assert said == (
        "chip 1 retired launch 0 (prefill-64) at cycle 901, predicted 900 (2 such launches)"
    )
    assert told == [2]


def test_a_launch_everywhere_says_the_same(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.processes import Placement
    from cluster.runs import launch_everywhere

    cycles = artifact.predicted_cycles["decode-64"]
    wrong = replace(artifact, predicted_cycles={"decode-64": cycles + 1})
    with pytest.raises(RunError, match=r"retired launch 0 .* \(8 such launches\)"):
        launch_everywhere(wrong, "decode-64", "lookahead", Placement(8, in_process=True))
