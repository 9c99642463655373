"""The conveyor belt at work: several sequences in flight, one in each stage, all chips here.

Beat n brings token t of sequence q into the first stage where n = q + t x sequences; its logits
come out ``stages - 1`` beats later.  A stage whose sequence has not come to it yet works on what
lies there; it writes position 0 of that sequence's caches, which its first token overwrites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from programs.artifact import Artifact, decoder_of
from programs.decoder import Host, PartitionedModel, belt_entry, pick_token
from programs.running.runner import Runner
from programs.running.saturation import Saturations
from programs.running.stepping import LOOKAHEAD


@dataclass(frozen=True)
class BeltResult:
    """tokens[q]: new tokens of each sequence; retired: the cycles of each beat, of all chips;
    interval_cycles: between two tokens of the belt; latency_cycles: of one token, in to out.

    saturations: of all beats, those before a stage's sequence comes to it included.
    """

    tokens: list[list[int]]
    retired: list[int]
    interval_cycles: int
    latency_cycles: int
    saturations: Saturations

    def tokens_per_second(self, clock_hz: int, sequences: int) -> tuple[float, float]:
        """(per sequence, of all that run), in steady state of ``sequences`` places and without the
        host; an empty place gives no token.
        """
        each = clock_hz / self.interval_cycles / sequences
        return each, each * len(self.tokens)


def run_belt(
    artifact: Artifact,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    model: PartitionedModel | None = None,
    sync: str = LOOKAHEAD,
) -> BeltResult:
    """Greedy generation of ``new_tokens`` tokens for each prompt, all on the belt at once.

    prompts: at most as many as the artifact has sequences; others stay empty.  Raises ValueError
    for another artifact, too many or empty prompts, or more positions than the artifact's context.
    """
    facts = decoder_of(artifact)
    if facts.sequences is None:
        raise ValueError("the artifact is no conveyor belt: compile one with compile_belt")
    count, stages, context = facts.sequences, facts.pp, facts.context
    if not 1 <= len(prompts) <= count or not all(prompts):
        raise ValueError(f"{len(prompts)} prompts: use 1 to {count}, none of them empty")
    longest = max(len(prompt) for prompt in prompts) + new_tokens - 1
    if longest > context:
        raise ValueError(f"{longest} positions: the belt was compiled for {context}")
    host = Host(artifact, model)
    runner = Runner.alone(artifact, host)
    fed = [list(prompt) for prompt in prompts]
    retired: list[int] = []
    for beat in range((longest - 1) * count + len(prompts) + stages - 1):
        for chip in runner.chips:
            stage = host.stage_of(chip.chip_id)
            at, sequence = divmod(beat - stage, count)
            known = fed[sequence] if sequence < len(fed) else [0]
            position = min(max(at, 0), context - 1)
            token = known[position] if position < len(known) else 0
            host.prepare(chip, token, position)
        ends = runner.launch(belt_entry(context, beat % count), beat, sync)
        retired.append(max(ends.values()))
        at, sequence = divmod(beat - (stages - 1), count)
        if at < 0 or sequence >= len(fed) or at + 1 != len(fed[sequence]):
            continue
        if at + 1 - len(prompts[sequence]) >= new_tokens:
            continue
        logits = np.concatenate([host.read_logits(chip) for chip in runner.chips])
        fed[sequence].append(pick_token(logits, 0.0, 0, 0))
    tokens = [own[len(p) :][:new_tokens] for own, p in zip(fed, prompts, strict=True)]
    interval = artifact.predicted_cycles[belt_entry(context, 0)]
    return BeltResult(tokens, retired, interval, interval * stages, runner.saturations)
