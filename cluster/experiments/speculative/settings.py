"""What a speculative-decoding experiment is asked to do, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.errors import InputError
from cluster.experiments.speculative.charges import GPU_DRAFT, LOOKUP
from cluster.gpu import link as links

MODES = ("tokens", "kv")
DRAFTERS = ("lpu", "gpu", "lookup")
#: What a sweep covers, besides every link preset.
SWEEP_GAMMAS = tuple(range(1, 9))
SWEEP_TEMPERATURES = (0.0, 0.5, 1.0)
MOST_GAMMA = 64


@dataclass(frozen=True)
class Settings:
    """One experiment.  gpu, link, chip: presets or TOML files; models: as ``find_model`` knows.

    alpha: draw acceptance instead of running the shipped models; then ``lpu_cycles_per_token``
    is the draft's with host transfers (None: the shipped draft's, of its longest context needed)
    and ``prompt_tokens`` the length of each prompt.
    concurrent: requests under way at once.  replace_lost: a GPU node starts for each lost one.
    chips: LPUs that share the draft (and, for LPU-only, the target); None: 1, or the fewest that
    hold a draft without weights.  nodes beyond one are Ray
    actors unless ``in_process``.  kill_after: GPU node 0 is ended after so many steps.
    """

    gamma: int = 4
    max_new_tokens: int = 32
    temperature: float = 0.0
    seed: int = 0
    mode: str = "tokens"
    drafter: str = "lpu"
    gpu: str = "h100"
    gpu_tp: int = 1
    link: str = links.DEFAULT_PRESET
    gpu_nodes: int = 1
    in_process: bool = False
    chips: int | None = None
    chip: str = "groq-lpu-1"
    sweep: bool = False
    kill_after: int | None = None
    alpha: float | None = None
    lpu_cycles_per_token: int | None = None
    gpu_model: str = "target"
    draft_model: str = "draft"
    prompt_tokens: int = 512
    concurrent: int = 1
    replace_lost: bool = False

    def __post_init__(self) -> None:
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
            ("--mode", self.mode, MODES), ("--drafter", self.drafter, DRAFTERS),
        ):  # fmt: skip
            if text not in choices:
                raise InputError(f"{name} {text}: use {' or '.join(choices)}")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise InputError(f"--temperature {self.temperature}: use a finite number, 0 or more")
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
        elif self.drafter == "lookup":
            raise InputError("--alpha with --drafter lookup: use --drafter lpu or gpu")

    @property
    def variant(self) -> str:
        """The variant that the headline figures are of."""
        return {"lpu": f"lpu-{self.mode}", "gpu": GPU_DRAFT, "lookup": LOOKUP}[self.drafter]


def _refuse_without_alpha(settings: Settings) -> None:
    if settings.gpu_model != "target" or settings.draft_model != "draft":
        raise InputError(
            "--gpu-model and --draft-model name shapes without weights; give the acceptance rate "
            "with --alpha"
        )
    if settings.lpu_cycles_per_token is not None:
        raise InputError("--lpu-cycles-per-token is compiled, not given, without --alpha")
