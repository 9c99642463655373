from .batches import batch_plan
from .bottleneck import PHASES, Bottleneck, TriedChange, bottleneck_of, try_changes
from .buckets import BucketCost, bucket_costs, plan_buckets
from .explain import explain_block
from .floor import FLOOR_TERMS, Floor, floor_of
from .full_belt import FullBelt, plan_room
from .plan import Plan, check_plan, compile_plan
from .prompts import PromptCost, chunk_costs, prompt_costs
from .report import ALONE, BATCHES, describe_machine, report_plan
from .timing import run_timing, timing_programs

__all__ = [
    "ALONE",
    "BATCHES",
    "FLOOR_TERMS",
    "PHASES",
    "Bottleneck",
    "BucketCost",
    "Floor",
    "FullBelt",
    "Plan",
    "PromptCost",
    "TriedChange",
    "batch_plan",
    "bottleneck_of",
    "bucket_costs",
    "check_plan",
    "chunk_costs",
    "compile_plan",
    "describe_machine",
    "explain_block",
    "floor_of",
    "plan_buckets",
    "plan_room",
    "prompt_costs",
    "report_plan",
    "run_timing",
    "timing_programs",
    "try_changes",
]
