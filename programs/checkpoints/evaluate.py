"""Measure the saved target and draft checkpoints, and print text that they generate.

The float16 weights are read from disk and widened to float32.  ``<|endoftext|>`` precedes the
text, which is then cut into consecutive windows of ``--context`` tokens; a window's first
prediction sees one token of context.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from programs.checkpoints.corpus import encode, library_files
from programs.checkpoints.llama import Llama, load_checkpoint

HERE = Path(__file__).resolve().parent
CONTEXT = 256
PROMPTS = ("def ", "class ", "import ", '    """Return ')


@dataclass(frozen=True)
class HeldOut:
    """What one pass over held-out text gives."""

    tokens: int
    """Predicted tokens."""
    target_nats: float
    """Mean cross-entropy of the target, nats per token."""
    draft_nats: float
    """Mean cross-entropy of the draft, nats per token."""
    agreement: float
    """Share of positions at which both models have the same most likely next token."""
    target_top1: float
    """Share of positions at which the target's most likely token is the true one."""
    draft_top1: float
    """Share of positions at which the draft's most likely token is the true one."""


@torch.no_grad()
def measure(target: Llama, draft: Llama, stream: NDArray[np.int64], context: int) -> HeldOut:
    """Run both models over ``stream`` [N] in consecutive windows of ``context`` tokens."""
    tokens = len(stream) - 1
    sums = np.zeros(5)
    for start in range(0, tokens, context):
        window = torch.from_numpy(stream[start : start + context + 1])
        inputs, labels = window[:-1].unsqueeze(0), window[1:]
        logits = [model(inputs).squeeze(0).float() for model in (target, draft)]
        best = [rows.argmax(dim=-1) for rows in logits]
        sums += [
            functional.cross_entropy(logits[0], labels, reduction="sum").item(),
            functional.cross_entropy(logits[1], labels, reduction="sum").item(),
            (best[0] == best[1]).sum().item(),
            (best[0] == labels).sum().item(),
            (best[1] == labels).sum().item(),
        ]
    mean = (sums / tokens).tolist()
    return HeldOut(tokens, *mean)


@torch.no_grad()
def generate(
    model: Llama, prompt: list[int], count: int, temperature: float = 0.0, seed: int = 0
) -> list[int]:
    """Return ``count`` tokens after ``prompt``: greedy at temperature 0, else seeded sampling."""
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    for _ in range(count):
        logits: Tensor = model(torch.tensor([tokens]))[0, -1]
        if temperature > 0.0:
            shares = torch.softmax(logits / temperature, dim=-1)
            tokens.append(int(torch.multinomial(shares, 1, generator=generator).item()))
        else:
            tokens.append(int(logits.argmax().item()))
    return tokens[len(prompt) :]


@torch.no_grad()
def greedy_path_agreement(
    target: Llama, draft: Llama, stream: NDArray[np.int64], prompts: int, length: int
) -> float:
    """Return the agreement along the target's own greedy continuations.

    ``prompts`` evenly spaced prompts of 32 tokens are taken from ``stream`` [N] and continued
    greedily by ``length`` tokens; the draft is then asked for each of those tokens in turn.
    """
    starts = np.linspace(0, len(stream) - 33, prompts).astype(int)
    tokens = torch.from_numpy(np.stack([stream[start : start + 32] for start in starts]))
    for _ in range(length):
        tokens = torch.cat((tokens, target(tokens)[:, -1:].argmax(dim=-1)), dim=1)
    guesses = draft(tokens[:, :-1]).argmax(dim=-1)[:, 31:]
    return float((guesses == tokens[:, 32:]).double().mean().item())


def print_measures(checkpoints: Path, text_path: Path, library: bool, context: int) -> None:
    """Print sizes, held-out losses and agreement as one line per figure."""
    target, draft = (load_checkpoint(checkpoints / name) for name in ("target", "draft"))
    tokenizer = Tokenizer.from_file(str(checkpoints / "target" / "tokenizer.json"))
    if library:
        texts = [file.text for file in library_files() if file.held_out]
    else:
        texts = [text_path.read_text(encoding="utf-8")]
    stream = encode(tokenizer, texts)
    text_bytes = sum(len(text.encode("utf-8")) for text in texts)
    result = measure(target, draft, stream, context)
    bits = result.tokens / math.log(2) / text_bytes
    print(f"text                     {'held-out library files' if library else text_path.name}")
    print(f"text bytes               {text_bytes}")
    print(f"predicted tokens         {result.tokens}")
    print(f"window (tokens)          {context}")
    for name, model, nats, top1 in (
        ("target", target, result.target_nats, result.target_top1),
        ("draft", draft, result.draft_nats, result.draft_top1),
    ):
        size = (checkpoints / name / "model.safetensors").stat().st_size
        print(f"{name:<6} parameters        {model.parameter_count()}")
        print(f"{name:<6} file bytes        {size}")
        print(f"{name:<6} loss (nats/token) {nats:.4f}")
        print(f"{name:<6} perplexity        {math.exp(nats):.3f}")
        print(f"{name:<6} bits per byte     {nats * bits:.4f}")
        print(f"{name:<6} top-1 accuracy    {top1:.4f}")
    print(f"greedy agreement, held-out text        {result.agreement:.4f}")
    path = greedy_path_agreement(target, draft, stream, prompts=64, length=64)
    print(f"greedy agreement, target's own text    {path:.4f}")


def print_samples(checkpoints: Path, count: int) -> None:
    """Print a greedy and a sampled continuation of every prompt by both models."""
    tokenizer = Tokenizer.from_file(str(checkpoints / "target" / "tokenizer.json"))
    for name in ("target", "draft"):
        model = load_checkpoint(checkpoints / name)
        for prompt in PROMPTS:
            ids = encode(tokenizer, [prompt]).tolist()
            for temperature in (0.0, 0.8):
                new = generate(model, ids, count, temperature, seed=7)
                print(f"--- {name}, temperature {temperature}, prompt {json.dumps(prompt)}")
                print(prompt + tokenizer.decode(new))


def main() -> None:
    """Parse the command line and print the figures or the samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, default=HERE)
    parser.add_argument("--text", type=Path, default=HERE / "heldout.txt")
    parser.add_argument(
        "--library", action="store_true", help="measure on every held-out library file instead"
    )
    parser.add_argument("--context", type=int, default=CONTEXT, help="window length in tokens")
    parser.add_argument("--samples", action="store_true", help="print generated text instead")
    parser.add_argument("--count", type=int, default=96, help="tokens per sample")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.samples:
        print_samples(args.checkpoints, args.count)
    else:
        print_measures(args.checkpoints, args.text, args.library, args.context)


if __name__ == "__main__":
    main()
