from .arrivals import PS, Lengths, Trace, bursts, check_time, poisson, read_trace
from .batching import BatchCost, Batching
from .belt import Belt, BeltPlaces, belt_of, cycles_to_ps, host_seconds, ps_to_cycles
from .disaggregated import PLATFORMS, Site, run_disaggregated
from .figures import HOST_KINDS, STAGES, Latencies, Served, Slo, latencies, percentiles
from .load import GpuServers, LpuServers, RooflineCost, run_load, serve_load, ten_thousand_requests
from .machines import LpuChoice, ffn_cycles_per_layer, lpu_belt
from .publish import publish_agents, publish_disaggregated, publish_load, publish_speedup
from .scaling import Scaling

__all__ = [
    "HOST_KINDS",
    "PLATFORMS",
    "PS",
    "STAGES",
    "BatchCost",
    "Batching",
    "Belt",
    "BeltPlaces",
    "GpuServers",
    "Latencies",
    "Lengths",
    "LpuChoice",
    "LpuServers",
    "RooflineCost",
    "Scaling",
    "Served",
    "Site",
    "Slo",
    "Trace",
    "belt_of",
    "bursts",
    "check_time",
    "cycles_to_ps",
    "ffn_cycles_per_layer",
    "host_seconds",
    "latencies",
    "lpu_belt",
    "percentiles",
    "poisson",
    "ps_to_cycles",
    "publish_agents",
    "publish_disaggregated",
    "publish_load",
    "publish_speedup",
    "read_trace",
    "run_disaggregated",
    "run_load",
    "serve_load",
    "ten_thousand_requests",
]
