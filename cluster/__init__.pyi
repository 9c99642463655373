from .errors import InputError, RunError
from .listening import Listener
from .planning import PlanSettings, plan_models
from .processes import Placement
from .runs import (
    BeltSettings,
    BeltTexts,
    CollectiveRun,
    CollectiveSettings,
    Generated,
    GenerateSettings,
    GenerationResult,
    generate,
    generate_on_belt,
    launch_everywhere,
    run_collective,
    run_generation,
    run_stored,
)

__all__ = [
    "BeltSettings",
    "BeltTexts",
    "CollectiveRun",
    "CollectiveSettings",
    "GenerateSettings",
    "Generated",
    "GenerationResult",
    "InputError",
    "Listener",
    "Placement",
    "PlanSettings",
    "RunError",
    "generate",
    "generate_on_belt",
    "launch_everywhere",
    "plan_models",
    "run_collective",
    "run_generation",
    "run_stored",
]
