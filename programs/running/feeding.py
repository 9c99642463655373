"""Which launches feed a text: every token through all stages, or a prompt's one after another.

The tokens of a prompt are known, so they follow each other on the belt of stages: a token enters a
stage one beat after the token before it, whose keys are in that stage's caches then.  ``P`` tokens
over ``S`` stages take ``S + P - 1`` beats, the last of which is the last stage's alone and ends in
logits.  Where that is not sooner, as for one token or one stage, every token goes through all
stages by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from programs.artifact import Artifact, Bindings, decoder_of
from programs.decoder import bucket_at, entry_at, prompt_entry


@dataclass(frozen=True)
class Feeding:
    """One launch of a text.

    positions: what each stage works on.  logits: they are those of the last stage's token.
    resting: stages that have nothing of the text; they work on whatever lies there, at a position
    whose keys nobody sees before they are written over.
    """

    entry: str
    positions: tuple[int, ...]
    logits: bool
    resting: frozenset[int] = frozenset()


def prompt_feedings(artifact: Artifact, first: int, tokens: int) -> list[Feeding]:
    """The launches of a prompt's ``tokens`` positions from ``first``; the last one gives logits.

    On the belt where that takes less time, the host's transfers included; an
    artifact without programs for it feeds token by token.  Raises ValueError beyond the context.
    """
    stages = decoder_of(artifact).pp
    last = first + tokens - 1
    single = [
        Feeding(entry_at(artifact, at, prefill=at < last), (at,) * stages, at == last)
        for at in range(first, last + 1)
    ]
    if stages == 1 or prompt_entry(bucket_at(artifact, last), True) not in artifact.programs:
        return single
    free = min(last + 1, decoder_of(artifact).context - 1)
    together = []
    for beat in range(stages + tokens - 1):
        at = [first + beat - stage for stage in range(stages)]
        resting = frozenset(stage for stage in range(stages) if not first <= at[stage] <= last)
        end = beat == stages + tokens - 2
        entry = prompt_entry(bucket_at(artifact, min(at[0], last)), end)
        positions = tuple(max(p, first) if p <= last else free for p in at)
        together.append(Feeding(entry, positions, end, resting))
    return min(single, together, key=lambda way: _seconds(artifact, way))


def text_feedings(artifact: Artifact, first: int, prompt: int, new_tokens: int) -> list[Feeding]:
    """The launches of a text of ``prompt`` and ``new_tokens`` tokens from position ``first`` on.

    The last new token is not fed.  Raises ValueError beyond the context.
    """
    stages = decoder_of(artifact).pp
    return prompt_feedings(artifact, first, prompt - first) + [
        Feeding(entry_at(artifact, at, prefill=False), (at,) * stages, True)
        for at in range(prompt, prompt + new_tokens - 1)
    ]


def first_token_cycles(
    beat_cycles: Callable[[int], tuple[int, int]], prompt: int, stages: int, buckets: Iterable[int]
) -> int:
    """Cycles from a prompt's first beat to its last token's logits, on an empty machine.

    beat_cycles: of a bucket, as ``Pipeline.prompt_cycles``.  buckets: ascending, up to the prompt.
    """
    known = {bucket: beat_cycles(bucket) for bucket in buckets}

    def of(position: int) -> tuple[int, int]:
        return known[next(bucket for bucket in known if position < bucket)]

    beats = sum(of(min(beat, prompt - 1))[0] for beat in range(stages + prompt - 2))
    return beats + of(prompt - 1)[1]


def _seconds(artifact: Artifact, feedings: Iterable[Feeding]) -> float:
    """Of launches, with the host's transfers before each."""
    spec = artifact.spec
    inputs = Bindings.of(artifact).inputs.values()
    words = sum(words for planes in inputs for _, _, words in planes)
    before = spec.pcie_latency_s + spec.lanes * words / spec.pcie_bytes_per_s
    return sum(
        artifact.predicted_cycles[feeding.entry] / spec.clock_hz + before for feeding in feedings
    )
