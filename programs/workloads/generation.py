"""Text from eight chips in eight actors, from Python: the shipped model, a token a launch.

    python programs/workloads/generation.py [--json FILE] [--metrics-port N]

Says what ``lpu generate`` says; with metrics, every chip and link of the run can be watched.
"""

from __future__ import annotations

from dataclasses import asdict
from time import perf_counter
from typing import Any

from cluster.commands.script import ScriptJob, run_workload
from cluster.listening import Listener
from cluster.metrics import RunWatch
from cluster.processes import Placement
from cluster.runs import (
    SERVED,
    publish_generation,
    run_generation,
)
from programs.decoder import compile_model_apart
from programs.models import continuation, open_model
from programs.running import Generation

CHIPS, NEW_TOKENS = 8, 192
EVERY = 32
PROMPT = "class "


class GenerationProgress(Listener):
    """Says what goes on, and every so many tokens how many there are."""

    def __init__(self, job: ScriptJob) -> None:
        self._job, self._tokens = job, 0

    def phase(self, text: str) -> None:
        """The driver begins something that takes a while."""
        self._job.say(f"{text} ...")

    def token(self, token: int) -> None:
        """One more token."""
        self._tokens += 1
        if self._tokens % EVERY == 0:
            self._job.say(f"{self._tokens} of {NEW_TOKENS} tokens")


def work(job: ScriptJob) -> dict[str, Any]:
    """One text, its digest and its cycles."""
    started = perf_counter()
    checkpoint = open_model("target")
    prompt = tuple(checkpoint.tokenizer.encode(PROMPT).ids)
    job.say("compiling ...")
    artifact, images = compile_model_apart(
        checkpoint, tp=CHIPS, dtype="int8", context=len(prompt) + NEW_TOKENS, chip="groq-lpu-1"
    )
    watch = None if job.board is None else RunWatch(job.board, "generate", SERVED)
    result = run_generation(
        artifact,
        Generation(prompt, NEW_TOKENS),
        Placement(1),
        GenerationProgress(job),
        started,
        watch=watch,
        images=images,
    )
    if job.board is not None:
        publish_generation(job.board, result, len(prompt))
    text = continuation(checkpoint.tokenizer, prompt, result.tokens)
    job.say(
        f"{result.cycles_per_token[0]:,} to {result.cycles_per_token[-1]:,} cycles per token, "
        f"{len(result.tokens) / result.virtual_seconds:,.0f} tokens/s of virtual time"
    )
    return {"prompt": PROMPT, "text": text, **asdict(result)}


if __name__ == "__main__":
    run_workload("generation", work)
