from .architectures import ARCHITECTURES, SHIPPED, Architecture, missing_kernels, shipped_model
from .chat import Message, chat_prompt, render_chat
from .checkpoint import Checkpoint, continuation, load_checkpoint, random_checkpoint
from .config import (
    CLAMPED_SILU,
    GELU_TANH,
    PLAIN_LAYER,
    LayerKind,
    ModelConfig,
    Rope,
    RopeScaling,
    bias_name,
    ffn_names,
    norm_names,
    router_name,
    shared_gate_name,
)
from .families import read_config
from .lookup import (
    ModelSource,
    Need,
    architecture,
    config_of,
    find_model,
    open_model,
    packaged_model,
)
from .portable import PartsOfFile, portable_files
from .rope import inverse_frequencies, sin_cos
from .tensors import CheckpointError

__all__ = [
    "ARCHITECTURES",
    "CLAMPED_SILU",
    "GELU_TANH",
    "PLAIN_LAYER",
    "SHIPPED",
    "Architecture",
    "Checkpoint",
    "CheckpointError",
    "LayerKind",
    "Message",
    "ModelConfig",
    "ModelSource",
    "Need",
    "PartsOfFile",
    "Rope",
    "RopeScaling",
    "architecture",
    "bias_name",
    "chat_prompt",
    "config_of",
    "continuation",
    "ffn_names",
    "find_model",
    "inverse_frequencies",
    "load_checkpoint",
    "missing_kernels",
    "norm_names",
    "open_model",
    "packaged_model",
    "portable_files",
    "random_checkpoint",
    "read_config",
    "render_chat",
    "router_name",
    "shared_gate_name",
    "shipped_model",
    "sin_cos",
]
