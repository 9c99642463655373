from .compiled import CompiledModel, compile_named, load_compiled
from .plan_table import MissingPandasError, PlanTable, plan_named

__all__ = [
    "CompiledModel",
    "MissingPandasError",
    "PlanTable",
    "compile_named",
    "load_compiled",
    "plan_named",
]
