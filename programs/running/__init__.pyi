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
from .session import LpuSession

__all__ = [
    "LOOKAHEAD",
    "SYNC_MODES",
    "Alone",
    "Generation",
    "Logits",
    "LpuSession",
    "RunResult",
    "Runner",
    "StuckError",
    "run_belt",
    "step_lookahead",
    "window_cycles",
]
