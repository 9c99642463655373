"""The conveyor belt at work: several sequences in flight, one in each stage, all chips here.

A beat brings one token into the first stage; its logits come out ``stages - 1`` beats later.  The
tokens of prompts are known, so they follow each other, prompt after prompt; then whichever sequence
has waited longest for its next token goes on.  A stage without a token works on what lies there, at
the position it comes to next, whose keys and values are written over before anybody sees them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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

    first_token_beats[q]: the beats until sequence q's first new token is there.  saturations: of
    the stages that worked on a token.
    """

    tokens: list[list[int]]
    retired: list[int]
    interval_cycles: int
    latency_cycles: int
    saturations: Saturations
    first_token_beats: list[int]

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
    queue = _Queue([list(prompt) for prompt in prompts], new_tokens)
    entered: list[_Turn | None] = []
    retired: list[int] = []
    firsts = [0] * len(prompts)
    while not queue.done:
        beat = len(entered)
        entered.append(queue.next_turn())
        turns = [entered[beat - s] if s <= beat else None for s in range(stages)]
        of_chip, resting = {}, []
        for chip in runner.chips:
            stage = host.stage_of(chip.chip_id)
            turn = turns[stage] or queue.unseen(entered[max(0, beat - stage + 1) :], context)
            if turns[stage] is None:
                resting.append(chip.chip_id)
            host.prepare(chip, turn.token, turn.position)
            of_chip[chip.chip_id] = belt_entry(context, (turn.sequence + stage) % count)
        ends = runner.launch(
            belt_entry(context, 0), beat, sync, resting=resting, entry_of=of_chip.__getitem__
        )
        retired.append(max(ends.values()))
        out = turns[-1]
        if out is not None and out.position + 1 == len(queue.fed[out.sequence]):
            logits = np.concatenate([host.read_logits(chip) for chip in runner.chips])
            queue.give(out.sequence, pick_token(logits, 0.0, 0, 0))
            firsts[out.sequence] = firsts[out.sequence] or beat + 1
    tokens = [own[len(p) :] for own, p in zip(queue.fed, prompts, strict=True)]
    interval = artifact.predicted_cycles[belt_entry(context, 0)]
    return BeltResult(tokens, retired, interval, interval * stages, runner.saturations, firsts)


class _Turn(NamedTuple):
    """A token of a sequence on its way through the stages."""

    sequence: int
    position: int
    token: int


class _Queue:
    """Who enters the belt next; fed[q]: all known tokens of sequence q."""

    def __init__(self, fed: list[list[int]], new_tokens: int) -> None:
        self.fed = fed
        self._ends = [len(own) + new_tokens for own in fed]
        self._entered = [0] * len(fed)
        self._waiting = deque(range(len(fed)))  # sequences with a token to enter, in their order

    @property
    def done(self) -> bool:
        """All new tokens are there."""
        return all(len(own) == end for own, end in zip(self.fed, self._ends, strict=True))

    def next_turn(self) -> _Turn | None:
        """The token that enters now; None when all that are known have entered."""
        if not self._waiting:
            return None
        sequence = self._waiting[0]
        position = self._entered[sequence]
        self._entered[sequence] += 1
        if self._entered[sequence] == len(self.fed[sequence]):
            self._waiting.popleft()
        return _Turn(sequence, position, self.fed[sequence][position])

    def give(self, sequence: int, token: int) -> None:
        """A new token of a sequence is there, and enters unless it is the last one."""
        self.fed[sequence].append(token)
        if len(self.fed[sequence]) < self._ends[sequence]:
            self._waiting.append(sequence)

    def unseen(self, coming: Sequence[_Turn | None], context: int) -> _Turn:
        """The place of sequence 0 that a stage comes to next: it is written over before it is seen.

        coming: the turns that the stage has yet to take.  One further than its next would disturb
        what it keeps beside that one; behind the last position there is nobody to see.
        """
        own = [turn.position for turn in coming if turn is not None and turn.sequence == 0]
        return _Turn(0, min(own[0] if own else self._entered[0], context - 1), 0)
