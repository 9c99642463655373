from .charges import GPU_DRAFT, GPU_ONLY, LOOKUP, LPU_KV, LPU_ONLY, LPU_TOKENS
from .publish import DraftWatch
from .settings import Settings
from .study import run, tokens_per_wall_second

__all__ = [
    "GPU_DRAFT",
    "GPU_ONLY",
    "LOOKUP",
    "LPU_KV",
    "LPU_ONLY",
    "LPU_TOKENS",
    "DraftWatch",
    "Settings",
    "run",
    "tokens_per_wall_second",
]
