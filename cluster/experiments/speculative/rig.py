"""The shipped models on their machines, as speculative decoding runs them, and whether it may.

Texts are real: the draft is compiled for emulated LPUs, the target runs on a pool of GPU nodes.
Whether what they wrote is the target's own is checked here, by decoding with the target alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cluster.experiments.speculative.charges import Charge
from cluster.experiments.speculative.sampling_check import SamplingCheck, check_sampling
from cluster.experiments.speculative.settings import SpeculativeSettings
from cluster.experiments.speculative.steps import (
    Drafter,
    DraftStep,
    GpuDrafter,
    Job,
    LookupDrafter,
    LpuDrafter,
    RequestTrace,
    follow,
    target_only,
)
from cluster.gpu import Answer, GpuModel, GpuPool
from programs.artifact import Artifact
from programs.decoder import compile_model
from programs.models import Checkpoint, open_model
from programs.running import LpuSession

Phase = Callable[[str], None]


class LpuVerifier:
    """The target on LPUs in the place of a pool of GPUs, for one request after another.

    seconds: virtual ones of each verification, the first of a request being its prompt's.
    """

    def __init__(self, session: LpuSession) -> None:
        self._session = session
        self._begun = False
        self.seconds: list[float] = []

    def verify(self, request: int, tokens: Sequence[int], from_position: int) -> Answer:
        """See ``Verifier.verify``; everything before ``from_position`` is there already, but for
        the first call of a request, which is of its last token.
        """
        began = self._session.seconds
        if self._begun:
            own = list(tokens[from_position:])
            rows = self._session.verify(own, from_position)
        else:
            own = list(tokens)
            rows = self._session.read(own)[None]
        self._begun = True
        self.seconds.append(self._session.seconds - began)
        return Answer(rows, len(own))

    def forget(self, request: int) -> None:
        """The next call is of another request."""
        self._begun = False


class Rig:
    """The shipped models on their machines, loaded once."""

    def __init__(
        self,
        settings: SpeculativeSettings,
        positions: int,
        phase: Phase,
        pool: GpuPool | None = None,
    ) -> None:
        """positions: of the longest text with its proposals."""
        phase("compiling the draft")
        self.draft = open_model("draft")
        self.checkpoint = open_model("target")
        self._settings, self._positions = settings, positions
        self.session = LpuSession(self._compile(self.draft))
        phase("loading the target")
        self.target = GpuModel(self.checkpoint)
        self.pool = pool or GpuPool.in_process(
            self.target, settings.gpu_nodes, settings.replace_lost
        )
        self._drafters: dict[str, Drafter] = {}

    def _compile(self, checkpoint: Checkpoint, chunk: int = 1) -> Artifact:
        """chunk: tokens that are verified together."""
        s = self._settings
        return compile_model(
            checkpoint,
            tp=s.chips or 1,
            dtype="int8",
            context=self._positions,
            chip=s.chip,
            chunk=chunk,
            every_logit=chunk > 1,
        )

    def drafter(self, name: str) -> Drafter:
        """One of ``DRAFTERS``, made at first use."""
        if name not in self._drafters:
            self._drafters[name] = (
                LpuDrafter(self.session)
                if name == "lpu"
                else GpuDrafter(GpuModel(self.draft))
                if name == "gpu"
                else LookupDrafter(self.checkpoint.config.vocab)
            )
        return self._drafters[name]

    def traces(
        self,
        prompts: Sequence[Sequence[int]],
        job: Job,
        drafter: str,
        on_step: Callable[[int, int], None] | None = None,
        done: Callable[[DraftStep], None] | None = None,
    ) -> list[RequestTrace]:
        """Every prompt decoded with ``drafter``; request n is prompt n."""
        return [
            follow(number, prompt, job, self.drafter(drafter), self.pool, on_step, done)
            for number, prompt in enumerate(prompts)
        ]

    def lossless(
        self, traces: Sequence[RequestTrace], greedy: Sequence[list[int]], temperature: float
    ) -> tuple[bool | None, SamplingCheck | None]:
        """Whether the texts are the target's own, by decoding with the target alone.

        Greedy: whether the tokens are the same, judged by the same logits, bit for bit.
        Sampling: False where a token was not judged by the very logits that plain decoding of its
        text gives, or where the tokens do not fit the distributions that those logits give
        (``sampling_check``); else None, for no sample proves a distribution.
        """
        rows_of = []
        for trace, own in zip(traces, greedy, strict=True):
            text = None if temperature <= 0.0 else trace.tokens
            tokens, rows = target_only(self.target, trace.prompt, text, len(trace.tokens))
            if temperature <= 0.0 and not trace.tokens == tokens == own:
                return False, None
            if not all(map(np.array_equal, rows, trace.target_logits)):
                return False, None
            rows_of.append(rows)
        if temperature <= 0.0:
            return True, None
        texts = [trace.tokens for trace in traces]
        check = check_sampling(texts, rows_of, temperature, self._settings.seed)
        return (None if check.fits else False), check

    def lpu_verified(
        self, prompts: Sequence[Sequence[int]], job: Job
    ) -> tuple[Charge, list[RequestTrace], bool]:
        """Drafts of LPUs verified by the target on others, all of a step together, greedily: what
        it takes, what happened, and whether tokens and logits are those of the target alone there.
        """
        session = LpuSession(self._compile(self.checkpoint, job.gamma + 1))
        plain = LpuSession(self._compile(self.checkpoint))  # as ``lpu_only``: token by token
        total, traces, same = Charge(), [], True
        for number, prompt in enumerate(prompts):
            verifier = LpuVerifier(session)
            trace = follow(number, prompt, job, self.drafter("lpu"), verifier)
            clock = session.artifact.spec.clock_hz
            works = [trace.start, *(step.work for step in trace.steps)]
            reading, *drafts = [work.cycles / clock + work.io_seconds for work in works]
            first, *verified = verifier.seconds
            start, draft, verify = max(first, reading), sum(drafts), sum(verified)
            decode = draft + verify
            total += Charge(first, start, decode, draft, verify, makespan=start + decode)
            traces.append(trace)
            own = plain.read(prompt)
            for at, (token, row) in enumerate(
                zip(trace.tokens, trace.target_logits, strict=True), len(prompt)
            ):
                same = same and int(np.argmax(own)) == token and np.array_equal(own, row)
                own = plain.logits(token, at)
        return total, traces, same

    def lpu_only(
        self, prompts: Sequence[Sequence[int]], greedy: Sequence[list[int]]
    ) -> tuple[Charge, float]:
        """The target on the LPUs along the greedy texts: its time, and how often it agrees.

        Its weights are int8, so its most likely token is not always the float32 target's.
        """
        session = LpuSession(self._compile(self.checkpoint))
        total, same = Charge(), 0
        for prompt, tokens in zip(prompts, greedy, strict=True):
            began = session.seconds
            rows = [session.read(prompt)]
            middle = session.seconds
            for number, token in enumerate(tokens[:-1]):
                rows.append(session.logits(token, len(prompt) + number))
            done = session.seconds
            total += Charge(middle - began, middle - began, done - middle, makespan=done - began)
            same += sum(int(np.argmax(r)) == t for r, t in zip(rows, tokens, strict=True))
        return total, same / sum(map(len, greedy))
