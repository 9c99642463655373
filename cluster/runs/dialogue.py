"""A conversation with a model: what is said, what it answers, and the chips that remember it.

Every turn the checkpoint's chat template writes the whole conversation anew.  The chips keep their
caches from turn to turn, so only what the new prompt does not share with what they were fed is
computed: usually the new message.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from cluster.errors import InputError
from cluster.listening import Listener
from cluster.processes import Placement, chips_per_actor, open_carried
from cluster.runs.generation import GenerationResult, Work, kept_chips
from cluster.runs.settings import CHAT_CONTEXT, ChatSettings
from cluster.runs.texts import check_compiled_so, compile_apart, job_of
from programs.artifact import decoder_of, load
from programs.decoder import adopt
from programs.models import Checkpoint, Message, chat_prompt, open_model
from programs.running import saturation_text


@dataclass(frozen=True)
class Reply:
    """text: without its end token.  full: nothing more can be said, since the context is full; the
    text may then be cut off, or empty.  cut: it has as many tokens as were asked for, and might go
    on.  result: None where nothing was generated."""

    text: str
    full: bool
    result: GenerationResult | None
    cut: bool = False


class _Speaking(Listener):
    """Passes on the tokens of an answer, not the one that ends it."""

    def __init__(self, listener: Listener, ends: tuple[int, ...]) -> None:
        self._listener, self._ends = listener, ends

    def token(self, token: int) -> None:
        if token not in self._ends:
            self._listener.token(token)


class Conversation:
    """The messages so far, and the model that continues them; ``conversation`` opens one."""

    def __init__(
        self,
        settings: ChatSettings,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        context: int,
        work: Work,
    ) -> None:
        """tokenizer: the checkpoint's.  context: positions the caches hold.  work: generates with
        the chips."""
        self._settings = settings.generation
        self._checkpoint = checkpoint
        self._tokenizer, self._ends = tokenizer, checkpoint.end_tokens
        self._work = work
        self.context = context
        self.messages: list[Message] = []
        if settings.system is not None:
            self.messages.append({"role": "system", "content": settings.system})
        self.cycles: list[int] = []
        self.predicted: list[int] = []
        self.saturated = ""
        """What conversions lost in all launches so far, in words; empty for nothing."""

    def say(self, text: str, listener: Listener | None = None) -> Reply:
        """The model's answer to ``text``; both are remembered unless the context is full.

        listener: hears its tokens as they come.  Raises CheckpointError where the template refuses,
        InputError where it writes nothing.
        """
        listener = Listener() if listener is None else listener
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = chat_prompt(self._checkpoint, messages, self._tokenizer)
        if not ids:
            raise InputError(
                "the chat template writes nothing for this message; say something else"
            )
        room = self.context - len(ids) + 1
        if room < 1:
            return Reply("", True, None)
        tokenizer, ends = self._tokenizer, self._ends
        listener.begin([], tokenizer.decode)
        job = job_of(
            self._settings, ids, self._checkpoint, min(room, self._settings.max_new_tokens)
        )
        # A token is drawn by the seed and its number in an answer: each has a seed of its own.
        turn = sum(message["role"] == "assistant" for message in self.messages)
        job = replace(job, seed=(job.seed + turn) % (1 << 63))
        result = self._work(job, _Speaking(listener, ends))
        self.saturated = saturation_text(result.saturations)
        cycles, predicted = result.whole_cycles
        self.cycles += cycles
        self.predicted += predicted
        ended = result.tokens[-1] in ends
        said = tokenizer.decode(result.tokens[:-1] if ended else result.tokens)
        self.messages = [*messages, {"role": "assistant", "content": said}]
        full = not ended and len(result.tokens) == room
        return Reply(said, full, result, cut=not ended and not full)

    @property
    def closing(self) -> str:
        """What there is to say in the end: tokens, and the exact cycles of each."""
        answers = sum(message["role"] == "assistant" for message in self.messages)
        if not self.cycles:
            return "no answers"
        low, high = min(self.cycles), max(self.cycles)
        cycles = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        exact = "as" if self.cycles == self.predicted else "NOT as"
        count = len(self.cycles)
        return (
            f"{answers} {'answer' if answers == 1 else 'answers'}, {count:,} tokens, "
            f"{cycles} cycles per token ({exact} predicted)"
        )


@contextlib.contextmanager
def conversation(
    settings: ChatSettings, listener: Listener | None = None
) -> Iterator[Conversation]:
    """A conversation on chips that are there until the context ends.

    listener: told the phases before it begins.  Raises an LpuError for a model without a chat
    template, or one that does not fit.
    """
    listener = Listener() if listener is None else listener
    single = settings.generation
    given = None if single.artifact is None else load(single.artifact)
    if given is None:
        checkpoint = open_model(single.model or "target")
    else:
        check_compiled_so(given, single)
        given, checkpoint = open_carried(given, single.model)
    first = [] if settings.system is None else [{"role": "system", "content": settings.system}]
    # A template that is missing or broken is told now, not after minutes.
    tokenizer = checkpoint.tokenizer  # once: that of a large vocabulary takes seconds to read
    chat_prompt(checkpoint, [*first, {"role": "user", "content": "?"}], tokenizer)
    images = None
    if given is None:
        listener.phase("compiling")
        positions = single.context or min(CHAT_CONTEXT, checkpoint.config.max_position)
        artifact, images = compile_apart(single, checkpoint, positions)
    else:
        artifact = adopt(given, checkpoint, 1)
    placement = Placement(
        chips_per_actor(artifact.chips, single.packing), single.address, single.in_process
    )
    with kept_chips(artifact, placement, listener.phase, images) as work:
        yield Conversation(settings, checkpoint, tokenizer, decoder_of(artifact).context, work)
