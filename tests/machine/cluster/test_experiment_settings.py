"""Experiments from Python: one settings object each, the same figures as the command prints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import run
from cluster.errors import InputError
from cluster.experiments.agentic import AgenticSettings, agentic
from cluster.experiments.serving import (
    DisaggregatedSettings,
    LoadSettings,
    disaggregated,
    load,
)
from cluster.experiments.speculative import SpeculativeSettings, speculative

GIVEN = {"lpu_cycles_per_token": 30_000}
#: A function, its settings, and what else the command line calls them.
CASES: list[tuple[Callable[[Any], Any], Any]] = [
    (load, LoadSettings(requests=20, rate=50.0, arrivals="bursts", burst=4, seed=3, **GIVEN)),
    (load, LoadSettings(pool="gpu", requests=20, gpu_groups_max=2, scale_queue=1)),
    (disaggregated, DisaggregatedSettings(requests=10, link="100gbe", pipelines=2, **GIVEN)),
    (disaggregated, DisaggregatedSettings(requests=5, platform=["gpu-only", "cpx+lpu"], **GIVEN)),
    (speculative, SpeculativeSettings(alpha=0.7, gamma=3, sweep=True, **GIVEN)),
    (agentic, AgenticSettings(requests=1, router="learned", seed=2)),
]


def _options(settings: Any) -> list[str]:
    """The settings that are not the defaults, as somebody would type them."""
    typed = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value == field.default:
            continue
        name = "--" + field.name.replace("_", "-")
        if value is True:
            typed.append(name)
            continue
        for one in value if isinstance(value, list) else [value]:
            typed += [name, str(one)]
    return typed


@pytest.mark.parametrize(("experiment", "settings"), CASES)
@pytest.mark.long
def test_python_and_command_give_one_report(
    experiment: Callable[[Any], Any], settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = experiment.__name__
    assert run(["experiment", verb, *_options(settings), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(experiment(settings).report))
    assert capsys.readouterr().out == ""


def test_texts_of_ones_own_and_those_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts"
    file.write_text("class \n\nimport \n", encoding="utf-8")
    settings = SpeculativeSettings(alpha=0.5, max_new_tokens=4, prompts=file, **GIVEN)
    read = speculative(settings)
    assert read.prompts == ("class ", "import ")
    assert speculative(settings, ["class ", "import "]).report == read.report
    assert speculative(settings, ["a"]).report["prompts"] == 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LoadSettings(pool="tpu"), "--pool tpu: use gpu or lpu or both"),
        (lambda: LoadSettings(limit=3), "--limit is of a --trace"),
        (lambda: LoadSettings(scale_idle=1.0), "--scale-idle: the GPU pool does not scale"),
        (lambda: LoadSettings(pool="lpu", gpu_groups_max=2), "no GPU serves"),
        (lambda: LoadSettings(slo_tpot=0.0), "tpot_s"),
        (lambda: DisaggregatedSettings(platform=["lpu"]), "--platform lpu: use gpu-only or"),
        (lambda: DisaggregatedSettings(handover="all"), "--handover all"),
        (lambda: SpeculativeSettings(chips=3), "--chips 3: a node has"),
        (lambda: AgenticSettings(chips=3), "--chips 3: a node has"),
        (lambda: AgenticSettings(slo=float("inf")), "--slo inf"),
    ],
)
def test_settings_that_cannot_be(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        make()


@pytest.mark.parametrize(
    ("experiment", "settings"),
    [
        (load, LoadSettings(trace=Path("/nowhere.csv"))),
        (disaggregated, DisaggregatedSettings(rate=0.0)),
        (speculative, SpeculativeSettings(prompts=Path("/nowhere"))),
        (agentic, AgenticSettings(router="no:such")),
    ],
)
def test_no_board_is_opened_for_what_cannot_be(
    experiment: Callable[..., Any], settings: Any
) -> None:
    """It would stay for scrapes of a run that never was."""
    with pytest.raises(InputError):
        experiment(settings, open_board=lambda: pytest.fail("opened"))


@pytest.mark.parametrize(
    "kind", [LoadSettings, DisaggregatedSettings, SpeculativeSettings, AgenticSettings]
)
def test_every_field_is_explained(kind: type[Any]) -> None:
    told = kind.__doc__ or ""
    assert [f.name for f in fields(kind) if not re.search(rf"\b{f.name}\b", told)] == []
