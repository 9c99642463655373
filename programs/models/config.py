"""The configuration of a decoder: its sizes, its constants, and what differs between its layers.

What the kernels can compute is said here and nowhere else; which published model is which of these
is in ``programs.models.families``.  Every problem is a `CheckpointError` of one line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from programs.models.tensors import CheckpointError

__all__ = ["LatentAttention", "LayerKind", "ModelConfig", "Rope", "RopeScaling", "tensor_shapes"]

SILU, GELU_TANH, CLAMPED_SILU = "silu", "gelu_tanh", "clamped_silu"
ACTIVATIONS = SILU, GELU_TANH, CLAMPED_SILU
MAX_CHOSEN = 16
"""Experts that a router may choose."""
MAX_EXPERTS = 256
MAX_SIZE = 1 << 31
MAX_LAYERS = 1 << 14
"""Bounds that keep a damaged configuration from asking for unbounded work."""
CAPS = 1e-6, 1e6
"""Least and most of what scores and logits are multiplied by or capped at."""
SMALLEST = 2.0**-126
"""Of the normal fp32 numbers."""
SIZES = ("hidden_size", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab", "max_position")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context."""

    kind: str
    """``linear`` (all frequencies divided by `factor`), ``llama3`` or ``yarn`` (only low ones)."""
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    """Trained context in tokens; ``llama3`` only, like the two factors above, and ``yarn``."""
    beta_fast: float = 32.0
    """``yarn``: turns within the trained context from which on a pair keeps its frequency."""
    beta_slow: float = 1.0
    """``yarn``: turns up to which a pair's frequency is divided by `factor`."""
    truncate: bool = True
    """``yarn``: the pairs that turn so often are rounded to whole numbers, outwards."""
    size: float = 1.0
    """``yarn``: what cosines and sines are multiplied by."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise CheckpointError(f"rope factor is {self.factor}; it must be at least 1")
        if not 0 < self.low_freq_factor <= self.high_freq_factor < math.inf:
            raise CheckpointError(
                f"rope factors are {self.low_freq_factor} (low) and {self.high_freq_factor} "
                "(high); they must be positive and the high one no less"
            )
        if not 1 <= self.original_max_position < MAX_SIZE:
            raise CheckpointError(
                f"original_max_position is {self.original_max_position}; "
                "it must be a number of tokens"
            )
        if not 0 < self.beta_slow < self.beta_fast < math.inf:
            raise CheckpointError(
                f"beta_slow is {self.beta_slow} and beta_fast {self.beta_fast}; take "
                "numbers above 0, the fast one the greater"
            )
        if not (math.isfinite(self.size) and self.size > 0):
            raise CheckpointError(f"attention_factor is {self.size}; use one above 0")


@dataclass(frozen=True)
class Rope:
    """A rotary table: how fast the pairs of a head turn from position to position."""

    theta: float
    """The base of the frequencies; 0: no pair turns at any position."""
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.theta) and self.theta >= 0):
            raise CheckpointError(
                f"rope_theta of the second table is {self.theta}; it must be finite, 0 or more"
            )
        if self.scaling is not None and self.scaling.kind == "yarn" and self.theta <= 1:
            raise CheckpointError(f"rope_theta is {self.theta}; yarn needs more than 1")

    @property
    def size(self) -> float:
        """What cosines and sines are multiplied by."""
        return 1.0 if self.scaling is None else self.scaling.size


@dataclass(frozen=True)
class LayerKind:
    """What may differ between the layers of a model; the default is what most models have."""

    sliding: bool = False
    """Attends to the last `ModelConfig.sliding_window` positions alone."""
    second_rope: bool = False
    """Turns by the second rotary table instead of the first."""
    plain_heads: bool = False
    """Its query and key heads are not normed where those of other layers are."""
    dense: bool = False
    """It has one FFN of `ModelConfig.dense_ffn` elements where other layers have experts."""

    @property
    def of_attention(self) -> LayerKind:
        """What of it its attention knows."""
        return replace(self, dense=False)

    @property
    def of_ffn(self) -> LayerKind:
        """What of it its FFN knows."""
        return LayerKind(dense=self.dense)


PLAIN_LAYER = LayerKind()
LATENT_EPS = 1e-6
"""Of the norms of latents: that of the published classes, whatever ``rms_norm_eps`` is."""


@dataclass(frozen=True)
class LatentAttention:
    """Sizes of multi-head latent attention (DeepSeek-V2 and later), in elements.

    A position has one latent of ``key_value`` elements, which is RMS-normed, and one rotated key of
    ``rope``, shared by all heads.  From the latent are made a part of every head's key, which the
    shared one completes, and its value of ``value`` elements.  In a query of head_dim elements the
    last ``rope`` turn, the even ones against the odd ones.
    """

    key_value: int = 512
    rope: int = 64
    query: int = 1536
    """Elements of the latent that queries are made from, normed as well; 0: they are made of x."""
    value: int = 128


def routable(experts: int, chosen: int) -> bool:
    """True when there are kernels for a router that chooses ``chosen`` of ``experts``."""
    return experts > 1 and 1 <= chosen <= min(experts, MAX_CHOSEN) and experts <= MAX_EXPERTS


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
    max_position: int = 512
    """Positions a sequence may have: the trained ones."""
    head_norms: bool = False
    """Every query and key head is RMS-normed, with a gain, before the rotary embedding."""
    activation: str = SILU
    """Of the FFN's gate: ``silu``, ``gelu_tanh`` or ``clamped_silu``.

    The last is gpt-oss's: g sigmoid(1.702 g) (u + 1), gate and up cut to ``swiglu_limit`` first.
    """
    unit_gain: bool = False
    """A norm's gain is 1 + what is stored."""
    scaled_embedding: bool = False
    """An embedding is multiplied by sqrt(hidden_size), rounded to fp32, before the first layer."""
    experts: int = 1
    """FFNs of a layer (of ``ffn`` elements each) of which a router chooses for every token."""
    experts_per_token: int = 1
    shared_experts: int = 0
    """FFNs of ``ffn`` elements that every token takes beside those that the router chooses."""
    input_shares: bool = False
    """A chosen expert takes what goes in times the sigmoid of its logit, as in Llama 4; else what
    comes out is multiplied by its share of a softmax.
    """
    head_gains: bool = True
    """The norms of query and key heads have gains."""
    shared_gate: bool = False
    """What the shared ones give is multiplied by the sigmoid of a product of its own."""
    shares_of_all: bool = False
    """Shares are those of the softmax over all experts; else over the chosen ones alone."""
    expert_bias: bool = False
    """The router's logits and the products of every expert have biases, as in gpt-oss."""
    expert_groups: int = 1
    """Groups of as many experts, one after the other, some of which are chosen before experts are.

    A group's score is what its best expert is chosen by, or with ``sigmoid_scores`` the sum of the
    two best.
    """
    chosen_groups: int = 1
    sigmoid_scores: bool = False
    """Experts are chosen by the sigmoids of their logits, each plus a bias; their shares are the
    sigmoids over the sum of those of the chosen ones.
    """
    latent: LatentAttention | None = None
    """Keys and values of all heads are made from one latent; head_dim is that of a whole key."""
    routed_factor: float = 1.0
    """What the chosen experts' results are multiplied by; those of shared ones are not."""
    dense_ffn: int = 0
    """Elements of the FFN of layers that have one alone; 0: all layers are alike."""
    swiglu_limit: float = 7.0
    """``clamped_silu``: greatest gate, and greatest size of what it is multiplied with."""
    sinks: bool = False
    """Every query head has a logit that takes a share of its softmax and gives nothing."""
    qkv_bias: bool = False
    """Queries, keys and values are products and a bias."""
    o_bias: bool = False
    """The attention's output is a product and a bias."""
    sliding_window: int = 0
    """Positions a sliding layer attends to, the token's own included; 0: there is none."""
    second_rope: Rope | None = None
    """The other rotary table, where layers differ in theirs."""
    layer_kinds: tuple[LayerKind, ...] = ()
    """Of each layer; empty where all are `LayerKind()`."""
    pre_norms: bool = True
    """What attention and FFN take is RMS-normed, with a gain; else they take x itself."""
    post_norms: bool = False
    """What attention and FFN give is RMS-normed, with a gain, before it is added to x."""
    wide_norms: bool = False
    """All query heads together, and all key heads, are RMS-normed before the rotary embedding."""
    query_scale: float = 0.0
    """What scores are multiplied by; 0: 1 / sqrt(head_dim)."""
    score_cap: float = 0.0
    """Scores s become cap tanh(s / cap) before the mask; 0: they stay."""
    logit_cap: float = 0.0
    """As ``score_cap``, of the logits."""
    embedding_factor: float = 1.0
    """What embeddings are multiplied by (after `scaled_embedding`), rounded to fp32."""
    residual_factor: float = 1.0
    """What attention and FFN give is multiplied by before it is added to x."""
    logit_factor: float = 1.0
    """What logits are multiplied by."""

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
        if self.activation not in ACTIVATIONS:
            raise CheckpointError(
                f"activation {self.activation!r} is not supported; "
                f"{', '.join(ACTIVATIONS[:-1])} and {ACTIVATIONS[-1]} are"
            )
        one = (self.experts, self.experts_per_token) == (1, 1)
        if not one and not routable(self.experts, self.experts_per_token):
            raise CheckpointError(
                f"{self.experts_per_token} of {self.experts} experts per token; "
                f"1 to {MAX_CHOSEN} of 2 to {MAX_EXPERTS} are supported"
            )
        if (self.activation == CLAMPED_SILU) != self.expert_bias or (self.expert_bias and one):
            raise CheckpointError(
                f"activation {self.activation!r} with biases of experts {self.expert_bias}; "
                f"{CLAMPED_SILU} and they are known together, of several experts"
            )
        slots = self.experts_per_token + self.shared_experts
        fits = not self.shared_experts or slots <= MAX_CHOSEN
        if self.shared_experts < 0 or not fits or (one and self.shared_experts):
            raise CheckpointError(
                f"{self.shared_experts} shared experts beside {self.experts_per_token} chosen of "
                f"{self.experts}; together they are {MAX_CHOSEN} at most, of a router's experts"
            )
        if self.shared_gate and not self.shared_experts:
            raise CheckpointError("a gate of shared experts, but there are none; give both")
        if self.input_shares and (self.shares_of_all or one):
            raise CheckpointError("shares of what goes into experts are of one logit, a router's")
        if (self.shared_experts or self.shares_of_all or self.input_shares) and self.expert_bias:
            raise CheckpointError("shared experts beside experts with biases have no kernels")
        if self.head_dim % 2:
            raise CheckpointError(f"head_dim is {self.head_dim}; rotary embedding needs it even")
        if not (self.pre_norms or one):
            raise CheckpointError("a router takes x normed; use a model with norms before its FFNs")
        if not (self.pre_norms or self.post_norms):
            raise CheckpointError("no block has a norm, before it or after it; give it one")
        if self.head_norms and self.wide_norms:
            raise CheckpointError("query heads are normed each alone or all together, not both")
        if self.post_norms and self.residual_factor != 1:
            raise CheckpointError("a factor of what a norm gives has no effect; fold it into gains")
        self._check_groups()
        if self.routed_factor != 1 and (one or self.expert_bias):
            raise CheckpointError("a factor of chosen experts needs some, without biases")
        self._check_latent()
        for name in ("embedding_factor", "residual_factor", "logit_factor", "routed_factor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and CAPS[0] <= value <= CAPS[1]):
                raise CheckpointError(
                    f"{name} is {value}; what is multiplied needs {CAPS[0]} to {CAPS[1]:,.0f}"
                )
        if not CAPS[0] <= self.swiglu_limit <= CAPS[1]:
            raise CheckpointError(
                f"swiglu_limit is {self.swiglu_limit}; it must be from {CAPS[0]} to {CAPS[1]:,.0f}"
            )
        for name in ("query_scale", "score_cap", "logit_cap"):
            value = getattr(self, name)
            if value and not (math.isfinite(value) and CAPS[0] <= value <= CAPS[1]):
                raise CheckpointError(
                    f"{name} is {value}; it must be from {CAPS[0]} to {CAPS[1]:,.0f}, or 0"
                )
        if not SMALLEST <= self.eps <= CAPS[1]:
            raise CheckpointError(
                f"eps is {self.eps}; it must be from {SMALLEST:.2g} to {CAPS[1]:,.0f}"
            )
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 0):
            raise CheckpointError(
                f"rope_theta is {self.rope_theta}; it must be positive and finite"
            )
        self._check_layers()

    def _check_groups(self) -> None:
        """Refuse groups of experts that cannot be."""
        groups, kept = self.expert_groups, self.chosen_groups
        if (groups, kept) != (1, 1):
            size = self.experts // max(groups, 1)
            uneven = groups < 2 or self.experts % groups or size < 2
            if uneven or not 1 <= kept <= groups or kept * size < self.experts_per_token:
                raise CheckpointError(
                    f"{kept} of {groups} groups of {self.experts} experts for "
                    f"{self.experts_per_token} of them; groups are of two or more, equal, and "
                    "those chosen have as many experts"
                )
        others = (self.shares_of_all, self.input_shares, self.expert_bias, self.experts == 1)
        if self.sigmoid_scores and any(others):
            raise CheckpointError(
                "sigmoids that experts are chosen by are their shares too, of several experts; no "
                "other shares go with them"
            )

    def _check_latent(self) -> None:
        """Refuse sizes of latents that cannot be, and what no kernel computes beside them."""
        if self.latent is None:
            return
        a = self.latent
        others = (self.head_norms, self.wide_norms, self.qkv_bias, not self.pre_norms)
        if self.kv_heads != self.heads or any(others) or self.second_rope is not None:
            raise CheckpointError(
                "latent attention beside shared keys, norms of heads, biases, another rotary table "
                "or no norm before it has no kernels; every head has a key of its own"
            )
        sizes = (a.key_value, a.rope, a.value, self.head_dim - a.rope)
        if min(sizes) < 1 or max(*sizes, a.query) >= MAX_SIZE or a.query < 0 or a.rope % 2:
            raise CheckpointError(
                f"sizes of latent attention are {a} in heads of {self.head_dim}; they must be "
                "positive, and what turns even"
            )
        if a.value > self.head_dim:
            raise CheckpointError(
                f"values of {a.value} elements are longer than keys of {self.head_dim}, which no "
                "kernel takes; use another model"
            )

    def _check_layers(self) -> None:
        """Refuse layers that are too few or too many, or name what the model does not have."""
        if self.layer_kinds and len(self.layer_kinds) != self.layers:
            raise CheckpointError(
                f"kinds of {len(self.layer_kinds)} layers are given, but there are {self.layers}; "
                "name one for each"
            )
        if self.sliding_window < 0:
            raise CheckpointError(
                f"sliding_window is {self.sliding_window}; it must be a number of positions"
            )
        if not self.sliding_window and any(kind.sliding for kind in self.layer_kinds):
            raise CheckpointError(
                "a layer has a sliding window, but sliding_window is not given; say how many "
                "positions it has"
            )
        if self.second_rope is None and any(kind.second_rope for kind in self.layer_kinds):
            raise CheckpointError(
                "a layer has the second rotary table, but there is one alone; give both"
            )
        dense = any(kind.dense for kind in self.layer_kinds)
        if dense != (self.dense_ffn > 0) or (dense and (self.experts == 1 or self.expert_bias)):
            raise CheckpointError(
                f"layers without experts {dense}, of {self.dense_ffn} elements, beside "
                f"{self.experts} experts; they need a size, and others that have experts without "
                "biases"
            )

    def kind_of(self, layer: int) -> LayerKind:
        """What is special about a layer."""
        return self.layer_kinds[layer] if self.layer_kinds else PLAIN_LAYER

    @property
    def rope_dim(self) -> int:
        """Elements of a head that turn."""
        return self.head_dim if self.latent is None else self.latent.rope

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The rotary tables, one or two."""
        first = Rope(self.rope_theta, self.rope_scaling)
        return (first,) if self.second_rope is None else (first, self.second_rope)

    @property
    def plain(self) -> bool:
        """True for what Llama computes: nothing of what other families add."""
        special = (
            self.head_norms,
            self.unit_gain,
            self.scaled_embedding,
            self.experts > 1,
            self.sinks,
            self.qkv_bias,
            self.o_bias,
            self.layer_kinds != (),
            not self.pre_norms,
            self.post_norms,
            self.wide_norms,
            self.query_scale,
            self.score_cap,
            self.logit_cap,
            self.embedding_factor != 1,
            self.residual_factor != 1,
            self.logit_factor != 1,
            self.ropes[0].size != 1,
            self.latent is not None,
        )
        return self.activation == SILU and not any(special)

    @property
    def parameters(self) -> int:
        """Number of stored parameters, a tied embedding counted once."""
        return sum(math.prod(shape) for shape in tensor_shapes(self).values())


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor a checkpoint of this configuration must have.

    Matrices are [output, input], as Hugging Face stores them.
    """
    h = config.hidden_size
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab, h)}
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}"
        names = norm_names(config, layer)
        shapes.update({name: (h,) for name in names.attention if name})
        if config.latent is None:
            shapes[f"{prefix}.self_attn.q_proj.weight"] = (q, h)
            shapes[f"{prefix}.self_attn.k_proj.weight"] = (kv, h)
            shapes[f"{prefix}.self_attn.v_proj.weight"] = (kv, h)
            shapes[f"{prefix}.self_attn.o_proj.weight"] = (h, q)
        else:
            shapes.update(_latent_shapes(config, config.latent, latent_names(layer)))
        if config.qkv_bias:
            shapes[f"{prefix}.self_attn.q_proj.bias"] = (q,)
            shapes[f"{prefix}.self_attn.k_proj.bias"] = (kv,)
            shapes[f"{prefix}.self_attn.v_proj.bias"] = (kv,)
        if config.o_bias:
            shapes[f"{prefix}.self_attn.o_proj.bias"] = (h,)
        if config.head_norms and config.head_gains:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (config.head_dim,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (config.head_dim,)
        if config.wide_norms:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (q,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (kv,)
        shapes.update({name: (h,) for name in names.ffn if name})
        if config.sinks:
            shapes[f"{prefix}.self_attn.sinks"] = (config.heads,)
        dense = config.kind_of(layer).dense
        if config.experts > 1 and not dense:
            shapes[router_name(config, layer)] = (config.experts, h)
        if config.shared_gate and not dense:
            shapes[shared_gate_name(layer)] = (1, h)
        if config.expert_bias or (config.sigmoid_scores and not dense):
            shapes[router_bias_name(config, layer)] = (config.experts,)
        f = config.dense_ffn if dense else config.ffn
        for gate, up, down in ffn_names(config, layer):
            shapes[gate] = shapes[up] = (f, h)
            shapes[down] = (h, f)
            if config.expert_bias:
                shapes[bias_name(gate)] = shapes[bias_name(up)] = (f,)
                shapes[bias_name(down)] = (h,)
    shapes["model.norm.weight"] = (h,)
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab, h)
    return shapes


@dataclass(frozen=True)
class LatentNames:
    """Tensors of a layer's latent attention: ``queries`` where they are made of x."""

    queries: str
    query_down: str
    query_norm: str
    query_up: str
    down: str
    """Of keys and values: the latent's rows, then those of the shared key."""
    norm: str
    up: str
    """By head: the rows of its key, then those of its value."""
    o: str


def latent_names(layer: int) -> LatentNames:
    """The names of the tensors of a layer's latent attention."""
    of_keys = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")
    names = ("q_proj", "q_a_proj", "q_a_layernorm", "q_b_proj", *of_keys, "o_proj")
    return LatentNames(*(f"model.layers.{layer}.self_attn.{name}.weight" for name in names))


def _latent_shapes(
    config: ModelConfig, a: LatentAttention, names: LatentNames
) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a layer's latent attention."""
    h, q = config.hidden_size, config.heads * config.head_dim
    made = config.heads * (config.head_dim - a.rope + a.value)
    shapes: dict[str, tuple[int, ...]] = {names.queries: (q, h)}
    if a.query:
        shapes = {names.query_down: (a.query, h), names.query_norm: (a.query,)}
        shapes[names.query_up] = (q, a.query)
    shapes |= {names.down: (a.key_value + a.rope, h), names.norm: (a.key_value,)}
    return shapes | {names.up: (made, a.key_value), names.o: (h, config.heads * a.value)}


@dataclass(frozen=True)
class NormNames:
    """Gains of a layer's norms: (before, after) its attention and its FFN; None: no norm."""

    attention: tuple[str | None, str | None]
    ffn: tuple[str | None, str | None]


def norm_names(config: ModelConfig, layer: int) -> NormNames:
    """The names of a layer's gains over hidden_size.

    A norm called after the attention is the FFN's, unless there are norms after the blocks.
    """
    prefix = f"model.layers.{layer}"
    first = f"{prefix}.input_layernorm.weight" if config.pre_norms else None
    between = f"{prefix}.post_attention_layernorm.weight"
    if not config.post_norms:
        return NormNames((first, None), (between if config.pre_norms else None, None))
    second = f"{prefix}.pre_feedforward_layernorm.weight" if config.pre_norms else None
    return NormNames((first, between), (second, f"{prefix}.post_feedforward_layernorm.weight"))


def ffn_names(config: ModelConfig, layer: int) -> list[tuple[str, str, str]]:
    """(gate, up, down) of a layer's FFN, or of each of its experts, the shared ones last."""
    prefix = f"model.layers.{layer}"
    if config.experts == 1 or config.kind_of(layer).dense:
        mlp = f"{prefix}.mlp"
        return [(f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight", f"{mlp}.down_proj.weight")]
    each = [f"{prefix}.{_experts_of(config)}.experts.{e}" for e in range(config.experts)]
    each += [f"{prefix}.mlp.shared_expert.{part}" for part in range(config.shared_experts)]
    own = ("w1", "w3", "w2")
    if _experts_of(config) == "mlp":
        own = ("gate_proj", "up_proj", "down_proj")
    return [(f"{e}.{own[0]}.weight", f"{e}.{own[1]}.weight", f"{e}.{own[2]}.weight") for e in each]


def router_name(config: ModelConfig, layer: int) -> str:
    """The matrix of a layer's router."""
    name = "router" if config.expert_bias else "gate"
    return f"model.layers.{layer}.{_experts_of(config)}.{name}.weight"


def router_bias_name(config: ModelConfig, layer: int) -> str:
    """What is added to a layer's logits, or to the sigmoids that its experts are chosen by."""
    if config.sigmoid_scores:
        return router_name(config, layer).removesuffix("weight") + "e_score_correction_bias"
    return bias_name(router_name(config, layer))


def shared_gate_name(layer: int) -> str:
    """The matrix, of one row, whose sigmoid the shared experts are multiplied by."""
    return f"model.layers.{layer}.mlp.shared_expert_gate.weight"


def bias_name(weight: str) -> str:
    """The bias that belongs to a matrix."""
    return weight.removesuffix("weight") + "bias"


def _experts_of(config: ModelConfig) -> str:
    """What a layer's experts are called: as Qwen's and gpt-oss's where heads are normed, experts
    have biases or some are shared, else as Mixtral's.
    """
    own = config.head_norms or config.expert_bias or config.shared_experts or config.latent
    own = own or config.sigmoid_scores
    return "mlp" if own else "block_sparse_moe"
