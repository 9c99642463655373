"""``--address`` where nobody answers, or somebody who is no Ray, ends soon and in one line."""

from __future__ import annotations

import socket
import time
from concurrent import futures
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from cluster.errors import InputError
from cluster.processes import ray_session


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "LONGEST_ANSWER_SECONDS", 0.5)


def refused(address: str) -> str:
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        ray_session._join(None, address)
    assert time.monotonic() - began < 10
    return str(caught.value)


def test_workers_of_a_joined_ray_import_what_runs_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray puts the driver's working directory in front of their path: another checkout, perhaps."""
    monkeypatch.chdir(tmp_path)
    told = []
    ray = SimpleNamespace(init=lambda **_: told.append(Path.cwd()))
    ray_session._join(ray, "auto")
    assert told == [ray_session.PACKAGE_ROOT] and Path.cwd() == tmp_path


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said = refused(f"127.0.0.1:{port}")
    assert said == (
        f"--address 127.0.0.1:{port}: no Ray cluster answered in 0.5 s; start one with "
        "ray start --head, or leave --address out"
    )


def test_who_listens_says_nothing() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        assert "no Ray cluster answered" in refused(f"127.0.0.1:{silent.getsockname()[1]}")


def test_who_answers_is_not_refused() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        ray_session._check_answers(f"127.0.0.1:{port}")
    finally:
        server.stop(None)
