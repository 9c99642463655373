"""What goes to the terminal: results to stdout, progress and logs to stderr."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from cluster.errors import RunError
from cluster.listening import Listener

#: What people copy and compare: a table of 80 columns would break it.
_DIGEST = re.compile(r"[0-9a-f]{16,}")
#: What a log says of the prompt, which is computed before there is anything to read.
FIRST_TOKEN = "generating: the first token"
#: How long a phase lasts before a log hears of it.
PATIENCE_SECONDS = 2.0


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


class PhaseLines:
    """What goes on, for a log: a line when a phase has lasted a while, and one when it ends.

    Phases that are soon over are not worth a line.  ``LPU_PROGRESS=0`` keeps all of them out.
    """

    def __init__(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience = patience_seconds
        self._changing = threading.Lock()  # the timer has a thread of its own
        self._timer: threading.Timer | None = None
        self._text = ""
        self._began = 0.0
        self._told = False

    def begin(self, text: str) -> None:
        """Another phase begins, in place of the one before."""
        self.end()
        self._text, self._began = text.removesuffix("...").strip(), monotonic()
        if self._text and os.environ.get("LPU_PROGRESS") != "0":
            self._timer = threading.Timer(self._patience, self._tell, [self._text])
            self._timer.daemon = True
            self._timer.start()

    def _tell(self, text: str) -> None:
        with self._changing:
            if text == self._text:
                self._told = True
                typer.echo(f"lpu: {text} ...", err=True)

    def end(self) -> None:
        """The phase is over."""
        if self._timer is not None:
            self._timer.cancel()
        with self._changing:
            if self._told:
                seconds = monotonic() - self._began
                text = re.sub(r" \(.*\)$", "", self._text)
                typer.echo(f"lpu: {text}: {seconds:.1f} s", err=True)
            self._timer, self._text, self._told = None, "", False


@contextmanager
def working(text: str, console: Console) -> Iterator[Callable[[str], None]]:
    """While something long goes on: a spinner with a changing text, lines where no terminal is."""
    if console.is_terminal:
        with console.status(text) as status:
            yield lambda new: status.update(new)
        return
    lines = PhaseLines()
    try:
        lines.begin(text)
        yield lines.begin
    finally:
        lines.end()


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
        self._lines = PhaseLines()

    def begin(self, prompt: Sequence[int], decode: Callable[[list[int]], str]) -> None:
        """Show the prompt with the first token."""
        self._ids, self._decode = list(prompt), decode

    def phase(self, text: str) -> None:
        """Show what is going on; text takes the screen once tokens come."""
        if self._status is None:
            self._lines.begin(FIRST_TOKEN if text == "generating" else text)
            return
        if text == "generating" and self._stream:
            self._status.stop()
            self._show()
            return
        self._status.update(f"{text} ...")
        self._status.start()

    def token(self, token: int) -> None:
        """Show the text the token completes."""
        self._lines.end()
        self._ids.append(token)
        if self._stream:
            self._show()

    def close(self) -> None:
        """Leave the terminal as it should be."""
        if self._status is not None:
            self._status.stop()
        self._lines.end()
        if self._stream and self._shown:
            typer.echo("")

    def _show(self) -> None:
        text = self._decode(self._ids).rstrip("\N{REPLACEMENT CHARACTER}")
        if text.startswith(self._shown):
            typer.echo(text[len(self._shown) :], nl=False)
            self._shown = text
