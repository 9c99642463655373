from .experiment import SpeculativeResult, speculative
from .publish import DraftWatch
from .rig import Rig
from .settings import (
    GPU_DRAFT,
    GPU_ONLY,
    LOOKUP,
    LPU_KV,
    LPU_ONLY,
    LPU_TOKENS,
    LPU_VERIFIED,
    SpeculativeSettings,
)
from .steps import Job
from .study import run

__all__ = [
    "GPU_DRAFT",
    "GPU_ONLY",
    "LOOKUP",
    "LPU_KV",
    "LPU_ONLY",
    "LPU_TOKENS",
    "LPU_VERIFIED",
    "DraftWatch",
    "Job",
    "Rig",
    "SpeculativeResult",
    "SpeculativeSettings",
    "run",
    "speculative",
]
