from .artifact import Artifact, load, save
from .decoder import compile_model
from .models import open_model
from .running import LpuSession, generate

__all__ = [
    "Artifact",
    "LpuSession",
    "compile_model",
    "generate",
    "load",
    "open_model",
    "save",
]
