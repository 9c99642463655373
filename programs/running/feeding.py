"""Which launches feed a text: every token through all stages, or a prompt's one after another.

The tokens of a prompt are known, so they follow each other on the belt of stages: a token enters a
stage one beat after the token before it, whose keys are in that stage's caches then.  ``P`` tokens
over ``S`` stages take ``S + P - 1`` beats, the last of which is the last stage's alone and ends in
logits.  Where that is not sooner, as for one token or one stage, every token goes through all
stages by itself.

With programs for chunks of M tokens, what enters a stage is M tokens at once.  The last chunk ends
with the prompt, so some of its tokens may be fed again: the same keys are written once more, and
what their conversions lose counts once more.  A prompt of fewer than M new tokens has no chunk.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from programs.artifact import Artifact, Bindings, decoder_of
from programs.decoder import bucket_at, chunk_entry, entry_at, prompt_entry, token_entry


@dataclass(frozen=True)
class Feeding:
    """One launch of a text.

    positions: what each stage works on, ``tokens`` positions from there on.  logits: they are those
    of the last stage's last token.  resting: stages that have nothing of the text; they work on
    whatever lies there, at positions whose keys nobody sees before they are written over.
    """

    entry: str
    positions: tuple[int, ...]
    logits: bool
    resting: frozenset[int] = frozenset()
    tokens: int = 1


class FedPart(NamedTuple):
    """Launches in a row: what begins at ``starts``, ``tokens`` tokens each.

    together: one behind the other through the stages, else each through all stages by itself.
    logits: of the last token.
    """

    starts: Sequence[int]
    tokens: int = 1
    together: bool = False
    logits: bool = True


@dataclass(frozen=True)
class Feeder:
    """The ways to feed a prompt to a decoder, compiled or planned, and what each takes.

    buckets: positions that programs are for, ascending.  chunk: tokens of a chunk, 1 for none.
    cycles: of every entry point there is; a way that needs another one is none.  launch_seconds,
    token_seconds: of the host's transfers before a launch, and for each of its tokens.
    """

    stages: int
    context: int
    buckets: Sequence[int]
    chunk: int
    cycles: Mapping[str, int]
    clock_hz: float
    launch_seconds: float
    token_seconds: float

    @classmethod
    def of(cls, artifact: Artifact) -> Feeder:
        """Of a compiled decoder; raises ArtifactError for any other artifact."""
        facts, spec = decoder_of(artifact), artifact.spec
        inputs = Bindings.of(artifact).inputs.values()
        words = sum(words for planes in inputs for _, _, words in planes)
        return cls(
            stages=facts.pp,
            context=facts.context,
            buckets=facts.buckets,
            chunk=facts.chunk,
            cycles={n: c for n, c in artifact.predicted_cycles.items() if n in artifact.programs},
            clock_hz=spec.clock_hz,
            launch_seconds=spec.pcie_latency_s,
            token_seconds=spec.lanes * words / facts.rows / spec.pcie_bytes_per_s,
        )

    def one_by_one(self, first: int, tokens: int) -> list[FedPart]:
        """Every token through all stages by itself."""
        return [FedPart(range(first, first + tokens))]

    def way(self, first: int, tokens: int) -> list[FedPart]:
        """How ``tokens`` positions from ``first`` on are fed: what takes the least time.

        The host's transfers are included.
        """
        own = self.one_by_one(first, tokens)
        last, chunk = first + tokens - 1, self.chunk
        ways = []
        if self.stages > 1:
            ways.append([FedPart(range(first, last + 1), 1, True)])
        if 1 < chunk <= tokens:
            starts = [*range(first, last - chunk + 1, chunk), last - chunk + 1]
            ways.append([FedPart(starts, chunk)])
            whole = starts[: tokens // chunk]
            if alone := range(whole[-1] + chunk, last + 1):
                ways.append([FedPart(whole, chunk, logits=False), FedPart(alone)])
            if self.stages > 1 and last + chunk < self.context:
                ways.append([FedPart(starts, chunk, True)])
        there = [way for way in ways if all(name in self.cycles for name, _ in self.tally(way))]
        return min([own, *there], key=self.seconds)

    def verifies_together(self, first: int, tokens: int) -> list[FedPart] | None:
        """How ``tokens`` positions from ``first`` on have logits each from one launch of a chunk.

        None where there is no such program, or one by one takes less time.  Of the host's transfers
        those to read logits count, too: rows are as many either way, but every read of some begins
        as a launch does.
        """
        if not 1 < tokens <= self.chunk or first + self.chunk > self.context:
            return None
        together = [FedPart([first], self.chunk)]
        if not all(name in self.cycles for name, _ in self.tally(together)):
            return None
        alone = [FedPart([at]) for at in range(first, first + tokens)]
        saved = (tokens - 1) * self.launch_seconds
        return together if self.seconds(together) < self.seconds(alone) + saved else None

    def launches(self, way: Sequence[FedPart]) -> list[tuple[str, int]]:
        """The entry point of every launch, and the tokens of what enters a stage in it."""
        found = []
        for part in way:
            count = len(part.starts) + (self.stages - 1 if part.together else 0)
            for number in range(count):
                furthest = part.starts[min(number, len(part.starts) - 1)] + part.tokens - 1
                bucket = self.buckets[bisect_right(self.buckets, furthest)]
                found.append((_entry(part, bucket, number == count - 1), part.tokens))
        return found

    def tally(self, way: Sequence[FedPart]) -> Counter[tuple[str, int]]:
        """How often each of ``launches`` occurs, without a list of them."""
        found: Counter[tuple[str, int]] = Counter()
        for part in way:
            # Ascending starts: those that end below a bucket come before those that do not.
            below = [bisect_left(part.starts, bucket - part.tokens + 1) for bucket in self.buckets]
            for bucket, before, upto in zip(self.buckets, [0, *below], below, strict=False):
                if upto > before:
                    found[_entry(part, bucket, last=False), part.tokens] += upto - before
                    furthest = bucket
            if part.together:
                found[_entry(part, furthest, last=False), part.tokens] += self.stages - 1
            found[_entry(part, furthest, last=False), part.tokens] -= 1
            found[_entry(part, furthest, last=True), part.tokens] += 1
        return +found

    def seconds(self, way: Sequence[FedPart]) -> float:
        """Of the launches, with the host's transfers before each."""
        return sum(
            count
            * (
                self.cycles[name] / self.clock_hz
                + self.launch_seconds
                + tokens * self.token_seconds
            )
            for (name, tokens), count in self.tally(way).items()
        )

    def feedings(self, way: Sequence[FedPart]) -> list[Feeding]:
        """The launches, with what each stage works on."""
        names = iter(self.launches(way))
        found = []
        for part in way:
            starts, tokens, stages = part.starts, part.tokens, self.stages
            free = min(starts[-1] + tokens, self.context - tokens)
            count = len(starts) + (stages - 1 if part.together else 0)
            for number in range(count):
                own = [number - part.together * stage for stage in range(stages)]
                found.append(
                    Feeding(
                        next(names)[0],
                        tuple(starts[max(n, 0)] if n < len(starts) else free for n in own),
                        part.logits and number == count - 1,
                        frozenset(s for s, n in enumerate(own) if not 0 <= n < len(starts)),
                        tokens,
                    )
                )
        return found


def _entry(part: FedPart, bucket: int, last: bool) -> str:
    """The entry point of a launch of ``part``; last: of all its launches."""
    end = part.logits and last
    if part.tokens > 1:
        return chunk_entry(bucket, end, part.together)
    if part.together:
        return prompt_entry(bucket, end)
    return token_entry(bucket, prefill=not end)


def prompt_feedings(artifact: Artifact, first: int, tokens: int) -> list[Feeding]:
    """The launches of a prompt's ``tokens`` positions from ``first``; the last one gives logits.

    One by one, on the belt or in chunks, whatever takes the least time, the host's transfers
    included, of what the artifact has programs for.  Raises ValueError beyond the context.
    """
    bucket_at(artifact, first + tokens - 1)
    feeder = Feeder.of(artifact)
    return feeder.feedings(feeder.way(first, tokens))


def text_feedings(artifact: Artifact, first: int, prompt: int, new_tokens: int) -> list[Feeding]:
    """The launches of a text of ``prompt`` and ``new_tokens`` tokens from position ``first`` on.

    The last new token is not fed.  Raises ValueError beyond the context.
    """
    stages = decoder_of(artifact).pp
    return prompt_feedings(artifact, first, prompt - first) + [
        Feeding(entry_at(artifact, at, prefill=False), (at,) * stages, True)
        for at in range(prompt, prompt + new_tokens - 1)
    ]
