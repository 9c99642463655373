"""Chunks of a prompt from the command line and from Python, in processes and beside faults."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

import pytest

import lpu
from chip.spec import ChipSpec
from cluster import GenerateSettings, generate
from cluster.cli import run
from cluster.errors import InputError, RunError
from cluster.listening import Listener
from cluster.processes import Placement
from cluster.runs import kept_chips, run_generation
from interconnect.wiring import Topology, topology_of
from programs.artifact import Artifact, decoder_of, load
from programs.decoder import Host, compile_decoder, partition_model
from programs.faults import FaultPlan, FaultSetting
from programs.faults.plan import DeadNode
from programs.models import load_checkpoint, shipped_model
from programs.running import BARRIER, Generation, Runner, RunResult
from tests.cluster.test_generation import chip_processes

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


@pytest.mark.long
def test_a_machine_with_spare_nodes_is_compiled_for_chunks_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Programs for the wiring on which a run goes on, when a node is lost."""
    made: list[Artifact] = []

    def on_spares(
        compile_on: Callable[[Topology], Artifact], chips: int, *_: Any, **__: Any
    ) -> NoReturn:
        made.append(compile_on(topology_of(chips)))
        raise RunError("no further")

    monkeypatch.setattr("cluster.runs.texts.generate_on_spares", on_spares)
    settings = GenerateSettings(
        model="draft", prompt=PROMPT, max_new_tokens=2, tp=8, pp=2, context=64, chunk=4
    )
    with pytest.raises(RunError, match="no further"):
        generate(settings, faults=FaultPlan(dead_nodes=(DeadNode(0, 1),), spare_nodes=1))
    assert [decoder_of(artifact).chunk for artifact in made] == [4]


@pytest.fixture(scope="module")
def staged() -> Artifact:
    """The shipped draft on two stages of two chips, with chunks of four tokens."""
    model = partition_model(load_checkpoint(shipped_model("draft")), 2)
    return compile_decoder(model, ChipSpec(), 64, pp=2, chunk=4)


def alone(artifact: Artifact) -> Artifact:
    """The same without programs of chunks."""
    own = {name: of for name, of in artifact.programs.items() if not name.startswith("chunk")}
    return replace(artifact, programs=own)


def test_turns_of_a_conversation_are_fed_in_chunks(staged: Artifact) -> None:
    """Chips that stay are fed what is new, of which a chunk begins anywhere."""
    turns = [tuple(range(3, 16)), (*range(3, 16), 9, 8, *range(20, 33)), (*range(3, 10), 7)]
    fed = []
    with kept_chips(staged, Placement(4, in_process=True), lambda _: None) as work:
        for turn in turns:
            kept = work(Generation(turn, 3), Listener())
            assert kept.tokens == run_tokens(alone(staged), turn, 3).tokens
            assert kept.first_token_cycles == kept.predicted_first_token_cycles
            fed.append([entry.split("-")[0] for entry in kept.entries])
    assert all(entries[0] in ("chunk", "chunks") for entries in fed[:2])
    assert fed[2][0] in ("prefill", "prompt", "decode"), "one token is new"


@pytest.mark.long
def test_a_node_that_dies_between_chunks(staged: Artifact) -> None:
    """All launches again on the spare, chunks and beats of chunks as the first time."""
    prompt = tuple(range(3, 24))
    calm = run_tokens(staged, prompt, 2)
    chunks = [n for n, entry in enumerate(calm.entries) if entry.startswith("chunk")]
    for launch in chunks[1::2]:
        plan = FaultPlan(dead_nodes=(DeadNode(0, launch, 1000),))
        setting = FaultSetting.of(plan, staged)
        lost = Runner.alone(staged, Host(staged), faults=setting).generate(Generation(prompt, 2))
        assert (lost.tokens, lost.sums, lost.retired) == (calm.tokens, calm.sums, calm.retired)
        assert lost.io_seconds == calm.io_seconds and lost.faults["replays"] == 1


@pytest.mark.ray
@pytest.mark.long
def test_chunks_in_processes_one_of_which_dies(staged: Artifact, local_ray: None) -> None:
    """It goes on from a snapshot between two launches of chunks; one digest, one time."""
    job = Generation(tuple(range(3, 40)), 20, sync=BARRIER)
    calm = run_generation(staged, job, Placement(4, in_process=True), Listener(), perf_counter())
    assert calm.entries[3].startswith("chunk") and calm.entries[4].startswith("chunk")

    class Killer(Listener):
        killed = 0

        def token(self, token: int) -> None:
            if not self.killed:
                self.killed = chip_processes()[0]
                os.kill(self.killed, signal.SIGKILL)

    killer = Killer()
    placement = Placement(2, snapshot_launches=4)
    lost = run_generation(staged, job, placement, killer, perf_counter())
    assert killer.killed and lost.recoveries
    assert (lost.tokens, lost.digest) == (calm.tokens, calm.digest)
    assert lost.virtual_seconds == calm.virtual_seconds


def run_tokens(artifact: Artifact, prompt: tuple[int, ...], new_tokens: int) -> RunResult:
    return Runner.alone(artifact, Host(artifact)).generate(Generation(prompt, new_tokens))
