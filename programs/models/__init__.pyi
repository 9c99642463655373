from .architectures import ARCHITECTURES, Architecture, architecture, find_model
from .checkpoint import (
    Checkpoint,
    CheckpointError,
    ModelConfig,
    load_checkpoint,
    random_checkpoint,
    read_config,
)
from .config import CHOSEN, GELU_TANH, ffn_names
from .named_models import config_of
from .rope import inverse_frequencies, sin_cos

__all__ = [
    "ARCHITECTURES",
    "CHOSEN",
    "GELU_TANH",
    "Architecture",
    "Checkpoint",
    "CheckpointError",
    "ModelConfig",
    "architecture",
    "config_of",
    "ffn_names",
    "find_model",
    "inverse_frequencies",
    "load_checkpoint",
    "random_checkpoint",
    "read_config",
    "sin_cos",
]
