"""Hostile input ends in one line, soon, within little memory; ``-m soak`` feeds 10,000 a format."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter, process_time

import pytest

from programs.decoder.compiler import CompileError
from programs.models import CheckpointError

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


@pytest.mark.soak
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


def test_a_prefix_without_merges_does_not_end_the_process(tmp_path: Path) -> None:
    """The library would cut it off the merges' second halves and abort; so it never gets to."""
    plain = json.loads(next(iter(FORMATS["tokenizer"].samples(tmp_path))))
    plain["model"]["continuing_subword_prefix"] = "{"
    with pytest.raises(CheckpointError, match="continuing_subword_prefix"):
        FORMATS["tokenizer"].read(json.dumps(plain).encode(), tmp_path)


def test_a_shape_beyond_every_machine_is_refused_at_once(tmp_path: Path) -> None:
    plain = json.loads(list(FORMATS["shape-json"].samples(tmp_path))[1])
    plain["num_hidden_layers"] = 16_383
    began = perf_counter()
    with pytest.raises(CompileError, match="fit no number of"):
        FORMATS["shape-json"].read(json.dumps(plain).encode(), tmp_path)
    assert perf_counter() - began < MOST_SECONDS


def test_a_deep_narrow_shape_is_dealt_soon(tmp_path: Path) -> None:
    plain = json.loads(next(iter(FORMATS["shape-json"].samples(tmp_path))))
    plain["num_hidden_layers"] = 8192
    began = process_time()
    FORMATS["shape-json"].read(json.dumps(plain).encode(), tmp_path)
    assert process_time() - began < MOST_SECONDS
