"""Chunks of a prompt from the command line and from Python, down to the programs that run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import lpu
from cluster import GenerateSettings, generate
from cluster.cli import run
from cluster.errors import InputError
from programs.artifact import decoder_of, load

PROMPT = "def add(a, b):\n    return"


def test_a_compiled_file_of_chunks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without ``--entry`` one token is launched: a chunk's program may end without logits."""
    file = tmp_path / "m.lpu"
    asked = ["--model", "draft", "--tp", "1", "--context", "64", "--chunk", "4"]
    assert run(["compile", *asked, "-o", str(file)]) == 0
    artifact = load(file)
    assert decoder_of(artifact).chunk == 4 and "chunk-64-end" in artifact.programs
    capsys.readouterr()
    for verb in ("run", "inspect"):
        assert run([verb, str(file), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["entry"] == "decode-64"


def test_a_text_in_chunks_takes_fewer_launches() -> None:
    settings = GenerateSettings(
        model="draft", prompt=PROMPT, max_new_tokens=2, tp=1, in_process=True, context=64
    )
    alone, chunked = generate(settings), generate(replace(settings, chunk=4))
    tokens = len(alone.prompt)
    assert tokens > 8 and chunked.result.tokens == alone.result.tokens
    assert len(alone.result.entries) == tokens + 1
    assert len(chunked.result.entries) <= -(-tokens // 4) + 4
    assert chunked.result.first_token_cycles < 0.7 * alone.result.first_token_cycles


def test_chunks_from_python() -> None:
    made = lpu.compile("draft", tp=1, context=64, chunk=4)
    assert decoder_of(made.artifact).chunk == 4


def test_a_chunk_that_no_launch_takes_is_refused_before_any_work() -> None:
    refused = pytest.raises(InputError, match="--chunk 65: a launch takes 64 tokens of a prompt")
    with refused:
        lpu.compile("draft", tp=1, chunk=65)
    with refused:
        GenerateSettings(chunk=65)
    assert run(["compile", "--model", "nowhere", "--chunk", "65", "-o", "m.lpu"]) == 2
