from .modelled import FaultSetting, LostNode, ModelledFaults, UnrecoverableError, fault_summary
from .plan import FaultPlan, FaultPlanError, load_fault_plan
from .spares import linked_onto_spares, loses_nodes

__all__ = [
    "FaultPlan",
    "FaultPlanError",
    "FaultSetting",
    "LostNode",
    "ModelledFaults",
    "UnrecoverableError",
    "fault_summary",
    "linked_onto_spares",
    "load_fault_plan",
    "loses_nodes",
]
