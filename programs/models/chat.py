"""From the messages of a chat to the prompt a model was trained on: its checkpoint's template.

The template runs in a process of its own with limits, see ``template_process``; this module knows
how to ask that process, and nothing about Jinja.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from programs.models.checkpoint import Checkpoint
from programs.models.tensors import CheckpointError

__all__ = ["Message", "chat_prompt", "render_chat"]

Message = Mapping[str, str]
"""``role`` (system, user or assistant) and ``content``."""

PROCESS = Path(__file__).with_name("template_process.py")
#: The process ends itself sooner; this is for one that cannot be started or be stopped by itself.
PATIENCE_SECONDS = 30.0


def chat_prompt(
    checkpoint: Checkpoint, messages: Sequence[Message], tokenizer: Tokenizer | None = None
) -> list[int]:
    """Token ids of ``messages`` and the beginning of an answer, by the checkpoint's template.

    tokenizer: the checkpoint's own where a caller has it, for it takes long to read.
    The template writes the special tokens, so the tokenizer adds none: no doubled beginning.
    Raises CheckpointError where there is no template, or one that fails.
    """
    template = checkpoint.chat_template
    if template is None:
        raise CheckpointError(
            f"{checkpoint.path} has no chat template; use a chat model, put its "
            "chat_template.jinja beside the weights (before lpu compile, for an artifact), or use "
            "lpu generate without --chat"
        )
    text = render_chat(template, messages, checkpoint.special_tokens, str(checkpoint.path))
    own = checkpoint.tokenizer if tokenizer is None else tokenizer
    ids: list[int] = own.encode(text, add_special_tokens=False).ids
    return ids


def render_chat(
    template: str,
    messages: Sequence[Message],
    special_tokens: Mapping[str, str],
    where: str,
) -> str:
    """The prompt that ``template`` makes of ``messages``, with the beginning of an answer.

    special_tokens: texts by name, for instance ``bos_token``.  where: what errors name.  The
    template can open no file; its memory, its seconds and its text have limits.  Raises
    CheckpointError with one line for whatever goes wrong in it.
    """
    values = {
        **special_tokens,
        "messages": [dict(message) for message in messages],
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
    }
    request = json.dumps({"template": template, "values": values})
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(PROCESS)],
            input=request + "\n",
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise _refusal(where, "it does not end") from None
    except OSError as error:
        raise _refusal(where, f"no process for it: {error.strerror}") from None
    if not done.stdout.endswith("\n"):
        slow = done.returncode == -signal.SIGALRM
        raise _refusal(where, "it takes too long" if slow else "it brought its process down")
    answer: dict[str, str] = json.loads(done.stdout)
    if "text" not in answer:
        raise _refusal(where, answer["error"])
    return answer["text"]


def _refusal(where: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: its chat template cannot be used ({reason}); mend chat_template.jinja, or the "
        "messages it refuses"
    )
