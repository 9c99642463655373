"""The rows of ``lpu bench`` about experiments: wall time of what runs in virtual time."""

from __future__ import annotations

from time import perf_counter

from cluster.bench.row import Row
from cluster.experiments.serving import LoadSettings, load
from cluster.experiments.speculative import Job, Rig, SpeculativeSettings

AIM_SPECULATIVE_TOKENS_PER_SECOND = 10.0
AIM_LOAD_SECONDS = 10.0
GAMMA, NEW_TOKENS = 4, 128


def speculative_tokens_per_wall_second() -> list[Row]:
    """Greedy tokens per second of wall time with the shipped models, one GPU node, in process.

    Drafting on emulated LPUs and verifying are timed, loading and compiling are not.
    """
    prompt = (70, 221, 304)
    rig = Rig(SpeculativeSettings(), len(prompt) + NEW_TOKENS + GAMMA, lambda _: None)
    rig.traces([prompt], Job(GAMMA, 2 * GAMMA), "lpu")
    began = perf_counter()
    traces = rig.traces([prompt], Job(GAMMA, NEW_TOKENS), "lpu")
    rate = len(traces[0].tokens) / (perf_counter() - began)
    return [
        Row(
            "speculative_tokens_per_wall_second",
            rate,
            "tokens/s",
            AIM_SPECULATIVE_TOKENS_PER_SECOND,
            f"the aim, shipped models, gamma {GAMMA}, one process",
        )
    ]


def load_10000_requests() -> list[Row]:
    """Wall seconds to draw and serve 10,000 requests of conversation length on both kinds of pool.

    llama-2-70b: four groups of four H100, and 40 pipelines of given speed with 16 places each.
    """
    began = perf_counter()
    load(
        LoadSettings(
            model="llama-2-70b",
            rate=16.0,
            requests=10_000,
            prompt_tokens=1020,
            output_tokens=129,
            spread=0.8,
            gpu_tp=4,
            gpu_groups=4,
            pipelines=40,
            lpu_cycles_per_token=2_500_000,
            lpu_interval_cycles=150_000,
        )
    )
    seconds = perf_counter() - began
    return [Row("load_10000_requests", seconds, "s", AIM_LOAD_SECONDS, "the aim")]
