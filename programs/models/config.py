"""The configuration of a decoder: what Hugging Face's ``config.json`` says, checked and translated.

Families with kernels: Llama and Mistral (one computation), Qwen3 (norms of query and key heads),
Gemma (GeGLU, gains of 1 + w, scaled embeddings) and Mixtral (experts).  A model that computes
anything else is refused by name.  Every problem is a `CheckpointError` of one line.

This module reads sizes and constants; it opens no tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from programs.models.tensors import SCALE_BLOCK, CheckpointError, read_json

__all__ = ["ModelConfig", "RopeScaling", "read_config", "tensor_shapes"]

SILU, GELU_TANH = "silu", "gelu_tanh"
CHOSEN = 2
"""Experts a router chooses: the kernels keep the two greatest."""
MAX_EXPERTS = 64
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


def routable(experts: int, chosen: int) -> bool:
    """True when there are kernels for a router that chooses ``chosen`` of ``experts``."""
    return chosen == CHOSEN and CHOSEN <= experts <= MAX_EXPERTS


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a decoder; sizes count elements, heads, layers or experts."""

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
    """Positions a sequence may have: the trained ones, at most a sliding window's length."""
    head_norms: bool = False
    """Every query and key head is RMS-normed, with a gain, before the rotary embedding."""
    activation: str = SILU
    """Of the FFN's gate: ``silu`` or ``gelu_tanh``."""
    unit_gain: bool = False
    """A norm's gain is 1 + what is stored."""
    scaled_embedding: bool = False
    """An embedding is multiplied by sqrt(hidden_size), rounded to fp32, before the first layer."""
    experts: int = 1
    """FFNs of a layer (of ``ffn`` elements each) of which a router chooses for every token."""
    experts_per_token: int = 1

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
        if self.activation not in (SILU, GELU_TANH):
            raise CheckpointError(
                f"activation {self.activation!r} is not supported; {SILU} and {GELU_TANH} are"
            )
        one = (self.experts, self.experts_per_token) == (1, 1)
        if not one and not routable(self.experts, self.experts_per_token):
            raise CheckpointError(
                f"{self.experts_per_token} of {self.experts} experts per token; "
                f"{CHOSEN} of {CHOSEN} to {MAX_EXPERTS} are supported"
            )
        if self.head_dim % 2:
            raise CheckpointError(f"head_dim is {self.head_dim}; rotary embedding needs it even")
        for name in ("eps", "rope_theta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise CheckpointError(f"{name} is {value}; it must be positive and finite")

    @property
    def plain(self) -> bool:
        """True for what Llama computes: nothing of Qwen3's, Gemma's or Mixtral's."""
        special = (self.head_norms, self.unit_gain, self.scaled_embedding, self.experts > 1)
        return self.activation == SILU and not any(special)

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
        if config.head_norms:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (config.head_dim,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (config.head_dim,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (h,)
        if config.experts > 1:
            shapes[f"{prefix}.block_sparse_moe.gate.weight"] = (config.experts, h)
        for gate, up, down in ffn_names(config, layer):
            shapes[gate] = shapes[up] = (f, h)
            shapes[down] = (h, f)
    shapes["model.norm.weight"] = (h,)
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab, h)
    return shapes


def ffn_names(config: ModelConfig, layer: int) -> list[tuple[str, str, str]]:
    """(gate, up, down): the matrices of a layer's FFN, or of each of its experts."""
    prefix = f"model.layers.{layer}"
    if config.experts == 1:
        mlp = f"{prefix}.mlp"
        return [(f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight", f"{mlp}.down_proj.weight")]
    each = [f"{prefix}.block_sparse_moe.experts.{e}" for e in range(config.experts)]
    return [(f"{e}.w1.weight", f"{e}.w3.weight", f"{e}.w2.weight") for e in each]


@dataclass(frozen=True)
class _Family:
    """A ``model_type``: the class its checkpoints name, and what a config.json may leave out.

    Defaults are those of the published configuration classes; head_dim 0: hidden_size / heads;
    kv_heads 0: as many as heads.
    """

    architecture: str
    kv_heads: int = 0
    head_dim: int = 0
    eps: float = 1e-6
    theta: float = 10000.0
    tied: bool = False
    max_position: int = 2048
    window: int = 0
    """Sliding window of a configuration that names none; 0: all positions are attended to."""


FAMILIES = {
    "llama": _Family("LlamaForCausalLM"),
    "mistral": _Family("MistralForCausalLM", 8, max_position=131072, window=4096),
    "mixtral": _Family("MixtralForCausalLM", 8, eps=1e-5, theta=1e6, max_position=131072),
    "qwen3": _Family("Qwen3ForCausalLM", 32, 128, max_position=32768),
    "gemma": _Family("GemmaForCausalLM", 16, 256, tied=True, max_position=8192),
}
"""By ``model_type``."""


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

    family, kind = _family_of(fields)
    _check_activation(fields, family)
    for flag in ("attention_bias", "mlp_bias"):
        if fields.get(flag):
            raise refuse(f"{flag} is set, which is not supported", "use a model without biases")
    _check_quantisation(fields.get("quantization_config"))
    rope = _rope_table(fields, kind.theta)
    stretch = rope.get("rope_type", rope.get("type", "default"))
    scaling: RopeScaling | None = None
    if stretch == "linear":
        scaling = RopeScaling(stretch, number(rope, "factor"))
    elif stretch == "llama3":
        scaling = RopeScaling(
            stretch,
            number(rope, "factor"),
            number(rope, "low_freq_factor"),
            number(rope, "high_freq_factor"),
            whole(rope, "original_max_position_embeddings"),
        )
    elif stretch != "default":
        raise refuse(f"rope scaling {shown(stretch)} is not supported", "linear and llama3 are")
    heads, hidden = whole(fields, "num_attention_heads"), whole(fields, "hidden_size")
    if not kind.head_dim and fields.get("head_dim") is None and hidden % max(heads, 1):
        raise refuse(
            f"hidden_size is {hidden}, no multiple of {heads} heads, and head_dim is not given",
            "correct one of the three",
        )
    kv_heads = kind.kv_heads or heads
    if "num_key_value_heads" in fields and family != "gemma":
        kv_heads = heads  # what null means in those classes; Gemma's knows no null
    elif "num_key_value_heads" in fields and fields["num_key_value_heads"] is None:
        raise refuse("num_key_value_heads is null", "it must be a whole number")
    positions = whole(fields, "max_position_embeddings", kind.max_position)
    windowed = family == "mistral" or fields.get("use_sliding_window", family == "mixtral")
    if windowed and fields.get("sliding_window", kind.window):  # the same as none up to its length
        positions = min(positions, whole(fields, "sliding_window", kind.window))
    sizes = {
        "hidden_size": hidden,
        "layers": whole(fields, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": whole(fields, "num_key_value_heads", kv_heads),
        "head_dim": whole(fields, "head_dim", kind.head_dim or hidden // max(heads, 1)),
        "ffn": whole(fields, "intermediate_size"),
        "vocab": whole(fields, "vocab_size"),
        "max_position": positions,
    }
    if family == "mixtral":
        sizes["experts"] = whole(fields, "num_local_experts", 8)
        sizes["experts_per_token"] = whole(fields, "num_experts_per_tok", 2)
        if sizes["experts"] == 1:
            raise refuse("num_local_experts is 1", "a model without a router is not supported")
    eps = number(fields, "rms_norm_eps", kind.eps)
    theta = number(rope, "rope_theta", number(fields, "rope_theta", kind.theta))
    gemma = family == "gemma"
    return ModelConfig(
        **sizes,
        eps=eps,
        rope_theta=theta,
        rope_scaling=scaling,
        tied=bool(fields.get("tie_word_embeddings", kind.tied)),
        head_norms=family == "qwen3",
        activation=GELU_TANH if gemma else SILU,
        unit_gain=gemma,
        scaled_embedding=gemma,
    )


def _rope_table(fields: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """The table that rotary positions follow: ``rope_scaling`` before ``rope_parameters``.

    So transformers 5 has it, and so it takes a theta inside of the table before one outside;
    ``theta`` is that of a configuration that names none.
    """
    tables: dict[str, dict[str, Any]] = {}
    for name in ("rope_scaling", "rope_parameters"):
        table = fields.get(name)
        if table is not None and not isinstance(table, dict):
            raise CheckpointError(f"{name} is {shown(table)}; it must be null or an object")
        if table:
            tables[name] = table
    name, rope = next(iter(tables.items()), ("rope_scaling", {}))
    if rope.get("rope_type", rope.get("type")) is None:
        # Files of transformers 5 that stretch nothing give a theta alone.
        extra = sorted(map(str, set(rope) - {"rope_theta", "partial_rotary_factor"}))
        if extra or {"rope_type", "type"} & set(rope):
            raise CheckpointError(
                f"{name} has no rope_type beside {shown(extra)}; say which scaling it is"
            )
    other = tables.get("rope_parameters", {}).get("rope_theta")
    outside = fields.get("rope_theta")
    if name == "rope_scaling" and other is not None:
        used = rope.get("rope_theta", theta if outside is None else outside)
        if used != other:
            raise CheckpointError(
                f"rope_parameters has rope_theta {shown(other)}, but rope_scaling, which comes "
                f"before it, goes with {shown(used)}; keep one of the two tables"
            )
    for table in (fields, rope):
        turned = table.get("partial_rotary_factor")
        if turned is not None and turned != 1:
            raise CheckpointError(
                f"partial_rotary_factor is {shown(turned)}, which is not supported; "
                "use a model that turns whole heads"
            )
    return rope


def _check_quantisation(value: object) -> None:
    """Refuse quantised weights, except fp8 with a scale for every block of 128 x 128."""
    if not value:
        return
    if isinstance(value, dict) and value.get("quant_method") == "fp8":
        if value.get("weight_block_size") == [SCALE_BLOCK, SCALE_BLOCK]:
            return
        raise CheckpointError(
            f"the weights are already quantised to fp8 with weight_block_size "
            f"{shown(value.get('weight_block_size'))}; use fp8 with [{SCALE_BLOCK}, "
            f"{SCALE_BLOCK}], or the fp16, bf16 or fp32 model"
        )
    raise CheckpointError("the weights are already quantised; use the fp16, bf16 or fp32 model")


def _family_of(fields: Mapping[str, Any]) -> tuple[str, _Family]:
    """The family of a configuration, by its class or, where it names none, its ``model_type``."""
    names = fields.get("architectures")
    for family, kind in FAMILIES.items():
        if names == [kind.architecture] or (names is None and fields.get("model_type") == family):
            return family, kind
    supported = [kind.architecture for kind in FAMILIES.values()]
    named = names if names is not None else fields.get("model_type")
    raise CheckpointError(
        f"architecture {shown(named)} is not supported; use a "
        f"{', '.join(supported[:-1])} or {supported[-1]} model"
    )


def _check_activation(fields: Mapping[str, Any], family: str) -> None:
    """Refuse another activation than the family's.

    Gemma's first files say ``gelu`` in ``hidden_act`` and mean the tanh form, which
    ``hidden_activation`` names in later ones.
    """
    if family == "gemma":
        name = fields.get("hidden_activation")
        if name is None and fields.get("hidden_act") == "gelu":
            return
        name = name if name is not None else fields.get("hidden_act", "gelu_pytorch_tanh")
        allowed: tuple[str, ...] = ("gelu_pytorch_tanh",)
    else:
        name, allowed = fields.get("hidden_act", "silu"), ("silu", "swish")
    if name not in allowed:
        raise CheckpointError(f"activation {shown(name)} is not supported; {allowed[0]} is")
