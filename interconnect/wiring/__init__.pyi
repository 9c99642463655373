from .node import NODE_SIZES, link_to, node_cables, wire
from .routes import detours, diameter, hop_distances, minimal_routes
from .spares import active_nodes, part_of
from .topology import (
    MAX_NODES,
    NODE,
    RACK_NODES,
    FabricError,
    Topology,
    cable_faults,
    chain_of,
    chain_sizes,
    named_topology,
    topology_of,
    usual_sizes,
    wired_topology,
)

__all__ = [
    "MAX_NODES",
    "NODE",
    "NODE_SIZES",
    "RACK_NODES",
    "FabricError",
    "Topology",
    "active_nodes",
    "cable_faults",
    "chain_of",
    "chain_sizes",
    "detours",
    "diameter",
    "hop_distances",
    "link_to",
    "minimal_routes",
    "named_topology",
    "node_cables",
    "part_of",
    "topology_of",
    "usual_sizes",
    "wire",
    "wired_topology",
]
