"""DeepSeek-V2's and V3's fields of a ``config.json``: latent attention, and experts by groups."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as shown
from typing import Any

from programs.models.config import LatentAttention, LayerKind
from programs.models.rope import score_size
from programs.models.tensors import number_of, refusal, whole_of

__all__ = ["DEEPSEEK_V2", "deepseek_fields"]

DEEPSEEK_V2 = "deepseek_v2"


def deepseek_fields(fields: Mapping[str, Any], heads: int, layers: int) -> dict[str, Any]:
    """Fields of `ModelConfig` that say what such a model computes beside what Llama's does.

    The published classes' defaults hold where a field is left out.
    """
    rank = whole_of(fields, "q_lora_rank", 1536)
    if "q_lora_rank" in fields and fields["q_lora_rank"] is None:
        rank = 0
    plain, turned = (
        whole_of(fields, "qk_nope_head_dim", 128),
        whole_of(fields, "qk_rope_head_dim", 64),
    )
    latent = LatentAttention(
        whole_of(fields, "kv_lora_rank", 512), turned, rank, whole_of(fields, "v_head_dim", 128)
    )
    if whole_of(fields, "num_key_value_heads", heads) != heads:
        raise refusal(
            f"num_key_value_heads is {fields['num_key_value_heads']} beside {heads} heads",
            "with latent attention every head has a key of its own; correct one of the two",
        )
    found = {
        "head_dim": plain + turned,
        "kv_heads": heads,
        "latent": latent,
        "query_scale": score_size(fields) ** 2 * max(plain + turned, 1) ** -0.5,
    }
    return found | _experts(fields, layers)


def _experts(fields: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Experts, how they are chosen, and the layers before them that have none."""
    experts = whole_of(fields, "n_routed_experts", 64)
    if "n_routed_experts" in fields and fields["n_routed_experts"] is None:
        return {}
    first = whole_of(fields, "first_k_dense_replace", 0)
    if whole_of(fields, "moe_layer_freq", 1) != 1:
        raise refusal(
            f"moe_layer_freq is {fields['moe_layer_freq']}, which versions of the class read apart",
            "use a model of 1",
        )
    method, scores = fields.get("topk_method", "greedy"), fields.get("scoring_func", "softmax")
    if method != "greedy" or scores != "softmax":
        raise refusal(
            f"topk_method is {shown(method)} and scoring_func {shown(scores)}",
            "'greedy' of 'softmax' is known",
        )
    if fields.get("norm_topk_prob"):
        raise refusal(
            "norm_topk_prob is set, which versions of the class read apart",
            "use a model without it",
        )
    shared = fields.get("n_shared_experts", 2)
    found: dict[str, Any] = {
        "experts": experts,
        "experts_per_token": whole_of(fields, "num_experts_per_tok"),
        "ffn": whole_of(fields, "moe_intermediate_size", 1407),
        "shared_experts": 0 if shared is None else whole_of(fields, "n_shared_experts", 2),
        "shares_of_all": True,
        "routed_factor": number_of(fields, "routed_scaling_factor", 1.0),
    }
    if experts == 1:
        raise refusal("n_routed_experts is 1", "a model without a router is not supported")
    if first > 0:
        kinds = tuple(LayerKind(dense=layer < first) for layer in range(layers))
        found |= {"dense_ffn": whole_of(fields, "intermediate_size"), "layer_kinds": kinds}
    return found
