"""Hugging Face checkpoints of Llama-family models: configuration, tensors, tokenizer.

A checkpoint directory holds ``config.json``, one or more ``*.safetensors`` files (with
``model.safetensors.index.json`` when there are several) and ``tokenizer.json``.  Everything about
it is checked when it is opened - architecture, presence, shape and number type of every tensor -
and nothing is read until it is asked for: tensors are views of mapped files, decoded to float32
row by row on request, so a caller who reads slices never holds a whole matrix.

This module knows what a Llama checkpoint looks like.  It knows nothing about chips, and it never
runs the model.  Every problem is a `CheckpointError` of one line.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from programs.safetensors_files import (
    ITEM_BYTES,
    CheckpointError,
    FileSource,
    TensorSource,
    find_tensors,
    read_json,
)
from programs.tokenizer_files import read_tokenizer

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ModelConfig",
    "RopeScaling",
    "load_checkpoint",
    "random_checkpoint",
    "read_config",
    "tensor_shapes",
]

F32 = NDArray[np.float32]
Index = NDArray[np.int64]

MAX_SIZE = 1 << 31
MAX_LAYERS = 1 << 14
"""Bounds that keep a damaged configuration from asking for unbounded work."""
SIZES = ("hidden_size", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab", "max_position")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context."""

    kind: str
    """``linear`` (all frequencies divided by `factor`) or ``llama3`` (only the low ones)."""
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    """Trained context in tokens; ``llama3`` only, like the two factors above."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise CheckpointError(f"rope factor is {self.factor}; it must be at least 1")
        if not 0 < self.low_freq_factor < self.high_freq_factor < math.inf:
            raise CheckpointError(
                f"rope factors are {self.low_freq_factor} (low) and {self.high_freq_factor} "
                "(high); they must be positive and the high one the greater"
            )
        if not 1 <= self.original_max_position < MAX_SIZE:
            raise CheckpointError(
                f"original_max_position is {self.original_max_position}; "
                "it must be a number of tokens"
            )


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a Llama-family decoder; sizes count elements, heads or layers."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tied: bool = False
    """The output head is the token embedding."""
    max_position: int = 2048

    def __post_init__(self) -> None:
        for name in SIZES:
            limit = MAX_LAYERS if name == "layers" else MAX_SIZE
            if not 1 <= getattr(self, name) < limit:
                raise CheckpointError(
                    f"{name} is {getattr(self, name)}; it must be from 1 to {limit - 1}"
                )
        if self.heads % self.kv_heads:
            raise CheckpointError(
                f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly; "
                "the number of query heads must be a multiple"
            )
        if self.head_dim % 2:
            raise CheckpointError(f"head_dim is {self.head_dim}; rotary embedding needs it even")
        for name in ("eps", "rope_theta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise CheckpointError(f"{name} is {value}; it must be positive and finite")

    @property
    def parameters(self) -> int:
        """Number of stored parameters, a tied embedding counted once."""
        return sum(math.prod(shape) for shape in tensor_shapes(self).values())


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor a checkpoint of this configuration must have.

    Matrices are [output, input], as Hugging Face stores them.
    """
    h, f = config.hidden_size, config.ffn
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab, h)}
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (h,)
        shapes[f"{prefix}.self_attn.q_proj.weight"] = (q, h)
        shapes[f"{prefix}.self_attn.k_proj.weight"] = (kv, h)
        shapes[f"{prefix}.self_attn.v_proj.weight"] = (kv, h)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (h, q)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (h,)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = (f, h)
        shapes[f"{prefix}.mlp.up_proj.weight"] = (f, h)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (h, f)
    shapes["model.norm.weight"] = (h,)
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab, h)
    return shapes


@dataclass(frozen=True)
class Checkpoint:
    """A model's configuration and its tensors, read on request."""

    config: ModelConfig
    source: TensorSource
    path: Path | None = None
    """The directory, or None for a model that exists only in memory."""

    def tensor(self, name: str) -> F32:
        """Return the whole tensor `name` as float32 in its stored shape."""
        return self.source.read(name, None, None)

    def block(self, name: str, rows: Index, columns: Index | None = None) -> F32:
        """Return float32 [rows, columns] of matrix `name`; only these elements are read."""
        return self.source.read(name, rows, columns)

    def embedding_row(self, token: int) -> F32:
        """Return the embedding of `token`, float32 [hidden_size]."""
        if not 0 <= token < self.config.vocab:
            raise CheckpointError(
                f"token {token} is outside the vocabulary of {self.config.vocab}; "
                "use a token of this model's tokenizer"
            )
        rows = np.array([token], dtype=np.int64)
        row: F32 = self.source.read("model.embed_tokens.weight", rows, None)[0]
        return row

    @property
    def head_name(self) -> str:
        """Name of the output head's tensor [vocab, hidden_size]."""
        return "model.embed_tokens.weight" if self.config.tied else "lm_head.weight"

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the directory, loaded at each access."""
        if self.path is None:
            raise CheckpointError("a model in memory has no tokenizer; give token numbers instead")
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; copy it from where the model was published")
        return read_tokenizer(file)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Open the checkpoint directory `path` and check that it is complete and supported."""
    directory = Path(path)
    config = read_config(directory)
    tensors = find_tensors(directory)
    for name in tensors:
        if name.endswith("_proj.bias"):
            raise CheckpointError(
                f"{directory}: tensor {name!r} is a bias, which is not supported; "
                "use a Llama-family model without biases"
            )
    for name, shape in tensor_shapes(config).items():
        stored = tensors.get(name)
        if stored is None:
            raise CheckpointError(
                f"{directory}: tensor {name!r} is missing; "
                "fetch every safetensors file of the model again"
            )
        if stored.shape != shape:
            raise CheckpointError(
                f"{stored.file}: tensor {name!r} has shape {list(stored.shape)} but config.json "
                f"says {list(shape)}; use the config.json and weights of one model"
            )
        if stored.dtype not in ITEM_BYTES:
            raise CheckpointError(
                f"{stored.file}: tensor {name!r} has number type {stored.dtype}; "
                f"store it as one of {', '.join(ITEM_BYTES)}"
            )
    return Checkpoint(config, FileSource(tensors), directory)


def read_config(path: str | Path) -> ModelConfig:
    """Read the configuration of a checkpoint directory, or of a ``config.json`` file itself."""
    file = Path(path)
    if not file.exists():
        raise CheckpointError(f"{file} does not exist; name a checkpoint directory")
    if file.is_dir():
        file = file / "config.json"
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; name a Hugging Face checkpoint directory")
    fields = read_json(file)
    try:
        return _parse_config(fields)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _parse_config(fields: Mapping[str, Any]) -> ModelConfig:
    """Translate the fields of a Hugging Face ``config.json``."""

    def refuse(what: str, mend: str) -> CheckpointError:
        return CheckpointError(f"{what}; {mend}")

    def number(table: Mapping[str, Any], name: str, default: float | None = None) -> float:
        value = table.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise refuse(f"{name} is {shown(value)}", "it must be a number")
        try:
            return float(value)
        except OverflowError:
            raise refuse(f"{name} is too large", "correct it") from None

    def whole(table: Mapping[str, Any], name: str, default: int | None = None) -> int:
        value = table.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int):
            raise refuse(f"{name} is {shown(value)}", "it must be a whole number")
        return value

    names = fields.get("architectures")
    family = fields.get("model_type")
    if names != ["LlamaForCausalLM"] and not (names is None and family == "llama"):
        raise refuse(
            f"architecture {shown(names)} is not supported", "use a LlamaForCausalLM model"
        )
    if fields.get("hidden_act", "silu") not in ("silu", "swish"):
        raise refuse(f"activation {shown(fields['hidden_act'])} is not supported", "silu is")
    for flag in ("attention_bias", "mlp_bias"):
        if fields.get(flag):
            raise refuse(f"{flag} is set, which is not supported", "use a model without biases")
    if fields.get("quantization_config"):
        raise refuse("the weights are already quantised", "use the fp16, bf16 or fp32 model")
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise refuse(f"rope_scaling is {shown(rope)}", "it must be null or an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    scaling: RopeScaling | None = None
    if kind == "linear":
        scaling = RopeScaling(kind, number(rope, "factor"))
    elif kind == "llama3":
        scaling = RopeScaling(
            kind,
            number(rope, "factor"),
            number(rope, "low_freq_factor"),
            number(rope, "high_freq_factor"),
            whole(rope, "original_max_position_embeddings"),
        )
    elif kind != "default":
        raise refuse(f"rope scaling {shown(kind)} is not supported", "linear and llama3 are")
    heads, hidden = whole(fields, "num_attention_heads"), whole(fields, "hidden_size")
    sizes = {
        "hidden_size": hidden,
        "layers": whole(fields, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": whole(fields, "num_key_value_heads", heads),
        "head_dim": whole(fields, "head_dim", hidden // max(heads, 1)),
        "ffn": whole(fields, "intermediate_size"),
        "vocab": whole(fields, "vocab_size"),
        "max_position": whole(fields, "max_position_embeddings", 2048),
    }
    eps = number(fields, "rms_norm_eps", 1e-6)
    theta = number(fields if "rope_theta" in fields else rope, "rope_theta", 10000.0)
    tied = bool(fields.get("tie_word_embeddings", False))
    return ModelConfig(**sizes, eps=eps, rope_theta=theta, rope_scaling=scaling, tied=tied)


class _RandomSource:
    """Tensors drawn from a counter-based generator keyed by seed and name; the last is kept."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self._shapes = tensor_shapes(config)
        self._tied = config.tied
        self._seed = seed
        self._kept: tuple[str, F32] | None = None

    def read(self, name: str, rows: Index | None, columns: Index | None) -> F32:
        """Generate and slice; see `TensorSource.read`."""
        if name not in self._shapes:
            raise CheckpointError(f"a model of this configuration has no tensor {name!r}")
        if self._kept is None or self._kept[0] != name:
            self._kept = (name, self._generate(name))
        values = self._kept[1]
        values = values if rows is None else values[rows]
        return values.copy() if columns is None else values[:, columns]

    def _generate(self, name: str) -> F32:
        shape = self._shapes[name]
        key = np.array([self._seed, zlib.crc32(name.encode())], dtype=np.uint64)
        values = np.random.Generator(np.random.Philox(key=key)).random(shape, dtype=np.float32)
        values -= np.float32(0.5)
        if len(shape) == 1:  # a norm's gain, 1 +- 0.25
            return values * np.float32(0.5) + np.float32(1.0)
        # uniform with standard deviation 1 / sqrt(inputs), 1 for an embedding that is no head
        deviation = 1.0 if "embed" in name and not self._tied else shape[1] ** -0.5
        values *= np.float32(math.sqrt(12.0) * deviation)
        return values


def random_checkpoint(config: ModelConfig, seed: int) -> Checkpoint:
    """Return a model of seeded random weights (uniform, sensible scales), without any file."""
    return Checkpoint(config, _RandomSource(config, seed))
