"""The configuration of a model by name or file, if the compiler's kernels can run it.

The kernels are those of Llama-family decoders (rotary positions, RMS norms, grouped queries,
SwiGLU), of Qwen3 (norms of query and key heads), of Gemma (GeGLU) and of Mixtral (a router that
chooses two experts).  What else an architecture has is refused in one line that names it.
"""

from __future__ import annotations

from pathlib import Path

from programs.models.architectures import ARCHITECTURES, SHIPPED, missing_kernels, with_kernels
from programs.models.checkpoint import CheckpointError, ModelConfig, read_config
from programs.models.config import GELU_TANH, SILU

#: Positions of a model by name: its own limit is not part of its shape.
UNLIMITED = 1 << 30


def config_of(source: str) -> tuple[str, ModelConfig]:
    """(name, configuration) of an architecture by name, a checkpoint directory or config.json.

    Raises CheckpointError with one line for what does not exist or cannot be run.
    """
    if source in ARCHITECTURES and source not in SHIPPED:
        shape = ARCHITECTURES[source]
        lacking = missing_kernels(shape)
        if lacking:
            raise CheckpointError(
                f"model {source!r} needs {' and '.join(lacking)}, for which there are no kernels; "
                f"use one of {', '.join(with_kernels())}"
            )
        return source, ModelConfig(
            shape.hidden_size, shape.layers, shape.heads, shape.kv_heads, shape.head_dim,
            shape.ffn, shape.vocab, tied=shape.tied, max_position=UNLIMITED,
            head_norms=shape.head_norms, activation=GELU_TANH if shape.gemma else SILU,
            unit_gain=shape.gemma, scaled_embedding=shape.gemma,
            experts=shape.experts, experts_per_token=shape.experts_per_token,
        )  # fmt: skip
    path = Path(__file__).resolve().parent / "checkpoints" / source
    if source not in SHIPPED:
        path = Path(source)
    if not path.exists():
        raise CheckpointError(
            f"model {source!r}: no such file or directory, and none of {', '.join(with_kernels())}"
        )
    directory = path if path.is_dir() else path.parent
    return directory.resolve().name, read_config(path)
