"""What a newcomer runs first keeps its SLO: no alert of the dashboards fires."""

from __future__ import annotations

import importlib.util
import json
import re
from typing import Any

import pytest

from cluster.cli import run
from cluster.commands.script import ScriptJob
from tests import ROOT

RULES = (ROOT / "dashboards" / "prometheus" / "rules" / "lpu.rules.yml").read_text("utf-8")


def burns(report: Any) -> list[float]:
    """How fast each pool of at least as many requests as the alert needs uses up its budget."""
    objective = float(re.search(r"lpu:slo_miss:ratio / ([0-9.]+)", RULES)[1])  # type: ignore[index]
    least = int(re.search(r"lpu:slo_requests:last15m >= ([0-9]+)", RULES)[1])  # type: ignore[index]
    found = []
    parts = [report]
    for part in parts:
        if isinstance(part, dict):
            parts += part.values()
            if "good_ratio" in part and part["requests"] >= least:
                found.append((1 - part["good_ratio"]) / objective)
    return found


def limit() -> float:
    return float(re.search(r"lpu:slo_burn:ratio > ([0-9.]+)", RULES)[1])  # type: ignore[index]


@pytest.mark.parametrize(("experiment", "pools"), [("load", 2), ("disaggregated", 6)])
def test_an_experiment_as_it_comes_keeps_its_slo(
    capsys: pytest.CaptureFixture[str], experiment: str, pools: int
) -> None:
    assert run(["experiment", experiment, "--json"]) == 0
    rates = burns(json.loads(capsys.readouterr().out))
    assert len(rates) == pools and max(rates) <= limit()


@pytest.mark.parametrize(("script", "pools"), [("load", 8), ("disaggregated", 12)])
def test_a_workload_script_keeps_its_slo(script: str, pools: int) -> None:
    path = ROOT / "programs" / "workloads" / f"{script}.py"
    spec = importlib.util.spec_from_file_location(f"workload_{script}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rates = burns(module.work(ScriptJob(script, None)))
    assert len(rates) == pools and max(rates) <= limit()
