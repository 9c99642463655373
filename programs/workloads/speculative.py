"""Speculative decoding from Python: the shipped draft on an LPU, the shipped target on a GPU.

    python -m programs.workloads.speculative

Prints what ``lpu experiment speculative`` measures, for gamma 1 to 8.
"""

from __future__ import annotations

from cluster.commands.options import shipped_model
from cluster.experiments.speculative import run
from cluster.experiments.speculative_settings import Settings
from programs.checkpoint import load_checkpoint

PROMPTS = ("def ", "class ", "import ")


def main() -> None:
    """One line per gamma and way of drafting."""
    tokenizer = load_checkpoint(shipped_model()).tokenizer
    prompts = [tokenizer.encode(text).ids for text in PROMPTS]
    for gamma in range(1, 9):
        result = run(prompts, Settings(gamma=gamma))
        for row in result["rows"]:
            if row["gamma"]:
                print(
                    f"gamma {gamma}  {row['variant']:10}  {row['tokens_per_step']:.2f} tokens per "
                    f"step (formula {row['formula_tokens_per_step'] or 1:.2f})  "
                    f"{row['speedup']:.2f} x GPU-only  lossless: {row['lossless']}"
                )


if __name__ == "__main__":
    main()
