"""The conveyor belt at work: several sequences in flight, one in each stage, all chips here.

Of a batch there is a group of sequences in each stage instead, a token of each: its sequences are
at positions of their own.

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

    def tokens_per_second(self, clock_hz: int, groups: int) -> tuple[float, float]:
        """(per sequence, of all that run), in steady state of ``groups`` taking turns and without
        the host; an empty place gives no token.
        """
        each = clock_hz / self.interval_cycles / groups
        return each, each * len(self.tokens)


def run_belt(
    artifact: Artifact,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    model: PartitionedModel | None = None,
    sync: str = LOOKAHEAD,
) -> BeltResult:
    """Greedy generation of ``new_tokens`` tokens for each prompt, all on the belt at once.

    prompts: at most as many as the artifact has sequences; others stay empty.  Of a batch they are
    dealt over as many groups as there are stages, so that none rests for want of a group, and over
    more only where those are full.  Raises ValueError for another artifact, too many or empty
    prompts, or more positions than the artifact's context.
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
    groups = count // facts.batch
    each = min(facts.batch, -(-len(prompts) // stages))
    queue = _Queue([list(prompt) for prompt in prompts], new_tokens, facts.batch, each)
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
            turn = turns[stage] or queue.unseen(entered[max(0, beat - stage + 1) :])
            if turns[stage] is None:
                resting.append(chip.chip_id)
            places = [min(at, context - 1) for at in turn.positions]
            host.prepare_batch(chip, list(zip(turn.tokens, places, strict=True)))
            of_chip[chip.chip_id] = belt_entry(context, (turn.group + stage) % groups)
        ends = runner.launch(
            belt_entry(context, 0), beat, sync, resting=resting, entry_of=of_chip.__getitem__
        )
        retired.append(max(ends.values()))
        out = turns[-1]
        if out is None or not (waiting := queue.waiting_for(out)):
            continue
        logits = np.concatenate([host.read_rows(chip) for chip in runner.chips], axis=1)
        for sequence in waiting:
            row = sequence - out.group * each
            queue.give(sequence, pick_token(logits[row], 0.0, 0, 0))
            firsts[sequence] = firsts[sequence] or beat + 1
    tokens = [own[len(p) :] for own, p in zip(queue.fed, prompts, strict=True)]
    interval = artifact.predicted_cycles[belt_entry(context, 0)]
    return BeltResult(tokens, retired, interval, interval * stages, runner.saturations, firsts)


class _Turn(NamedTuple):
    """A token of each sequence of a group on its way through the stages.

    tokens, positions: of each; None: it has none now, and its position is the one it comes to next,
    which is written over before it is seen.  One further would disturb what is kept beside that
    one.  A sequence that is over, or was never there, is at the beginning with zeros, whence it
    loses nothing but what the model's biases lose.
    """

    group: int
    tokens: tuple[int | None, ...]
    positions: tuple[int, ...]


class _Queue:
    """Who enters the belt next; fed[q]: all known tokens of sequence q."""

    def __init__(self, fed: list[list[int]], new_tokens: int, batch: int, each: int) -> None:
        """batch: rows of a group; each: those with a sequence, in the last group maybe fewer."""
        self.fed = fed
        self._batch, self._each = batch, each
        self._prompts = [len(own) for own in fed]
        self._ends = [len(own) + new_tokens for own in fed]
        self._entered = [0] * len(fed)
        self._waiting = deque(range(-(-len(fed) // each)))  # groups, the next one first

    @property
    def done(self) -> bool:
        """All new tokens are there."""
        return all(len(own) == end for own, end in zip(self.fed, self._ends, strict=True))

    def next_turn(self) -> _Turn | None:
        """What enters now; None when no group has what it waits for.

        A group goes on while tokens of some prompt of it are left, sequences without a token
        resting meanwhile; then it lets the others by, and comes again with a token of each
        sequence that is not over.
        """
        for group in self._waiting:
            if not self._ready(group):
                continue
            tokens: list[int | None] = [None] * self._batch
            places = self._next_positions(group)
            for sequence in self._known(group):
                own = sequence - group * self._each
                tokens[own] = self.fed[sequence][places[own]]
                self._entered[sequence] += 1
            if not self._in_prompt(group):
                self._waiting.remove(group)
                self._waiting.append(group)
            return _Turn(group, tuple(tokens), places)
        return None

    def waiting_for(self, turn: _Turn) -> list[int]:
        """The sequences whose next token a turn makes."""
        first = turn.group * self._each
        return [
            first + row
            for row, (token, at) in enumerate(zip(turn.tokens, turn.positions, strict=True))
            if token is not None and at + 1 == len(self.fed[first + row])
        ]

    def give(self, sequence: int, token: int) -> None:
        """A new token of a sequence is there, and enters unless it is the last one."""
        self.fed[sequence].append(token)

    def unseen(self, coming: Sequence[_Turn | None]) -> _Turn:
        """The places of group 0 that a stage comes to next, with tokens of nobody.

        coming: the turns that the stage has yet to take.
        """
        own = [turn.positions for turn in coming if turn is not None and turn.group == 0]
        positions = own[0] if own else self._next_positions(0)
        return _Turn(0, (0,) * self._batch, positions)

    def _sequences(self, group: int) -> range:
        first = group * self._each
        return range(first, min(first + self._each, len(self.fed)))

    def _next_positions(self, group: int) -> tuple[int, ...]:
        """Where each sequence of a group goes on."""
        own = [0 if self._over(n) else self._entered[n] for n in self._sequences(group)]
        return tuple(own + [0] * (self._batch - len(own)))

    def _over(self, sequence: int) -> bool:
        return len(self.fed[sequence]) == self._ends[sequence]

    def _known(self, group: int) -> list[int]:
        """Sequences of a group with a token to enter."""
        return [
            sequence
            for sequence in self._sequences(group)
            if self._entered[sequence] < len(self.fed[sequence]) and not self._over(sequence)
        ]

    def _in_prompt(self, group: int) -> bool:
        """Whether tokens of some prompt of a group are left."""
        return any(self._entered[n] < self._prompts[n] for n in self._sequences(group))

    def _ready(self, group: int) -> bool:
        """Whether a group enters now."""
        if self._in_prompt(group):
            return True
        left = [sequence for sequence in self._sequences(group) if not self._over(sequence)]
        return bool(left) and self._known(group) == left
