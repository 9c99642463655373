"""Whoever waits is told what for: every phase of a run, once, in its order."""

from __future__ import annotations

from pathlib import Path

from chip.spec import ChipSpec
from cluster import (
    BeltSettings,
    CollectiveSettings,
    GenerateSettings,
    PlanSettings,
    generate,
    generate_on_belt,
    plan_models,
)
from cluster.experiments.serving import DisaggregatedSettings, LoadSettings, disaggregated, load
from cluster.listening import Listener
from cluster.processes.session import COMPILING
from cluster.runs import (
    WorkloadSettings,
    measure_workload,
    random_matmul,
    run_functional,
    run_stored,
    sweep_sizes,
)
from cluster.tracing import TraceRequest
from interconnect.wiring import topology_of
from programs.matmul import MatmulShape

IN_PROCESS = [COMPILING, "loading chips"]


class Heard(Listener):
    """Phases and tokens as they come."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def phase(self, text: str) -> None:
        self.told.append(text)

    def token(self, token: int) -> None:
        self.told.append("a token")


def test_experiments_tell_what_they_serve() -> None:
    told: list[str] = []
    load(LoadSettings(pool="gpu", requests=1200), told.append)
    disaggregated(DisaggregatedSettings(requests=3, lpu_cycles_per_token=30_000), told.append)
    assert told == ["serving 1,200 requests ...", "serving ..."]


def test_plans_tell_what_they_do() -> None:
    told: list[str] = []
    plan_models(PlanSettings("draft", chips="1", context="64", buckets=True), told.append)
    assert told == [
        "compiling ...",
        "checking ...",
        "shorter contexts ...",
        "trying what would move the bottleneck ...",
        "running ...",
    ]
    told.clear()
    plan_models(PlanSettings("draft", chips="1", sweep=["context=32..64"], run=False), told.append)
    assert told == ["plan 1 of 2 ...", "plan 2 of 2 ..."]


def test_collectives_tell_what_they_do() -> None:
    told: list[str] = []
    wiring, spec = topology_of(2), ChipSpec()
    sweep_sizes(wiring, "all-reduce", spec, 1000, 4000, None, told.append)
    assert told == ["1,000 bytes ...", "2,000 bytes ...", "4,000 bytes ..."]
    told.clear()
    settings = CollectiveSettings(run=True, in_process=True, nbytes=1000)
    run_functional(wiring, spec, settings, seed=0, phase=told.append)
    assert told == ["compiling programs", "checking programs", *IN_PROCESS, "running"]


def test_workloads_tell_what_they_do(tmp_path: Path) -> None:
    told: list[str] = []
    shape = MatmulShape(16, 320, 16, "int8", 1)
    settings = WorkloadSettings(run=True, output=tmp_path / "a.lpu")
    made = []

    def build(spec: ChipSpec, seed: int, data: bool) -> object:
        made.append(random_matmul(shape, spec, seed, data))
        return made[0]

    measure_workload(build, settings, told.append)  # type: ignore[arg-type]
    assert told == ["checking ...", "running ...", "writing ..."]
    told.clear()
    run_stored(made[0].artifact, "matmul", TraceRequest(tmp_path / "t.json"), None, told.append)
    assert told == ["writing the trace ..."]


def test_texts_tell_what_they_do(tmp_path: Path) -> None:
    heard = Heard()
    settings = GenerateSettings(model="draft", chips=1, max_new_tokens=2, in_process=True)
    generate(settings, listener=heard, tracing=TraceRequest(tmp_path / "t.json"))
    assert heard.told == [
        "compiling",
        "reading weights",
        *IN_PROCESS,
        "generating",
        "a token",
        "a token",
        "writing the trace",
    ]
    told: list[str] = []
    generate_on_belt(
        BeltSettings(model="draft", prompt=["a"], max_new_tokens=1, tp=1, pp=2), told.append
    )
    assert told == ["compiling ...", "running ..."]
