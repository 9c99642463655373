"""Every family of decoders on awkward shapes: how far from float64, and chips against golden model.

``python -m tests.families [NAME ...]`` prints a row for each family, where it attends (on the VXM
or on the planes), number type and tensor parallelism: the golden model's relative logit error
against an independent float64 forward (``tests/oracles/families_float64.py``), and whether chips
and golden model agree in every bit.

A family is the ``config.json`` of a tiny model; its tensors are drawn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chip.spec import ChipSpec
from programs.decoder import GoldenDecoder, Host, Layout, compile_decoder, partition_model
from programs.models import Checkpoint, random_checkpoint, read_config
from programs.running import LOOKAHEAD, Runner
from tests.oracles.families_float64 import FamilyFloat64
from tests.oracles.gemma_olmo_float64 import forward

F32 = NDArray[np.float32]
Index = NDArray[np.int64]

CONTEXT = 64
LONG = 4096
"""Positions that a family's model is made for where it attends on the planes."""
TOKENS = [3, 41, 59, 26, 5, 8, 301, 77, 12, 200]
"""Of a sequence; longer than the windows below."""
TOLERANCE = {"int8": 0.05, "fp16": 0.004}
"""Root-mean-square logit error allowed, relative to the spread of the float64 logits."""
SMALL = {
    "hidden_act": "silu",
    "hidden_size": 100,
    "intermediate_size": 130,
    "max_position_embeddings": 512,
    "num_attention_heads": 5,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 331,
}
WIDE = SMALL | {
    "hidden_size": 344,
    "intermediate_size": 333,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 40,
}
WIDE_SIZES = {name: WIDE[name] for name in WIDE if WIDE[name] != SMALL[name]}
GEMMA = {name: value for name, value in SMALL.items() if name != "hidden_act"} | {
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
OLMO = {name: value for name, value in SMALL.items() if name != "head_dim"} | {
    "num_key_value_heads": 5,
}
"""A head of OLMo-2 is hidden_size / heads long."""


def _of(model_type: str, architecture: str, base: Mapping[str, Any], **fields: Any) -> Any:
    return {**base, "model_type": model_type, "architectures": [architecture], **fields}


@dataclass(frozen=True)
class Family:
    """A row of the table: a configuration, and what its drawn tensors are scaled by.

    scaled: by a part of the name; biases and gains are usual in size otherwise.
    """

    fields: Mapping[str, Any]
    scaled: Mapping[str, float] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {
    "mistral, window": Family(
        _of("mistral", "MistralForCausalLM", WIDE, sliding_window=4),
    ),
    "qwen2": Family(_of("qwen2", "Qwen2ForCausalLM", WIDE)),
    "qwen2, large biases": Family(
        _of("qwen2", "Qwen2ForCausalLM", SMALL, num_attention_heads=4, num_key_value_heads=2),
        {"k_proj.bias": 300.0, "q_proj.bias": 20.0},
    ),
    "llama, all biases": Family(_of("llama", "LlamaForCausalLM", WIDE, attention_bias=True)),
    "llama, llama3": Family(
        _of(
            "llama",
            "LlamaForCausalLM",
            WIDE,
            rope_theta=500.0,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        )
    ),
    "llama, linear": Family(
        _of("llama", "LlamaForCausalLM", SMALL, rope_scaling={"rope_type": "linear", "factor": 4.0})
    ),
    "llama, yarn": Family(
        _of(
            "llama",
            "LlamaForCausalLM",
            WIDE,
            rope_theta=500.0,
            rope_scaling={
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 4,
            },
        )
    ),
    "phi3, window": Family(_of("phi3", "Phi3ForCausalLM", WIDE, sliding_window=6)),
    "granite": Family(
        _of(
            "granite",
            "GraniteForCausalLM",
            SMALL,
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            attention_multiplier=0.1,
            logits_scaling=8.0,
            attention_bias=True,
        )
    ),
    "granite, other factors": Family(
        _of(
            "granite",
            "GraniteForCausalLM",
            WIDE,
            embedding_multiplier=3.0,
            residual_multiplier=0.6,
            attention_multiplier=0.5,
            logits_scaling=8.0,
            attention_bias=True,
        )
    ),
    "qwen3, some windows": Family(
        _of(
            "qwen3",
            "Qwen3ForCausalLM",
            SMALL,
            sliding_window=5,
            use_sliding_window=True,
            max_window_layers=1,
        )
    ),
    "smollm3, windows": Family(
        _of(
            "smollm3",
            "SmolLM3ForCausalLM",
            WIDE,
            num_hidden_layers=3,
            no_rope_layer_interval=2,
            sliding_window=6,
            use_sliding_window=True,
            tie_word_embeddings=True,
        )
    ),
    "gemma2": Family(
        _of(
            "gemma2",
            "Gemma2ForCausalLM",
            GEMMA | WIDE_SIZES,
            sliding_window=4,
            query_pre_attn_scalar=30,
            attn_logit_softcapping=1.5,
            final_logit_softcapping=2.0,
        )
    ),
    "gemma2, large residual": Family(
        _of(
            "gemma2",
            "Gemma2ForCausalLM",
            GEMMA,
            sliding_window=4096,
            query_pre_attn_scalar=24,
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
        ),
        {"post_attention_layernorm": 1e5, "post_feedforward_layernorm": 1e5},
    ),
    "gemma3": Family(
        _of(
            "gemma3_text",
            "Gemma3ForCausalLM",
            GEMMA,
            sliding_window=4,
            query_pre_attn_scalar=10,
            rope_theta=1e6,
            rope_local_base_freq=10000.0,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
    "gemma3, nested ropes": Family(
        _of(
            "gemma3_text",
            "Gemma3ForCausalLM",
            GEMMA | WIDE_SIZES,
            num_hidden_layers=6,
            sliding_window=5,
            query_pre_attn_scalar=40,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        )
    ),
    "olmo2": Family(_of("olmo2", "Olmo2ForCausalLM", OLMO)),
    "mixtral": Family(
        _of("mixtral", "MixtralForCausalLM", SMALL, num_local_experts=5, num_experts_per_tok=2)
    ),
    "qwen2 moe": Family(
        _of(
            "qwen2_moe",
            "Qwen2MoeForCausalLM",
            {n: v for n, v in (WIDE | {"hidden_size": 360}).items() if n != "head_dim"},
            moe_intermediate_size=90,
            shared_expert_intermediate_size=270,
            norm_topk_prob=False,
            num_experts=21,
            num_experts_per_tok=4,
        ),
        {"shared_expert_gate": 3.0},
    ),
    "qwen2 moe, shares add up": Family(
        _of(
            "qwen2_moe",
            "Qwen2MoeForCausalLM",
            {n: v for n, v in SMALL.items() if n != "head_dim"} | {"num_key_value_heads": 5},
            moe_intermediate_size=130,
            shared_expert_intermediate_size=130,
            norm_topk_prob=True,
            num_experts=5,
            num_experts_per_tok=2,
        ),
    ),
    "qwen3 moe, shares of all": Family(
        _of(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            SMALL,
            moe_intermediate_size=70,
            norm_topk_prob=False,
            num_experts=9,
            num_experts_per_tok=3,
        ),
        {"mlp.gate.weight": 3.0},
    ),
    "qwen3 moe, some without": Family(
        _of(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            SMALL,
            num_hidden_layers=3,
            intermediate_size=700,
            moe_intermediate_size=70,
            norm_topk_prob=True,
            num_experts=9,
            num_experts_per_tok=3,
            mlp_only_layers=[0, 2],
        ),
    ),
    "llama 4, every other": Family(
        _of(
            "llama4_text",
            "Llama4ForCausalLM",
            WIDE,
            no_rope_layers=[1, 0],
            num_local_experts=5,
            num_experts_per_tok=1,
            interleave_moe_layer_step=2,
            intermediate_size_mlp=150,
        ),
        {"mlp.gate.weight": 3.0},
    ),
    "llama 4": Family(
        _of(
            "llama4_text",
            "Llama4ForCausalLM",
            WIDE,
            num_hidden_layers=3,
            no_rope_layers=[1, 0, 1],
            num_local_experts=5,
            num_experts_per_tok=1,
            interleave_moe_layer_step=1,
        ),
        {"mlp.gate.weight": 3.0},
    ),
    "llama 4, two of nine": Family(
        _of(
            "llama4_text",
            "Llama4ForCausalLM",
            SMALL,
            no_rope_layer_interval=2,
            num_local_experts=9,
            num_experts_per_tok=2,
            max_position_embeddings=4096,
        ),
    ),
    "deepseek-v2": Family(
        _of(
            "deepseek_v2",
            "DeepseekV2ForCausalLM",
            {n: v for n, v in SMALL.items() if n not in ("head_dim", "num_key_value_heads")},
            num_attention_heads=4,
            first_k_dense_replace=1,
            moe_intermediate_size=70,
            n_routed_experts=9,
            n_shared_experts=2,
            num_experts_per_tok=3,
            routed_scaling_factor=1.5,
            topk_method="greedy",
            q_lora_rank=None,
            kv_lora_rank=90,
            qk_nope_head_dim=22,
            qk_rope_head_dim=10,
            v_head_dim=20,
            rope_scaling={
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 4,
                "mscale": 0.7,
                "mscale_all_dim": 0.7,
            },
        ),
    ),
    "deepseek-v2, latent queries": Family(
        _of(
            "deepseek_v2",
            "DeepseekV2ForCausalLM",
            {n: v for n, v in WIDE.items() if n not in ("head_dim", "num_key_value_heads")},
            hidden_size=360,
            n_routed_experts=None,
            q_lora_rank=340,
            kv_lora_rank=330,
            qk_nope_head_dim=48,
            qk_rope_head_dim=16,
            v_head_dim=64,
        ),
    ),
    "deepseek-v2, best groups": Family(
        _of(
            "deepseek_v2",
            "DeepseekV2ForCausalLM",
            {n: v for n, v in SMALL.items() if n not in ("head_dim", "num_key_value_heads")},
            num_hidden_layers=1,
            first_k_dense_replace=0,
            moe_intermediate_size=130,
            n_routed_experts=15,
            n_shared_experts=1,
            num_experts_per_tok=4,
            n_group=5,
            topk_group=2,
            topk_method="group_limited_greedy",
            routed_scaling_factor=16.0,
            q_lora_rank=None,
            kv_lora_rank=64,
            qk_nope_head_dim=16,
            qk_rope_head_dim=8,
            v_head_dim=24,
        ),
        {"mlp.gate.weight": 3.0},
    ),
    "deepseek-v3": Family(
        _of(
            "deepseek_v3",
            "DeepseekV3ForCausalLM",
            {n: v for n, v in WIDE.items() if n not in ("head_dim", "num_key_value_heads")},
            num_attention_heads=8,
            num_key_value_heads=8,
            first_k_dense_replace=1,
            moe_intermediate_size=90,
            n_routed_experts=40,
            n_shared_experts=1,
            num_experts_per_tok=4,
            n_group=4,
            topk_group=2,
            topk_method="noaux_tc",
            scoring_func="sigmoid",
            routed_scaling_factor=2.5,
            norm_topk_prob=True,
            q_lora_rank=100,
            kv_lora_rank=330,
            qk_nope_head_dim=48,
            qk_rope_head_dim=16,
            v_head_dim=40,
            rope_scaling={
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 4,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        ),
        {"mlp.gate.weight": 2.0},
    ),
    "gpt-oss": Family(
        _of(
            "gpt_oss",
            "GptOssForCausalLM",
            WIDE,
            num_local_experts=7,
            num_experts_per_tok=3,
            sliding_window=4,
            num_hidden_layers=3,
            rope_scaling={
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 32,
                "truncate": False,
            },
        ),
        {"sinks": 3.0, "router.bias": 5.0},  # no two logits of the router are nearly the same
    ),
    "gpt-oss, cut gates": Family(
        _of(
            "gpt_oss",
            "GptOssForCausalLM",
            SMALL,
            num_local_experts=19,
            num_experts_per_tok=4,
            swiglu_limit=1.5,
            sliding_window=128,
            layer_types=["full_attention", "sliding_attention"],
            rope_scaling=None,
        ),
        {"sinks": 8.0, "router.bias": 3.0, "gate_proj.bias": 4.0, "up_proj.bias": 4.0},
    ),
    "qwen3 moe": Family(
        _of(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            WIDE,
            moe_intermediate_size=90,
            norm_topk_prob=True,
            num_experts=17,
            num_experts_per_tok=4,
        )
    ),
    "olmo2, shared heads": Family(
        _of(
            "olmo2",
            "Olmo2ForCausalLM",
            {n: v for n, v in (OLMO | WIDE_SIZES).items() if n != "head_dim"},
            hidden_size=360,
            num_hidden_layers=1,
        )
    ),
}
"""By a name for people."""


def on_planes(family: Family) -> Family:
    """The same model made for so many positions that it attends on the planes."""
    return Family({**family.fields, "max_position_embeddings": LONG}, family.scaled)


class _Scaled:
    """Drawn tensors, some of them larger."""

    def __init__(self, checkpoint: Checkpoint, scaled: Mapping[str, float]) -> None:
        self._source, self._scaled = checkpoint.source, scaled

    def read(self, name: str, rows: Index | None, columns: Index | None) -> F32:
        """See `TensorSource.read`."""
        values = self._source.read(name, rows, columns)
        for part, factor in self._scaled.items():
            if part in name:
                values = values * np.float32(factor)
        return values


def checkpoint_of(family: Family, seed: int = 0) -> Checkpoint:
    """The family's model with drawn tensors, its configuration read as from a file."""
    with TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(dict(family.fields)))
        config = read_config(directory)
    drawn = random_checkpoint(config, seed)
    return Checkpoint(config, _Scaled(drawn, family.scaled))


def exact_logits(family: Family, checkpoint: Checkpoint) -> NDArray[np.float64]:
    """The float64 forward's logits after each of TOKENS, [tokens, vocabulary]."""
    if family.fields["model_type"] in ("gemma2", "gemma3_text", "olmo2"):
        return forward(family.fields, checkpoint.tensor, TOKENS)
    return FamilyFloat64(family.fields, checkpoint.tensor).logits(TOKENS)


def relative_error(family: Family, tp: int, dtype: str) -> float:
    """The golden model's logits against the float64 forward's."""
    checkpoint = checkpoint_of(family)
    wanted = exact_logits(family, checkpoint)
    logits = GoldenDecoder(partition_model(checkpoint, tp, dtype)).logits_for(TOKENS)
    return float(np.sqrt(np.mean((logits - wanted) ** 2)) / wanted.std())


def bits_equal(family: Family, tp: int, dtype: str, context: int = CONTEXT) -> bool:
    """Whether every logit of every position of a compiled run is the golden model's."""
    model = partition_model(checkpoint_of(family), tp, dtype)
    artifact = compile_decoder(model, ChipSpec(), context)
    runner = Runner.alone(artifact, Host(artifact, model))
    golden = GoldenDecoder(model)
    for position, token in enumerate(TOKENS):
        for chip in runner.chips:
            runner.host.prepare(chip, token, position)
        entry = runner.host.entry(position, prefill=position < 2)
        runner.launch(entry, position, LOOKAHEAD)
        wanted = golden.step(token, position, min(artifact.bindings["buckets"]))
        if position < 2:  # a prefill launch ends without logits
            continue
        logits = np.concatenate([runner.host.read_logits(chip) for chip in runner.chips])
        if logits.tobytes() != wanted.tobytes():
            return False
    return True


def rows(names: list[str]) -> Iterator[tuple[str, str, str, int, float, bool]]:
    """(family, where it attends, number type, chips, relative error, bits equal) of the families
    named, or all.
    """
    for name in names or FAMILIES:
        for dtype, tp in product(("fp16", "int8"), (1, 8)):
            short = FAMILIES[name]
            for family in (short, on_planes(short)):
                layout = Layout.of(checkpoint_of(family).config, tp)
                where = "planes" if layout.on_planes else "vxm"
                error = relative_error(family, tp, dtype)
                yield name, where, dtype, tp, error, bits_equal(family, tp, dtype)


def main(names: list[str]) -> int:
    """Print the table; 1 where a row is not as it should be."""
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        print(f"no family {unknown[0]!r}; there are {', '.join(FAMILIES)}", file=sys.stderr)
        return 2
    print(f"{'family':26} {'where':6} {'dtype':5} {'tp':>2} {'rel_err':>9} bits")
    good = True
    for name, where, dtype, tp, error, equal in rows(names):
        print(f"{name:26} {where:6} {dtype:5} {tp:2} {error:9.6f} {'equal' if equal else 'DIFFER'}")
        good &= equal and error < TOLERANCE[dtype]
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
