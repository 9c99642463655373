"""Train the target and draft Llama checkpoints on the Python standard library's source.

The run has two phases.  In the joint phase every step trains the target on the next-token loss
and, on the same batch, the draft on the target's detached logits.  In the distillation phase the
saved target is frozen and the draft alone goes on learning from it.  Each phase ends after its
number of steps; a wall-clock limit, if it would be reached first, speeds up the learning-rate
schedule instead of cutting it off.
"""

import argparse
import json
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from programs.checkpoints.corpus import (
    END_OF_TEXT_ID,
    SourceFile,
    Windows,
    encode,
    library_files,
    library_root,
    train_tokenizer,
)
from programs.checkpoints.evaluate import CONTEXT, measure
from programs.checkpoints.llama import (
    MAX_POSITIONS,
    Llama,
    LlamaShape,
    load_checkpoint,
    save_checkpoint,
)

VOCAB = 1024
TARGET = LlamaShape(hidden=256, ffn=704, layers=4, heads=8, kv_heads=4, vocab=VOCAB)
DRAFT = LlamaShape(hidden=128, ffn=352, layers=2, heads=4, kv_heads=2, vocab=VOCAB)

BATCH_TOKENS = 2048
LONG_CONTEXT_FROM = 0.8
"""Share of the joint phase after which windows have 512 tokens instead of 256."""
TARGET_PEAK_RATE = 2e-3
DRAFT_PEAK_RATE = 3e-3
WARM_UP = 0.02
FINAL_RATE_SHARE = 0.02
DISTILL_WEIGHT = 0.75
"""Weight of the divergence from the target; the next-token loss has the rest."""
WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0
HELD_OUT_SAMPLE_BYTES = 40_000


@dataclass
class Phase:
    """Progress of one phase, measured in steps and bounded in seconds."""

    steps: int
    limit_s: float
    started: float
    done: int = 0

    def progress(self) -> float:
        """Return the finished share of the phase in [0, 1]."""
        elapsed = time.monotonic() - self.started
        return min(1.0, max(self.done / self.steps, elapsed / self.limit_s))


def rate_share(progress: float) -> float:
    """Return the learning rate as a share of its peak: linear warm-up, then a cosine."""
    if progress < WARM_UP:
        return max(progress, WARM_UP / 50) / WARM_UP
    cosine = 0.5 + 0.5 * math.cos(math.pi * (progress - WARM_UP) / (1.0 - WARM_UP))
    return FINAL_RATE_SHARE + (1.0 - FINAL_RATE_SHARE) * cosine


class Learner:
    """One model with its optimizer."""

    def __init__(self, shape: LlamaShape, peak_rate: float, seed: int) -> None:
        self.model = Llama(shape)
        self.model.initialise(torch.Generator().manual_seed(seed))
        matrices = [weight for weight in self.model.parameters() if weight.ndim == 2]
        gains = [weight for weight in self.model.parameters() if weight.ndim == 1]
        self.peak_rate = peak_rate
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": WEIGHT_DECAY},
                {"params": gains, "weight_decay": 0.0},
            ],
            lr=peak_rate,
            betas=(0.9, 0.98),
            fused=True,
        )

    def step(self, loss: Tensor, progress: float) -> None:
        """Descend ``loss`` (scalar, nats per token) once."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak_rate * rate_share(progress)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()


def logits_of(model: Llama, inputs: Tensor) -> Tensor:
    """Return float32 logits [B * T, V], computed under bfloat16 autocast."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits: Tensor = model(inputs)
    return logits.float().flatten(0, 1)


def draft_loss(draft_logits: Tensor, target_logits: Tensor, labels: Tensor) -> Tensor:
    """Return the distillation loss (scalar, nats per token) of logits [N, V], labels [N]."""
    draft_log = functional.log_softmax(draft_logits, dim=-1)
    target_log = functional.log_softmax(target_logits, dim=-1)
    divergence = functional.kl_div(draft_log, target_log, reduction="batchmean", log_target=True)
    return DISTILL_WEIGHT * divergence + (1.0 - DISTILL_WEIGHT) * functional.nll_loss(
        draft_log, labels
    )


class Trainer:
    """The two learners, their text and the snapshots on disk."""

    def __init__(self, args: argparse.Namespace, files: list[SourceFile]) -> None:
        self.out: Path = args.out
        self.snapshot_s: float = args.snapshot_minutes * 60.0
        train_texts = [file.text for file in files if not file.held_out]
        self.tokenizer: Tokenizer = train_tokenizer(train_texts, VOCAB)
        stream = encode(self.tokenizer, train_texts)
        self.held_out: NDArray[np.int64] = encode(
            self.tokenizer, [file.text for file in files if file.held_out]
        )
        self.windows = Windows(stream, MAX_POSITIONS, args.seed)
        self.target = Learner(TARGET, TARGET_PEAK_RATE, args.seed + 1)
        self.draft = Learner(DRAFT, DRAFT_PEAK_RATE, args.seed + 2)
        self.started = self.last_snapshot = time.monotonic()
        self.smooth: dict[str, float] = {}
        train_bytes = sum(len(text.encode("utf-8")) for text in train_texts)
        self.record: dict[str, float | int | str] = {
            "training_files": len(train_texts),
            "training_bytes": train_bytes,
            "training_stream_tokens": len(stream),
            "held_out_files": len(files) - len(train_texts),
            "held_out_stream_tokens": len(self.held_out),
            "batch_tokens": BATCH_TOKENS,
            "seed": args.seed,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(self.record), flush=True)

    def batch(self, context: int) -> tuple[Tensor, Tensor]:
        """Return inputs [B, context] and flat labels [B * context]."""
        inputs, labels = self.windows.batch(BATCH_TOKENS, context)
        return torch.from_numpy(inputs), torch.from_numpy(labels).flatten()

    def note(self, phase: str, step: int, **losses: Tensor) -> None:
        """Fold the losses into running means; print them now and then; take snapshots."""
        for name, loss in losses.items():
            previous = self.smooth.get(name, loss.item())
            self.smooth[name] = 0.98 * previous + 0.02 * loss.item()
        if step % 100 == 0:
            shown = " ".join(f"{name} {self.smooth[name]:.4f}" for name in losses)
            print(
                f"{phase} step {step} {time.monotonic() - self.started:.0f} s {shown}", flush=True
            )
        if time.monotonic() - self.last_snapshot > self.snapshot_s:
            self.save()

    def save(self) -> None:
        """Write both checkpoints and print their held-out figures."""
        text = self.tokenizer.to_str(pretty=False)
        save_checkpoint(self.target.model, self.out / "target", END_OF_TEXT_ID, text)
        save_checkpoint(self.draft.model, self.out / "draft", END_OF_TEXT_ID, text)
        result = measure(self.target.model, self.draft.model, self.held_out, CONTEXT)
        print(
            f"snapshot target {result.target_nats:.4f} draft {result.draft_nats:.4f} "
            f"nats/token, agreement {result.agreement:.4f}",
            flush=True,
        )
        self.last_snapshot = time.monotonic()

    def joint_phase(self, phase: Phase, draft_share: float) -> None:
        """Train both models; ``draft_share`` of the draft's schedule falls into this phase."""
        while (progress := phase.progress()) < 1.0:
            context = CONTEXT if progress < LONG_CONTEXT_FROM else MAX_POSITIONS
            inputs, labels = self.batch(context)
            target_logits = logits_of(self.target.model, inputs)
            target_loss = functional.cross_entropy(target_logits, labels)
            self.target.step(target_loss, progress)
            draft_logits = logits_of(self.draft.model, inputs)
            loss = draft_loss(draft_logits, target_logits.detach(), labels)
            self.draft.step(loss, progress * draft_share)
            phase.done += 1
            self.note("joint", phase.done, target=target_loss, draft=loss)
        self.save()
        self.target.model = load_checkpoint(self.out / "target")

    def distillation_phase(self, phase: Phase, draft_share: float) -> None:
        """Train the draft alone on the frozen target's logits."""
        while (progress := phase.progress()) < 1.0:
            inputs, labels = self.batch(MAX_POSITIONS)
            with torch.no_grad():
                target_logits = logits_of(self.target.model, inputs)
            loss = draft_loss(logits_of(self.draft.model, inputs), target_logits, labels)
            self.draft.step(loss, draft_share + (1.0 - draft_share) * progress)
            phase.done += 1
            self.note("distil", phase.done, draft=loss)
        self.save()


def write_held_out_sample(files: list[SourceFile], directory: Path) -> None:
    """Write the first held-out files, in name order, until the sample is long enough.

    The interpreter's own licence file, which covers the sample, is written next to it.
    """
    sample = ""
    for file in files:
        if file.held_out and len(sample.encode("utf-8")) < HELD_OUT_SAMPLE_BYTES:
            sample += file.text
    (directory / "heldout.txt").write_text(sample, encoding="utf-8")
    licence = library_root() / "LICENSE.txt"
    if licence.is_file():
        (directory / "heldout-LICENSE.txt").write_bytes(licence.read_bytes())


def main() -> None:
    """Parse the command line, train, and write the checkpoints and the training record."""
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).resolve().parent
    parser.add_argument("--out", type=Path, default=here, help="where target/ and draft/ go")
    parser.add_argument("--target-steps", type=int, default=5500)
    parser.add_argument("--target-minutes", type=float, default=40.0, help="wall-clock limit")
    parser.add_argument("--draft-steps", type=int, default=5000)
    parser.add_argument("--draft-minutes", type=float, default=20.0, help="wall-clock limit")
    parser.add_argument("--snapshot-minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    files = library_files()
    args.out.mkdir(parents=True, exist_ok=True)
    write_held_out_sample(files, args.out)
    trainer = Trainer(args, files)
    draft_share = args.target_steps / (args.target_steps + args.draft_steps)

    joint = Phase(args.target_steps, args.target_minutes * 60.0, time.monotonic())
    trainer.joint_phase(joint, draft_share)
    joint_s = time.monotonic() - joint.started
    distil = Phase(args.draft_steps, args.draft_minutes * 60.0, time.monotonic())
    trainer.distillation_phase(distil, draft_share)
    trainer.record |= {
        "joint_steps": joint.done,
        "joint_tokens": joint.done * BATCH_TOKENS,
        "joint_seconds": round(joint_s, 1),
        "distillation_steps": distil.done,
        "distillation_tokens": distil.done * BATCH_TOKENS,
        "distillation_seconds": round(time.monotonic() - distil.started, 1),
    }
    record = json.dumps(trainer.record, indent=2)
    (args.out / "training.json").write_text(record + "\n", encoding="utf-8")
    print(record)


if __name__ == "__main__":
    main()
