"""An open-loop load from Python: the shipped model on a GPU and on an LPU at rising rates.

    python -m programs.workloads.load

Prints what ``lpu experiment load`` measures, one line per rate and pool.
"""

from __future__ import annotations

from cluster.experiments.arrivals import Lengths, poisson
from cluster.experiments.load import GpuServers, LpuServers, RooflineCost, run_load
from cluster.experiments.machines import LpuChoice, lpu_belt
from cluster.experiments.serving import Slo
from cluster.gpu.roofline import GpuGroup
from cluster.gpu.spec import load_gpu_spec
from programs.architectures import architecture


def main() -> None:
    """Latencies and goodput at 50 to 400 requests/s."""
    arch = architecture("target")
    pools: dict[str, GpuServers | LpuServers] = {
        "gpu": GpuServers(RooflineCost(GpuGroup(load_gpu_spec("h100")), arch)),
        "lpu": LpuServers(lpu_belt("target", LpuChoice(chips=1)), arch.name, chips=1, dtype="int8"),
    }
    for rate in (50, 100, 200, 400):
        report = run_load(poisson(rate, 2000, Lengths(), seed=0), pools, Slo(0.02, 0.001))
        for name, pool in report["pools"].items():
            print(
                f"{rate} requests/s  {name}  first token {1e3 * pool['ttft_s']['p50']:.2f} ms "
                f"(p99 {1e3 * pool['ttft_s']['p99']:.2f})  per token "
                f"{1e6 * pool['tpot_s']['p50']:.1f} us  good {pool['good_ratio']:.1%}  "
                f"busy {pool['utilisation']:.0%}"
            )


if __name__ == "__main__":
    main()
