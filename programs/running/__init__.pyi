from .belt import BeltResult, run_belt
from .runner import Generation, Runner, RunResult, generate
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
    "Generation",
    "Logits",
    "LpuSession",
    "RunResult",
    "Runner",
    "StuckError",
    "generate",
    "run_belt",
    "step_lookahead",
    "step_windows",
    "window_cycles",
]
