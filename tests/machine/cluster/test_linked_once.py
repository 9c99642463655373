"""Programs that several actors have are linked once, by the driver, and run from its files.

It links while they work: what is not there they link themselves, and nobody waits for the rest.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import pytest

from chip.faults import ProgramFault
from chip.linking import LinkedProgram, link
from chip.program import Program, new_blocks
from chip.spec import ChipSpec
from cluster.listening import Listener
from cluster.processes import Placement, chip_actors, linked_files, session
from cluster.processes.group import GroupPlan
from cluster.processes.linked_files import LinkedFiles, Linking
from cluster.runs import generation, run_generation
from cluster.runs.generation import kept_chips
from programs.artifact import Artifact
from programs.decoder import Host, compile_decoder, partition_model
from programs.models import ModelConfig, random_checkpoint
from programs.running import Generation, Runner, runner

SHAPE = ModelConfig(64, 1, 2, 2, 32, 128, 320)
JOB = Generation((7, 30, 4), 2)


@pytest.fixture(scope="module")
def compiled() -> tuple[Artifact, Host]:
    model = partition_model(random_checkpoint(SHAPE, 0), 2, "int8")
    artifact = compile_decoder(model, ChipSpec(), 64)
    return artifact, Host(artifact, model)


def linked(artifact: Artifact, entries: list[str], directory: Path) -> LinkedFiles:
    """Those of two groups of a chip each, when the thread has ended."""
    linking = Linking(artifact, [range(1), range(1, 2)], entries, directory)
    linking.thread.join()
    return linking.files


def test_actors_run_what_the_driver_linked(
    compiled: tuple[Artifact, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, host = compiled
    first = Runner.alone(artifact, host).generate(JOB)
    files = linked(artifact, list(artifact.programs), tmp_path)
    assert set(files.paths) == {(entry, 0) for entry in artifact.programs}
    assert sorted(tmp_path.iterdir()) == sorted(files.paths.values())

    def no(*_: object) -> None:
        raise AssertionError("an actor links")

    monkeypatch.setattr(runner, "link", no)
    host.begin()
    other = Runner.alone(artifact, host)
    other.stored = pickle.loads(pickle.dumps(files)).read
    again = other.generate(JOB)
    assert (again.sums, again.tokens, again.retired) == (first.sums, first.tokens, first.retired)
    for damage in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:1000])):
        damage(files.paths["decode-64", 0])
        host.begin()
        other = Runner.alone(artifact, host)
        other.stored = files.read
        with pytest.raises(AssertionError, match="an actor links"):
            other.generate(JOB)
        monkeypatch.setattr(runner, "link", link)
        host.begin()
        other = Runner.alone(artifact, host)
        other.stored = files.read
        assert other.generate(JOB).sums == first.sums
        monkeypatch.setattr(runner, "link", no)
        files = linked(artifact, list(artifact.programs), tmp_path)


def test_what_only_one_has_is_its_own_to_link(
    compiled: tuple[Artifact, Host], tmp_path: Path
) -> None:
    artifact, _ = compiled
    linking = Linking(artifact, [range(2)], list(artifact.programs), tmp_path)
    linking.thread.join()
    assert not linking.files.paths and not list(tmp_path.iterdir())


def test_what_does_not_link_is_the_actors_to_tell(
    compiled: tuple[Artifact, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, _ = compiled
    blocks = new_blocks(2)  # two instructions of one queue in one cycle
    monkeypatch.setitem(artifact.programs, "wrong", [Program(blocks, [], [], 5)])
    files = linked(artifact, ["wrong", "decode-64"], tmp_path)
    assert list(tmp_path.iterdir()) == [files.paths["decode-64", 0]]
    chips = Runner.alone(artifact)
    chips.stored = files.read
    with pytest.raises(ProgramFault):
        chips.launch("wrong", 0, "lookahead")


@pytest.mark.parametrize("failing", ["link", "save_linked"])
def test_whatever_fails_leaves_no_part_of_a_file(
    failing: str,
    compiled: tuple[Artifact, Host],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact, _ = compiled
    whole, entries = getattr(linked_files, failing), []

    def fails_once(*arguments: Any) -> Any:
        entries.append(arguments)
        if len(entries) == 1:
            raise MemoryError
        return whole(*arguments)

    monkeypatch.setattr(linked_files, failing, fails_once)
    files = linked(artifact, ["prefill-64", "decode-64"], tmp_path)
    assert list(tmp_path.iterdir()) == [files.paths["decode-64", 0]]
    assert files.read("prefill-64", 0, artifact.spec) is None


class Slow:
    """``link`` that waits at its program of number ``at`` until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.at = at
        self.linked: list[Program] = []
        self.reached, self.go_on = Event(), Event()
        monkeypatch.setattr(linked_files, "link", self)

    def __call__(self, program: Program, spec: ChipSpec) -> LinkedProgram:
        self.linked.append(program)
        if len(self.linked) == self.at + 1:
            self.reached.set()
            assert self.go_on.wait(10)
        return link(program, spec)


def test_an_actor_waits_for_what_is_being_linked_alone(
    compiled: tuple[Artifact, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, _ = compiled
    slow, looked = Slow(monkeypatch, 1), Event()

    def sleep(seconds: float) -> None:
        looked.set()
        time.sleep(seconds)

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
    monkeypatch.setattr(linked_files, "time", clock)
    first, second = artifact.programs
    monkeypatch.setitem(artifact.programs, "last", artifact.programs[first])
    linking = Linking(artifact, [range(1), range(1, 2)], [*artifact.programs], tmp_path)
    assert slow.reached.wait(10)
    assert ("last", 0) in linking.files.paths and "other" not in artifact.programs
    assert linking.files.read(first, 0, artifact.spec) is not None
    assert linking.files.read("last", 0, artifact.spec) is None  # not begun
    assert linking.files.read("other", 0, artifact.spec) is None  # not at all
    assert not looked.is_set()
    got: list[LinkedProgram | None] = []
    actor = Thread(target=lambda: got.append(linking.files.read(second, 0, artifact.spec)))
    actor.start()
    assert looked.wait(10)  # it waits, for as long as was said until now
    monkeypatch.setattr(linked_files, "LONGEST_WAIT_SECONDS", 0.02)
    assert linking.files.read(second, 0, artifact.spec) is None
    slow.go_on.set()
    actor.join()
    linking.thread.join()
    assert got[0] is not None and got[0].cycles == link(slow.linked[1], artifact.spec).cycles


class Crew:
    """A supervisor that gets plans and starts nothing."""

    plans: list[GroupPlan]

    def __init__(self, plans: list[GroupPlan], *_: object) -> None:
        Crew.plans = plans

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def nothing(*_: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(session, "open_ray", nothing)
    monkeypatch.setattr(session, "Supervisor", Crew)


def test_nobody_waits_for_programs_that_may_never_be_launched(
    compiled: tuple[Artifact, Host], no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, _ = compiled
    slow, entries = Slow(monkeypatch, 1), list(artifact.programs)[::-1]
    began = perf_counter()
    with chip_actors(artifact, Placement(1), lambda _: None, entries=entries):
        assert slow.reached.wait(10)
        files = Crew.plans[1].linked
        assert list(files.paths) == [(entry, 0) for entry in entries]
        directory = files.paths[entries[0], 0].parent
        assert files.paths[entries[0], 0].exists() and not files.paths[entries[1], 0].exists()
    assert not directory.exists()
    assert perf_counter() - began < 8
    before = len(slow.linked)
    slow.go_on.set()
    for thread in linking_threads():
        thread.join()
    assert len(slow.linked) == before == 2 and not directory.exists()


def test_an_interruption_waits_for_no_program(
    compiled: tuple[Artifact, Host], no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, _ = compiled
    slow = Slow(monkeypatch, 0)

    def interrupted(*_: object) -> None:
        assert slow.reached.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "open_ray", interrupted)
    began = perf_counter()
    with (
        pytest.raises(KeyboardInterrupt),
        chip_actors(artifact, Placement(1), lambda _: None, entries=list(artifact.programs)),
    ):
        pass
    assert perf_counter() - began < 8
    assert all(thread.daemon for thread in linking_threads())
    slow.go_on.set()
    for thread in linking_threads():
        thread.join()
    assert len(slow.linked) == 1


def linking_threads() -> list[Thread]:
    return [thread for thread in threading.enumerate() if "_work" in thread.name]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What each run has said is to be linked; no run goes on from there."""
    found: list[list[str]] = []

    @contextlib.contextmanager
    def actors(*arguments: Any) -> Iterator[None]:
        found.append(list(arguments[5]))
        yield

    def collected(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(generation, "chip_actors", actors)
    monkeypatch.setattr(generation, "_collect", collected)
    return found


def compiled_for(positions: int, context: int = 320, **options: int) -> Artifact:
    """A model made for ``positions``, with programs for ``context``."""
    config = replace(SHAPE, layers=2, max_position=positions)
    model = partition_model(random_checkpoint(config, 0), 2, "int8")
    return compile_decoder(model, ChipSpec(), context, weights=False, **options)


def test_programs_are_linked_in_the_order_of_their_launches(told: list[list[str]]) -> None:
    artifact = compiled_for(512)
    job = Generation(tuple(range(1, 71)), 280 - 70)
    with pytest.raises(InterruptedError):
        run_generation(artifact, job, Placement(1), Listener(), perf_counter())
    order = ["prefill-64", "prefill-128", "decode-128", "decode-256", "decode-512"]
    assert told.pop() == order


@pytest.mark.parametrize(
    "positions, buckets",
    [(512, (64, 128, 256, 512)), (300, (64, 128, 256, 512)), (50, (64,)), (1, (64,))],
)
def test_of_a_chat_what_texts_take_within_the_models_positions_is_linked(
    positions: int, buckets: tuple[int, ...], told: list[list[str]]
) -> None:
    artifact = compiled_for(positions)
    with kept_chips(artifact, Placement(1), lambda _: None):
        pass
    kinds = ("prefill", "decode")[positions == 1 :]
    assert told.pop() == [f"{kind}-{bucket}" for bucket in buckets for kind in kinds]


def test_of_a_chat_no_way_is_linked_that_no_prompt_goes(told: list[list[str]]) -> None:
    artifact = compiled_for(250, 250, pp=2, chunk=4)
    with kept_chips(artifact, Placement(1), lambda _: None):
        pass
    kinds = ("chunks-{}", "chunks-{}-end", "decode-{}")
    taken = [kind.format(bucket) for bucket in (64, 128, 256) for kind in kinds]
    assert told.pop() == taken and set(taken) < set(artifact.programs)
