"""Renders chat templates in a process of its own: JSON in, JSON out.

A template is somebody else's program.  Jinja's sandbox keeps it from Python's insides; what the
sandbox does not bound (``'a' * 10**9``, a loop in a loop, a huge power), the process does: memory,
seconds and the length of the text have limits, and no file can be opened, since there is no loader
and no file descriptor left.  When a limit is hit, this process says so or dies.

One request per line of stdin, one answer per line of stdout:

    {"template": "...", "values": {...}}  ->  {"text": "..."}  or  {"error": "..."}

The environment is that of ``transformers``: trimmed blocks, loop controls, ``tojson``,
``raise_exception``, ``strftime_now`` and ``{% generation %}`` blocks, which stand for themselves.
This file is run as a script, so it imports nothing of this project.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Wall seconds for one template; a real one needs a thousandth.
MOST_SECONDS = 5.0
#: Address space of the process; Python and Jinja take a third of it.
MOST_MEMORY_BYTES = 512 << 20
#: Longest text: more than any model's context.
MOST_CHARACTERS = 4 << 20


class _GenerationBlock(Extension):
    """``{% generation %}``: marks what an assistant said, for training; here just its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes HTML.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def environment() -> ImmutableSandboxedEnvironment:
    """The sandbox templates run in."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return made


def answer(sandbox: ImmutableSandboxedEnvironment, request: dict[str, Any]) -> dict[str, str]:
    """The text of one request, or what went wrong in one line."""
    try:
        pieces: list[str] = []
        length = 0
        for piece in sandbox.from_string(request["template"]).generate(**request["values"]):
            length += len(piece)
            if length > MOST_CHARACTERS:
                return {"error": f"its text has more than {MOST_CHARACTERS:,} characters"}
            pieces.append(piece)
        text = "".join(pieces)
        text.encode("utf-8")
    except MemoryError:
        return {"error": f"it needs more than {MOST_MEMORY_BYTES >> 20} MiB of memory"}
    except Exception as error:  # whatever the template did, it is the template's
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return {"error": reason.encode("utf-8", "replace").decode("utf-8")}
    return {"text": text}


def _limit() -> None:
    """From here on no memory without end, and no file, process or connection."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def main() -> None:
    """Answer requests until stdin ends."""
    sandbox = environment()
    # Whatever Jinja and the clock load at their first use, they load now.
    warm = "{% for m in messages %}{{ m | tojson }}{{ strftime_now('%d %b %Y') }}{% endfor %}"
    answer(sandbox, {"template": warm, "values": {"messages": [{"a": 1}]}})
    answer(sandbox, {"template": "{% for", "values": {}})
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, inside a long product too
    _limit()
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
        said = json.dumps(answer(sandbox, request))
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.write(said + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
