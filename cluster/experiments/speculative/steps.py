"""What happens in speculative decoding, step by step: drafters, verification, acceptance.

``follow`` decodes one request and notes what every step did: tokens, LPU cycles, GPU passes.  It
computes the real numbers and knows nothing of time: one trace serves every link and both ways of
shipping (``cluster.experiments.speculative.charges`` charges it).

A drafter is told the whole text at every step and finds out itself how much of it its KV cache
already holds, so a rejection needs no message of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.experiments.speculative import acceptance
from cluster.experiments.speculative.acceptance import Draws, Use, Verdict
from cluster.gpu import Answer, PassModel, common_prefix
from programs.running import LpuSession

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

#: The longest run of tokens that prompt lookup searches the text for; then shorter ones.
LONGEST_NGRAM = 3


@dataclass(frozen=True)
class Work:
    """What a drafter did for one step.

    launches, cycles, io_seconds: of its LPUs; cycles are exact, host transfers estimated.
    passes: of its GPU, in order, (positions cached before, positions computed) each.
    """

    launches: int = 0
    cycles: int = 0
    io_seconds: float = 0.0
    passes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Proposal:
    """Drafted tokens; q: the distribution each was drawn from, float64 [vocab], when sampling."""

    tokens: list[int]
    q: list[F64]
    work: Work


@dataclass(frozen=True)
class DraftStep:
    """One step: ``drafted`` proposals, of which ``accepted``, then one token of the target.

    context: positions in the target's cache before it.  replayed: positions the target computed
    again because a node was lost.
    """

    context: int
    drafted: int
    accepted: int
    replayed: int
    work: Work

    @property
    def emitted(self) -> int:
        """Tokens the step gave."""
        return self.accepted + 1

    @property
    def tested(self) -> int:
        """Proposals whose acceptance was decided: those before the first rejection and it."""
        return min(self.accepted + 1, self.drafted)


@dataclass(eq=False)
class RequestTrace:
    """One decoded request.

    tokens: the new ones, as many as asked for (the last step may have given more).  start: the
    drafter's reading of the prompt.  target_logits: per token the row it was judged by, float32
    [vocab].
    """

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    start: Work = field(default_factory=Work)
    steps: list[DraftStep] = field(default_factory=list)
    target_logits: list[F32] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """How to decode: gamma proposals per step; temperature 0 is greedy."""

    gamma: int
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


class Verifier(Protocol):
    """Judges proposals: a pool of GPU nodes, or the target on LPUs."""

    def verify(self, request: int, tokens: Sequence[int], from_position: int) -> Answer:
        """Logits after each of ``tokens[from_position:]``, given the whole text ``tokens``."""

    def forget(self, request: int) -> None:
        """The request is over."""


class Drafter(Protocol):
    """Proposes the next tokens of a text."""

    def start(self, prompt: Sequence[int]) -> Work:
        """A new request: read its prompt."""

    def propose(
        self, text: Sequence[int], gamma: int, temperature: float, draws: Draws
    ) -> Proposal:
        """At most ``gamma`` tokens to follow ``text``."""


class _ModelDrafter(ABC):
    """What drafters with a model share: keep up with the text, then draft token by token."""

    def __init__(self) -> None:
        self._known: list[int] = []

    def start(self, prompt: Sequence[int]) -> Work:
        """Put the prompt in the cache."""
        self._known = []
        self._begin()
        self._feed(list(prompt), head=False)
        return self._work()

    def propose(
        self, text: Sequence[int], gamma: int, temperature: float, draws: Draws
    ) -> Proposal:
        """``gamma`` tokens, each from the distribution after the last."""
        keep = min(common_prefix(self._known, text), len(text) - 1)
        del self._known[keep:]
        self._begin()
        row = self._feed(list(text[keep:]), head=True)
        tokens: list[int] = []
        laws: list[F64] = []
        for number in range(gamma):
            if temperature <= 0.0:
                token = int(np.argmax(row))
            else:
                laws.append(acceptance.probabilities(row, temperature))
                u = draws.uniform(len(text) + number, Use.DRAFT)
                token = acceptance.draw(laws[-1], u)
            tokens.append(token)
            if number + 1 < gamma:
                row = self._feed([token], head=True)
        return Proposal(tokens, laws, self._work())

    def _feed(self, tokens: list[int], head: bool) -> F32:
        row = self._run(tokens, len(self._known), head)
        self._known += tokens
        return row

    @abstractmethod
    def _begin(self) -> None:
        """Ready for a new stretch of work."""

    @abstractmethod
    def _run(self, tokens: list[int], position: int, head: bool) -> F32:
        """Logits after the last of ``tokens`` from ``position`` on, float32 [vocab]."""

    @abstractmethod
    def _work(self) -> Work:
        """What was done since the last ``_begin``."""


class LpuDrafter(_ModelDrafter):
    """A compiled draft model on emulated LPUs."""

    def __init__(self, session: LpuSession) -> None:
        super().__init__()
        self._session = session
        self._before = (0, 0, 0.0)

    def _begin(self) -> None:
        s = self._session
        self._before = (s.launches, s.cycles, s.io_seconds)

    def _run(self, tokens: list[int], position: int, head: bool) -> F32:
        if head:
            return self._session.read(tokens, position)
        for number, token in enumerate(tokens):
            self._session.feed(token, position + number)
        return np.empty(0, np.float32)

    def _work(self) -> Work:
        s, (launches, cycles, io) = self._session, self._before
        return Work(s.launches - launches, s.cycles - cycles, s.io_seconds - io)


class GpuDrafter(_ModelDrafter):
    """A draft model on the GPU that also verifies."""

    def __init__(self, model: PassModel) -> None:
        super().__init__()
        self._model = model
        self._cache: Any = model.new_cache()
        self._passes: list[tuple[int, int]] = []

    def _begin(self) -> None:
        self._passes = []

    def _run(self, tokens: list[int], position: int, head: bool) -> F32:
        self._cache.truncate(position)
        self._passes.append((position, len(tokens)))
        rows = self._model.forward(tokens, self._cache)
        last: F32 = rows[-1]
        return last

    def _work(self) -> Work:
        return Work(passes=tuple(self._passes))


class LookupDrafter:
    """Proposes what followed the text's last tokens where they stood before; no model at all.

    The latest place of the longest n-gram wins.  It proposes nothing when no token repeats.
    """

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab

    def start(self, prompt: Sequence[int]) -> Work:
        """There is nothing to read."""
        return Work()

    def propose(
        self, text: Sequence[int], gamma: int, temperature: float, draws: Draws
    ) -> Proposal:
        """Up to ``gamma`` tokens; when sampling each is certain in the drafter's eyes."""
        tokens = lookup(text, gamma)
        sure = [acceptance.point_mass(token, self._vocab) for token in tokens]
        return Proposal(tokens, sure if temperature > 0.0 else [], Work())


def lookup(text: Sequence[int], gamma: int) -> list[int]:
    """Up to ``gamma`` tokens that followed the latest earlier place of the text's last n-gram."""
    tokens = list(text)
    for size in range(min(LONGEST_NGRAM, len(tokens) - 1), 0, -1):
        last = tokens[-size:]
        for at in range(len(tokens) - size - 1, -1, -1):
            if tokens[at : at + size] == last:
                return tokens[at + size : at + size + gamma]
    return []


def follow(
    request: int,
    prompt: Sequence[int],
    job: Job,
    drafter: Drafter,
    pool: Verifier,
    on_step: Callable[[int, int], None] | None = None,
    done: Callable[[DraftStep], None] | None = None,
) -> RequestTrace:
    """Decode ``job.max_new_tokens`` tokens after ``prompt``; the request is then forgotten.

    The first token comes with the prompt's own pass; every later one from a step that drafts and
    verifies.  on_step: told (request, number of steps done) before each step.  done: told each step
    when its verdict is known.
    """
    trace = RequestTrace(list(prompt))
    draws = Draws(job.seed, request)
    text = list(prompt)
    row = pool.verify(request, text, len(text) - 1).logits[0]
    text.append(_judge([], [], row[None], len(text), job, draws, trace).token)
    trace.start = drafter.start(prompt)
    wanted = len(prompt) + job.max_new_tokens
    while len(text) < wanted:
        if on_step is not None:
            on_step(request, len(trace.steps))
        proposal = drafter.propose(text, job.gamma, job.temperature, draws)
        drafted = len(proposal.tokens)
        answer = pool.verify(request, [*text, *proposal.tokens], len(text) - 1)
        verdict = _judge(proposal.tokens, proposal.q, answer.logits, len(text), job, draws, trace)
        trace.steps.append(
            DraftStep(
                len(text) - 1,
                drafted,
                verdict.accepted,
                answer.forwarded - drafted - 1,
                proposal.work,
            )
        )
        if done is not None:
            done(trace.steps[-1])
        text += [*proposal.tokens[: verdict.accepted], verdict.token]
    pool.forget(request)
    trace.tokens = text[len(prompt) : wanted]
    del trace.target_logits[job.max_new_tokens :]
    return trace


def _judge(
    tokens: list[int],
    q: list[F64],
    rows: F32,
    position: int,
    job: Job,
    draws: Draws,
    trace: RequestTrace,
) -> Verdict:
    """The verdict on ``tokens``, the first of which stands at ``position``; noted in ``trace``."""
    if job.temperature <= 0.0:
        verdict = acceptance.accept_greedy(tokens, rows)
    else:
        p = [acceptance.probabilities(row, job.temperature) for row in rows]
        verdict = acceptance.accept_sampled(tokens, q, p, position, draws)
    trace.target_logits += [row.copy() for row in rows[: verdict.accepted + 1]]
    return verdict


def target_only(
    model: PassModel, prompt: Sequence[int], follow_tokens: Sequence[int] | None, count: int
) -> tuple[list[int], list[F32]]:
    """Plain decoding, one token per pass: greedy tokens, and the logits each was judged by.

    follow_tokens: the text to walk along instead of the greedy one.
    """
    cache = model.new_cache()
    row = model.forward(list(prompt), cache)[-1]
    tokens: list[int] = []
    rows: list[F32] = []
    for number in range(count):
        rows.append(row)
        tokens.append(int(np.argmax(row)))
        if number + 1 < count:
            fed = tokens[-1] if follow_tokens is None else follow_tokens[number]
            row = model.forward([fed], cache)[0]
    return tokens, rows
