"""Hostile input ends in one line, soon, within little memory; ``-m long`` feeds 10,000 a format."""

from __future__ import annotations

import pytest

from .engine import MOST_BYTES, MOST_SECONDS, fuzz
from .formats import FORMATS


def _feed(name: str, inputs: int, seed: int) -> None:
    found = fuzz(name, inputs, seed)
    assert not found.crashes, found.crashes[0][1]
    assert found.slowest_seconds < MOST_SECONDS
    assert found.grown_bytes < MOST_BYTES
    if name != "agent-json":  # the desk counts and answers nothing
        assert 0 < found.answers["accepted"] < inputs
        assert len(found.answers) > 5


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_input(name: str) -> None:
    _feed(name, FORMATS[name].few, 1)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_much_hostile_input(name: str) -> None:
    _feed(name, 10_000, 2)


def test_a_reader_that_fails_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    def broken(data: bytes, _: object) -> None:
        if data.count(b"\n") > 6:
            raise KeyError("seed")

    monkeypatch.setitem(FORMATS, "broken", replace(FORMATS["link-toml"], read=broken))
    found = fuzz("broken", 100, 0)
    assert found.crashes and "KeyError" in found.crashes[0][1]
