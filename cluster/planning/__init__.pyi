from .frontier import check_frontier, frontier_points, write_frontier
from .prices import Prices, cost_per_million, cost_per_second, read_prices
from .rows import plan_models, write_plans
from .settings import PlanSettings
from .steps import Axis, PlanStep

__all__ = [
    "Axis",
    "PlanSettings",
    "PlanStep",
    "Prices",
    "check_frontier",
    "cost_per_million",
    "cost_per_second",
    "frontier_points",
    "plan_models",
    "read_prices",
    "write_frontier",
    "write_plans",
]
