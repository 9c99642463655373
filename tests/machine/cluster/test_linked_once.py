"""Programs that several actors have are linked once, by the driver, and run from its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from chip.faults import ProgramFault
from chip.program import Program, new_blocks
from chip.spec import ChipSpec
from cluster.processes.session import _link_shared
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


def test_actors_run_what_the_driver_linked(
    compiled: tuple[Artifact, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, host = compiled
    first = Runner.alone(artifact, host).generate(JOB)
    paths, thread = _link_shared(artifact, [range(1), range(1, 2)], artifact.programs, tmp_path)
    thread.join()
    assert set(paths) == {(entry, 0) for entry in artifact.programs}

    def no(*_: object) -> None:
        raise AssertionError("an actor links")

    monkeypatch.setattr(runner, "link", no)
    host.begin()
    other = Runner.alone(artifact, host)
    other.stored = paths
    again = other.generate(JOB)
    assert (again.sums, again.tokens, again.retired) == (first.sums, first.tokens, first.retired)
    with pytest.raises(AssertionError, match="an actor links"):
        host.begin()
        Runner.alone(artifact, host).generate(JOB)


def test_what_only_one_has_is_its_own_to_link(
    compiled: tuple[Artifact, Host], tmp_path: Path
) -> None:
    artifact, _ = compiled
    paths, thread = _link_shared(artifact, [range(2)], artifact.programs, tmp_path)
    thread.join()
    assert not paths and not list(tmp_path.iterdir())


def test_what_does_not_link_is_the_actors_to_tell(
    compiled: tuple[Artifact, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, _ = compiled
    blocks = new_blocks(2)  # two instructions of one queue in one cycle
    monkeypatch.setitem(artifact.programs, "wrong", [Program(blocks, [], [], 5)])
    with pytest.raises(ProgramFault):
        Runner.alone(artifact).launch("wrong", 0, "lookahead")
    paths, thread = _link_shared(artifact, [range(1), range(1, 2)], ["wrong"], tmp_path)
    thread.join()
    assert not paths
