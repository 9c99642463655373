"""A collective, from its settings to facts: scheduled, simulated, and run with data if asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.errors import InputError, RunError
from cluster.gpu import gpu_time
from cluster.metrics import Board, RunWatch
from cluster.runs.collectives import collective_rows, run_functional
from cluster.runs.settings import ONLY_WITH_RUN, CollectiveSettings
from cluster.runs.wirings import Facts, machine_of
from cluster.tracing import Launched, TraceRequest
from interconnect.collectives import CollectivePlan, plan_collective
from interconnect.wiring import Topology
from programs.artifact import ENTRY_POINT, Artifact
from programs.faults import FaultPlan


@dataclass(frozen=True)
class CollectiveRun:
    """A collective as planned, and as run where it was.

    facts: the object of ``lpu fabric collective --json``.  artifact, launched: of the run.
    """

    settings: CollectiveSettings
    plan: CollectivePlan
    facts: Facts
    artifact: Artifact | None = None
    launched: Launched | None = None

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The facts for people."""
        return collective_rows(self.facts, self.plan)

    def require_right(self) -> None:
        """Raise RunError where the schedule breaks a rule or a result differs from NumPy's."""
        if self.plan.findings:
            raise RunError(f"the schedule breaks a rule: {self.plan.findings[0]}")
        run = self.facts.get("run")
        if run is not None and not run["equal"]:
            raise RunError(f"the chips' result differs from NumPy's on chip {run['differs']}")


def run_collective(
    settings: CollectiveSettings,
    *,
    seed: int = 0,
    faults: FaultPlan | None = None,
    tracing: TraceRequest | None = None,
    board: Board | None = None,
    phase: Callable[[str], None] = lambda _: None,
) -> CollectiveRun:
    """Schedule, check and simulate a collective; with ``settings.run`` also execute it with data.

    seed: of the data.  faults: what befalls the modelled machine.  tracing: a trace to write.
    board: where metrics go.  phase: told what goes on.  A result that is wrong is no error here:
    see ``CollectiveRun.require_right``.
    """
    if not settings.run and faults is not None:
        raise InputError(ONLY_WITH_RUN)
    wiring, spec = machine_of(settings.chips, settings.chip)
    operation, nbytes = settings.operation, settings.nbytes

    def planned_on(wiring: Topology) -> tuple[CollectivePlan, Facts]:
        compared = None
        if settings.gpu is not None:
            compared = gpu_time(settings.gpu, operation, wiring.chips, nbytes)
        try:
            plan = plan_collective(wiring, operation, nbytes, spec, algorithm=settings.algorithm)
        except ValueError as error:
            raise InputError(f"--chips {settings.chips} --op {operation}: {error}") from None
        facts = _planned_facts(settings, plan)
        if compared is not None:
            facts["gpu"] = {
                "name": compared.gpu,
                "gpus": plan.chips,
                "algorithm": compared.algorithm,
                "best_ns": 1e9 * compared.best_s,
                "p50_ns": 1e9 * compared.p50_s,
                "p99_ns": 1e9 * compared.p99_s,
                "estimate": True,
            }
        return plan, facts

    plan, facts = planned_on(wiring)
    if not settings.run:
        return CollectiveRun(settings, plan, facts)
    compiled: list[tuple[Artifact, Topology]] = []

    def compiled_for(artifact: Artifact, wiring: Topology) -> None:
        compiled.append((artifact, wiring))
        if tracing is not None:  # too large a trace is refused before the run
            tracing.plan(artifact, [Launched(ENTRY_POINT, artifact.predicted_cycles[ENTRY_POINT])])

    run = run_functional(
        wiring,
        spec,
        settings,
        seed=seed,
        phase=phase,
        planned=compiled_for,
        watch=None if board is None else RunWatch(board, "fabric collective"),
        faults=faults,
    )
    artifact, in_use = compiled[0]
    if in_use is not wiring:  # some of its nodes are spare
        plan, facts = planned_on(in_use)
    facts["run"] = run
    launched = Launched(ENTRY_POINT, run["cycles"])
    if tracing is not None:
        phase("writing the trace ...")
        facts["trace"] = tracing.write(artifact, [launched]).summary()
    return CollectiveRun(settings, plan, facts, artifact, launched)


def _planned_facts(settings: CollectiveSettings, plan: CollectivePlan) -> Facts:
    return {
        "op": settings.operation,
        "chips": plan.chips,
        "bytes": settings.nbytes,
        "algorithm": plan.algorithm,
        "latency_cycles": plan.latency_cycles,
        "latency_ns": plan.latency_ns,
        "bandwidth_gb_s": plan.bandwidth_gb_s,
        "vectors": plan.vectors,
        "vector_hops": plan.vector_hops,
        "link_conflicts": plan.link_conflicts,
        "findings": [str(finding) for finding in plan.findings],
        "bounds": {
            name: {"cycles": bound.cycles, "formula": bound.formula}
            for name, bound in plan.bounds.items()
        },
        "busiest_link_ratio": float(plan.run.busiest()[1]),
        "digest": f"{plan.digest:016x}",
        "launches": len(plan.launch_words),
    }
