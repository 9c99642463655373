"""What the metadata of a GGUF file mean: configuration, tokenizer, chat template, end of a text.

Sizes and constants are stored as float32 and 32-bit integers under the family's name; a tokenizer
as its vocabulary, merges or scores, and the name of the rule that cuts a text into words before.
The rules are those of the published ``tokenizer.json`` of each family.  What is not known is
refused by name.

This module reads metadata; it opens no matrix.  Every problem is a `CheckpointError` of one line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from programs.models.config import (
    CLAMPED_SILU,
    GELU_TANH,
    SILU,
    LayerKind,
    ModelConfig,
    Rope,
    RopeScaling,
)
from programs.models.gguf import GgufFile, GgufSource, name_gguf_tensors
from programs.models.rope import inverse_frequencies, yarn_size
from programs.models.tensors import CheckpointError

__all__ = [
    "gguf_chat_template",
    "gguf_config",
    "gguf_end_tokens",
    "gguf_source",
    "gguf_special_tokens",
    "gguf_tokenizer",
]

FAMILIES = (
    "llama",
    "qwen2",
    "qwen3",
    "phi3",
    "granite",
    "smollm3",
    "gemma",
    "gemma2",
    "gemma3",
    "olmo2",
    "gpt-oss",
)
"""Architectures for which there are kernels; Mistral and Mixtral are stored as llama."""
GEMMAS = ("gemma", "gemma2", "gemma3")
GPT_OSS = "gpt-oss"
STILL_EVERY = 4
"""Every so many layers of SmolLM3 one has no rotary positions: no file says so, as in llama.cpp."""
FULL_EVERY = {"gemma2": 2, "gemma3": 6}
"""Every so many layers one has no sliding window, unless a file says otherwise."""
WINDOW, CAPS = {"gemma2": 4096}, {"gemma2": (50.0, 30.0)}
"""Sliding windows and caps (of scores, of logits) where a file names none, as in llama.cpp."""
SQUARE = {("gemma2", 46), ("gemma3", 62)}
"""Families and layers whose scores are multiplied by (hidden_size / heads)^-1/2: no file says so,
the largest models of both are known by their layers.
"""
LACKING = {
    "qwen3moe": "Qwen3's experts",
}
"""What known families have that is not read from their files."""
FREQUENCY_FACTORS = "rope_freqs.weight"
MOST_TEMPLATE = 1 << 20
"""Longest chat template in characters; published ones have some thousands."""

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
"""Types of tokens."""
END_FIELDS = ("eos", "eot", "eom")
END_TEXTS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
)
"""Control and added tokens that end a text even where no field of the metadata names them."""
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator"}
"""Fields ``tokenizer.ggml.X_token_id`` of the names that templates use (the spelling is theirs)."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
)
_GPT_4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
)
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SIGNS_AND_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
WORDS = {
    "llama-bpe": f"{_LLAMA3}|{_SIGNS}|{_LINES}",
    "llama3": f"{_LLAMA3}|{_SIGNS}|{_LINES}",
    "llama-v3": f"{_LLAMA3}|{_SIGNS}|{_LINES}",
    "dbrx": f"{_LLAMA3}|{_SIGNS}|{_LINES}",
    "qwen2": f"{_QWEN2}|{_SIGNS}|{_LINES}",
    "deepseek-r1-qwen": f"{_QWEN2}|{_SIGNS}|{_LINES}",
    "tekken": f"{_TEKKEN}|{_SIGNS_AND_SLASH}|{_LINES}",
    "gpt-4o": f"{_GPT_4O}|{_SIGNS_AND_SLASH}|{_LINES}",
}
"""By ``tokenizer.ggml.pre``: the expression that cuts a text into words."""
GPT2_WORDS = ("gpt-2", "smollm", "starcoder", "refact")
"""Those that cut as GPT-2 does."""
SINGLE_DIGITS = ("smollm", "starcoder", "refact")
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")
"""A word that is a token is not merged from pieces, and a text begins with the bos token."""
COMPOSED = ("qwen2",)
"""Texts are brought to Unicode's normal form C."""


class _Fields:
    """Metadata by name and type."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file

    def refuse(self, what: str, mend: str = "fetch the file again") -> CheckpointError:
        return CheckpointError(f"{self._file.path}: {what}; {mend}")

    def get(self, name: str, kinds: type | tuple[type, ...]) -> Any:
        """The value, None where there is none."""
        value = self._file.metadata.get(name)
        if value is None:
            return None
        wrong_bool = isinstance(value, bool) and kinds is not bool
        if wrong_bool or not isinstance(value, kinds):
            raise self.refuse(f"{name} has another type than its meaning needs")
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        """A number; an array whose items are all the same is one."""
        value = self.get(name, (int, np.ndarray))
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "iu" or len(set(value.tolist())) != 1:
                raise self.refuse(
                    f"{name} differs from layer to layer, for which there are no kernels",
                    "use another model",
                )
            value = int(value[0])
        value = default if value is None else value
        if value is None:
            raise self.refuse(f"{name} is missing")
        return int(value)

    def real(self, name: str, default: float | None = None) -> float:
        """A number that was written as float32: the shortest decimal that gives the same."""
        value = self.get(name, (int, float))
        value = default if value is None else value
        if value is None:
            raise self.refuse(f"{name} is missing")
        return float(str(np.float32(value))) if math.isfinite(value) else float(value)


def gguf_config(file: GgufFile) -> ModelConfig:
    """The configuration of the model in ``file``."""
    fields = _Fields(file)
    try:
        return _configuration(file, fields)
    except CheckpointError as error:
        told = str(error)
        raise (error if told.startswith(str(file.path)) else fields.refuse(told)) from None


def gguf_source(file: GgufFile, config: ModelConfig) -> GgufSource:
    """The tensors of ``file`` for a model of ``config``; see ``name_gguf_tensors``."""
    return name_gguf_tensors(file, config, _family(file, _Fields(file)))


def _family(file: GgufFile, fields: _Fields) -> str:
    family = str(fields.get("general.architecture", str))
    if (fields.get("split.count", int) or 1) > 1:
        raise fields.refuse(
            f"it is one of {fields.whole('split.count')} parts", "merge them into one file"
        )
    if family not in FAMILIES:
        lacking = LACKING.get(family)
        why = (
            f" has {lacking}, which are read from safetensors alone" if lacking else " is not known"
        )
        raise fields.refuse(
            f"architecture {family[:60]!r}{why}", f"use a model of {', '.join(FAMILIES)}"
        )
    return family


def _configuration(file: GgufFile, fields: _Fields) -> ModelConfig:
    a = _family(file, fields)
    hidden, heads = fields.whole(f"{a}.embedding_length"), fields.whole(f"{a}.attention.head_count")
    kv_heads = fields.whole(f"{a}.attention.head_count_kv", heads)
    head_dim = fields.whole(f"{a}.attention.key_length", hidden // max(heads, 1))
    for name, default in (("attention.value_length", head_dim), ("rope.dimension_count", head_dim)):
        if fields.whole(f"{a}.{name}", default) != head_dim:
            raise fields.refuse(
                f"{a}.{name} differs from the {head_dim} elements of a head, for which there are "
                "no kernels",
                "use another model",
            )
    scales = ("attention.scale", "logit_scale", "embedding_scale", "residual_scale")
    for name in scales if a != "granite" else ():
        scale = fields.real(f"{a}.{name}", 0.0)
        if scale and not (name == "attention.scale" and math.isclose(scale, head_dim**-0.5)):
            raise fields.refuse(f"{a}.{name} is not supported", "use another model")
    _check_attention(fields, a)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise fields.refuse("tensor 'token_embd.weight' is missing")
    positions = fields.whole(f"{a}.context_length")
    usual = None if a == GPT_OSS else WINDOW.get(a, 0)  # as in llama.cpp, which needs gpt-oss's
    window = fields.whole(f"{a}.attention.sliding_window", usual)
    experts = fields.whole(f"{a}.expert_count", 0) or 1
    gemma = a in GEMMAS
    config = ModelConfig(
        hidden_size=hidden,
        layers=fields.whole(f"{a}.block_count"),
        heads=heads,
        kv_heads=max(kv_heads, 0) or heads,
        head_dim=head_dim,
        ffn=fields.whole(f"{a}.{'expert_' * (a == GPT_OSS)}feed_forward_length"),
        vocab=embedding.shape[0],
        eps=fields.real(f"{a}.attention.layer_norm_rms_epsilon"),
        rope_theta=fields.real(f"{a}.rope.freq_base", 10000.0),
        rope_scaling=_stretch(fields, a),
        tied="output.weight" not in file.tensors,
        max_position=positions,
        head_norms=a in ("qwen3", "gemma3"),
        activation=CLAMPED_SILU if a == GPT_OSS else GELU_TANH if gemma else SILU,
        sinks=a == GPT_OSS,
        expert_bias=a == GPT_OSS,
        unit_gain=gemma,
        scaled_embedding=gemma,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        o_bias="blk.0.attn_output.bias" in file.tensors,
        experts=experts,
        experts_per_token=fields.whole(f"{a}.expert_used_count") if experts > 1 else 1,
    )
    # As many layers as the file can have: what follows names every tensor of each.
    if config.layers * (6 if a == "phi3" else 8) > len(file.tensors):
        raise fields.refuse(f"{config.layers} layers, but only {len(file.tensors)} tensors")
    if a in FULL_EVERY:
        config = _normed_after(fields, a, config, max(window, 0))
    elif 0 < window < positions and a != "smollm3":  # up to its length it changes nothing
        kinds = tuple(
            LayerKind(sliding=a != GPT_OSS or layer % 2 == 0) for layer in range(config.layers)
        )
        config = replace(config, sliding_window=window, layer_kinds=kinds)
    if a == "granite":
        attention, *factors = (fields.real(f"{a}.{name}", 0.0) for name in scales)
        logits, embeddings, blocks = (factor or 1.0 for factor in factors)
        config = replace(
            config,
            query_scale=attention,  # 0: 1 / sqrt(head_dim), as in llama.cpp
            logit_factor=1 / logits,
            embedding_factor=embeddings,
            residual_factor=blocks,
        )
    if a == "smollm3" and config.layers >= STILL_EVERY:
        kinds = tuple(
            LayerKind(second_rope=(layer + 1) % STILL_EVERY == 0) for layer in range(config.layers)
        )
        config = replace(config, second_rope=Rope(0.0), layer_kinds=kinds)
    if a == "olmo2":
        config = replace(config, pre_norms=False, post_norms=True, wide_norms=True)
    return _slowed(file, fields, config)


def _check_attention(fields: _Fields, a: str) -> None:
    """Refuse what the metadata say of attention and rotary positions and no kernel computes."""
    if fields.get(f"{a}.attention.causal", bool) is False:
        raise fields.refuse(
            f"{a}.attention.causal is false: tokens attend to those after them",
            "use a model that writes text",
        )
    if a == "granite" and fields.get(f"{a}.rope.scaling.finetuned", bool) is False:
        raise fields.refuse(
            f"{a}.rope.scaling.finetuned is false: its layers have no rotary positions",
            "use another model",
        )
    if a == "olmo2" and fields.whole(f"{a}.attention.sliding_window", 0) > 0:
        raise fields.refuse(
            f"{a}.attention.sliding_window is given, as in OLMo 3, for which there are no kernels",
            "use an OLMo-2 model",
        )
    if fields.real(f"{a}.rope.scaling.attn_factor", 1.0) != 1:
        raise fields.refuse(
            f"{a}.rope.scaling.attn_factor makes cosines and sines larger, which is not done "
            "for GGUF files",
            "use a model without it",
        )


def _normed_after(fields: _Fields, a: str, config: ModelConfig, window: int) -> ModelConfig:
    """With what Gemma 2 and 3 compute beside what Gemma does."""
    caps = CAPS.get(a, (0.0, 0.0))
    width = config.hidden_size / config.heads
    scale = (width if (a, config.layers) in SQUARE else config.head_dim) ** -0.5
    every = fields.whole(f"{a}.attention.sliding_window_pattern", FULL_EVERY[a])
    if every < 1:
        raise fields.refuse(f"the pattern of sliding windows repeats every {every} layers")
    local = [window > 0 and (layer + 1) % every != 0 for layer in range(config.layers)]
    short = window < config.max_position and any(local)
    second = a == "gemma3" and any(local)
    base = fields.real(f"{a}.rope.freq_base_swa", 10000.0)
    if second and not base > 0:
        raise fields.refuse(f"{a}.rope.freq_base_swa is {base}, which is no base of frequencies")
    kinds = tuple(LayerKind(one and short, one and second) for one in local)
    return replace(
        config,
        post_norms=True,
        query_scale=scale,
        score_cap=fields.real(f"{a}.attn_logit_softcapping", caps[0]),
        logit_cap=fields.real(f"{a}.final_logit_softcapping", caps[1]),
        sliding_window=window if short else 0,
        second_rope=Rope(base) if second else None,
        layer_kinds=kinds if short or second else (),
    )


def _stretch(fields: _Fields, a: str) -> RopeScaling | None:
    """Linear scaling of positions, under its newer or older name, and gpt-oss's yarn."""
    kind = fields.get(f"{a}.rope.scaling.type", str)
    if kind == "yarn" and a == GPT_OSS:
        factor = fields.real(f"{a}.rope.scaling.factor")
        return RopeScaling(
            "yarn",
            factor,
            original_max_position=fields.whole(f"{a}.rope.scaling.original_context_length"),
            beta_fast=fields.real(f"{a}.rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=fields.real(f"{a}.rope.scaling.yarn_beta_slow", 1.0),
            truncate=False,  # as published; no file says so
            size=yarn_size(factor),
        )
    if kind in (None, "none", "linear"):
        factor = fields.real(f"{a}.rope.scaling.factor", fields.real(f"{a}.rope.scale_linear", 1.0))
        return RopeScaling("linear", factor) if kind != "none" and factor != 1 else None
    raise fields.refuse(f"rope scaling {kind[:60]!r} is not supported", "linear and llama3 are")


def _slowed(file: GgufFile, fields: _Fields, config: ModelConfig) -> ModelConfig:
    """With the rope scaling of Llama 3.1 and later, of which a file has the outcome alone.

    The table holds by how much each frequency is slowed.  It has to be that of the published
    constants (1, 4, 8192) and some factor.
    """
    if FREQUENCY_FACTORS not in file.tensors:
        return config
    stored = file.tensors[FREQUENCY_FACTORS]
    if stored.kind != 0 or stored.shape != (config.head_dim // 2,):
        raise fields.refuse(f"tensor {FREQUENCY_FACTORS!r} is no float32 table of half a head")
    try:
        table = np.fromfile(file.path, "<f4", stored.shape[0], offset=stored.begin)
    except OSError as error:
        raise fields.refuse(f"it can no longer be read ({error})", "put the file back") from error
    slowest = float(str(table.max()))
    if len(table) != stored.shape[0] or not (math.isfinite(slowest) and table.min() >= 1):
        raise fields.refuse(f"tensor {FREQUENCY_FACTORS!r} has factors below 1")
    if slowest == 1:
        return config
    slowed = replace(config, rope_scaling=RopeScaling("llama3", slowest))
    known = inverse_frequencies(replace(config, rope_scaling=None)) / inverse_frequencies(slowed)
    if config.rope_scaling or not np.allclose(known, table, rtol=1e-4, atol=0):
        raise fields.refuse(
            "its rope factors are not those of Llama 3.1 and later", "use another model"
        )
    return slowed


def gguf_chat_template(file: GgufFile) -> str | None:
    """The Jinja text that turns messages into a prompt; None where the file has none."""
    fields = _Fields(file)
    text: str | None = fields.get("tokenizer.chat_template", str)
    if text is not None and len(text) > MOST_TEMPLATE:
        raise fields.refuse(f"the chat template has more than {MOST_TEMPLATE:,} characters")
    return text


def gguf_end_tokens(file: GgufFile) -> tuple[int, ...]:
    """Ids of the tokens that end a text: those the metadata name, and what such are called."""
    fields = _Fields(file)
    named = [fields.get(f"tokenizer.ggml.{name}_token_id", int) for name in END_FIELDS]
    tokens, kinds = _vocabulary(fields)
    called = {tokens[i]: int(i) for i in np.flatnonzero(np.isin(kinds, (CONTROL, USER)))}
    found = [*named, *(called.get(text) for text in END_TEXTS)]
    return tuple(dict.fromkeys(i for i in found if i is not None and 0 <= i < len(tokens)))


def gguf_special_tokens(file: GgufFile) -> dict[str, str]:
    """The tokens that templates know by name, for instance ``bos_token``, with their texts."""
    fields = _Fields(file)
    tokens, _ = _vocabulary(fields)
    numbers = {
        f"{name}_token": fields.get(f"tokenizer.ggml.{field}_token_id", int)
        for name, field in SPECIAL.items()
    }
    return {
        name: tokens[number]
        for name, number in numbers.items()
        if number is not None and 0 <= number < len(tokens)
    }


def gguf_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer of ``file``; raises CheckpointError for one whose rules are not known."""
    fields = _Fields(file)
    kind = fields.get("tokenizer.ggml.model", str)
    build = {"gpt2": _byte_level, "llama": _sentence_pieces}.get(kind)
    if build is None:
        raise fields.refuse(
            f"tokenizer model {str(kind)[:60]!r} is not supported", "gpt2 and llama are"
        )
    tokens, kinds = _vocabulary(fields)
    if kind == "llama":  # files from before July 2024 have runs of spaces as the model writes them
        tokens = [
            token.replace("\u2581", " ") if of == USER else token
            for token, of in zip(tokens, kinds, strict=True)
        ]
    if not tokens or len(set(tokens)) != len(tokens):
        raise fields.refuse("its vocabulary is empty or holds a token twice")
    try:
        tokenizer = build(fields, tokens, kinds)
        for special in (True, False):
            of_kind = np.flatnonzero(kinds == (CONTROL if special else USER))
            added = [AddedToken(tokens[i], special=special, normalized=False) for i in of_kind]
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
        _frame(fields, tokenizer, tokens)
        return tokenizer
    except BaseException as error:  # the library's panics are no Exception
        if isinstance(error, CheckpointError):
            raise
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:100]
        raise fields.refuse(f"its tokenizer cannot be built ({reason})") from None


def _vocabulary(fields: _Fields) -> tuple[list[str], NDArray[np.int64]]:
    """The tokens and their types."""
    tokens: list[str] = _texts(fields, "tokenizer.ggml.tokens")
    kinds = fields.get("tokenizer.ggml.token_type", np.ndarray)
    if kinds is None:
        kinds = np.full(len(tokens), NORMAL)
    if len(kinds) != len(tokens) or kinds.dtype.kind not in "iu":
        raise fields.refuse("tokenizer.ggml.token_type has not one number for each token")
    return tokens, kinds.astype(np.int64)


def _texts(fields: _Fields, name: str) -> list[str]:
    value = fields.get(name, (list, np.ndarray))
    if not isinstance(value, list):
        raise fields.refuse(f"{name} is missing or no list of texts")
    return value


def _byte_level(fields: _Fields, tokens: list[str], kinds: NDArray[np.int64]) -> Tokenizer:
    """Byte pairs over bytes written as printable characters, merged in the stored order."""
    pre = fields.get("tokenizer.ggml.pre", str)
    if pre not in WORDS and pre not in GPT2_WORDS:
        known = ", ".join(sorted([*WORDS, *GPT2_WORDS]))
        raise fields.refuse(
            f"it cuts texts by the rule {str(pre)[:60]!r}, which is not known",
            f"use a file with one of {known}",
        )
    cut = [merge.partition(" ") for merge in _texts(fields, "tokenizer.ggml.merges")]
    if not all(space for _, space, _ in cut):
        raise fields.refuse("tokenizer.ggml.merges holds no pairs")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [(left, right) for left, _, right in cut]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in WHOLE_WORDS)
    )
    if pre in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = []
    if pre in SINGLE_DIGITS:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pre in WORDS:
        steps.append(pre_tokenizers.Split(Regex(WORDS[pre]), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre in GPT2_WORDS))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_pieces(fields: _Fields, tokens: list[str], kinds: NDArray[np.int64]) -> Tokenizer:
    """SentencePiece's byte pairs: the best score merges first; what is left goes as bytes."""
    scores = fields.get("tokenizer.ggml.scores", np.ndarray)
    if scores is None or len(scores) != len(tokens) or np.isnan(scores).any():
        raise fields.refuse("tokenizer.ggml.scores has not one number for each token")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    unknown = np.flatnonzero(kinds == UNKNOWN)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(vocabulary, tokens, kinds, scores),
            unk_token=tokens[unknown[0]] if len(unknown) else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = fields.get("tokenizer.ggml.add_space_prefix", bool)
    prefix = True if prefix is None else prefix
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    )
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


MOST_CUTS = 1 << 22
"""Most ways to cut all tokens in two; the largest published vocabulary has 2^21."""


def _merges(
    vocabulary: Mapping[str, int],
    tokens: list[str],
    kinds: NDArray[np.int64],
    scores: NDArray[Any],
) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a third, the third's best score first."""
    whole = [tokens[i] for i in np.flatnonzero(kinds == NORMAL)]
    if sum(map(len, whole)) > MOST_CUTS or max(map(len, whole), default=0) > 1 << 8:
        raise CheckpointError("its tokens are too long for a vocabulary; fetch the file again")
    found: list[tuple[float, int, int, int, str, str]] = []
    for token in whole:
        number = vocabulary[token]
        score = -float(scores[number])
        pairs: Iterable[tuple[str, str]] = ((token[:i], token[i:]) for i in range(1, len(token)))
        for left, right in pairs:
            if left in vocabulary and right in vocabulary:
                order = vocabulary[left], vocabulary[right]
                found.append((score, number, *order, left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _frame(fields: _Fields, tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Put the bos and eos tokens around a text, where the file says so."""
    begins = fields.get("tokenizer.ggml.add_bos_token", bool)
    if begins is None:
        spm = fields.get("tokenizer.ggml.model", str) == "llama"
        begins = spm or fields.get("tokenizer.ggml.pre", str) in WHOLE_WORDS
    ends = bool(fields.get("tokenizer.ggml.add_eos_token", bool))
    named = _framing(fields, begins, ends, len(tokens))
    if not named:
        return
    first = [tokens[named["bos"]]] if begins else []
    last = [tokens[named["eos"]]] if ends else []
    pieces: list[Any] = [*first, "$A", *last]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=pieces, special_tokens=[(tokens[i], i) for i in set(named.values())]
    )


def _framing(fields: _Fields, begins: bool, ends: bool, vocab: int) -> dict[str, int]:
    """The numbers of the tokens that frame a text."""
    named = {}
    for name, wanted in (("bos", begins), ("eos", ends)):
        if not wanted:
            continue
        number = fields.get(f"tokenizer.ggml.{name}_token_id", int)
        if number is None or not 0 <= number < vocab:
            raise fields.refuse(f"texts shall have a {name} token, but it is not in the vocabulary")
        named[name] = number
    return named
