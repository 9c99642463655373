"""What a decoder-only model weighs: parameters, KV cache and arithmetic, from its shape alone.

For estimates of models that nobody has to have at hand.  Shapes are those of the published
``config.json`` files; the shipped ``target`` and ``draft`` are read from theirs.  This module
counts; it never opens a tensor, and it knows nothing of machines or of time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from programs.models.config import LatentAttention, ModelConfig, routable
from programs.models.families import read_config
from programs.models.tensors import CheckpointError

__all__ = [
    "ARCHITECTURES",
    "SHIPPED",
    "Architecture",
    "LatentAttention",
    "missing_kernels",
    "shape_of",
    "shipped_model",
]


@dataclass(frozen=True)
class Architecture:
    """The shape of a model; sizes count elements, heads, layers or experts."""

    name: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    """Intermediate size, of one expert where there are several."""
    vocab: int
    experts: int = 1
    experts_per_token: int = 1
    tied: bool = False
    """The output head is the token embedding."""
    latent: LatentAttention | None = None
    """Multi-head latent attention instead of a key and a value per head; head_dim are then the
    elements of a head's key that are made from the latent.
    """
    routed_factor: float = 1.0
    """What the chosen experts' results are multiplied by."""
    expert_groups: int = 1
    """Groups of experts, of which the best ``chosen_groups`` are chosen before experts are."""
    chosen_groups: int = 1
    sigmoid_scores: bool = False
    """Experts are chosen by the sigmoids of their logits and a bias, which are their shares too."""
    shared_experts: int = 0
    """Experts of size ``ffn`` that every token passes, beside the chosen ones."""
    input_shares: bool = False
    """What chosen experts take is multiplied by a sigmoid, as in Llama 4."""
    plain_every: int = 0
    """Every so many layers one has neither rotary positions nor norms of heads; 0: none has."""
    head_gains: bool = True
    """The norms of heads have gains."""
    most_positions: int = 0
    """Positions up to which there are kernels for its attention; 0: any."""
    shared_gate: bool = False
    """The shared ones are multiplied by the sigmoid of a product of their own, as in Qwen2-MoE."""
    shares_of_all: bool = False
    """Experts' shares are those of the softmax over all of them."""
    dense_layers: int = 0
    """Layers, of a named model the first, with one network of ``dense_ffn`` instead of experts."""
    dense_ffn: int = 0
    gated: bool = True
    """SwiGLU with three matrices; otherwise two, as in OPT."""
    biases: bool = False
    """Biases on every projection and norm, as in OPT."""
    learned_positions: int = 0
    """Rows of a learned table of positions; 0 for rotary models."""
    head_norms: bool = False
    """A gain over head_dim for queries and one for keys in each layer, as in Qwen3."""
    wide_norms: bool = False
    """Gains over all query heads and over all key heads in each layer, as in OLMo-2."""
    block_norms: int = 2
    """Gains over hidden_size in each layer."""
    gemma: bool = False
    """As in Gemma: GeGLU (tanh form), gains of 1 + what is stored, scaled embeddings."""
    qkv_bias: bool = False
    """Biases of queries, keys and values, as in Qwen2."""
    o_bias: bool = False
    """A bias of the attention's output."""
    sinks: bool = False
    """A logit of every query head that takes a share of its softmax, as in gpt-oss."""
    expert_bias: bool = False
    """Biases of the router and of every expert's matrices, cut gates, as in gpt-oss."""
    window: int = 0
    """Positions that every other layer attends to, the first layer among them; 0: there is none."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            least = 0 if f.default == 0 else 1
            if type(value) is int and value < least:
                raise CheckpointError(f"{self.name}: {f.name} is {value}; it is at least {least}")
        if self.heads % self.kv_heads:
            raise CheckpointError(
                f"{self.name}: {self.heads} heads cannot share {self.kv_heads} key/value heads "
                "evenly; the number of heads must be a multiple"
            )
        if self.experts_per_token > self.experts:
            raise CheckpointError(
                f"{self.name}: {self.experts_per_token} experts per token of {self.experts}; "
                "a token cannot choose more experts than there are"
            )
        if self.dense_layers > self.layers:
            raise CheckpointError(
                f"{self.name}: {self.dense_layers} dense layers of {self.layers}; "
                "there cannot be more of them than layers"
            )

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's attention projections (biases not counted)."""
        h, q = self.hidden_size, self.heads * self.head_dim
        if self.latent is None:
            return h * (q + 2 * self.kv_heads * self.head_dim) + q * h
        a = self.latent
        turned, values = q + self.heads * a.rope, self.heads * a.value
        queries = a.query * (h + turned) if a.query else h * turned
        return queries + h * (a.key_value + a.rope) + a.key_value * (q + values) + values * h

    def _network(self, ffn: int) -> int:
        return (3 if self.gated else 2) * self.hidden_size * ffn

    def _layer_extras(self) -> int:
        """Elements of one layer outside its matrices: norms and biases."""
        h, q, kv = self.hidden_size, self.heads * self.head_dim, self.kv_heads * self.head_dim
        extras = self.block_norms * h + (
            2 * self.head_dim if self.head_norms and self.head_gains else 0
        )
        extras += q + kv if self.wide_norms else 0
        if self.latent is not None:
            extras += self.latent.query + self.latent.key_value
        extras += (q + 2 * kv) * self.qkv_bias + h * self.o_bias + self.heads * self.sinks
        if self.biases:
            extras += 2 * h + (q + 2 * kv + h) + (self.ffn * (2 if self.gated else 1) + h)
        return extras

    def _body(self, experts: float) -> float:
        """Elements of all layers and the last norm if ``experts`` of each layer's are counted."""
        routed = self.layers - self.dense_layers
        router = (self.hidden_size + self.expert_bias) * self.experts if self.experts > 1 else 0
        router += self.hidden_size * self.shared_gate
        one = self._network(self.ffn) + (2 * self.ffn + self.hidden_size) * self.expert_bias
        return (
            self.layers * (self.attention_parameters + self._layer_extras())
            + self.dense_layers * self._network(self.dense_ffn)
            + routed * (router + (experts + self.shared_experts) * one)
            + self.hidden_size * (2 if self.biases else 1)
        )

    @property
    def embedding_parameters(self) -> int:
        """Elements of the token embedding, which are also those of the output head."""
        return self.vocab * self.hidden_size

    def _tables(self) -> int:
        copies = 1 if self.tied else 2
        return copies * self.embedding_parameters + self.learned_positions * self.hidden_size

    @property
    def parameters(self) -> int:
        """Stored parameters, a tied embedding counted once."""
        return int(self._body(self.experts)) + self._tables()

    @property
    def active_parameters(self) -> int:
        """Parameters of the model one token meets: all but the experts it does not choose."""
        return int(self._body(self.experts_per_token)) + self._tables()

    def parameters_read(self, tokens: int) -> float:
        """Expected parameters that a pass over ``tokens`` positions reads, each counted once.

        All layers and the output head; of E experts, k chosen uniformly per token,
        E (1 - (1 - k/E)^tokens).  A look-up in the embedding is not counted.
        """
        missed = (1 - self.experts_per_token / self.experts) ** tokens
        return self._body(self.experts * (1 - missed)) + self.embedding_parameters

    def kv_bytes_per_token(self, bytes_per_value: float = 2) -> int:
        """Bytes one position occupies in the KV cache of all layers.

        2 x layers x kv_heads x head_dim values; with latent attention layers x (latent + rope).
        """
        values = 2 * self.kv_heads * self.head_dim
        if self.latent is not None:
            values = self.latent.key_value + self.latent.rope
        return round(self.layers * values * bytes_per_value)

    @property
    def linear_flops_per_token(self) -> int:
        """Operations of one token in all layers' matrices: 2 per active weight; no output head."""
        return 2 * int(self._body(self.experts_per_token))

    @property
    def head_flops(self) -> int:
        """Operations of one token's logits: 2 per element of the output head."""
        return 2 * self.embedding_parameters

    def attention_flops(self, context: float, *, expanded: bool = False) -> float:
        """Operations of one token's scores and weighted sum over ``context`` positions, all layers.

        4 x layers x heads x head_dim x context.  Latent attention works on the latents as they
        lie in the cache: 2 (latent + rope) + 2 latent per head and position; ``expanded``: keys
        and values are first made from them, as prefill does: 2 (head_dim + rope) + 2 value.
        """
        keys = values = self.head_dim
        if self.latent is not None:
            a = self.latent
            keys = (self.head_dim if expanded else a.key_value) + a.rope
            values = a.value if expanded else a.key_value
        return 2.0 * self.layers * self.heads * (keys + values) * context

    def flops_per_token(self, context: float) -> float:
        """Operations (multiply and add each one) to generate one token after ``context`` positions.

        Matrices, output head and attention as in decoding.
        """
        return self.linear_flops_per_token + self.head_flops + self.attention_flops(context)


_CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
SHIPPED = ("target", "draft")
"""Models whose weights come with the package."""


def shipped_model(name: str = "target") -> Path:
    """The directory of a checkpoint that comes with the package, one of ``SHIPPED``."""
    return _CHECKPOINTS / name


def shape_of(name: str, c: ModelConfig) -> Architecture:
    """The shape of a model of configuration ``c``."""
    return Architecture(
        name,
        c.layers,
        c.hidden_size,
        c.heads,
        c.kv_heads,
        c.head_dim if c.latent is None else c.head_dim - c.latent.rope,
        c.ffn,
        c.vocab,
        c.experts,
        c.experts_per_token,
        c.tied,
        head_norms=c.head_norms,
        wide_norms=c.wide_norms,
        block_norms=2 * (c.pre_norms + c.post_norms),
        gemma=c.unit_gain,
        qkv_bias=c.qkv_bias,
        o_bias=c.o_bias,
        shared_experts=c.shared_experts,
        input_shares=c.input_shares,
        head_gains=c.head_gains,
        shared_gate=c.shared_gate,
        shares_of_all=c.shares_of_all,
        sinks=c.sinks,
        expert_bias=c.expert_bias,
        dense_layers=sum(kind.dense for kind in c.layer_kinds),
        dense_ffn=c.dense_ffn,
        latent=c.latent,
        routed_factor=c.routed_factor,
        expert_groups=c.expert_groups,
        chosen_groups=c.chosen_groups,
        sigmoid_scores=c.sigmoid_scores,
    )


def _gpt_oss(name: str, layers: int, experts: int) -> Architecture:
    return Architecture(
        name,
        layers,
        2880,
        64,
        8,
        64,
        2880,
        201088,
        experts,
        4,
        qkv_bias=True,
        o_bias=True,
        sinks=True,
        expert_bias=True,
        window=128,
    )


def _with_shared_experts() -> tuple[Architecture, ...]:
    """Models whose tokens all take some experts beside those that are chosen."""
    return (
        Architecture(
            "deepseek-v3",
            61,
            7168,
            128,
            128,
            128,
            2048,
            129280,
            experts=256,
            experts_per_token=8,
            latent=LatentAttention(),
            shared_experts=1,
            dense_layers=3,
            dense_ffn=18432,
            routed_factor=2.5,
            expert_groups=8,
            chosen_groups=4,
            sigmoid_scores=True,
        ),
        Architecture(
            "deepseek-v2-lite",
            27,
            2048,
            16,
            16,
            128,
            1408,
            102400,
            experts=64,
            experts_per_token=6,
            latent=LatentAttention(query=0),
            shares_of_all=True,
            shared_experts=2,
            dense_layers=1,
            dense_ffn=10944,
        ),
        Architecture(
            "qwen1.5-moe-a2.7b",
            24,
            2048,
            16,
            16,
            128,
            1408,
            151936,
            experts=60,
            experts_per_token=4,
            shared_experts=4,
            shared_gate=True,
            shares_of_all=True,
            qkv_bias=True,
        ),
        Architecture(
            "llama-4-scout",
            48,
            5120,
            40,
            8,
            128,
            8192,
            202048,
            experts=16,
            experts_per_token=1,
            shared_experts=1,
            input_shares=True,
            plain_every=4,
            head_norms=True,
            head_gains=False,
            most_positions=8191,
        ),
    )


def _table() -> dict[str, Architecture]:
    rows = (
        Architecture("llama-2-7b", 32, 4096, 32, 32, 128, 11008, 32000),
        Architecture("llama-2-13b", 40, 5120, 40, 40, 128, 13824, 32000),
        Architecture("llama-2-70b", 80, 8192, 64, 8, 128, 28672, 32000),
        Architecture("llama-3-8b", 32, 4096, 32, 8, 128, 14336, 128256),
        Architecture("llama-3-70b", 80, 8192, 64, 8, 128, 28672, 128256),
        Architecture("llama-3-405b", 126, 16384, 128, 8, 128, 53248, 128256),
        Architecture("mistral-7b", 32, 4096, 32, 8, 128, 14336, 32000),
        Architecture(
            "mixtral-8x7b", 32, 4096, 32, 8, 128, 14336, 32000, experts=8, experts_per_token=2
        ),
        Architecture("qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936, head_norms=True),
        Architecture(
            "qwen3-30b-a3b",
            48,
            2048,
            32,
            4,
            128,
            768,
            151936,
            experts=128,
            experts_per_token=8,
            head_norms=True,
        ),
        Architecture(
            "qwen3-235b",
            94,
            4096,
            64,
            4,
            128,
            1536,
            151936,
            experts=128,
            experts_per_token=8,
            head_norms=True,
        ),
        Architecture(
            "opt-66b",
            64,
            9216,
            72,
            72,
            128,
            36864,
            50272,
            tied=True,
            gated=False,
            biases=True,
            learned_positions=2050,
        ),
        *_with_shared_experts(),
        _gpt_oss("gpt-oss-20b", 24, 32),
        _gpt_oss("gpt-oss-120b", 36, 128),
        Architecture("gemma-2b", 18, 2048, 8, 1, 256, 16384, 256000, tied=True, gemma=True),
        Architecture("gemma-7b", 28, 3072, 16, 16, 256, 24576, 256000, tied=True, gemma=True),
        Architecture("tinyllama-1.1b", 22, 2048, 32, 4, 64, 5632, 32000),
        Architecture("smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152, tied=True),
        *(shape_of(name, read_config(shipped_model(name))) for name in SHIPPED),
    )
    return {row.name: row for row in rows}


#: Models by name.  Shapes: each model's published config.json; target and draft are shipped.
ARCHITECTURES: dict[str, Architecture] = _table()


def missing_kernels(shape: Architecture) -> list[str]:
    """What an architecture has that no kernel computes."""
    known = {
        f"routing to {shape.experts_per_token} of {shape.experts} experts": (
            shape.experts > 1 and not routable(shape.experts, shape.experts_per_token)
        ),
        "an FFN without a gate": not shape.gated,
        "biases": shape.biases,
        "learned positions": shape.learned_positions > 0,
    }
    return [name for name, present in known.items() if present]
