"""Step messages of the agentic experiment: JSON, checked against a published schema.

``step.schema.json`` beside this module is the contract.  Whatever bytes arrive, ``decode``
gives a valid message or raises `MessageError` with one line; an `Inbox` counts both and never
raises.  This module knows what a message is, not what a step costs or where it runs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator

KINDS = ("plan", "route", "choose_tool", "call_tool", "reason", "write_code", "summarise")
ASK, RESULT = "ask", "result"
MAX_BYTES = 32_768
MAX_TEXT = 8192
"""Characters of a prompt or a text."""
MAX_ARGUMENT = 2048
VERSION = 1


class MessageError(Exception):
    """Bytes that are no step message; the text says why, in one line."""


@dataclass(frozen=True)
class Tool:
    """A tool to call: its name, and one argument as text."""

    name: str
    argument: str


@dataclass(frozen=True)
class StepMessage:
    """One step on its way to a pool (``phase`` ask) or its result on the way back.

    after: steps of the same request that come before.  An ask has prompt and max_new_tokens, or,
    for call_tool, a tool; a result has text and, from a model, output_tokens.
    """

    request: int
    step: int
    kind: str
    after: tuple[int, ...] = ()
    phase: str = ASK
    prompt: str | None = None
    max_new_tokens: int | None = None
    tool: Tool | None = None
    text: str | None = None
    output_tokens: int | None = None


@cache
def schema() -> dict[str, Any]:
    """The published schema (JSON Schema, draft 2020-12)."""
    text = files("cluster.experiments.agentic").joinpath("step.schema.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@cache
def _validator() -> Draft202012Validator:
    Draft202012Validator.check_schema(schema())
    return Draft202012Validator(schema())


def encode(message: StepMessage) -> bytes:
    """The message as UTF-8 JSON, keys sorted; raises MessageError if it breaks the schema."""
    plain: dict[str, Any] = {"version": VERSION, "after": list(message.after)}
    for name in (
        "request",
        "step",
        "kind",
        "phase",
        "prompt",
        "max_new_tokens",
        "text",
        "output_tokens",
    ):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    if message.tool is not None:
        plain["tool"] = {"name": message.tool.name, "argument": message.tool.argument}
    _check(plain)
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise MessageError("text that is no Unicode: half a surrogate pair") from None
    if len(raw) > MAX_BYTES:
        raise MessageError(f"{len(raw):,} bytes; a message has at most {MAX_BYTES:,}")
    return raw


def decode(raw: bytes) -> StepMessage:
    """The message in ``raw``; raises MessageError of one line for anything that is none."""
    if not isinstance(raw, bytes):
        raise MessageError(f"not bytes: {type(raw).__name__}"[:80])
    if len(raw) > MAX_BYTES:
        raise MessageError(f"{len(raw):,} bytes; a message has at most {MAX_BYTES:,}")
    try:
        plain = json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError:
        raise MessageError("not UTF-8") from None
    except RecursionError:
        raise MessageError("nested too deep") from None
    except json.JSONDecodeError as error:
        raise MessageError(f"not JSON: {error.msg}") from None
    except ValueError as error:
        raise MessageError(f"not JSON: {' '.join(str(error).split())[:100]}") from None
    _check(plain)
    tool = plain.get("tool")
    message = StepMessage(
        plain["request"],
        plain["step"],
        plain["kind"],
        tuple(plain["after"]),
        plain["phase"],
        plain.get("prompt"),
        plain.get("max_new_tokens"),
        None if tool is None else Tool(tool["name"], tool["argument"]),
        plain.get("text"),
        plain.get("output_tokens"),
    )
    return message


def _check(plain: object) -> None:
    try:
        error = next(_validator().iter_errors(plain), None)
    except RecursionError:
        raise MessageError("nested too deep") from None
    if error is not None:
        where = "".join(f"[{part!r}]" for part in error.absolute_path) or "message"
        raise MessageError(f"{where[:60]}: {' '.join(error.message.split())[:120]}")
    assert isinstance(plain, dict)
    for value in (plain.get("prompt"), plain.get("text"), plain.get("tool", {}).get("argument")):
        if value is not None and not _is_unicode(value):
            raise MessageError("text that is no Unicode: half a surrogate pair")
    # JSON Schema takes 1.0 for an integer and true for 1; Python's indices do not.
    numbers = [plain[name] for name in ("version", "request", "step")] + plain["after"]
    numbers += [plain[name] for name in ("max_new_tokens", "output_tokens") if name in plain]
    if any(type(number) is not int for number in numbers):
        raise MessageError("a number with a fraction point where a whole one belongs")
    if any(before >= plain["step"] for before in plain["after"]):
        raise MessageError(f"step {plain['step']} comes after a later one: {plain['after']}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice in one object")
    return found


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


@dataclass
class Inbox:
    """Where messages arrive; counts what it takes and what it refuses, and never raises."""

    accepted: int = 0
    rejected: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """How often each reason came up, the first `MOST_REASONS` of them."""

    MOST_REASONS = 16

    def receive(self, raw: bytes, *, for_models: bool = False) -> StepMessage | None:
        """The message, or None for bytes that are none.

        for_models: refuse also what asks no model, a result or a tool's call.
        """
        try:
            message = decode(raw)
            if for_models and message.prompt is None:
                raise MessageError("a message that asks no model")
        except MessageError as error:
            self.rejected += 1
            reason = str(error)
            if reason in self.reasons or len(self.reasons) < self.MOST_REASONS:
                self.reasons[reason] = self.reasons.get(reason, 0) + 1
            return None
        self.accepted += 1
        return message

    def counts(self) -> dict[str, Any]:
        """The counts as plain data."""
        return {
            "accepted": self.accepted,
            "rejected": self.rejected,
            "reasons": dict(self.reasons),
        }
