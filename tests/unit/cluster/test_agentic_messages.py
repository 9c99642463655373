"""Whatever bytes come, a message is accepted or rejected in one line, and counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.experiments.agentic.messages import (
    ASK,
    KINDS,
    MAX_BYTES,
    RESULT,
    Inbox,
    MessageError,
    StepMessage,
    Tool,
    decode,
    encode,
    schema,
)
from tests import examples

texts = st.text(max_size=60)
asks = st.builds(
    StepMessage,
    request=st.integers(0, 2**31 - 1),
    step=st.integers(10, 255),
    kind=st.sampled_from([kind for kind in KINDS if kind != "call_tool"]),
    after=st.lists(st.integers(0, 9), max_size=5, unique=True).map(tuple),
    prompt=texts,
    max_new_tokens=st.integers(1, 256),
)
calls = st.builds(
    StepMessage,
    request=st.integers(0, 9),
    step=st.integers(0, 9),
    kind=st.just("call_tool"),
    tool=st.builds(Tool, st.from_regex(r"\A[a-z][a-z0-9_]{0,31}\Z"), texts),
)
results = st.builds(
    StepMessage,
    request=st.integers(0, 9),
    step=st.integers(0, 9),
    kind=st.sampled_from(KINDS),
    phase=st.just(RESULT),
    text=texts,
    output_tokens=st.none() | st.integers(0, 256),
)
messages = st.one_of(asks, calls, results)


def plain() -> dict[str, Any]:
    asked = StepMessage(1, 2, "reason", (0, 1), ASK, prompt="def ", max_new_tokens=8)
    value: dict[str, Any] = json.loads(encode(asked))
    return value


@given(messages)
def test_every_message_survives_the_way(message: StepMessage) -> None:
    raw = encode(message)
    assert decode(raw) == message
    assert encode(decode(raw)) == raw


@settings(max_examples=examples(300))
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_valid(raw: bytes) -> None:
    inbox = Inbox()
    inbox.receive(raw)
    assert inbox.accepted + inbox.rejected == 1
    assert all("\n" not in reason for reason in inbox.reasons)


@settings(max_examples=examples(300))
@given(messages, st.data())
def test_damaged_messages_are_refused_or_valid(message: StepMessage, data: st.DataObject) -> None:
    raw = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    inbox = Inbox()
    found = inbox.receive(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    assert (found is None) == (inbox.rejected == 1)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@pytest.mark.long
@settings(max_examples=examples(300))
@given(st.dictionaries(st.sampled_from(sorted(schema()["properties"])), json_values))
def test_any_values_under_the_right_names_are_refused_or_valid(changes: dict[str, Any]) -> None:
    raw = json.dumps({**plain(), **changes}).encode()
    try:
        assert encode(decode(raw))
    except MessageError as error:
        assert "\n" not in str(error) and len(str(error)) < 300


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b"[" * 30_000,
        b'{"a":' * 6_000,
        b"1" * 20_000,
        b" " * (MAX_BYTES + 1),
        b"NaN",
        json.dumps({**plain(), "version": 2}).encode(),
        json.dumps({**plain(), "version": True}).encode(),
        json.dumps({**plain(), "step": 2.0}).encode(),
        json.dumps({**plain(), "step": -1}).encode(),
        json.dumps({**plain(), "after": [2]}).encode(),
        json.dumps({**plain(), "after": [0, 0]}).encode(),
        json.dumps({**plain(), "kind": "dream"}).encode(),
        json.dumps({**plain(), "prompt": "\ud800"}).encode(),
        json.dumps({**plain(), "prompt": "x" * 9000}).encode(),
        json.dumps({**plain(), "max_new_tokens": 10**30}).encode(),
        json.dumps({**plain(), "colour": 1}).encode(),
        json.dumps({**plain(), "text": "both"}).encode(),
        json.dumps({**plain(), "kind": "call_tool"}).encode(),
        json.dumps({**plain(), "tool": {"name": "../x", "argument": ""}}).encode(),
        encode(StepMessage(1, 2, "plan", prompt="", max_new_tokens=1))[:-1] + b',"step":3}',
    ],
)
def test_known_ways_to_be_wrong(raw: bytes) -> None:
    inbox = Inbox()
    assert inbox.receive(raw) is None
    assert (inbox.accepted, inbox.rejected) == (0, 1)
    assert len(next(iter(inbox.reasons))) < 300


def test_reasons_kept_are_bounded() -> None:
    inbox = Inbox()
    for number in range(100):
        inbox.receive(json.dumps({**plain(), "step": -1 - number}).encode())
    assert inbox.rejected == 100 and len(inbox.reasons) <= Inbox.MOST_REASONS


def test_a_message_that_breaks_the_schema_is_not_sent() -> None:
    for wrong in (
        StepMessage(1, 0, "plan"),
        StepMessage(1, 0, "call_tool", prompt="x", max_new_tokens=1),
        StepMessage(-1, 0, "plan", prompt="x", max_new_tokens=1),
        StepMessage(1, 0, "plan", prompt="\ud800", max_new_tokens=1),
    ):
        with pytest.raises(MessageError):
            encode(wrong)
