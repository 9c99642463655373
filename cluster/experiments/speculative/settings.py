"""What a speculative-decoding experiment is asked to do, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import InputError
from cluster.experiments.option_types import CYCLES_HELP, Gpu, Link, Seed
from cluster.option_checks import check_node, check_text
from cluster.option_types import ChipType

LPU_TOKENS, LPU_KV, GPU_DRAFT, LOOKUP = "lpu-tokens", "lpu-kv", "gpu-draft", "lookup"
GPU_ONLY, LPU_ONLY = "gpu-only", "lpu-only"
LPU_VERIFIED = "lpu-verified"

MODES = ("tokens", "kv")
DRAFTERS = ("lpu", "gpu", "lookup")
#: What a sweep covers, besides every link preset.
SWEEP_GAMMAS = tuple(range(1, 9))
SWEEP_TEMPERATURES = (0.0, 0.5, 1.0)
MOST_GAMMA = 64


@dataclass(frozen=True)
class SpeculativeSettings:
    """Drafts on LPUs, verified on GPUs; see ``speculative``.

    What is written:

    - prompt: the text to continue.  prompts: a file with one on each line, instead.
    - max_new_tokens: tokens per prompt, whatever end-of-text tokens come.
    - gamma: tokens drafted per step.  temperature: 0 is greedy.  seed: of everything drawn.
    - mode: what crosses the link: ``tokens``, or ``kv`` (tokens, and the target's KV).
    - drafter: ``lpu``, ``gpu`` or ``lookup`` (n-grams of the text itself).

    GPUs, which verify:

    - gpu: a preset or a TOML file.  gpu_tp: GPUs that share the target; time is that of one group.
    - concurrent: prompts under way at once; they share drafter, link and GPUs.
    - gpu_nodes: processes that compute the verification; several are Ray actors unless
      ``in_process``.
    - kill_after: GPU node 0 is ended after so many steps; None: never.
    - replace_lost: a GPU node starts for each one that ends.
    - link: between LPUs and GPUs, a preset or a TOML file.

    LPUs:

    - lpu_verify: the target on LPUs judges the proposals of the draft on other LPUs as well, all of
      a step together.
    - chips: that share the draft (and, for LPU-only, the target): 1, 2, 4 or 8; None: 1, or the
      fewest that hold a draft without weights.
    - chip: a preset or a TOML file.

    Models without weights:

    - alpha: the acceptance rate from 0 to 1 to draw from, instead of running the shipped models;
      None: it is measured.  Only with it:
    - lpu_cycles_per_token: cycles of one of the draft's tokens with host transfers; None: compiled,
      for the shipped draft in its longest context needed.
    - gpu_model, draft_model: shapes by name or of a ``config.json``.
    - prompt_tokens: length of each prompt.

    - sweep: every gamma to 8, link preset and temperature 0 to 1.

    Raises InputError, one line, for what cannot be.
    """

    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "def "
    prompts: Annotated[
        Path | None,
        typer.Option(help="A file with one prompt per line, instead.", show_default="none"),
    ] = None
    max_new_tokens: Annotated[int, typer.Option(help="Tokens per prompt.")] = 32
    gamma: Annotated[int, typer.Option(help="Tokens drafted per step.")] = 4
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0
    seed: Seed = 0
    mode: Annotated[
        str, typer.Option(help="What crosses the link: tokens, or kv (tokens and KV).")
    ] = "tokens"
    drafter: Annotated[
        str, typer.Option(help="lpu, gpu, or lookup (n-grams of the text itself).")
    ] = "lpu"
    gpu: Gpu = "h100"
    gpu_tp: Annotated[int, typer.Option(help="GPUs that share the target.")] = 1
    concurrent: Annotated[
        int, typer.Option(help="Prompts under way at once; they share drafter, link and GPUs.")
    ] = 1
    gpu_nodes: Annotated[
        int,
        typer.Option(
            help="Processes that compute the verification; several are actors. The time charged "
            "is that of one group of --gpu-tp GPUs."
        ),
    ] = 1
    in_process: Annotated[
        bool, typer.Option("--in-process", help="All GPU nodes in this process, without Ray.")
    ] = False
    kill_after: Annotated[
        int | None,
        typer.Option(help="End GPU node 0 after so many steps.", show_default="never"),
    ] = None
    replace_lost: Annotated[
        bool, typer.Option("--replace-lost", help="Start a GPU node for each one that ends.")
    ] = False
    link: Link = "pcie5-x16"
    lpu_verify: Annotated[
        bool,
        typer.Option(
            "--lpu-verify",
            help="Greedy drafts of LPUs verified by the target on LPUs, too, a step's together. "
            "With --sweep of --gamma alone, and in no plot.",
        ),
    ] = False
    chips: Annotated[
        int | None,
        typer.Option(
            help="LPUs that share a model: 1, 2, 4 or 8; of a --draft-model without weights those "
            "of its plan.",
            show_default="1, or as few as hold it",
        ),
    ] = None
    chip: ChipType = "groq-lpu-1"
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Acceptance rate to draw from, without running models.", show_default="measured"
        ),
    ] = None
    lpu_cycles_per_token: Annotated[
        int | None,
        typer.Option(help=f"With --alpha: {CYCLES_HELP}", show_default="the draft's, compiled"),
    ] = None
    gpu_model: Annotated[str, typer.Option(help="With --alpha: the target's shape.")] = "target"
    draft_model: Annotated[
        str,
        typer.Option(
            "--draft-model",
            "--lpu-model",
            help="With --alpha: the draft's shape; LPUs are charged the cycles of its plan.",
        ),
    ] = "draft"
    prompt_tokens: Annotated[int, typer.Option(help="With --alpha: length of the prompt.")] = 512
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Every gamma to 8, link preset and temperature 0 to 1.")
    ] = False

    def __post_init__(self) -> None:
        check_text("--prompt", self.prompt)
        if self.draft_model == "draft" and self.chips is not None:
            check_node(self.chips)
        for name, value, least, most in (
            ("--gamma", self.gamma, 1, MOST_GAMMA),
            ("--max-new-tokens", self.max_new_tokens, 2, 1_000_000),
            ("--gpu-nodes", self.gpu_nodes, 1, 256),
            ("--concurrent", self.concurrent, 1, 4096),
            ("--gpu-tp", self.gpu_tp, 1, 1024),
            ("--prompt-tokens", self.prompt_tokens, 1, 10_000_000),
            ("--seed", self.seed, 0, 2**63 - 1),
            ("--kill-after", self.kill_after, 0, 2**63 - 1),
            ("--lpu-cycles-per-token", self.lpu_cycles_per_token, 1, 2**62),
        ):
            if value is not None and not least <= value <= most:
                raise InputError(f"{name} {value}: use {least} to {most}")
        for name, text, choices in (
            ("--mode", self.mode, MODES),
            ("--drafter", self.drafter, DRAFTERS),
        ):
            if text not in choices:
                raise InputError(f"{name} {text}: use {' or '.join(choices)}")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise InputError(f"--temperature {self.temperature}: use a finite number, 0 or more")
        if self.lpu_verify and self.temperature > 0:
            raise InputError(
                f"--lpu-verify with --temperature {self.temperature:g}: it is greedy; use 0"
            )
        if self.lpu_verify:
            _refuse_long_drafts(self.gamma)
        if self.mode == "kv" and self.drafter != "lpu":
            raise InputError(
                f"--mode kv with --drafter {self.drafter}: nothing crosses a link there; use "
                "--drafter lpu or --mode tokens"
            )
        if self.alpha is None:
            _refuse_without_alpha(self)
        elif not 0 <= self.alpha <= 1:
            raise InputError(f"--alpha {self.alpha}: use a probability from 0 to 1")
        elif self.kill_after is not None or self.replace_lost:
            raise InputError(
                "--kill-after and --replace-lost with --alpha: no GPU node runs; leave one out"
            )
        elif self.lpu_verify:
            raise InputError("--lpu-verify with --alpha: no model runs; leave one out")
        elif self.drafter == "lookup":
            raise InputError("--alpha with --drafter lookup: use --drafter lpu or gpu")

    @property
    def variant(self) -> str:
        """The variant that the headline figures are of."""
        return {"lpu": f"lpu-{self.mode}", "gpu": GPU_DRAFT, "lookup": LOOKUP}[self.drafter]


def _refuse_long_drafts(gamma: int) -> None:
    """Refuse more drafts of a step than are verified together."""
    from programs.artifact import MOST_CHUNK  # who verifies nothing on LPUs waits for no import

    if gamma >= MOST_CHUNK:
        raise InputError(
            f"--gamma {gamma} with --lpu-verify: a launch takes {MOST_CHUNK} tokens, the "
            f"last one before the drafts among them; use --gamma {MOST_CHUNK - 1} or less"
        )


def _refuse_without_alpha(settings: SpeculativeSettings) -> None:
    if settings.gpu_model != "target" or settings.draft_model != "draft":
        raise InputError(
            "--gpu-model and --draft-model name shapes without weights; give the acceptance rate "
            "with --alpha"
        )
    if settings.lpu_cycles_per_token is not None:
        raise InputError("--lpu-cycles-per-token is compiled, not given, without --alpha")
