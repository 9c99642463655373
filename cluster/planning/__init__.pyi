from .rows import plan_models, write_plans
from .settings import PlanSettings
from .steps import Axis, PlanStep

__all__ = ["Axis", "PlanSettings", "PlanStep", "plan_models", "write_plans"]
