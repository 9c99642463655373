from .drift import ClockReport, DriftError, draw_drift, run_clocks, simulate_run
from .links import HAC_PERIOD_CYCLES, ClockError
from .tree import AlignmentError, spanning_tree, start_cost_epochs

__all__ = [
    "HAC_PERIOD_CYCLES",
    "AlignmentError",
    "ClockError",
    "ClockReport",
    "DriftError",
    "draw_drift",
    "run_clocks",
    "simulate_run",
    "spanning_tree",
    "start_cost_epochs",
]
