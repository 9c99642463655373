"""``lpu chat``: lines of stdin to a model, its answers as they come."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing

import typer

from cluster import option_types
from cluster.commands.settings import takes_settings
from cluster.runs import ChatSettings

#: Longest line: more than any context.
MOST_BYTES = 1 << 20


def _lines() -> Iterator[str]:
    """What is typed, until the end of input or ``/exit``; lines without anything are no message."""
    from cluster.errors import InputError

    asked = sys.stdin.isatty()
    while True:
        if asked:
            typer.echo("> ", nl=False, err=True)
        line = sys.stdin.buffer.readline(MOST_BYTES + 1)
        if len(line) > MOST_BYTES:
            raise InputError(f"a line of stdin has more than {MOST_BYTES:,} bytes; say less")
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(
                f"a line of stdin is not UTF-8 (byte 0x{line[error.start]:02x} at {error.start}); "
                "send UTF-8 text"
            ) from None
        if not line or text == "/exit":
            return
        if text:
            yield text


@takes_settings
def chat(settings: ChatSettings, strict_range: option_types.StrictRange = False) -> None:
    """Talk with a model that has a chat template: a line in, an answer out."""
    from cluster.commands.output import Terminal, check_range
    from cluster.runs import conversation

    terminal = Terminal(stream=False)
    with closing(terminal), conversation(settings, terminal) as talk:
        terminal.close()
        for line in _lines():
            with closing(Terminal(stream=True)) as speaking:
                answer = talk.say(line, speaking)
            if answer.full:
                typer.echo(
                    f"lpu: the context of {talk.context:,} positions is full; begin anew, or with "
                    "a larger --context",
                    err=True,
                )
                break
            if answer.cut:
                typer.echo(
                    f"lpu: the answer is cut at {settings.max_new_tokens:,} tokens; a larger "
                    "--max-new-tokens lets it go on",
                    err=True,
                )
        typer.echo(talk.closing)
        if talk.saturated:
            typer.echo(f"saturated: {talk.saturated}")
        saturated = talk.saturated
    check_range(strict_range, saturated)
