"""A compact Llama decoder in torch whose parameters carry the Hugging Face names.

The module tree mirrors ``LlamaForCausalLM`` so that ``state_dict()`` is the checkpoint.  The
rotary embedding rotates the first half of each head against its second half, and the output
head is the token embedding (tied), so no ``lm_head.weight`` is stored.

Shape letters: B sequences, T positions, D hidden size, H query heads, K key/value heads,
E head dimension, F feed-forward size, V vocabulary.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

RMS_NORM_EPS = 1e-5
ROPE_THETA = 10000.0
MAX_POSITIONS = 512
INIT_STD = 0.02


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of one Llama model; every field counts elements, heads or layers."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    head_dim: int = 32

    def hf_config(self, eot_id: int) -> dict[str, Any]:
        """Return the ``config.json`` mapping; ``eot_id`` serves as both BOS and EOS."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": eot_id,
            "eos_token_id": eot_id,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": INIT_STD,
            "intermediate_size": self.ffn,
            "max_position_embeddings": MAX_POSITIONS,
            "mlp_bias": False,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": RMS_NORM_EPS,
            "rope_scaling": None,
            "rope_theta": ROPE_THETA,
            "tie_word_embeddings": True,
            "torch_dtype": "float16",
            "use_cache": True,
            "vocab_size": self.vocab,
        }

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> "LlamaShape":
        """Read the sizes back from a ``config.json`` mapping."""
        return cls(
            hidden=config["hidden_size"],
            ffn=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            vocab=config["vocab_size"],
            head_dim=config["head_dim"],
        )


def rope_tables(positions: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Return the cosine and sine tables, each [positions, head_dim / 2], angles in radians."""
    pair = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), ROPE_THETA**-pair)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to ``x`` [B, heads, T, E] with tables [T, E / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis with a learned gain [D]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [..., D]."""
        return functional.rms_norm(x, self.weight.shape, self.weight, RMS_NORM_EPS)


class Attention(nn.Module):
    """Causal grouped-query self-attention."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend within each sequence of ``x`` [B, T, D]; tables are [T, E / 2]."""
        b, t, _ = x.shape
        group = self.heads // self.kv_heads
        q = self.q_proj(x).view(b, t, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin).repeat_interleave(group, dim=1)
        v = v.repeat_interleave(group, dim=1)
        mixed = functional.scaled_dot_product_attention(
            q, k.to(q.dtype), v.to(q.dtype), is_causal=True
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(b, t, -1))
        return out


class FeedForward(nn.Module):
    """SwiGLU feed-forward block D -> F -> D."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.down_proj = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [B, T, D] to [B, T, D]."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map the residual stream ``x`` [B, T, D] to [B, T, D]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """Embedding, decoder layers and the final norm (the ``model.`` prefix of a checkpoint)."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden)


class Llama(nn.Module):
    """Llama with a tied output head."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        cos, sin = rope_tables(MAX_POSITIONS, shape.head_dim)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the matrices from N(0, 0.02^2), residual outputs scaled by 1/sqrt(2 layers)."""
        residual_std = INIT_STD / (2 * self.shape.layers) ** 0.5
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.ndim == 2:
                    last = name.endswith(("o_proj.weight", "down_proj.weight"))
                    weight.normal_(0.0, residual_std if last else INIT_STD, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return next-token logits [B, T, V] for ``tokens`` [B, T] (T <= 512)."""
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return functional.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def parameter_count(self) -> int:
        """Return the number of stored parameters (the tied embedding counted once)."""
        return sum(weight.numel() for weight in self.parameters())


def _replace_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` through a rename, so that a reader never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def save_checkpoint(model: Llama, directory: Path, eot_id: int, tokenizer_json: str) -> None:
    """Write float16 weights, the configuration and the tokenizer in Hugging Face layout."""
    directory.mkdir(parents=True, exist_ok=True)
    config = model.shape.hf_config(eot_id)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_POSITIONS,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    _replace_text(directory / "config.json", json.dumps(config, indent=2) + "\n")
    _replace_text(directory / "tokenizer.json", tokenizer_json)
    _replace_text(
        directory / "tokenizer_config.json", json.dumps(tokenizer_config, indent=2) + "\n"
    )
    weights = {
        name: weight.detach().to(torch.float16).contiguous()
        for name, weight in model.state_dict().items()
    }
    partial = directory / "model.safetensors.partial"
    save_file(weights, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    os.replace(partial, directory / "model.safetensors")


def load_checkpoint(directory: Path) -> Llama:
    """Load a saved checkpoint; the float16 weights are widened to float32 for computing."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8-sig"))
    model = Llama(LlamaShape.from_hf_config(config))
    weights = load_file(directory / "model.safetensors")
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model.eval()
