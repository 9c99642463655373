from .plan import Plan, check_plan, compile_plan
from .report import BELT, PHASES, describe_machine, report_plan
from .timing import run_timing, timing_programs

__all__ = [
    "BELT",
    "PHASES",
    "Plan",
    "check_plan",
    "compile_plan",
    "describe_machine",
    "report_plan",
    "run_timing",
    "timing_programs",
]
