"""Lists and texts that are cut: how much is shown, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cluster.runs
import programs.artifact
from chip.checker import Finding
from chip.encoding.assembly_error import shown
from cluster.cli import run
from cluster.commands import experiment_speculative
from cluster.experiments.serving.arrivals import _show
from cluster.library.plan_table import PlanTable
from interconnect.wiring.topology import _clipped
from programs.faults.plan import _shown


@pytest.mark.parametrize(
    ("cut", "longest"), [(_clipped, 80), (shown, 40), (_show, 40)], ids=["wiring", "asm", "trace"]
)
def test_a_text_that_is_too_long_ends_in_dots(cut: Callable[[str], str], longest: int) -> None:
    for length in (0, 1, longest - 1, longest):
        assert cut("x" * length).strip("'") == "x" * length
    for length in (longest + 1, 10 * longest):
        assert cut("x" * length).strip("'") == "x" * (longest - 3) + "..."


def test_values_of_a_fault_file_are_shown_short() -> None:
    assert _shown("x" * 38) == repr("x" * 38)
    assert len(_shown("x" * 39)) == len(_shown("x" * 900)) == 40
    assert _shown(2**63 - 1) == str(2**63 - 1) and _shown(-(2**63) + 1) == str(-(2**63) + 1)
    assert _shown(2**63) == _shown(-(2**63)) == "a number beyond 64 bits"
    assert (_shown([1]), _shown(None), _shown(1.5)) == ("list", "NoneType", "1.5")


def finding(number: int) -> Finding:
    return Finding("bank", 0, number, 3, f"READ a={number}", "two at once", "move one")


@pytest.mark.parametrize(("found", "more"), [(49, 0), (50, 0), (51, 1), (120, 70)])
def test_fifty_findings_are_shown(
    found: int,
    more: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    artifact = SimpleNamespace(programs={"main": ["program"]}, sources=None)
    monkeypatch.setattr(programs.artifact, "load", lambda _: artifact)
    monkeypatch.setattr(programs.artifact, "place_of", lambda *_: None)
    pairs = [("main", finding(number)) for number in range(found)]
    monkeypatch.setattr(cluster.runs, "check_artifact", lambda *_: pairs)
    file = tmp_path / "a.lpu"
    file.write_bytes(b"")
    assert run(["check", str(file)]) == 1
    *told, verdict = capsys.readouterr().out.splitlines()
    assert verdict == f"{file}: 1 programs, NOT legal: {found} errors"
    if more:
        assert told.pop() == f"... and {more} more"
    assert len(told) == min(found, 50)
    assert [line.split("READ a=")[1].split()[0].strip(":,;") for line in told] == [
        str(number) for number in range(len(told))
    ]


@pytest.mark.parametrize(("rows", "more"), [(60, 0), (61, 1)])
def test_sixty_rows_of_a_sweep_are_shown(
    rows: int, more: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    numbered = [{"gamma": n, "temperature": 0, "link": "x"} for n in range(rows)]
    monkeypatch.setattr(
        experiment_speculative, "_cells", lambda row, _: [f"row {row['gamma']}"] + [""] * 6
    )
    monkeypatch.setattr(experiment_speculative, "_facts", lambda _: [("speedup", "9")])
    experiment_speculative._show({"rows": numbered, "text": []}, ["a prompt"])
    out = capsys.readouterr().out
    assert out.count("row ") == 60 and "speedup" in out
    assert (f"{more} more rows: see --json" in out) == bool(more)


def test_figures_of_one_plan_are_attributes() -> None:
    one: Any = PlanTable([{"chips": 8, "phases": {"vxm": 3}}])
    assert one.chips == 8 and len(one) == 1
    one.phases["vxm"] = 4  # a copy
    assert one.phases == {"vxm": 3}
    with pytest.raises(AttributeError, match="a plan has no chip; use chips, phases"):
        _ = one.chip
    for table in (PlanTable([]), one + one):
        assert not hasattr(table, "chips")
    two: Any = one + PlanTable([{"chips": 9}])
    assert [row["chips"] for row in two] == [8, 9]
    with pytest.raises(AttributeError, match=r"chips: the table has 2 plans; use rows\(\)"):
        _ = two.chips
