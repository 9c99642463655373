from .handover import Handover, HandoverPlaces, group_path, handover_blocks, plan_handover
from .node import RECEIVED_QUADS, ReducePlaces, exchange, reduce
from .one_shot import MOST_WORDS, compile_one_shot
from .plan import CollectivePlan, plan_collective
from .programs import FabricCollective, compile_fabric_collective
from .steps import OWN, RESULT, SOURCE, Groups, steps_of, words_needed
from .traffic import ALGORITHMS, OPERATIONS

__all__ = [
    "ALGORITHMS",
    "MOST_WORDS",
    "OPERATIONS",
    "OWN",
    "RECEIVED_QUADS",
    "RESULT",
    "SOURCE",
    "CollectivePlan",
    "FabricCollective",
    "Groups",
    "Handover",
    "HandoverPlaces",
    "ReducePlaces",
    "compile_fabric_collective",
    "compile_one_shot",
    "exchange",
    "group_path",
    "handover_blocks",
    "plan_collective",
    "plan_handover",
    "reduce",
    "steps_of",
    "words_needed",
]
