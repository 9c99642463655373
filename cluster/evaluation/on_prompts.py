"""Greedy continuations of prompts by the emulated model and by float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from cluster.errors import InputError
from cluster.evaluation.opening import both_forwards, read_text
from cluster.evaluation.settings import NEW_TOKENS, EvaluateSettings
from programs.evaluation import GreedyCheck, check_greedy
from programs.models import Checkpoint, chat_prompt, open_model
from programs.running import Saturations


@dataclass(frozen=True)
class PromptEvaluation:
    """prompts: with each its comparison.  computed_by: what computed the emulated model."""

    settings: EvaluateSettings
    model: str
    prompts: list[tuple[str, GreedyCheck]]
    texts: list[str]
    """The float32 continuations."""
    pieces: dict[int, str]
    """Texts of the tokens that differ."""
    saturations: Saturations
    computed_by: str
    wall_seconds: float

    @property
    def equal(self) -> int:
        """Prompts whose continuations are equal token for token."""
        return sum(check.first is None for _, check in self.prompts)


def evaluate_prompts(
    settings: EvaluateSettings, tell: Callable[[str], None] = lambda _: None
) -> PromptEvaluation:
    """Continue every prompt; ``tell`` hears what goes on.

    Raises InputError for a file without prompts, or prompts beyond the model's positions.
    """
    began = perf_counter()
    assert settings.prompts is not None
    name, path = settings.model or "target", settings.prompts
    lines = [line for line in read_text("--prompts", path).splitlines() if line.strip()]
    if not lines:
        raise InputError(f"--prompts {path}: has no prompt; write one on each line")
    tell("opening the model ...")
    checkpoint = open_model(name)
    new_tokens = settings.max_new_tokens or NEW_TOKENS
    prompts = [_ids(settings, checkpoint, line) for line in lines]
    if [] in prompts:
        line = lines[prompts.index([])]
        raise InputError(f"--prompts {path}: {line[:40]!r} is no token of the model; leave it out")
    context = max(map(len, prompts)) + new_tokens
    if context > checkpoint.config.max_position:
        raise InputError(
            f"--prompts {path}: the longest prompt and its continuation take {context:,} "
            f"positions, but the model was made for {checkpoint.config.max_position:,}; use "
            "shorter ones"
        )
    reference, emulated = both_forwards(settings, checkpoint, context, tell)
    checks = []
    for number, ids in enumerate(prompts):
        tell(f"prompt {number + 1} of {len(prompts)} ...")
        checks.append(check_greedy(reference, emulated, ids, new_tokens, checkpoint.end_tokens))
    tokenizer = checkpoint.tokenizer
    differing = {
        token
        for check in checks
        if check.first is not None and check.instead is not None
        for token in (check.tokens[check.first], check.instead)
    }
    return PromptEvaluation(
        settings,
        name,
        list(zip(lines, checks, strict=True)),
        [tokenizer.decode(list(check.tokens)) for check in checks],
        {token: tokenizer.decode([token]) for token in sorted(differing)},
        emulated.saturations,
        emulated.computed_by,
        perf_counter() - began,
    )


def _ids(settings: EvaluateSettings, checkpoint: Checkpoint, line: str) -> list[int]:
    if settings.chat:
        return chat_prompt(checkpoint, [{"role": "user", "content": line}])
    ids: list[int] = checkpoint.tokenizer.encode(line).ids
    return ids
