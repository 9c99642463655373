from .floor import FLOOR_TERMS, Floor, floor_of
from .plan import Plan, check_plan, compile_plan
from .report import BELT, PHASES, describe_machine, report_plan
from .timing import run_timing, timing_programs

__all__ = [
    "BELT",
    "FLOOR_TERMS",
    "PHASES",
    "Floor",
    "Plan",
    "check_plan",
    "compile_plan",
    "describe_machine",
    "floor_of",
    "report_plan",
    "run_timing",
    "timing_programs",
]
