"""An open-loop load from Python: the shipped model on a GPU and on an LPU at rising rates.

    python programs/workloads/load.py [--json FILE] [--metrics-port N]

Prints what ``lpu experiment load`` measures, one line per rate and pool.
"""

from __future__ import annotations

from typing import Any

from cluster.commands.script import ScriptJob, run_workload
from cluster.experiments.serving import LoadSettings, load


def work(job: ScriptJob) -> dict[str, Any]:
    """Latencies and goodput at 25 to 200 requests/s, which both pools keep up with."""
    job.say("compiling the shipped model ...")
    reports = {}
    for rate in (25, 50, 100, 200):
        settings = LoadSettings(rate=rate, requests=2000, slo_ttft=0.02, slo_tpot=0.001)
        report = reports[rate] = load(settings, open_board=lambda: job.board).report
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
