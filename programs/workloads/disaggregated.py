"""Prefill and decode on different machines, from Python: Llama-2-70B on every platform.

    python programs/workloads/disaggregated.py [--json FILE] [--metrics-port N]

Prints what ``lpu experiment disaggregated`` measures of one request.  The LPU's cycles per token
are a constant given here, an assumption.
"""

from __future__ import annotations

from typing import Any

from cluster.commands.script import Workload, run_workload
from cluster.experiments.serving import (
    PLATFORMS,
    Lengths,
    LpuChoice,
    Served,
    Site,
    Slo,
    ffn_cycles_per_layer,
    latencies,
    lpu_belt,
    poisson,
    publish_disaggregated,
    run_disaggregated,
)
from cluster.gpu import GpuGroup, load_gpu_spec, load_link
from programs.models import architecture

CYCLES_PER_TOKEN = 2_500_000
PROMPT, ANSWER = 1024, 128
#: Requests per second, and what their users wait for: LPUs alone, which take a prompt token by
#: token, keep it, too.
RATE, SLO = 0.05, Slo(20.0, 0.05)


def work(job: Workload) -> dict[str, Any]:
    """One line per platform and link."""
    arch = architecture("llama-2-70b")
    belt = lpu_belt(arch.name, LpuChoice(cycles_per_token=CYCLES_PER_TOKEN))
    trace = poisson(RATE, 100, Lengths(PROMPT, ANSWER), seed=0)
    reports = {}
    for link in ("100gbe", "pcie5-x16"):
        site = Site(
            arch,
            GpuGroup(load_gpu_spec("h100"), 4),
            GpuGroup(load_gpu_spec("rubin-cpx"), 4),
            belt,
            load_link(link),
            ffn_cycles_per_layer(belt, arch),
            "estimated",
        )
        served: dict[str, Served] = {}
        report = run_disaggregated(trace, (PROMPT, ANSWER), site, SLO, list(PLATFORMS), served)
        reports[link] = report
        if job.board is not None:
            took = {name: latencies(trace, times) for name, times in served.items()}
            publish_disaggregated(job.board, report, took)
        for name in PLATFORMS:
            job.say(
                f"{link:10} {name:12} first token {1e3 * report['ttft_s'][name]:8.1f} ms  "
                f"second {1e3 * report['second_token_s'][name]:6.2f} ms later  "
                f"per token {1e3 * report['tpot_s'][name]:6.2f} ms  "
                f"all {report['end_to_end_s'][name]:.2f} s"
            )
    return {"links": reports}


if __name__ == "__main__":
    run_workload("disaggregated", work)
