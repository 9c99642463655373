"""One digest, whatever the packing, the processes and the way of keeping step."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from numba.core.caching import FunctionCache

from chip.engine import loop
from chip.spec import ChipSpec
from cluster.listening import Listener
from cluster.processes import Placement, carrying, chip_actors
from cluster.runs import (
    GenerateSettings,
    GenerationResult,
    kept_chips,
    run_generation,
)
from cluster.runs import generate as generate_text
from cluster.runs.generation import Work
from programs.artifact import Artifact, save
from programs.decoder import compile_decoder, compile_model, partition_model
from programs.models import load_checkpoint, shipped_model
from programs.running import BARRIER, LOOKAHEAD, Generation, Runner, generate

PROMPT = (70, 221, 304)
NEW_TOKENS = 4


class Heard(Listener):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def token(self, token: int) -> None:
        self.tokens.append(token)


def run(artifact: Artifact, placement: Placement, **job: object) -> GenerationResult:
    heard = Heard()
    work = Generation(PROMPT, NEW_TOKENS, **job)  # type: ignore[arg-type]
    result = run_generation(artifact, work, placement, heard, perf_counter())
    assert heard.tokens == result.tokens
    return result


@pytest.fixture(scope="module")
def expected(artifact: Artifact) -> GenerationResult:
    return run(artifact, Placement(8, in_process=True))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The temporary files and directories that this process makes for a run."""
    paths: list[Path] = []
    make_file, make_directory = tempfile.mkstemp, tempfile.mkdtemp

    def file(*arguments: Any, **options: Any) -> tuple[int, str]:
        handle, name = make_file(*arguments, **options)
        paths.append(Path(name))
        return handle, name

    def directory(*arguments: Any, **options: Any) -> str:
        paths.append(Path(make_directory(*arguments, **options)))
        return str(paths[-1])

    monkeypatch.setattr(tempfile, "mkstemp", file)
    monkeypatch.setattr(tempfile, "mkdtemp", directory)
    return paths


def leftovers(made: list[Path]) -> list[Path]:
    """What is still there of them."""
    assert made
    return [path for path in made if path.exists()]


def test_runner_alone_picks_the_same_tokens(artifact: Artifact, expected: GenerationResult) -> None:
    told: list[int] = []
    result = generate(artifact, PROMPT, NEW_TOKENS, on_token=told.append)
    assert result.tokens == expected.tokens == told


def test_barrier_in_one_process(artifact: Artifact, expected: GenerationResult) -> None:
    result = run(artifact, Placement(8, in_process=True), sync=BARRIER)
    assert (result.tokens, result.digest) == (expected.tokens, expected.digest)


def test_stop_token_ends_the_text(artifact: Artifact, expected: GenerationResult) -> None:
    result = run(artifact, Placement(8, in_process=True), stop=(expected.tokens[1],))
    assert result.tokens == expected.tokens[:2]
    assert (result.ended, expected.ended) == ("stop", "length")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("chips_per_actor", "sync"),
    [
        (1, LOOKAHEAD),
        (4, BARRIER),
        (8, LOOKAHEAD),
        *(
            pytest.param(*rest, marks=pytest.mark.long)
            for rest in ((2, LOOKAHEAD), (4, LOOKAHEAD), (1, BARRIER), (2, BARRIER), (8, BARRIER))
        ),
    ],
)
@pytest.mark.long
def test_every_packing_gives_one_digest(
    artifact: Artifact,
    expected: GenerationResult,
    local_ray: None,
    made: list[Path],
    chips_per_actor: int,
    sync: str,
) -> None:
    result = run(artifact, Placement(chips_per_actor), sync=sync)
    assert result.actors == 8 // chips_per_actor
    assert result.tokens == expected.tokens
    assert result.cycles_per_token == expected.cycles_per_token
    assert result.cycles_per_token == result.predicted_cycles_per_token
    assert result.digest == expected.digest
    assert result.virtual_seconds == expected.virtual_seconds
    assert leftovers(made) == []


class Timed(Heard):
    """Remembers when each token came."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def token(self, token: int) -> None:
        super().token(token)
        self.times.append(perf_counter())


@pytest.mark.ray
@pytest.mark.long
def test_actors_load_no_compiler(artifact: Artifact, local_ray: None) -> None:
    entries = ["prefill-64", "decode-64"]
    with chip_actors(artifact, Placement(4), lambda _: None, entries=entries) as supervisor:
        results = supervisor.run("generate", Generation(PROMPT, NEW_TOKENS))
        maps = [Path(f"/proc/{process}/maps").read_text() for process in supervisor.processes]
    assert results[0].run.tokens == run(artifact, Placement(8, in_process=True)).tokens
    if not isinstance(loop.run_chips.made._cache, FunctionCache):  # type: ignore[attr-defined]
        pytest.skip("this host keeps no compiled kernels")
    # Compiled parts of both are in a process that imports them: of LLVM alone, then.
    assert [("llvmlite" in text, "/numba/" in text) for text in maps] == [(True, False)] * 2
    assert "/numba/" in Path("/proc/self/maps").read_text()


@pytest.mark.ray
def test_text_streams_from_actors_and_their_chips_remember(
    artifact: Artifact, local_ray: None
) -> None:
    first = Generation(PROMPT, 60)
    told: list[Timed] = []

    def say(work: Work, job: Generation) -> GenerationResult:
        told.append(Timed())
        result = work(job, told[-1])
        assert told[-1].tokens == result.tokens
        return result

    with kept_chips(artifact, Placement(4), lambda _: None) as work:
        before = say(work, first)
        # The chips were fed all tokens but the last; the next prompt goes back over some of them.
        second = Generation((*PROMPT, *before.tokens[:30], 70, 71), 6)
        began = perf_counter()
        after = say(work, second)
        recomputed = perf_counter() - began
    # Text comes while it is made: the first token long before the last, and not in one heap.
    times = told[0].times
    assert before.first_token_seconds < 0.8 * before.wall_seconds
    assert len({round(time, 2) for time in times}) > 4
    fresh = [
        run_generation(artifact, job, Placement(8, in_process=True), Heard(), perf_counter())
        for job in (first, second)
    ]
    for kept, expected in zip((before, after), fresh, strict=True):
        assert kept.tokens == expected.tokens
        assert kept.cycles_per_token == expected.cycles_per_token
    assert recomputed < before.wall_seconds


def test_kept_chips_launch_only_what_is_new(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[str] = []
    whole = Runner.launch

    def launch(self: Runner, entry: str, *rest: Any) -> dict[int, int]:
        launched.append(entry)
        return whole(self, entry, *rest)

    monkeypatch.setattr(Runner, "launch", launch)
    placement = Placement(8, in_process=True)
    jobs = [
        (Generation(PROMPT, 4), 6),
        (Generation((*PROMPT, 9, 8), 2), 3),  # the prompt's three are known
        (Generation((*PROMPT, 9, 8), 2), 2),  # all but the last, which gives the token
        (Generation((*PROMPT[:2], 5), 2), 2),
        (Generation((1, 2), 2), 3),
    ]
    with kept_chips(artifact, placement, lambda _: None) as work:
        for job, launches in jobs:
            launched.clear()
            kept = work(job, Heard())
            assert len(launched) == launches
            fresh = generate(artifact, job.prompt, job.max_new_tokens)
            assert kept.tokens == fresh.tokens


@pytest.fixture(scope="module")
def staged() -> Artifact:
    """The shipped model on four stages of two chips."""
    return compile_decoder(
        partition_model(load_checkpoint(shipped_model()), 2), ChipSpec(), 64, pp=4
    )


def test_kept_chips_feed_stages_only_what_is_new(staged: Artifact) -> None:
    launches = []
    with kept_chips(staged, Placement(8, in_process=True), lambda _: None) as work:
        for prompt in ((*PROMPT, 4, 5, 6, 7), (*PROMPT, 4, 9, 8, 1, 2, 3), (*PROMPT, 1)):
            kept = work(Generation(prompt, 3), Heard())
            assert kept.first_token_cycles == kept.predicted_first_token_cycles
            fresh = run_generation(
                staged,
                Generation(prompt, 3),
                Placement(8, in_process=True),
                Heard(),
                perf_counter(),
            )
            assert kept.tokens == fresh.tokens
            # The first token came from the last stage alone; it is no token's way through all.
            assert fresh.decode_tokens == 2 and len(fresh.cycles_per_token) == 3
            decode = staged.predicted_cycles["decode-64"]
            assert fresh.whole_cycles == ([decode] * 2, [decode] * 2)
            assert fresh.decode_seconds * staged.spec.clock_hz > 2 * decode
            launches.append((len(kept.entries), len(fresh.entries)))
    # Seven, nine and four tokens of a prompt on four stages; four and three are known already.
    assert launches == [(12, 12), (10, 14), (3, 9)]


@pytest.mark.ray
@pytest.mark.long
def test_prompts_on_stages_in_processes(staged: Artifact, local_ray: None) -> None:
    """One digest in one process and in two, one of which dies between two beats."""
    job = Generation(tuple(range(3, 43)), 25)
    calm = run_generation(staged, job, Placement(8, in_process=True), Heard(), perf_counter())
    assert calm.entries[:44] == ["prompt-64"] * 42 + ["prompt-64-end", "decode-64"]
    assert calm.first_token_cycles == calm.predicted_first_token_cycles

    class Killer(Heard):
        def token(self, token: int) -> None:
            if not self.tokens:
                os.kill(chip_processes()[0], signal.SIGKILL)
            super().token(token)

    heard, placement = Killer(), Placement(4, snapshot_launches=5)
    barred = replace(job, sync=BARRIER)
    result = run_generation(staged, barred, placement, heard, perf_counter())
    assert heard.tokens == result.tokens == calm.tokens
    assert (result.digest, result.virtual_seconds) == (calm.digest, calm.virtual_seconds)


def chip_processes() -> list[int]:
    """Process ids of the chip actors that descend from this process (Linux)."""
    parents: dict[int, int] = {}
    chips = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            parents[int(entry.name)] = int(fields[1])
            if (entry / "cmdline").read_bytes().startswith(b"ray::ChipActor"):
                chips.append(int(entry.name))

    def ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid in chips if ours(pid)]


@pytest.mark.ray
def test_a_killed_actor_is_replaced_and_the_text_goes_on(
    artifact: Artifact, local_ray: None, made: list[Path]
) -> None:
    work = Generation(PROMPT, 55)
    calm = run_generation(artifact, work, Placement(8, in_process=True), Heard(), perf_counter())

    class Killer(Heard):
        def token(self, token: int) -> None:
            if not self.tokens:
                os.kill(chip_processes()[0], signal.SIGKILL)
            super().token(token)

    heard = Killer()
    result = run_generation(artifact, work, Placement(4), heard, perf_counter())
    assert heard.tokens == result.tokens == calm.tokens
    assert (result.digest, result.virtual_seconds) == (calm.digest, calm.virtual_seconds)
    assert result.cycles_per_token == calm.cycles_per_token
    # The text may be over before the kill strikes; tests/long/chaos kills in the middle surely.
    assert all(len(recovery.groups) == 1 for recovery in result.recoveries)
    assert leftovers(made) == []


def test_cycles_do_not_depend_on_the_tokens(artifact: Artifact) -> None:
    first = run(artifact, Placement(8, in_process=True))
    other = run_generation(
        artifact,
        Generation((5, 6, 7), NEW_TOKENS),
        Placement(8, in_process=True),
        Heard(),
        perf_counter(),
    )
    assert first.cycles_per_token == other.cycles_per_token
    assert first.digest != other.digest
    assert np.isfinite(first.virtual_seconds)


@pytest.mark.long
def test_a_relative_model_path_holds_with_actors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actors work in another directory; a byte order mark in config.json is no matter either."""
    shutil.copytree(shipped_model(), tmp_path / "hf")
    config = tmp_path / "hf" / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"model": "hf", "chips": 2, "max_new_tokens": 2}
    alone = generate_text(GenerateSettings(**given, in_process=True))
    apart = generate_text(GenerateSettings(**given, chips_per_actor="1"))
    assert apart.result.actors == 2
    assert (apart.digest, apart.text) == (alone.digest, alone.text)


@pytest.mark.ray
@pytest.mark.long
def test_one_file_is_enough_for_actors(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is gone and the file lies elsewhere: actors find what the driver laid down."""
    shutil.copytree(shipped_model(), tmp_path / "hf")
    given: dict[str, Any] = {"chips": 2, "max_new_tokens": 2}
    model = str(tmp_path / "hf")
    alone = generate_text(GenerateSettings(**given, model=model, context=64, in_process=True))
    checkpoint = load_checkpoint(tmp_path / "hf")
    artifact = compile_model(checkpoint, tp=2, dtype="int8", context=64, chip="groq-lpu-1")
    save(carrying(artifact, checkpoint), tmp_path / "hf.lpu")
    shutil.rmtree(tmp_path / "hf")
    monkeypatch.chdir("/")
    apart = generate_text(
        GenerateSettings(**given, artifact=tmp_path / "hf.lpu", chips_per_actor="1")
    )
    assert apart.result.actors == 2
    assert (apart.digest, apart.text) == (alone.digest, alone.text)
