"""What goes to the terminal: results to stdout, progress and logs to stderr."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from cluster.errors import RunError
from cluster.listening import Listener

#: What people copy and compare: a table of 80 columns would break it.
_DIGEST = re.compile(r"[0-9a-f]{16,}")


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on one line of stdout."""
    typer.echo(json.dumps(value))


def stderr_console() -> Console:
    """Where progress goes."""
    return Console(stderr=True, highlight=False)


def print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A closing table of names and values on stdout; digests below it, each on one line."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    digests = [row for row in rows if _DIGEST.fullmatch(row[1])]
    for name, value in rows:
        if (name, value) not in digests:
            table.add_row(name, value)
    Console(highlight=False).print(table)
    for name, value in digests:
        typer.echo(f"{name}: {value}")


def check_range(strict: bool, saturated: str) -> None:
    """Raise RunError, after the results, when conversions saturated and ``strict`` forbids it."""
    if strict and saturated:
        raise RunError(
            f"values saturated: {saturated} (--strict-range); see docs/numerics.md, Saturation"
        )


@contextmanager
def working(text: str, console: Console) -> Iterator[Callable[[str], None]]:
    """A spinner with a changing text while something long goes on; silent when not a terminal."""
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status(text) as status:
        yield lambda new: status.update(new)


class Terminal(Listener):
    """Shows the phases of a run on stderr and, if it is to ``stream``, the text on stdout.

    Text is printed as it comes, up to the last whole character: bytes of a character that is not
    complete yet wait for the next token.
    """

    def __init__(self, stream: bool) -> None:
        self._ids: list[int] = []
        self._decode: Callable[[list[int]], str] = lambda _: ""
        self._stream = stream
        self._shown = ""
        self._console = stderr_console()
        self._status = self._console.status("") if self._console.is_terminal else None

    def begin(self, prompt: Sequence[int], decode: Callable[[list[int]], str]) -> None:
        """Show the prompt with the first token."""
        self._ids, self._decode = list(prompt), decode

    def phase(self, text: str) -> None:
        """Show what is going on; text takes the screen once tokens come."""
        if self._status is None:
            return
        if text == "generating" and self._stream:
            self._status.stop()
            self._show()
            return
        self._status.update(f"{text} ...")
        self._status.start()

    def token(self, token: int) -> None:
        """Show the text the token completes."""
        self._ids.append(token)
        if self._stream:
            self._show()

    def close(self) -> None:
        """Leave the terminal as it should be."""
        if self._status is not None:
            self._status.stop()
        if self._stream and self._shown:
            typer.echo("")

    def _show(self) -> None:
        text = self._decode(self._ids).rstrip("\N{REPLACEMENT CHARACTER}")
        if text.startswith(self._shown):
            typer.echo(text[len(self._shown) :], nl=False)
            self._shown = text
