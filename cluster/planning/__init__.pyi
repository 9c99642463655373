from .frontier import check_frontier, check_power, frontier_points, write_frontier
from .prices import Prices, cost_per_million, cost_per_second, read_prices, unknown_chips
from .rows import plan_models, write_plans
from .settings import PlanSettings
from .steps import Axis, PlanStep, specs_of

__all__ = [
    "Axis",
    "PlanSettings",
    "PlanStep",
    "Prices",
    "check_frontier",
    "check_power",
    "cost_per_million",
    "cost_per_second",
    "frontier_points",
    "plan_models",
    "read_prices",
    "specs_of",
    "unknown_chips",
    "write_frontier",
    "write_plans",
]
