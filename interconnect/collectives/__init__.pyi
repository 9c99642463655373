from .algorithms import collective_steps
from .group_sums import GroupSums, WordRange, receiving_slices, sum_over_groups, working_quads
from .handover import Handover, HandoverPlaces, group_path, handover_blocks, plan_handover
from .node import (
    RECEIVED_QUADS,
    ReducePlaces,
    exchange,
    exchange_as_made,
    link_pace,
    reduce,
    runs_of,
    spread_words,
)
from .onward import Departure, deal_words, send_onward, take_onward
from .plan import CollectivePlan, compile_fastest, launch_sizes, plan_collective
from .programs import FabricCollective, compile_fabric_collective
from .scattered import (
    SharePlaces,
    all_reduce_cycles,
    all_reduce_in_shares,
    scatter_offsets,
    share_of,
    word_order,
)
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
    "Departure",
    "FabricCollective",
    "GroupSums",
    "Handover",
    "HandoverPlaces",
    "ReducePlaces",
    "SharePlaces",
    "WordRange",
    "all_reduce_cycles",
    "all_reduce_in_shares",
    "collective_steps",
    "compile_fabric_collective",
    "compile_fastest",
    "deal_words",
    "exchange",
    "exchange_as_made",
    "group_path",
    "handover_blocks",
    "launch_sizes",
    "link_pace",
    "plan_collective",
    "plan_handover",
    "receiving_slices",
    "reduce",
    "runs_of",
    "scatter_offsets",
    "send_onward",
    "share_of",
    "spread_words",
    "sum_over_groups",
    "take_onward",
    "word_order",
    "words_needed",
    "working_quads",
]
