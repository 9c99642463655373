from .collectives import (
    CollectivePlan,
    FabricCollective,
    compile_fabric_collective,
    compile_fastest,
    plan_collective,
)
from .vectors import check_fabric, find_flights
from .wiring import FabricError, Topology, named_topology, topology_of

__all__ = [
    "CollectivePlan",
    "FabricCollective",
    "FabricError",
    "Topology",
    "check_fabric",
    "compile_fabric_collective",
    "compile_fastest",
    "find_flights",
    "named_topology",
    "plan_collective",
    "topology_of",
]
