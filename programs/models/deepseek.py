"""DeepSeek-V2's and V3's fields of a ``config.json``: latent attention, and experts by groups."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as shown
from typing import Any

from programs.models.config import LatentAttention, LayerKind
from programs.models.rope import score_size
from programs.models.tensors import number_of, refusal, whole_of

__all__ = ["DEEPSEEKS", "deepseek_fields"]

DEEPSEEKS = "deepseek_v2", "deepseek_v3"
#: Ways to choose experts by a class's ``topk_method``, and what they are scored by.
METHODS = {
    DEEPSEEKS[0]: {"greedy": "softmax", "group_limited_greedy": "softmax"},
    DEEPSEEKS[1]: {"noaux_tc": "sigmoid"},
}
#: Another name of a class for ``n_routed_experts``.
ALIASES = {DEEPSEEKS[0]: "num_experts", DEEPSEEKS[1]: "num_local_experts"}
#: What the classes have where a field of experts is left out.
EXPERTS = {
    DEEPSEEKS[0]: {
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1407,
        "first_k_dense_replace": 0,
    },
    DEEPSEEKS[1]: {
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "first_k_dense_replace": 3,
        "n_group": 8,
        "topk_group": 4,
    },
}


def deepseek_fields(
    fields: Mapping[str, Any], family: str, heads: int, layers: int
) -> dict[str, Any]:
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
    if not fields.get("rope_interleave", True):
        raise refusal(
            f"rope_interleave is {shown(fields['rope_interleave'])}, for which there are no "
            "kernels",
            "use a model whose even elements turn against odd ones",
        )
    found = {
        "head_dim": plain + turned,
        "kv_heads": heads,
        "latent": latent,
        "query_scale": score_size(fields) ** 2 * max(plain + turned, 1) ** -0.5,
    }
    return found | _experts(fields, family, layers)


def _experts(fields: Mapping[str, Any], family: str, layers: int) -> dict[str, Any]:
    """Experts, how they are chosen, and the layers before them that have none."""
    alias = ALIASES[family]
    if alias in fields:
        fields = {"n_routed_experts": fields[alias], **fields}
        if fields["n_routed_experts"] != fields[alias]:
            raise refusal(
                f"{alias} is {shown(fields[alias])} beside n_routed_experts "
                f"{shown(fields['n_routed_experts'])}",
                "they are names of one field; correct one of the two",
            )
    if "n_routed_experts" in fields and fields["n_routed_experts"] is None:
        return {}
    usual, second = EXPERTS[family], family == DEEPSEEKS[0]

    def of(name: str) -> int:
        return whole_of(fields, name, usual.get(name))

    if whole_of(fields, "moe_layer_freq", 1) != 1:
        raise refusal(
            f"moe_layer_freq is {fields['moe_layer_freq']}, which versions of the class read apart",
            "use a model of 1",
        )
    methods = METHODS[family]
    method = fields.get("topk_method", next(iter(methods)))
    scores = fields.get("scoring_func", next(iter(methods.values())))
    if not isinstance(method, str) or methods.get(method) != scores:
        known = " and ".join(f"{name!r} of {score!r}" for name, score in methods.items())
        raise refusal(
            f"topk_method is {shown(method)} and scoring_func {shown(scores)}", f"{known} are known"
        )
    if bool(fields.get("norm_topk_prob", not second)) == second:
        raise refusal(
            f"norm_topk_prob is {shown(second)}, which versions of the class read apart or no "
            "kernel computes",
            f"use a model of {shown(not second)}",
        )
    if not second and of("num_experts_per_tok") == 1:
        raise refusal(
            "num_experts_per_tok is 1, whose share versions of the class read apart",
            "use a model of 2 or more",
        )
    bare = "n_shared_experts" in fields and fields["n_shared_experts"] is None
    found: dict[str, Any] = {
        "experts": of("n_routed_experts"),
        "experts_per_token": of("num_experts_per_tok"),
        "ffn": of("moe_intermediate_size"),
        "shared_experts": 0 if bare else of("n_shared_experts"),
        "shares_of_all": second,
        "sigmoid_scores": not second,
        "routed_factor": number_of(fields, "routed_scaling_factor", 1.0 if second else 2.5),
    }
    if method != "greedy":
        groups, kept = of("n_group"), of("topk_group")
        if groups != kept:  # else all are chosen
            found |= {"expert_groups": groups, "chosen_groups": kept}
    first = of("first_k_dense_replace")
    if found["experts"] == 1:
        raise refusal("n_routed_experts is 1", "a model without a router is not supported")
    if first > 0:
        kinds = tuple(LayerKind(dense=layer < first) for layer in range(layers))
        found |= {"dense_ffn": whole_of(fields, "intermediate_size"), "layer_kinds": kinds}
    return found
