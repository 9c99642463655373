"""Speculative decoding from Python: the shipped draft on an LPU, the shipped target on a GPU.

    python programs/workloads/speculative.py [--json FILE] [--metrics-port N]

Prints what ``lpu experiment speculative`` measures, for gamma 1 to 8.
"""

from __future__ import annotations

from typing import Any

from cluster.commands.script import ScriptJob, run_workload
from cluster.experiments.speculative import SpeculativeSettings, speculative

PROMPTS = ("def ", "class ", "import ")


def work(job: ScriptJob) -> dict[str, Any]:
    """One line per gamma and way of drafting."""
    results = {}
    for gamma in range(1, 9):
        job.say(f"gamma {gamma} ...")
        settings = SpeculativeSettings(gamma=gamma)
        result = speculative(settings, PROMPTS, open_board=lambda: job.board).report
        results[gamma] = result
        for row in result["rows"]:
            if row["gamma"]:
                job.say(
                    f"gamma {gamma}  {row['variant']:10}  {row['tokens_per_step']:.2f} tokens per "
                    f"step (formula {row['formula_tokens_per_step'] or 1:.2f})  "
                    f"{row['speedup']:.2f} x GPU-only  lossless: {row['lossless']}"
                )
    return {"gammas": results}


if __name__ == "__main__":
    run_workload("speculative", work)
