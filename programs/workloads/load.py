"""An open-loop load from Python: the shipped model on a GPU and on an LPU at rising rates.

    python programs/workloads/load.py [--json FILE] [--metrics-port N]

Prints what ``lpu experiment load`` measures, one line per rate and pool.
"""

from __future__ import annotations

from typing import Any

from cluster.commands.script import Workload, run_workload
from cluster.experiments.serving import (
    GpuServers,
    Lengths,
    LpuChoice,
    LpuServers,
    RooflineCost,
    Slo,
    latencies,
    lpu_belt,
    poisson,
    publish_load,
    run_load,
    serve_load,
)
from cluster.gpu import GpuGroup, load_gpu_spec
from programs.models import architecture


def work(job: Workload) -> dict[str, Any]:
    """Latencies and goodput at 25 to 200 requests/s, which both pools keep up with."""
    job.say("compiling the shipped model ...")
    arch = architecture("target")
    pools: dict[str, GpuServers | LpuServers] = {
        "gpu": GpuServers(RooflineCost(GpuGroup(load_gpu_spec("h100")), arch)),
        "lpu": LpuServers(lpu_belt("target", LpuChoice(chips=1)), arch.name, chips=1, dtype="int8"),
    }
    reports = {}
    for rate in (25, 50, 100, 200):
        trace = poisson(rate, 2000, Lengths(), seed=0)
        served = serve_load(trace, pools)
        report = reports[rate] = run_load(trace, pools, Slo(0.02, 0.001), served)
        if job.board is not None:
            took = {name: latencies(trace, times) for name, times in served.items()}
            publish_load(job.board, report, took)
        for name, pool in report["pools"].items():
            job.say(
                f"{rate} requests/s  {name}  first token {1e3 * pool['ttft_s']['p50']:.2f} ms "
                f"(p99 {1e3 * pool['ttft_s']['p99']:.2f})  per token "
                f"{1e6 * pool['tpot_s']['p50']:.1f} us  good {pool['good_ratio']:.1%}  "
                f"busy {pool['utilisation']:.0%}"
            )
    return {"rates": reports}


if __name__ == "__main__":
    run_workload("load", work)
