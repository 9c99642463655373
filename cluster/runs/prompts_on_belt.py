"""Several prompts at once on a conveyor belt of pipeline stages, from texts to texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from chip.spec import load_chip_spec
from cluster.errors import InputError
from cluster.runs.settings import BeltSettings
from programs.decoder import belt_groups, compile_belt, partition_model
from programs.models import Checkpoint, continuation, open_model
from programs.running import BeltResult, run_belt, saturation_json, saturation_text

#: What rides the belt if nobody says.
DEFAULT_PROMPTS = ("def ", "import ", "class ", "for ")


@dataclass(frozen=True)
class BeltTexts:
    """prompts, texts: one of each per sequence that ran; facts: of ``lpu belt --json``."""

    prompts: list[str]
    texts: list[str]
    result: BeltResult
    facts: dict[str, Any]

    @property
    def saturated(self) -> str:
        """What conversions lost, in words; empty for nothing."""
        return saturation_text(self.result.saturations)

    @property
    def rows(self) -> list[tuple[str, str]]:
        """What there is to say, for people."""
        facts = self.facts
        exact = "as" if facts["retired_as_predicted"] else "NOT as"
        batch = facts["batch"]
        of_each = "a token leaves" if batch == 1 else f"a token of each of {batch} leaves"
        turns = "prompt after prompt" if batch == 1 else "group after group"
        one, every = facts["tokens_per_second_per_user"], facts["tokens_per_second_total"]
        return [
            *(
                (repr(before), repr(after))
                for before, after in zip(self.prompts, self.texts, strict=True)
            ),
            (
                f"{of_each} every",
                f"{facts['interval_cycles']:,} cycles ({exact} predicted, {facts['beats']} beats)",
            ),
            ("a token takes", f"{facts['latency_cycles']:,} cycles from first stage to last"),
            (
                "first tokens",
                f"after {_joined(facts['first_token_cycles'])} cycles, {turns}",
            ),
            ("tokens per second", f"{one:,.0f} per user, {every:,.0f} in all, without the host"),
            (
                "machine",
                f"{facts['chips']} chips, {facts['pp']} stages of {facts['tp']}, in one process",
            ),
            *([("saturated", self.saturated)] if self.saturated else []),
            ("wall time", f"{facts['wall_seconds']:.1f} s"),
        ]


def generate_on_belt(
    settings: BeltSettings,
    tell: Callable[[str], None] = lambda _: None,
    started: float | None = None,
) -> BeltTexts:
    """Generate for several prompts at once, which are in the stages of a pipeline.

    tell: hears what goes on.  started: the ``perf_counter`` that wall time begins at, None for now.
    Raises an LpuError for a model, a chip or prompts that do not fit.
    """
    started = perf_counter() if started is None else started
    checkpoint = open_model(settings.model or "target")
    tokenizer = checkpoint.tokenizer
    texts = settings.prompt or list(DEFAULT_PROMPTS)
    prompts = [tokenizer.encode(text).ids for text in texts]
    if not all(prompts):
        raise InputError("--prompt is empty: give at least one character")
    positions = _positions(settings, checkpoint, prompts)
    batch = settings.batch
    groups = belt_groups(settings.pp, len(prompts), batch)
    tell("compiling ...")
    partitioned = partition_model(checkpoint, settings.tp, settings.dtype)
    spec = load_chip_spec(settings.chip)
    artifact = compile_belt(
        partitioned, spec, positions, settings.pp, sequences=groups * batch, batch=batch
    )
    tell("running ...")
    result = run_belt(artifact, prompts, settings.max_new_tokens, partitioned)
    one, every = result.tokens_per_second(spec.clock_hz, groups)
    ends = checkpoint.end_tokens  # the belt moves on for the others; this text is over
    kept = [_until_end(tokens, ends) for tokens in result.tokens]
    pairs = zip(prompts, kept, strict=True)
    said = [continuation(tokenizer, prompt, tokens) for prompt, tokens in pairs]
    facts = {
        "chips": artifact.chips,
        "tp": settings.tp,
        "pp": settings.pp,
        "sequences": groups * batch,
        "batch": batch,
        "prompts": texts,
        "tokens": kept,
        "texts": said,
        "interval_cycles": result.interval_cycles,
        "latency_cycles": result.latency_cycles,
        "first_token_cycles": [n * result.interval_cycles for n in result.first_token_beats],
        "retired_as_predicted": set(result.retired) == {result.interval_cycles},
        "tokens_per_second_per_user": one,
        "tokens_per_second_total": every,
        "beats": len(result.retired),
        "saturations": saturation_json(result.saturations),
        "wall_seconds": perf_counter() - started,
    }
    return BeltTexts(texts, said, result, facts)


def _joined(numbers: Sequence[int]) -> str:
    return ", ".join(f"{n:,}" for n in numbers)


def _until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """``tokens`` up to the first that ends a text, that one included."""
    first = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: first + 1]


def _positions(
    settings: BeltSettings, checkpoint: Checkpoint, prompts: Sequence[Sequence[int]]
) -> int:
    """Positions to compile for; refuses more than the model has or fewer than the texts need."""
    need = max(map(len, prompts)) + settings.max_new_tokens - 1
    positions = settings.context or need
    most = checkpoint.config.max_position
    if need > positions or positions > most:
        raise InputError(
            f"the prompts and new tokens take {need} positions, --context is {positions} and the "
            f"model was made for {most}: use a --context from the first "
            "to the last of these, shorter prompts or fewer --max-new-tokens"
        )
    return positions
