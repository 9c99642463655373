from .algorithms import collective_steps
from .group_sums import GroupSums, WordRange, receiving_slices, sum_over_groups, working_quads
from .handover import Handover, HandoverPlaces, group_path, handover_blocks, plan_handover
from .node import RECEIVED_QUADS, ReducePlaces, exchange, reduce
from .plan import CollectivePlan, compile_fastest, launch_sizes, plan_collective
from .programs import FabricCollective, compile_fabric_collective
from .steps import ALGORITHMS, OPERATIONS, OWN, PARTED, RESULT, SOURCE, words_needed

__all__ = [
    "ALGORITHMS",
    "OPERATIONS",
    "OWN",
    "PARTED",
    "RECEIVED_QUADS",
    "RESULT",
    "SOURCE",
    "CollectivePlan",
    "FabricCollective",
    "GroupSums",
    "Handover",
    "HandoverPlaces",
    "ReducePlaces",
    "WordRange",
    "collective_steps",
    "compile_fabric_collective",
    "compile_fastest",
    "exchange",
    "group_path",
    "handover_blocks",
    "launch_sizes",
    "plan_collective",
    "plan_handover",
    "receiving_slices",
    "reduce",
    "sum_over_groups",
    "words_needed",
    "working_quads",
]
