"""Compare this directory's Llama with ``transformers.LlamaForCausalLM`` on the saved weights.

Both read the same checkpoint, widen it to float32 and run the first 512 tokens of the held-out
sample.  Needs ``transformers`` besides the packages in ``requirements.txt``.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from programs.checkpoints.corpus import encode
from programs.checkpoints.llama import MAX_POSITIONS, load_checkpoint

HERE = Path(__file__).resolve().parent


@torch.no_grad()
def main() -> None:
    """Print the largest logit difference and the token agreement for both checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, default=HERE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = (args.checkpoints / "heldout.txt").read_text(encoding="utf-8")
    for name in ("target", "draft"):
        directory = args.checkpoints / name
        stream = encode(Tokenizer.from_file(str(directory / "tokenizer.json")), [text])
        auto_ids = AutoTokenizer.from_pretrained(directory)(text, add_special_tokens=False)
        same_ids = auto_ids["input_ids"] == stream[1:].tolist()
        tokens = torch.from_numpy(stream[:MAX_POSITIONS]).unsqueeze(0)
        ours = load_checkpoint(directory)(tokens)
        reference = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
        theirs = reference(tokens).logits
        difference = (ours - theirs).abs().max().item()
        agreement = (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
        print(
            f"{name:<6} largest logit difference {difference:.2e} "
            f"(logits up to {theirs.abs().max().item():.1f}), "
            f"argmax agreement {agreement:.4f}, same token ids {same_ids}"
        )


if __name__ == "__main__":
    main()
