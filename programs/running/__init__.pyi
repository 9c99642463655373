from .belt import BeltResult, run_belt
from .feeding import FedPart, Feeder, Feeding, prompt_feedings, text_feedings
from .runner import Generation, Runner, RunResult, generate
from .saturation import (
    Saturations,
    joined_saturations,
    saturation_json,
    saturation_text,
    saturation_totals,
    saturations_of,
)
from .session import LpuSession
from .stepping import (
    BARRIER,
    LOOKAHEAD,
    SYNC_MODES,
    Alone,
    Logits,
    StuckError,
    step_lookahead,
    step_windows,
    window_cycles,
)

__all__ = [
    "BARRIER",
    "LOOKAHEAD",
    "SYNC_MODES",
    "Alone",
    "BeltResult",
    "FedPart",
    "Feeder",
    "Feeding",
    "Generation",
    "Logits",
    "LpuSession",
    "RunResult",
    "Runner",
    "Saturations",
    "StuckError",
    "generate",
    "joined_saturations",
    "prompt_feedings",
    "run_belt",
    "saturation_json",
    "saturation_text",
    "saturation_totals",
    "saturations_of",
    "step_lookahead",
    "step_windows",
    "text_feedings",
    "window_cycles",
]
