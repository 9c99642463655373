"""Which published model computes what: Hugging Face's ``config.json``, checked and translated.

Families with kernels: Llama and Mistral (one computation), Qwen2 (biases), Qwen3 (norms of query
and key heads), Phi-3 (fused matrices), Granite (factors of embeddings, scores, blocks and logits),
SmolLM3 (layers without rotary positions), Gemma (GeGLU, gains of 1 + w, scaled embeddings), Gemma 2
and 3 (norms after blocks, windows on most layers, caps), OLMo-2 (norms after blocks and over all
heads), Mixtral and Qwen3-MoE (experts), Qwen2-MoE (shared experts), Llama 4 (experts whose input is
scaled), gpt-oss (sinks, biases of experts), DeepSeek-V2 and V3 (latent attention, groups of
experts).  A model that computes anything else is refused by name.  Every problem is a
`CheckpointError` of one line.

This module reads sizes and constants; it opens no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import Repr
from reprlib import repr as shown
from typing import Any

from programs.models.config import (
    CLAMPED_SILU,
    GELU_TANH,
    MAX_SIZE,
    LayerKind,
    ModelConfig,
    Rope,
    RopeScaling,
)
from programs.models.deepseek import DEEPSEEKS, deepseek_fields
from programs.models.rope import read_rope
from programs.models.tensors import (
    SCALE_BLOCK,
    CheckpointError,
    number_of,
    read_json,
    refusal,
    whole_of,
)

__all__ = ["read_config"]

GPT_OSS = "gpt_oss"
"""Its experts' gates are cut, and its weights published in blocks of 4-bit numbers."""
LLAMA4 = "llama4_text"
"""Some of its layers have neither rotary positions nor norms of heads; experts' inputs are scaled.
"""
BIASED = (GPT_OSS, "llama", "qwen3", "qwen3_moe", "smollm3", "granite")
"""Families whose ``attention_bias`` gives queries, keys, values and outputs a bias."""
SMOLLM3 = "SmolLM3ForCausalLM"
"""Some of its layers have no rotary positions."""
GEMMA3 = "Gemma3ForCausalLM"
"""Its sliding layers have a rotary table of their own."""
SWIGLU_SLOPE = 1.702
"""What a cut gate is multiplied by in its sigmoid, in every published gpt-oss."""
GEMMAS = ("gemma", "gemma2", "gemma3_text")
UNSETTLED = ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")
"""Classes whose versions disagree on the layers that have a window."""
NEVER, ALWAYS, SWITCHED, MOST = "never", "always", "switched", "most"
"""Families by their sliding windows: none; on every layer; as ``use_sliding_window`` says; on all
but every ``full_every``-th layer.
"""
LAYER_TYPES = {"full_attention": False, "sliding_attention": True}
"""Whether a layer of that type has the window."""


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
    sliding: str = NEVER
    biased: bool = False
    """Attention has biases where ``attention_bias`` is left out."""
    window: int = 0
    """Sliding window of a configuration that names none; 0: all positions are attended to."""
    full_every: int = 0


FAMILIES = {
    "llama": _Family("LlamaForCausalLM"),
    "mistral": _Family("MistralForCausalLM", 8, max_position=131072, sliding=ALWAYS, window=4096),
    "mixtral": _Family(
        "MixtralForCausalLM", 8, eps=1e-5, theta=1e6, max_position=131072, sliding=ALWAYS
    ),
    "qwen2": _Family("Qwen2ForCausalLM", 32, max_position=32768, sliding=SWITCHED, window=4096),
    "qwen2_moe": _Family(UNSETTLED[0], 16, max_position=32768, sliding=SWITCHED, window=4096),
    "qwen3": _Family(
        "Qwen3ForCausalLM", 32, 128, max_position=32768, sliding=SWITCHED, window=4096
    ),
    "qwen3_moe": _Family(UNSETTLED[1], 4, max_position=32768, sliding=SWITCHED, window=4096),
    "phi3": _Family("Phi3ForCausalLM", eps=1e-5, max_position=4096, sliding=ALWAYS),
    "granite": _Family("GraniteForCausalLM"),
    "smollm3": _Family(SMOLLM3, 4, theta=2e6, tied=True, max_position=32768, sliding=SWITCHED),
    "gemma": _Family("GemmaForCausalLM", 16, 256, tied=True, max_position=8192),
    "gemma2": _Family(
        "Gemma2ForCausalLM",
        4,
        256,
        tied=True,
        max_position=8192,
        sliding=MOST,
        window=4096,
        full_every=2,
    ),
    "gemma3_text": _Family(
        GEMMA3,
        4,
        256,
        theta=1e6,
        tied=True,
        max_position=131072,
        sliding=MOST,
        window=4096,
        full_every=6,
    ),
    "olmo2": _Family("Olmo2ForCausalLM", eps=1e-5),
    GPT_OSS: _Family(
        "GptOssForCausalLM",
        8,
        64,
        eps=1e-5,
        theta=150000.0,
        max_position=131072,
        sliding=MOST,
        window=128,
        full_every=2,
        biased=True,
    ),
    LLAMA4: _Family("Llama4ForCausalLM", 8, 128, eps=1e-5, theta=500000.0, max_position=131072),
    DEEPSEEKS[0]: _Family("DeepseekV2ForCausalLM", head_dim=192),
    DEEPSEEKS[1]: _Family("DeepseekV3ForCausalLM", head_dim=192, max_position=4096),
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
    inner = fields.get("text_config")
    if fields.get("architectures") == ["Llama4ForConditionalGeneration"] and isinstance(
        inner, dict
    ):
        fields = {**inner, "architectures": [FAMILIES[LLAMA4].architecture]}  # no images
    try:
        return _parse_config(fields)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _parse_config(fields: Mapping[str, Any]) -> ModelConfig:
    """Translate the fields of a Hugging Face ``config.json``."""
    family, kind = _family_of(fields)
    _check_activation(fields, family)
    # Qwen2's class knows no such flag: it has the biases of queries, keys and values always, and
    # Qwen2-MoE's by a flag of its own.
    biased = bool(fields.get("attention_bias", kind.biased))
    biased = biased and family not in ("qwen2", "qwen2_moe")
    if (biased and family not in BIASED) or fields.get("mlp_bias"):
        flag = "mlp_bias" if fields.get("mlp_bias") else "attention_bias"
        raise refusal(f"{flag} is set, which is not supported", "use a model without biases")
    _check_quantisation(fields.get("quantization_config"), family)
    rope_fields, local = _rope_fields(fields, kind)
    rope = read_rope(rope_fields, kind.theta)
    if family == "phi3" and rope.scaling is not None and rope.scaling.kind == "yarn":
        raise refusal(
            "rope scaling 'yarn' of a phi3 model means longrope, which is not supported",
            "use a model without it",
        )
    heads, hidden = whole_of(fields, "num_attention_heads"), whole_of(fields, "hidden_size")
    if not kind.head_dim and fields.get("head_dim") is None and hidden % max(heads, 1):
        raise refusal(
            f"hidden_size is {hidden}, no multiple of {heads} heads, and head_dim is not given",
            "correct one of the three",
        )
    kv_heads = kind.kv_heads or heads
    if "num_key_value_heads" in fields and family not in GEMMAS:
        kv_heads = heads  # what null means in those classes; Gemma's knows no null
    elif "num_key_value_heads" in fields and fields["num_key_value_heads"] is None:
        raise refusal("num_key_value_heads is null", "it must be a whole number")
    sizes: dict[str, Any] = {
        "hidden_size": hidden,
        "layers": whole_of(fields, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": whole_of(fields, "num_key_value_heads", kv_heads),
        "head_dim": whole_of(fields, "head_dim", kind.head_dim or hidden // max(heads, 1)),
        "ffn": whole_of(fields, "intermediate_size"),
        "vocab": whole_of(fields, "vocab_size"),
        "max_position": _reach(
            whole_of(fields, "max_position_embeddings", kind.max_position), rope.scaling, family
        ),
    }
    if family in ("qwen2_moe", "qwen3_moe"):
        sizes |= _experts_of_qwen(fields, sizes["layers"], family)
    if family in DEEPSEEKS:
        sizes |= deepseek_fields(fields, family, heads, sizes["layers"])
    if family == LLAMA4:
        sizes |= _of_llama4(fields, sizes["layers"], sizes["max_position"])
    if family in ("mixtral", GPT_OSS, LLAMA4):
        usual = {"mixtral": (8, 2), GPT_OSS: (128, 4), LLAMA4: (16, 1)}[family]
        sizes["experts"] = whole_of(fields, "num_local_experts", usual[0])
        sizes["experts_per_token"] = whole_of(fields, "num_experts_per_tok", usual[1])
        if sizes["experts"] == 1:
            raise refusal("num_local_experts is 1", "a model without a router is not supported")
    plain = ModelConfig(
        **sizes,
        eps=number_of(fields, "rms_norm_eps", kind.eps),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        tied=bool(fields.get("tie_word_embeddings", kind.tied)),
        qkv_bias=biased
        or family == "qwen2"
        or (family == "qwen2_moe" and bool(fields.get("qkv_bias", True))),
        o_bias=biased,
        **_special(fields, family),
    )
    return _layered(fields, kind, plain, local)


def _experts_of_qwen(fields: Mapping[str, Any], layers: int, family: str) -> dict[str, Any]:
    """Sizes of the experts, the layers that have none, and how experts share."""
    step, named = whole_of(fields, "decoder_sparse_step", 1), _numbers(fields, "mlp_only_layers")
    if step < 1:
        raise refusal(f"decoder_sparse_step is {step}", "it must be 1 or more")
    dense = [(n + 1) % step != 0 or n in named for n in range(layers)]
    second = family == "qwen2_moe"
    experts = whole_of(fields, "num_experts", 60 if second else 128)
    if experts == 1:
        raise refusal("num_experts is 1", "a model without a router is not supported")
    ffn = whole_of(fields, "moe_intermediate_size", 1408 if second else 768)
    found = {
        "ffn": ffn,
        "experts": experts,
        "experts_per_token": whole_of(fields, "num_experts_per_tok", 4 if second else 8),
        "shares_of_all": not fields.get("norm_topk_prob", False),
        **_without_experts(dense, whole_of(fields, "intermediate_size")),
    }
    if second:
        shared = whole_of(fields, "shared_expert_intermediate_size", 5632)
        if ffn < 1 or shared < 1 or shared % ffn:
            raise refusal(
                f"shared_expert_intermediate_size is {shared}, no multiple of the experts' {ffn}",
                "use a model whose shared expert is as large as some whole ones",
            )
        found |= {"shared_experts": shared // ffn, "shared_gate": True}
    return found


def _of_llama4(fields: Mapping[str, Any], layers: int, positions: int) -> dict[str, Any]:
    """A shared expert, inputs that are scaled, and the positions up to which attention is usual.

    From ``floor_scale`` positions on queries of some layers grow, and from ``attention_chunk_size``
    on others see their own chunk alone; neither has kernels.
    """
    every = whole_of(fields, "interleave_moe_layer_step", 1)
    if every < 1:
        raise refusal(f"interleave_moe_layer_step is {every}", "it must be 1 or more")
    named = _numbers(fields, "moe_layers")
    if fields.get("moe_layers") is None:
        named = list(range(every - 1, layers, every))
    if fields.get("attention_chunk_size", 8192) is not None:
        positions = min(positions, whole_of(fields, "attention_chunk_size", 8192))
    if fields.get("attn_temperature_tuning", True):
        positions = min(positions, whole_of(fields, "floor_scale", 8192) - 1)
    normed = bool(fields.get("use_qk_norm", True))
    return {
        "max_position": positions,
        "input_shares": True,
        "shared_experts": 1,
        "head_norms": normed,
        "head_gains": not normed,
        **_without_experts(
            [layer not in named for layer in range(layers)],
            whole_of(fields, "intermediate_size_mlp", 16384),
        ),
    }


def _numbers(fields: Mapping[str, Any], name: str) -> list[int]:
    """Layers by their numbers; none where the field is left out or null."""
    named = fields.get(name)
    if named is None:
        return []
    if not isinstance(named, list) or not all(type(layer) is int for layer in named):
        raise refusal(f"{name} is {shown(named)}", "it must be a list of layers' numbers")
    return named


def _without_experts(dense: Sequence[bool], ffn: int) -> dict[str, Any]:
    """Fields of a model whose layers have one FFN of ``ffn`` elements where ``dense`` says so."""
    if not any(dense):
        return {}
    return {"dense_ffn": ffn, "layer_kinds": tuple(LayerKind(dense=one) for one in dense)}


def _reach(positions: int, scaling: RopeScaling | None, family: str) -> int:
    """Positions that a configuration of ``positions`` reaches with its rotary table stretched.

    A table of ``rope_scaling`` is what people add to a model to go beyond its positions, which
    they then leave as they are; serving engines multiply them too.  Gemma 3's are given stretched,
    and so are Llama 3's.
    """
    if scaling is None or family == "gemma3_text":
        return positions
    if scaling.kind == "linear":
        return int(min(positions * scaling.factor, MAX_SIZE - 1))
    if scaling.kind == "yarn":
        return max(
            positions, int(min(scaling.original_max_position * scaling.factor, MAX_SIZE - 1))
        )
    return positions


def _special(fields: Mapping[str, Any], family: str) -> dict[str, Any]:
    """What the layers of a family compute beside what Llama's do: fields of `ModelConfig`."""
    found: dict[str, Any] = {}
    if family in ("qwen3", "qwen3_moe", "gemma3_text"):
        found["head_norms"] = True
    if family == "granite":
        found |= {
            "embedding_factor": number_of(fields, "embedding_multiplier", 1.0),
            "residual_factor": number_of(fields, "residual_multiplier", 1.0),
            "query_scale": number_of(fields, "attention_multiplier", 1.0),
            "logit_factor": 1 / _divisor(fields, "logits_scaling"),
        }
        if not found["query_scale"]:
            raise refusal("attention_multiplier is 0", "scores need another factor")
    if family == GPT_OSS:
        found |= _of_gpt_oss(fields)
    if family == "olmo2":
        found |= {"pre_norms": False, "post_norms": True, "wide_norms": True}
    if family in GEMMAS:
        found |= {"activation": GELU_TANH, "unit_gain": True, "scaled_embedding": True}
        if fields.get("use_bidirectional_attention"):
            raise refusal(
                "use_bidirectional_attention is set, which is not supported",
                "use a model that attends to the past alone",
            )
    if family in GEMMAS[1:]:
        scalar = number_of(fields, "query_pre_attn_scalar", 256.0)
        if not scalar > 0:
            raise refusal(f"query_pre_attn_scalar is {scalar}", "it must be positive")
        second = family == "gemma2"
        found |= {
            "post_norms": True,
            "query_scale": scalar**-0.5,
            "score_cap": _cap(fields, "attn_logit_softcapping", 50.0 if second else 0.0),
            "logit_cap": _cap(fields, "final_logit_softcapping", 30.0 if second else 0.0),
        }
    return found


def _of_gpt_oss(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Sinks, and experts with biases whose gates are cut."""
    limit = number_of(fields, "swiglu_limit", 7.0)
    slope = number_of(fields, "swiglu_alpha", SWIGLU_SLOPE)
    if slope != SWIGLU_SLOPE:
        raise refusal(
            f"swiglu_alpha is {slope}, for which there are no kernels",
            f"use a model whose gates have {SWIGLU_SLOPE}",
        )
    return {
        "sinks": True,
        "expert_bias": True,
        "activation": CLAMPED_SILU,
        "swiglu_limit": limit,
    }


def _divisor(fields: Mapping[str, Any], name: str) -> float:
    divisor = number_of(fields, name, 1.0)
    if not divisor > 0:
        raise refusal(f"{name} is {divisor}", "logits are divided by more than 0")
    return divisor


def _cap(fields: Mapping[str, Any], name: str, default: float) -> float:
    """What scores or logits are capped at, 0 where they are not."""
    if name not in fields:
        return default
    cap = 0.0 if fields[name] is None else number_of(fields, name)
    if cap < 0 or (cap == 0 and fields[name] is not None):
        raise refusal(f"{name} is {cap}", "it must be null or positive")
    return cap


def _layered(
    fields: Mapping[str, Any], kind: _Family, config: ModelConfig, local: Rope | None
) -> ModelConfig:
    """With what the fields and the family say of single layers; local: the sliding ones' table."""
    window, turned = _window(fields, kind), (True,) * config.layers
    four = kind.architecture == FAMILIES[LLAMA4].architecture
    if kind.architecture == SMOLLM3 or four:
        turned = _turned_layers(fields, config.layers)
    if four:  # types of its layers are chunked and full: the same up to max_position
        fields = {name: value for name, value in fields.items() if name != "layer_types"}
    sliding = _sliding_layers(fields, kind, turned, window)
    if local is not None:
        turned = tuple(not one for one in sliding)
    if not window < config.max_position or not any(sliding):
        window, sliding = 0, (False,) * config.layers  # up to its length it changes nothing
    if not any(sliding) and all(turned):
        return config
    return replace(
        config,
        sliding_window=window,
        second_rope=None if all(turned) else local or Rope(0.0),
        layer_kinds=tuple(
            LayerKind(
                slides,
                not turns,
                four and config.head_norms and not turns,
                config.kind_of(layer).dense,
            )
            for layer, (slides, turns) in enumerate(zip(sliding, turned, strict=True))
        ),
    )


def _turned_layers(fields: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Which layers have rotary positions: ``no_rope_layers`` has 1 for those that do."""
    named = fields.get("no_rope_layers")
    if named is None or named == []:
        every = whole_of(fields, "no_rope_layer_interval", 4)
        if every < 1:
            raise refusal(f"no_rope_layer_interval is {every}", "it must be 1 or more")
        return tuple((layer + 1) % every != 0 for layer in range(layers))
    known = isinstance(named, list) and all(one in (0, 1) for one in named)
    if not known or len(named) != layers:
        raise refusal(
            f"no_rope_layers is {shown(named)}",
            f"it must be a list of {layers} zeros and ones, one for each layer",
        )
    return tuple(bool(one) for one in named)


def _window(fields: Mapping[str, Any], kind: _Family) -> int:
    """Positions of the sliding window, 0 where there is none."""
    if kind.sliding == NEVER or (kind.sliding == SWITCHED and not fields.get("use_sliding_window")):
        return 0
    if "sliding_window" in fields and fields["sliding_window"] is None and kind.sliding != MOST:
        return 0
    if "sliding_window" in fields and fields["sliding_window"] is None:
        raise refusal("sliding_window is null", "it must be a number of positions")
    window = whole_of(fields, "sliding_window", kind.window)
    if window < 0 or (not window and "sliding_window" in fields):
        raise refusal(f"sliding_window is {window}", "it must be null or a number of positions")
    return window


def _sliding_layers(
    fields: Mapping[str, Any], kind: _Family, turned: tuple[bool, ...], window: int
) -> tuple[bool, ...]:
    """Which layers have the window: ``layer_types`` says, else what is usual in the family."""
    layers = len(turned)
    usual = (window > 0,) * layers
    if kind.architecture == SMOLLM3:
        usual = tuple(window > 0 and not one for one in turned)
    elif kind.architecture in UNSETTLED and window and fields.get("layer_types") is None:
        raise refusal(
            "use_sliding_window is set, and versions of the class disagree on the layers that it "
            "means",
            "name them in layer_types",
        )
    elif kind.sliding == SWITCHED and window:
        first = whole_of(fields, "max_window_layers", 28)
        usual = tuple(layer >= first for layer in range(layers))
    elif kind.sliding == MOST:
        every = kind.full_every
        if kind.architecture == GEMMA3:
            every = whole_of(fields, "sliding_window_pattern", every)
            if every < 1:
                raise refusal(f"sliding_window_pattern is {every}", "it must be 1 or more")
        usual = tuple((layer + 1) % every != 0 for layer in range(layers))
    types = fields.get("layer_types")
    if types is None:
        return usual
    if not isinstance(types, list) or len(types) != layers:
        raise refusal(
            f"layer_types is {shown(types)}", f"it must be a list of {layers}, one for each layer"
        )
    unknown = [name for name in types if name not in tuple(LAYER_TYPES)]  # a list has no hash
    if unknown:
        raise refusal(
            f"layer_types has {shown(unknown[0])}, which is not supported",
            f"{' and '.join(LAYER_TYPES)} are",
        )
    named = tuple(LAYER_TYPES[name] for name in types)
    if any(named) and not window:
        raise refusal(
            "layer_types has 'sliding_attention', but there is no sliding window",
            "correct sliding_window or use_sliding_window",
        )
    if kind.sliding not in (SWITCHED, MOST) and named != usual:
        raise refusal(
            "layer_types differ from the layers that such a model has", "leave layer_types out"
        )
    return named


def _rope_fields(fields: Mapping[str, Any], kind: _Family) -> tuple[Mapping[str, Any], Rope | None]:
    """The fields that say how most layers turn, and the table of sliding ones that have their own.

    Files of transformers 5 nest both tables in ``rope_parameters``, by the type of layer.
    """
    if kind.architecture == FAMILIES[GPT_OSS].architecture:
        # versions of the class disagree on the table that it has without one
        if "rope_scaling" not in fields and "rope_parameters" not in fields:
            raise refusal(
                "rope_scaling of a gpt-oss model is not given", "add it, null if there is none"
            )
        return fields, None
    if kind.architecture != GEMMA3:
        return fields, None
    own = {"rope_theta": fields.get("rope_local_base_freq")}
    nested = fields.get("rope_parameters")
    if not nested:
        return fields, read_rope(own, 10000.0)
    tables = nested.values() if isinstance(nested, dict) else ()
    if (
        not tables
        or set(nested) != set(LAYER_TYPES)
        or not all(isinstance(t, dict) for t in tables)
    ):
        raise refusal(
            f"rope_parameters is {shown(nested)}",
            "it must be an object of full_attention and sliding_attention",
        )
    if fields.get("rope_scaling"):
        raise refusal(
            "rope_scaling and rope_parameters are given, and which of them holds differs",
            "keep one of the two tables",
        )
    most = {**fields, "rope_parameters": nested["full_attention"]}
    return most, read_rope({**own, "rope_parameters": nested["sliding_attention"]}, 10000.0)


def _check_quantisation(value: object, family: str) -> None:
    """Refuse quantised weights, except fp8 with a scale for every block of 128 x 128, and gpt-oss's
    experts in blocks of 32 4-bit numbers.
    """
    if not value:
        return
    if isinstance(value, dict) and value.get("quant_method") == "mxfp4" and family == GPT_OSS:
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
    whole = Repr()
    whole.maxstring = 80  # a class's name is told whole
    raise CheckpointError(
        f"architecture {whole.repr(named)} is not supported; use a "
        f"{', '.join(supported[:-1])} or {supported[-1]} model"
    )


def _check_activation(fields: Mapping[str, Any], family: str) -> None:
    """Refuse another activation than the family's.

    Gemma's first files say ``gelu`` in ``hidden_act`` and mean the tanh form, which
    ``hidden_activation`` names in later ones.
    """
    if family in GEMMAS:
        name = fields.get("hidden_activation")
        if name is None and fields.get("hidden_act") == "gelu":
            return
        name = name if name is not None else fields.get("hidden_act", "gelu_pytorch_tanh")
        allowed: tuple[str, ...] = ("gelu_pytorch_tanh",)
    else:
        name, allowed = fields.get("hidden_act", "silu"), ("silu", "swish")
    if name not in allowed:
        raise CheckpointError(f"activation {shown(name)} is not supported; {allowed[0]} is")
