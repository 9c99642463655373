"""Prefill and decode on different machines, from Python: Llama-2-70B on every platform.

    python programs/workloads/disaggregated.py [--json FILE] [--metrics-port N]

Prints what ``lpu experiment disaggregated`` measures of one request.  The LPU's cycles per token
are a constant given here, an assumption.
"""

from __future__ import annotations

from typing import Any

from cluster.commands.script import ScriptJob, run_workload
from cluster.experiments.serving import PLATFORM_NAMES, DisaggregatedSettings, disaggregated

CYCLES_PER_TOKEN = 2_500_000
#: Requests per second, and the seconds their users wait for a first token: LPUs alone, which take
#: a prompt token by token, keep it, too.
RATE, FIRST_TOKEN = 0.05, 20.0


def work(job: ScriptJob) -> dict[str, Any]:
    """One line per platform and link."""
    reports = {}
    for link in ("100gbe", "pcie5-x16"):
        settings = DisaggregatedSettings(
            model="llama-2-70b",
            link=link,
            gpu_tp=4,
            rate=RATE,
            requests=100,
            prompt_tokens=1024,
            output_tokens=128,
            slo_ttft=FIRST_TOKEN,
            lpu_cycles_per_token=CYCLES_PER_TOKEN,
        )
        result = disaggregated(settings, open_board=lambda: job.board)
        report = reports[link] = result.report
        for name in PLATFORM_NAMES:
            job.say(
                f"{link:10} {name:12} first token {1e3 * report['ttft_s'][name]:8.1f} ms  "
                f"second {1e3 * report['second_token_s'][name]:6.2f} ms later  "
                f"per token {1e3 * report['tpot_s'][name]:6.2f} ms  "
                f"all {report['end_to_end_s'][name]:.2f} s"
            )
    return {"links": reports}


if __name__ == "__main__":
    run_workload("disaggregated", work)
