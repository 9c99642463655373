from .belt import run_belt
from .runner import (
    LOOKAHEAD,
    SYNC_MODES,
    Alone,
    Generation,
    Logits,
    Runner,
    RunResult,
    StuckError,
    step_lookahead,
    window_cycles,
)

__all__ = [
    "LOOKAHEAD",
    "SYNC_MODES",
    "Alone",
    "Generation",
    "Logits",
    "RunResult",
    "Runner",
    "StuckError",
    "run_belt",
    "step_lookahead",
    "window_cycles",
]
