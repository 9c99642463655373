"""Which launches feed a text: every token through all stages, or a prompt's one after another.

The tokens of a prompt are known, so they follow each other on the belt of stages: a token enters a
stage one beat after the token before it, whose keys are in that stage's caches then.  ``P`` tokens
over ``S`` stages take ``S + P - 1`` beats, the last of which is the last stage's alone and ends in
logits.  Where that is not sooner, as for one token or one stage, every token goes through all
stages by itself.

With programs for chunks of M tokens, what enters a stage is M tokens at once.  The last chunk ends
with the prompt, so some of its tokens may be fed again: the same keys are written once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from programs.artifact import Artifact, Bindings, decoder_of
from programs.decoder import bucket_at, chunk_entry, entry_at, prompt_entry


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


def prompt_feedings(artifact: Artifact, first: int, tokens: int) -> list[Feeding]:
    """The launches of a prompt's ``tokens`` positions from ``first``; the last one gives logits.

    One by one, on the belt or in chunks, whatever takes the least time, the host's transfers
    included, of what the artifact has programs for.  Raises ValueError beyond the context.
    """
    last = first + tokens - 1
    bucket_at(artifact, last)
    facts = decoder_of(artifact)
    ways = [_one_by_one(artifact, range(first, last + 1), last)]
    if facts.pp > 1 and prompt_entry(bucket_at(artifact, last), True) in artifact.programs:
        ways.append(_on_belt(artifact, range(first, last + 1), 1, prompt_entry))
    chunk = facts.chunk
    if chunk > 1 and tokens >= chunk:
        starts = [*range(first, last - chunk + 1, chunk), last - chunk + 1]
        ways.append(_chunks(artifact, starts))
        whole = starts[: tokens // chunk]
        alone = range(whole[-1] + chunk, last + 1)
        if alone:
            ways.append(_chunks(artifact, whole, False) + _one_by_one(artifact, alone, last))
        if facts.pp > 1 and last + chunk < facts.context:
            ways.append(_on_belt(artifact, starts, chunk, partial(chunk_entry, together=True)))
    return min(ways, key=lambda way: _seconds(artifact, way))


def _one_by_one(artifact: Artifact, positions: Iterable[int], last: int) -> list[Feeding]:
    """Every token through all stages by itself; logits of the ``last``."""
    stages = decoder_of(artifact).pp
    return [
        Feeding(entry_at(artifact, at, prefill=at < last), (at,) * stages, at == last)
        for at in positions
    ]


def _chunks(artifact: Artifact, starts: Sequence[int], logits: bool = True) -> list[Feeding]:
    """Every chunk through all stages by itself; logits: of the last one."""
    facts = decoder_of(artifact)
    found = []
    for number, at in enumerate(starts, 1):
        end = logits and number == len(starts)
        entry = chunk_entry(bucket_at(artifact, at + facts.chunk - 1), end)
        found.append(Feeding(entry, (at,) * facts.pp, end, tokens=facts.chunk))
    return found


def _on_belt(
    artifact: Artifact, starts: Sequence[int], tokens: int, entry: Callable[[int, bool], str]
) -> list[Feeding]:
    """What begins at ``starts``, ``tokens`` tokens each, one behind the other through the stages.

    entry: the entry point for a bucket, and for the last beat.
    """
    stages, context = decoder_of(artifact).pp, decoder_of(artifact).context
    free = min(starts[-1] + tokens, context - tokens)
    found = []
    for beat in range(stages + len(starts) - 1):
        own = [beat - stage for stage in range(stages)]
        resting = frozenset(stage for stage in range(stages) if not 0 <= own[stage] < len(starts))
        end = beat == stages + len(starts) - 2
        furthest = starts[min(beat, len(starts) - 1)] + tokens - 1
        positions = tuple(starts[max(n, 0)] if n < len(starts) else free for n in own)
        name = entry(bucket_at(artifact, furthest), end)
        found.append(Feeding(name, positions, end, resting, tokens))
    return found


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
    beat_cycles: Callable[[int], tuple[int, int]],
    prompt: int,
    stages: int,
    buckets: Iterable[int],
    chunk: int = 1,
) -> int:
    """Cycles from a prompt's first beat to its last token's logits, on an empty machine.

    beat_cycles: of a bucket, as ``Pipeline.prompt_cycles``.  buckets: ascending, up to the prompt.
    chunk: tokens of a beat; the last ones end with the prompt.
    """
    known = {bucket: beat_cycles(bucket) for bucket in buckets}

    def of(position: int) -> tuple[int, int]:
        return known[next(bucket for bucket in known if position < bucket)]

    before = stages + -(-prompt // chunk) - 2
    beats = sum(of(min((beat + 1) * chunk, prompt) - 1)[0] for beat in range(before))
    return beats + of(prompt - 1)[1]


def _seconds(artifact: Artifact, feedings: Iterable[Feeding]) -> float:
    """Of launches, with the host's transfers before each."""
    spec = artifact.spec
    inputs = Bindings.of(artifact).inputs.values()
    words = sum(words for planes in inputs for _, _, words in planes)
    each = spec.lanes * words / decoder_of(artifact).chunk / spec.pcie_bytes_per_s
    return sum(
        artifact.predicted_cycles[feeding.entry] / spec.clock_hz
        + spec.pcie_latency_s
        + feeding.tokens * each
        for feeding in feedings
    )
