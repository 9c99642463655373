"""Agents from Python: the same requests and models with each router, and on one kind of machine.

    python programs/workloads/agentic.py [--json FILE] [--metrics-port N]

Prints what ``lpu experiment agentic`` measures.  A router of one's own is a function like
``short_to_lpu``: a plain dict in, "lpu" or "gpu" out.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from cluster.commands.script import ScriptJob, run_workload
from cluster.experiments.agentic import (
    GPU,
    LPU,
    AgenticSettings,
    Always,
    Learned,
    Router,
    Rule,
    build_site,
    draw_requests,
    run_agents,
)
from cluster.experiments.serving import Latencies, publish_agents

SEED = 0


def short_to_lpu(view: dict[str, Any]) -> str:
    """Steps that write at most 16 tokens to the LPUs."""
    return LPU if view["max_new_tokens"] <= 16 else GPU


def work(job: ScriptJob) -> dict[str, Any]:
    """One line per way of routing."""
    job.say("compiling the shipped models ...")
    requests = draw_requests(50.0, 8, SEED)
    site = build_site(AgenticSettings())
    routers: dict[str, Router] = {
        "rule": Rule(),
        "learned": Learned(SEED),
        "gpu-only": Always(GPU),
        "lpu-only": Always(LPU),
    }
    runs = {}
    for name, router in routers.items():
        done = partial(publish_agents, job.board, name) if job.board is not None else nothing
        run = runs[name] = run_agents(requests, site, router, SEED, 0.1, done=done)
        counts = ", ".join(f"{sum(k.values())} {pool}" for pool, k in run["steps"].items())
        job.say(f"{name:9} end to end {1e3 * run['end_to_end_s']['p50']:.2f} ms  steps: {counts}")
    return {"seed": SEED, "runs": runs}


def nothing(report: dict[str, Any], took: Latencies) -> None:
    """Nobody watches."""


if __name__ == "__main__":
    run_workload("agentic", work)
