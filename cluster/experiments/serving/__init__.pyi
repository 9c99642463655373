from .arrivals import PS, Lengths, Trace, bursts, check_time, poisson, read_trace
from .batching import BatchCost, Batching
from .belt import Belt, belt_of, cycles_to_ps, host_seconds, ps_to_cycles
from .experiments import DisaggregatedResult, LoadResult, disaggregated, load
from .figures import HOST_KINDS, STAGES, Latencies, Served, Slo, latencies, percentiles
from .machines import LpuChoice, ffn_cycles_per_layer, lpu_belt
from .platforms import PLATFORMS, Site, run_disaggregated
from .pools import GpuServers, LpuServers, RooflineCost, run_load, serve_load
from .publish import publish_agents, publish_disaggregated, publish_load, publish_speedup
from .scaling import Scaling
from .settings import PLATFORM_NAMES, DisaggregatedSettings, LoadSettings
from .slots import BeltPlaces

__all__ = [
    "HOST_KINDS",
    "PLATFORMS",
    "PLATFORM_NAMES",
    "PS",
    "STAGES",
    "BatchCost",
    "Batching",
    "Belt",
    "BeltPlaces",
    "DisaggregatedResult",
    "DisaggregatedSettings",
    "GpuServers",
    "Latencies",
    "Lengths",
    "LoadResult",
    "LoadSettings",
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
    "disaggregated",
    "ffn_cycles_per_layer",
    "host_seconds",
    "latencies",
    "load",
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
]
